"""A graph for onnxruntime answers as the run does, token by token and in batches, without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import CannotMerge, InputError, MissingExtra, Unproved
from luthier.exports import onnx as form
from luthier.exports.base import Tuned
from luthier.exports.merged import Merged
from luthier.models.load import skeleton
from luthier.pipeline.export import export
from luthier.recipe.parse import parse_export


@pytest.fixture
def needs_onnx() -> None:
    for name in form.NEEDED:
        pytest.importorskip(name, reason="the extra onnx is not installed (some 125 MB)")


def in_batch(session: Any, rows: list[list[int]]) -> Any:
    """Logits of rows padded to one length."""
    import numpy as np

    longest = max(map(len, rows))
    ids = np.array([row + [1] * (longest - len(row)) for row in rows])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    feed: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    feed["position_ids"] = np.tile(np.arange(longest), (len(rows), 1))
    for each in session.get_inputs():
        if each.name.startswith("past"):
            feed[each.name] = np.zeros((len(rows), each.shape[1], 0, each.shape[3]), np.float32)
    return session.run(["logits"], {each.name: feed[each.name] for each in session.get_inputs()})[0]


@pytest.mark.usefixtures("needs_onnx")
@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_a_causal_model_answers_by_its_cache(run: Callable[..., Path], kind: str, tmp_path: Path) -> None:
    folder = run(kind=kind)
    report = export(folder, parse_export("onnx", []))
    told = report["parity"][0]
    assert told["held"] and told["largest"] < 1e-4 * told["spread"] and told["same_answers"] == 1
    runner = form.OnnxRunner(folder / "exports/onnx", ends=())
    names = [each.name for each in runner.session.get_inputs()]
    assert {"input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.1.value"} <= set(names)
    assert {"logits", "present.0.key", "present.1.value"} <= set(runner.outputs)

    rows = [[5, 9, 30, 77, 120, 200, 11, 12, 13, 14, 15], [40, 41, 42]]  # the first is longer than Mistral's window
    both = in_batch(runner.session, rows)
    for row, made in zip(rows, both, strict=True):
        alone = runner.logits(row)
        assert abs(made[: len(row)] - alone).max() < 1e-5
    # One token at a time behind the cache gives what all at once give.
    import numpy as np

    past, step = runner._empty(), []
    for place, token in enumerate(rows[0]):
        out = runner._run([token], past, place)
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        step.append(out["logits"][0, -1])
    assert abs(np.stack(step) - runner.logits(rows[0])).max() < 1e-5

    (tmp_path / "use.py").write_text("\n".join([*report["use"], "import sys", "assert 'torch' not in sys.modules"]))
    done = subprocess.run([sys.executable, tmp_path / "use.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert "PATH_OF_THIS_FOLDER/model.onnx" in (folder / "exports/onnx/README.md").read_text()


@pytest.mark.usefixtures("needs_onnx")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_classifier_takes_padded_batches(run: Callable[..., Path], kind: str, tmp_path: Path) -> None:
    folder = run(task="classify", kind=kind)
    report = export(folder, parse_export("onnx", []))
    assert report["parity"][0]["held"] and report["parity"][0]["same_top"] == 1
    runner = form.OnnxRunner(folder / "exports/onnx", ends=())
    rows = [[5, 9, 30, 77, 120], [40, 41], [7, 8, 9]]
    both = in_batch(runner.session, rows)
    assert both.shape == (3, 2)
    for row, made in zip(rows, both, strict=True):
        assert abs(made - runner.logits(row)[0]).max() < 1e-5
    (tmp_path / "use.py").write_text("\n".join(report["use"]))
    subprocess.run([sys.executable, tmp_path / "use.py"], check=True)


@pytest.mark.usefixtures("needs_onnx")
def test_a_wrong_graph_is_found_out(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(task="classify", kind="bert")
    merged = Tuned.merged

    def spoiled(self: Tuned) -> Any:
        model: Any = merged(self)
        model.classifier.weight.data.neg_()
        return model

    monkeypatch.setattr(Tuned, "merged", spoiled)
    with pytest.raises(Unproved, match="does not answer as the run does"):
        export(folder, parse_export("onnx", []))


def test_what_cannot_be_is_said_before_anything_is_loaded(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run()
    monkeypatch.setattr(form, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(MissingExtra, match=r"needs onnxscript, which is not installed\n.*pip install .*'onnxscript>="):
        export(folder, parse_export("onnx", []))
    monkeypatch.setattr(form, "find_spec", lambda name: True)
    monkeypatch.setattr(Merged, "write", lambda *_: pytest.fail("nothing may be loaded"))

    def hybrid(*given: Any, **options: Any) -> Any:
        model: Any = skeleton(*given, **options)
        model.config.layer_types = ["linear_attention", "full_attention"]
        return model

    monkeypatch.setattr("luthier.pipeline.export.skeleton", hybrid)
    with pytest.raises(InputError, match="a llama keeps more than keys and values"):
        export(folder, parse_export("onnx", []))
    assert not (folder / "exports").exists()


def test_a_method_that_does_not_merge_is_refused(run: Callable[..., Path]) -> None:
    with pytest.raises(CannotMerge, match="--to adapter"):
        export(run("method=prefix"), parse_export("onnx", []))
