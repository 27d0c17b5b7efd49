"""Every prompt is read once: its losses, what is scored behind it and its greedy answer come from one pass.

What the prompts of a batch have in common is read once for all of them, into a cache whose rows then go on with the
rest of each prompt. The continuations to score follow in the same pass as a tree: each token sees the prompt and the
tokens that lead to it (as candidates of speculative decoding do: Miao et al. 2023, arXiv 2305.09781), so labels that
begin alike share their beginning, and a reference that is one of the labels costs nothing. The greedy answer follows
the most likely tokens down that tree; only where it leaves the tree, it is generated token by token, from the same
cache. Such rows step together, and each leaves the batch as it ends.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from luthier.rendering.row import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

PASS_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens of a pass: enough for fast products, and few enough to be rows of nearly one length, with little padding."""
LOGITS_BYTES = 2**26
"""Most bytes of logits, in float32, that are there at a time."""


@dataclass(slots=True)
class PromptQuery:
    """A prompt, and what is asked of the model about it."""

    prompt: list[int]
    """Token ids, at least one."""
    labels: list[int]
    """As long: the tokens of it that count for the loss, such as earlier answers; IGNORED elsewhere."""
    continuations: list[list[int]] = field(default_factory=list)
    """Token ids to score behind the prompt; none is empty."""
    answers: bool = False
    """Whether a greedy answer is wanted."""


@dataclass(frozen=True, slots=True)
class PromptReading:
    """What the model makes of a question; losses are sums of -log p in nats."""

    loss: float
    """Of the prompt's own labels."""
    continuations: list[float]
    answer: list[int] | None
    """Token ids with the end token, if it came; None where no answer is wanted."""


class Tree:
    """Continuations that share what they begin with.

    Place 0 is the prompt's last token, the others are tokens behind it. The last token of a continuation is a target
    and never an input, so it has no place.
    """

    def __init__(self, continuations: Sequence[Sequence[int]]) -> None:
        self.children: dict[tuple[int, int], int] = {}
        """(place, token) -> place."""
        self.parents = [0]
        self.paths: list[list[int]] = []
        """For each continuation the places that predict its tokens."""
        for tokens in continuations:
            path = [0]
            for token in tokens[:-1]:
                new = len(self.parents)
                path.append(self.children.setdefault((path[-1], token), new))
                if path[-1] == new:
                    self.parents.append(path[-2])
            self.paths.append(path)
        self.tokens = [token for _, token in self.children]
        self.depths = [0]
        for parent in self.parents[1:]:
            self.depths.append(self.depths[parent] + 1)

    @cached_property
    def branches(self) -> bool:
        """Whether a place does not follow the one before it."""
        return self.depths[-1] != len(self.tokens)

    @cached_property
    def sees(self) -> "Tensor":
        """[places - 1, places - 1] of bools: whether a token sees another one, as it does itself and its ancestors."""
        import torch

        seen = torch.eye(len(self.parents), dtype=torch.bool)
        for place, parent in enumerate(self.parents[1:], 1):
            seen[place] |= seen[parent]
        return seen[1:, 1:]


def read(
    model: Any,
    questions: Sequence[PromptQuery],
    ends: Collection[int],
    most: int = 0,
    sizes: list[int] | None = None,
) -> list[PromptReading]:
    """The readings of a batch. An answer has at most `most` tokens, and ends with one of `ends`.

    Appends the bytes of cache for a token to `sizes`. Raises whatever a model raises that cannot be read like this.
    """
    with _row_cached(model) as (base, head):
        batch = _Batch(base, head, questions, most)
        losses, best = batch.prompts()
        if sizes is not None:
            sizes.append(batch.cache.bytes_per_token())
        answers = batch.answers(best, ends) if most else {}
    return [PromptReading(*losses[i], answers.get(i)) for i in range(len(questions))]


