"""What the model answers to a few held-out prompts at each evaluation: one sees it learn while it trains."""

from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.core.events import Progress
from luthier.core.ranks import here
from luthier.core.strict_json import to_json
from luthier.evaluation.records.context import answered, asks
from luthier.pipeline.measure import question_of, subject_of
from luthier.pipeline.prepare import Loaded
from luthier.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

TOKENS = 48
"""Most tokens of such an answer."""


class Samples(Progress):
    """Answers `evaluate.samples` prompts at each evaluation, greedily, and adds a line for each to samples.jsonl."""

    def __init__(self, loaded: Loaded, model: "nn.Module", folder: RunFolder) -> None:
        """`model` is the one that trains."""
        few = {"rows": loaded.config.evaluate.samples, "generate": loaded.config.evaluate.samples}
        settings = loaded.config.evaluate.model_copy(update={**few, "max_new_tokens": TOKENS, "cache": False})
        self.few = Loaded(loaded.config.model_copy(update={"evaluate": settings}), model, loaded.tokens)
        self.model, self.folder = model, folder

    @classmethod
    def wanted(cls, loaded: Loaded) -> bool:
        """Whether a run generates them: a chat with held-out rows, in one process."""
        return loaded.config.evaluate.samples > 0 and loaded.data.task.name == "chat" and not here().several

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        """Generate and write. Draws no random numbers, so the run goes on as without it."""
        subject = subject_of(self.few, side="validation")
        if subject is None or not asks(subject):
            return
        training = self.model.training
        self.model.eval()
        try:
            records = answered(replace(subject, progress=Progress()))
        finally:
            self.model.train(training)
        with self.folder.samples.open("a", encoding="utf-8") as file:
            for example, record in zip(subject.examples, records, strict=False):
                if record:
                    line = {"step": step, "prompt": question_of(example), **record}
                    file.write(to_json(line, ensure_ascii=False) + "\n")
