"""A judge: another model grades each generated answer from 0 to 10, over any endpoint that speaks OpenAI's protocol.

Each answer is graded alone beside the data's answer (Zheng et al. 2023, arXiv 2306.05685, section 3.1: single answer
grading with a reference), so there is no first place to favor; a judge may still favor length, or its own style. The
score is the mean grade. Requests that fail, and responses without a grade, are counted and left out, and stop nothing.
The key is sent to the one address, never follows a redirect, and is written nowhere.
"""

import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import urlsplit

from luthier.core.endpoint import CONNECTION_ERRORS, is_loopback, open_url
from luthier.core.errors import InputError
from luthier.evaluation.metrics.base import Evaluation, Metric, Table, mean_of
from luthier.evaluation.records.context import EvalContext, Record, answered, asks
from luthier.evaluation.records.settings import EvaluateConfig, JudgeConfig

_GRADE = re.compile(r"\[\[\s*(10|[0-9])(?:\.0+)?\s*\]\]")
MOST_BYTES = 2**22
"""Largest response that is read."""


class Judge(Evaluation):
    """Mean grade that another model gives the answers."""

    table: ClassVar[Table] = {"judge": Metric(mean_of("judge"), rank=1, scale="0 to 10")}

    def applies(self, context: EvalContext) -> bool:
        return asks(context) and context.settings.judge is not None

    def check_settings(self, settings: EvaluateConfig) -> None:
        if settings.judge is not None:
            key_of(settings.judge)

    def measure(self, context: EvalContext) -> list[Record]:
        settings = context.settings.judge
        assert settings is not None
        pairs, text = zip(context.examples, answered(context), strict=True), settings.question
        questions = [_fill(text, example.messages[:-1], record) if record else "" for example, record in pairs]
        asked = [question for question in dict.fromkeys(questions) if question]
        decides = settings.model_dump(include={"url", "model", "max_tokens"}) | {"questions": sorted(asked)}
        known: dict[str, int] = dict(context.recall("judge", decides) or {})
        if new := [question for question in asked if question not in known]:
            host = urlsplit(settings.url).hostname
            context.progress.stage(f"asking {settings.model} at {host} about {len(new)} answers")
            known |= self._ask(context, settings, new)
            context.keep("judge", decides, known)
        elif asked:
            context.progress.note("the judge's grades are those it gave before for the same answers")
        return [{"judge": known[question]} if question in known else {} for question in questions]

    def _ask(self, context: EvalContext, settings: JudgeConfig, asked: list[str]) -> dict[str, int]:
        """The grades that were given. Failures are counted in the context and reported."""
        key, stop = key_of(settings), threading.Event()
        found: dict[str, int] = {}
        failures: list[str] = []
        pool = ThreadPoolExecutor(settings.at_once)
        try:
            grades = pool.map(lambda question: grade(question, settings, key, stop), asked)
            for question, made in zip(asked, grades, strict=True):
                if isinstance(made, int):
                    found[question] = made
                else:
                    failures.append(made)
                context.progress.measured("grades", len(found) + len(failures), len(asked))
        finally:  # a signal must not wait for requests that were not sent yet
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            context.counts["failed verdicts"] = context.counts.get("failed verdicts", 0) + len(failures)
            context.progress.warn(f"{len(failures)} of {len(asked)} grades are missing: {failures[0]}")
        return found


def _fill(question: str, turns: Any, record: Record) -> str:
    """The question with the texts in place, in one pass: a text that holds {answer} is not filled in again."""
    prompt = "\n".join(f"{turn.role}: {turn.all_text}" for turn in turns) if len(turns) > 1 else turns[-1].all_text
    texts = {"prompt": prompt, "answer": record["said"], "reference": record["answer"]}
    return re.sub(r"\{(prompt|answer|reference)\}", lambda found: texts[found[1]], question)


def key_of(settings: JudgeConfig) -> str:
    """The API key. InputError if its variable is empty, or the key would be sent unencrypted."""
    if not settings.key_env:
        return ""
    name, parts = settings.key_env, urlsplit(settings.url)
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"evaluate.judge: the environment variable {name} is not set", fix=f"export {name}=...")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        why = f"evaluate.judge.url: the key would be sent to {parts.hostname} unencrypted"
        raise InputError(why, fix="an https address, or no key_env for a server that needs none")
    return key


def grade(question: str, settings: JudgeConfig, key: str, stop: threading.Event) -> int | str:
    """The grade, or why there is none; the key is not in that text."""
    body: dict[str, Any] = {"model": settings.model, "messages": [{"role": "user", "content": question}]}
    body |= {"temperature": 0, "max_tokens": settings.max_tokens}
    why = ""
    for attempt in range(settings.retries + 1):
        if attempt and stop.wait(min(8.0, 0.5 * 2**attempt)):
            break
        try:
            with open_url(f"{settings.url}/chat/completions", body, key, settings.timeout) as response:
                text = json.loads(response.read(MOST_BYTES))["choices"][0]["message"]["content"]
            grades = _GRADE.findall(str(text))
            return int(grades[-1]) if grades else "the judge's answer does not end with a grade such as [[5]]"
        except HTTPError as error:
            why = f"HTTP {error.code}"
            error.close()
            if error.code < 500 and error.code not in (408, 429):  # asking again would not help
                break
        except (KeyError, IndexError, TypeError) as error:
            why = type(error).__name__
        except (*CONNECTION_ERRORS, ValueError) as error:
            why = str(getattr(error, "reason", None) or error)[:200]
    return why.replace(key, "***") if key else why
