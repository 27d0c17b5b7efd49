"""An export is what was trained, or it is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import CannotMerge, ConfigError, InputError, NoSpace, Unproved
from luthier.exports.merged import Merged
from luthier.pipeline.export import export
from luthier.recipe.config import RunConfig
from luthier.recipe.parse import parse_export
from tests.conftest import luthier


def parity(report: dict[str, Any], place: int = 0) -> dict[str, Any]:
    return dict(report["parity"][place])


@pytest.mark.matrix
@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "adalora", "ia3", "vera", "oft", "bitfit", "full"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_merged_model_answers_as_the_run(run: Callable[..., Path], method: str, kind: str) -> None:
    if method == "bitfit" and kind == "llama":
        pytest.skip("Llama has no biases to tune")
    folder = run(f"method={method}", kind=kind)
    report = export(folder, parse_export("merged", []))
    assert parity(report)["held"] and parity(report)["largest"] < 1e-3 * parity(report)["spread"]
    assert parity(report)["same_top"] == 1 and parity(report)["same_answers"] == 1
    place = folder / "exports/merged"
    assert json.loads((place / "export.json").read_text())["parity"] == report["parity"]
    for name, score in report["scores"]["export"].items():
        assert score["value"] == pytest.approx(report["scores"]["run"][name]["value"], rel=1e-3), name
    assert (place / "README.md").read_text().startswith("---\n") and (place / "chat_template.jinja").is_file()

    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(place)
    assert not any("lora" in name for name, _ in plain.named_parameters())


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "houlsby", "mam", "unipelt", "p_tuning_v2"])
def test_an_adapter_answers_as_the_run(run: Callable[..., Path], method: str) -> None:
    folder = run(f"method={method}")
    report = export(folder, parse_export("adapter", []))
    assert parity(report)["held"] and parity(report)["same_answers"] == 1
    settings = json.loads((folder / "exports/adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == RunConfig.load(folder / "recipe.yaml").model.path
    assert any(line.startswith("import luthier") for line in report["use"]) is (method not in ("lora", "prompt"))


def test_a_packed_run_merges_into_the_plain_base_and_says_what_that_changes(run: Callable[..., Path]) -> None:
    pytest.importorskip("bitsandbytes")
    report = export(run("method=qlora"), parse_export("merged", []))
    assert parity(report)["held"] and "not packed" in parity(report)["against"]
    assert parity(report, 1)["bound"] is None, "only reported, and JSON has a word for it"
    assert parity(report, 1)["largest"] > 10 * parity(report)["largest"] and "nf4" in parity(report, 1)["against"]


def test_a_classifier_keeps_its_head_and_labels(run: Callable[..., Path]) -> None:
    folder = run(task="classify")
    report = export(folder, parse_export("merged", []))
    was, now = report["scores"]["run"]["accuracy"], report["scores"]["export"]["accuracy"]
    assert parity(report)["held"] and now["value"] == was["value"]
    config = json.loads((folder / "exports/merged/config.json").read_text())
    assert sorted(config["id2label"].values()) == ["0", "1"]


def test_half_precision_is_held_to_its_own_rounding(run: Callable[..., Path]) -> None:
    folder = run()
    report = export(folder, parse_export("merged", ["dtype=bfloat16"]))
    assert parity(report)["held"] and parity(report)["largest"] > 1e-5
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "exports/merged", dtype="auto")
    assert next(plain.parameters()).dtype == torch.bfloat16


def test_a_wrong_export_leaves_nothing_but_its_report(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run()
    export(folder, parse_export("merged", []))
    before = (folder / "exports/merged/model.safetensors").read_bytes()
    write = Merged.write

    def spoiled(self: Merged, tuned: Any, place: Path) -> None:
        write(self, tuned, place)
        from safetensors.torch import load_file, save_file

        weights = load_file(place / "model.safetensors")
        name = next(name for name in sorted(weights) if "down_proj" in name)
        weights[name] = weights[name] * 1.5
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(Merged, "write", spoiled)
    with pytest.raises(Unproved, match="does not answer as the run does"):
        export(folder, parse_export("merged", []))
    assert (folder / "exports/merged/model.safetensors").read_bytes() == before, "the good one stays"
    assert not json.loads((folder / "exports/merged.failed.json").read_text())["parity"][0]["held"]
    assert sorted(each.name for each in (folder / "exports").iterdir()) == ["merged", "merged.failed.json"]


def test_what_cannot_be_exported_is_said_before_anything_is_loaded(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run("method=prefix")
    with pytest.raises(CannotMerge, match="--to adapter"):
        export(folder, parse_export("merged", []))
    assert not (folder / "exports").exists()
    monkeypatch.setattr("luthier.pipeline.export.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(NoSpace, match="nothing was written"):
        export(folder, parse_export("adapter", []))
    with pytest.raises(ConfigError, match="dtype"):
        parse_export("merged", ["dtype=int3"])
    with pytest.raises(InputError, match="choose one of"):
        parse_export("merge", [])
    (folder / "result.json").unlink()
    with pytest.raises(InputError, match="no finished weights"):
        export(folder, parse_export("adapter", []))


def test_biases_without_a_place_in_the_architecture_are_said_before_anything_is_loaded(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2 has no biases in its feed-forward; the same before step one is in tests/strangers/test_architectures.py."""
    folder = run("method=bitfit", "method.missing=add", kind="qwen2")
    monkeypatch.setattr(Merged, "write", lambda *_: pytest.fail("nothing may be loaded"))
    with pytest.raises(CannotMerge, match=r"cannot be saved as one merged model\n.*--to adapter"):
        export(folder, parse_export("merged", []))
    assert not (folder / "exports").exists()


def test_a_run_of_whole_weights_has_no_adapter(run: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="--to merged"):
        export(run("method=full"), parse_export("adapter", []))


def test_the_command_line_shows_the_parity_check(run: Callable[..., Path], tmp_path: Path) -> None:
    done = luthier("export", run(), "--to", "merged", "dtype=float16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "same answers" in done.stdout and "exports/merged" in done.stdout and "from_pretrained" in done.stdout
