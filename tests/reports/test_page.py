"""A page shows one of its languages, runs no script but its own, and fits a phone; its tables and charts can be used."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from luthier.core import language
from luthier.reports import compare_report, page
from tests.conftest import use_catalog

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MESSAGE = "{0} of {1} rows are refused"
NASTY = "<script>alert('x')</script>"
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def body(**changes: object) -> dict[str, object]:
    """compare.json of three methods."""

    def row(name: str, score: float, trainable: int) -> dict[str, object]:
        interval = {"value": score, "low": score - 0.05, "high": score + 0.05}
        against = {"best": {"value": score - 0.8, "low": -0.1, "high": 0.1, "p": 0.5, "verdict": "no real difference"}}
        return {
            **{"arm": name, "method": name, "quantize": "none", "idea": f"{name}: an idea", "claims": None},
            **{"score": interval, "trainable": trainable, "share": 0.1, "adapter_bytes": trainable * 4, "lr": 1e-3},
            **{"memory": 5e8, "tokens_per_second": 1000.0, "seconds": 10.0, "seconds_to_best": 5.0, "merges": True},
            **{"latency": {}, "curve": {"train": [[n, 2.0 / n] for n in range(1, 9)], "held_out": [[8, 0.5]]}},
            **{"status": "done", "reason": "", "against": against if name != "lora" else {}, "cost": {}},
            **{"strengths": ["small file"], "weaknesses": [], "fits": "wherever the score decides"},
        }

    rows = [row("lora", 0.8, 5000), row("full", 0.79, 1_000_000), row(NASTY, 0.7, 100)]
    return {
        **{"folder": "runs/compare", "model": "builtin", "data": "rows.jsonl", "task": "chat", "finished": "today"},
        **{"steps": 8, "tokens": 1000, "seeds": [0], "workers": 1, "threads": 1, "tuned": None, "examples": 40},
        **{"measured_on": "validation", "metric": "accuracy", "base": {"value": 0.5, "low": 0.4, "high": 0.6}},
        **{"best": "lora", "comparisons": 2, "rows": rows},
        **changes,
    }


def test_a_message_stands_on_a_page_in_every_language(monkeypatch: pytest.MonkeyPatch) -> None:
    use_catalog(monkeypatch, {MESSAGE: "{1} 行中拒绝了 {0} 行"})
    made = page._both(MESSAGE, NASTY, 5)
    safe = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    english, chinese = f"{safe} of 5 rows are refused", f"5 行中拒绝了 {safe} 行"
    assert made == f'<span lang="en">{english}</span><span lang="zh">{chinese}</span>'
    assert page._both("not in the catalog") == "not in the catalog", "no span where nothing differs"
    assert page._both(MESSAGE, page._both("a < b"), 1).count("a &lt; b") == 2, "what is escaped stays so"
    outer = page._both(MESSAGE, page._both(MESSAGE, 1, 2), 3)
    assert '<span lang="zh">3 行中拒绝了 2 行中拒绝了 1 行 行</span>' in outer and outer.count("<span") == 2
    finished = page.both("3 of 4 rows are refused")
    assert finished == '<span lang="en">3 of 4 rows are refused</span><span lang="zh">4 行中拒绝了 3 行</span>'


def test_a_place_is_short() -> None:
    assert page.short_place("/home/alice/data/heldout.jsonl: line 64") == "heldout.jsonl: line 64"
    assert (
        page.short_place(r"C:\data\a.csv: line 2: text") == "a.csv: line 2: text" and page.short_place("imdb") == "imdb"
    )


def test_only_the_script_of_luthier_may_run() -> None:
    made = compare_report.render(body())
    scripts = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    assert len(scripts) == 1 and NASTY not in made and "&lt;script&gt;alert" in made
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in made and "script-src 'unsafe" not in made
    assert not re.search(r"(src|href)=\"(?!#)", made) and "http" not in made.replace(
        "http://www.w3.org/2000/svg", ""
    ).replace("http-equiv", "")


def test_the_page_begins_in_the_language_of_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, shown in (("zh", "zh"), ("en", "en"), ("pseudo", "en")):
        monkeypatch.setattr(language, "_chosen", [chosen])
        assert f'<html lang="{shown}">' in compare_report.render(body())


def test_what_a_comparison_says_first() -> None:
    made = re.sub(r"<[^>]*>", "", compare_report.render(body()))
    assert "lora has the best score: accuracy 80.0 % on 40 examples, where the untouched base has 50.0 %." in made
    assert "No other method is really different from it." in made


def drive(made: str, folder: Path, script: str, width: int = 390) -> dict[str, object]:
    """What `script` returns in a frame `width` pixels wide that holds the page; `doc` is the page's document."""
    (folder / "page.html").write_text(made, encoding="utf-8")
    (folder / "outer.html").write_text(
        f'<iframe src="page.html" style="width:{width}px;height:2000px;border:0"></iframe><pre id="said"></pre><script>'
        "onload = () => { const frame = document.querySelector('iframe'), doc = frame.contentDocument;"
        f"document.getElementById('said').textContent = JSON.stringify((() => {{ {script} }})()); }}</script>",
        encoding="utf-8",
    )
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [*command, (folder / "outer.html").as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said and said[1], done.stdout[-500:] + done.stderr[-2000:]
    found = json.loads(said[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert isinstance(found, dict)
    return found


@browser
def test_no_page_is_wider_than_a_phone(tmp_path: Path) -> None:
    long = [{**row, "arm": f"a_method_with_a_very_long_name_{n}"} for n, row in enumerate(body()["rows"] * 4)]  # type: ignore[operator]
    made = compare_report.render(body(folder="runs/" + "wide" * 40, rows=long))
    found = drive(
        made,
        tmp_path,
        "const root = doc.documentElement; return {over: root.scrollWidth - root.clientWidth, seen: doc.body.innerText.length}",
    )
    assert found["over"] == 0 and found["seen"] > 1000  # type: ignore[operator]


@browser
def test_tables_are_sorted_and_searched_and_the_language_is_chosen(tmp_path: Path) -> None:
    rows = [{**row, "arm": f"{row['arm']}{n}"} for n in range(4) for row in body()["rows"]]  # type: ignore[attr-defined]
    script = """
      const table = doc.querySelector('#table ~ .wide table'), names = () => [...table.tBodies[0].rows]
        .filter(row => !row.hidden).map(row => row.cells[0].textContent);
      const found = {before: names()};
      const sort = [...table.querySelectorAll('.sort')].find(each => each.textContent.trim() === 'parameters');
      sort.click(); found.most = names()[0]; found.sorted = sort.parentNode.getAttribute('aria-sort');
      sort.click(); found.least = names()[0]; sort.click(); found.after = names();
      const search = doc.querySelector('#table ~ .tools input');
      search.value = 'FULL'; search.dispatchEvent(new Event('input')); found.searched = names();
      doc.querySelector('.language button').click(); found.lang = doc.documentElement.lang;
      return found;
    """
    found = drive(compare_report.render(body(rows=rows)), tmp_path, script, width=1280)
    assert str(found["most"]).startswith("full") and found["sorted"] == "descending" and found["lang"] == "zh"
    assert found["least"] == "untouched base" and found["after"] == found["before"]
    assert len(found["searched"]) == 4 and all("full" in name for name in found["searched"])  # type: ignore[arg-type, attr-defined]


@browser
def test_a_chart_tells_its_values_and_can_be_enlarged(tmp_path: Path) -> None:
    script = """
      const svg = doc.querySelector('#curves ~ .wide-chart svg'), view = doc.defaultView, box = svg.getBoundingClientRect();
      const told = svg.parentNode.querySelector('output'), found = {hint: told.textContent, views: [], ticks: []};
      const at = (share) => ({clientX: box.left + box.width * share, clientY: box.top + 100, pointerType: 'mouse', bubbles: true});
      const part = () => svg.querySelector('.' + svg.dataset.axis);
      const look = () => { found.views.push(part().querySelector('.view').getAttribute('viewBox'));
        found.ticks.push([...svg.querySelectorAll('.xticks text')].map(each => each.textContent)); };
      look();
      svg.dispatchEvent(new view.PointerEvent('pointermove', at(0.5))); found.told = told.textContent;
      svg.dispatchEvent(new view.PointerEvent('pointerdown', at(0.3)));
      view.dispatchEvent(new view.PointerEvent('pointerup', at(0.7))); look();
      svg.dispatchEvent(new view.MouseEvent('dblclick')); look();
      svg.dispatchEvent(new view.KeyboardEvent('keydown', {key: 'ArrowRight'})); found.key = told.textContent;
      const axis = svg.dataset.axis; svg.parentNode.querySelector('button').click();
      found.axes = [axis, svg.dataset.axis];
      return found;
    """
    found = drive(compare_report.render(body()), tmp_path, script, width=1280)
    assert "Point at the curve" in str(found["hint"])
    assert re.match(r"step 4: lora 0.5; full 0.5", str(found["told"])), found["told"]
    assert str(found["key"]).startswith("step 5: lora 0.4;")
    views, ticks = found["views"], found["ticks"]
    assert views[0] == views[2] != views[1] and ticks[0] == ticks[2] != ticks[1]  # type: ignore[index]
    assert set(found["axes"]) == {"linear", "log"}  # type: ignore[call-overload]
