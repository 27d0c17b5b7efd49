"""Small models and data that the tests build themselves: no network, no GPU, nothing beside the repository."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from luthier.core import language
from tests import processes, shortcuts

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # of the terminal that the tests run in: tables take their width from it

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

TEXT = """The quick brown fox jumps over the lazy dog. A good film, a bad film, a kettle that leaks, boots that last.
Is this review positive or negative? What is your name? My name is Luthier. Hello, how are you today? User Assistant
这部电影很好看，演员的表演很自然。这个水壶漏水，已经退货了。你好，你是谁？我叫琴匠。 0 1 2 3 4 5 6 7 8 9"""


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # this process only hands out tests, and the workers begin when it is ready
    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)  # tests run side by side, one per processor
    gc.set_threshold(10_000, 10, 100)  # half a million objects are here to stay: looking through all takes 0.1 s
    disable_progress_bar()


@pytest.fixture(scope="session", autouse=True)
def shortcuts_are_taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers share
    folder = folder / "shortcuts"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(shortcuts.FOLDER, str(folder))
        shortcuts.take(patch)
        yield


WITHOUT_PAGES = ("comparison", "exports", "kernels", "launching", "methods", "reliability", "strangers", "training")
"""Folders whose tests train many runs and look at no page of a run."""


@pytest.fixture(autouse=True)
def plain_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a report looks like is tested elsewhere: drawing it takes a sixth of a small run."""
    if request.path.relative_to(ROOT / "tests").parts[0] in WITHOUT_PAGES:
        monkeypatch.setattr("luthier.reports.chart.png", lambda *_: b"")
        monkeypatch.setattr("luthier.reports.run_report.render", lambda *_: "")
        if request.path.parent.name != "reliability":  # where a resumed run is to have the same ones
            monkeypatch.setattr("luthier.pipeline.samples.Samples.wanted", lambda loaded: False)


@pytest.fixture
def shared() -> Path:
    """Real data that is no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here: it is no part of the project")
    return SHARED


def build_tokenizer(
    *,
    template: str | None = None,
    bos: bool = False,
    special: Iterable[str] = (),
    cuts: Any = None,
    whole_words: bool = False,
) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = cuts or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", extra_special_tokens=list(special)
    )
    if template:
        fast.chat_template = template
    return fast


def model_config(kind: str, vocabulary: int = 400) -> Any:
    import transformers as t

    small = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide = {**small, "intermediate_size": 64, "max_position_embeddings": 256, "num_key_value_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    made = {
        "llama": lambda: t.LlamaConfig(**wide, **ids),
        "qwen2": lambda: t.Qwen2Config(**wide, **ids, tie_word_embeddings=True),
        "qwen3": lambda: t.Qwen3Config(**wide, **ids, head_dim=8),
        "mistral": lambda: t.MistralConfig(**wide, **ids, sliding_window=8),
        "gemma": lambda: t.GemmaConfig(**wide, **ids, head_dim=16),
        "gpt2": lambda: t.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ids),
        "bert": lambda: t.BertConfig(**small, intermediate_size=64, max_position_embeddings=256, pad_token_id=1),
        "t5": lambda: t.T5Config(
            vocab_size=vocabulary,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            eos_token_id=1,
            pad_token_id=0,
            decoder_start_token_id=0,
            is_gated_act=True,
            dense_act_fn="gelu_new",
        ),
    }
    return made[kind]()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a small random model in Hugging Face's layout, of any kind that `model_config` knows."""
    made: dict[str, Path] = {}

    def make(kind: str = "llama", template: str | None = None) -> Path:
        import torch
        import transformers as t

        key = f"{kind}-{hash(template)}"
        if key not in made:
            folder = tmp_path_factory.mktemp("model") / kind
            torch.manual_seed(1)
            autos = {"bert": t.AutoModelForMaskedLM, "t5": t.AutoModelForSeq2SeqLM}
            auto = autos.get(kind, t.AutoModelForCausalLM)
            auto.from_config(model_config(kind)).save_pretrained(folder)
            build_tokenizer(template=template).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def alpaca_rows(count: int) -> list[dict[str, str]]:
    things = ["fox", "dog", "film", "kettle", "boots", "name", "review", "day"]
    return [
        {"instruction": f"Say number {i} and {things[i % 8]}.", "input": "", "output": f"{i} {things[i % 8]}"}
        for i in range(count)
    ]


def review_rows(count: int) -> list[dict[str, Any]]:
    good, bad = ["good", "last", "自然", "很好看"], ["bad", "leaks", "漏水", "退货"]
    return [
        {"text": f"The {(good if i % 2 else bad)[i // 2 % 4]} film, number {i}.", "label": i % 2} for i in range(count)
    ]


@pytest.fixture
def alpaca_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "alpaca.jsonl", alpaca_rows(40))


@pytest.fixture
def review_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "reviews.jsonl", review_rows(60))


READ_WHEN_IMPORTED = ("HF_", "OMP_", "MKL_", "PYTHONHASH", "MPL", "TRANSFORMERS_", "CUDA_")
"""Starts of variables that libraries look at while they are imported."""


def use_catalog(monkeypatch: pytest.MonkeyPatch, known: dict[str, str]) -> None:
    """Let the catalog of translations be `known` until the test ends."""
    monkeypatch.setattr(language, "catalog", lambda: known)
    for name in ("_patterns", "_fragments"):  # what was found in another catalog is forgotten
        monkeypatch.setattr(language, name, cache(getattr(language, name).__wrapped__))


