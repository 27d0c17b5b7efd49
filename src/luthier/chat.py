"""The chat command: a dialogue on the terminal, answers streamed."""

from __future__ import annotations

import sys
from pathlib import Path

from luthier.data.example import Message
from luthier.terminal import Terminal, console


def talk(run: Path, *, base: bool, prompt: str | None, system: str, temperature: float, max_new_tokens: int) -> None:
    """Answer one prompt, the lines of a pipe, or a person, until the end of the input."""
    terminal = Terminal()
    if prompt is None:
        terminal.stage(f"loading {run}{' (the untouched base)' if base else ''}")
    from luthier.serving.engine import Engine

    engine = Engine.load(run, base=base)
    opening = [Message("system", system)] if system else []
    messages = list(opening)

    def answer(text: str) -> None:
        messages.append(Message("user", text))
        said = []
        for piece in engine.stream(messages, temperature=temperature, max_new_tokens=max_new_tokens):
            said.append(piece)
            console.out(piece, end="", highlight=False)
            sys.stdout.flush()
        console.out("")
        messages.append(Message("assistant", "".join(said).strip()))

    if prompt is not None:
        answer(prompt)
        return
    if sys.stdin.isatty():
        terminal.note("say something; /new starts a new dialogue, /quit or ctrl-D ends")
    while True:
        try:
            line = console.input("[bold]you:[/] ") if sys.stdin.isatty() else input()
        except (EOFError, KeyboardInterrupt):
            return
        match line.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/new":
                messages[:] = opening
            case text:
                try:
                    answer(text)
                except KeyboardInterrupt:  # ctrl-C stops an answer, not the dialogue
                    console.out(" ...")
                    messages.pop()
