"""A Celery worker: takes tickets, and does the jobs that it is given for them, one in each of its processes.

Those processes are forked, so this one never imports torch or ONNX Runtime: where a library's threads were at work
before a fork, the child waits for threads that it does not have. Each child imports them for its first job.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import Celery, Task, signals
from celery.exceptions import Reject
from celery.worker import WorkController
from celery.worker import state as worker_state
from celery.worker.request import Request

from service.errors import DeadlineExceeded, ModelRefused, NotFound, NotReady
from service.jobs.distributed.hearing import Hearing
from service.jobs.distributed.ops import Ops
from service.jobs.distributed.queue import DistributedQueue, Misplaced, Place
from service.jobs.distributed.state import FOREVER_S
from service.jobs.distributed.tickets import TASK, Tickets, celery_app
from service.jobs.distributed.volume import VolumeUnusable
from service.jobs.job import Lease, Limits
from service.jobs.queue import LeaseLost
from service.models.store import ModelStore

if TYPE_CHECKING:
    from service.jobs.worker import Worker
    from service.models.session import ProviderChoice

log = logging.getLogger(__name__)

BEAT_S = 0.5
GRACE_S = 1.0  # for a job that is not ours any more to end; then its process does: two seconds are the contract
REFUSED_S = 5.0  # before a ticket that was refused is handed to the next
HOOK_PATIENCE_S = 2.0
BEFORE_FORK = ("torch", "onnxruntime")


@dataclass(frozen=True)
class Bench:
    """What a worker works with: processes, seconds that a job may take, networks and what they run on, and who tells
    of it, if anybody."""

    place: Place
    limits: Limits
    processes: int
    time_limit_s: float
    store: Path
    provider: ProviderChoice
    ops: Ops | None

    def queue(self, patience_s: float) -> DistributedQueue:
        version = ModelStore(self.store).version
        tally = self.ops.tally if self.ops else None
        return self.place.queue(self.limits, version, patience_s=patience_s, issues=False, tally=tally)


def work(bench: Bench) -> int:
    """Work until SIGTERM, which gives the jobs back at once: the next worker goes on from their checkpoints. The exit
    status: 1 where it hears of no tickets any more, and is to be started again. Raises ConfigurationError, and
    Misplaced where this is not a worker for the service."""
    # a container that was started again has its old name and process ids, and is not what it was
    host = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    if bench.ops:
        bench.ops.begin()
    with closing(bench.queue(FOREVER_S)) as queue:
        queue.admit(host)
    app = celery_app(bench.place.broker_url)
    app.conf.update(
        task_time_limit=bench.time_limit_s,
        worker_lost_wait=1.0,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # they are fenced, and go on
    )
    foreman = Foreman(bench, host)
    _declare(app, bench, foreman, host)
    signals.setup_logging.connect(_leave_logging_alone)
    worker = app.Worker(
        pool="prefork",
        concurrency=bench.processes,
        hostname=f"stylize@{host}",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    loaded = [name for name in BEFORE_FORK if name in sys.modules]
    assert not loaded, f"{loaded} may only be imported after the fork"
    if bench.ops:
        bench.ops.watch(bench.processes, _busy, lambda: _reasons(worker))
    tickets = Tickets(bench.place.broker_url)
    hearing = Hearing(
        tickets,
        idle=lambda: _busy() < bench.processes,
        taken=lambda: worker_state.total_count[TASK],
        end=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    hearing.begin()
    log.info("%s takes jobs, %d at once", host, bench.processes)
    worker.start()
    foreman.give_back(tickets)
    return 1 if hearing.deaf else int(worker.exitcode or 0)


class Foreman:
    """Stands for the processes that died, in the one that started them."""

    def __init__(self, bench: Bench, host: str) -> None:
        self._queue, self._host = bench.queue(HOOK_PATIENCE_S), host
        self._limit_s = bench.time_limit_s
        self._pids: set[int] = set()

    def began(self, pid: int) -> None:
        self._pids.add(pid)

    def died(self, pid: int | None, reason: str) -> None:
        """Never raises: where Redis is away, the lease lapses."""
        self._settle(pid, lambda lease: self._queue.worker_died(lease, reason), "died")

    def overran(self, pid: int | None) -> None:
        late = DeadlineExceeded(f"the job took more than {self._limit_s:g} s: ask for fewer iterations")
        self._settle(pid, lambda lease: self._queue.fail(lease, late), "time_limit")

    def give_back(self, tickets: Tickets) -> None:
        """At the end: what was being done waits again."""
        for pid in self._pids:
            try:
                if lease := self._queue.held(holder(self._host, pid)):
                    self._queue.give_back(lease)
                    tickets.issue(1)
            except NotReady as error:
                log.warning("the job of process %s waits for its lease to lapse: %s", pid, error)

    def _settle(self, pid: int | None, tell: Callable[[Lease], object], kind: str) -> None:
        if pid is None or worker_state.should_terminate or worker_state.should_stop:
            return
        try:
            if lease := self._queue.held(holder(self._host, pid)):
                log.warning("process %s ended early (%s) with job %s", pid, kind, lease.job_id)
                tell(lease)
                self._queue.restarted(kind)
        except (NotReady, LeaseLost) as error:
            log.warning("of process %s that %s nobody was told: %s", pid, kind, error)


class Hand:
    """A forked process that does jobs. Made for its first one."""

    def __init__(self, bench: Bench, host: str) -> None:
        from service.jobs.worker import Worker
        from service.models.session import cpu_quota

        self._queue = bench.queue(FOREVER_S)
        self._queue.admit(host)
        threads = max(1, cpu_quota() // bench.processes)
        self._worker: Worker = Worker(self._queue, bench.store, threads, bench.provider)
        self._host = host

    def work(self) -> None:
        """Do the next job, where one waits. Raises Misplaced."""
        lease = self._queue.claim(holder(self._host, os.getpid()))
        if lease:
            with Pulse(self._queue, lease):
                self._worker.work(lease)


class Pulse:
    """Gives signs while a job is done. Where the job was cancelled, or is another's, and yet does not end, the process
    is killed: a step may take longer than anybody waits."""

    def __init__(self, queue: DistributedQueue, lease: Lease) -> None:
        self._queue, self._lease = queue, lease
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, type: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            try:
                self._queue.check(self._lease)
            except LeaseLost:
                if self._is_done() or self._stopped.wait(GRACE_S):
                    return
                self._queue.restarted("cancelled")
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_done(self) -> bool:
        """Whether it is this process that has ended the job, and only tidies up."""
        try:
            job = self._queue.get(self._lease.job_id)
        except NotFound:
            return True
        return job.status in ("succeeded", "failed") and job.attempt == self._lease.attempt


def holder(host: str, pid: int) -> str:
    """A process, as the state knows it."""
    return f"{host}/{pid}"


def _declare(app: Celery, bench: Bench, foreman: Foreman, host: str) -> None:
    class TicketRequest(Request):  # type: ignore[misc]
        """A ticket, seen from the process that hands it to a child."""

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            foreman.began(pid)
            super().on_accepted(pid, time_accepted)

        def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
            error = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard wraps it, to keep its traceback
            if isinstance(error, WorkerLostError | SystemExit):
                foreman.died(self.worker_pid, _epitaph(error))
            super().on_failure(exc_info, send_failed_event, return_ok)

        def on_timeout(self, soft: bool, timeout: float) -> None:
            foreman.overran(self.worker_pid)
            super().on_timeout(soft, timeout)

    hands: list[Hand] = []

    @app.task(name=TASK, bind=True, Request=TicketRequest)  # type: ignore[untyped-decorator]
    def take(self: Task) -> None:
        try:
            if not hands:
                hands.append(Hand(bench, host))
            hands[0].work()
        except (Misplaced, ModelRefused, VolumeUnusable) as error:
            log.error("a ticket is refused: %s", error)
            time.sleep(REFUSED_S)
            raise Reject(str(error), requeue=True) from error


def _busy() -> int:
    """Processes that have a ticket."""
    return len(worker_state.active_requests)


def _reasons(worker: WorkController) -> list[str]:
    """Why it takes no jobs."""
    connected = worker.consumer is not None and worker.consumer.connection is not None
    return [] if connected else ["the jobs' broker is not reached, and is waited for"]


def _leave_logging_alone(**_: object) -> None:
    """Celery asks who sets up logging: it is done."""


def _epitaph(error: BaseException) -> str:
    found = re.search(r"signal \d+|exitcode \d+", str(error))
    return f"by {found[0]}" if found else str(error)
