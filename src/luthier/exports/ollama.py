"""A folder for Ollama: the GGUF file and a Modelfile with the run's chat template, its end tokens and settings."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from luthier.core.errors import InputError
from luthier.core.shell import shell_line
from luthier.exports.base import HeldOutPrompt, Tuned
from luthier.exports.gguf import FILE, Gguf
from luthier.exports.llama_cpp.file import run_vocabulary
from luthier.exports.llama_cpp.ollama_template import Dialogue, go_template
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Message


class Ollama(Gguf):
    """The Modelfile's template is verified to render dialogues as the run's own; the file runs in llama.cpp."""

    system: str = ""
    """System message of a dialogue that has none."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 takes the most likely token, as the scores of the run do."""

    def refuse(self, tuned: Tuned) -> None:
        super().refuse(tuned)
        if tuned.task != "chat":
            why = f"{tuned.run} was trained on task {tuned.task}, and Ollama holds dialogues"
            raise InputError(why, fix=tuned.export_command("gguf"))
        self._modelfile(tuned)

    def write(self, tuned: Tuned, folder: Path) -> None:
        super().write(tuned, folder)
        (folder / "Modelfile").write_text(self._modelfile(tuned), encoding="utf-8")

    def check(self, tuned: Tuned, opened: Any, prompts: Sequence[HeldOutPrompt]) -> dict[str, Any]:
        facts = super().check(tuned, opened, prompts)
        facts["verified"] += "; the Modelfile's template renders dialogues as the run's own"
        return facts

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        name = re.sub(r"[^a-z0-9._-]+", "-", Path(tuned.run).name.lower()).strip("-") or "tuned"
        return [
            shell_line("ollama", "create", name, "-f", f"{folder}/Modelfile"),
            shell_line("ollama", "run", name),
        ]

    def _modelfile(self, tuned: Tuned) -> str:
        """InputError if no Ollama template matches the run's, or the template has no place for a system message."""
        template = Template(tuned.tokenizer)
        opens = tuned.tokenizer.bos_token if run_vocabulary(tuned).add_bos else ""

        def render(dialogue: Dialogue, prompt: bool) -> str:
            text = template.render([Message(role, content) for role, content in dialogue], prompt=prompt)
            return text.removeprefix(opens)  # llama.cpp adds it

        made, knows_system = go_template(render)
        if self.system and not knows_system:
            raise InputError("system: this run's chat template has no place for a system message")
        stops = [tuned.tokenizer.convert_ids_to_tokens(number) for number in tuned.ends]
        lines = [f"FROM ./{FILE}", f"TEMPLATE {_quoted(made)}", *(f"PARAMETER stop {_quoted(stop)}" for stop in stops)]
        lines += [f"PARAMETER temperature {self.temperature:g}", "PARAMETER repeat_penalty 1"]
        lines += [f"SYSTEM {_quoted(self.system)}"] if self.system else []
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise InputError(f"a Modelfile cannot hold the text {text[-40:]!r}, because of its quotation marks")
    return f'"""{text}"""'
