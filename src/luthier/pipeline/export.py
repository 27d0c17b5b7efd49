"""From a finished run to a form to deploy, and the parity check that it answers as the run does."""

import gc
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.errors import NoSpace, Unproved
from luthier.core.events import SILENT, Progress
from luthier.core.files import staged, tidy, write_json
from luthier.core.shell import public
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.evaluation.scores import evaluations, measure, scores
from luthier.exports.base import Bounds, Export, Runner, Tuned
from luthier.models.load import architecture, device, load_tokenizer, quantization, skeleton, unpack
from luthier.pipeline.measure import subject_of
from luthier.pipeline.parity import RunnerModule, TorchRunner, check_parity
from luthier.pipeline.prepare import Encoding, Loaded, load_base, on_this_machine, reopen
from luthier.recipe.config import RunConfig
from luthier.recipe.consent import Allow, require
from luthier.recipe.identity import read_recipe
from luthier.rendering.chat_template import Template
from luthier.rendering.row import Row
from luthier.runs.folder import RunFolder

PROMPTS = 20
"""Held-out prompts that are replayed, unless another number is asked for."""
ANSWER = 32
"""Tokens of each greedy answer that are compared."""


def export(
    path: Path, target: Export, *, prompts: int = PROMPTS, progress: Progress = SILENT, allow_code: Allow = False
) -> dict[str, Any]:
    """Write `target` of a run to RUN/exports/TARGET, check its parity, and return what stands in its export.json.

    InputError or CannotMerge where it cannot be, Unproved where it answers otherwise than the run: then nothing is left
    under its name, and the report lies beside it. Code that the run's recipe names runs only with `allow_code`.
    """
    folder = RunFolder.existing(path)
    weights, config = folder.weights(), read_recipe(folder)
    quiet = config.evaluate.model_copy(update={"judge": None})  # it is not asked again
    config = config.model_copy(update={"evaluate": quiet})
    require(folder.recipe, allow_code, config.model, quiet)
    config = on_this_machine(config)
    tokens = reopen(config, folder, progress)
    tuned = _tuned(folder, config, tokens, weights)
    target.refuse(tuned)
    place = folder.path / "exports" / target.name
    needed, free = target.required_bytes(tuned), shutil.disk_usage(folder.path).free
    if free < 1.05 * needed:
        why = f"{place} will take {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free: nothing was written"
        raise NoSpace(why, fix="free some space, or make the run's folder a link to a larger disk")
    with folder.held():
        place.parent.mkdir(exist_ok=True)
        tidy(place.parent)
        with staged(place) as staging:
            progress.stage(f"writing {place}")
            target.write(tuned, staging)
            report: dict[str, Any] = {"run": str(path), "target": target.spec(), "use": target.use(tuned, str(place))}
            report |= _held(target, tuned, staging, config, tokens, prompts, progress)
            report["bytes"] = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
            if not all(each["held"] for each in report["parity"]):
                failed = place.with_name(f"{target.name}.failed.json")
                write_json(failed, report)
                why = f"{path}: {_difference(report['parity'])}. Nothing is left of it but the report {failed}"
                raise Unproved(why, fix="see the report; another dtype or scheme may do")
            card = target.card(tuned, report["parity"], report["checked"])
            (staging / "README.md").write_text(card, encoding="utf-8")
            kept = {"run": public(str(path)), "use": target.use(tuned, public(str(place)))}  # a folder to pass on
            write_json(staging / "export.json", report | kept)
        place.with_name(f"{target.name}.failed.json").unlink(missing_ok=True)
    return report | {"path": str(place), "messages": target.publish(tuned, place)}


def _tuned(folder: RunFolder, config: RunConfig, tokens: Encoding, weights: Path) -> Tuned:
    whole = config.method.saves == "model"

    def open_base(**changed: Any) -> nn.Module:
        own = config.model_copy(update={"model": config.model.model_copy(update=changed)})
        return load_base(own, tokens, folder, weights if whole else None).model

    def open_plain_base() -> nn.Module:
        base: Any = open_base(quantize="none", dtype="float32")
        return unpack(base) if getattr(base, "is_quantized", False) else base  # its own files may be packed

    def open_plain() -> nn.Module:
        base = open_plain_base()
        return base if whole else config.method.load(base, weights)

    template = Template(load_tokenizer(config.model, str(weights)))
    base, classifies = architecture(config.model, tokens.source), tokens.labels is not None
    quantize = quantization(config.model, base.config)
    return Tuned(
        run=str(folder.path),
        weights=weights,
        base=config.model.path,
        method=config.method,
        task=tokens.data.task.name,
        classifies=classifies,
        quantize=quantize,
        stored=base.stored_type,
        computed="float32" if quantize != "none" else base.type_on(device(config.model), config.model.dtype),
        config=base.config,
        tokenizer=template.tokenizer,
        ends=() if classifies else tuple(sorted(template.end_ids)),
        open_base=open_base,
        open_plain_base=open_plain_base,
        open_plain=open_plain,
        skeleton=lambda: skeleton(config.model, tokens.source, labels=tokens.labels),
        facts=folder.read_json(folder.result),
    )


