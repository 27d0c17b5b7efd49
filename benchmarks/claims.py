"""Every measured figure of the READMEs, of docs/ and of the benchmarks' pages: what remakes it, and whether it is true.

    python -m benchmarks.claims                 # figure, place, agrees or not, date, machine and command
    python -m benchmarks.claims README.md       # of some pages
    python -m benchmarks.claims --wrong         # only those without a source, or that differ from it

Exit code 1 if a figure has no source or differs from its result. benchmarks/README.md says what counts as a figure and how
it gets a source.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, groupby
from pathlib import Path

from benchmarks import record
from benchmarks.record import ROOT, Origin, Table

PAGES = ["README.md", "README.zh-CN.md", "docs/*.md", "benchmarks/README.md", "benchmarks/*/README.md"]
BEGIN, END = re.compile(r"<!-- .*?made by (.+): begin -->"), re.compile(r"<!-- end\b.*-->")
MARK, COMMENT = re.compile(r"<!-- figures: (.*?) -->", re.DOTALL), re.compile(r"<!--.*?-->", re.DOTALL)

BYTES = {"bytes": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
SECONDS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "秒": 1.0, "分钟": 60.0}
SHARES = {"%": 0.01}
KINDS = [BYTES, SECONDS, SHARES]
RATES = "[kMGT]B/s|Gb/s|[kMGTP]?FLOP/s|tokens/s|rows/s"
UNITS = f"{RATES}|{'|'.join(unit for kind in KINDS for unit in kind)}|times|倍|×|(?<=\\d)x|points|nats"
NUMBER = r"(?>\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?)(?!\.\d)"
FIGURE = re.compile(
    rf"(?<![\w.])(?<![A-Za-z]-)(?<!\d,)[+-]?({NUMBER})(?:(?:[)*]*[ \n]?(?:useful |processor )?({UNITS})(?![A-Za-z]))|(?!\w))"
)
JOINED = re.compile(r"[\s*()]*(?:±|to|and|or|/|,|instead of|against|至|到|和|、)?[\s*()]*")
"""What stands between numbers that share the unit of the last one."""
CELL = re.compile(rf"(?:[\s*()±/<>+-]|to|of|and|{NUMBER}|{UNITS})*")
"""A cell of a table that has numbers alone."""
NO_FIGURE = re.compile(
    r"95 %(?= (?:bootstrap |confidence )?(?:CI|interval))"
    r"|\b\d{4}\.\d{5}\b"  # arXiv
    r"|(?i:\b(?:python|peft|vllm|torch|torchao|transformers|accelerate|trl|glibc|pcie|cuda|debian|version|since|before|section) )"
    r"\d+(?:\.\d+)*(?! %)"
    r"|\b\d+(?:\.\d+)+(?= or (?:newer|later)|\+)"
)
ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
WRONG, NOT_RECORDED = ("no source", "differs"), ("not recorded", "not recorded")


@dataclass(frozen=True)
class Number:
    """A number as it is printed: its digits, its value without sign, the step of its last digit, and its unit."""

    digits: str
    value: float
    step: float
    unit: str = ""

    @staticmethod
    def parse(digits: str, unit: str = "") -> Number:
        plain, _, power = digits.replace(",", "").lower().partition("e")
        step = 10.0 ** (int(power or 0) - len(plain.partition(".")[2]))
        return Number(digits, float(digits.replace(",", "")), step, unit)

    @property
    def text(self) -> str:
        return f"{self.digits} {self.unit}".strip()

    def is_of(self, result: Number) -> bool:
        """Is this what is printed of a result: the same number, rounded, in the same unit or another of its kind?"""
        mine, its = (next((kind for kind in KINDS if number.unit in kind), {}) for number in (self, result))
        if mine and its and mine is not its:
            return False
        factors = [1.0]
        if mine is its is not SHARES and mine:
            factors = [its[result.unit] / mine[self.unit]]
        elif (mine is SHARES) != (its is SHARES):
            factors.append(100.0 if mine is SHARES else 0.01)
        return any(abs(self.value - result.value * factor) <= self.step * 0.5000001 for factor in factors)


@dataclass(frozen=True)
class Mark:
    """What a comment says of the figures beside it; README.md has its parts."""

    sources: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    """Numbers of the sources, or arithmetic over them, that the figures are; none: any number of the sources."""
    also: tuple[str, ...] = ()
    set: tuple[str, ...] | None = None
    """Numbers that were not measured here; none named: all of them."""
    before: str = ""

    @staticmethod
    def parse(text: str) -> Mark:
        found: dict[str, tuple[str, ...]] = {}
        for part in text.split(";"):
            word, _, rest = " ".join(part.split()).partition(" ")
            found[word] = (rest,) if word == "before" else tuple(filter(None, rest.split(", ")))
        if unknown := set(found) - {"from", "as", "also", "set", "before"}:
            raise SystemExit(f"<!-- figures: {text} -->: there is no part `{sorted(unknown)[0]}`")
        before = "".join(found.get("before", ()))
        return Mark(found.get("from", ()), found.get("as", ()), found.get("also", ()), found.get("set"), before)


@dataclass
class Block:
    """A paragraph, list item, heading or table: lines that belong together, and the comment that speaks of them."""

    line: int
    lines: list[str] = field(default_factory=list)
    mark: Mark | None = None

    @property
    def is_table(self) -> bool:
        return self.lines[0].startswith("|")


@dataclass
class Generated:
    """What a command made in a page."""

    page: Path
    line: int
    command: str
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """One figure of a page, or all of a table that a command made."""

    figure: str
    place: str
    state: str
    origin: Origin

    @property
    def is_wrong(self) -> bool:
        return self.state.startswith(WRONG)


def split(page: Path) -> tuple[list[Block], list[Generated]]:
    """The blocks of a page, without its code, and what commands made."""
    blocks: list[Block] = []
    made: list[Generated] = []
    current: Block | None = None
    inside: Generated | None = None
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside:
            if END.match(line):
                inside = None
            else:
                inside.lines.append(line)
            continue
        fence = line.lstrip().startswith("```")
        code ^= fence
        if found := BEGIN.match(line):
            current, inside = None, Generated(page, number, found[1])
            made.append(inside)
        elif code or fence or not line.strip() or (current is None and line.startswith("    ")):
            current = None
        else:
            begins = re.match(r"\s*(?:[-*]|\d+\.) |#", line) or (current and line.startswith("|") != current.is_table)
            if current is None or (begins and not line.startswith("<!--")):
                current = Block(number)
                blocks.append(current)
            current.lines.append(line)
            current = None if line.startswith("#") else current
    _mark(blocks)
    return [block for block in blocks if not block.lines[0].startswith("#")], made


def _mark(blocks: list[Block]) -> None:
    """Give each block its comment, or else the last that stands alone in its section or in one around it."""
    sections: list[tuple[int, Mark]] = []
    level = 0
    for block in blocks:
        text = "\n".join(block.lines)
        if heading := re.match("#+", text):
            level = len(heading[0])
            sections = [each for each in sections if each[0] < level]
        found = MARK.search(text)
        block.mark = Mark.parse(found[1]) if found else sections[-1][1] if sections else None
        if block.mark and found and not COMMENT.sub("", text).strip():
            sections.append((level, block.mark))


def numbers(text: str) -> list[tuple[int, Number]]:
    """Position and number of each in a text; where several share a unit, each has it."""
    found = list(FIGURE.finditer(text))
    units = [match[2] or "" for match in found]
    for index in range(len(found) - 2, -1, -1):
        if not units[index] and JOINED.fullmatch(text, found[index].end(), found[index + 1].start()):
            units[index] = units[index + 1]
    return [(match.start(1), Number.parse(match[1], unit)) for match, unit in zip(found, units, strict=True)]


def figures(block: Block) -> Iterator[tuple[int, Number]]:
    """Line and number of each figure: with a unit, a decimal point or a spread, and in tables with a source all numbers."""
    text, mark = "\n".join(block.lines), block.mark or Mark()
    for pattern in (COMMENT, re.compile(r"`[^`]*`"), re.compile(r"(?<=\])\([^)\s]*\)"), NO_FIGURE):
        text = pattern.sub(lambda found: re.sub(r"[^\n]", "_", found[0]), text)
    whole: list[tuple[int, int]] = []
    if block.is_table and (mark.sources or mark.before):
        whole = [found.span() for found in re.finditer(r"(?<=\|)[^|\n]*(?=\|)", text) if CELL.fullmatch(found[0])]
    for at, number in numbers(text):
        spread = text[:at].endswith("± ") or re.match(r"[\d.,]+ ±", text[at:])
        decimal = "." in number.digits and "e" not in number.digits
        if number.unit or decimal or spread or number.digits in mark.also or any(a <= at < b for a, b in whole):
            yield block.line + text.count("\n", 0, at), number


def compute(expression: str, known: list[Number]) -> Number:
    """A known number, or the value of arithmetic over several."""

    def value(node: ast.expr) -> tuple[float, str]:
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            (one, unit), (other, _) = value(node.left), value(node.right)
            return ARITHMETIC[type(node.op)](one, other), unit if isinstance(node.op, ast.Add | ast.Sub) else ""
        if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float):
            raise ValueError(f"`{expression}` is not arithmetic of numbers")
        found = [number for number in known if number.value == node.value]
        if not found:
            raise ValueError(f"the source has no {node.value} (`{expression}`)")
        return float(node.value), found[0].unit

    number, unit = value(ast.parse(expression, mode="eval").body)
    return Number(expression, abs(number), 0, unit)


class Sources:
    """Results by name."""

    def __init__(self, made: list[Generated]) -> None:
        self._made = made
        self.read = cache(self._read)

    @cache  # noqa: B019  # as long as the program
    def _tables(self, command: str) -> list[Table]:
        """What a command makes of its results now; nothing where it is not a benchmark with `tables`."""
        module = re.match(r"python -m (benchmarks\.[\w.]+)", command)
        if not module or not (ROOT / module[1].replace(".", "/")).with_suffix(".py").is_file():
            return []
        made: list[Table] = getattr(importlib.import_module(module[1]), "tables", list)()
        return made

    def table(self, made: Generated) -> Table | None:
        return next((table for table in self._tables(made.command) if table.page == made.page), None)

    def _read(self, name: str) -> tuple[Origin, list[list[Number]]]:
        """Where a source comes from, and the numbers of each of its lines; KeyError if there is none of that name."""
        if kept := record.read(name):
            return kept[0], by_line(kept[1].splitlines())
        page, _, anchor = name.partition("#")
        origins: list[Origin] = []
        found: list[list[Number]] = []
        for made in self._made:
            lines = _below(made.lines, anchor) if anchor else made.lines
            if made.page == ROOT / page and lines:
                table, rows = self.table(made), [line for line in lines if line.startswith("|")]
                origins.append(
                    record.origin_of(table.results, table.of) if table else Origin(made.command, *NOT_RECORDED)
                )
                found += by_line(lines)
                found += [[Number.parse(str(len(rows) - 2)), Number.parse(str(rows[0].count("|") - 2))]] if rows else []
        if not origins:
            raise KeyError(name)
        return joined(origins), found

    def resolve(self, mark: Mark | None) -> tuple[Origin, list[list[Number]], str]:
        """Where figures with a comment come from, the numbers they are held to, and what is to be said of all, if anything."""
        if mark is None or not (mark.sources or mark.before or mark.set is not None):
            return joined([]), [], "no source"
        if mark.before:
            commit, _, command = mark.before.partition(": ")
            return Origin(command, commit, "not recorded"), [], "before results were kept"
        try:
            found = [self.read(name) for name in mark.sources]
            lines = [line for _, several in found for line in several]
            if mark.exact:
                known = [*chain(*lines), *map(Number.parse, mark.set or ())]
                lines = [[compute(text, known) for text in mark.exact]]
        except KeyError as error:
            return joined([]), [], f"no source: nothing is named {error.args[0]}"
        except ValueError as error:
            return joined([one for one, _ in found]), [], f"differs: {error}"
        return joined([one for one, _ in found]), lines, ""


def joined(origins: list[Origin]) -> Origin:
    """One origin for figures that come from several."""
    return (
        Origin(*(" + ".join(dict.fromkeys(each)) for each in zip(*origins, strict=True)))
        if origins
        else Origin("", "", "")
    )


def by_line(lines: list[str]) -> list[list[Number]]:
    return [[number for _, number in numbers(line)] for line in lines]


def _below(lines: list[str], anchor: str) -> list[str]:
    """Lines below the heading with an anchor, up to the next heading."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("#"):
            inside = re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") == anchor
        elif inside:
            found.append(line)
    return found


