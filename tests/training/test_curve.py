"""The curve of a short run on the embedded base stays where it was recorded; record.py records a new one."""

from __future__ import annotations

import json

import pytest

from tests.training.record_curve import FILE, curve


def test_the_curve_is_the_recorded_one() -> None:
    golden = json.loads(FILE.read_text())
    now = curve()
    # Other processors round differently: a step that is wrong differs by far more.
    assert now["training"] == pytest.approx(golden["training"], abs=2e-3)
    assert now["held_out"] == pytest.approx(golden["held_out"], abs=2e-3)
    assert now["training"][-1] < now["training"][0]
