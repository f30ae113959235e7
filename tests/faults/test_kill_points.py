"""A few of the points of `make faults`, which kills at twenty."""

import pytest
from kill_points import PATIENCE_SECONDS, Run, check, draw_points, make_inputs
from killed_at import KillPoint


@pytest.mark.parametrize("processes, count", [(1, 2), (2, 1)])
def test_a_run_killed_at_any_point_goes_on_bit_for_bit(tmp_path, processes, count):
    make_inputs(tmp_path)
    check(tmp_path, draw_points(count, processes, seed=2), processes)


def test_another_number_of_processes_goes_on_in_the_same_order_with_the_same_masks(tmp_path):
    make_inputs(tmp_path)
    alone, run = (Run(tmp_path, name, 1, "--dropout=0", "--schedule.epochs=3") for name in ("alone", "run"))
    undisturbed = alone.start()
    run.processes = 2
    run.die_at(KillPoint("step", 30, event=5, rank=1))
    assert run.losses()[-1][1] == 29
    run.processes = 1
    run.finish()
    assert undisturbed.wait(PATIENCE_SECONDS) == 0
    assert "resumed at step 28 from" in run.log.read_text()
    assert [row[:2] for row in run.losses()] == [row[:2] for row in alone.losses()]
    assert [row[2] for row in run.losses()] == pytest.approx([row[2] for row in alone.losses()], rel=1e-5)
