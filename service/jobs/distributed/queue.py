"""The queue of many machines, behind the interface of the embedded one.

State and order are Redis', pictures lie on the volume, and Celery's messages are *tickets*: a ticket says that some job
waits, and whoever takes it is given the next in turn. So it does no harm that a broker loses tickets (new ones are
issued for what waits) or hands one out twice (a ticket without a job is thrown away), and turns are kept on any broker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn, TypeVar

from service.errors import ConfigurationError, InvalidFields, NotFound, NotReady, Saturated, ServiceError
from service.jobs.distributed.state import Refused, Reply, State
from service.jobs.distributed.tally import Tally
from service.jobs.distributed.tickets import Tickets
from service.jobs.distributed.volume import Volume, VolumeUnusable
from service.jobs.job import STATUSES, Event, Job, Lease, Limits, Loss, Order, Status
from service.jobs.parameters import AnyParameters, read_parameters
from service.jobs.queue import (
    INPUTS,
    WEBHOOK_BACKOFF_S,
    LeaseLost,
    deadly,
    end_told,
    fingerprint_of,
    full,
    key_used,
    preview_told,
    problem_of,
    progress_told,
    unknown,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_S = 15.0  # without a sign of its worker
UPLOAD_S = 3600.0  # after which files of an order that never came are removed
WEBHOOK_HOLD_S = 60.0  # for one process to tell of a job
FULL_S = 2.0  # before a volume that failed is tried again


class Misplaced(Exception):
    """This process has another store or another volume than the service; the message says which."""


@dataclass(frozen=True)
class Ended:
    """Jobs that succeeded or failed, and workers that ended early by reason, since somebody last asked."""

    jobs: list[Job]
    restarts: Mapping[str, int]


@dataclass(frozen=True)
class Place:
    """The URLs of the broker, of the Redis that has the state, and of the pictures' volume."""

    broker_url: str
    state_url: str
    pictures_url: str

    def queue(
        self,
        limits: Limits,
        store: Callable[[], str],
        *,
        patience_s: float,
        issues: bool,
        tally: Tally | None = None,
    ) -> DistributedQueue:
        """``issues`` tickets, or does jobs only and has a ``tally`` count them. Raises ConfigurationError naming the
        variable; whether anything answers at a URL shows when it is used."""
        try:
            volume = Volume(self.pictures_url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"STYLIZE_PICTURES_URL: {error}") from error
        tickets = Tickets(self.broker_url) if issues else None
        return DistributedQueue(State(self.state_url, patience_s), volume, tickets, limits, store, tally)


