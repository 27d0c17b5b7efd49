"""benchmarks/claims: each figure of the documentation has a source and agrees with it, and a new one without is found."""

import json
import sys

import pytest
from benchmarks.claims import Number
from benchmarks.compare import run as compare

from benchmarks import claims, record
from tests.conftest import ROOT

OUTPUT = """| what | tokens/s | memory | loss |
|---|---|---|---|
| ours | 299 (291 to 308) | 1,754 MB | 5.228 ± 0.003 |
| theirs | 107 | 3,341 MB | 6.201 |

ours over theirs: 2.80; 0.38 of the time; first step after 1,250 ms
"""


@pytest.fixture
def said(tmp_path, monkeypatch):
    """Figure and state of each claim of a page, beside a record named `speed`."""
    monkeypatch.setattr(record, "RECORDS", tmp_path)
    (tmp_path / "speed.txt").write_text(f"command: python -m x\ndate: 2026-11-30\nmachine: two processors\n\n{OUTPUT}")

    def said(text):
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        found = list(claims.claims([page], tmp_path))
        assert all(
            claim.origin == ("python -m x", "2026-11-30", "two processors")
            for claim in found
            if claim.state == "agrees"
        )
        return [(claim.figure, claim.state.split(":")[0]) for claim in found]

    return said


def test_each_figure_of_the_documentation_has_a_source_and_agrees_with_it():
    pages = [page for pattern in claims.PAGES for page in sorted(ROOT.glob(pattern))]
    wrong = [claim for claim in claims.claims(pages) if claim.is_wrong]
    assert not wrong, "\n".join(f"{claim.place}: {claim.figure}: {claim.state}" for claim in wrong)


def test_a_figure_without_a_source_is_found(said):
    new = [
        ("2.8 times", "no source"),
        ("61 %", "no source"),
        ("12 GB", "no source"),
        ("5.2", "no source"),
        ("0.1", "no source"),
    ]
    assert said("It is 2.8 times as fast,\nin 61 % of 12 GB: 5.2 ± 0.1.\n") == new
    assert said("# Page\n\n- item\n- **95 tokens/s**, and 95 % confidence intervals\n") == [
        ("95 tokens/s", "no source")
    ]
    assert said("训练快 2.3 倍\n") == [("2.3 倍", "no source")]
    assert said("| a | b |\n|---|---|\n| x | 6.4 s |\n") == [("1 in a table", "no source")]
    assert said("<!-- made by python -m benchmarks.none: begin -->\n8 MB\n<!-- end -->\n") == [
        ("1 in a table", "no source")
    ]


def test_counts_versions_names_and_code_are_no_figures(said):
    text = "Qwen2-0.5B, Apache-2.0, PEFT 0.21, Python 3.11 or newer, arXiv 2306.05685, torch 2.13.0, 16 rows, `0.5 GB`,"
    assert said(f"{text} [page](x-1.5.md)\n\n```\n12 s\n```\n\n    14 s\n") == []


def test_a_figure_is_its_result_rounded_in_any_unit(said):
    assert {
        state
        for _, state in said("2.8 times, 1.8 GB and 3.3 GB, 1.25 s, 5.23, 38 %, 280 %. <!-- figures: from speed -->")
    } == {"agrees"}
    assert said("2.7 times, 1.9 GB\n<!-- figures: from speed -->\n") == [
        ("2.7 times", "differs"),
        ("1.9 GB", "differs"),
    ]
    assert said("107 MB, 5 s <!-- figures: from speed -->") == [
        ("107 MB", "agrees"),
        ("5 s", "agrees"),
    ]  # units unknown there
    assert not Number.parse("1.25", "s").is_of(Number.parse("1.25", "MB"))
    assert said("2.8 times <!-- figures: from nothing -->") == [("2.8 times", "no source")]


def test_tables_differ_cell_by_cell(said):
    table = "| what | tokens/s | memory |\n|---|---|---|\n| ours | 299 | 1.8 GB |\n| theirs | 108 | 3.3 GB |\n"
    assert said(f"{table}<!-- figures: from speed -->\n") == [("108", "differs"), ("3 in a table", "agrees")]
    swapped = table.replace("108 | 3.3 GB", "107 | 1.8 GB")  # of two lines of the result
    assert said(f"{swapped}<!-- figures: from speed -->\n") == [("107", "differs"), ("3 in a table", "agrees")]