@contextmanager
def _row_cached(model: Any) -> Iterator[tuple[Any, Any]]:
    """The model without its tuner's wrapper, and its head; inside, it returns hidden states and attends by rows."""
    from luthier.kernels.cross_entropy import without_head
    from luthier.kernels.kv_cache import NAME

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base.config, "is_encoder_decoder", False):
        raise NotImplementedError("an encoder-decoder reads its prompt elsewhere")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise NotImplementedError("the wrapper puts virtual tokens in front")
    with without_head(base) as head:
        if head is None:
            raise NotImplementedError("logits that are not a linear head's")
        before = base.config._attn_implementation
        base.set_attn_implementation(NAME)
        try:
            yield base, head
        finally:
            base.set_attn_implementation(before)


class _Batch:
    """Questions of similar length. Row i of the cache is that of question i, until answers end."""

    def __init__(self, base: Any, head: Any, questions: Sequence[PromptQuery], most: int) -> None:
        from luthier.kernels.kv_cache import RowCache

        self.base, self.head, self.questions, self.most = base, head, questions, most
        self.device = head.weight.device
        self.cache = RowCache(base.config.get_text_config().num_hidden_layers)
        known: dict[int, Tree] = {}  # mostly one list of labels for all
        for each in questions:
            if id(each.continuations) not in known:
                known[id(each.continuations)] = Tree(each.continuations)
        self.trees = [known[id(each.continuations)] for each in questions]
        # At least its last token is a prompt's own, and whatever predicts one of its targets.
        own = [next((t - 1 for t, label in _targets(each)), len(each.prompt) - 1) for each in questions]
        self.common = min(_common_tokens([each.prompt for each in questions]), *own)

    def prompts(self) -> tuple[list[tuple[float, list[float]]], list[list[int]]]:
        """(loss, losses of the continuations) of each question, and its most likely token behind each place."""
        common, losses, best = self.common, [], []
        rows = [each.prompt[common:] + tree.tokens for each, tree in zip(self.questions, self.trees, strict=True)]
        self.cache.reserve(len(rows), common + max(map(len, rows)) + self.most)
        if common:
            self._forward(0, [0], [self.questions[0].prompt[:common]])
            self.cache.repeat(len(rows), common)
        for first, stop in passes([len(row) for row in rows], self.device.type):
            hidden = self._forward(first, [common] * (stop - first), rows[first:stop], self.trees[first:stop])
            for found, likely in self._scores(first, stop, hidden):
                losses.append(found)
                best.append(likely)
        return losses, best

    def _scores(self, first: int, stop: int, hidden: "Tensor") -> Iterator[tuple[tuple[float, list[float]], list[int]]]:
        """What `prompts` returns of the questions from `first` to `stop`, from their hidden states [B, T, H]."""
        import torch

        wanted: list[tuple[int, int]] = []  # (row, column) of each hidden state that predicts something
        numbers: list[int] = []  # for each target the place of its hidden state in `wanted`
        targets: list[int] = []
        own = list(zip(self.questions[first:stop], self.trees[first:stop], strict=True))
        begins = []  # where the places of a question begin in `wanted`
        for row, (question, tree) in enumerate(own):
            for at, label in _targets(question):
                numbers.append(len(wanted))
                targets.append(label)
                wanted.append((row, at - 1 - self.common))
            begins.append(len(wanted))
            last = len(question.prompt) - 1 - self.common
            wanted += [(row, last + place) for place in range(len(tree.parents))]
            for path, tokens in zip(tree.paths, question.continuations, strict=True):
                numbers += [begins[-1] + place for place in path]
                targets += tokens
        where = torch.tensor(wanted, device=self.device)
        losses, best = score_targets(self.head, hidden[where[:, 0], where[:, 1]], numbers, targets)
        each = iter(losses)
        for (question, tree), begin in zip(own, begins, strict=True):
            prompt = sum(next(each) for _ in _targets(question))
            behind = [sum(next(each) for _ in path) for path in tree.paths]
            yield (prompt, behind), best[begin : begin + len(tree.parents)]

    def answers(self, best: Sequence[Sequence[int]], ends: Collection[int]) -> dict[int, list[int]]:
        """The answer of each question that wants one."""
        made: dict[int, list[int]] = {}
        running: list[int] = []  # numbers of the questions whose answers go on; the first is row 0 of the cache
        starts: list[int] = []  # tokens that each of them has in the cache
        for row, (question, tree) in enumerate(zip(self.questions, self.trees, strict=True)):
            if not question.answers:
                continue
            places, answer = [0], [best[row][0]]
            while answer[-1] not in ends and len(answer) < self.most and (places[-1], answer[-1]) in tree.children:
                places.append(tree.children[places[-1], answer[-1]])
                answer.append(best[row][places[-1]])
            made[row] = answer
            if answer[-1] not in ends and len(answer) < self.most:
                begin = len(question.prompt) - 1
                self.cache.move(row, len(running), begin + 1, [begin + place for place in places[1:]])
                running.append(row)
                starts.append(begin + len(places))
        while running:
            hidden = self._forward(0, starts, [[made[row][-1]] for row in running])
            tokens = score_targets(self.head, hidden[:, -1], [], [])[1]
            for place in reversed(range(len(running))):
                row = running[place]
                made[row].append(tokens[place])
                starts[place] += 1
                if tokens[place] in ends or len(made[row]) == self.most:  # the last row takes its place
                    if place < len(running) - 1:
                        self.cache.move(len(running) - 1, place, starts[-1])
                    running[place], starts[place] = running[-1], starts[-1]
                    running.pop()
                    starts.pop()
        return made

    def _forward(self, first: int, starts: list[int], rows: list[list[int]], trees: Sequence[Tree] = ()) -> "Tensor":
        """Hidden states [B, T, H] of `rows`, which follow `starts` tokens of the cache's rows from index `first` on.

        Each row ends with the tokens of its tree, if there are trees.
        """
        import torch

        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)
        mask = self.cache.prepare(first, starts, width, self.device)  # [B, 1, T, longest]
        ends = torch.tensor([[start + len(row) - 1] for start, row in zip(starts, rows, strict=True)])
        positions = self.cache.positions.minimum(ends.to(self.device))  # a model may have no position for padding
        for row, tree in enumerate(trees):
            if tree.branches:
                begin = len(rows[row]) - len(tree.tokens)
                own, there = slice(begin, len(rows[row])), slice(starts[row] + begin, starts[row] + len(rows[row]))
                mask[row, 0, own, there] = tree.sees.to(self.device)
                positions[row, own] = positions[row, begin - 1] + torch.tensor(tree.depths[1:], device=self.device)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        hidden: Tensor = self.base(**inputs, past_key_values=self.cache, use_cache=True).logits
        return hidden