def _held(
    target: Export, tuned: Tuned, folder: Path, config: RunConfig, tokens: Encoding, count: int, progress: Progress
) -> dict[str, Any]:
    """{checked, parity, scores} of `folder`, opened, on `count` held-out rows, or training rows if none is held out."""
    _, _, rows = tokens.data.side(tokens.data.held_out_side)
    rows = rows if len(rows) else tokens.data.rows
    chosen = [rows[number] for number in range(min(count, len(rows)))]
    found = {"run": tuned.facts.get("tuned", {})}
    if not getattr(target, "replay", True):  # some forms let the user switch it off
        return {"checked": target.check(tuned, None, chosen), "parity": [], "scores": found}
    opened = target.open(tuned, folder)
    try:
        checked = target.check(tuned, opened, chosen)
        parity = _parity_checks(target, tuned, opened, chosen, progress)
        found |= _scores(opened, tuned, config, tokens, progress)
        return {"checked": checked, "parity": parity, "scores": found}
    finally:
        if close := getattr(opened, "close", None):
            close()


def _parity_checks(
    target: Export, tuned: Tuned, opened: nn.Module | Runner, rows: Sequence[Row], progress: Progress
) -> list[dict[str, Any]]:
    """The parity of `opened` with the run as it was trained.

    A merged model is compared with the adapter on the plain base first if the base was packed in training, because that
    is another model than the one that was trained.
    """
    pad = tuned.tokenizer.pad_token_id or 0

    def as_trained() -> nn.Module:
        base = tuned.open_base()
        return base if tuned.method.saves == "model" else tuned.method.load(base, tuned.weights)

    exported: Runner = TorchRunner(opened, tuned.ends, pad) if isinstance(opened, nn.Module) else opened
    bounds = target.bounds(tuned)
    sides: list[tuple[str, Callable[[], nn.Module], Bounds]] = [("the run", as_trained, bounds)]
    if tuned.quantize != "none" and target.on_plain_base:  # the base was packed in training
        sides = [
            ("the adapter on the base, not packed", tuned.open_plain, bounds),
            (f"the run as it was trained, on the base in {tuned.quantize}", as_trained, (None, None)),
        ]
    made = []
    for name, load, allowed in sides:
        progress.stage(f"replaying {len(rows)} held-out prompts beside {name}")
        found = check_parity(TorchRunner(load(), tuned.ends, pad), exported, rows, allowed, ANSWER, progress)
        made.append({"against": name, **found})
        gc.collect()
    return made


def _scores(
    opened: nn.Module | Runner, tuned: Tuned, config: RunConfig, tokens: Encoding, progress: Progress
) -> dict[str, Any]:
    """{"export": scores} on the rows and with the settings of the run's own last scores, but without a judge."""
    measured = {**config.evaluate.model_dump(), **tuned.facts.get("measured_with", {})}
    settings = EvaluateConfig(**{**measured, "judge": None, "check": config.evaluate.check})
    if not isinstance(opened, nn.Module):
        opened = RunnerModule(opened, tuned.classifies)
        settings = settings.model_copy(update={"batch_size": 1})  # logits are made whole: [rows, tokens, vocabulary]
    subject = subject_of(Loaded(config.model_copy(update={"evaluate": settings}), opened, tokens), progress)
    if subject is None:
        return {}
    progress.stage(f"scoring the export on {len(subject.examples)} held-out examples")
    return {"export": scores(measure(subject), evaluations(subject))}


def _difference(checks: Sequence[dict[str, Any]]) -> str:
    worst = next(each for each in checks if not each["held"])
    allowed, mean = worst["bound"] * worst["spread"], worst["mean_bound"]
    also = "" if mean is None else f" (mean {worst['mean']:.3g}, at most {mean * worst['spread']:.3g})"
    return (
        f"what was exported does not answer as {worst['against']} does: a logit differs by "
        f"{worst['largest']:.3g}, rounding makes at most {allowed:.3g}{also}, and the most likely token is the same at "
        f"{worst['same_top']:.1%} of the places"
    )
