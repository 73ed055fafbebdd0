"""The queue: what every implementation keeps, and the embedded one, SQLite and files in one folder.

No accepted job is lost, none is finished twice: whatever a worker writes counts only while its lease does, and a job's
state and the event that tells of it change in one transaction.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from service.errors import InvalidFields, NotFound, Offence, Saturated, ServiceError, WorkerLost
from service.jobs.job import FINAL, STATUSES, UNFINISHED, Event, EventType, Job, Lease, Limits, Loss, Order, Status
from service.jobs.parameters import AnyParameters, read_parameters

GUESSED_JOB_S = 30.0  # until one was finished
WEBHOOK_BACKOFF_S = (5, 30, 300, 1800, 7200)  # then it is given up
INPUTS = ("photo", "painting-", "mask")


class LeaseLost(Exception):
    """The job was cancelled, or is another worker's by now: stop, and write nothing."""


class QueueUnusable(Exception):
    """The queue cannot be opened; the message says why."""


class JobQueue(Protocol):
    """What web process and workers need of a queue. Raises NotFound for a job that it does not know."""

    def submit(self, order: Order) -> tuple[Job, bool]:
        """Accept an order; whether it is new. Raises Saturated, and InvalidFields where the idempotency key was used
        for another order."""

    def get(self, job_id: str) -> Job: ...

    def events(self, job_id: str, after: int) -> list[Event]:
        """Those with an id above ``after``, in order."""

    def cancel(self, job_id: str) -> Status:
        """Stop the job where that is still to be done; the status that it had."""

    def counts(self) -> Mapping[Status, int]: ...

    def claim(self) -> Lease | None:
        """The next job in turn, now running; None where nothing waits."""

    def inputs(self, lease: Lease) -> dict[str, bytes]:
        """The order's files. Raises LeaseLost."""

    def parameters(self, lease: Lease) -> AnyParameters:
        """The order's parameters. Raises LeaseLost."""

    def check(self, lease: Lease) -> None:
        """Raises LeaseLost."""

    def report(self, lease: Lease, iteration: int, loss: Loss | None, eta_s: float) -> None:
        """Tell of progress; where nothing is optimised there is no loss. Raises LeaseLost."""

    def show(self, lease: Lease, iteration: int, preview: bytes) -> None:
        """A new preview, a JPEG. Raises LeaseLost."""

    def save_checkpoint(self, lease: Lease, content: bytes) -> None:
        """Raises LeaseLost."""

    def checkpoint(self, lease: Lease) -> bytes | None: ...

    def succeed(self, lease: Lease, result: bytes) -> None:
        """Raises LeaseLost."""

    def fail(self, lease: Lease, error: ServiceError) -> None:
        """Raises LeaseLost."""

    def worker_died(self, lease: Lease, reason: str) -> Status:
        """Queue the job again, or fail it where it has cost too many workers; what became of it."""

    def preview(self, job_id: str) -> bytes | None:
        """The newest preview, a JPEG."""

    def result(self, job_id: str) -> bytes | None: ...

    def due_webhooks(self) -> tuple[list[Job], float | None]:
        """Finished jobs to tell of now, and the seconds until the next one after them."""

    def webhook_done(self, job_id: str, delivered: bool) -> None:
        """Tell of a job no more, or later again."""

    def sweep(self) -> None:
        """Let what is too old expire."""

    def close(self) -> None:
        """Give back what it holds; again is no harm."""


# What every implementation says.


