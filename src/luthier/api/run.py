"""A run: what it scored, what it says, and what can be made of it."""

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from markupsafe import Markup

from luthier.api import show
from luthier.api.arguments import overrides_of
from luthier.api.reporting import Shown, reporting
from luthier.api.rows import Rows, data_settings
from luthier.api.scores import Scores
from luthier.core.errors import InputError
from luthier.core.shell import shell_line
from luthier.core.units import duration, gigabytes
from luthier.recipe.identity import read_recipe
from luthier.rendering.example import Message, RowError
from luthier.runs.folder import RunFolder

AT_ONCE = 16
"""Answers that are generated in one batch."""
Messages = Sequence[Mapping[str, Any]]
"""A conversation: dicts with `role` and `content`, as of OpenAI's API."""


@dataclass(frozen=True)
class Exported:
    """A form to deploy that was written, and proved to answer as its run."""

    path: Path
    report: Mapping[str, Any]

    @property
    def parity(self) -> list[dict[str, Any]]:
        """Differences of logits and answers on held-out prompts, beside the run (see docs/export.md)."""
        return list(self.report["parity"])

    @property
    def use(self) -> list[str]:
        """Lines that load it."""
        return list(self.report["use"])

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return int(self.report["bytes"])

    def to_dict(self) -> dict[str, Any]:
        """What stands in export.json, and where it is."""
        return dict(self.report)

    def __repr__(self) -> str:
        return f"Exported({str(self.path)!r}, {gigabytes(self.bytes)})"

    def _repr_html_(self) -> str:
        rows = [
            (each["against"], each["prompts"], f"{each['largest']:.3g}", f"{each['same_answers']:.0%}")
            for each in self.parity
        ]
        checks = show.html_table(("compared with", ">prompts", ">max difference", ">same answers"), rows)
        return show.head(f"{self.path} ({gigabytes(self.bytes)})") + (checks if rows else "") + _code(self.use)


