"""Text in pieces is the text as a whole, and tokens are drawn as they should be."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.serving.engine.decoding import Detokenizer, Sampler, sample, scored
from luthier.serving.engine.requests import SamplingParams
from tests.conftest import build_tokenizer

TOKENIZER = build_tokenizer()


def pieces(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = Detokenizer(TOKENIZER, stop)
    made = []
    for token in ids:
        made.append(text.add(token))
        if text.stopped:
            return made, True
    return [*made, text.finish()], False


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_pieces_join_to_the_whole(said: str) -> None:
    ids = list(TOKENIZER(said)["input_ids"])
    whole = TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    made, _ = pieces(ids)
    assert "".join(made) == whole
    assert not any("\ufffd" in piece for piece in made[:-1]) or "\ufffd" in whole


def test_half_a_character_waits_for_its_other_half() -> None:
    ids = list(TOKENIZER("😀好")["input_ids"])
    made, _ = pieces(ids)
    assert len(ids) > 2 and "" in made and "".join(made) == "😀好"


def test_bytes_that_never_become_a_character_do_not_pile_up() -> None:
    half = [TOKENIZER.convert_tokens_to_ids("ä")]  # the byte 0xE4, which begins a character
    text = Detokenizer(TOKENIZER)
    shown = "".join(text.add(half[0]) for _ in range(100))
    assert len(shown) > 80 and set(shown) == {"\ufffd"}


@settings(max_examples=300, deadline=None)
@given(st.text("ab好 ", max_size=30), st.lists(st.text("ab好 ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_an_answer_ends_before_the_first_stop_text_and_nothing_of_it_is_shown(said: str, stop: list[str]) -> None:
    ids = list(TOKENIZER(said)["input_ids"])
    made, stopped = pieces(ids, tuple(stop))
    # The first that is whole ends the answer; of several that one token completes, the one that begins first.
    grown = [TOKENIZER.decode(ids[: n + 1]) for n in range(len(ids))]
    reached = next((text for text in grown if any(each in text for each in stop)), None)
    expected = said if reached is None else reached[: min(reached.find(each) for each in stop if each in reached)]
    assert "".join(made) == expected and stopped == (reached is not None)


def test_what_may_be_the_beginning_of_a_stop_text_is_held_back() -> None:
    text = Detokenizer(TOKENIZER, ("ab!",))
    shown = "".join(text.add(token) for token in TOKENIZER("x ab")["input_ids"])
    assert shown == "x " and text.finish() == "ab"


def test_the_same_seed_draws_the_same() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    drawn = [
        [sampler.sample(logits) for _ in range(20)]
        for sampler in (Sampler(SamplingParams(1.0, seed=7)) for _ in range(2))
    ]
    other = Sampler(SamplingParams(1.0, seed=8))
    assert drawn[0] == drawn[1] != [other.sample(logits) for _ in range(20)]
    free = [[Sampler(SamplingParams(1.0)).sample(logits) for _ in range(20)] for _ in range(2)]
    assert free[0] != free[1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_by_their_share(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    sampler, times = Sampler(SamplingParams(temperature, seed=1)), 20_000
    seen = Counter(sampler.sample(logits) for _ in range(times))
    for token, share in enumerate(torch.softmax(logits / temperature, -1).tolist()):
        assert seen[token] / times == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / times))


@pytest.mark.parametrize("size", [4, 2000])
def test_top_p_keeps_the_smallest_set_with_that_share(size: int) -> None:
    shares = torch.full((size,), 1e-9)
    shares[:4] = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = shares.log()
    for most, kept in ((0.4, {0}), (0.49, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2})):
        sampler = Sampler(SamplingParams(1.0, top_p=most, seed=2))
        assert {sampler.sample(logits) for _ in range(400)} == kept, most
    even = Sampler(SamplingParams(1.0, top_p=0.9, seed=3))  # a nucleus wider than what is looked at first
    assert len({even.sample(torch.zeros(2000)) for _ in range(3000)}) > 1200


def test_penalties_keep_from_saying_it_again() -> None:
    logits = torch.tensor([1.0, 0.9, 0.8])
    sampler = Sampler(SamplingParams(0.0, frequency_penalty=0.3))
    assert [sampler.sample(logits) for _ in range(5)] == [0, 1, 2, 0, 1]
    plain, present = Sampler(SamplingParams(0.0)), Sampler(SamplingParams(0.0, presence_penalty=1.0))
    assert sample(logits.expand(2, 3), [plain, present]) == [0, 0]
    assert sample(logits.expand(2, 3), [plain, present]) == [0, 1]


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    found = scored(logits, 1, 2)
    expected = torch.log_softmax(logits, -1)
    assert found.logprob == pytest.approx(float(expected[1]))
    assert [token for token, _ in found.top] == [0, 1] and found.top[0][1] == pytest.approx(float(expected[0]))
