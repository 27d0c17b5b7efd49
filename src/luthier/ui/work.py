"""Routes for what the page does: recipes, data, plans, rankings, jobs, exports, servers and chat."""

import asyncio
import hashlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from luthier.core import files
from luthier.core.endpoint import CONNECTION_ERRORS, open_url
from luthier.core.errors import InputError
from luthier.core.language import translated
from luthier.core.units import gigabytes
from luthier.ui import recipe
from luthier.ui.bases import found_bases
from luthier.ui.guard import spoken_by
from luthier.ui.index import HIDDEN, RunIndex
from luthier.ui.jobs import Jobs, job_record
from luthier.ui.predictions import shortened
from luthier.ui.workbench import Workbench

MOST_UPLOAD = 2**31
"""Bytes of a file that is dropped on the page; a larger one is named by its path."""
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz")
LISTED = 500
"""Most entries of a folder."""
PART = 2**20
CHOICE = ("question.said", "ranked.reasons.text", "ranked.reasons.cited", "ruled_out.text", "ruled_out.cited")
"""Sentences of a ranking."""
ADDRESS = re.compile(r"http://[\w.:\[\]]+/v1")


class RecipeBody(BaseModel):
    """A recipe's text, and keys to change."""

    text: str = Field("", max_length=2**20)
    changes: dict[str, Any] = {}
    name: str = ""
    side: str = "train"
    start: int = 0
    count: int = 20
    options: dict[str, Any] = {}


class ChatBody(BaseModel):
    """A conversation with one model of a server."""

    job: str
    model: str
    messages: list[dict[str, str]]
    max_tokens: int = Field(256, ge=1, le=4096)
    temperature: float = Field(0.0, ge=0, le=10)


def router(index: RunIndex, jobs: Jobs, bench: Workbench, places: list[Path]) -> APIRouter:
    """The routes; files are chosen from `places` and the folders below them, and from nowhere else."""
    made = APIRouter()
    _recipes(made, index, jobs, bench)
    _files(made, index, places)
    _jobs(made, index, jobs)
    _chat(made, jobs)
    return made


def _recipes(made: APIRouter, index: RunIndex, jobs: Jobs, bench: Workbench) -> None:
    checks = index.root / HIDDEN / "checks"

    @made.post("/recipe")
    async def read(request: Request, body: RecipeBody) -> Any:
        found = await run_in_threadpool(recipe.checked_text, body.text, body.changes)
        return in_language(request, found, "problems", "notes")

    @made.post("/recipe/save")
    async def save(body: RecipeBody) -> dict[str, Any]:
        file, arguments = await run_in_threadpool(recipe.save, body.text, body.name, index.root)
        return {"file": str(file), "command": recipe.terminal_command(file), "arguments": arguments}

    @made.post("/recipe/train")
    async def train(body: RecipeBody) -> dict[str, Any]:
        _, arguments = await run_in_threadpool(recipe.save, body.text, body.name, index.root)
        return job_record(jobs, await run_in_threadpool(jobs.add, "train", body.name, arguments))

    @made.post("/recipe/compare")
    async def compare(body: RecipeBody) -> dict[str, Any]:
        _, (_, file) = await run_in_threadpool(recipe.save, body.text, body.name, index.root)
        arguments = ["compare", file, *_compare_options(body.options)]
        return job_record(jobs, await run_in_threadpool(jobs.add, "compare", body.name, arguments))

    @made.post("/check")
    async def check(request: Request, body: RecipeBody) -> Any:
        digest = hashlib.sha256(body.text.encode()).hexdigest()[:16]
        found = await bench.call("check", {"text": body.text, "place": str(checks / digest)})
        sentences = ("notes", "findings.text", "findings.what", "account.format_why", "near_how", "refusals.reason")
        return {**in_language(request, shortened(found), *sentences), "place": digest}

    @made.post("/rows")
    async def rows(body: RecipeBody) -> Any:
        return await bench.call("rows", body.model_dump())

    @made.post("/plan")
    async def plan(body: RecipeBody) -> Any:
        return await bench.call("plan", {"text": body.text, "changes": body.changes})

    @made.post("/choose")
    async def choose(request: Request, body: RecipeBody) -> Any:
        evidence = await run_in_threadpool(lambda: [str(path) for path in index.root.glob("*/compare.json")])
        found = await bench.call("choose", {"text": body.text, "evidence": evidence})
        return in_language(request, found, *CHOICE)

    @made.get("/form")
    async def form() -> Any:
        return await bench.call("form", {})

    @made.post("/bench")
    async def ready() -> Any:
        return await bench.call("ready", {})

    @made.get("/bench")
    async def stage(request: Request) -> Any:
        return in_language(request, {"stage": bench.stage, "busy": bench.lock.locked()}, "stage")

    @made.get("/check/refused")
    async def refused(request: Request, place: str, start: int = 0, count: int = 100) -> Any:
        if not re.fullmatch(r"[0-9a-f]{16}", place):
            raise HTTPException(404, "there is no such check")
        found = await run_in_threadpool(
            _lines, checks / place / "refused.jsonl", max(0, start), max(1, min(count, 500))
        )
        return in_language(request, found, "rows.reason")


