"""Every passed promise leaves a record; `--methods-table FILE` makes the table in the docs from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RESULTS: dict[tuple[str, str], set[str]] = {}
BEGIN, END = "<!-- made by make methods-table: begin -->", "<!-- end -->"


@pytest.fixture
def kept(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Call at the end of a test: the promise `letter` holds for a method on an architecture."""

    def record(name: str, kind: str, letter: str) -> None:
        record_property("promise", (name, kind, letter))

    return record


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--methods-table", default="", help="write the table of promises into this page")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        for key, value in report.user_properties:
            if key == "promise":
                name, kind, letter = value
                RESULTS.setdefault((name, kind), set()).add(letter)


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--methods-table")
    if not target or hasattr(session.config, "workerinput"):
        return
    from tests.methods.zoo import ARCHITECTURES, REFUSALS, SPECS

    lines = ["| method | " + " | ".join(ARCHITECTURES) + " |", "|---" * (len(ARCHITECTURES) + 1) + "|"]
    for name in SPECS:
        row = [f"`{name}`"]
        for kind in ARCHITECTURES:
            found = RESULTS.get((name, kind), set())
            refused = "refused" if (name, kind) in REFUSALS and "R" in found else ""
            row.append(refused or "".join(sorted(found)) or "not tested")
        lines.append("| " + " | ".join(row) + " |")
    page = Path(target)
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}", encoding="utf-8")
