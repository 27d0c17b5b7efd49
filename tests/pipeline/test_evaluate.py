"""What evaluation promises beyond its formulas: one answer for all scores, what is kept, what is told, what is refused."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.builtin import PROBE
from luthier.cli.terminal.show_result import show_result
from luthier.core.errors import ConfigError, InputError
from luthier.core.events import Progress
from luthier.core.files import read_jsonl
from luthier.pipeline.evaluate import evaluate
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from tests.conftest import alpaca_rows, luthier, review_rows, write_jsonl

FEW = ["train.steps=2", "train.batch_size=4", "evaluate.max_new_tokens=6", "evaluate.batch_size=4"]
LONG = "{i} is said by the fox and the dog in the film about the kettle"


class Notes(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)

    note = warn = stage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("luthier.pipeline.measure.WORTH", 0)
    return tmp_path / "cache"


def open_rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Say {i}.", "output": LONG.format(i=i)} for i in range(count)]


@pytest.fixture
def settings(model_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., RunConfig]:
    def make(rows: list[Any], *overrides: str, run: str = "run") -> RunConfig:
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        given = [f"model={model_folder('llama')}", f"data={file}", "data.validation=0.5", f"run={tmp_path / run}"]
        return RunConfig.load(None, [*given, *FEW, *overrides])

    return make


def test_open_answers_are_generated_once_for_all_scores(
    settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import luthier.evaluation.records.context as asking

    calls = []
    ask = asking.generate

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        return ask(*arguments, **options)

    monkeypatch.setattr(asking, "generate", count)
    result = train(settings(open_rows(24), "evaluate.generate=5", "evaluate.samples=0"))
    assert calls == [5, 5], "once the base, once the tuned model"
    assert {"exact_match", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "perplexity"} <= set(result["tuned"])
    assert result["primary_metric"] == "rouge_l" and result["tuned"]["rouge_l"]["primary_metric"]
    assert any("evaluate.max_new_tokens" in caveat for caveat in result["caveats"]), "random weights do not stop"
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    asked = [line for line in lines if "said" in line["tuned"]]
    assert len(asked) == 5 and all({"rouge_l", "bleu_counts", "exact"} <= set(line["tuned"]) for line in asked)
    assert result["examples"]["better"] + result["examples"]["worse"] + result["examples"]["same"] == 5


def test_rows_with_one_prompt_are_one_question_with_many_references(
    settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    rows = [{"instruction": f"Say {i // 3}.", "output": LONG.format(i=i)} for i in range(12)]
    held = write_jsonl(tmp_path / "held.jsonl", rows)
    train(settings(open_rows(12), f"data.validation={held}"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    asked = [line["tuned"] for line in lines if "said" in line["tuned"]]
    assert len(lines) == 12 and len(asked) == 4 and all(len(record["references"]) == 3 for record in asked)
    assert all(line["tuned"]["targets"] > 0 for line in lines), "the loss is of every row"


def test_the_base_is_measured_once_for_two_runs_and_the_hit_is_said(
    settings: Callable[..., RunConfig], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = Notes(), Notes(), Notes()
    one = train(settings(review_rows(40), "task=chat"), progress=first)
    two = train(settings(review_rows(40), "task=chat", "method=ia3", run="two"), progress=second)
    assert any(text.startswith("evaluating the base") for text in first.said)
    assert not any(text.startswith("evaluating the base") for text in second.said)
    assert any("evaluate.cache" in text for text in second.said)
    assert one["base"] == two["base"] and one["forgetting"]["all"]["base"] == two["forgetting"]["all"]["base"]
    train(settings(review_rows(40), "task=chat", "evaluate.generate=3", run="three"), progress=third)
    assert any(text.startswith("evaluating the base") for text in third.said), "other settings, other scores"
    shutil.rmtree(cache)
    monkeypatch.setattr("luthier.pipeline.measure.WORTH", 600)
    train(settings(review_rows(40), "task=chat", run="four"))
    assert not cache.exists(), "what is measured in a moment is not kept"


def test_the_cache_changes_no_score_and_the_general_texts_are_read_once_for_all_rows(
    settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.evaluation import forgetting

    read: list[int] = []
    measure_probe = forgetting.measure_probe

    def count(context: Any) -> Any:
        read.append(len(context.examples))
        return measure_probe(context)

    monkeypatch.setattr(forgetting, "measure_probe", count)

    def run(name: str, *overrides: str, rows: int = 40) -> dict[str, Any]:
        read.clear()
        made = train(settings(review_rows(rows), "task=chat", *overrides, run=name))
        return {key: made[key] for key in ("base", "tuned", "difference", "forgetting", "counts")}

    first = run("one")
    assert len(read) == 2, "the base and the tuned model"
    assert run("two") == first and len(read) == 1, "the base is known"
    assert run("three", "evaluate.cache=false") == first and len(read) == 2
    run("four", rows=48)
    assert len(read) == 1, "other rows, the same texts"
    folder = tmp_path / "other"
    shutil.copytree(settings([]).model.path, folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0x80  # another sign of one weight
    weights.write_bytes(content)
    changed = run("five", f"model={folder}")
    assert len(read) == 2 and changed["base"] != first["base"], "another base"
    assert run("six", "evaluate.before=false")["forgetting"] == {} and not read, "there is nothing to compare with"


def test_every_score_of_labels_is_measured_and_the_verdict_is_in_words(
    settings: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.evaluation.forgetting.PROBE", PROBE)  # all of it: other tests have a fifth
    config = settings(review_rows(60), "task=chat", "train.lr=1e-9")
    result = train(config)
    assert result["primary_metric"] == "accuracy" and {"mcc", "macro_f1"} <= set(result["difference"])
    assert result["difference"]["accuracy"]["verdict"] == "within noise"
    assert result["forgetting"]["all"]["difference"]["verdict"] == "within noise"
    assert result["forgetting"]["all"]["texts"] == 60
    assert set(result["forgetting"]) == {"all", "english", "chinese", "code", "arithmetic", "dialogue", "facts"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "within noise" in page and "Forgetting, on general texts" in page
    said = luthier("evaluate", tmp_path / "run", "evaluate.forgetting=false")
    assert said.returncode == 0 and "within noise" in said.stdout and "evaluate.forgetting is false" in said.stdout
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again["tuned"] == result["tuned"] and again["forgetting"] == {}


def test_a_classifier_says_why_forgetting_is_not_measured(settings: Callable[..., RunConfig]) -> None:
    result = train(settings(review_rows(40), "task=classify"))
    assert result["forgetting"] == {} and "no language-model head" in result["no_forgetting"]


def test_numbers_are_learned_and_judged_by_correlation(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    rows = [{"text": f"{'good ' * (i % 5)}film {i}", "label": (i % 5) / 2} for i in range(60)]
    overrides = ["task=regress", "method=full", "train.steps=60", "train.lr=3e-3", "train.batch_size=8"]
    result = train(settings(rows, *overrides))
    assert set(result["tuned"]) == {"pearson", "spearman", "squared_error"} and result["primary_metric"] == "pearson"
    assert result["tuned"]["pearson"]["value"] > 0.8 and result["difference"]["squared_error"]["verdict"] == "better"
    assert result["tuned"]["squared_error"]["higher_is_better"] is False
    assert "regress" in result["task"] and (tmp_path / "run" / "report.html").is_file()
    again = evaluate(tmp_path / "run")
    assert again["tuned"]["pearson"]["value"] == pytest.approx(result["tuned"]["pearson"]["value"], abs=1e-5)


def test_words_are_no_numbers_to_learn(settings: Callable[..., RunConfig]) -> None:
    rows = [{"text": f"film {i}", "label": "good" if i == 7 else str(i)} for i in range(40)]
    with pytest.raises(InputError, match=r"label 'good' is not a number"):
        train(settings(rows, "task=regress"))


CHECK = """
def check(prompt, answer, reference):
    if prompt.endswith("3."):
        raise KeyError("three")
    return len(answer) % 2 == 0
