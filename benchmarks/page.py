"""What `luthier ui` costs: start, size, first paint, memory with many runs, a long curve, and what axe finds.

    python -m benchmarks.page                    # needs playwright, axe-playwright-python and Chromium

The runs are folders as training leaves them, with made-up numbers. Times are medians of --times, each with a new server
and a new browser context.
"""

import argparse
import gzip
import json
import math
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, sync_playwright

from luthier.core.strict_yaml import parse_yaml
from luthier.recipe.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
PARTS = ["#/new/task", "#/new/data", "#/new/base", "#/new/method", "#/new/training", "#/new/evaluation"]
PARTS += ["#/new/deployment", "#/runs", "#/queue", "#/compare", "#/run/run-0", "#/run/run-0/evaluation"]
PARTS += ["#/run/run-0/deployment", "#/run/long"]
SCORE = {"value": 0.75, "low": 0.7, "high": 0.8, "higher_is_better": True}
RESULT = {"primary_metric": "accuracy", "train_seconds": 10.0, "forgetting": {}, "difference": {}}
RESULT |= {"base": {"accuracy": {**SCORE, "value": 0.5}}, "tuned": {"accuracy": SCORE}}


def make_run(folder: Path, recipe: str, steps: int) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "environment.json").write_text("{}")
    ledger = {"run": secrets.token_hex(16), "recipe": parse_yaml(recipe), "files": {}}
    (folder / "run.json").write_text(json.dumps(ledger))
    facts = {"lr": 1e-3, "grad_norm": 1.0, "tokens": 500, "seconds": 0.5, "memory": 10**9}
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            loss = 3 / math.sqrt(step) + 0.1 * math.sin(step * step)
            file.write(json.dumps({"step": step, "loss": loss, **facts}) + "\n")
    (folder / "result.json").write_text(json.dumps({**RESULT, "steps": steps}))


@contextmanager
def served(runs: Path) -> Iterator[tuple[str, float, psutil.Process]]:
    """The address of a server, the seconds until it printed it, and its process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "luthier", "ui", "--dir", str(runs), "--data", str(runs), "--port", "0"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--no-browser"], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    try:
        yield address, time.perf_counter() - began, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def opened(browser: Browser, address: str, place: str = "", **options: Any) -> Iterator[Page]:
    context = browser.new_context(locale="en-US", **options)
    page = context.new_page()
    page.set_default_timeout(600_000)
    page.goto(f"{address}{place}")
    page.wait_for_selector("main h1")
    yield page
    context.close()


def weight(page: Page) -> tuple[int, int, int]:
    """(files, bytes, bytes if gzipped) of what the browser fetched for the first page, apart from answers of the API."""
    urls = page.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")
    bodies = [page.request.get(page.url.partition("#")[0]).body()]
    bodies += [page.request.get(url).body() for url in urls if "/page/" in url]
    return len(bodies), sum(map(len, bodies)), sum(len(gzip.compress(body)) for body in bodies)


def violations(page: Page, origin: str) -> dict[str, list[str]]:
    """Impact -> "rule at part" of each violation that axe finds."""
    found: dict[str, list[str]] = {}
    for part in PARTS:
        page.goto(f"{origin}/{part}")
        page.wait_for_selector("main h1")
        page.wait_for_load_state("networkidle") if "/run/" not in part else page.wait_for_timeout(1000)
        page.evaluate(Path(AXE_FILE_PATH).read_text(encoding="utf-8"))
        for each in page.evaluate("axe.run()")["violations"]:
            found.setdefault(each["impact"], []).append(f"{each['id']} at {part}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    starts, paints, draws, lists = [], [], [], []
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        runs, recipe = Path(place), RunConfig.load(None, ["data=builtin:reviews"]).dump()
        for number in range(options.runs):
            make_run(runs / f"run-{number}", recipe, 200)
        make_run(runs / "long", recipe, options.steps)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for turn in range(options.times):
            with served(runs) as (address, seconds, process):
                starts.append(seconds)
                origin = address.partition("/?")[0]
                with opened(browser, address, "#/new/task") as page:
                    entry = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
                    page.wait_for_timeout(300)
                    paints.append(page.evaluate(entry) / 1000)
                    if turn == 0:
                        files, size, packed = weight(page)
                    began = time.perf_counter()
                    page.goto(f"{origin}/#/runs")
                    page.get_by_text(f"of {options.runs + 1} runs").wait_for()
                    lists.append(time.perf_counter() - began)
                    memory = process.memory_info().rss
                    with page.expect_response("**/api/run/curves*") as answer:
                        began = time.perf_counter()
                        page.goto(f"{origin}/#/run/long")
                    page.locator(".plot canvas").first.wait_for()
                    draws.append(time.perf_counter() - began)
                    sent = len(answer.value.body())
        found: dict[str, list[str]] = {}
        with served(runs) as (address, _, _):
            state = None
            for scheme, width in (("light", 1280), ("dark", 390)):
                look = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}}
                with opened(browser, address if state is None else origin, storage_state=state, **look) as page:
                    state, origin = page.context.storage_state(), address.partition("/?")[0]
                    for impact, places in violations(page, origin).items():
                        found.setdefault(impact, []).extend(f"{each}, {scheme}" for each in places)
        browser.close()
    rows = {
        "address printed": spread(starts, "s"),
        "first contentful paint": spread(paints, "s"),
        "page, without the answers of the API": f"{size:,} bytes in {files} files ({packed:,} gzipped)",
        f"list of {options.runs + 1} runs, read for the first time": spread(lists, "s"),
        "memory of the server after it": f"{memory / 1e6:,.0f} MB",
        f"curves of {options.steps:,} steps": f"{sent:,} bytes sent, drawn after {spread(draws, 's')}",
        "axe, in light at 1280 and dark at 390 pixels": "; ".join(
            f"{impact}: {len(places)} ({', '.join(sorted(set(places)))})" for impact, places in found.items()
        )
        or "no violation",
    }
    for name, value in rows.items():
        print(f"{name:<50} {value}")


def spread(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
