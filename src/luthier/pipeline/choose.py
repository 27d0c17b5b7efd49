"""Which method to take for a task, a base and a machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.core.events import SILENT, Progress
from luthier.methods.base import METHODS
from luthier.models.load import architecture, device, locate, skeleton, stored_bytes
from luthier.pipeline.prepare import prepare_data, tokenize
from luthier.planning import machine
from luthier.planning.advisor.candidates import Planner
from luthier.planning.advisor.evidence import comparisons
from luthier.planning.advisor.nearness import relevant
from luthier.planning.advisor.question import ChooseOptions, assumed_facts, facts_of
from luthier.planning.advisor.rank import rank_methods, record
from luthier.planning.advisor.reasons import Question
from luthier.planning.plan import PlanInputs
from luthier.recipe.config import RunConfig
from luthier.tasks.base import TASKS
from luthier.training.settings import total_steps


def choose(
    config: RunConfig,
    options: ChooseOptions | None = None,
    *,
    evidence: Sequence[Path] = (),
    given: Sequence[str] = (),
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Which method to take, ranked, with reasons and their sources; reads the data and no weights, writes nothing.

    Rows and task are read, unless the options give their number. `evidence` names comparisons, which must be valid; of
    those in runs/ an invalid one is a warning. `given` is what the user typed of the recipe, for the commands to go on
    with.
    """
    options = options or ChooseOptions()
    model, train, other = config.model, config.train, None
    if options.memory is not None:
        other = machine.TargetMachine("cpu" if model.device == "cpu" else "cuda", options.memory, options.memory)
        model = model.model_copy(update={"device": "cpu"})
    bare = model.model_copy(update={"init": "random", "quantize": "none"})
    source = locate(bare)
    read = architecture(bare, source)
    if options.rows is None:
        whole_data = config.data.model_copy(update={"streaming": False})
        neutral = config.model_copy(update={"model": bare, "method": METHODS.parse("lora"), "data": whole_data})
        data = prepare_data(neutral, progress)
        tokens = tokenize(neutral, data, progress)
        task, limit, facts = data.task, tokens.max_length, facts_of(data, tokens.labels)
    else:
        task = config.task or TASKS.parse("chat" if read.family == "decoder" else "classify")
        limit = train.max_length or read.positions
        facts = assumed_facts(options.rows, task, train.max_length, limit)
    whole = skeleton(bare, source, labels=facts.labels)  # refuses here what no method could do with this base
    precision = train.precision_on(device(bare))
    if other is not None and other.device == "cuda":
        stored = str(getattr(whole.config, "dtype", None) or "float32").split(".")[-1]
        model = model.model_copy(update={"dtype": stored if model.dtype == "auto" else model.dtype})
        precision = "bf16" if train.precision == "auto" else precision
    train = train.model_copy(update={"precision": precision})
    target = other or machine.this_machine(device(bare))
    asked = {"model": model.path, "data": config.data.path, "task": task.name}
    boards = comparisons(evidence, **asked)
    for file in sorted(Path("runs").glob("*/compare.json")):
        try:
            boards += comparisons([file], **asked) if file not in evidence else []
        except InputError as error:
            progress.warn(f"left out: {error.message.removeprefix('--evidence: ')}")
    question = Question(facts, options, model.path, read.family, *stored_bytes(whole), target)
    question = replace(question, boards=[*sorted(boards, key=lambda one: one.tier), *relevant(question)])
    progress.stage("weighing methods")
    method = config.method if "method" in config.model_fields_set else METHODS.parse("lora")
    rows = facts.lengths, facts.learned, total_steps(train, facts.rows)
    base = PlanInputs(model, method, train, task, whole, source, *rows, facts.labels, config.seed, other)
    choice = rank_methods(question, Planner(base, limit), lambda name: progress.note(f"planning the method {name}"))
    typed = [*(given or ["--model", model.path])]
    if not config.data.path or not given:
        typed += ["--data", config.data.path or "YOUR_FILE.jsonl"]
    return record(choice, None if options.rows else config.data.path, task.name, typed, config.model.quantize)
