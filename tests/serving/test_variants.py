"""Rows of many adapters in one step say what each adapter says alone."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.errors import InputError
from luthier.rendering.example import Message
from luthier.rendering.row import even_length
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.models import SEPARATE, SEQUENTIAL, SHARED
from luthier.serving.engine.multi_adapter import AdapterDelta, MultiAdapter, deltas_of
from luthier.serving.engine.requests import Chunk, GenerationRequest, SamplingParams
from luthier.serving.engine.scheduler import CHUNK, PrefixState, RunningRow, Scheduler
from luthier.serving.engine.sources import source_of
from tests.methods import zoo

TUNERS = [name for name in zoo.SPECS if name not in ("full", "freeze")]
PROMPTS = ["你好", "Is it good?", "The quick brown fox jumps over the lazy dog, 1 2 3.", "a " * 60]
TOGETHER = {
    "bitfit",
    "prefix",
    "p_tuning_v2",
    "prompt",
    "p_tuning",
    "p_tuning (lstm)",
    "lora",
    "rslora",
    "dora",
    "pissa",
    "lora_plus",
    "adalora",
    "ia3",
    "vera",
    "oft",
}


def alone(path: Path | None, base: Path, prompts: Sequence[list[int]], most: int) -> list[list[int]]:
    """Greedy answers of the plain model, each token from a whole forward pass without a cache.

    An answer ends before a token that is as good as another: there rounding decides, which differs from batch to batch.
    """
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    if path is not None:
        load = source_of(str(path)).load
        assert load is not None
        model = load(model)
    made = []
    with torch.no_grad():
        for ids in prompts:
            said: list[int] = []
            while len(said) < most:
                row = torch.tensor([[*ids, *said]])
                logits = model.eval()(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -1]
                first, second = logits.topk(2).values
                if first - second < 1e-3:
                    break
                said.append(int(logits.argmax()))
            made.append(said)
    return made


def answers(engine: Engine, asked: Sequence[tuple[str, list[int]]], **options: Any) -> list[list[int]]:
    """Tokens of each greedy answer; all are asked at once."""
    boxes: list[SimpleQueue[Chunk]] = []
    for model, ids in asked:
        box: SimpleQueue[Chunk] = SimpleQueue()
        boxes.append(box)
        engine.submit([GenerationRequest(model, ids, SamplingParams(logprobs=0, ignore_eos=True, **options), box.put)])
    made = []
    for box in boxes:
        tokens: list[int] = []
        while True:
            piece = box.get(timeout=60)
            tokens += [each.token for each in piece.logprobs]
            if piece.finish is not None:
                assert piece.finish in ("stop", "length"), piece.error
                break
        made.append(tokens)
    return made


@pytest.mark.matrix(kind=3)
@pytest.mark.parametrize("kind", zoo.DECODERS)
def test_every_adapter_answers_beside_all_others_as_it_does_alone(
    adapter: Callable[..., Path], model_folder: Callable[..., Path], kind: str
) -> None:
    names = [name for name in TUNERS if (name, kind) not in zoo.REFUSALS]
    folders = {f"v{number}": adapter(name, kind) for number, name in enumerate(names)}
    engine = Engine.open([f"{key}={folder}" for key, folder in folders.items()], rows=7, waiting=1000)
    tokenizer = engine.models["base"].template.tokenizer
    prompts = [list(tokenizer(text)["input_ids"]) for text in PROMPTS]
    try:
        questions = [(name, ids) for name in engine.models for ids in prompts]
        random.Random(1).shuffle(questions)
        found = answers(engine, questions, max_tokens=5)
        right = {name: alone(folders.get(name), model_folder(kind), prompts, 5) for name in engine.models}
        compared = 0
        for (name, ids), said in zip(questions, found, strict=True):
            wanted = right[name][prompts.index(ids)]
            assert said[: len(wanted)] == wanted, names[int(name[1:])] if name != "base" else name
            compared += len(wanted)
        assert compared > 0.75 * 5 * len(questions)
        assert len({str(each) for each in right.values()}) > len(names) / 2, "the adapters say different things"
    finally:
        engine.close()


def test_what_folds_is_computed_together_and_the_rest_apart(adapter: Callable[..., Path]) -> None:
    engine = Engine.open([f"{name.replace(' ', '-')}={adapter(name)}" for name in TUNERS])
    how = {name: engine.models[name.replace(" ", "-")].how for name in TUNERS}
    engine.close()
    assert {name for name, way in how.items() if way == SHARED} == TOGETHER
    assert {way for name, way in how.items() if name not in TOGETHER} == {SEPARATE}
    assert len({engine.models[name.replace(" ", "-")].scheduler for name in TOGETHER}) == 1


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_rows_are_turned_as_pefts_oft_turns_them_each_by_its_own_adapter(tokens: int, kind: torch.dtype) -> None:
    from peft import OFTConfig, get_peft_model

    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(64, 96)).to(kind)
    adapters, turned = MultiAdapter(copy.deepcopy(plain)), []
    for _ in range(2):
        config = OFTConfig(r=0, oft_block_size=16, use_cayley_neumann=False, target_modules=["0"])
        model = get_peft_model(copy.deepcopy(plain), config).eval()
        torch.nn.init.normal_(next(each for name, each in model.named_parameters() if "oft_R" in name), std=0.3)
        terms = deltas_of(model)
        assert terms is not None
        turned.append((adapters.add(terms), model))
    scale = torch.rand(64) + 0.5
    scaled = adapters.add({"0": AdapterDelta(input_scale=scale)})
    (one, first), (two, second) = turned
    x = torch.randn(5, tokens, 64, dtype=kind)
    adapters.rows = (two, 0, one, scaled, two)
    with torch.no_grad():
        made = adapters.model(x)
        right = torch.stack([second(x[0]), plain(x[1]), first(x[2]), plain(x[3] * scale.to(kind)), second(x[4])])
        assert (right[0] - plain(x[0])).abs().max() > 0.1
        adapters.rows = (one,)
        only = adapters.model(x[2:3])
    near = 1e-5 if kind == torch.float32 else 2**-6
    assert made.dtype == kind
    assert (made - right).abs().max() < near * right.abs().max()
    assert (only[0] - right[2]).abs().max() < near * right.abs().max()


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("rank", [4, 160])
def test_in_half_precision_small_products_are_those_of_float32_and_large_ones_as_near_as_the_models_own(
    tokens: int, rank: int
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96)).to(torch.bfloat16)
    adapters = MultiAdapter(model)
    both = [AdapterDelta(torch.randn(rank, 64) / 8, torch.randn(96, rank) / rank**0.5) for _ in range(2)]
    numbers = [adapters.add({"0": terms}) for terms in both]
    x = torch.randn(3, tokens, 64).bfloat16()
    plain = model(x)  # no adapter is in use
    adapters.rows = (numbers[1], 0, numbers[0])
    made = model(x)
    assert made.dtype == torch.bfloat16 and torch.equal(made[1], plain[1])
    for row, terms in ((0, both[1]), (2, both[0])):
        assert terms.down is not None and terms.up is not None
        right = plain[row].float() + x[row].float() @ terms.down.T @ terms.up.T
        assert (made[row].float() - right).abs().max() < 2**-6 * right.abs().max()
    layer = adapters.layers["0"]
    *_, kind = layer.joined
    held = [each for pair in layer.joined.values() for each in pair]
    assert not any(terms.down is not None or terms.up is not None for terms in layer.deltas.values())
    assert sum(each.nbytes for each in held) == (4 + 2 * (kind == torch.bfloat16)) * 2 * rank * (64 + 96), "kept once"
    assert kind == (torch.float32 if tokens == 1 and rank == 4 else torch.bfloat16)


def test_a_step_of_rows_with_different_adapters_is_one_call(adapter: Callable[..., Path]) -> None:
    engine = Engine.open([f"a={adapter('lora')}", f"b={adapter('lora', seed=5)}", f"c={adapter('dora')}"], rows=8)
    scheduler, calls = engine.models["a"].scheduler, []
    scheduler.model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    answers(engine, [(name, [5, 6, 7 + i]) for i in range(2) for name in ("a", "b", "c", "base")], max_tokens=6)
    engine.close()
    assert (8, 1) in calls and len(calls) < 20, "eight answers of six tokens would be 48 calls one by one"


def test_a_long_prompt_is_read_in_pieces_between_the_steps_of_others(adapter: Callable[..., Path]) -> None:
    engine = Engine.open([str(adapter("lora"))], rows=4)
    scheduler, sizes = engine.models["base"].scheduler, []
    scheduler.chunk = 16
    scheduler.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    short, long = [5, 6, 7], [5 + i % 50 for i in range(150)]
    both = answers(engine, [("base", short), ("base", long)], max_tokens=20)
    apart = [answers(engine, [("base", ids)], max_tokens=20)[0] for ids in (short, long)]
    engine.close()
    assert both == apart and max(sizes) <= 16
    first, last = sizes.index(16), len(sizes) - 1 - sizes[::-1].index(16)
    assert 1 in sizes[first:last], "the short answer goes on meanwhile"


def test_prompts_of_all_lengths_are_read_as_few_numbers_of_tokens(adapter: Callable[..., Path]) -> None:
    engine = Engine.open([str(adapter("lora")), f"p={adapter('prompt')}"], rows=8, waiting=100)
    scheduler, seen = engine.models["base"].scheduler, set()

    def count(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        shape = (kwargs["input_ids"] if "input_ids" in kwargs else kwargs["inputs_embeds"]).shape
        if shape[1] > 1:
            seen.add(shape[0] * shape[1])

    scheduler.model.register_forward_pre_hook(count, with_kwargs=True)
    chance = random.Random(0)
    names = ["base", engine.models["base"].name, "p"]
    for _ in range(25):
        many = chance.randrange(1, 9)
        answers(engine, [(chance.choice(names), [5] * chance.randrange(1, 200)) for _ in range(many)], max_tokens=1)
    engine.close()
    evened = {tokens: even_length(tokens, CHUNK) for tokens in range(1, CHUNK + 1)}
    assert seen <= {*evened.values()} and len(seen) > 10
    assert len({*evened.values()}) <= 32
    assert all(tokens <= found <= max(8 * -(-tokens // 8), tokens * 9 / 8) for tokens, found in evened.items())


@pytest.mark.parametrize("method", ["prompt", "lora"])
def test_a_prompt_that_fills_the_models_positions_is_read(
    adapter: Callable[..., Path], model_folder: Callable[..., Path], method: str
) -> None:
    """GPT-2 has a row of weights for each position and no more."""
    folder = adapter(method, "gpt2")
    engine = Engine.open([f"a={folder}"], rows=4)
    limit = engine.models["a"].limit
    prompts = [[5 + (7 * i) % 300 for i in range(limit - 1 - less)] for less in (0, 3, 60)]
    said = answers(engine, [("a", ids) for ids in prompts], max_tokens=1)
    engine.close()
    right = alone(folder, model_folder("gpt2"), prompts, 1)
    assert all(own[: len(wanted)] == wanted for own, wanted in zip(said, right, strict=True)) and any(right)


def test_rows_come_and_go_in_any_order(adapter: Callable[..., Path], model_folder: Callable[..., Path]) -> None:
    folder = adapter("prefix")
    engine = Engine.open([str(folder), f"l={adapter('lora')}"], rows=5, waiting=1000)
    name = folder.name
    chance = random.Random(3)
    prompts = [[chance.randrange(5, 300) for _ in range(chance.randrange(1, 40))] for _ in range(12)]
    right = {name: alone(folder, model_folder(), prompts, 12), "l": alone(adapter("lora"), model_folder(), prompts, 12)}
    boxes = []
    for number in range(80):
        which, model = chance.randrange(12), chance.choice([name, "l"])
        most, box = chance.randrange(1, 12), SimpleQueue()
        ask = GenerationRequest(
            model, prompts[which], SamplingParams(logprobs=0, ignore_eos=True, max_tokens=most), box.put
        )
        engine.submit([ask])
        boxes.append((model, which, most, box, ask))
        if number % 4 == 0:
            chance.choice(boxes)[-1].cancelled.set()
    cancelled = 0
    for model, which, most, box, _ in boxes:
        tokens, finish = [], None
        while finish is None:
            piece = box.get(timeout=60)
            tokens += [each.token for each in piece.logprobs]
            finish = piece.finish
        cancelled += finish == "cancelled"
        wanted = right[model][which]
        assert tokens[: len(wanted)] == wanted[: len(tokens)]
        assert finish == "cancelled" or len(tokens) == most
    assert 0 < cancelled < 40 and not engine.running and not engine.schedulers[0].rows
    engine.close()


def test_rows_that_have_not_begun_may_leave(adapter: Callable[..., Path]) -> None:
    engine = Engine.open([str(adapter("lora"))])
    scheduler = engine.models["base"].scheduler
    engine.close()
    said: list[torch.Tensor] = []
    with torch.inference_mode():
        for first in range(3):
            rows = [RunningRow([5 + number, 6, 7], PrefixState()) for number in range(9)]
            scheduler.admit(rows[0])
            [(ready, _)] = scheduler.prefill()
            for row in rows[1:]:
                scheduler.admit(row)
            for row in [*rows[first:4], *rows[5:], *rows[:first]]:
                scheduler.evict(row)
            assert scheduler.rows == [rows[4]] and scheduler.count == 0 and ready is rows[0]
            [(row, logits)] = scheduler.prefill()
            said.append(logits)
            assert row is rows[4]
            scheduler.evict(row)
    assert torch.equal(said[0], said[1]) and torch.equal(said[1], said[2])


def test_a_model_with_another_kind_of_cache_is_served_row_by_row(
    tmp_path: Path, adapter: Callable[..., Path], model_folder: Callable[..., Path]
) -> None:
    import transformers as t

    config = t.Gemma2Config(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=256,
        sliding_window=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma2")
    for file in model_folder().iterdir():
        if "token" in file.name or file.name.endswith(".jinja"):
            (tmp_path / "gemma2" / file.name).write_bytes(file.read_bytes())
    engine = Engine.open([str(tmp_path / "gemma2")])
    variant = engine.models["gemma2"]
    assert variant.how == SEQUENTIAL and type(variant.scheduler) is Scheduler
    prompts = [[5, 6, 7], [8, 9] * 10]
    found = answers(engine, [("gemma2", ids) for ids in prompts], max_tokens=6)
    engine.close()
    right = alone(None, tmp_path / "gemma2", prompts, 6)
    assert [said[: len(wanted)] for said, wanted in zip(found, right, strict=True)] == right and all(right)


def test_an_adapter_for_another_base_is_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapters for different bases: model\.path"):
        Engine.open([str(adapter("lora")), str(adapter("dora", "qwen2"))])
    wrong = tmp_path / "wrong"
    shutil.copytree(adapter("lora", "gpt2"), wrong)
    settings = json.loads((wrong / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = json.loads((adapter("lora") / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ]
    (wrong / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="is not an adapter for this base"):
        Engine.open([str(wrong)])


def test_names_paths_and_pickles(adapter: Callable[..., Path], tmp_path: Path) -> None:
    one = adapter("lora")
    with pytest.raises(InputError, match=r"have the same name.*\n.*NAME=PATH"):
        Engine.open([str(one), str(one)])
    with pytest.raises(InputError, match="is called 'base'"):
        Engine.open([f"base={one}"])
    with pytest.raises(InputError, match="does not exist"):
        Engine.open([str(tmp_path / "nothing")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a run, an adapter or a model"):
        Engine.open([str(tmp_path / "empty")])
    shutil.copytree(one, tmp_path / "pickled")
    (tmp_path / "pickled/adapter_model.safetensors").rename(tmp_path / "pickled/adapter_model.bin")
    with pytest.raises(InputError, match="pickle"):
        Engine.open([str(tmp_path / "pickled")])


def test_an_adapter_that_others_made_is_served_on_the_base_that_is_named(
    adapter: Callable[..., Path], model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PEFT 0.2 wrote it: a pickle of tensors, fewer settings, and a base that is only known by its name."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    one, other = adapter("lora"), tmp_path / "theirs"
    other.mkdir()
    names = ("r", "lora_alpha", "lora_dropout", "target_modules", "peft_type", "task_type", "bias", "fan_in_fan_out")
    settings = json.loads((one / "adapter_config.json").read_text())
    old = {name: settings[name] for name in names} | {"base_model_name_or_path": "somebody/base", "enable_lora": None}
    (other / "adapter_config.json").write_text(json.dumps({**old, "merge_weights": False, "modules_to_save": None}))
    torch.save(load_file(one / "adapter_model.safetensors"), other / "adapter_model.bin")
    base = str(model_folder("llama"))
    question, sampling = [Message("user", "Hello")], SamplingParams(max_tokens=8)
    with closing(Engine.open([str(one)])) as ours, closing(Engine.open([str(other)], base=base)) as theirs:
        answers = ["".join(ours.stream(question, sampling, model=one.name))]
        answers.append("".join(theirs.stream(question, sampling, model="theirs")))
        untouched = "".join(theirs.stream(question, sampling, model="base"))
    assert answers[0] == answers[1] != untouched
    assert (other / "adapter_model.bin").is_file() and not (other / "adapter_model.safetensors").exists()
    with pytest.raises(InputError, match="is not an adapter for this base"):
        Engine.open([str(other)], base=str(model_folder("gpt2")))


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(adapter: Callable[..., Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    folder = Path(shutil.copytree(adapter("lora"), tmp_path / "theirs"))
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"a": Trap()}, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="is a pickle that holds more than weights, or is damaged"):
        Engine.open([str(folder)])
    assert not (tmp_path / "it ran").exists()
