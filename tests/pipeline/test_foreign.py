"""Adapters that others made with plain PEFT: trained on, measured, exported, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.core.errors import CannotMerge, ConfigError, InputError, Stopped
from luthier.core.events import Progress
from luthier.methods.layers.loading import load_adapter, without_pickle
from luthier.pipeline.adopt import as_run
from luthier.pipeline.evaluate import evaluate
from luthier.pipeline.export import export
from luthier.pipeline.plan import plan
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.recipe.parse import parse_export
from luthier.serving.engine.engine import Engine
from tests.conftest import alpaca_rows, luthier, write_jsonl

CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"layers.0.self_attn.q_proj": 2}, **CAUSAL
    ),
    "regex": lambda: peft.LoraConfig(r=4, target_modules=r".*layers\.1.*\.(up|down)_proj", lora_bias=True, **CAUSAL),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **CAUSAL),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL),
    "projected": lambda: peft.PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8, **CAUSAL
    ),
}
SMALL = ["train.steps=2", "train.batch_size=2", "data.validation=0.2"]
SMALL += ["evaluate.forgetting=false", "evaluate.generate=1"]


class Warnings(Progress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def make(folder: Path, config: peft.PeftConfig, base: Path, named: str = "somebody/their-base", **options: Any) -> Path:
    """An adapter with random weights, as PEFT saves it on another machine."""
    auto = AutoModelForSequenceClassification if options else AutoModelForCausalLM
    model = peft.get_peft_model(auto.from_pretrained(base, **options), config)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    change(folder, base_model_name_or_path=named)
    return folder


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(10))
    return tmp_path


def begin(adapter: Path, base: Path, *more: str) -> RunConfig:
    return RunConfig.load(None, [f"method.from_adapter={adapter}", f"model={base}", "data=rows.jsonl", *SMALL, *more])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("form", ["prefix", "projected"])
def test_a_prefix_of_peft_says_what_it_says_with_peft(
    form: str, kind: str, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = model_folder(kind)
    make(tmp_path, KINDS[form](), base)
    theirs: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path).eval()
    ours: Any = load_adapter(AutoModelForCausalLM.from_pretrained(base), tmp_path).eval()
    ids = torch.randint(10, 300, (2, 9), generator=torch.manual_seed(0))
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        right, plain = theirs(**asked).logits, ours.get_base_model()
        assert torch.allclose(ours(**asked).logits, right, atol=1e-5)
        with ours.disable_adapter():
            assert not torch.allclose(plain(**asked).logits, right, atol=1e-2)
        said = [model.generate(**asked, max_new_tokens=6, do_sample=False) for model in (theirs, ours)]
    assert torch.equal(*said)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {name: tensor[:, :-2].clone() for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(InputError, match="is not an adapter for this base"):
        load_adapter(AutoModelForCausalLM.from_pretrained(base), tmp_path)


@pytest.mark.parametrize("form", ["lora", "p_tuning", "prefix"])
def test_training_starts_from_its_weights_and_keeps_its_layers(
    form: str, there: Path, model_folder: Callable[..., Path]
) -> None:
    base = model_folder()
    adapter = make(there / "theirs", KINDS[form](), base)
    config = begin(adapter, base)
    assert plan(config)["plan"]
    ids = torch.arange(10, 20)[None]
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    theirs: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    started: Any = config.method.attach(AutoModelForCausalLM.from_pretrained(base), steps=2).eval()
    with torch.no_grad():
        both = [model(**asked).logits[:, -10:] for model in (theirs, started)]
    assert torch.allclose(*both, atol=1e-5)
    stored = sum(tensor.numel() for tensor in load_file(adapter / "adapter_model.safetensors").values())
    assert sum(p.numel() for p in started.parameters() if p.requires_grad) == stored
    result = train(config.model_copy(update={"run": "run"}))
    assert result["steps"] == 2 and result["trainable"] == stored
    again = RunConfig.load(None, ["method.from_adapter=run", "data=rows.jsonl", *SMALL])  # its base and settings too
    assert again.model.path == str(base) and again.method.name == config.method.name
    assert (
        train(again.model_copy(update={"run": "again"}))["tuned"]["loss"]["value"] != result["tuned"]["loss"]["value"]
    )
    shutil.rmtree(adapter)
    assert evaluate(Path("run"))["tuned"] == result["tuned"], "a finished run does not need what it started from"


def test_a_run_that_was_stopped_resumes_bit_for_bit(there: Path, model_folder: Callable[..., Path]) -> None:
    base = model_folder()
    adapter = make(there / "theirs", KINDS["lora"](), base)

    class Stop(Progress):
        def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
            if record["step"] == 1:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(begin(adapter, base, "run=stopped"), progress=Stop())
    train(begin(adapter, base, "run=stopped"))
    train(begin(adapter, base, "run=whole"))
    name = "adapter/adapter_model.safetensors"
    assert Path("stopped", name).read_bytes() == Path("whole", name).read_bytes()


def test_another_adapter_in_its_place_is_noticed_when_a_run_resumes(
    there: Path, model_folder: Callable[..., Path]
) -> None:
    base = model_folder()
    adapter = make(there / "theirs", KINDS["lora"](), base)
    train(begin(adapter, base, "run=run"))
    Path("run/result.json").unlink()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="is not the adapter that the run was started from"):
        train(begin(adapter, base, "run=run"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method.rank=8"], "contradicts the adapter .*method.rank is 8, and 4 there"),
        (["method.r=8"], "contradicts the adapter .*method.rank is 8, and 4 there"),
        (["method.name=dora"], "contradicts the adapter .*method.dora is True, and False there"),
        (["method.name=ia3"], "method ia3 cannot continue .* of the kind LORA"),
        (["method.name=mam"], "method mam cannot continue .* of the kind LORA"),
        (
            ["task=classify", "data=reviews.jsonl"],
            "an adapter of the task CAUSAL_LM, and the task of this data needs a",
        ),
    ],
)
def test_a_recipe_that_contradicts_the_adapter_is_refused(
    settings: list[str], said: str, there: Path, review_file: Path, model_folder: Callable[..., Path]
) -> None:
    base = model_folder()
    adapter = make(there / "theirs", KINDS["lora"](), base)
    with pytest.raises(InputError, match=said):
        train(begin(adapter, base, *settings, "run=run"))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            peft.LoHaConfig(r=2, target_modules=["q_proj"], **CAUSAL),
            "no method here continues an adapter of the kind LOHA",
        ),
        (
            peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"], **CAUSAL),
            "AdaLoRA has moved its ranks",
        ),
        (
            peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"], **CAUSAL),
            "init_lora_weights=pissa changes the base",
        ),
    ],
)
def test_what_cannot_be_continued_says_why(
    config: peft.PeftConfig, said: str, there: Path, model_folder: Callable[..., Path]
) -> None:
    base = model_folder()
    adapter = make(there / "theirs", config, base)
    with pytest.raises(InputError, match=said):
        train(begin(adapter, base))


@pytest.mark.parametrize("form", ["regex", "ia3", "prompt", "projected"])
def test_it_is_measured_as_peft_has_it_and_exported(form: str, there: Path, model_folder: Callable[..., Path]) -> None:
    base = model_folder()
    adapter, heard = make(there / "theirs", KINDS[form](), base), Warnings()
    run, left = as_run(adapter, str(base), "rows.jsonl", ["evaluate.generate=1", "run=adopted"], heard)
    assert left == ["evaluate.generate=1"] and run == Path("adopted")
    assert any("names somebody/their-base as its base" in text for text in heard.texts)
    result = evaluate(run, [*left, "evaluate.forgetting=false"])
    assert result["validation_examples"] == 10, "all rows are measured"
    assert result["tuned"]["loss"]["value"] != result["base"]["loss"]["value"]
    assert "was made by others" in (run / "report.html").read_text()
    loaded = as_run(adapter, str(base), "rows.jsonl", ["run=adopted"])[0]
    assert loaded == run, "the second time it is there"
    to = "merged" if form in ("lora", "ia3") else "adapter"
    if form == "regex":
        with pytest.raises(CannotMerge, match="lora_bias=True"):
            export(run, parse_export("merged", []), prompts=2)
    report = export(run, parse_export(to, []), prompts=2)
    assert all(each["held"] for each in report["parity"])
    assert "by others" in Path(report["path"], "README.md").read_text()


def test_the_loss_of_an_adopted_adapter_is_that_of_peft(there: Path, model_folder: Callable[..., Path]) -> None:
    from luthier.pipeline.evaluate import open_run

    base = model_folder()
    adapter = make(there / "theirs", KINDS["lora"](), base)
    run, _ = as_run(adapter, str(base), "rows.jsonl")
    theirs: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    loaded, _ = open_run(run)
    total = count = 0.0
    for row in loaded.data.validation_rows:
        labels = torch.tensor([row.labels])
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([row.ids])).logits
        kept = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum", ignore_index=-100)
        total, count = total + float(kept), count + int((labels[0, 1:] != -100).sum())
    found = evaluate(run, ["evaluate.generate=0", "evaluate.forgetting=false"])["tuned"]["loss"]["value"]
    assert found == pytest.approx(total / count, rel=1e-4)


def test_a_classifier_is_measured_on_labels(there: Path, review_file: Path, model_folder: Callable[..., Path]) -> None:
    base = model_folder("bert")
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    adapter = make(there / "theirs", config, base, num_labels=2)
    run, _ = as_run(adapter, str(base), str(review_file))
    assert "accuracy" in evaluate(run)["tuned"]
    with pytest.raises(InputError, match="an adapter of the task SEQ_CLS"):
        as_run(adapter, str(base), None, ["run=other"])


def test_the_command_line_takes_it(there: Path, model_folder: Callable[..., Path]) -> None:
    base = model_folder()
    make(there / "theirs", KINDS["lora"](), base)
    done = luthier("export", "theirs", "--base", base, "--to", "adapter", "--prompts", "1", cwd=there)
    assert done.returncode == 0 and "runs/theirs-prompts/exports/adapter" in done.stdout, done.stderr
    done = luthier("train", "--from", "theirs", "--base", base, "--data", "rows.jsonl", *SMALL, cwd=there)
    assert done.returncode == 0 and (there / "runs/rows-lora/adapter").is_dir(), done.stderr
    done = luthier("evaluate", "theirs", "--base", base, cwd=there)
    assert done.returncode == 2 and "--data FILE" in done.stderr


def test_a_base_of_another_task_is_named_in_one_line(there: Path, model_folder: Callable[..., Path]) -> None:
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    base = model_folder()
    other = Path(shutil.copytree(base, there / "other"))
    for file in (other / "config.json", other / "model.safetensors"):
        file.unlink()
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    small = DistilBertConfig(vocab_size=vocabulary, dim=16, hidden_dim=16, n_layers=1, n_heads=2)
    DistilBertForMaskedLM(small).save_pretrained(other)
    adapter = make(there / "theirs", KINDS["lora"](), base)
    with pytest.raises(InputError, match=r"is a distilbert, which cannot serve as a causal decoder\n  fix: "):
        Engine.open([str(adapter)], base=str(other))


def test_a_base_that_is_not_here_is_asked_for(there: Path, model_folder: Callable[..., Path]) -> None:
    base = model_folder()
    adapter = make(there / "theirs", KINDS["lora"](), base)
    entries: list[Callable[[], Any]] = [
        lambda: as_run(adapter, None, "rows.jsonl"),
        lambda: as_run(adapter, None, None),
        lambda: Engine.open([str(adapter)]),
        lambda: RunConfig.load(None, [f"method.from_adapter={adapter}"]),
    ]
    for entry in entries:
        with pytest.raises(InputError, match="somebody/their-base, which is not on this machine") as caught:
            entry()
        assert "--base FOLDER" in caught.value.fix
    change(adapter, base_model_name_or_path=str(base))
    run, _ = as_run(adapter, None, "rows.jsonl")
    with pytest.raises(InputError, match="has a base and data of its own") as caught:
        as_run(run, str(base), None)
    assert "leave out --base" in caught.value.fix


@pytest.mark.parametrize(
    ("fault", "said"),
    {
        "the names of another model": "have no place in this model",
        "A without B": "that the model needs are not in it",
        "a key of a newer PEFT": "does not know new_scaling=2.0, and would ignore it",
        "a kind of a newer PEFT": "peft_type NEWEST is no kind of adapter that PEFT",
        "another base": "is not an adapter for this base",
        "a prompt of another width": "1 of 1 weights in it have another shape, among them prompt_embeddings",
    }.items(),
)
def test_what_does_not_fit_is_refused_at_every_entry(
    fault: str, said: str, there: Path, model_folder: Callable[..., Path]
) -> None:
    base = model_folder()
    adapter = make(there / "theirs", KINDS["lora"](), base)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    if fault == "the names of another model":
        save_file({name.replace("layers", "blocks"): tensor for name, tensor in tensors.items()}, file)
    elif fault == "A without B":
        save_file({name: tensor for name, tensor in tensors.items() if "lora_B" not in name}, file)
    elif fault == "another base":
        base = model_folder("gpt2")
    elif fault == "a prompt of another width":
        config = peft.PromptTuningConfig(num_virtual_tokens=3, token_dim=6, **CAUSAL)
        make(adapter, config, base)
    else:
        change(adapter, **({"new_scaling": 2.0} if "key" in fault else {"peft_type": "NEWEST"}))
    method = "prompt" if "prompt" in fault else "lora"
    entries: dict[str, Callable[[], Any]] = {
        "evaluate and export": lambda: as_run(adapter, str(base), "rows.jsonl", ["run=adopted"]),
        "train": lambda: train(begin(adapter, base, f"method.name={method}", "run=run")),
        "chat and serve": lambda: Engine.open([str(adapter)], base=str(base)),
    }
    for entry in entries.values():
        with pytest.raises(InputError, match=said):
            entry()
    assert not Path("adopted").exists() and not Path("run").exists()


def test_files_of_the_first_peft_are_taken_everywhere(there: Path, model_folder: Callable[..., Path]) -> None:
    """PEFT 0.2: a pickle, few settings, keys that later versions do not know."""
    base = model_folder()
    new = make(there / "new", peft.LoraConfig(r=4, target_modules=["q_proj"], **CAUSAL), base)
    settings = json.loads((new / "adapter_config.json").read_text())
    names = ("r", "lora_alpha", "lora_dropout", "target_modules", "peft_type", "task_type", "bias", "fan_in_fan_out")
    old = {name: settings[name] for name in names} | {"enable_lora": None, "merge_weights": True}
    old |= {"base_model_name_or_path": str(base)}
    (there / "old").mkdir()
    (there / "old/adapter_config.json").write_text(json.dumps(old))
    torch.save(load_file(new / "adapter_model.safetensors"), there / "old/adapter_model.bin")
    measured = ["evaluate.generate=0", "evaluate.forgetting=false"]
    found = [evaluate(as_run(there / name, str(base), "rows.jsonl")[0], measured)["tuned"] for name in ("old", "new")]
    assert found[0] == found[1]
    given = ["method.from_adapter=old", "data=rows.jsonl", *SMALL]  # the base is the folder that it names
    trained = [train(RunConfig.load(None, given)), train(begin(new, base, "run=runs/n"))]
    assert trained[0]["tuned"] == trained[1]["tuned"]


class Grouped(torch.nn.Module):
    """A fused layer with LoRA as PEFT 0.2 computed it where `enable_lora` says which parts of its outputs change."""

    def __init__(self, layer: Any, a: torch.Tensor, b: torch.Tensor, marks: list[bool], scale: float) -> None:
        super().__init__()
        self.layer, self.a, self.b, self.marks, self.scale = layer, a, b, marks, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(torch.zeros_like(result := self.layer(x)).chunk(len(self.marks), -1))
        low = torch.nn.functional.linear(x, self.a).transpose(-2, -1)
        changed = torch.nn.functional.conv1d(low, self.b, groups=sum(self.marks)).transpose(-2, -1)
        left = list(changed.chunk(sum(self.marks), -1))
        parts = [left.pop(0) if mark else part for part, mark in zip(parts, self.marks, strict=True)]
        return result + torch.cat(parts, -1) * self.scale


def grouped(folder: Path, base: Path, marks: list[bool], rank: int = 2) -> torch.nn.Module:
    """Write an adapter of PEFT 0.2 for the fused c_attn of a GPT-2, and return the model as PEFT 0.2 had it."""
    model, tensors = AutoModelForCausalLM.from_pretrained(base).eval(), {}
    torch.manual_seed(5)
    for number, block in enumerate(model.transformer.h):
        width, parts = model.config.n_embd, sum(marks)
        a, b = 0.3 * torch.randn(rank * parts, width), 0.3 * torch.randn(width * parts, rank, 1)
        name = f"base_model.model.transformer.h.{number}.attn.c_attn"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        block.attn.c_attn = Grouped(block.attn.c_attn, a, b, marks, scale=8 / rank)
    folder.mkdir()
    torch.save(tensors, folder / "adapter_model.bin")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    settings |= {"enable_lora": marks, "merge_weights": False, "base_model_name_or_path": str(base), **CAUSAL}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("marks", [[True, False, True], [False, True, False]])
def test_parts_of_a_fused_layer_compute_what_they_did_in_the_first_peft(
    marks: list[bool], there: Path, model_folder: Callable[..., Path]
) -> None:
    base = model_folder("gpt2")
    theirs, ids = grouped(there / "old", base, marks), torch.tensor([[5, 6, 7, 8]])
    wanted = theirs(input_ids=ids).logits
    loaded: Any = load_adapter(AutoModelForCausalLM.from_pretrained(base), without_pickle(there / "old")).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted)
    with loaded.disable_adapter():
        assert not torch.allclose(loaded(input_ids=ids).logits, wanted, atol=1e-2)
    run, _ = as_run(there / "old", str(base), "rows.jsonl")
    report = export(run, parse_export("merged", []), prompts=2)
    assert report["parity"][0]["held"]
    merged: Any = AutoModelForCausalLM.from_pretrained(report["path"])
    torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert begin(there / "old", base).method.spec()["rank"] == 2 * sum(marks)
    train(begin(there / "old", base, "run=run"))


def test_parts_that_do_not_fit_their_weights_are_refused(there: Path, model_folder: Callable[..., Path]) -> None:
    base = model_folder("gpt2")
    grouped(there / "old", base, [True, False, True])
    change(there / "old", r=3)
    with pytest.raises(InputError, match=r"old/adapter_config.json: enable_lora=.* and r=3 do not fit .*lora_B"):
        as_run(there / "old", str(base), "rows.jsonl")
    change(there / "old", r=2)
    as_run(there / "old", str(base), "rows.jsonl")
    change(there / "old", new_scaling=2)
    with pytest.raises(InputError, match="does not know new_scaling=2"):  # not the copy that was made before
        as_run(there / "old", str(base), "rows.jsonl", ["run=other"])


def test_settings_that_no_method_takes_name_the_key(there: Path, model_folder: Callable[..., Path]) -> None:
    adapter = make(there / "theirs", KINDS["lora"](), model_folder())
    change(adapter, lora_alpha=-1)
    with pytest.raises(ConfigError, match=r"method\.alpha"):
        begin(adapter, model_folder())


def test_an_adapter_of_a_start_that_changes_the_base_is_measured_but_not_shared(
    there: Path, model_folder: Callable[..., Path]
) -> None:
    base = model_folder()
    adapter = make(there / "theirs", peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"]), base)
    run, _ = as_run(adapter, str(base), "rows.jsonl")
    plain, _ = as_run(make(there / "plain", KINDS["lora"](), base), str(base), "rows.jsonl")
    found = [evaluate(each, ["evaluate.generate=0", "evaluate.forgetting=false"])["base"] for each in (run, plain)]
    assert found[0]["loss"] == found[1]["loss"], "the base is measured as it was"
    assert export(run, parse_export("merged", []), prompts=2)["parity"][0]["held"]
    with pytest.raises(InputError, match="changes the base, which others share"):
        Engine.open([str(adapter)], base=str(base))
