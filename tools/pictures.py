"""The pictures of the READMEs: the report of a run, and the same run watched in a terminal, in English and Chinese.

    python tools/pictures.py RUN        a finished run, for example of luthier demo; needs Chromium and a Chinese font

Writes docs/images/report.png and docs/images/report.zh.png.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from luthier.cli.terminal.show_runs import screen
from luthier.core import language
from luthier.core.shell import shell_line
from luthier.runs.folder import RunFolder
from luthier.runs.state import History, state_of

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1600, 940
PAGE = """<!doctype html><meta charset="utf-8"><style>
 body { margin: 0; background: #e8edf3; width: 1600px; height: 940px; overflow: hidden; position: relative }
 iframe { border: 0; width: 1060px; height: 1000px; position: absolute; left: 24px; top: 24px; background: #fff;
   border-radius: 10px 10px 0 0; box-shadow: 0 6px 30px #0003 }
 .terminal { position: absolute; right: 24px; bottom: 40px; width: 760px; filter: drop-shadow(0 8px 24px #0006) }
 .terminal svg { width: 100%; height: auto; display: block }
</style><iframe src="report.html"></iframe><div class="terminal">TERMINAL</div>"""


def terminal(run: Path) -> str:
    """What `luthier watch` shows of the run at its end, as SVG."""
    history = History(RunFolder.existing(run))
    shown = Console(record=True, width=78, height=26, file=io.StringIO(), force_terminal=True)
    shown.print(screen(state_of(run, history), history, shown.width, shown.height))
    drawn = shown.export_svg(title=shell_line("luthier", "watch", run), theme=MONOKAI)
    return re.sub(r' textLength="[^"]*"', "", drawn)  # which would squeeze Chinese into the width of as many letters


def picture(run: Path, name: str, target: Path) -> None:
    """Write the picture in one language."""
    language.speak(name)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("Chromium is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = (run / "report.html").read_text(encoding="utf-8")
        for known in language.LANGUAGES:
            report = report.replace(f'<html lang="{known}">', f'<html lang="{name}">')
        Path(folder, "report.html").write_text(report, encoding="utf-8")
        Path(folder, "page.html").write_text(PAGE.replace("TERMINAL", terminal(run)), encoding="utf-8")
        options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        options += ["--blink-settings=preferredColorScheme=1", f"--screenshot={target}"]
        subprocess.run([browser, *options, f"file://{folder}/page.html"], check=True, capture_output=True)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes")


def main(run: Path) -> None:
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    picture(run, "en", images / "report.png")
    picture(run, "zh", images / "report.zh.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