def judge(block: Block, page: str, sources: Sources) -> Iterator[Claim]:
    """What is to be said of each figure of a block."""
    wanted, mark = list(figures(block)), block.mark or Mark()
    origin, lines, problem = sources.resolve(block.mark)
    for text in set(mark.also) - {number.digits for _, number in wanted}:
        yield Claim(text, f"{page}:{block.line}", "differs: the text does not have it", origin)
    for result in lines[0] if mark.exact and not problem else []:
        if not any(number.is_of(result) for _, number in wanted):
            yield Claim(result.digits, f"{page}:{block.line}", "differs: no figure is this number", origin)
    given = {Number.parse(text).value for text in mark.set or ()}
    fine: Counter[str] = Counter()
    for at, row in groupby(wanted, key=lambda found: found[0] if block.is_table else 0):
        several = list(row)
        # The figures of a row are those of one line of the result: that which has most of them.
        pools = lines if at else [list(chain(*lines))]
        states = [[any(number.is_of(result) for result in pool) for _, number in several] for pool in pools]
        for (line, number), agrees in zip(several, max(states, key=sum, default=[False] * len(several)), strict=True):
            is_set = not problem.startswith(WRONG) and (mark.set == () or number.value in given)
            state = "set" if is_set else problem or ("agrees" if agrees else "differs")
            if block.is_table and not state.startswith("differs"):
                fine[state] += 1
            else:
                yield Claim(number.text, f"{page}:{line}", state, origin)
    yield from (Claim(f"{count} in a table", f"{page}:{block.line}", state, origin) for state, count in fine.items())


