"""In a notebook: one live output that survives saving, errors without a traceback, and the notebook of the docs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from luthier.api import notebook
from luthier.api.notebook import Notebook, in_notebook
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of this environment, whatever kernels are installed."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "own")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # else it waits awake for processors that other tests use
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return "own"


def ran(cells: Any, kernel: str, folder: Path) -> Any:
    """The notebook with its outputs, written and read again as a user's is."""
    made = NotebookClient(
        cells, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}
    ).execute()
    nbformat.write(made, folder / "saved.ipynb")
    return nbformat.read(folder / "saved.ipynb", as_version=4)


@pytest.mark.slow
def test_the_notebook_of_the_docs_trains_compares_and_asks(kernel: str, tmp_path: Path) -> None:
    """All of its cells, on a quarter of its rows."""
    page = nbformat.read(PAGE, as_version=4)
    rows = "limit=480, validation_limit=100"
    (data,) = [cell for cell in page.cells if rows in cell.source]
    data.source = data.source.replace(rows, "limit=120, validation_limit=40")
    made = ran(page, kernel, tmp_path)
    found = {cell.source.split("\n")[0]: cell.outputs for cell in made.cells if cell.cell_type == "code"}
    for begins in ("run = luthier.train", "found = luthier.compare", "luthier.check", "run.export"):
        (outputs,) = [each for source, each in found.items() if source.startswith(begins)]
        live = [each for each in outputs if each.output_type == "display_data"]
        assert len(live) == 1 and all(each.output_type != "stream" for each in outputs), begins
        assert "ipywidget" not in json.dumps(live) and "application/vnd" not in json.dumps(live)
    (trained,) = [each for source, each in found.items() if source.startswith("run = ")]
    assert len(trained) == 1
    shown = trained[0].data["text/html"]
    assert "<svg" in shown and "held-out loss" in shown, "the curve and the table of evaluations are saved"
    steps = len([line for line in (tmp_path / "runs/reviews/metrics.jsonl").open() if '"loss"' in line])
    assert f"step {steps} of {steps}" in shown and "done in" in shown, "the last state is what stays"
    (asked,) = [each for source, each in found.items() if source.startswith("reviews")]
    assert len(asked) == 1 and asked[0].text.count("positive") == 3 and "电影" in asked[0].text
    assert (
        "lora" in found['found.to_pandas()[["value", "low", "high", "trainable", "against_best"]]'][0].data["text/html"]
    )


def test_a_mistake_is_a_message_and_its_fix(kernel: str, tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell('import luthier\nluthier.train(modl="builtin")')
    with pytest.raises(CellExecutionError) as caught:
        ran(nbformat.v4.new_notebook(cells=[cell]), kernel, tmp_path)
    shown = "\n".join(cell.outputs[0].traceback)
    assert "modl: unknown key (did you mean 'model'?)" in shown
    assert len(shown.splitlines()) == 2 and "File" not in shown, caught.value


class Display:
    """What IPython's `display` gives, keeping all pages that were shown."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def display(self, page: Any, display_id: bool = False) -> Display:
        assert display_id
        self.pages.append(page.data)
        return self

    def update(self, page: Any) -> None:
        self.pages.append(page.data)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[Display]:
    made = Display()
    module = SimpleNamespace(display=made.display, HTML=lambda data: SimpleNamespace(data=data))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return made


def test_pictures_come_twice_a_second_at_most_and_the_last_state_always(
    display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(notebook.time, "monotonic", lambda: clock[0])
    shown = Notebook()
    shown.train_begins(0, 100)
    for step in range(1, 101):
        clock[0] += 0.1
        line = {"step": step, "loss": 5.0 / step, "lr": 1e-3}
        shown.record(line)
        shown.step(line, 1000.0)
        if step % 50 == 0:
            shown.record({"step": step, "validation_loss": 1.0})
            shown.evaluated(step, 1.0, True)
    shown.train_ends()
    shown.close()
    assert 15 <= len(display.pages) <= 25
    last = display.pages[-1]
    assert "step 100 of 100, loss 0.0500, 1,000 tokens/s, 10 s" in last and "about" not in last and "<svg" in last
    assert any("about 5 s left" in page for page in display.pages)


def test_texts_of_the_data_are_escaped(display: Display) -> None:
    shown = Notebook()
    shown.stage("reading <b>")
    shown.note("<script>alert(1)</script>")
    shown.warn("<img src=x>")
    shown.runs(1.5, 3, "<i>lora</i>")
    shown.close()
    assert "<script>" not in display.pages[-1] and "<img" not in display.pages[-1] and "<i>" not in display.pages[-1]
    assert "&lt;script&gt;" in display.pages[-1] and "1 of 3 runs" in display.pages[-1]


def test_a_step_without_a_loss_is_shown_as_nan(display: Display) -> None:
    shown = Notebook()
    shown.train_begins(0, 2)
    for step in (1, 2):
        shown.record({"step": step, "loss": None, "lr": 1.0})
        shown.step({"step": step, "loss": None}, 1.0)
    shown.evaluated(2, 1.5, False)
    shown.close()
    assert "loss NaN" in display.pages[-1] and "1.5000" in display.pages[-1]


def test_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None)))
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    assert in_notebook()
