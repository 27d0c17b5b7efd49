"""One self-contained HTML page about the data: what is refused, long, similar or unbalanced, and what is learned."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.core.files import write_json, write_jsonl, write_text
from luthier.core.shell import shown
from luthier.data.checks.audit import Audit
from luthier.data.prepared import Prepared
from luthier.reports import page
from luthier.reports.run_report import metric_words
from luthier.runs.folder import RunFolder


def refuse_run_folder(out: Path) -> None:
    """Raise InputError if `out` is the folder of a run, whose data.json the report's would replace."""
    if RunFolder(out).recipe.exists():
        raise InputError(f"{out} is the folder of a run", fix="choose another folder with --out DIR")


def write_report(out: Path, found: Audit, data: Prepared, model: str, *, named: bool) -> dict[str, Any]:
    """Write data.html, data.json and refused.jsonl; returns data.json. `named`: whether the user named the model."""
    how = f"read as train would, with the tokenizer of {model}"
    if not named:
        how = f"{how}, because no model is named: --model M counts with yours"
    notes = [how, f"rows of at most {found.max_length:,} tokens"]
    body = {"out": str(out), "notes": notes, **asdict(found)}
    filters = {"shown": shown, "piece": piece, "metric": metric_words}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot make the folder {out}: {error.strerror}", fix="--out DIR") from None
    write_jsonl(out / "refused.jsonl", map(asdict, data.refusals))
    write_text(out / "data.html", page.render("data_report", filters, found=body, parts=body["account"]))
    write_json(out / "data.json", body)
    return body


def piece(text: str) -> str:
    """A token's text; a line end gets an arrow, because it can be learned as well."""
    return shown(text).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
