"""The libraries of the page are those that npm has, with their licenses; the page stays small."""

from __future__ import annotations

import hashlib

from luthier.ui.server import PAGE, REPORTS, SHARED

FILES = {
    "preact-htm.module.js": "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "htm.LICENSE": "740725f7252e750af735d0028cc534970772f513331e9f68150fede8fb3ce00f",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""SHA-256 of preact/standalone.module.js of htm 3.1.1 and of the files in dist/ of uPlot 1.6.32, as npm serves them."""


def test_vendored_files_are_untouched() -> None:
    paths = [*(PAGE / "vendor").iterdir(), *(REPORTS / "vendor").iterdir()]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert {name: digest for name, digest in found.items() if name != "README.md"} == FILES


def test_the_page_is_small() -> None:
    paths = [*PAGE.rglob("*"), *(REPORTS / name for name in SHARED)]
    size = sum(path.stat().st_size for path in paths if path.suffix in (".js", ".css", ".html"))
    assert size < 200_000