def passes(lengths: Sequence[int], device: str) -> Iterator[tuple[int, int]]:
    """Cut a batch of rows into passes of at most PASS_TOKENS padded tokens; a longer row is one of its own."""
    first, most = 0, PASS_TOKENS.get(device, PASS_TOKENS["cuda"])
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or max(lengths[first : stop + 1]) * (stop + 1 - first) > most:
            yield first, stop
            first = stop


def _common_tokens(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with."""
    first, last = min(prompts), max(prompts)
    pairs = enumerate(zip(first, last, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(last)))


def _targets(question: PromptQuery) -> Iterator[tuple[int, int]]:
    """(index, token) of the prompt's own targets; the first token of a row is none."""
    return ((at, label) for at, label in enumerate(question.labels) if at and label != IGNORED)


def score_targets(
    head: Any, hidden: "Tensor", numbers: Sequence[int], targets: Sequence[int]
) -> tuple[list[float], list[int]]:
    """-log p of `targets`, each behind the hidden state of that number, and the most likely token behind each state."""
    import torch

    weight, best = head.weight, []
    where, right = (torch.tensor(each, dtype=torch.long, device=hidden.device) for each in (numbers, targets))
    losses = torch.zeros(len(numbers), device=hidden.device)
    size = max(1, LOGITS_BYTES // (4 * len(weight)))
    for start in range(0, len(hidden), size):
        states = hidden[start : start + size].to(weight.dtype)
        logits = torch.nn.functional.linear(states, weight, head.bias).float()
        best.append(logits.argmax(-1))
        here = (where >= start) & (where < start + size)
        rows = where[here] - start
        losses[here] = logits.logsumexp(-1)[rows] - logits[rows, right[here]]
    return losses.tolist(), torch.cat(best).tolist()
