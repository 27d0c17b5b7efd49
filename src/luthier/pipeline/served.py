"""The check of a live endpoint: does it answer as the run does, or as the run's base?

An adapter can be served without being applied: its name is not matched, some of its modules are ignored, its scale is
another. Nothing fails then, and the answers are the base's, or nearly. So each held-out prompt is answered greedily by
the run, by its base and by the server, and log-probabilities are compared where the server gives them.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from luthier.core.errors import InputError, LuthierError, Unproved
from luthier.core.events import SILENT, Progress
from luthier.evaluation.records.context import split_answer
from luthier.pipeline.evaluate import open_run
from luthier.pipeline.measure import base_model
from luthier.pipeline.parity import TorchRunner
from luthier.pipeline.prepare import Loaded
from luthier.recipe.consent import Allow
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example
from luthier.rendering.row import Row
from luthier.runs.folder import RunFolder
from luthier.serving.backends import Endpoint
from luthier.serving.engine.sources import named, run_of

PROMPTS, CANDIDATES, ANSWER = 20, 40, 32
"""Prompts that are asked, held-out rows that they are chosen from, and tokens of each answer."""
BOUNDS = {"float32": 1e-3, "half": 0.05}
"""Mean difference of log-probabilities (nats) that rounding may make. In half precision two programs that add in other
orders differ by about 0.01."""
TIE = 10.0
"""Two tokens whose log-probabilities differ by less than so many bounds may change places."""
TOP = 20  # Most likely tokens among which a token that changed places is looked for
SURE, NEAR = 0.1, 0.25
"""The measured scale must be within NEAR of 1 (base: of 0) where its standard error is below SURE."""
LOWEST = -30.0  # A log-probability below this is counted as this: vLLM gives -9999 for 0

VERDICTS = {
    "run": "answers as the run",
    "base": "answers as its BASE: the adapter is not applied",
    "neither": "answers as neither the run nor its base",
    "both": "cannot be told: the run and its base answer alike",
}


@dataclass(slots=True)
class ExpectedAnswer:
    """The greedy answer of the run or of its base, with what both of them make of its tokens."""

    ids: list[int]
    top: list[dict[int, float]]  # For each token the most likely ones by the model that gave the answer
    run: list[float]  # Log-probability of each token by the run
    base: list[float]  # The same by the base


@dataclass(slots=True)
class HeldOutPrompt:
    """A held-out prompt with the answers that are expected."""

    ids: list[int]
    reference: list[int]  # Tokens of the data's own answer
    chat: list[dict[str, str]]  # Its messages; empty if the server is asked to continue the tokens
    answers: dict[str, ExpectedAnswer]  # Of "run" and "base"
    scored: dict[str, list[float]]  # Log-probabilities of `reference` by both

    @property
    def tells(self) -> bool:
        """Whether run and base answer differently."""
        return self.answers["run"].ids != self.answers["base"].ids


def check_served(
    given: str,
    url: str,
    *,
    key: str | None = None,
    dtype: str = "auto",
    bound: float | None = None,
    progress: Progress = SILENT,
    allow_code: Allow = False,
) -> dict[str, Any]:
    """Compare one model of the endpoint `url` with the run that it should be (NAME=RUN, RUN, or an export of one).

    `dtype` is the type that the server computes in, from which `bound` follows if it is not given: in auto that of half
    precision. InputError if the run or the endpoint cannot be asked; see `refuse` for what comes of the verdict.
    """
    name, path = named(given)
    place = run_of(path)
    if place is None:
        fix = "give the run that it is of; answers are compared on its held-out prompts"
        raise InputError(f"{path} is neither a run nor an export in a run's folder", fix=fix)
    folder = RunFolder.existing(place)
    if folder.read_json(folder.data)["task"]["name"] in ("classify", "regress"):
        raise InputError(f"{place} is a classifier, which has no answers to compare")
    url = url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"
    endpoint = _endpoint(url, name, key, progress)
    loaded, _ = open_run(place, progress, allow_code=allow_code, measures=False)
    progress.stage(f"answering {path}'s held-out prompts with the run and with its base")
    prompts = _expected(loaded, progress)
    bound = bound or BOUNDS["float32" if dtype == "float32" else "half"]
    progress.stage(f"asking {url} for {len(prompts)} answers of {endpoint.name}")
    told, pairs, source = _asked(endpoint, prompts, loaded.template, bound, progress)
    report = {"model": endpoint.name, "run": str(path), "url": url, "bound": bound, "prompts": told}
    report |= {"telling": sum(prompt.tells for prompt in prompts), "logprobs": _scale(pairs, source, bound)}
    held = {side: _held(side, report) for side in ("run", "base")}
    verdict = ("both" if held["base"] else "run") if held["run"] else "base" if held["base"] else "neither"
    return report | {"verdict": verdict, "says": VERDICTS[verdict]}


def refuse(reports: Sequence[dict[str, Any]]) -> None:
    """Unproved, with what was seen, if a model does not answer as its run."""
    lines, fixes = [], []
    for report in reports:
        if report["verdict"] == "run":
            continue
        found, line = report["logprobs"], f"{report['model']} at {report['url']} {report['says']}"
        if report["verdict"] == "both":
            line += f" to all {len(report['prompts'])} prompts"
            fixes.append("train longer, or ask a server that gives log-probabilities" if not found else "train longer")
        elif report["verdict"] == "base":
            fixes.append("see whether the server names, finds and loads the adapter, with all of its modules")
        elif found and found["scale_decides"] and abs(found["scale"] - 1) > NEAR:
            line += f": {found['scale']:.2f} of the adapter's effect arrives"
            fixes.append("see lora_alpha, and the modules that the server ignores")
        else:
            fixes.append("see base, adapter and chat template there; --bound allows a quantized server more")
        lines.append(line)
    if lines:
        raise Unproved("\n".join(lines), fix="; ".join(dict.fromkeys(fixes)))


def _endpoint(url: str, name: str, key: str | None, progress: Progress) -> Endpoint:
    """The model of that name; InputError, with the names that there are, if it is not there."""
    endpoint = Endpoint(url, name, progress.note, key)
    found = endpoint.models()
    if found and name not in found:
        if f"{name}:latest" not in found:  # Ollama's names have tags
            there = f"there is no model {name!r} at {url}; there are: {', '.join(found)}"
            raise InputError(there, fix="NAME=RUN, with its name there")
        endpoint.name = f"{name}:latest"
    return endpoint


def _expected(loaded: Loaded, progress: Progress) -> list[HeldOutPrompt]:
    """Held-out prompts with the answers of run and base, those that tell them apart first."""
    side = loaded.data.side(loaded.data.held_out_side)
    side = side if len(side.rows) else loaded.data.side("train")
    last = {side.rows.owner[number]: number for number in range(len(side.rows))}  # a dialogue's last answer
    prompts: list[HeldOutPrompt] = []
    for owner, number in list(last.items())[:CANDIDATES]:
        made = _prompt(side.examples[owner], side.rows[number], loaded)
        if made.ids not in [prompt.ids for prompt in prompts]:
            prompts.append(made)
    if not prompts:
        raise InputError("the run kept no rows to ask for", fix="data.validation=0.1")

    def runner(model: nn.Module) -> TorchRunner:
        return TorchRunner(model, sorted(loaded.template.end_ids), loaded.template.tokenizer.pad_token_id or 0)

    def answer(side: str, runner: TorchRunner) -> None:
        for number, prompt in enumerate(prompts):
            ids = runner.answer(prompt.ids, ANSWER)
            _, top = _scored(runner, prompt.ids, ids)
            prompt.answers[side] = ExpectedAnswer(ids, top, [], [])
            progress.measured(f"answers of the {side}", number + 1, len(prompts))

    def score(side: str, runner: TorchRunner) -> None:
        for prompt in prompts:
            prompt.scored[side], _ = _scored(runner, prompt.ids, prompt.reference)
            for each in prompt.answers.values():
                setattr(each, side, _scored(runner, prompt.ids, each.ids)[0])

    answer("run", runner(loaded.model))
    with base_model(loaded) as model:
        answer("base", runner(model))
        prompts = sorted(prompts, key=lambda prompt: not prompt.tells)[:PROMPTS]
        score("base", runner(model))
    gc.collect()  # a base of its own
    score("run", runner(loaded.model))
    return prompts


def _prompt(example: Example, row: Row, loaded: Loaded) -> HeldOutPrompt:
    """As messages where the chat template makes the row's tokens of them and a server takes them; else as tokens."""
    ids, reference = split_answer(row)
    if len(ids) < 2:  # plain text is learned from its first token on
        half = max(1, len(row.ids) // 2)
        ids, reference = row.ids[:half], row.ids[half:]
    learned = [number for number, message in enumerate(example.messages) if message.learn]
    before = example.messages[: learned[-1]] if learned and loaded.data.task.name == "chat" else ()
    plain = not example.tools and not any(each.tool_calls or each.role == "tool" for each in before)
    chat = [{"role": each.role, "content": each.content} for each in before] if plain else []
    if chat and loaded.template.prompt_ids(before) != ids:  # a row that was cut
        chat = []
    return HeldOutPrompt(ids, reference, chat, {}, {})


def _scored(runner: TorchRunner, prompt: list[int], answer: list[int]) -> tuple[list[float], list[dict[int, float]]]:
    """Log-probability of each token of `answer` behind the prompt, and at its place the most likely tokens."""
    if not answer:
        return [], []
    logits = torch.from_numpy(runner.logits([*prompt, *answer]))[len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)  # [answer, vocabulary]
    values, tokens = logprobs.topk(min(TOP, logprobs.size(-1)))
    top = [dict(zip(*pair, strict=True)) for pair in zip(tokens.tolist(), values.tolist(), strict=True)]
    return logprobs[range(len(answer)), answer].tolist(), top


Pair = tuple[float, float, float]
"""Log-probability of one token by the server, the run and the base."""


def _asked(
    endpoint: Endpoint, prompts: Sequence[HeldOutPrompt], template: Template, bound: float, progress: Progress
) -> tuple[list[dict[str, Any]], list[Pair], str]:
    """What the server says to each prompt, the log-probabilities that it gives, and of what tokens they are."""
    told, path_pairs, row_pairs, echoes = [], [], [], True
    for number, prompt in enumerate(prompts):
        text, ended, logprobs = _answer(endpoint, prompt)
        agreed = {s: _agreed(each, text, ended, TIE * bound, template) for s, each in prompt.answers.items()}
        held = [side for side, (_, explained) in agreed.items() if explained]
        longest = prompt.answers[max(agreed, key=lambda side: agreed[side][0])]
        count = max(tokens for tokens, _ in agreed.values())
        path_pairs += list(zip(logprobs[:count], longest.run, longest.base, strict=False))
        if echoes and (scored := _echoed(endpoint, prompt)):
            row_pairs += list(zip(scored, prompt.scored["run"], prompt.scored["base"], strict=True))
        else:
            echoes = False
        record: dict[str, Any] = {"prompt": prompt.chat[-1]["content"] if prompt.chat else _text(template, prompt.ids)}
        record |= {"asked": "chat" if prompt.chat else "tokens", "said": text, "tells": prompt.tells}
        for side, each in prompt.answers.items():
            record |= {side: _text(template, each.ids), f"as_{side}": agreed[side][0], f"{side}_tokens": len(each.ids)}
        told.append(record | {"answers_as": "neither" if not held else held[0] if len(held) == 1 else "both"})
        progress.measured("prompts", number + 1, len(prompts))
    return (told, row_pairs, "held-out answers") if row_pairs else (told, path_pairs, "its own answers")


def _answer(endpoint: Endpoint, prompt: HeldOutPrompt) -> tuple[str, bool, list[float]]:
    """Text of the greedy answer, whether it ended by itself, and its tokens' log-probabilities if there are any."""
    body: dict[str, Any] = {"temperature": 0, "max_tokens": ANSWER}
    body |= {"messages": prompt.chat} if prompt.chat else {"prompt": prompt.ids}
    path, scores = ("/chat/completions", {"logprobs": True}) if prompt.chat else ("/completions", {"logprobs": 1})
    try:
        made = endpoint.ask(path, body | scores)
    except InputError:
        made = endpoint.ask(path, body)  # it may know no log-probabilities
    try:
        choice = made["choices"][0]
        said = choice["message"] if prompt.chat else {"content": choice["text"]}
        if said.get("reasoning_content") or said.get("reasoning"):
            why = f"{endpoint.url} takes the reasoning out of its answers"
            raise InputError(why, fix="vLLM: leave out --reasoning-parser; llama-server: --reasoning-format none")
        return str(said["content"] or ""), choice.get("finish_reason") == "stop", _logprobs(choice)
    except (LookupError, TypeError, AttributeError):
        raise LuthierError(f"{endpoint.url}{path}: this is no answer of OpenAI's API: {str(made)[:200]}") from None


def _logprobs(choice: dict[str, Any]) -> list[float]:
    """Of a completion (OpenAI's older form) or of a chat; up to the first token without one."""
    found = choice.get("logprobs") or {}
    values = found.get("token_logprobs") or [each["logprob"] for each in found.get("content") or []]
    return values[: values.index(None)] if None in values else list(values)


def _echoed(endpoint: Endpoint, prompt: HeldOutPrompt) -> list[float]:
    """Log-probabilities of the reference's tokens (`echo`, which vLLM has); none where the server gives none."""
    ids = [*prompt.ids, *prompt.reference]
    body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    try:
        values = endpoint.ask("/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        found = values[len(prompt.ids) : len(ids)]
        return [] if len(found) < len(prompt.reference) else [float(value) for value in found]
    except (LuthierError, LookupError, TypeError, ValueError):
        return []


def _text(template: Template, ids: Sequence[int]) -> str:
    return str(template.tokenizer.decode(list(ids), skip_special_tokens=True))


def _agreed(expected: ExpectedAnswer, text: str, ended: bool, tie: float, template: Template) -> tuple[int, bool]:
    """Tokens of `expected` that the text has, and whether it is all there, or goes on with a token as likely (a tie).

    Behind a tie nothing can be compared. White space at the beginning does not count: some programs remove it.
    """

    def start(ids: Sequence[int]) -> str:
        return _text(template, ids).lstrip().removesuffix("\ufffd")  # half a character

    text, ids, whole = text.lstrip(), expected.ids, start(expected.ids)
    count = next((n for n in range(len(ids)) if not text.startswith(start(ids[: n + 1]))), len(ids))
    closed = bool(ids) and ids[-1] in template.end_ids
    if count == len(ids) and closed and not (ended and text == whole):
        count -= 1  # it does not end here
    if count == len(ids) or (not ended and whole.startswith(text)):
        return count, True
    same = start(ids[:count])
    for place in range(count, -1, -1):
        likely = expected.top[place]
        for token, logprob in likely.items():
            if token != ids[place] and likely.get(ids[place], math.inf) - logprob <= tie:
                begun = start([*ids[:place], token])
                if (
                    text == begun
                    if ended and token in template.end_ids
                    else len(begun) > len(same) and text.startswith(begun)
                ):
                    return count, True
    return count, False


def _scale(pairs: Sequence[Pair], source: str, bound: float) -> dict[str, Any] | None:
    """Mean differences to run and base, and how much of the adapter's effect arrives: 1 for the run, 0 for the base.

    `scale` is the least-squares slope of (server - base) over (run - base): noise that does not go with the adapter's
    effect averages out of it. `scale_error` is its standard error.
    """
    if len(pairs) < 2:
        return None
    server, run, base = torch.tensor(pairs, dtype=torch.float64).nan_to_num(LOWEST).clamp(min=LOWEST).unbind(1)
    effect, found = run - base, server - base
    size = float(effect.square().sum())
    scale = float((found * effect).sum()) / size if size else math.nan
    rest = float((found - scale * effect).square().sum()) / (len(pairs) - 1)
    sizes: dict[str, Any] = {"tokens": len(pairs), "of": source, "effect": float(effect.abs().mean())}
    sizes |= {"from_run": float((server - run).abs().mean()), "from_base": float(found.abs().mean())}
    error = math.sqrt(rest / size) if size else math.inf
    decides = error <= SURE and sizes["effect"] > bound / TIE  # a smaller effect may itself be rounding
    return sizes | {"scale": scale, "scale_error": error, "scale_decides": decides}


def _held(side: str, report: dict[str, Any]) -> bool:
    """Whether everything that was seen is what the run (or its base) would give, to rounding."""
    if any(prompt["answers_as"] not in (side, "both") for prompt in report["prompts"]):
        return False
    if (found := report["logprobs"]) is None:
        return True
    wanted = 1.0 if side == "run" else 0.0
    if found["scale_decides"] and abs(found["scale"] - wanted) > NEAR:
        return False
    return bool(found[f"from_{side}"] <= report["bound"])
