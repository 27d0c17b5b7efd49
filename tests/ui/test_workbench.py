"""The process that reads, plans and chooses for the page, and the base models that the page offers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from luthier.ui.bases import MOST, found_bases
from luthier.ui.workbench import CallFailed, Workbench
from tests.ui.conftest import write_run

RECIPE = "data: {path: 'builtin:reviews', limit: 20}\n"


@pytest.mark.slow
def test_calls_are_answered_by_one_process_which_comes_back() -> None:
    async def calls() -> None:
        bench = Workbench()
        form = await bench.call("form", {})
        assert "lora" in [each["name"] for each in form["families"]["method"]]
        assert bench.process is not None
        first = bench.process.pid
        plan = await bench.call("plan", {"text": RECIPE, "changes": {"method": "bitfit"}})
        assert plan["fits"] and plan["method"] == "bitfit" and plan["model"] == "builtin"
        with pytest.raises(CallFailed, match=r"train\.steps"):
            await bench.call("plan", {"text": f"{RECIPE}train: {{steps: -1}}\n"})
        assert bench.process.pid == first
        bench.process.kill()
        await bench.process.wait()
        assert (await bench.call("form", {}))["presets"] == form["presets"]
        last = bench.process
        bench.end()
        await last.wait()

    asyncio.run(calls())


def test_models_below_the_folders_are_offered(tmp_path: Path) -> None:
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "a.safetensors").write_bytes(b"x" * 10)
    (model / "b.safetensors").write_bytes(b"x" * 5)
    (tmp_path / "models" / "q4.gguf").write_bytes(b"x" * 7)
    (tmp_path / "models" / "link").symlink_to(model)
    run = write_run(tmp_path / "runs" / "one")
    (run / "run.json").write_text("{}")
    (run / "own.gguf").write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.gguf").write_bytes(b"x")
    found = {each["path"]: each for each in found_bases([tmp_path, tmp_path / "models"])}
    assert list(found) == ["builtin", "smollm2", str(tmp_path / "models" / "q4.gguf"), str(model)]
    assert found[str(model)]["bytes"] == 15 and not found[str(model)]["fetch"]


def test_a_folder_of_very_many_models_is_cut(tmp_path: Path) -> None:
    for number in range(MOST + 5):
        (tmp_path / f"{number}.gguf").write_bytes(b"x")
    assert len(found_bases([tmp_path])) == 2 + MOST