"""


def test_a_function_of_the_users_own_is_the_score_and_its_errors_are_counted(
    settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(CHECK)
    notes = Notes()
    result = train(settings(open_rows(20), f"evaluate.check={tmp_path / 'mine.py'}"), progress=notes)
    assert result["primary_metric"] == "pass_rate"
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    wrong = [line for line in lines if line["text"].endswith("3.")]
    expected = [not line["text"].endswith("3.") and len(line["tuned"]["said"]) % 2 == 0 for line in lines]
    assert wrong and all("KeyError" in line["tuned"]["check_error"] for line in wrong)
    assert [line["tuned"]["passed"] for line in lines] == [float(each) for each in expected]
    assert result["tuned"]["pass_rate"]["value"] == pytest.approx(sum(expected) / len(expected))
    assert result["counts"]["tuned"]["errors in check"] == len(wrong)
    assert any("evaluate.check raised" in text for text in notes.said)
    assert "errors in check" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "there is no file"),
        ("def chek(a, b, c): ...\n", "has no function check"),
        ("import nowhere_at_all\n", "ModuleNotFoundError"),
        ("def check(:", "SyntaxError"),
    ],
)
def test_a_check_that_cannot_work_is_told_before_anything_begins(
    settings: Callable[..., RunConfig], tmp_path: Path, text: str | None, fault: str
) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=fault):
        train(settings(open_rows(20), f"evaluate.check={tmp_path / 'mine.py'}"))
    assert not (tmp_path / "run").exists()


def test_the_score_to_rank_by_is_checked_before_training(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no score 'acuracy' \(did you mean 'accuracy'\?\)"):
        train(settings(open_rows(20), "evaluate.metric=acuracy"))
    with pytest.raises(InputError, match=r"accuracy is not measured on these rows .*\n.*one of: .*rouge_l"):
        train(settings(open_rows(20), "evaluate.metric=accuracy"))
    assert not (tmp_path / "run").exists()
    result = train(settings(open_rows(20), "evaluate.metric=chrf"))
    assert result["primary_metric"] == "chrf" and result["examples"]["by"] == "chrf"


def test_a_finished_run_changes_only_in_how_it_is_measured(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    train(settings(open_rows(20), "evaluate.generate=2"))
    with pytest.raises(InputError, match=r"cannot change: train.lr=1"):
        evaluate(tmp_path / "run", ["train.lr=1"])
    result = evaluate(tmp_path / "run", ["evaluate.generate=6", "evaluate.rows=8"])
    assert result["validation_examples"] == 8 and result["counts"]["base"]["answers"] == 6
    assert any("fewer than 20 examples" in caveat for caveat in result["caveats"])


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A server that speaks OpenAI's protocol, and grades an answer by the digits of its prompt."""
    seen = SimpleNamespace(asked=[], keys=[], fail=lambda text: 0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][0]["content"]
            seen.asked.append(text)
            seen.keys.append(self.headers.get("Authorization"))
            status = seen.fail(text)
            self.send_response(status or 200)
            if status == 302:
                self.send_header("Location", f"http://127.0.0.1:{seen.port}/elsewhere/chat/completions")
            self.end_headers()
            grade = sum(map(int, filter(str.isdigit, text.split("[End of question]")[0]))) % 11
            self.wfile.write(json.dumps({"choices": [{"message": {"content": f"Fair: [[3]]\n[[{grade}]]"}}]}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen.port = server.server_port
    seen.settings = [
        f"evaluate.judge.url=http://127.0.0.1:{seen.port}/v1",
        "evaluate.judge.model=wise",
        "evaluate.judge.key_env=JUDGE_KEY",
        "evaluate.judge.retries=0",
    ]
    monkeypatch.setenv("JUDGE_KEY", "sesame-4711")
    yield seen
    server.shutdown()
    server.server_close()


def test_a_judge_grades_each_answer_once_and_its_key_stands_nowhere(
    settings: Callable[..., RunConfig], judge: SimpleNamespace, tmp_path: Path
) -> None:
    result = train(settings(open_rows(20), *judge.settings))
    assert result["primary_metric"] == "judge" and set(judge.keys) == {"Bearer sesame-4711"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    grades = [sum(map(int, filter(str.isdigit, line["text"]))) % 11 for line in lines]
    assert [line["tuned"]["judge"] for line in lines] == grades
    assert result["tuned"]["judge"]["value"] == pytest.approx(sum(grades) / len(grades))
    asked = len(judge.asked)
    evaluate(tmp_path / "run", allow_code=True)
    assert len(judge.asked) == asked, "the verdicts are kept"
    for file in [*tmp_path.rglob("*")]:
        assert not file.is_file() or b"sesame" not in file.read_bytes(), file


def test_a_judge_that_fails_is_counted_and_a_redirect_is_not_followed(
    settings: Callable[..., RunConfig], judge: SimpleNamespace, tmp_path: Path
) -> None:
    judge.fail = lambda text: 302 if "Say 3." in text else 500 if "Say 4." in text else 0
    notes = Notes()
    held = write_jsonl(tmp_path / "held.jsonl", open_rows(6))
    result = train(settings(open_rows(20), f"data.validation={held}", *judge.settings), progress=notes)
    assert result["counts"]["tuned"]["failed verdicts"] == 2
    assert any("2 of 6 grades are missing: HTTP 302" in text for text in notes.said)
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert ["judge" in line["tuned"] for line in lines] == [True, True, True, False, False, True]
    judge.fail, before = (lambda text: 0), len(judge.asked)
    again = evaluate(tmp_path / "run", allow_code=True)
    assert again["tuned"]["judge"]["value"] == pytest.approx((0 + 1 + 2 + 3 + 4 + 5) / 6)
    assert len(judge.asked) - before <= 4, "only what failed is asked again"


def test_a_judge_without_its_key_or_with_one_in_clear_is_refused_at_the_start(
    settings: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    given = ["evaluate.judge.model=wise", "evaluate.judge.key_env=NO_SUCH_KEY"]
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        train(settings(open_rows(20), "evaluate.judge.url=https://judge.example/v1", *given))
    monkeypatch.setenv("NO_SUCH_KEY", "sesame")
    with pytest.raises(InputError, match="unencrypted"):
        train(settings(open_rows(20), "evaluate.judge.url=http://judge.example/v1", *given))
    with pytest.raises(ConfigError, match=r"evaluate\.judge\.url: must have no user, password"):
        settings(open_rows(20), "evaluate.judge.url=https://me:sesame@judge.example/v1", *given)
    assert not (tmp_path / "run").exists()


def test_a_run_without_held_out_rows_has_a_report_all_the_same(
    settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    result = train(settings(open_rows(12), "data.validation=none"))
    assert result["tuned"] == {} and result["primary_metric"] == "" and (tmp_path / "run" / "report.html").is_file()
    show_result(result)


def test_texts_may_hold_what_else_ends_a_line(settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    """One in a hundred reviews of IMDB holds U+0085, which str.splitlines cuts at, and JSON does not escape."""
    breaks = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    rows = [{"instruction": f"Say{breaks}{i}.", "output": f"A{breaks}{i}"} for i in range(8)]
    result = train(settings(rows, "evaluate.generate=4", "evaluate.forgetting=false"))
    assert result["validation_examples"] == 4 and (tmp_path / "run" / "report.html").is_file()
    assert [each["answer"][:9] for each in read_jsonl(tmp_path / "run" / "predictions.jsonl")] == [f"A{breaks}"] * 4


def test_without_the_base_there_is_nothing_to_compare_with(settings: Callable[..., RunConfig]) -> None:
    result = train(settings(open_rows(24), "evaluate.before=false"))
    assert result["tuned"]["loss"] and result["base"] == result["difference"] == result["examples"] == {}
    assert result["no_forgetting"] == "the base was not measured"
    show_result(result)


def test_short_answers_rank_by_exact_match(settings: Callable[..., RunConfig]) -> None:
    result = train(settings(alpaca_rows(40)))
    assert result["primary_metric"] == "exact_match" and "bleu" not in result["tuned"]


@pytest.mark.shared
def test_sts_b_is_read_and_its_scale_is_learned(shared: Path, tmp_path: Path) -> None:
    """Numbers from 0 to 5 with variance 2.2: the head begins near 0 (error 7.8) and must at least find the middle."""
    folder = shared / "glue" / "sts-b"
    result = train(
        RunConfig.load(
            None,
            [
                f"model={shared / 'weights' / 'stories260K-hf'}",
                f"data={folder / 'train.jsonl'}",
                f"data.validation={folder / 'dev.jsonl'}",
                "data.format.name=classification",
                "data.format.label=score",
                "data.limit=600",
                "data.validation_limit=200",
                "task=regress",
                "method=full",
                "train.epochs=1",
                "train.batch_size=16",
                "train.lr=2e-3",
                f"run={tmp_path / 'run'}",
            ],
        )
    )
    assert result["base"]["squared_error"]["value"] > 6 and result["tuned"]["squared_error"]["value"] < 3
    assert result["difference"]["squared_error"]["verdict"] == "better"
