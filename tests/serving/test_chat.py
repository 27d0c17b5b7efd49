"""The chat command: over a pipe, a prompt and a terminal, with a model here, an endpoint, and two side by side."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.terminal.chat import talk
from luthier.core.errors import InputError, LuthierError
from luthier.rendering.example import Message
from luthier.serving.backends import KEYS
from luthier.serving.engine.engine import Engine
from luthier.serving.engine.requests import SamplingParams
from tests.conftest import luthier
from tests.serving.small import Stub, served, tuned_adapter

SHORT = SamplingParams(max_tokens=12, seed=0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_adapter(tmp_path_factory.mktemp("adapters") / "tuned")


@pytest.fixture(scope="module")
def engine(tuned: Path) -> Engine:
    return Engine.open([str(tuned)], rows=4)


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with served(engine, key="hidden-word") as made:
        yield made


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    made: list[Stub] = []

    def start(*plan: Any, **options: Any) -> Stub:
        made.append(Stub(*plan, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Talk with these lines on standard input; the lines that were said, without the first."""

    def run(given: str, *lines: str, **options: Any) -> list[str]:
        raw = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="ascii"))
        capsys.readouterr()
        talk(given, **{"sampling": SHORT, **options})
        return capsys.readouterr().out.splitlines()[1:]

    return run


def said(engine: Engine, model: str, *texts: str, most: int = 12) -> str:
    """What the engine answers to the last of these turns."""
    roles = ("user", "assistant")
    messages = [Message(roles[number % 2], text) for number, text in enumerate(texts)]
    return "".join(engine.stream(messages, sampling=SamplingParams(max_tokens=most), model=model))


def test_a_prompt_is_answered_by_the_model_and_by_its_base(
    tuned: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    for base, name in ((False, "tuned"), (True, "base")):
        talk(str(tuned), untuned=base, prompt="Hello", sampling=SHORT)
        assert capsys.readouterr().out == said(engine, name, "Hello") + "\n"
    talk(str(tuned), prompt="Hello", system="Be brief.", sampling=SHORT)
    assert capsys.readouterr().out.strip()


def test_base_and_tuned_answer_side_by_side_from_one_engine(
    tuned: Path, engine: Engine, piped: Callable[..., list[str]]
) -> None:
    before = sum(thread.name == "luthier-engine" for thread in threading.enumerate())
    lines = piped(str(tuned), "Hello", "And then?", "/new", "Hello", beside="base")
    assert sum(thread.name == "luthier-engine" for thread in threading.enumerate()) == before + 1
    base, mine = said(engine, "base", "Hello"), said(engine, "tuned", "Hello")
    assert base != mine
    first = f"base: {base}\ntuned: {mine}".splitlines()
    second = (
        f"base: {said(engine, 'base', 'Hello', base.strip(), 'And then?')}\n"
        f"tuned: {said(engine, 'tuned', 'Hello', mine.strip(), 'And then?')}"
    ).splitlines()
    assert lines == [*first, *second, *first], "each has a dialogue of its own, and /new restarts both"


def test_models_over_different_bases_stand_side_by_side_too(
    tuned: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], engine: Engine
) -> None:
    other = model_folder("llama")
    talk(str(tuned), beside=f"other={other}", prompt="Hello", sampling=SHORT)
    out = capsys.readouterr().out
    assert out.startswith(f"tuned: {said(engine, 'tuned', 'Hello')}\nother: ")


