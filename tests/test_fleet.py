import math
import shutil
from functools import partial

import pytest

from bench.fleet import Autoscaler, Replica, Totals, Traffic, simulate
from bench.redis import measure_redis
from bench.simulation import measured_jobs, measured_refusal_s, measured_replica, validated

SIDE = 100
RUN_S = 0.01


def replica(max_batch_pixels: int = SIDE**2, max_queue_pixels: int = 10**9) -> Replica:
    return Replica(0.0, RUN_S, max_queue_pixels, max_batch_pixels)


def steady(rate: float, duration_s: float, deadline_s: float = math.inf, retries: int = 0) -> Traffic:
    return Traffic(lambda _: rate, rate, duration_s, (SIDE,), (1.0,), deadline_s, retries)


def mean_wait_s(totals: Totals) -> float:
    return sum(totals.latencies_s) / len(totals.latencies_s) - RUN_S


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waits_of_one_replica_are_those_of_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: rho / (2 (1 - rho)) runs."""
    totals = simulate(replica(), steady(load / RUN_S, 600), 1, seed=1)
    assert mean_wait_s(totals) == pytest.approx(RUN_S * load / (2 * (1 - load)), rel=0.1)
    assert totals.busy_s / totals.replica_s == pytest.approx(load, rel=0.03)


def test_replicas_that_a_balancer_draws_at_random_are_queues_of_their_own() -> None:
    totals = simulate(replica(), steady(20 * 0.6 / RUN_S, 30), 20, seed=1)
    assert mean_wait_s(totals) == pytest.approx(RUN_S * 0.6 / 0.8, rel=0.1)


def test_the_emptier_of_two_replicas_shortens_the_tail() -> None:
    traffic = steady(20 * 0.8 / RUN_S, 20)
    one, two = (simulate(replica(), traffic, 20, seed=1, choices=choices) for choices in (1, 2))
    assert two.quantile_s(0.99) < 0.6 * one.quantile_s(0.99)


def test_every_request_ends_as_one_thing() -> None:
    traffic = steady(3 / RUN_S, 20, deadline_s=0.2, retries=2)
    totals = simulate(replica(), traffic, 2, seed=2)
    assert totals.offered == totals.answered + totals.given_up + totals.late
    assert min(totals.answered, totals.given_up, totals.refused) > 0


def test_overload_is_refused_and_capacity_kept() -> None:
    totals = simulate(replica(), steady(3 / RUN_S, 60, deadline_s=0.5), 1, seed=3)
    assert totals.answered / 60 > 0.97 / RUN_S
    assert max(totals.latencies_s) < 0.5
    assert totals.late < 0.01 * totals.answered


def test_a_full_queue_refuses_whatever_the_deadline() -> None:
    totals = simulate(replica(max_queue_pixels=5 * SIDE**2), steady(3 / RUN_S, 10), 1, seed=3)
    assert totals.given_up > 0.5 * totals.offered
    assert max(totals.latencies_s) <= 7 * RUN_S


def test_a_run_that_costs_something_beside_its_pixels_gains_from_batches() -> None:
    traffic = steady(2 / RUN_S, 10, deadline_s=1)
    alone, together = (simulate(replica(SIDE**2 * n), traffic, 1, seed=4).answered for n in (1, 8))
    assert together > 1.8 * alone


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    first, second, other = (simulate(replica(), steady(50, 20), 2, seed).latencies_s for seed in (5, 5, 6))
    assert first == second != other


def test_the_autoscaler_follows_a_burst_and_comes_back() -> None:
    bound = 100 * SIDE**2
    hpa = Autoscaler(2, 40, start_s=30)
    traffic = Traffic(lambda t: 500 if 60 < t < 400 else 50, 500, 1500, (SIDE,), (1.0,), 2.0)
    replicas = [moment.replicas for moment in simulate(replica(max_queue_pixels=bound), traffic, 2, 7, hpa).moments]
    assert max(replicas[:4]) == 2
    assert 5 <= max(replicas) <= 40
    assert replicas[-1] < max(replicas)
    before = replicas[: replicas.index(max(replicas)) + 1]
    assert all(later <= 2 * earlier for earlier, later in zip(before, before[2:], strict=False))  # 2 x in 30 s


def test_refusals_take_from_what_is_done() -> None:
    traffic = steady(3 / RUN_S, 60, deadline_s=0.5)
    dear = Replica(0.0, RUN_S, 10**9, SIDE**2, refusal_s=0.1 * RUN_S)
    free, paid = (simulate(each, traffic, 1, seed=3) for each in (replica(), dear))
    assert paid.answered < 0.85 * free.answered
    assert paid.answered + paid.late + 0.1 * paid.refused == pytest.approx(60 / RUN_S, rel=0.03)


@pytest.mark.parametrize(("run_s", "grows"), [(40, False), (80, True)])
def test_the_autoscaler_is_told_a_minutes_mean_in_whole_thousandths(run_s: float, grows: bool) -> None:
    """A picture that is a thousandth of what may wait counts only once it was there at all of a minute's scrapes."""
    one = Replica(0.0, run_s, 1000 * SIDE**2, SIDE**2)
    traffic = Traffic(lambda time: float(100 < time < 101), 1, 300, (SIDE,), (1.0,))
    totals = simulate(one, traffic, 1, seed=5, autoscaler=Autoscaler(1, 10, start_s=1, target=0.0005))
    assert totals.offered == 1
    assert (max(moment.replicas for moment in totals.moments) > 1) == grows


def test_what_bench_measured_is_read_and_nothing_else() -> None:
    refusing = "* A refusal costs 0.85 ms: 1000 of them delay a large picture by so much each."
    found = measured_replica("* A picture of x megapixels takes 476 x + 12 ms.", refusing)
    assert (found.a_s, found.b_s, found.refusal_s) == (0.476, 0.012, 0.00085)
    for read in (partial(measured_replica, overload=refusing), measured_refusal_s, measured_jobs, validated):
        with pytest.raises(ValueError, match="run python -m bench"):
            read("# Measured on nothing")


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
def test_what_a_redis_does_is_told_in_the_words_of_its_measurement() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.redis.JOBS", 1)
        patch.setattr("bench.redis.WAITING", 1)
        told = measured_jobs(measure_redis(seconds=1, iterations=5))
    assert "jobs/s of 5 evaluations" in told