def in_language(request: Request, found: Any, *places: str) -> Any:
    """The same with the sentences at `places` in the reader's language; the texts of the data stay as they are."""
    into = spoken_by(request)
    for place in places if into != "en" else ():
        found = _translated(found, place.split("."), into)
    return found


def _translated(found: Any, place: Sequence[str], into: str) -> Any:
    if isinstance(found, list):
        return [_translated(each, place, into) for each in found]
    if not place:
        return translated(found, into, inside=True) if isinstance(found, str) else found
    if isinstance(found, dict) and place[0] in found:
        return {**found, place[0]: _translated(found[place[0]], place[1:], into)}
    return found


def _compare_options(given: Mapping[str, Any]) -> list[str]:
    """What follows `luthier compare RECIPE`, from the fields of the form and nothing else."""
    made = []
    if methods := str(given.get("methods", "")):
        if not re.fullmatch(r"[\w, -]{1,500}", methods):
            raise InputError("methods are names with commas between them")
        made += ["--methods", methods.replace(" ", "")]
    if budget := str(given.get("budget", "")):
        if not re.fullmatch(r"\d+(\.\d+)?(s|m|min|h)?", budget):
            raise InputError(f"a time such as 10m or 2h, not {budget[:40]!r}")
        made += ["--budget", budget]
    if seeds := int(given.get("seeds", 1)):
        made += ["--seeds", str(max(1, min(seeds, 100)))]
    return [*made, *(["--tune"] if given.get("tune") else [])]


def _lines(path: Path, start: int, count: int) -> dict[str, Any]:
    """Some lines of a JSON-lines file, and how many there are."""
    kept, total = [], 0
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for total, line in enumerate(file, 1):
                if start < total <= start + count:
                    kept.append(shortened(json.loads(line)))
    return {"total": total, "rows": kept}


def _files(made: APIRouter, index: RunIndex, places: list[Path]) -> None:
    uploads = index.root / HIDDEN / "files"

    @made.post("/upload")
    async def upload(request: Request, name: str) -> dict[str, Any]:
        short = re.sub(r"[^\w.-]+", "_", Path(name).name)[-80:].lstrip(".") or "data"
        if not short.lower().endswith(DATA_FILES):
            raise InputError(f"{short} is no data file", fix=f"a file that ends in {', '.join(DATA_FILES)}")
        place = uploads / secrets.token_hex(6)
        return {"path": str(await _received(request, place, short))}

    @made.get("/files")
    async def listed(folder: str = "") -> dict[str, Any]:
        return await run_in_threadpool(_listed, folder, places)

    @made.get("/bases")
    async def bases() -> list[dict[str, Any]]:
        return await run_in_threadpool(found_bases, places)


async def _received(request: Request, place: Path, name: str) -> Path:
    """The body of a request as a file; nothing stays of one that is too large or breaks off."""
    too_large = InputError(
        f"the file has more than {gigabytes(MOST_UPLOAD)}", fix="give its path on this machine instead"
    )
    if int(request.headers.get("content-length") or 0) > MOST_UPLOAD:
        raise too_large
    await run_in_threadpool(place.mkdir, parents=True)
    size, whole = 0, False
    try:
        with (place / name).open("wb") as file:
            async for part in request.stream():
                size += len(part)
                if size > MOST_UPLOAD:
                    raise too_large
                await run_in_threadpool(file.write, part)
        whole = size > 0
    finally:
        if not whole:
            (place / name).unlink(missing_ok=True)
            place.rmdir()
    if not whole:
        raise InputError(f"{name} is empty", fix="a file with rows")
    return place / name


def _listed(folder: str, places: list[Path]) -> dict[str, Any]:
    """Folders and data files in a folder; without a name the places to begin from."""
    if not folder:
        return {"folder": "", "up": None, "folders": [str(place) for place in places], "files": []}
    path = Path(folder).resolve()
    if not any(path.is_relative_to(place) for place in places) or not path.is_dir():
        raise InputError(f"{folder[:300]} is not among the folders of the page", fix="luthier ui --data FOLDER")
    folders, found = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.name.lower().endswith((*DATA_FILES, ".gguf")):
                found.append({"path": entry.path, "bytes": entry.stat().st_size})
    up = None if path in places else str(path.parent)
    model = (path / "config.json").is_file()
    return {"folder": str(path), "up": up, "folders": sorted(folders)[:LISTED], "model": model} | {
        "files": sorted(found, key=lambda each: str(each["path"]))[:LISTED]
    }