def fingerprint_of(order: Order) -> str:
    """Of everything that was ordered but a seed that the client left to us."""
    digest = hashlib.sha256(json.dumps(order.fingerprinted(), sort_keys=True).encode())
    for name, content in sorted(order.files.items()):
        digest.update(f"\0{name}\0{len(content)}\0".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def progress_told(job: Job, eta_s: float) -> dict[str, Any]:
    """The data of a ``progress`` event."""
    return {
        "iteration": job.iteration,
        "iterations": job.parameters.iterations,
        "progress": job.progress,
        "loss": dataclasses.asdict(job.loss) if job.loss else None,
        "eta_s": round(eta_s, 1),
    }


def preview_told(job_id: str, iteration: int) -> dict[str, Any]:
    """The data of a ``preview`` event."""
    return {"iteration": iteration, "url": f"/jobs/{job_id}/preview"}


def end_told(job_id: str, status: EventType, problem: Mapping[str, Any] | None) -> dict[str, Any]:
    """The data of a job's last event."""
    url = {"url": f"/jobs/{job_id}/result"} if status == "succeeded" else {}
    return {"id": job_id, "status": status} | url | ({"error": problem} if problem else {})


def problem_of(job_id: str, error: ServiceError) -> dict[str, Any]:
    """What a failed job has as its ``error``."""
    return error.members() | {"instance": f"/jobs/{job_id}"}


def deadly(deaths: int, reason: str) -> WorkerLost:
    return WorkerLost(f"{deaths} workers died of it, the last one {reason}: try a smaller max_side")


def key_used() -> InvalidFields:
    return InvalidFields([Offence("Idempotency-Key", "was used for another order; choose a new one")])


def full(queued: int, mean_s: float | None) -> Saturated:
    """``mean_s`` is how long a job takes, where one was done."""
    return Saturated(f"{queued} jobs wait; no more are taken in until one of them has begun", mean_s or GUESSED_JOB_S)


def unknown(job_id: str, limits: Limits) -> NotFound:
    return NotFound(f"there is no job {job_id[:64]!r}; results are kept for {limits.result_ttl_s:g} s")


SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, status TEXT NOT NULL, parameters TEXT NOT NULL,
    created_at REAL NOT NULL, started_at REAL, finished_at REAL, expires_at REAL,
    iteration INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
    loss TEXT, error TEXT, idempotency_key TEXT, fingerprint TEXT NOT NULL,
    webhook_url TEXT, webhook_tries INTEGER NOT NULL DEFAULT 0, webhook_at REAL,
    UNIQUE (client, idempotency_key)
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status);
CREATE TABLE IF NOT EXISTS events (
    job_id TEXT NOT NULL, id INTEGER NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (job_id, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turns (client TEXT PRIMARY KEY, turn INTEGER NOT NULL) WITHOUT ROWID;
"""
# Round robin: everybody's first job, then everybody's second; whoever was served longest ago comes first.
IN_TURN = """
SELECT id FROM (
    SELECT id, seq, row_number() OVER (PARTITION BY client ORDER BY seq) AS nth, coalesce(turn, 0) AS turn
    FROM jobs LEFT JOIN turns USING (client) WHERE status = 'queued'
) ORDER BY nth, turn, seq
"""


class EmbeddedQueue:
    """For the processes of one machine. ``owner`` is the one service that the folder belongs to; its workers are not.
    ``told`` is called when a worker has told of something.

    Raises QueueUnusable where the folder cannot be used, or is another service's.
    """

    def __init__(
        self,
        root: Path,
        limits: Limits,
        *,
        owner: bool,
        clock: Callable[[], float] = time.time,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._root, self._limits, self._clock, self._told = root, limits, clock, told
        self._lock = threading.Lock()
        try:
            self._files = root / "jobs"
            self._files.mkdir(parents=True, exist_ok=True)
            self._owned = _own(root / "lock") if owner else None
            self._db = sqlite3.connect(root / "jobs.sqlite", timeout=30, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what was accepted outlives a power cut
            self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise QueueUnusable(f"{root} cannot hold jobs: {error}") from error
        if owner:
            self._recover()

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._owned is not None:
                os.close(self._owned)
                self._owned = None

    def submit(self, order: Order) -> tuple[Job, bool]:
        fingerprint = fingerprint_of(order)
        if known := self._known(order, fingerprint):
            return known, False
        job_id = secrets.token_urlsafe(16)
        folder = self._files / job_id
        folder.mkdir()
        try:
            for name, content in order.files.items():
                _write(folder / f"{name}.image", content)
            with self._transaction() as db:
                if twin := self._known_in(db, order, fingerprint):
                    raise _AlreadyThere(twin)
                self._check_room(db)
                db.execute(
                    "INSERT INTO jobs (id, client, status, parameters, created_at, idempotency_key, fingerprint,"
                    " webhook_url) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?)",
                    (
                        job_id,
                        order.client,
                        json.dumps(order.parameters.as_dict()),
                        self._clock(),
                        order.idempotency_key,
                        fingerprint,
                        order.webhook_url,
                    ),
                )
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, _AlreadyThere):
                return self.get(error.job_id), False
            raise
        return self.get(job_id), True

    def get(self, job_id: str) -> Job:
        with self._transaction() as db:
            return self._job(db, self._row(db, job_id))

    def events(self, job_id: str, after: int) -> list[Event]:
        with self._transaction() as db:
            self._row(db, job_id)
            rows = db.execute("SELECT * FROM events WHERE job_id = ? AND id > ? ORDER BY id", (job_id, after))
            return [Event(row["id"], row["type"], json.loads(row["data"])) for row in rows]

    def cancel(self, job_id: str) -> Status:
        with self._transaction() as db:
            status: Status = self._row(db, job_id)["status"]
            if status in UNFINISHED:
                self._finish(db, job_id, "cancelled", None)
        if status in UNFINISHED:
            self._drop_inputs(job_id)
        return status

    def counts(self) -> Mapping[Status, int]:
        with self._transaction() as db:
            found = dict(db.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())
        return {status: found.get(status, 0) for status in STATUSES}

    def claim(self) -> Lease | None:
        with self._transaction() as db:
            row = db.execute(IN_TURN + " LIMIT 1").fetchone()
            if row is None:
                return None
            db.execute(
                "UPDATE jobs SET status = 'running', attempt = attempt + 1, started_at = coalesce(started_at, ?)"
                " WHERE id = ?",
                (self._clock(), row["id"]),
            )
            job = db.execute("SELECT client, attempt FROM jobs WHERE id = ?", (row["id"],)).fetchone()
            db.execute(
                "INSERT INTO turns SELECT ?, coalesce(max(turn), 0) + 1 FROM turns WHERE true"
                " ON CONFLICT (client) DO UPDATE SET turn = excluded.turn",
                (job["client"],),
            )
            return Lease(row["id"], job["attempt"])

    def inputs(self, lease: Lease) -> dict[str, bytes]:
        try:
            files = sorted((self._files / lease.job_id).glob("*.image"))
            found = {path.stem: path.read_bytes() for path in files if path.stem.startswith(INPUTS)}
        except OSError as error:
            raise LeaseLost(str(error)) from error
        self.check(lease)
        return found

    def parameters(self, lease: Lease) -> AnyParameters:
        with self._leased(lease) as db:
            return self._job(db, self._row(db, lease.job_id)).parameters

    def check(self, lease: Lease) -> None:
        with self._leased(lease):
            pass

    def report(self, lease: Lease, iteration: int, loss: Loss | None, eta_s: float) -> None:
        kept = json.dumps(dataclasses.asdict(loss)) if loss else None
        with self._leased(lease) as db:
            db.execute("UPDATE jobs SET iteration = ?, loss = ? WHERE id = ?", (iteration, kept, lease.job_id))
            job = self._job(db, self._row(db, lease.job_id))
            _tell(db, lease.job_id, "progress", progress_told(job, eta_s))
        self._told()

    def show(self, lease: Lease, iteration: int, preview: bytes) -> None:
        with self._leased(lease) as db:
            _write(self._files / lease.job_id / "preview.jpg", preview)
            _tell(db, lease.job_id, "preview", preview_told(lease.job_id, iteration))
        self._told()

    def save_checkpoint(self, lease: Lease, content: bytes) -> None:
        with self._leased(lease):
            _write(self._files / lease.job_id / "checkpoint", content)

    def checkpoint(self, lease: Lease) -> bytes | None:
        return _read(self._files / lease.job_id / "checkpoint")

    def succeed(self, lease: Lease, result: bytes) -> None:
        with self._leased(lease) as db:
            _write(self._files / lease.job_id / "result", result)
            self._finish(db, lease.job_id, "succeeded", None)
        self._drop_inputs(lease.job_id)

    def fail(self, lease: Lease, error: ServiceError) -> None:
        with self._leased(lease) as db:
            self._finish(db, lease.job_id, "failed", error)
        self._drop_inputs(lease.job_id)

    def worker_died(self, lease: Lease, reason: str) -> Status:
        try:
            with self._leased(lease) as db:
                db.execute("UPDATE jobs SET deaths = deaths + 1 WHERE id = ?", (lease.job_id,))
                deaths = self._row(db, lease.job_id)["deaths"]
                if deaths < self._limits.max_attempts:
                    db.execute("UPDATE jobs SET status = 'queued' WHERE id = ?", (lease.job_id,))
                    return "queued"
                self._finish(db, lease.job_id, "failed", deadly(deaths, reason))
            self._drop_inputs(lease.job_id)
        except LeaseLost:
            pass
        return self.get(lease.job_id).status

    def preview(self, job_id: str) -> bytes | None:
        return _read(self._files / self.get(job_id).id / "preview.jpg")

    def result(self, job_id: str) -> bytes | None:
        return _read(self._files / self.get(job_id).id / "result")

    def due_webhooks(self) -> tuple[list[Job], float | None]:
        now = self._clock()
        with self._transaction() as db:
            rows = db.execute("SELECT * FROM jobs WHERE webhook_at <= ? ORDER BY webhook_at", (now,)).fetchall()
            later = db.execute("SELECT min(webhook_at) FROM jobs WHERE webhook_at > ?", (now,)).fetchone()[0]
            return [self._job(db, row) for row in rows], None if later is None else later - now

    def webhook_done(self, job_id: str, delivered: bool) -> None:
        with self._transaction() as db:
            tries = self._row(db, job_id)["webhook_tries"]
            again = None
            if not delivered and tries < len(WEBHOOK_BACKOFF_S):
                again = self._clock() + WEBHOOK_BACKOFF_S[tries]
            db.execute(
                "UPDATE jobs SET webhook_at = ?, webhook_tries = webhook_tries + 1 WHERE id = ?", (again, job_id)
            )

    def sweep(self) -> None:
        """Results and previews go when they expire; that there was such a job is known for as long again."""
        now = self._clock()
        with self._transaction() as db:
            old = db.execute("SELECT id FROM jobs WHERE expires_at <= ? AND status != 'expired'", (now,)).fetchall()
            for row in old:
                self._expire(db, row["id"])
            gone = now - self._limits.result_ttl_s
            db.execute("DELETE FROM jobs WHERE status = 'expired' AND expires_at <= ?", (gone,))
            db.execute("DELETE FROM turns WHERE client NOT IN (SELECT client FROM jobs)")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _leased(self, lease: Lease) -> Iterator[sqlite3.Connection]:
        with self._transaction() as db:
            row = db.execute("SELECT status, attempt FROM jobs WHERE id = ?", (lease.job_id,)).fetchone()
            if row is None or (row["status"], row["attempt"]) != ("running", lease.attempt):
                raise LeaseLost(lease.job_id)
            yield db

    def _row(self, db: sqlite3.Connection, job_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise unknown(job_id, self._limits)
        if row["status"] != "expired" and row["expires_at"] is not None and row["expires_at"] <= self._clock():
            self._expire(db, job_id)
            return self._row(db, job_id)
        return row

    def _job(self, db: sqlite3.Connection, row: sqlite3.Row) -> Job:
        position = None
        if row["status"] == "queued":
            position = 1 + [each["id"] for each in db.execute(IN_TURN)].index(row["id"])
        return Job(
            id=row["id"],
            client=row["client"],
            status=row["status"],
            parameters=read_parameters(json.loads(row["parameters"])),
            created_at=row["created_at"],
            iteration=row["iteration"],
            attempt=row["attempt"],
            loss=Loss(**json.loads(row["loss"])) if row["loss"] else None,
            position=position,
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            expires_at=row["expires_at"],
            error=json.loads(row["error"]) if row["error"] else None,
            webhook_url=row["webhook_url"],
        )

    def _known(self, order: Order, fingerprint: str) -> Job | None:
        with self._transaction() as db:
            job_id = self._known_in(db, order, fingerprint)
        return self.get(job_id) if job_id else None

    def _known_in(self, db: sqlite3.Connection, order: Order, fingerprint: str) -> str | None:
        """The job that the idempotency key stands for."""
        if order.idempotency_key is None:
            return None
        row = db.execute(
            "SELECT id, fingerprint FROM jobs WHERE client = ? AND idempotency_key = ?",
            (order.client, order.idempotency_key),
        ).fetchone()
        if row is None:
            return None
        if row["fingerprint"] != fingerprint:
            raise key_used()
        return str(row["id"])

    def _check_room(self, db: sqlite3.Connection) -> None:
        queued = db.execute("SELECT count(*) FROM jobs WHERE status = 'queued'").fetchone()[0]
        if queued < self._limits.max_queued:
            return
        mean_s = db.execute(
            "SELECT avg(finished_at - started_at) FROM jobs WHERE status = 'succeeded'"
        ).fetchone()[0]  # fmt: skip
        raise full(queued, mean_s)

    def _finish(self, db: sqlite3.Connection, job_id: str, status: EventType, error: ServiceError | None) -> None:
        now = self._clock()
        problem = problem_of(job_id, error) if error else None
        db.execute(
            "UPDATE jobs SET status = ?, finished_at = ?, expires_at = ?, error = ?,"
            " webhook_at = CASE WHEN webhook_url IS NULL THEN NULL ELSE ? END WHERE id = ?",
            (status, now, now + self._limits.result_ttl_s, json.dumps(problem) if problem else None, now, job_id),
        )
        _tell(db, job_id, status, end_told(job_id, status, problem))

    def _expire(self, db: sqlite3.Connection, job_id: str) -> None:
        db.execute("UPDATE jobs SET status = 'expired', webhook_at = NULL WHERE id = ?", (job_id,))
        db.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
        shutil.rmtree(self._files / job_id, ignore_errors=True)

    def _drop_inputs(self, job_id: str) -> None:
        folder = self._files / job_id
        for path in [*folder.glob("*.image"), folder / "checkpoint", *folder.glob(".*.partial")]:
            path.unlink(missing_ok=True)

    def _recover(self) -> None:
        """After a crash: running jobs wait again, and what no job owns is removed."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET status = 'queued' WHERE status = 'running'")
            rows = db.execute("SELECT id, status FROM jobs").fetchall()
        known = {row["id"]: row["status"] for row in rows}
        for folder in self._files.iterdir():
            status = known.get(folder.name)
            if status is None or status == "expired":
                shutil.rmtree(folder, ignore_errors=True)
            elif status in FINAL:
                self._drop_inputs(folder.name)
            else:
                for partial in folder.glob(".*.partial"):
                    partial.unlink()


class _AlreadyThere(Exception):
    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def _own(path: Path) -> int:
    """Take the folder for this process; the kernel gives it back when the process ends, however that is."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OSError("another service uses it; set STYLIZE_DATA_DIR") from error
    return descriptor


def _tell(db: sqlite3.Connection, job_id: str, type: EventType, data: Mapping[str, Any]) -> None:
    db.execute(
        "INSERT INTO events SELECT ?, coalesce(max(id), 0) + 1, ?, ? FROM events WHERE job_id = ?",
        (job_id, type, json.dumps(data), job_id),
    )


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
