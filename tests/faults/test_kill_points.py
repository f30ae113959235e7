"""A few of the points of `make faults`, which kills at twenty."""

import pytest
from kill_points import check, draw_points, make_inputs


@pytest.mark.parametrize("processes, count", [(1, 3), (2, 2)])
def test_a_run_killed_at_any_point_goes_on_bit_for_bit(tmp_path, processes, count):
    make_inputs(tmp_path)
    check(tmp_path, draw_points(count, processes, seed=2), processes)
