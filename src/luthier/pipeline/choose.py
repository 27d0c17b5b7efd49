"""Which method to take for a task, a base and a machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.pipeline.prepare import prepare_data, tokenize
from luthier.recipe.config import RunConfig

if TYPE_CHECKING:
    from luthier.planning.advisor.evidence import Board
    from luthier.planning.advisor.question import ChooseOptions
    from luthier.planning.advisor.reasons import Question
    from luthier.tasks.base import Task


def choose(
    config: RunConfig,
    options: "ChooseOptions | None" = None,
    *,
    evidence: Sequence[Path] = (),
    given: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Which method to take, ranked, with reasons and their sources; reads the data and no weights, writes nothing.

    `given` is what the user typed of the recipe, for the commands to go on with.
    """
    from luthier.planning.advisor.candidates import Planner
    from luthier.planning.advisor.commands import next_commands
    from luthier.planning.advisor.question import ChooseOptions
    from luthier.planning.advisor.rank import rank_methods, record

    progress, options = progress or Progress(), options or ChooseOptions()
    question, task = question_of(config, options, list(evidence), progress)
    progress.stage("weighing methods")
    own = config.method if "method" in config.model_fields_set else None
    planner = Planner(question.base, question.facts, config.train, task, config.seed, own)
    choice = rank_methods(question, planner, lambda name: progress.note(f"planning {name}"))
    data = None if options.rows else config.data.path
    typed = [*(given or ["--model", config.model.path])]
    if not config.data.path or not given:
        typed += ["--data", config.data.path or "YOUR_FILE.jsonl"]
    commands = next_commands(choice, typed, quantize=config.model.quantize)
    return record(choice, data=data, task=task.name, next_commands=commands)


def question_of(
    config: RunConfig, options: "ChooseOptions", evidence: list[Path], progress: Progress
) -> "tuple[Question, Task]":
    """The question: rows and task, read unless the options give their number; the base's shape; the machine."""
    from luthier.methods.base import METHODS
    from luthier.models.load import architecture, device, locate, skeleton, stored_bytes
    from luthier.planning import machine
    from luthier.planning.advisor.candidates import Base
    from luthier.planning.advisor.evidence import relevant
    from luthier.planning.advisor.question import assumed_facts, facts_of
    from luthier.planning.advisor.reasons import Question
    from luthier.tasks.base import TASKS

    other = None
    where = config.model.device
    if options.memory is not None:
        other = machine.TargetMachine("cpu" if where == "cpu" else "cuda", options.memory)
    bare = config.model.model_copy(
        update={"init": "random", "quantize": "none", "device": "cpu" if other is not None else where}
    )
    neutral = config.model_copy(
        update={
            "model": bare,
            "method": METHODS.parse("lora"),
            "data": config.data.model_copy(update={"streaming": False}),
        }
    )
    source = locate(bare)
    read = architecture(bare, source)
    family = read.family
    if options.rows is None:
        data = prepare_data(neutral, progress)
        tokens = tokenize(neutral, data, progress)
        task, labels, limit, facts = data.task, tokens.labels, tokens.max_length, facts_of(data, tokens.labels)
    else:
        task = config.task or TASKS.parse("chat" if family == "decoder" else "classify")
        limit = config.train.max_length or read.positions
        labels = tuple(getattr(task, "labels", ())) or None
        facts = assumed_facts(options.rows, task.name, labels, config.train.max_length, limit)
        labels = facts.labels
    whole = skeleton(bare, source, labels=labels)  # refuses here what no method could do with this base
    parameters, base_bytes = stored_bytes(whole)
    on_card = other is not None and other.device == "cuda"
    model = config.model.model_copy(update={"device": bare.device})
    layers = getattr(whole.config, "num_hidden_layers", None)
    if on_card and model.dtype == "auto":
        model = model.model_copy(
            update={"dtype": str(getattr(whole.config, "dtype", None) or "float32").split(".")[-1]}
        )
    precision = "bf16" if on_card and config.train.precision == "auto" else config.train.precision_on(device(bare))
    place = other.device if other is not None else device(bare)
    total, free = (other.memory, other.memory) if other is not None else machine.memory(place)
    boards = _own_boards(config, evidence, task.name, progress)
    reads = machine.reading() if isinstance(options.latency, float) and other is None and place == "cpu" else None
    base = Base(model, source, labels, precision, limit, layers, other)
    question = Question(
        base,
        facts,
        options,
        config.model.path,
        family,
        parameters,
        base_bytes,
        total,
        free,
        place,
        [*boards, *relevant(facts.learns, family)],
        reads,
    )
    return question, task


def _own_boards(config: RunConfig, evidence: list[Path], task: str, progress: Progress) -> "list[Board]":
    """Comparisons that were named, which must be valid, and those in runs/; of these an invalid one is a warning."""
    from luthier.planning.advisor.evidence import comparisons

    asked = {"model": config.model.path, "data": config.data.path, "task": task}
    found = comparisons(evidence, **asked)
    for file in sorted(Path("runs").glob("*/compare.json")):
        try:
            found += comparisons([file], **asked) if file not in evidence else []
        except InputError as error:
            progress.warn(f"left out: {error.message.removeprefix('--evidence: ')}")
    return found
