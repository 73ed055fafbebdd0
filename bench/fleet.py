"""A fleet of replicas as discrete events: arrivals, admission, batches, deadlines, retries, and an autoscaler.

A replica does nothing between two arrivals that cannot be worked out at the second, so it is advanced only then:
there is no queue of events but the clients' that were refused and come back. Departures from the service: runs take
as long as expected, decoding and encoding are part of them, and no client leaves early.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from service.batching import Margin

SCRAPES = 4  # a minute

Rate = Callable[[float], float]  # requests a second, by seconds since the start


@dataclass(frozen=True)
class Replica:
    """``a_s`` x + ``b_s`` seconds for x megapixels, as ``bench capacity`` measures; ``refusal_s`` that a refusal takes
    from the run beside it, as ``bench overload`` does; and the service's own limits."""

    a_s: float
    b_s: float
    max_queue_pixels: int
    max_batch_pixels: int
    refusal_s: float = 0.0

    def run_s(self, pixels: int) -> float:
        return self.a_s * pixels / 1e6 + self.b_s


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals. Who is refused comes back after Retry-After and up to ``jitter_s``, so often at most."""

    rate: Rate
    peak: float  # requests a second that ``rate`` never exceeds
    duration_s: float
    sides: tuple[int, ...]
    shares: tuple[float, ...]  # of the sides, summing to 1
    deadline_s: float = math.inf
    retries: int = 2
    jitter_s: float = 1.0

    def arrivals(self, random: np.random.Generator, slice_s: float = 10.0) -> Iterator[tuple[float, int]]:
        """Times in seconds, ascending, and pixels. Thinned from ``peak``; in slices, so that a day fits into memory."""
        begin = 0.0
        while begin < self.duration_s:
            length = min(slice_s, self.duration_s - begin)
            times = np.sort(random.random(random.poisson(self.peak * length))) * length + begin
            rates = np.array([self.rate(time) for time in times.tolist()])
            kept = times[random.random(len(times)) * self.peak < rates]
            pixels = random.choice([side**2 for side in self.sides], len(kept), p=self.shares)
            yield from zip(kept.tolist(), pixels.tolist(), strict=True)
            begin += length


@dataclass(frozen=True)
class Autoscaler:
    """Kubernetes' HPA: ``target`` of in_flight / capacity on average, as k8s/components/autoscaling has it.

    It is told each replica's mean over a minute, scraped every 15 s, cut to thousandths as prometheus-adapter does."""

    least: int
    most: int
    start_s: float  # from the decision to a replica that answers
    target: float = 0.01
    interval_s: float = 15.0
    scale_up: float = 2.0  # at most so many times as many replicas in scale_up_s
    scale_up_s: float = 30.0
    stabilisation_s: float = 300.0  # before fewer: the most that was wanted in that time
    tolerance: float = 0.1  # Kubernetes' own


@dataclass(frozen=True)
class Moment:
    """What happened in one interval."""

    end_s: float
    offered: int
    answered: int
    refused: int
    late: int
    p50_s: float
    p99_s: float
    utilisation: float
    replicas: int


@dataclass
class Totals:
    """Every request ends as exactly one of ``answered``, ``given_up`` and ``late``; ``refused`` counts attempts."""

    offered: int = 0
    answered: int = 0
    given_up: int = 0
    late: int = 0
    refused: int = 0
    busy_s: float = 0.0
    replica_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def quantile_s(self, share: float) -> float:
        return float(np.quantile(self.latencies_s, share)) if self.latencies_s else math.nan


@dataclass(slots=True)
class _Waiting:
    arrived: float  # at this replica
    first: float  # at its first attempt
    pixels: int
    give_up: float
    expected_s: float
    ahead_s: float


