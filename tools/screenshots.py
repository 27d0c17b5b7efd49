"""Pictures of the page for docs/ui.md, in English and Chinese: a run on the embedded base, and every part of the page.

    python tools/screenshots.py          # needs playwright, Chromium, and a font with Chinese letters

Trains a small run and a comparison in a temporary folder first; takes a few minutes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "images"
RECIPE = "data: builtin:banking\nmodel: builtin\nmethod: lora\ntrain:\n  epochs: 2\n"
WORKING = "planning…|planning memory and time…|正在规划…|正在估算"
PARTS = {
    "data": ("#/new/data", ".masked"),
    "base": ("#/new/base", ".parts"),
    "method": ("#/new/method", ".ranking li"),
    "training": ("#/new/training", ".parts"),
    "runs": ("#/runs", ".runs tbody tr"),
    "run": ("#/run/banking-lora", ".charts canvas"),
    "evaluation": ("#/run/banking-lora/evaluation", "table.data tbody tr"),
    "deployment": ("#/run/banking-lora/deployment", ".fields .field"),
    "compare": ("#/compare/compare-banking", "main canvas"),
}
"""Name of the picture -> part of the page, and what is there once it is whole."""


def made(folder: Path) -> None:
    """Two runs and a comparison."""
    luthier = [sys.executable, "-m", "luthier"]
    common = ["--data", "builtin:banking", "--model", "builtin"]
    for method in ("lora", "bitfit"):
        subprocess.run(
            [*luthier, "train", *common, "--method", method, "train.epochs=2", f"run={folder}/banking-{method}"],
            check=True,
        )
    few = ["--methods", "lora,bitfit,ia3,houlsby", "--tokens", "8000", f"run={folder}/compare-banking"]
    subprocess.run([*luthier, "compare", *common, *few], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        runs = Path(place) / "runs"
        made(runs)
        command = [sys.executable, "-m", "luthier", "ui", "--dir", str(runs), "--port", "0", "--no-browser"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "LUTHIER_LANG": "en"})
        assert server.stdout
        address = server.stdout.readline().strip()
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                context = browser.new_context(viewport={"width": 1280, "height": 860})
                page = context.new_page()
                page.set_default_timeout(600_000)
                page.goto(address)
                for language, scheme in (("en", "light"), ("zh", "dark")):
                    page.emulate_media(color_scheme=scheme)
                    page.evaluate(f"localStorage.setItem('luthier-language', '{language}')")
                    page.goto(f"{address.partition('?')[0]}#/new/task")
                    page.reload()
                    page.locator("aside textarea").fill(RECIPE)
                    page.wait_for_timeout(1500)
                    for name, (part, whole) in PARTS.items():
                        page.goto(f"{address.partition('?')[0]}{part}")
                        if name == "method":
                            page.locator("section .tools:not(.onward) button").first.click()
                        page.locator(whole).first.wait_for()
                        # wait_for_function needs eval, which the page's policy forbids
                        while page.evaluate(f"/{WORKING}/.test(document.body.innerText)"):
                            page.wait_for_timeout(200)
                        page.wait_for_timeout(1000)  # fonts, and what else is on its way
                        page.screenshot(path=PICTURES / f"ui-{name}.{language}.png")
                browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
