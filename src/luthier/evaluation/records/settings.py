"""The block `evaluate` of a recipe."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from luthier.core.registry import AUTO, Config, Count

QUESTION = Path(__file__).with_name("judge_question.txt").read_text(encoding="utf-8").rstrip("\n")


class JudgeConfig(Config):
    """A model that grades answers from 0 to 10, behind any endpoint that speaks OpenAI's chat completions."""

    url: str
    """Address including the version, for example http://localhost:8000/v1. Prompts, answers and references go there."""
    model: str
    """Name of the model, as the endpoint knows it."""
    key_env: str = ""
    """Environment variable with the API key; the key itself is in no recipe. Empty sends none."""
    question: str = QUESTION
    """Prompt for the judge; {prompt}, {reference} and {answer} stand for the texts, [[5]] for the grade it gives."""
    max_tokens: Count = 512
    """Longest answer of the judge, in tokens; models that think first need more."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds to wait for one answer."""
    retries: Annotated[int, Field(ge=0, le=100)] = 2
    """How often a failed request is sent again."""
    at_once: Annotated[int, Field(gt=0, le=1024)] = 4
    """Parallel requests."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address, for example http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must have no user, password or query: a key comes from the variable that key_env names")
        return value.rstrip("/")

    @field_validator("question")
    @classmethod
    def _shows_the_answer(cls, value: str) -> str:
        if "{answer}" not in value:
            raise ValueError("must contain {answer}, where the answer goes")
        return value


class EvaluateConfig(Config):
    """What is evaluated on the held-out rows, before and after training."""

    before: bool = True
    """Evaluate the untouched base first, so that the gain is known."""
    rows: Count | None = None
    """Evaluate loss and labels on at most this many held-out rows; none takes all."""
    generate: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100
    """Generate answers to this many held-out prompts, once for all scores of answers (task chat); 0 skips it."""
    max_new_tokens: Count = 64
    """Longest generated answer, in tokens; how many were cut there is reported."""
    samples: Annotated[int, Field(ge=0, le=100)] = 2
    """Answer so many validation prompts at each evaluation in training (task chat), into samples.jsonl; 0: none."""
    batch_size: Count = 64
    """Most rows that are measured together."""
    batch_tokens: Count = 16_384
    """Most tokens in a forward pass, including padding and answers; a longer row is a pass of its own."""
    metric: Annotated[str | None, AUTO] = None
    """Primary metric, which ranks runs and picks the examples to show; auto: the first there is of pass_rate, judge,
    pearson, accuracy, rouge_l (answers of more than a few words), exact_match (short ones), perplexity."""
    check: str | None = None
    """A Python file of yours with check(prompt, answer, reference) -> bool or a number from 0 to 1: score pass_rate.
    It runs in this process, as any code of yours. none: no such score."""
    judge: JudgeConfig | None = None
    """A model that grades the answers; none: no judge."""
    forgetting: bool = True
    """Evaluate bits per byte on 60 short general texts that come with Luthier, before and after."""
    cache: bool = True
    """Cache the base's scores and a judge's grades for the next run on the same base, rows and settings."""
    examples: Annotated[int, Field(ge=0, le=50)] = 8
    """How many of the worst regressions and of the best gains to show as text."""