class _Server:
    """One replica's queue and run."""

    def __init__(self, replica: Replica, totals: Totals, born: float) -> None:
        self.replica = replica
        self.totals = totals
        self.born = born
        self.busy_until = born
        self.line: deque[_Waiting] = deque()
        self.batch: list[_Waiting] = []
        self.waiting_pixels = self.running_pixels = 0
        self.waiting_s = 0.0
        self.margin = Margin()
        self.scraped: deque[int] = deque(maxlen=SCRAPES)

    @property
    def in_flight(self) -> int:
        return self.waiting_pixels + self.running_pixels

    @property
    def saturation(self) -> float:
        """What the autoscaler is told of it."""
        mean = sum(self.scraped) / max(1, len(self.scraped)) / self.replica.max_queue_pixels
        return math.floor(1000 * mean) / 1000

    def advance(self, now: float) -> None:
        """Do all that ends or begins until then."""
        while self.busy_until <= now:
            self._finish()
            if not self.line:
                return
            self._begin(max(self.busy_until, self.line[0].arrived))

    def offer(self, now: float, first: float, pixels: int, give_up: float) -> float | None:
        """None where it is admitted, else Retry-After in whole seconds: service.batching.Admission's reasons."""
        self.advance(now)
        expected_s = self.replica.run_s(pixels)
        busy_s = max(0.0, self.busy_until - now)
        excess = self.waiting_pixels + pixels - self.replica.max_queue_pixels
        if excess > 0:
            return self._refuse(busy_s + min(1.0, excess / max(self.waiting_pixels, 1)) * self.waiting_s)
        ahead_s = busy_s + self.waiting_s
        short_s = self.margin.factor * (ahead_s + expected_s) - (give_up - now)
        if ahead_s > 0 and short_s > 0:
            return self._refuse(min(ahead_s, short_s))
        self.line.append(_Waiting(now, first, pixels, give_up, expected_s, ahead_s))
        self.waiting_pixels += pixels
        self.waiting_s += expected_s
        self.advance(now)
        return None

    def _refuse(self, room_s: float) -> float:
        self.busy_until += self.replica.refusal_s
        self.totals.busy_s += self.replica.refusal_s
        return max(1, math.ceil(room_s))

    def _begin(self, start: float) -> None:
        """The oldest and those of its size: all that came before ``start``, as far as they fit."""
        oldest, pixels, left = self.line[0], 0, deque[_Waiting]()
        for item in self.line:
            if item.give_up <= start:
                self._leave(item)
                self._late(item)
            elif not self.batch or (
                item.pixels == self.batch[0].pixels
                and item.arrived <= start
                and pixels + item.pixels <= self.replica.max_batch_pixels
            ):
                self.batch.append(item)
                pixels += item.pixels
                self._leave(item)
            else:
                left.append(item)
        self.line, self.running_pixels = left, pixels
        if not self.batch:
            self.busy_until = max(self.busy_until, oldest.arrived)
            return
        end = min(start + self.replica.run_s(pixels), max(item.give_up for item in self.batch))
        self.totals.busy_s += end - start
        self.busy_until = end

    def _leave(self, item: _Waiting) -> None:
        self.waiting_pixels -= item.pixels
        self.waiting_s = self.waiting_s - item.expected_s if self.waiting_pixels else 0.0

    def _finish(self) -> None:
        end = self.busy_until
        for item in self.batch:
            if item.give_up <= end:
                self._late(item)
                continue
            self.totals.answered += 1
            self.totals.latencies_s.append(end - item.first)
            if item.ahead_s > 0:
                self.margin.learn(item.ahead_s + item.expected_s, end - item.arrived)
        self.batch, self.running_pixels = [], 0

    def _late(self, item: _Waiting) -> None:
        self.totals.late += 1
        self.margin.learn(item.ahead_s + item.expected_s, item.give_up - item.arrived)


def simulate(
    replica: Replica, traffic: Traffic, replicas: int, seed: int, autoscaler: Autoscaler | None = None, choices: int = 1
) -> Totals:
    """Until nothing waits any more. ``choices``: the balancer takes the emptiest of so many replicas drawn at random; 1
    is what a Service of Kubernetes does. Equal seeds give equal results."""
    fleet = _Fleet(replica, replicas, autoscaler)
    random = np.random.default_rng(seed)
    draw = np.random.default_rng(seed + 1).random
    dice: Iterator[float] = (value for _ in iter(int, 1) for value in draw(4096).tolist())
    again: list[tuple[float, float, int, int]] = []  # when, first attempt, pixels, retries left
    arrivals = ((time, time, pixels, traffic.retries) for time, pixels in traffic.arrivals(random))
    for now, first, pixels, retries in _merged(arrivals, again):
        fleet.tick(now)
        fleet.totals.offered += now == first
        server = min((fleet.draw(next(dice), now) for _ in range(choices)), key=lambda one: one.in_flight)
        retry_after_s = server.offer(now, first, pixels, now + traffic.deadline_s)
        if retry_after_s is None:
            continue
        fleet.totals.refused += 1
        if retries:
            when = now + retry_after_s + traffic.jitter_s * next(dice)
            heapq.heappush(again, (when, first, pixels, retries - 1))
        else:
            fleet.totals.given_up += 1
    return fleet.end(traffic.duration_s)


