"""ONNX for onnxruntime, without PyTorch: a classifier, or a causal model with its KV cache."""

import inspect
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import InputError, MissingExtra, first_line, install
from luthier.core.shell import literal
from luthier.exports.base import Export, Opened, Tuned, write_words

NEEDED = ("onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"
PAST, PRESENT = "past_key_values", "present"


class Onnx(Export):
    """One graph in float32: `model.onnx`, with its weights in a file beside it, so that no model is too large.

    A causal model takes its KV cache as `past_key_values.N.key` and `.value` (of length 0 at the start) and returns the
    longer one as `present.N.key` and `.value`: the names that runtimes for such graphs expect.
    """

    base_layout: ClassVar[bool] = False

    def refuse(self, tuned: Tuned) -> None:
        super().refuse(tuned)
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise MissingExtra(f"--to onnx needs {', '.join(missing)}, which is not installed", fix=install("onnx"))
        model: Any = tuned.skeleton()
        config = model.config
        kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
        if config.is_encoder_decoder or kinds or getattr(model, "_is_stateful", False):
            what = "is an encoder-decoder" if config.is_encoder_decoder else "keeps more than keys and values"
            why = f"{tuned.run}: a {config.model_type} {what}, which is not supported for ONNX here"
            raise InputError(why, fix=tuned.export_command("merged"))

    def required_bytes(self, tuned: Tuned) -> int:
        return int(4.2 * tuned.facts["parameters"])

    def write(self, tuned: Tuned, folder: Path) -> None:
        import onnx_ir
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        model: Any = tuned.merged().float().cpu().eval()
        inputs = _example(model, caches=not tuned.classifies)
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # the exporters' messages to their own developers
        try:
            with redirect_stdout(StringIO()):
                made = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True)).program
        except Exception as error:  # the exporters of torch and transformers raise many kinds
            reason = f"{type(error).__name__}: {first_line(error)}"
            why = f"{tuned.run}: {type(model).__name__} cannot be written as ONNX: {reason}"
            raise InputError(why, fix=tuned.export_command("merged")) from error
        finally:
            logging.disable(before)
        _rename(made.graph, caches=not tuned.classifies)
        onnx_ir.save(made, folder / FILE, external_data=f"{FILE}.data")
        model.config.dtype = "float32"
        model.config.save_pretrained(folder)
        write_words(tuned.tokenizer, tuned.ends, folder)

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        return OnnxRunner(folder, tuned.ends)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        from jinja2 import Template

        page = Template(Path(__file__).with_name("onnx_use.py.jinja").read_text(encoding="utf-8"), trim_blocks=True)
        return str(page.render(tuned=tuned, folder=folder, literal=literal, file=FILE)).splitlines()


class OnnxRunner:
    """A model in onnxruntime on a CPU."""

    def __init__(self, folder: Path, ends: Sequence[int]) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
        self.ends = set(ends)
        self.inputs = {each.name: each.shape for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]

    def logits(self, ids: Sequence[int]) -> NDArray[Any]:
        """[tokens, vocabulary], or [1, labels] for a classifier."""
        made = self._run(ids, self._empty(), 0)["logits"]
        return made[0] if made.ndim == 3 else made

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """Greedy tokens, with the KV cache."""
        if not self.ends:
            return []
        answer: list[int] = []
        new, past, seen = list(ids), self._empty(), 0
        while len(answer) < most and not (answer and answer[-1] in self.ends):
            made = self._run(new, past, seen)
            seen += len(new)
            past = {name: made[name.replace(PAST, PRESENT)] for name in past}
            new = [int(made["logits"][0, -1].argmax())]
            answer += new
        return answer

    def _empty(self) -> dict[str, NDArray[Any]]:
        past = {name: size for name, size in self.inputs.items() if name.startswith(PAST)}
        return {name: np.zeros((1, size[1], 0, size[3]), np.float32) for name, size in past.items()}

    def _run(self, ids: Sequence[int], past: dict[str, NDArray[Any]], seen: int) -> dict[str, NDArray[Any]]:
        """Outputs for one row of new tokens after `seen` cached ones."""
        read = seen + len(ids)
        feed = {"input_ids": np.array([list(ids)], np.int64), "attention_mask": np.ones((1, read), np.int64)}
        feed["position_ids"] = np.arange(seen, read, dtype=np.int64)[None]
        feed = {name: value for name, value in feed.items() if name in self.inputs}
        return dict(zip(self.outputs, self.session.run(None, feed | past), strict=True))


def _example(model: Any, *, caches: bool) -> dict[str, Any]:
    """Inputs to trace: 2 rows of 4 tokens, one padded, with `caches` after 3 read ones: no two axes are alike."""
    import torch
    from transformers import DynamicCache

    ids = torch.arange(8).reshape(2, 4) + 3
    mask = torch.ones(2, 7 if caches else 4, dtype=torch.long)
    mask[0, 0 if caches else -1] = 0
    example: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if not caches:
        return example
    example["past_key_values"] = DynamicCache()
    with torch.no_grad():
        model(input_ids=ids[:, :3], use_cache=True, past_key_values=example["past_key_values"])
    if "position_ids" in inspect.signature(model.forward).parameters:
        example["position_ids"] = torch.arange(3, 7).expand(2, -1).contiguous()
    return example


def _rename(graph: Any, *, caches: bool) -> None:
    """Inputs, outputs and axes by the names that runtimes expect, in place of the exporter's."""
    import onnx_ir

    for value, new in [*((each, PAST) for each in graph.inputs), *((each, PRESENT) for each in graph.outputs)]:
        axes: dict[int, str] = {}
        if ".layers." in value.name:
            number, _, kind = value.name.partition(".layers.")[2].partition(".")
            value.name = f"{new}.{number}.{kind.removesuffix('s')}"
            axes = {0: "batch", 2: "past" if new == PAST else "past + length"}
        elif value.name in ("input_ids", "position_ids", "logits"):
            axes = {0: "batch", 1: "length"} if caches or value.name != "logits" else {0: "batch"}
        elif value.name == "attention_mask":
            axes = {0: "batch", 1: "past + length" if caches else "length"}
        # The exporter takes some fixed sizes for dynamic axes, and writes their number as text.
        texts = [str(size).strip("'") for size in value.shape]
        sizes = [int(text) if text.isdigit() else size for text, size in zip(texts, value.shape, strict=True)]
        value.shape = onnx_ir.Shape([axes.get(place) or size for place, size in enumerate(sizes)])
