"""A judge: another model grades each generated answer from 0 to 10, over any endpoint that speaks OpenAI's protocol.

Off unless the recipe has `evaluate.judge`. Each answer is graded alone beside the data's answer (Zheng et al. 2023,
arXiv 2306.05685, section 3.1: single answer grading with a reference), so there is no first or second place to favour;
a judge may still favour length, or its own style. The score is the mean grade. What cannot be had, or holds no grade,
is counted and left out, and stops nothing. Verdicts are kept, so the same answer is not sent twice.

The key comes from the environment variable that `key_env` names, is sent to that one address, never follows a redirect,
and is written nowhere.
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from luthier.core.errors import InputError
from luthier.core.strict_json import to_json
from luthier.evaluation.metrics.base import Evaluation, MetricFunction, mean_of
from luthier.evaluation.records.context import EvalContext, Record
from luthier.evaluation.records.generate import answered, asks
from luthier.evaluation.records.settings import JudgeConfig

_GRADE = re.compile(r"\[\[\s*(10|[0-9])(?:\.0+)?\s*\]\]")
MOST_BYTES = 2**22
"""Of a response; more is no verdict."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Judge(Evaluation):
    """Mean grade that another model gives the answers."""

    def applies(self, subject: EvalContext) -> bool:
        return asks(subject) and subject.settings.judge is not None

    def measure(self, subject: EvalContext) -> list[Record]:
        settings = subject.settings.judge
        assert settings is not None
        records = answered(subject)
        questions = {
            i: _fill(settings.question, subject.examples[i].messages[:-1], record)
            for i, record in enumerate(records)
            if record
        }
        decides = {
            "url": settings.url,
            "model": settings.model,
            "max_tokens": settings.max_tokens,
            "questions": sorted(set(questions.values())),
        }
        known: dict[str, int] = dict(subject.memory.recall("judge", decides) or {})
        asked = [question for question in dict.fromkeys(questions.values()) if question not in known]
        if asked:
            subject.progress.stage(
                f"asking {settings.model} at {urlsplit(settings.url).hostname} about {len(asked)} answers"
            )
            known |= self._ask(subject, settings, asked)
            subject.memory.keep("judge", decides, known)
        elif questions:
            subject.progress.note("the judge's verdicts are those it gave before on the same answers")
        return [{"judge": known[questions[i]]} if questions.get(i) in known else {} for i in range(len(records))]

    def _ask(self, subject: EvalContext, settings: JudgeConfig, asked: list[str]) -> dict[str, int]:
        """The grades that were given. Failures are counted in the subject and told."""
        key = key_of(settings)
        found: dict[str, int] = {}
        failures: list[str] = []
        stop = threading.Event()
        pool = ThreadPoolExecutor(settings.at_once)
        try:
            verdicts = pool.map(lambda each: verdict_on(each, settings, key, stop), asked)
            for done, (question, verdict) in enumerate(zip(asked, verdicts, strict=True), 1):
                if isinstance(verdict, int):
                    found[question] = verdict
                else:
                    failures.append(verdict)
                subject.progress.measured("verdicts", done, len(asked))
        finally:  # a signal must not wait for requests that were not sent yet
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            subject.counts["failed verdicts"] = subject.counts.get("failed verdicts", 0) + len(failures)
            subject.progress.warn(f"{len(failures)} of {len(asked)} verdicts could not be had: {failures[0]}")
        return found

    def metrics(self) -> dict[str, MetricFunction]:
        return {"judge": mean_of("judge")}


def _fill(question: str, turns: Any, record: Record) -> str:
    """The question with the texts in place, in one pass: a text that holds {answer} is not filled in again."""
    prompt = "\n".join(f"{turn.role}: {turn.said}" for turn in turns) if len(turns) > 1 else turns[-1].said
    texts = {"prompt": prompt, "answer": record["said"], "reference": record["answer"]}
    return re.sub(r"\{(prompt|answer|reference)\}", lambda found: texts[found[1]], question)


def key_of(settings: JudgeConfig) -> str:
    """The key. InputError where its variable is empty, or the key would travel in clear."""
    if not settings.key_env:
        return ""
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise InputError(
            f"evaluate.judge: the environment variable {settings.key_env} is not set",
            fix=f"export {settings.key_env}=...",
        )
    parts = urlsplit(settings.url)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise InputError(
            f"evaluate.judge.url: the key would travel to {parts.hostname} unencrypted",
            fix="an https address, or no key_env for a server that needs none",
        )
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key and the texts to an address that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def verdict_on(question: str, settings: JudgeConfig, key: str, stop: threading.Event) -> int | str:
    """The grade, or why there is none. The key stands in no such reason."""
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": settings.max_tokens,
    }
    request = urllib.request.Request(
        f"{settings.url}/chat/completions", to_json(body).encode(), {"Content-Type": "application/json"}
    )
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    opener = urllib.request.build_opener(_NoRedirect)
    why = ""
    for attempt in range(settings.retries + 1):
        if attempt and stop.wait(min(8.0, 0.5 * 2**attempt)):
            break
        try:
            with opener.open(request, timeout=settings.timeout) as response:
                said = json.loads(response.read(MOST_BYTES))["choices"][0]["message"]["content"]
            grades = _GRADE.findall(str(said))
            return int(grades[-1]) if grades else "the judge's answer ends with no grade such as [[5]]"
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code}"
            error.close()
            if error.code < 500 and error.code not in (408, 429):  # asking again would not help
                break
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            reason = getattr(error, "reason", None) or error
            why = type(error).__name__ if isinstance(error, KeyError | IndexError | TypeError) else str(reason)[:200]
    return why.replace(key, "***") if key else why