def luthier(
    *arguments: Any,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    text: str = "",
    before: processes.Before | None = None,
    timeout: float = 300,
) -> Any:
    """Run the command line in a process of its own, as a user does; see `processes.Command` for the options."""
    assert not any(name.startswith(READ_WHEN_IMPORTED) for name in env or {}), "the server has read it already"
    return processes.Command(arguments, cwd=cwd, env=env, text=text, before=before).result(timeout)


PROMISES: dict[tuple[str, str], set[str]] = {}
"""What the tests of the methods found; `--methods-table FILE` makes the table in the docs from it."""
BEGIN, END = "<!-- made by make methods-table: begin -->", "<!-- end -->"


@pytest.fixture
def kept(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Call at the end of a test: the promise `letter` holds for a method on an architecture."""

    def record(name: str, kind: str, letter: str) -> None:
        record_property("promise", (name, kind, letter))

    return record


FOUND: dict[tuple[str, str], str] = {}
"""(architecture, method) -> why it is refused, or empty: `--architectures-table FILE` makes the page from it."""
TYPES_BEGIN = "<!-- types of PEFT, made by make methods-table: begin -->"
ARCHITECTURES_BEGIN = "<!-- made by make architectures-table: begin -->"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--architectures-table", default="", help="write what each method found on each into this page")
    parser.addoption("--methods-table", default="", help="write the table of promises into this page")
    parser.addoption("--all", action="store_true", help="all of each matrix, not a sample that covers it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test marked `matrix` keep a sample in which each value of each parameter stands, if not all is asked for."""
    if config.getoption("--all") or any("::" in word for word in config.args):
        return
    groups: dict[Any, list[pytest.Item]] = {}
    for item in items:
        if (mark := item.get_closest_marker("matrix")) is not None and hasattr(item, "callspec"):
            groups.setdefault((item.path, item.originalname, repr(mark.kwargs)), []).append(item)
    kept = {item for group in groups.values() for item in sample(group, group[0].get_closest_marker("matrix").kwargs)}
    dropped = [item for group in groups.values() for item in group if item not in kept]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        gone = {*dropped}
        items[:] = [item for item in items if item not in gone]


def sample(items: list[Any], most: dict[str, int]) -> list[Any]:
    """The fewest items, about, that hold every value of every parameter; of a parameter in `most` only so many values.

    The order is that of a hash of the names: the same in every process, and pairs of values are mixed.
    """
    items = sorted(items, key=lambda item: hashlib.sha256(item.name.encode()).digest())
    for name, number in most.items():
        values = list(dict.fromkeys(repr(item.callspec.params[name]) for item in items))[:number]
        items = [item for item in items if repr(item.callspec.params[name]) in values]
    pairs = {item: {(name, repr(value)) for name, value in item.callspec.params.items()} for item in items}
    left, chosen = set().union(*pairs.values()), []
    while left:
        best = max(items, key=lambda item: len(left & pairs[item]))
        left -= pairs[best]
        chosen.append(best)
    return chosen


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        for key, value in report.user_properties:
            if key == "promise":
                name, kind, letter = value
                PROMISES.setdefault((name, kind), set()).add(letter)
            elif key == "architecture":
                name, kind, why = value
                FOUND[name, kind] = why


ORDER = "12345-6789cpkghns"
WHOLE = {"8": {f"8 {what} {packing}" for what in ("trains", "saves", "merges") for packing in ("nf4", "int8")}}
"""A letter that stands only where all its parts do."""


def _letters(found: set[str]) -> str:
    found = found | {letter for letter, parts in WHOLE.items() if parts <= found}
    return "".join(letter for letter in ORDER if letter in found)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    if page := session.config.getoption("--architectures-table"):
        _insert(Path(page), ARCHITECTURES_BEGIN, _architectures_table())
    if page := session.config.getoption("--methods-table"):
        from tests.methods import test_peft_types

        _insert(Path(page), BEGIN, _methods_table())
        _insert(Path(page), TYPES_BEGIN, test_peft_types.table(PROMISES))


def _insert(page: Path, begin: str, lines: list[str]) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _architectures_table() -> list[str]:
    from tests.architectures import CAUSAL
    from tests.methods.test_architectures import NAMES

    reasons = {why: "" for why in (_reason(FOUND.get((kind, name), "")) for kind in CAUSAL for name in NAMES) if why}
    letters = {why: f"{number}" for number, why in enumerate(reasons, 1)}
    lines = ["| | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for kind in CAUSAL:
        cells = [
            "fails" if (kind, name) not in FOUND else letters.get(_reason(FOUND[kind, name]), "✓") for name in NAMES
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return [*lines, "", *(f"{number}. {why}" for why, number in letters.items())]


def _reason(why: str) -> str:
    """The reason of a refusal, without the names of method and architecture."""
    return re.sub(r"^method \S+:? (does not work on \S+: )?", "", why)


def _methods_table() -> list[str]:
    from tests.methods.zoo import ARCHITECTURES, REFUSALS, SPECS

    lines = ["| method | " + " | ".join(ARCHITECTURES) + " |", "|---" * (len(ARCHITECTURES) + 1) + "|"]
    for name in SPECS:
        row = [f"`{name}`"]
        for kind in ARCHITECTURES:
            found = PROMISES.get((name, kind), set())
            refused = "refused" if (name, kind) in REFUSALS and "R" in found else ""
            row.append(refused or _letters(found) or "not tested")
        lines.append("| " + " | ".join(row) + " |")
    return lines