def test_the_comment_names_what_is_computed_bare_given_or_old(said):
    assert said("0.97 less <!-- figures: from speed; as 6.201 - 5.228 -->") == [("0.97", "agrees")]
    assert said("1.8 GB <!-- figures: from speed; as 1754 -->") == [("1.8 GB", "agrees")]
    assert said("3.3 GB <!-- figures: from speed; as 1754 -->") == [("1754", "differs"), ("3.3 GB", "differs")]
    assert said("3.3 GB <!-- figures: from speed; as 1755 -->") == [("3.3 GB", "differs")]  # 1755 is not there
    assert said("a 64 % share <!-- figures: from speed; as 107 / (299 - 131) -->") == [("64 %", "differs")]  # no 131
    assert said("84 or 107 rows, 5 s <!-- figures: from speed; also 107, 84; set 5 -->") == [
        ("84", "differs"),
        ("107", "agrees"),
        ("5 s", "set"),
    ]
    assert said("85 rows <!-- figures: from speed; also 107 -->") == [("107", "differs")]  # not in the text
    assert said("after 60 seconds <!-- figures: set -->") == [("60 seconds", "set")]
    assert said("2.7 times <!-- figures: before abc, 2026-11-01: make it -->") == [
        ("2.7 times", "before results were kept")
    ]
    with pytest.raises(SystemExit, match="source"):
        said("5 s <!-- figures: source speed -->")


def test_a_comment_of_its_own_speaks_of_its_section(said):
    text = "# A\n\n<!-- figures: set -->\n\n1.5 s\n\n## B\n\n2.5 s\n\n2.7 times <!-- figures: from speed -->\n\n# C\n\n3.5 s\n"
    assert said(text) == [("1.5 s", "set"), ("2.5 s", "set"), ("2.7 times", "differs"), ("3.5 s", "no source")]


def test_a_table_that_is_not_what_its_results_make_differs(said, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "PAGE", tmp_path / "page.md")
    (table,) = compare.tables()
    page = f"{table.begin}\n{table.text}\n{table.end}\n"
    monkeypatch.setattr(record, "BEFORE", {"compare/results.jsonl": ("2026-11-30", "python -m x")})
    monkeypatch.setattr(record, "OLD", "two processors")
    assert [state for _, state in said(page)] == ["agrees"]
    assert [state for _, state in said(page.replace("| 85 ", "| 84 "))] == ["differs"]
    record.put([table])
    assert [state for _, state in said((tmp_path / "page.md").read_text())] == ["agrees"]


def test_a_table_of_a_page_is_a_source_and_so_are_its_rows(said, monkeypatch):
    monkeypatch.setattr(record, "BEFORE", {"compare/results.jsonl": ("2026-11-30", "python -m x")})
    monkeypatch.setattr(record, "OLD", "two processors")
    source = "1.6 times, of 3 rows, not 17 <!-- figures: from benchmarks/compare/README.md; also 3, 17 -->"
    assert said(source) == [("1.6 times", "agrees"), ("3", "agrees"), ("17", "differs")]


def test_a_line_of_results_keeps_where_it_comes_from(tmp_path):
    record.keep(tmp_path / "results.jsonl", {"seconds": 1.5})
    line = json.loads((tmp_path / "results.jsonl").read_text())
    assert line.pop("seconds") == 1.5
    assert {"command", "date", "commit", "machine", "versions"} == line["made"].keys()
    assert "processors" in line["made"]["machine"] and "torch " in line["made"]["versions"]
    assert record.origin_of([tmp_path / "results.jsonl"]).date == line["made"]["date"]


def test_a_command_is_recorded_with_its_output_and_only_if_it_succeeds(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(record, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(sys, "argv", ["record", "mine", "sh", "-c", "echo 41.5 s; echo noise >&2"])
    record.main()
    origin, output = record.read("mine")
    assert output == "41.5 s\n" and origin.command == "sh -c 'echo 41.5 s; echo noise >&2'"
    monkeypatch.setattr(sys, "argv", ["record", "mine", "sh", "-c", "echo 43 s; exit 3"])
    with pytest.raises(SystemExit, match="exit code 3"):
        record.main()
    assert record.read("mine")[1] == "41.5 s\n"
    assert record.read("../mine") is None
