"""The page in a real browser (Playwright with the system's Chromium), from a CSV file to a conversation."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier import builtin
from tests.ui.conftest import write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
    pytest.mark.slow,
]
LIMIT = 600_000
"""Milliseconds until something has to be there: other tests work on the same processors."""
PAGES = ("#/new/task", "#/new/data", "#/new/base", "#/new/method", "#/new/training", "#/new/evaluation")
PAGES += ("#/new/deployment", "#/runs", "#/queue", "#/compare", "#/run/first", "#/run/first/evaluation")
PAGES += ("#/run/first/deployment", "#/compare/methods")


class Server:
    """A `luthier ui` in a process of its own."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root, data
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "luthier", "ui", "--dir", str(self.root), "--data", str(self.data)]
        environment = {**os.environ, "LUTHIER_LANG": "en", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--no-browser"], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()
        self.origin = self.address.partition("/?")[0]

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(LIMIT / 1000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server over a folder of runs; all end with the test, and what they started."""
    started: list[Server] = []

    def start(root: Path | None = None) -> Server:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        started.append(Server(root or tmp_path / "runs", data))
        return started[-1]

    yield start
    for server in started:
        server.end()
        for path in (server.root / ".ui" / "jobs").glob("*.json"):
            job = json.loads(path.read_text())
            if job["state"] == "running":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job["pid"], signal.SIGKILL)


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Any]]:
    """A page of a server, in a browser that takes any dialog, script error or breach of the policy for a failure."""
    contexts, wrong = [], []

    def open_(server: Server, **options: Any) -> Any:
        context = chromium.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LIMIT)
        # The report of the hostile run reaches for the page around it: that it is blocked is what is wanted.
        page.on("pageerror", lambda error: wrong.append(str(error)) if "Blocked a frame" not in str(error) else None)
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        page.goto(server.address)
        page.wait_for_selector("main h1")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong


def until(page: Any, script: str) -> None:
    """Wait until an expression is true. Playwright's own call would evaluate it where the policy forbids that."""
    end = time.monotonic() + LIMIT / 1000
    while not page.evaluate(script):
        assert time.monotonic() < end, script
        time.sleep(0.1)


def at(page: Any, server: Server, place: str) -> None:
    page.goto(f"{server.origin}/{place}")
    page.wait_for_selector("main h1")


def reviews(path: Path, count: int = 60) -> Path:
    """A CSV file of a newcomer: reviews and what they say."""
    rows = [json.loads(line) for line in (builtin.DATA / "reviews/train.jsonl").read_text("utf-8").splitlines()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row["text"], row["label"]] for row in rows[:count])
        writer.writerow(["", "positive"])  # a row that no run takes
    return path


def test_a_newcomer_from_a_csv_file_to_a_conversation(
    serve: Callable[..., Server], opened: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve()
    page = opened(server)
    page.get_by_role("navigation").get_by_role("link", name="New run").click()
    page.get_by_role("radio", name="Answer instructions").check()
    page.get_by_role("button", name="next: Data").click()
    page.get_by_label("a data file").set_input_files(reviews(tmp_path / "my reviews.csv"))
    page.get_by_text("Train would stop").wait_for()  # the empty row
    page.get_by_role("cell", name="text is empty").wait_for()
    page.get_by_role("button", name="set data.on_bad_row=skip").click()
    page.get_by_text("Train would run").wait_for()
    page.locator(".masked .t-learned").first.wait_for()
    page.get_by_role("button", name="next: Base model").click()
    page.get_by_text("It fits").wait_for()
    page.get_by_role("button", name="next: Method").click()
    page.get_by_role("button", name="recommend a method").click()
    page.locator(".ranking li").first.wait_for()
    page.get_by_label("method", exact=True).select_option("lora")
    page.get_by_label("method.rank").fill("4")
    page.get_by_label("method.rank").press("Tab")
    page.get_by_role("button", name="next: Training").click()
    for key, value in (("train.steps", "12"), ("train.batch_size", "4")):
        page.get_by_role("textbox", name=key).fill(value)
        page.get_by_role("textbox", name=key).press("Tab")
    until(page, "document.querySelector('aside textarea').value.includes('batch_size: 4')")
    recipe = page.get_by_label("recipe as YAML").input_value()
    assert "rank: 4" in recipe and "steps: 12" in recipe and "task: chat" in recipe
    page.get_by_label("name of the run").fill("reviews")
    page.get_by_role("button", name="start, or queue").click()
    page.wait_for_url("**/#/run/reviews")
    page.locator(".state.running").wait_for()
    page.get_by_text("12 / 12").wait_for()  # the curve grew while it trained
    page.locator(".state.finished").wait_for()
    page.get_by_role("link", name="evaluation").click()
    page.get_by_role("heading", name="Held-out rows").wait_for()
    page.get_by_role("cell", name="positive").first.wait_for()
    page.get_by_role("link", name="deployment").click()
    page.get_by_role("button", name="export, and prove").click()
    page.get_by_role("cell", name="100 %").first.wait_for()
    page.get_by_text("beside its exports").click()
    page.get_by_role("checkbox", name="reviews/exports/merged").check()
    page.get_by_role("button", name="start the server").click()
    page.get_by_label("message").fill("A great film.")
    page.get_by_role("button", name="send").click()
    until(page, "document.querySelectorAll('.answer').length === 3")
    until(page, "[...document.querySelectorAll('.answer')].every((each) => each.textContent.length > 1)")
    page.get_by_role("button", name="stop the server").click()
    page.get_by_role("button", name="start the server").wait_for()


def test_what_is_typed_outlives_an_answer(serve: Callable[..., Server], opened: Callable[..., Any]) -> None:
    """The page is drawn again with each answer of the server; a word that is being typed stays."""
    server = serve()
    page = opened(server)
    at(page, server, "#/new/training")
    recipe, steps = page.get_by_label("recipe as YAML"), page.get_by_role("textbox", name="train.steps")
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    def answer() -> None:
        while not held:
            page.wait_for_timeout(20)
        held.pop(0).continue_()

    page.route("**/api/recipe", hold)

    page.get_by_label("train.precision").select_option("bf16")
    steps.fill("12")
    answer()
    until(page, "document.querySelector('aside textarea').value.includes('precision: bf16')")
    assert steps.input_value() == "12"
    steps.press("Tab")  # the change is on its way, and the recipe is typed in
    while not held:
        page.wait_for_timeout(20)
    recipe.fill(recipe.input_value() + "seed: 3\n")
    for _ in range(2):  # the change, and once more on the text that was typed
        answer()
    until(page, "document.querySelector('aside textarea').value.includes('steps: 12')")
    answer()  # what was typed
    assert "seed: 3" in recipe.input_value() and "precision: bf16" in recipe.input_value()


def test_stop_resume_and_a_server_that_is_killed(
    serve: Callable[..., Server], opened: Callable[..., Any], tmp_path: Path
) -> None:
    server = serve()
    write_run(server.root / "old")
    page = opened(server)
    at(page, server, "#/new/training")
    recipe = "data: {path: 'builtin:reviews', limit: 200}\ntrain: {steps: 5000, batch_size: 4}\nevaluate: {rows: 4}\n"
    page.get_by_label("recipe as YAML").fill(f"{recipe}task: chat\n")
    page.get_by_label("name of the run").fill("long")
    page.get_by_role("button", name="start, or queue").click()
    page.wait_for_url("**/#/run/long")
    until(page, "document.querySelector('.card b')?.textContent.match(/^[1-9]/)")
    server.end(signal.SIGKILL)
    page.get_by_text("the connection is lost").wait_for()
    server = serve()
    page = opened(server)
    page.get_by_role("link", name="old").wait_for()
    asked: list[float] = []  # the list changes with each look, and is still looked at once in two seconds
    page.on("request", lambda request: asked.append(time.monotonic()) if "/api/runs" in request.url else None)
    while len(asked) < 8:
        page.wait_for_timeout(100)
    assert asked[7] - asked[0] > 10
    page.get_by_role("link", name="long").click()
    page.locator(".state.running").wait_for()
    first = step(page)
    until(page, f"parseInt(document.querySelector('.card b').textContent) > {first}")
    page.get_by_role("button", name="stop and save").click()
    page.locator(".state.stopped").wait_for()
    stopped = step(page)
    page.get_by_role("button", name="resume").click()
    page.reload()
    until(page, f"parseInt(document.querySelector('.card b')?.textContent) > {stopped}")
    page.get_by_role("button", name="stop and save").click()
    page.locator(".state.stopped").wait_for()


def step(page: Any) -> int:
    return int(re.match(r"\d+", page.locator(".card b").first.text_content())[0])  # type: ignore[index]


HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Runs with data of strangers in every place that the page shows."""
    root = tmp_path / "runs"
    write_run(root / "first", method="bitfit", data="'rows.jsonl'")
    said = {"label": "yes", "chosen": HOSTILE, "said": HOSTILE, "loss_sum": 1.0, "targets": 2}
    rows = [
        {"where": f"{HOSTILE}: line 1", "text": HOSTILE, "answer": HOSTILE, "base": said, "tuned": said},
        {"where": "rows.jsonl: line 2", "text": "x" * 10_000_000, "answer": "y", "base": said, "tuned": said},
        {
            "where": "rows.jsonl: line 3",
            "text": "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627",
            "answer": "y",
            "base": said,
            "tuned": said,
        },
    ]
    (root / "first" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "first" / "report.html").write_text(f"<p>report</p>{HOSTILE}<script>parent.document.title='owned'</script>")
    write_run(root / ("n" * 200) / ("m" * 100), data="'<b>bold</b>'")
    body = {"model": HOSTILE, "data": HOSTILE, "task": "chat", "finished": "", "steps": 4, "tokens": 10, "seeds": [0]}
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    arm = {"arm": HOSTILE, "status": "done", "score": score, "trainable": 10, "seconds": 1.0, "memory": 1e9}
    arms = [{**arm, "adapter_bytes": 5, "lr": 0.1, "against": {}}, {"arm": "b", "status": "failed", "reason": HOSTILE}]
    body |= {"metric": "accuracy", "higher_is_better": True, "best": HOSTILE, "examples": 3, "rows": arms}
    (root / "methods").mkdir()
    (root / "methods" / "compare.json").write_text(json.dumps(body))
    return root


def test_what_data_says_is_text_and_nothing_else(
    serve: Callable[..., Server], opened: Callable[..., Any], many: Path
) -> None:
    server = serve(many)
    page = opened(server)
    at(page, server, "#/new/data")
    page.get_by_label("recipe as YAML").fill(f"data: {json.dumps(HOSTILE)}\n")
    page.get_by_role("alert").first.wait_for()
    for place in ("#/runs", "#/run/first", "#/run/first/evaluation", "#/compare", "#/compare/methods", "#/queue"):
        at(page, server, place)
        page.wait_for_timeout(300)
        assert "owned" not in page.title()
        assert page.locator("main img, main script").count() == 0
    at(page, server, "#/run/first/evaluation")
    page.get_by_text("shortened").wait_for()
    assert page.locator("bdi", has_text="right to left").count() == 1


def test_a_hostile_file_is_read_and_shown_as_text(
    serve: Callable[..., Server], opened: Callable[..., Any], tmp_path: Path
) -> None:
    file, long = tmp_path / f"{'n' * 200}<b>.csv", "word " * 2_000_000  # 10 MB
    rows = [
        ("text", "label"),
        (HOSTILE, "yes"),
        ("\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627", "l" * 300),
    ]
    rows += [*((f"row {number}", "yes") for number in range(10)), (long[:100_000], "yes"), ("", long)]
    with file.open("w", newline="", encoding="utf-8") as opened_file:
        csv.writer(opened_file).writerows(rows)
    server = serve()
    page = opened(server)
    at(page, server, "#/new/data")
    recipe = "task: chat\ndata: {on_bad_row: skip, validation: none}\n"
    page.get_by_label("recipe as YAML").fill(recipe)
    page.get_by_label("a data file").set_input_files(file)
    page.locator(".masked").nth(5).wait_for()
    page.get_by_role("heading", name="Refused rows").wait_for()
    page.get_by_text("text is empty").first.wait_for()
    assert page.locator(".masked", has_text="onerror=").count() == 1
    assert page.locator(".masked [dir=auto]", has_text="right to left").count() == 1
    assert "owned" not in page.title() and page.locator("main img, main script").count() == 0
    assert page.evaluate("document.body.textContent.length") < 200_000
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    at(page, server, "#/new/training")
    page.get_by_label("name of the run").fill("n" * 300)
    page.get_by_role("button", name="start, or queue").click()
    page.get_by_text("is no name for a run").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_phone(
    serve: Callable[..., Server], opened: Callable[..., Any], many: Path, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.base", reason="the check needs axe-playwright-python")
    server = serve(many)
    page = opened(server, color_scheme=scheme, viewport={"width": 390, "height": 844})
    found = []
    for place in PAGES:
        at(page, server, place)
        page.wait_for_timeout(500)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, (place, wide)
        page.evaluate(Path(axe.AXE_FILE_PATH).read_text(encoding="utf-8"))
        for each in page.evaluate("axe.run()")["violations"]:
            if each["impact"] in ("serious", "critical"):
                found += [(place, each["id"], node["html"][:120]) for node in each["nodes"]]
    assert not found


def test_the_page_speaks_chinese(serve: Callable[..., Server], opened: Callable[..., Any], many: Path) -> None:
    server = serve(many)
    page = opened(server, locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh"
    page.get_by_role("link", name="新建运行").wait_for()
    page.get_by_role("button", name="English").click()
    page.get_by_role("link", name="New run").wait_for()
    page.get_by_role("button", name="中文").click()
    page.reload()
    page.get_by_role("link", name="新建运行").wait_for()


def test_several_runs_lie_over_each_other(
    serve: Callable[..., Server], opened: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    write_run(root / "a", method="bitfit")
    write_run(root / "b", method="lora", train__lr=0.01)
    server = serve(root)
    page = opened(server)
    page.get_by_label("choose a").check()
    page.get_by_label("choose b").check()
    page.get_by_role("cell", name="train.lr").wait_for()
    assert page.locator(".overlay .u-legend").first.text_content().count("b") >= 1
    page.get_by_label("search in the runs").fill("bitfit")
    page.get_by_text("1 of 2 runs").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="delete").click()
    page.get_by_text("0 of 1 runs").wait_for()
    assert (root / ".ui" / "bin").is_dir() and not (root / "a").exists()


def test_the_address_works_once(serve: Callable[..., Server], opened: Callable[..., Any], chromium: Any) -> None:
    server = serve()
    opened(server)
    other = chromium.new_page()
    answer = other.goto(server.address)
    assert answer.status == 401
    assert "used before" in other.content()
    assert server.process.stdout is not None and "token=" in server.process.stdout.readline()
    other.close()
    server.end(signal.SIGINT)  # ctrl-C
    assert server.process.returncode == 0