def _jobs(made: APIRouter, index: RunIndex, jobs: Jobs) -> None:
    @made.get("/jobs")
    async def listed(since: int = -1) -> dict[str, Any]:
        version = await run_in_threadpool(jobs.tick)
        if version == since:
            return {"version": version, "jobs": None}
        return {
            "version": version,
            "jobs": await run_in_threadpool(lambda: [job_record(jobs, job) for job in jobs.all()]),
        }

    @made.post("/job/stop")
    async def stop(id: str) -> dict[str, Any]:
        return job_record(jobs, await run_in_threadpool(jobs.stop, id))

    @made.post("/job/first")
    async def first(id: str) -> dict[str, Any]:
        await run_in_threadpool(jobs.first, id)
        return {}

    @made.delete("/job")
    async def forget(id: str) -> dict[str, Any]:
        await run_in_threadpool(jobs.forget, id)
        return {}

    @made.post("/run/stop")
    async def stop_run(id: str) -> dict[str, Any]:
        return await run_in_threadpool(index.stop, id)

    @made.post("/run/resume")
    async def resume(id: str) -> dict[str, Any]:
        folder = index.folder(id)
        arguments = ["train", str(folder.recipe), f"run={folder.path}"]
        return job_record(jobs, await run_in_threadpool(jobs.add, "train", id, arguments))

    @made.post("/run/export")
    async def export(request: Request, id: str) -> dict[str, Any]:
        body = await request.json()
        form, settings = str(body.get("to", "")), body.get("settings", {})
        keys = {str(key): str(value) for key, value in settings.items()}
        if not re.fullmatch(r"\w+", form) or not all(re.fullmatch(r"\w+", key) for key in keys):
            raise InputError("an export has a name and settings", fix="choose them in the form")
        arguments = ["export", str(index.folder(id).path), *(f"{key}={value}" for key, value in keys.items())]
        return job_record(jobs, await run_in_threadpool(jobs.add, "export", id, [*arguments, "--to", form]))

    @made.get("/run/exports")
    async def exports(id: str) -> list[dict[str, Any]]:
        return await run_in_threadpool(_exports, index, id)

    @made.post("/serve")
    async def serve(request: Request) -> dict[str, Any]:
        ids = [str(each) for each in (await request.json())["runs"]][:20]
        arguments = ["serve", *(f"{_model_name(each)}={_served(index, each)}" for each in ids), "--port", "0"]
        about = {_model_name(each): each for each in ids}
        job = await run_in_threadpool(lambda: jobs.add("serve", ", ".join(ids), arguments, models=about))
        return job_record(jobs, job)


def _served(index: RunIndex, name: str) -> Path:
    """The folder of a run, or of RUN/exports/FORM."""
    run, _, form = name.partition("/exports/")
    path = index.folder(run).path
    if not form:
        return path
    if not re.fullmatch(r"\w[\w.-]*", form) or not (path / "exports" / form / "export.json").is_file():
        raise InputError(f"there is no export {form[:100]!r} of {run}", fix="reload the page")
    return path / "exports" / form


def _model_name(run: str) -> str:
    return re.sub(r"[^\w.-]+", "-", run)


def _exports(index: RunIndex, name: str) -> list[dict[str, Any]]:
    """What was exported of a run, with its proof."""
    place = index.folder(name).path / "exports"
    found = sorted(place.glob("*/export.json")) if place.is_dir() else []
    return [{"form": path.parent.name, "path": str(path.parent), **files.read_object(path)} for path in found]


def _chat(made: APIRouter, jobs: Jobs) -> None:
    @made.get("/serve/models")
    async def models(job: str) -> dict[str, Any]:
        """Models of a server that the page started; none while it is loading."""
        found = jobs.get(job)
        address = _address(jobs, job)
        if found.state != "running" or not address:
            return {"state": found.state, "ready": False, "models": []}
        try:
            answer = await run_in_threadpool(_json, f"{address}/models")
        except CONNECTION_ERRORS:
            return {"state": found.state, "ready": False, "models": []}
        names = [each["id"] for each in answer["data"]]
        return {"state": found.state, "ready": True, "models": names, "address": address}

    @made.post("/chat")
    async def chat(body: ChatBody) -> Response:
        address = _address(jobs, body.job)
        if not address:
            raise InputError("the server of this chat is not running", fix="start it again")
        sent = {**body.model_dump(exclude={"job"}), "stream": True}
        try:
            response = await run_in_threadpool(open_url, f"{address}/chat/completions", sent, "", 600.0)
        except CONNECTION_ERRORS as error:
            raise InputError(f"the server of this chat does not answer: {error}", fix="start it again") from None

        async def parts() -> AsyncIterator[bytes]:
            try:
                while line := await run_in_threadpool(response.readline):
                    yield line
                    await asyncio.sleep(0)
            finally:
                response.close()  # the server stops generating

        return StreamingResponse(parts(), media_type="text/event-stream")


def _address(jobs: Jobs, name: str) -> str:
    """Where the server of a job listens, as it printed; empty while it is loading."""
    job = jobs.get(name)
    found = ADDRESS.search(jobs.output(job)) if job.kind == "serve" and job.state == "running" else None
    return found[0] if found else ""


def _json(url: str) -> Any:
    with open_url(url, None, "", 10.0) as response:
        return json.loads(response.read())