def _merged(
    arrivals: Iterator[tuple[float, float, int, int]], again: list[tuple[float, float, int, int]]
) -> Iterator[tuple[float, float, int, int]]:
    """Both in the order of time, while ``again`` grows."""
    for arrival in arrivals:
        while again and again[0][0] <= arrival[0]:
            yield heapq.heappop(again)
        yield arrival
    while again:
        yield heapq.heappop(again)


class _Fleet:
    """The replicas that are up, those that start, those that drain, and who decides on it."""

    def __init__(self, replica: Replica, replicas: int, autoscaler: Autoscaler | None) -> None:
        self.totals = Totals()
        self._replica = replica
        self._autoscaler = autoscaler
        self._interval_s = autoscaler.interval_s if autoscaler else 1.0
        self._next = self._interval_s
        self._servers = [_Server(replica, self.totals, 0.0) for _ in range(replicas)]
        self._starting: list[_Server] = []
        self._draining: list[_Server] = []
        self._wanted: list[tuple[float, int]] = [(0.0, replicas)]
        self._sizes: list[tuple[float, int]] = [(0.0, replicas)]
        self._sampled: float | None = None  # the metric of the scrape before: Prometheus and its adapter are that late
        self._counted = Totals()

    def draw(self, value: float, now: float) -> _Server:
        server = self._servers[int(value * len(self._servers))]
        server.advance(now)
        return server

    def tick(self, now: float) -> None:
        while self._next <= now:
            self._interval(self._next)
            self._next += self._interval_s

    def end(self, duration_s: float) -> Totals:
        """Let everybody finish."""
        self.tick(duration_s)
        for server in self._servers + self._draining:
            server.advance(math.inf)
        return self.totals

    def _interval(self, now: float) -> None:
        for server in self._servers + self._draining:
            server.advance(now)
        self._draining = [server for server in self._draining if server.in_flight]
        self._record(now)
        if self._autoscaler:
            self._scale(now, self._autoscaler)
        self._servers += [server for server in self._starting if server.born <= now]
        self._starting = [server for server in self._starting if server.born > now]

    def _record(self, now: float) -> None:
        total, before = self.totals, self._counted
        latencies = total.latencies_s[before.answered :]
        replica_s = len(self._servers) * self._interval_s
        total.replica_s += replica_s
        p50_s, p99_s = np.quantile(latencies, [0.5, 0.99]) if latencies else (math.nan, math.nan)
        total.moments.append(
            Moment(
                now,
                total.offered - before.offered,
                total.answered - before.answered,
                total.refused - before.refused,
                total.late - before.late,
                float(p50_s),
                float(p99_s),
                (total.busy_s - before.busy_s) / replica_s,
                len(self._servers),
            )
        )
        self._counted = Totals(
            total.offered, total.answered, total.given_up, total.late, total.refused, total.busy_s, total.replica_s
        )

    def _scale(self, now: float, hpa: Autoscaler) -> None:
        for server in self._servers:
            server.scraped.append(server.in_flight)
        sampled = self._sampled
        self._sampled = sum(server.saturation for server in self._servers) / len(self._servers)
        if sampled is None:
            return
        size = len(self._servers) + len(self._starting)
        ratio = sampled / hpa.target
        wanted = size if abs(ratio - 1) <= hpa.tolerance else math.ceil(len(self._servers) * ratio)
        self._wanted = [(at, count) for at, count in self._wanted if at > now - hpa.stabilisation_s] + [(now, wanted)]
        if wanted < size:
            wanted = min(size, max(count for _, count in self._wanted))
        recent = [count for at, count in self._sizes if at >= now - hpa.scale_up_s] or [self._sizes[-1][1]]
        wanted = min(max(wanted, hpa.least), hpa.most, max(size, math.floor(min(recent) * hpa.scale_up)))
        self._sizes.append((now, wanted))
        self._starting += [_Server(self._replica, self.totals, now + hpa.start_s) for _ in range(wanted - size)]
        while wanted < len(self._servers) + len(self._starting):
            gone = self._starting if self._starting else self._servers
            self._draining.append(gone.pop())


def by_minute(moments: list[Moment]) -> Iterator[tuple[int, list[Moment]]]:
    """Moments of one minute together."""
    for minute, group in groupby(moments, key=lambda moment: math.ceil(moment.end_s / 60)):
        yield minute, list(group)
