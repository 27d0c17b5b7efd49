"""A page shows one of its languages, runs no script but its own, and fits a phone; its tables and charts can be used."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from luthier.core import language
from luthier.reports import compare_report, page
from tests.conftest import use_catalog

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MESSAGE = "{0} of {1} rows are refused"
NASTY = "<script>alert('x')</script>"
SANDBOX = "allow-scripts"
"""As `luthier ui` shows a report: without an origin, so nothing can be kept."""
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


def test_a_page_is_one_file_that_loads_nothing() -> None:
    made = compare_report.render(body())
    addresses: list[str | None] = []
    parser = HTMLParser()
    named = ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")
    parser.handle_starttag = lambda tag, attrs: addresses.extend(v for k, v in attrs if k in named)  # type: ignore[method-assign]
    parser.feed(made)
    assert addresses and all(str(address).startswith("#") for address in addresses)
    assert "default-src 'none'" in made and "connect-src" not in made
    shown = re.sub(r"<script>.*?</script>", "", made, flags=re.DOTALL)
    assert (
        "url(" not in shown and "@import" not in shown and "://" not in shown.replace("http://www.w3.org/2000/svg", "")
    )


def test_the_charts_are_those_of_the_page_under_their_license() -> None:
    reports = Path(page.__file__).parent
    made = compare_report.render(body())
    for name in ("chart.js", "vendor/uPlot.iife.min.js", "vendor/uPlot.LICENSE"):
        assert (reports / name).read_text("utf-8") in made
    assert "uPlot" not in compare_report.render(body(rows=[])), "a page without a chart is small"


def test_the_page_begins_in_the_language_of_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, shown in (("zh", "zh"), ("en", "en"), ("pseudo", "en")):
        monkeypatch.setattr(language, "_chosen", [chosen])
        assert f'<html lang="{shown}">' in compare_report.render(body())


def test_what_a_comparison_says_first() -> None:
    made = re.sub(r"<[^>]*>", "", compare_report.render(body()))
    assert "lora has the best score: accuracy 80.0 % on 40 examples, where the untouched base has 50.0 %." in made
    assert "No other method is really different from it." in made


def drive(made: str, folder: Path, script: str, width: int = 390, sandbox: str = "") -> dict[str, object]:
    """What `script` returns in a frame `width` pixels wide that holds the page; `doc` is the page's document."""
    (folder / "page.html").write_text(made, encoding="utf-8")
    (folder / "outer.html").write_text(
        f'<iframe {sandbox} src="page.html" style="width:{width}px;height:2000px;border:0"></iframe><pre id="said"></pre>'
        "<script>onload = async () => { const frame = document.querySelector('iframe'), doc = frame.contentDocument;"
        "const pause = () => new Promise((done) => setTimeout(done, 50));"
        f"document.getElementById('said').textContent = JSON.stringify(await (async () => {{ {script} }})()); }}</script>",
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
def test_a_curve_tells_its_values_and_can_be_enlarged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_catalog(monkeypatch, {"log axis": "对数坐标"})
    script = """
      const plot = doc.querySelector('#curves ~ [data-chart] .plot'), view = doc.defaultView, found = {};
      const over = () => plot.querySelector('.u-over'), wrap = () => plot.querySelector('.u-wrap');
      const told = () => [...plot.querySelectorAll('.u-series')].map((row) => row.textContent);
      const mouse = (kind, share) => { const box = over().getBoundingClientRect(); over().dispatchEvent(new view.MouseEvent(
        kind, {clientX: box.left + box.width * share, clientY: box.top + 60, bubbles: true, button: 0, movementX: 1})); };
      const key = async (name) => { wrap().dispatchEvent(new view.KeyboardEvent('keydown', {key: name})); await pause(); };
      mouse('mousemove', 0.43); found.told = told();
      mouse('mousemove', 0.5); mouse('mousedown', 0.5); mouse('mousemove', 1); mouse('mouseup', 1); await pause();
      mouse('mousemove', 0.43); found.enlarged = told()[0];
      mouse('dblclick', 0.5); await pause(); mouse('mousemove', 0.43); found.whole = told()[0];
      await key('ArrowRight'); found.key = told();
      await key('+'); mouse('mousemove', 0.999); found.plus = told()[0];
      await key('Escape'); mouse('mousemove', 0.999); found.escaped = told()[0];
      const axis = plot.querySelector('[aria-pressed]'); found.axes = [axis.getAttribute('aria-pressed')];
      axis.click(); found.axes.push(axis.getAttribute('aria-pressed'));
      plot.querySelectorAll('.u-legend button')[1].click(); found.off = plot.querySelectorAll('.u-off.u-series').length;
      found.said = wrap().getAttribute('aria-label');
      doc.querySelector('.language button').click();
      found.axes.push(doc.querySelector('#curves ~ [data-chart] .plot [aria-pressed]').textContent);
      found.drawn = doc.querySelectorAll('.plot').length;
      return found;
    """
    found = drive(compare_report.render(body()), tmp_path, script, width=1280)
    assert [str(text) for text in found["told"]][:3] == ["step4", "lora0.5", "full0.5"]  # type: ignore[attr-defined]
    assert found["enlarged"] == "step6" and found["whole"] == "step4"
    assert found["key"][:2] == ["step5", "lora0.4"]  # type: ignore[index]
    assert found["plus"] == "step6" and found["escaped"] == "step8"
    assert found["axes"] == ["false", "true", "对数坐标"] and found["off"] == 1
    assert "lora ends at a loss of 0.25" in str(found["said"]) and found["drawn"] == 3


@browser
def test_a_front_tells_a_method_and_its_name_is_text(tmp_path: Path) -> None:
    script = """
      const plot = doc.querySelector('.plot'), wrap = plot.querySelector('.u-wrap'), said = [];
      const told = () => plot.querySelector('.values').textContent;
      said.push(told());
      for (const key of ['ArrowRight', 'ArrowRight', 'ArrowRight', 'ArrowRight', 'ArrowLeft']) {
        wrap.dispatchEvent(new doc.defaultView.KeyboardEvent('keydown', {key}));
        said.push(told());
      }
      return {said, scripts: doc.querySelectorAll('script').length, label: wrap.getAttribute('aria-label')};
    """
    found = drive(compare_report.render(body()), tmp_path, script, width=1280)
    hostile = f"{NASTY}: 70 (65 – 75); trainable parameters: 100"
    lora, full = (
        f"{name}: {score} ({low} – {high}); trainable parameters: {cost}"
        for name, score, low, high, cost in (("lora", 80, 75, 85, "5,000"), ("full", 79, 74, 84, "1M"))
    )
    hint = "Point at a method for its values; drag over a part to enlarge it."
    assert found["said"] == [hint, hostile, lora, full, full, lora]
    assert found["scripts"] == 1 and f"{NASTY} scores 70" in str(found["label"])


@browser
@pytest.mark.parametrize("width", [390, 1280])
def test_without_a_script_the_pictures_are_there(tmp_path: Path, width: int) -> None:
    script = """
      const seen = [...doc.querySelectorAll('svg.chart')].filter((svg) => svg.getBoundingClientRect().height > 100);
      return {seen: seen.length, plots: doc.querySelectorAll('.plot').length};
    """
    made = compare_report.render(body())
    assert drive(made, tmp_path, script, width, 'sandbox="allow-same-origin"') == {"seen": 3, "plots": 0}
    assert drive(made, tmp_path, script, width) == {"seen": 0, "plots": 3}


LIVE = """async () => {
  const place = document.body.appendChild(document.createElement('figure'));
  const lines = (last, least = 1 / last) => [{label: 'loss', points: Array.from({length: last}, (_, n) => [n + 1, Math.max(least, 1 / (n + 1))])}];
  const chart = luthierChart.curves(place, {title: 'loss', says: '', words: {log: 'log', whole: 'all'}, lines: lines(10), x: 'step', log: true});
  const pause = () => new Promise((done) => setTimeout(done, 50));
  const last = () => { const over = place.querySelector('.u-over'), box = over.getBoundingClientRect();
    over.dispatchEvent(new MouseEvent('mousemove', {clientX: box.right - 1, clientY: box.top + 9, movementX: 1}));
    return place.querySelector('.u-series').textContent; };
  await pause();
  const found = [last()];
  const grow = async (next) => { chart.update(next); await pause(); found.push(last()); };
  await grow(lines(20));
  place.querySelector('.u-wrap').dispatchEvent(new KeyboardEvent('keydown', {key: '+'})); await pause(); found.push(last());
  await grow(lines(40));
  place.querySelectorAll('button')[1].click(); await pause(); found.push(last());
  const log = place.querySelector('[aria-pressed]'); found.push(log.hidden);
  await grow([{label: 'loss', points: [[1, 1], [2, 0], [3, -1]]}]); found.push(log.hidden);
  chart.destroy();
  return [...found, place.children.length];
}"""


@browser
def test_a_page_is_interactive_in_the_frame_of_the_ui_grows_and_is_a_picture_on_paper(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    (tmp_path / "page.html").write_text(compare_report.render(body()), encoding="utf-8")
    (tmp_path / "outer.html").write_text(f'<iframe sandbox="{SANDBOX}" src="page.html"></iframe>', encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto((tmp_path / "outer.html").as_uri())
        frame = shown.frames[1]
        frame.locator(".uplot").nth(2).wait_for()
        *grown, left = frame.evaluate(LIVE)
        whole, enlarged = ["step10", "step20"], ["step20", "step20"]
        assert grown == [*whole, *enlarged, "step40", False, "step3", True] and left == 0
        shown.goto((tmp_path / "page.html").as_uri())
        charts = shown.locator("svg.chart:visible"), shown.locator(".uplot:visible")
        assert [each.count() for each in charts] == [0, 3]
        shown.emulate_media(media="print")
        assert [each.count() for each in charts] == [3, 0]
        browser.close()
