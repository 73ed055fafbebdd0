import pytest

from bench.capacity import Capacity, Load, fit


def test_times_of_pictures_give_a_megapixels_and_the_rest() -> None:
    sides = (256, 512, 1024)
    assert fit([(side, 0.3 * side**2 / 1e6 + 0.01) for side in sides]) == pytest.approx((0.3, 0.01))
    noisy = [(256, 0.05), (512, 0.3), (1024, 1.3)]  # a line through them begins below 0
    a_s, b_s = fit(noisy)
    assert b_s == 0
    assert 0.7 < a_s < 1.4


def test_machines_are_at_most_as_busy_as_said() -> None:
    found = Capacity(a_s=0.5, b_s=0.1, job_s=30, web_mb=0, worker_mb=0)
    assert found.replicas(Load(6, 1, 0)) == 6  # 3.6 s of work a second, at 60 %
    assert found.replicas(Load(6.1, 1, 0)) == 7
    assert found.replicas(Load(0, 1, 0)) == 1
    assert (found.workers(Load(0, 1, 0)), found.workers(Load(0, 1, 1.2)), found.workers(Load(0, 1, 1.3))) == (0, 1, 2)