class Run:
    """The folder of a run. Nothing is loaded before it is needed; a model that answers stays loaded until `close`."""

    def __init__(self, path: str | os.PathLike[str], *, allow_code: bool = False) -> None:
        """InputError where no run is. `allow_code` lets code and a judge run that the run's recipe.yaml names."""
        self._folder = RunFolder.existing(path)
        self._allow_code = allow_code
        self._engine: Any = None
        self._opening = Lock()
        self._close: Callable[[], object] = lambda: None

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

    @property
    def finished(self) -> bool:
        """Is it trained and measured? `luthier.train` with the same arguments finishes one that is not."""
        return self._folder.result.is_file()

    @property
    def result(self) -> dict[str, Any]:
        """What stands in result.json: scores, steps, seconds, bytes. InputError where the run is not finished."""
        if not self.finished:
            again = shell_line("luthier", "train", self._folder.recipe)
            what = f"{self.path}: the run is not finished"
            raise InputError(what, fix=f"call luthier.train with the same arguments, or {again}")
        return dict(self._folder.read_json(self._folder.result))

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe: every key with its value."""
        return read_recipe(self._folder).model_dump(mode="json")

    @property
    def scores(self) -> Scores:
        """Metric -> score on the held-out rows, base against tuned. InputError where the run is not finished."""
        return Scores(self.result)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: a dict for each step (`loss` in nats per target) and each evaluation."""
        return self._folder.history()

    @property
    def report(self) -> show.Page:
        """The page of the run: its path, which a notebook shows in a frame."""
        return show.Page(self._folder.report)

    def to_dict(self) -> dict[str, Any]:
        """What stands in result.json."""
        return self.result

    def generate(
        self,
        prompt: str | Messages,
        *,
        system: str = "",
        untuned: bool = False,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """The answer to a prompt, or to a conversation whose last turn is the user's.

        Temperature 0 is greedy. `untuned` asks the base instead. A classifier answers with its labels and their
        probabilities. InputError where the run is not finished, or the prompt does not fit into the model.
        """
        from luthier.serving.engine.requests import SamplingParams

        if temperature < 0 or max_new_tokens < 1 or not 0 < top_p <= 1:
            what = f"temperature={temperature}, max_new_tokens={max_new_tokens}, top_p={top_p}"
            raise InputError(what, fix="temperature at least 0, max_new_tokens at least 1, top_p above 0 and at most 1")
        turns = [*([Message("system", system)] if system else []), *_turns(prompt)]
        sampling = SamplingParams(temperature, max_new_tokens, seed, top_p, tuple(stop))
        return "".join(self._stream(untuned)(turns, sampling)).strip()

    def generate_all(self, prompts: Sequence[str | Messages], **sampling: Any) -> list[str]:
        """The answers to many prompts, generated side by side; keyword arguments are those of `generate`."""
        self._stream(bool(sampling.get("untuned")))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(partial(self.generate, **sampling), prompts))

    def _stream(self, untuned: bool) -> Any:
        """What streams answers; the models stay loaded."""
        with self._opening:
            if self._engine is None:
                self._folder.weights()
                with reporting(False):
                    self._engine = _open(str(self.path), self._allow_code)
                # Its thread must have ended before Python does, also where nobody calls `close`.
                self._close = weakref.finalize(self, getattr(self._engine, "close", lambda: None))
        names = [*getattr(self._engine, "models", {})]
        if untuned and "base" not in names:
            kind = "holds full weights" if names else "is a classifier"
            raise InputError(f"{self.path} {kind}: its base cannot be asked here", fix="leave untuned out")
        return partial(self._engine.stream, model="base") if untuned else self._engine.stream

    def close(self) -> None:
        """Free the memory of a model that answered."""
        self._engine = None
        self._close()

    def evaluate(self, data: Rows | None = None, *, progress: Shown = None, **evaluate: Any) -> Scores:
        """Measure again, base against tuned, with keys of the recipe's evaluate block (`generate=500`).

        Without `data` it is on the run's own held-out rows, and its result and report are written anew. Other rows (a
        path, dicts, a Dataset or a DataFrame) leave the run as it is. InputError where there is nothing to measure.
        """
        from luthier.pipeline import evaluate as stage

        overrides = overrides_of(evaluate, "evaluate.")
        with reporting(progress) as listener:
            options: Any = {"progress": listener, "allow_code": self._allow_code}
            if data is None:
                return Scores(stage.evaluate(self.path, overrides, **options))
            return Scores(stage.evaluate_on(self.path, str(data_settings(data)), overrides, **options))

    def export(self, form: str = "merged", *, prompts: int = 20, progress: Shown = None, **settings: Any) -> Exported:
        """Write a form to deploy (`luthier list exports`) with its settings, and prove that it answers as the run.

        The proof replays so many of the held-out `prompts`. InputError where the form cannot hold the run, Unproved
        where it answers otherwise: then nothing is kept.
        """
        from luthier.pipeline.export import export
        from luthier.recipe.parse import parse_export

        target = parse_export(form, overrides_of(settings))
        with reporting(progress) as listener:
            report = export(self.path, target, prompts=prompts, progress=listener, allow_code=self._allow_code)
        return Exported(Path(report["path"]), report)

    def __repr__(self) -> str:
        if not self.finished:
            return f"Run({str(self.path)!r}, not finished)"
        score = self.scores.primary
        shown = "" if score is None else f", {score.metric} {score.value:.4g}"
        return f"Run({str(self.path)!r}, {self.result['method']} on {self.result['model']}{shown})"

    def _repr_html_(self) -> str:
        if not self.finished:
            return show.head(f"{self.path}") + show.soft("not finished") + show.loss_svg(self.history)
        result = self.result
        trained = f"{result['method']} on {result['model']}, {result['steps']} steps in"
        what = f"{trained} {duration(result['train_seconds'])}, {result['trainable']:,} parameters trained"
        above = show.head(f"{self.path}") + show.soft(what) + self.scores._repr_html_()
        return above + show.loss_svg(self.history) + show.soft(f"report: {self.report}")


def _open(path: str, allow_code: bool) -> Any:
    from luthier.serving.engine.classifier import Classifier
    from luthier.serving.engine.engine import Engine
    from luthier.serving.engine.sources import source_of

    source = source_of(path, allow_code)
    return Classifier(source) if source.labels else Engine.open([path], rows=AT_ONCE, allow_code=allow_code)


def _turns(prompt: Any) -> list[Message]:
    from luthier.data.formats.base import turns_of

    if isinstance(prompt, str):
        return [Message("user", prompt)]
    try:
        turns = turns_of(prompt, "prompt")
    except RowError as error:
        raise InputError(error.reason, fix="text, or a list of {'role': 'user', 'content': ...}") from None
    if not turns:
        raise InputError("prompt has no turns", fix="text, or a list of {'role': 'user', 'content': ...}")
    return turns


def _code(lines: Sequence[str]) -> Markup:
    return Markup("<pre>{}</pre>").format("\n".join(lines))
