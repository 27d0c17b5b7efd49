"""The HTTP server of the page: files of the page, the runs, and jobs; see docs/ui.md."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from luthier.core.errors import Busy, InputError, LuthierError
from luthier.core.files import read_object
from luthier.core.language import catalog, translated
from luthier.core.strict_json import to_json
from luthier.core.strict_yaml import parse_yaml
from luthier.core.version import __version__
from luthier.recipe.identity import key_paths
from luthier.ui import live, work
from luthier.ui.guard import Gate, Token, error, spoken_by
from luthier.ui.index import NoRun, RunIndex
from luthier.ui.jobs import Jobs, NoJob
from luthier.ui.predictions import page_of, shortened
from luthier.ui.workbench import Workbench

PAGE = Path(__file__).parent / "page"
REPORTS = Path(__file__).parents[1] / "reports"
SHARED = ("look.css", "chart.js", "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css")
"""What the page has from the reports: one look, one code of charts."""
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
SHOWN = {"report.html": "text/html", "loss.png": "image/png", "data.html": "text/html", "compare.html": "text/html"}
"""Files of a run that the page shows; no other can be fetched."""
SANDBOX = "sandbox allow-scripts; frame-ancestors 'self'"
"""A report runs its own script in a frame that knows nothing of the page: its texts come from data."""


SAMPLES = 400
"""Most answers that were generated during training and are shown, the newest."""


class FiniteJson(JSONResponse):
    """JSON in which numbers that are not finite are null."""

    def render(self, content: Any) -> bytes:
        return to_json(content, ensure_ascii=False).encode()


def create_app(root: Path, places: Sequence[Path] = (), *, token: Token, host: str, port: int) -> FastAPI:
    """The application over the runs below `root`, behind the gate. Data is chosen from `places` and `root`."""
    index, jobs, bench = RunIndex(root), Jobs(root), Workbench()
    roots = list(dict.fromkeys([*(place.resolve() for place in places), index.root]))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeping = asyncio.create_task(_keep(jobs))
        yield
        keeping.cancel()
        bench.end()
        jobs.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, default_response_class=FiniteJson)
    app.state.index = index
    app.add_middleware(Gate, token=token, host=host, port=port)
    _errors(app)
    app.include_router(_page())
    app.include_router(_runs(index), prefix="/api")
    app.include_router(work.router(index, jobs, bench, roots), prefix="/api")
    return app


async def _keep(jobs: Jobs) -> None:
    """Let the queue go on, whether or not a page is open."""
    while True:
        await run_in_threadpool(jobs.tick)
        await asyncio.sleep(1)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(LuthierError)
    async def wrong(request: Request, found: LuthierError) -> Response:
        status = 404 if isinstance(found, NoRun | NoJob) else 409 if isinstance(found, Busy) else 400
        said = spoken_by(request)
        return error(status, translated(found.message, said, inside=True), translated(found.fix, said, inside=True))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, found: RequestValidationError) -> Response:
        where = ".".join(map(str, found.errors()[0]["loc"]))
        return error(422, f"{where}: {found.errors()[0]['msg']}")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, found: HTTPException) -> Response:
        return error(found.status_code, str(found.detail))


def _page() -> APIRouter:
    router = APIRouter()

    @router.get("/")
    async def start() -> Response:
        return HTMLResponse((PAGE / "index.html").read_text(encoding="utf-8"))

    @router.get("/page/{name:path}")
    async def file(name: str) -> Response:
        path = REPORTS / name if name in SHARED else (PAGE / name).resolve()
        inside = name in SHARED or path.is_relative_to(PAGE)
        if not inside or path.suffix not in KINDS or not path.is_file():
            raise HTTPException(404, "there is no such file")
        return FileResponse(path, media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"})

    @router.get("/api/words")
    async def words(lang: str) -> Mapping[str, str]:
        return catalog() if lang == "zh" else {}

    @router.get("/api/about")
    async def about(request: Request) -> dict[str, Any]:
        return {"version": __version__, "folder": str(request.app.state.index.root)}

    return router


def _runs(index: RunIndex) -> APIRouter:
    router = APIRouter()

    @router.get("/runs")
    async def runs(since: int = -1) -> dict[str, Any]:
        version = await run_in_threadpool(index.refresh)
        return {"version": version, "runs": None if version == since else await run_in_threadpool(index.runs)}

    @router.get("/run")
    async def run(id: str) -> dict[str, Any]:
        return await run_in_threadpool(_whole, index, id)

    @router.get("/run/curves")
    async def curves(id: str, points: int = live.POINTS) -> dict[str, Any]:
        def made() -> dict[str, Any]:
            return live.run_curves(index.history(id), max(10, min(points, 20_000)))

        return await run_in_threadpool(made)

    @router.get("/run/events")
    async def events(request: Request, id: str, start: int = 0) -> Response:
        index.folder(id)
        last = request.headers.get("last-event-id", "")
        begin = int(last) if re.fullmatch(r"\d{1,12}", last) else max(0, start)
        stream = live.events(index, id, begin, run_in_threadpool)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @router.get("/run/samples")
    async def samples(id: str) -> list[dict[str, Any]]:
        folder = index.folder(id)

        def read() -> list[dict[str, Any]]:
            text = folder.samples.read_text(encoding="utf-8") if folder.samples.is_file() else ""
            return [shortened(line) for line in folder.records(text)[-SAMPLES:]]

        return await run_in_threadpool(read)

    @router.get("/run/predictions")
    async def predicted(
        id: str, kind: str = "all", search: str = "", order: str = "file", start: int = 0, count: int = 25
    ) -> dict[str, Any]:
        path = index.folder(id).path / "predictions.jsonl"
        wanted: dict[str, Any] = {"kind": kind, "search": search[:200], "order": order, "start": start, "count": count}
        return await run_in_threadpool(lambda: page_of(path, **wanted))

    @router.get("/comparisons")
    async def comparisons() -> list[dict[str, Any]]:
        return await run_in_threadpool(_comparisons, index.root)

    @router.get("/comparison")
    async def comparison(id: str) -> dict[str, Any]:
        found = {each["id"]: each for each in await run_in_threadpool(_comparisons, index.root)}
        if id not in found:
            raise HTTPException(404, "there is no such comparison")
        return {**await run_in_threadpool(read_object, index.root / id / "compare.json"), "id": id}

    @router.get("/run/file")
    async def file(id: str, name: str) -> Response:
        path = index.folder(id).path / name
        if name not in SHOWN or not path.is_file() or path.is_symlink():
            raise HTTPException(404, "there is no such file")
        return FileResponse(path, media_type=SHOWN[name], headers={"content-security-policy": SANDBOX})

    @router.post("/run/tags")
    async def tags(request: Request, id: str) -> dict[str, Any]:
        given = await request.json()
        await run_in_threadpool(
            index.set_tags, id, sorted({str(tag).strip()[:40] for tag in given if str(tag).strip()})
        )
        return {}

    @router.delete("/run")
    async def delete(id: str) -> dict[str, Any]:
        return {"place": str(await run_in_threadpool(index.delete, id))}

    return router


def _object(path: Path) -> dict[str, Any] | None:
    """What a file of a run holds; None where it is not there, or damaged, which the state of the run says."""
    try:
        return dict(read_object(path)) if path.is_file() else None
    except InputError:
        return None


def _comparisons(root: Path) -> list[dict[str, Any]]:
    """The finished comparisons below the folder, the newest first."""
    found = [path for depth in ("*", "*/*") for path in root.glob(f"{depth}/compare.json")]
    made = []
    for path in sorted(found, key=lambda each: -each.stat().st_mtime):
        body = read_object(path)
        about = {key: body.get(key) for key in ("model", "data", "task", "finished")}
        made.append({"id": path.parent.relative_to(root).as_posix(), **about})
    return made


def _whole(index: RunIndex, name: str) -> dict[str, Any]:
    """A run's recipe, result and plan, as far as they are there."""
    index.refresh()
    folder = index.folder(name)
    made: dict[str, Any] = {"id": name, "state": index.state(name).to_dict()}
    for key, path in (("result", folder.result), ("plan", folder.plan), ("environment", folder.environment)):
        made[key] = _object(path)
    made["recipe"] = folder.recipe.read_text(encoding="utf-8") if folder.recipe.is_file() else ""
    made["settings"] = key_paths(parse_yaml(made["recipe"]) or {})
    made["files"] = [each for each in SHOWN if (folder.path / each).is_file()]
    return made