def claims(pages: list[Path], root: Path = ROOT) -> Iterator[Claim]:
    """What is to be said of each figure of some pages; those of all pages are sources."""
    every = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    parts = {page: split(page) for page in dict.fromkeys([*every, *pages])}
    sources = Sources([made for _, several in parts.values() for made in several])
    for page in pages:
        name = str(page.relative_to(root))
        blocks, several = parts[page]
        for made in several:
            place, table = f"{name}:{made.line}", sources.table(made)
            block = Block(made.line, made.lines, Mark((name,)) if table else None)
            count = len(list(figures(block))) if made.lines else 0
            if table:
                same = table.text.strip() == "\n".join(made.lines).strip()
                state = "agrees" if same else f"differs: {made.command}"
                yield Claim(f"{count} in a table", place, state, record.origin_of(table.results, table.of))
            elif count:
                why = "no source: its module has no `tables`"
                yield Claim(f"{count} in a table", place, why, Origin(made.command, *NOT_RECORDED))
        for block in blocks:
            yield from judge(block, name, sources)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--wrong", action="store_true", help="only figures without a source, or that differ from it")
    given = parser.parse_args()
    pages = [page.resolve() for page in given.pages] or [page for each in PAGES for page in sorted(ROOT.glob(each))]
    found = list(claims(pages))
    shown = [claim for claim in found if (claim.is_wrong if given.wrong else claim.state != "set")]
    rows = [("figure", "place", "state", "date", "machine", "command")]
    rows += [(c.figure, c.place, c.state, c.origin.date, c.origin.machine, c.origin.command) for c in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    counts = Counter(claim.state.partition(":")[0] for claim in found)
    print(
        f"\n{len(found)} figures and tables: {', '.join(f'{count} {state}' for state, count in counts.most_common())}"
    )
    raise SystemExit(any(claim.is_wrong for claim in found))


if __name__ == "__main__":
    main()