@pytest.mark.parametrize("names", [("anger", "joy", "fear"), ()], ids=["named", "unnamed"])
def test_an_adapter_of_a_classifier_that_peft_wrote_says_how_likely_its_labels_are(
    names: tuple[str, ...], model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    shutil.copytree(model_folder("llama"), base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    if names:
        config = json.loads((base / "config.json").read_text())
        config |= {"id2label": {str(i): name for i, name in enumerate(names)}}
        config |= {"label2id": {name: i for i, name in enumerate(names)}}
        (base / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    auto = transformers.AutoModelForSequenceClassification
    model = get_peft_model(
        auto.from_pretrained(base, num_labels=3, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id),
        LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "mood")
    model.eval()
    with torch.inference_mode():
        logits = model(**tokenizer("What a day!", return_tensors="pt")).logits[0]
    shown = names or ("LABEL_0", "LABEL_1", "LABEL_2")
    pairs = sorted(zip(logits.softmax(-1).tolist(), shown, strict=True), reverse=True)
    talk(str(tmp_path / "mood"), base=str(base), prompt="What a day!")
    assert capsys.readouterr().out == ", ".join(f"{label} {share:.1%}" for share, label in pairs) + "\n"
    with pytest.raises(InputError, match="its base has no labels"):
        talk(str(tmp_path / "mood"), untuned=True, prompt="a")


def test_a_run_that_classifies_says_how_likely_its_labels_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from luthier.pipeline.evaluate import open_run
    from luthier.pipeline.train import train
    from luthier.recipe.config import RunConfig

    (tmp_path / "mood.jsonl").write_text(
        "".join(
            f'{{"text": "It is a {word} day {n}.", "label": "{word}"}}\n' for n in range(30) for word in ("good", "bad")
        )
    )
    quiet = ["evaluate.forgetting=false", "evaluate.before=false", "train.steps=2"]
    given = [f"data={tmp_path / 'mood.jsonl'}", "task=classify", f"run={tmp_path / 'run'}"]
    train(RunConfig.load(None, [*given, *quiet]))
    capsys.readouterr()
    talk(str(tmp_path / "run"), beside=f"adapter={tmp_path / 'run' / 'adapter'}", prompt="It is a good day 77.")
    first, second = capsys.readouterr().out.splitlines()
    loaded, _ = open_run(tmp_path / "run")
    ids = torch.tensor([loaded.template.tokenizer("It is a good day 77.")["input_ids"]])
    with torch.inference_mode():
        shares = loaded.model(input_ids=ids).logits[0].softmax(-1).tolist()
    pairs = sorted(zip(shares, ("bad", "good"), ("LABEL_0", "LABEL_1"), strict=True), reverse=True)
    assert first == "run: " + ", ".join(f"{name} {share:.1%}" for share, name, _ in pairs)
    assert second == "adapter: " + ", ".join(f"{name} {share:.1%}" for share, _, name in pairs)


def test_a_seed_draws_the_same_answer_again(tuned: Path, piped: Callable[..., list[str]]) -> None:
    def draw(seed: int) -> list[str]:
        return piped(
            str(tuned), "Hello", "/new", "Hello", sampling=SamplingParams(temperature=1.2, max_tokens=20, seed=seed)
        )

    four = draw(4)
    assert four[: len(four) // 2] == four[len(four) // 2 :] and four == draw(4) != draw(5)


def test_the_command_passes_its_options_on(tuned: Path, stub: Callable[..., Stub]) -> None:
    there = stub(["well", ""])
    options = ["--temperature", "0.7", "--seed", "9", "--max-new-tokens", "33", "--system", "Be brief."]
    done = luthier("chat", there.url, "--model", "two", "--prompt", "Hello", *options)
    assert done.returncode == 0 and done.stdout == "well\n", done.stderr
    assert there.seen[0] | {"messages": None} == {
        "model": "two",
        "messages": None,
        "temperature": 0.7,
        "max_tokens": 33,
        "seed": 9,
        "stream": True,
    }
    assert [message["role"] for message in there.seen[0]["messages"]] == ["system", "user"]


def test_an_endpoint_is_talked_to_as_a_folder_is(
    url: str, engine: Engine, piped: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_API_KEY", "hidden-word")
    hello = said(engine, "tuned", "Hello").splitlines()
    again = said(engine, "tuned", "Hello", said(engine, "tuned", "Hello").strip(), "你好").splitlines()
    assert piped(url, "Hello", "你好", "/new", "Hello", "/quit", "never", model="tuned") == [*hello, *again, *hello]
    both = piped(f"{url}#tuned", "Hello", beside="base")
    assert both == f"tuned: {said(engine, 'tuned', 'Hello')}\nbase: {said(engine, 'base', 'Hello')}".splitlines()
    assert piped(url, "Hello", untuned=True) == said(engine, "base", "Hello").splitlines()


def test_a_folder_and_an_endpoint_stand_side_by_side(
    tuned: Path, engine: Engine, stub: Callable[..., Stub], piped: Callable[..., list[str]]
) -> None:
    there = stub(["from ", "afar", ""], models=("far",))
    mine = said(engine, "tuned", "Hello")
    assert piped(str(tuned), "Hello", beside=there.url) == f"tuned: {mine}\nfar: from afar".splitlines()
    assert piped(there.url, "Hello", beside=str(tuned)) == f"far: from afar\ntuned: {mine}".splitlines()


def test_an_endpoint_gets_the_dialogue_the_settings_and_the_key(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch, piped: Callable[..., list[str]]
) -> None:
    there = stub(["你好，世", "界 🌍", ""])
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    assert piped(there.url, "早上好", "ещё", model="one", system="简短") == ["你好，世界 🌍"] * 2
    assert there.seen[1]["messages"] == [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": "早上好"},
        {"role": "assistant", "content": "你好，世界 🌍"},
        {"role": "user", "content": "ещё"},
    ]
    asked = {key: value for key, value in there.seen[0].items() if key != "messages"}
    assert asked == {"model": "one", "temperature": 0.0, "max_tokens": 12, "seed": 0, "stream": True}
    assert there.headers[0]["Authorization"] == "Bearer second"
    monkeypatch.setenv("LUTHIER_API_KEY", "first")
    piped(there.url, "a", model="one")
    assert there.headers[-1]["Authorization"] == "Bearer first"


def test_an_answer_that_breaks_off_is_no_answer(
    stub: Callable[..., Stub], piped: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for plan, what in (
        (["half an ans", None], "the answer broke off"),
        ([None], "no answer came"),
        (["half", b"data: {no json}\n\n", ""], "the answer broke off"),
        (["half", b'data: {"error": {"message": "the model failed"}}\n\n'], "the model failed"),
    ):
        there = stub(plan)
        with pytest.raises(LuthierError, match=what) as caught:
            piped(there.url, "Hello", "never asked", model="one")
        assert there.url in str(caught.value) and len(there.seen) == 1
        if plan[0]:
            assert str(plan[0]) in capsys.readouterr().out, "what came is shown"


def test_beside_one_that_breaks_off_the_other_answers(
    stub: Callable[..., Stub], capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = stub(["all of it", ""]), stub(["half", None])
    with pytest.raises(LuthierError, match="broke off"):
        talk(f"{bad.url}#one", beside=f"{good.url}#one", prompt="Hello")
    assert capsys.readouterr().out == "1: one: half\n2: one: all of it\n"


def test_a_busy_endpoint_is_asked_again(
    stub: Callable[..., Stub], piped: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    busy = (429, {"retry-after": "0"}, {"error": {"message": "too many"}})
    there = stub(busy, busy, ["at last", ""])
    lines = piped(there.url, "Hello", model="one")
    assert lines[-1] == "at last" and len(there.seen) == 3 and sum("is busy; retrying" in line for line in lines) == 2
    there = stub(busy)
    with pytest.raises(InputError, match=r"is busy \(HTTP 429: too many\)"):
        piped(there.url, "Hello", model="one")
    assert len(there.seen) == 4


def test_what_an_endpoint_refuses_is_reported_with_the_fix(
    url: str, stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(given: str, model: str | None = "one", **options: Any) -> InputError:
        with pytest.raises(InputError) as caught:
            talk(given, model=model, prompt="Hello", **options)
        return caught.value

    error = refused(url, "tuned")
    assert "requires an API key (HTTP 401" in error.message and "export LUTHIER_API_KEY" in error.fix
    monkeypatch.setenv("LUTHIER_API_KEY", "wrong-word")
    error = refused(url, "tuned")
    assert "rejects the key in LUTHIER_API_KEY" in error.message and "wrong-word" not in str(error)
    monkeypatch.setenv("LUTHIER_API_KEY", "hidden-word")
    assert "there is no model 'tund' at" in refused(url, "tund").message
    assert "there are: base, tuned" in refused(url, "tund").message
    error = refused(url, None)
    assert "which model? there are: base, tuned" in error.message and error.fix == "--model NAME"
    assert f"such addresses end in /v1: {url}" in refused(url.removesuffix("/v1")).message
    assert "refused the request (HTTP 400" in refused(url, "tuned", sampling=SamplingParams(temperature=3)).message
    echo = stub((500, {}, {"error": {"message": "key hidden-word is odd"}}))
    assert "HTTP 500: key *** is odd" in refused(echo.url).message, "the key is never shown"
    away = stub((307, {"location": "http://elsewhere.example/v1"}, {}))
    assert "redirects to http://elsewhere.example/v1" in refused(away.url).message
    assert "cannot be reached: Connection refused" in refused("http://127.0.0.1:9/v1").message
    assert "would be sent to far.example unencrypted" in refused("http://far.example/v1").message
    assert "is not a valid endpoint address" in refused("http://me:secret@127.0.0.1/v1").message


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--model", "x"], "--model belongs to an endpoint"),
        (["--untuned", "--beside", "base"], "--untuned and --beside"),
        (["--beside", "nowhere"], "nowhere does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_go_together_are_refused(
    options: list[str], what: str, tuned: Path, tmp_path: Path
) -> None:
    done = luthier("chat", tuned, "--prompt", "a", *options, cwd=tmp_path)
    assert done.returncode == 2 and what in done.stderr and "Traceback" not in done.stderr


def test_an_endpoint_needs_no_torch(stub: Callable[..., Stub]) -> None:
    there = stub(["light", ""])
    code = (
        "import sys; from luthier.cli.terminal.chat import talk; "
        f"talk({there.url!r}, model='one', prompt='a'); print(*{{'torch', 'transformers'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "light\n\n"


class Person:
    """Somebody at a terminal so many columns wide."""

    def __init__(self, *arguments: str, columns: int) -> None:
        self.text = ""
        self.process, self.handle = pty.fork()
        if self.process == 0:
            os.environ.update(COLUMNS=str(columns), LINES="24", TERM="xterm", PYTHONUTF8="1")
            os.environ.pop("NO_COLOR", None)
            os.execv(sys.executable, [sys.executable, "-m", "luthier", "chat", *arguments])

    def reads(self, text: str, seconds: float = 40) -> str:
        """All that was shown up to and with this text."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.handle], [], [], 0.2)[0]:
                self.text += os.read(self.handle, 65536).decode(errors="replace")
        before, self.text = self.text.split(text, 1)
        return before + text

    def types(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def ends(self, seconds: float = 40) -> int:
        """The exit code, once it has ended; it is killed where it does not."""
        end = time.monotonic() + seconds
        while True:
            if time.monotonic() > end:
                os.kill(self.process, signal.SIGKILL)
                break
            if not select.select([self.handle], [], [], 0.2)[0]:
                continue
            try:
                if not os.read(self.handle, 65536):
                    break
            except OSError:  # the terminal is gone with the process
                break
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.handle)
        return code


def test_a_wide_terminal_shows_two_columns_and_a_narrow_one_turns(stub: Callable[..., Stub]) -> None:
    there = stub(["你好", "，世界", ""])
    for columns, wide in ((120, True), (70, False)):
        person = Person(f"{there.url}#one", "--beside", "two", columns=columns)
        person.reads("you:")
        person.types("早上好\n")
        shown = person.reads("you:")
        assert there.seen[-1]["messages"] == [{"role": "user", "content": "早上好"}]
        beside = [line for line in shown.splitlines() if line.count("你好，世界") == 2]
        assert bool(beside) == wide and shown.count("你好，世界") >= 2, shown
        person.types("/new\n")
        person.reads("a new conversation")
        person.reads("you:")
        person.types("/help\n")
        person.reads("/new starts a new conversation")
        person.reads("you:")
        person.types("/hlep\n")
        person.reads("did you mean '/help'?")
        person.reads("you:")
        person.types("/quit\n")
        assert person.ends() == 0


def test_ctrl_c_stops_an_answer_and_an_error_ends_no_dialogue(stub: Callable[..., Stub]) -> None:
    there = stub(["slow", *[piece for _ in range(100) for piece in (0.2, "ly")]], ["half", None], ["whole", ""])
    person = Person(f"{there.url}#one", columns=80)
    person.reads("you:")
    person.types("first\n")
    person.reads("slowly")
    person.types("\003")
    person.reads("you:")
    person.types("second\n")
    assert "the answer broke off" in person.reads("you:").replace("\r\n", " ")
    person.types("third\n")
    person.reads("whole")
    person.reads("you:")  # a ctrl-D before the prompt stands would be lost
    assert [message["content"] for message in there.seen[-1]["messages"]] == ["third"], "what failed is forgotten"
    person.types("\004")
    assert person.ends() == 0


def test_an_answer_cannot_move_the_cursor(stub: Callable[..., Stub]) -> None:
    there = stub(["a\x1b[2J\x1b]0;title\x07b\tc\nd", ""])
    person = Person(f"{there.url}#one", columns=80)
    person.reads("you:")
    person.types("hi\n")
    shown = person.reads("you:")
    assert "\x1b[2J" not in shown and "\x1b]0" not in shown and "a\ufffd[2J" in shown
    os.kill(person.process, signal.SIGTERM)
    person.ends()
