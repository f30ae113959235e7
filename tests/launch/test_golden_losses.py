"""The first losses of each trained stage are those that are written down in golden_losses.json."""

import json

import pytest
from golden_losses import GOLDEN, STAGES, computed_by, measure

TOLERANCE = 1e-6
"""Relative, on a machine that rounds sums otherwise than the one that wrote the file."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, list[float]]:
    return measure(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_losses_are_golden(measured, stage):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    expected = golden["losses"][stage]
    assert len(expected) == 6, "five steps and the evaluation"
    if computed_by() == golden["computed by"]:
        assert measured[stage] == expected, "to the last bit. Meant to be so? python tests/launch/golden_losses.py"
    else:
        assert measured[stage] == pytest.approx(expected, rel=TOLERANCE)