class DistributedQueue:
    """``store`` tells the version of the model store that this process has now. ``tickets`` is not needed to do
    jobs. What a ``tally`` counts is kept from the web processes' metrics."""

    def __init__(
        self,
        state: State,
        volume: Volume,
        tickets: Tickets | None,
        limits: Limits,
        store: Callable[[], str],
        tally: Tally | None = None,
    ) -> None:
        self._state, self._volume, self._tickets = state, volume, tickets
        self._limits, self._store, self._tally = limits, store, tally
        self._closing = threading.Event()
        self._swept: str | None = None  # the run of Redis in which this process last swept

    # What the web tier does

    def open(self) -> None:
        """Make this process's store and volume those of the service. Raises NotReady, and Misplaced where the volume
        is not the one that the service already has."""
        known = self._call("service")[1]
        mark = self._call("open", store=self._store(), volume=known or self._on_volume(self._volume.mark))
        if not self._on_volume(lambda: self._volume.is_marked(mark)):
            raise Misplaced(
                f"STYLIZE_PICTURES_URL {self._volume.url} is not the volume of the service's jobs, which bears the mark"
                f" {mark}; to begin with another one, delete '{{stylize}}:volume' in Redis"
            )

    def submit(self, order: Order) -> tuple[Job, bool]:
        names = {
            "client": order.client,
            "key": order.idempotency_key or "",
            "fingerprint": fingerprint_of(order),
        }
        if known := self._call("known", **names):
            return self.get(known), False
        job_id = secrets.token_urlsafe(16)
        self._call("uploading", id=job_id)
        try:
            for name, content in order.files.items():
                self._volume.write(job_id, f"{name}.image", content)
        except VolumeUnusable as error:
            self._discard(job_id)
            raise _away(error) from error
        try:
            accepted = self._call(
                "submit",
                id=job_id,
                parameters=json.dumps(order.parameters.as_dict()),
                webhook_url=order.webhook_url or "",
                max_queued=self._limits.max_queued,
                **names,
            )
        except (Saturated, InvalidFields):  # and not where no answer came: the job may be there
            self._discard(job_id)
            raise
        if accepted != job_id:
            self._discard(job_id)
            return self.get(accepted), False
        self._issue(1)
        return self.get(job_id), True

    def get(self, job_id: str) -> Job:
        return self._job(job_id)[0]

    def events(self, job_id: str, after: int) -> list[Event]:
        told = [entry.split("\n", 1) for entry in self._call("events", id=job_id, after=after)]
        return [Event(after + nth, type, json.loads(data)) for nth, (type, data) in enumerate(told, 1)]

    def cancel(self, job_id: str) -> Status:
        before: Status = self._call("cancel", id=job_id, data=_json(end_told(job_id, "cancelled", None)))
        self._tidy(job_id)
        return before

    def counts(self) -> Mapping[Status, int]:
        found = _pairs(self._call("counts"))
        return {status: int(found.get(status, 0)) for status in STATUSES}

    def preview(self, job_id: str) -> bytes | None:
        return self._on_volume(lambda: self._named(job_id, "preview"))

    def result(self, job_id: str) -> bytes | None:
        return self._on_volume(lambda: self._named(job_id, "result"))

    def due_webhooks(self) -> tuple[list[Job], float | None]:
        later, *due = self._call("due_webhooks", hold_s=WEBHOOK_HOLD_S)
        return self._found(due), float(later) if later else None

    def webhook_done(self, job_id: str, delivered: bool) -> None:
        self._call("webhook_done", id=job_id, delivered=delivered, backoff_s=WEBHOOK_BACKOFF_S)

    def sweep(self) -> None:
        self._call("sweep", upload_s=UPLOAD_S)
        self._give_up_leases()
        for job_id in self._call("untidy"):
            self._tidy(job_id)
        if self._tickets:
            queued = self.counts()["queued"]
            self._issue(max(0, queued - self._tickets.waiting()))  # asked in any case: a broker is missed in good time

    def ended(self) -> Ended:
        """Each end that no worker counts is told of once, to one process."""
        jobs, restarts = self._call("ended")
        return Ended(self._found(jobs), {kind: int(count) for kind, count in _pairs(restarts).items()})

    def troubles(self) -> list[str]:
        """What those who run the service should know."""
        complaint = self._call("complaint")
        return ([complaint] if complaint else []) + self._state.weaknesses()

    def listen(self, told: Callable[[str, str], None]) -> None:
        """Begin to call ``told`` with the id of each job that something happens to, and with what, from a thread; with
        nothing where anything may have happened."""
        threading.Thread(target=self._state.listen, args=(told, self._closing), daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._state.close()

    # What workers do

    def admit(self, host: str) -> None:
        """Raises Misplaced where this process may not do the service's jobs."""
        store, mark = self._call("service")
        if store and store != self._store():
            self._misplaced(f"{host} has another model store than the service's {store}: see STYLIZE_MODEL_STORE")
        if mark and not self._volume.is_marked(mark):
            self._misplaced(f"{host} has another volume than the service: STYLIZE_PICTURES_URL is {self._volume.url}")

    def claim(self, holder: str = "") -> Lease | None:
        """``holder`` is the process that will do it: asked by the same one again, the lease is the same. Raises
        Misplaced where the store is not the service's any more."""
        try:
            return _lease(self._call("claim", store=self._store(), holder=holder, lease_s=LEASE_S))
        except Refused as refused:
            store = refused.rest[0]
            self._misplaced(f"{holder} has another model store than the service's {store}: see STYLIZE_MODEL_STORE")

    def held(self, holder: str) -> Lease | None:
        """What the process does, or did when it died."""
        return _lease(self._call("held", holder=holder))

    def inputs(self, lease: Lease) -> dict[str, bytes]:
        def read() -> dict[str, bytes]:
            names = [name for name in self._volume.names(lease.job_id) if name.startswith(INPUTS)]
            found = {name.removesuffix(".image"): self._volume.read(lease.job_id, name) for name in sorted(names)}
            self.check(lease)
            if "photo" not in found:
                raise VolumeUnusable(f"the photo of the job {lease.job_id} is not there")
            return {name: content for name, content in found.items() if content is not None}

        return self._waiting_for_volume(lease, read)

    def parameters(self, lease: Lease) -> AnyParameters:
        self.check(lease)
        return self.get(lease.job_id).parameters

    def check(self, lease: Lease) -> None:
        self._leased("check", lease)

    def report(self, lease: Lease, iteration: int, loss: Loss | None, eta_s: float) -> None:
        job = replace(self.get(lease.job_id), iteration=iteration, loss=loss)
        losses = json.dumps(asdict(loss)) if loss else ""
        self._leased("report", lease, iteration=iteration, loss=losses, data=_json(progress_told(job, eta_s)))

    def show(self, lease: Lease, iteration: int, preview: bytes) -> None:
        self._replace(lease, "preview", preview, _json(preview_told(lease.job_id, iteration)))

    def save_checkpoint(self, lease: Lease, content: bytes) -> None:
        self._replace(lease, "checkpoint", content, "")

    def checkpoint(self, lease: Lease) -> bytes | None:
        return self._waiting_for_volume(lease, lambda: self._named(lease.job_id, "checkpoint"))

    def succeed(self, lease: Lease, result: bytes) -> None:
        name = _file("result", lease)
        self._waiting_for_volume(lease, lambda: self._volume.write(lease.job_id, name, result))
        data = _json(end_told(lease.job_id, "succeeded", None))
        self._fenced(lease, name, lambda: self._end("succeed", lease, name=name, data=data))

    def fail(self, lease: Lease, error: ServiceError) -> None:
        problem = problem_of(lease.job_id, error)
        data = _json(end_told(lease.job_id, "failed", problem))
        self._end("fail", lease, error=json.dumps(problem), data=data)

    def worker_died(self, lease: Lease, reason: str) -> Status:
        problem = problem_of(lease.job_id, deadly(self._limits.max_attempts, reason))
        status: Status = self._call(
            "died",
            id=lease.job_id,
            attempt=lease.attempt,
            max_attempts=self._limits.max_attempts,
            error=json.dumps(problem),
            data=_json(end_told(lease.job_id, "failed", problem)),
        )
        return status

    def give_back(self, lease: Lease) -> None:
        """The worker ends, by no fault of the job."""
        self._call("died", id=lease.job_id, attempt=lease.attempt)

    def restarted(self, kind: str) -> None:
        """A worker ended early."""
        if self._tally:
            self._tally.restarted(kind)
        else:
            self._call("restarted", kind=kind)

    # How

    def _misplaced(self, reason: str) -> NoReturn:
        self._call("complain", reason=reason)
        raise Misplaced(reason)

    def _found(self, ids: list[str]) -> list[Job]:
        """Those that were not forgotten meanwhile."""
        jobs = []
        for job_id in ids:
            with contextlib.suppress(NotFound):
                jobs.append(self.get(job_id))
        return jobs

    def _call(self, command: str, **ask: object) -> Reply:
        try:
            return self._state.call(command, ttl_s=self._limits.result_ttl_s, **ask)
        except Refused as refused:
            match refused.reason, refused.rest:
                case "NOTFOUND", _:
                    raise unknown(str(ask["id"]), self._limits) from refused
                case "LEASELOST", _:
                    raise LeaseLost(str(ask["id"])) from refused
                case "OTHERORDER", _:
                    raise key_used() from refused
                case "FULL", [queued, pace_s]:
                    raise full(int(queued), float(pace_s)) from refused
            raise

    def _leased(self, command: str, lease: Lease, **ask: object) -> Reply:
        return self._call(command, id=lease.job_id, attempt=lease.attempt, lease_s=LEASE_S, **ask)

    def _end(self, command: str, lease: Lease, **ask: object) -> None:
        self._leased(command, lease, counted=self._tally is not None, **ask)
        self._tidy(lease.job_id)
        if self._tally:
            self._tally.ended(self.get(lease.job_id))

    def _on_volume(self, use: Callable[[], T]) -> T:
        """For those who do not wait for it."""
        try:
            return use()
        except VolumeUnusable as error:
            raise _away(error) from error

    def _waiting_for_volume(self, lease: Lease, use: Callable[[], T]) -> T:
        """A job waits for a volume that is full or away, for as long as it may take at all. Raises LeaseLost."""
        while True:
            try:
                return use()
            except VolumeUnusable as error:
                reason = f"job {lease.job_id} waits for the volume: {error}"
                log.error(reason)
                self._call("complain", reason=reason)
                self.check(lease)
                time.sleep(FULL_S)

    def _job(self, job_id: str) -> tuple[Job, Mapping[str, str]]:
        row = _pairs(self._call("get", id=job_id))
        return _job(row), row

    def _named(self, job_id: str, file: str) -> bytes | None:
        """The file that the state names; a newer one may take its place meanwhile. Raises VolumeUnusable."""
        name = self._job(job_id)[1].get(file)
        while name:
            content = self._volume.read(job_id, name)
            newer = self._job(job_id)[1].get(file)
            if content is not None or newer == name:
                return content
            name = newer
        return None

    def _replace(self, lease: Lease, file: str, content: bytes, data: str) -> None:
        """Write what a job can go on without, and remove what it takes the place of."""
        name = _file(file, lease)
        try:
            self._volume.write(lease.job_id, name, content)
        except VolumeUnusable as error:
            log.error("job %s goes on without its %s: %s", lease.job_id, file, error)
            self._discard(lease.job_id, [name])
            return
        before = self._fenced(lease, name, lambda: self._leased("name", lease, file=file, name=name, data=data))
        if before:
            self._discard(lease.job_id, [before])

    def _fenced(self, lease: Lease, name: str, tell: Callable[[], T]) -> T:
        """What an attempt wrote that was not the job's any more is removed."""
        try:
            return tell()
        except LeaseLost:
            self._discard(lease.job_id, [name])
            raise

    def _give_up_leases(self) -> None:
        run = self._state.run_id()
        if run != self._swept:  # Redis was away, or this process was: nobody could give a sign
            self._call("renew", lease_s=LEASE_S)
            self._swept = run
        for lapsed in self._call("lapsed"):
            lease = _lease(lapsed)
            assert lease is not None
            log.warning("job %s has lost its worker", lease.job_id)
            self.restarted("died")
            self.worker_died(lease, f"without a word for {LEASE_S:g} s")

    def _tidy(self, job_id: str) -> None:
        """Remove what nobody needs any more; where the volume is away, the next sweep does."""
        keep = self._call("kept", id=job_id)
        try:
            if not keep:
                self._volume.remove_all(job_id)
            elif keep != ["*"]:
                self._volume.remove(job_id, set(self._volume.names(job_id)) - set(keep))
            self._call("tidied", id=job_id)
        except VolumeUnusable as error:
            log.warning("files of job %s stay for now: %s", job_id, error)

    def _discard(self, job_id: str, names: list[str] | None = None) -> None:
        try:
            if names is None:
                self._volume.remove_all(job_id)
            else:
                self._volume.remove(job_id, names)
        except VolumeUnusable as error:
            log.warning("files of job %s stay for now: %s", job_id, error)

    def _issue(self, count: int) -> None:
        if self._tickets:
            try:
                self._tickets.issue(count)
            except NotReady as error:
                log.warning("jobs wait: %s", error)  # the state has them; a sweep issues their tickets


def _away(error: VolumeUnusable) -> NotReady:
    return NotReady([f"the volume of the jobs' pictures cannot be used: {error}"], FULL_S)


def _job(row: Mapping[str, str]) -> Job:
    def seconds(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    return Job(
        id=row["id"],
        client=row["client"],
        status=row["status"],  # type: ignore[arg-type]
        parameters=read_parameters(json.loads(row["parameters"])),
        created_at=float(row["created_at"]),
        iteration=int(row["iteration"]),
        attempt=int(row["attempt"]),
        loss=Loss(**json.loads(row["loss"])) if row.get("loss") else None,
        position=int(row["position"]) if "position" in row else None,
        started_at=seconds("started_at"),
        finished_at=seconds("finished_at"),
        expires_at=seconds("expires_at"),
        error=json.loads(row["error"]) if row.get("error") else None,
        webhook_url=row["webhook_url"] or None,
    )


def _lease(said: str | None) -> Lease | None:
    if not said:
        return None
    job_id, attempt = said.split()
    return Lease(job_id, int(attempt))


def _file(kind: str, lease: Lease) -> str:
    """A name that no other attempt has."""
    return f"{kind}-{lease.attempt}-{secrets.token_hex(4)}"


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data)
