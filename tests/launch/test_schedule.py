"""The schedule: how long a run lasts, and its learning rate, as functions of the position."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import InputError
from launch.schedule import ScheduleSettings, budget_in_seconds


@pytest.mark.parametrize(
    "text, seconds",
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), ("1h0.5m2s", 3632), (" 5s ", 5), ("1d2s", 86402)],
)
def test_budgets(text, seconds):
    assert budget_in_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "30 m", "-5m", "1m1h", "5w", "0s", "0h0m"])
def test_what_is_no_budget(text):
    with pytest.raises(InputError, match="is not a time such as 30m"):
        budget_in_seconds(text)
    with pytest.raises(ValueError):
        ScheduleSettings(budget=text)


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"epochs": None}, "at least one of epochs, steps and budget"),
        ({"epochs": 0}, "schedule.epochs: 0 is not positive"),
        ({"steps": -1}, "schedule.steps: -1 is not positive"),
        ({"warmup_share": 1.0}, "warmup_share"),
        ({"warmup_share": -0.1}, "warmup_share"),
    ],
)
def test_what_cannot_begin_or_end_is_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        ScheduleSettings(**settings)


def test_whichever_limit_comes_first_ends_the_run():
    schedule = ScheduleSettings(epochs=4, steps=100, budget="10s")
    assert schedule.share_done(0, 0.0, 0.0) == 0
    assert schedule.share_done(50, 1.0, 1.0) == 0.5
    assert schedule.share_done(10, 3.0, 1.0) == 0.75
    assert schedule.share_done(10, 1.0, 9.0) == 0.9
    assert schedule.share_done(10, 1.0, 11.0) == 1.0
    assert schedule.share_done(100, 1.0, 1.0) == 1.0
    assert ScheduleSettings(epochs=3).share_done(10**6, 2.999, 1e9) < 1


@given(shape=st.sampled_from(["linear", "cosine", "constant"]), warmup=st.floats(0, 0.9), share=st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(shape, warmup, share):
    schedule = ScheduleSettings(warmup_share=warmup, shape=shape)
    factor = schedule.factor(share)
    assert -1e-12 <= factor <= 1
    if share < warmup:
        assert math.isclose(factor, share / warmup)
    if shape == "constant" and share >= warmup:
        assert factor == 1
    assert math.isclose(schedule.factor(warmup), 1)
    assert math.isclose(schedule.factor(1.0), float(shape == "constant"), abs_tol=1e-12)
    later = min(1.0, share + 0.05)
    if share >= warmup:
        assert schedule.factor(later) <= factor + 1e-12


def test_half_way_down():
    assert ScheduleSettings(warmup_share=0.2).factor(0.6) == pytest.approx(0.5)
    assert ScheduleSettings(warmup_share=0.2, shape="cosine").factor(0.6) == pytest.approx(0.5)
    assert ScheduleSettings(warmup_share=0.2, shape="cosine").factor(0.4) == pytest.approx(0.5 + math.sqrt(0.5) / 2)
