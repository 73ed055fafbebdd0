"""The words of the job system: a job, its events, the lease under which a worker does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from service.jobs.parameters import AnyParameters

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
EventType = Literal["progress", "preview", "succeeded", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
UNFINISHED: frozenset[Status] = frozenset({"queued", "running"})
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})  # an event of such a type is a job's last


@dataclass(frozen=True)
class Order:
    """What is submitted. ``files`` are images by name: ``photo``, ``painting-0`` …, ``mask`` or ``masks``; and
    ``painting-vectors``, see ``packed_vectors`` in ``service.jobs.parameters``."""

    client: str
    parameters: AnyParameters
    files: Mapping[str, bytes]
    idempotency_key: str | None = None
    webhook_url: str | None = None
    seeded: bool = True  # by the client: else two orders that differ in their seed alone are one order

    def fingerprinted(self) -> dict[str, Any]:
        """What tells this order from another of the same client, beside its files."""
        parameters = self.parameters.as_dict()
        if not self.seeded and "seed" in parameters:
            parameters["seed"] = None
        return {"parameters": parameters, "webhook_url": self.webhook_url}


@dataclass(frozen=True)
class Loss:
    """The losses of the picture shown last; ``total`` is their weighted sum."""

    total: float
    content: float
    style: float
    tv: float


@dataclass(frozen=True)
class Job:
    """Times are seconds since the epoch. ``position`` counts from 1, while queued; ``attempt`` from 1 once running."""

    id: str
    client: str
    status: Status
    parameters: AnyParameters
    created_at: float
    iteration: int = 0
    attempt: int = 0
    loss: Loss | None = None
    position: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    error: Mapping[str, Any] | None = None
    webhook_url: str | None = None

    @property
    def progress(self) -> float:
        """0 … 1."""
        return 1.0 if self.status == "succeeded" else min(1.0, self.iteration / self.parameters.iterations)


@dataclass(frozen=True)
class Event:
    """Something to tell watchers. ``id`` grows within a job."""

    id: int
    type: EventType
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lease:
    """The right to do a job: void once it was cancelled, or given to another worker."""

    job_id: str
    attempt: int


@dataclass(frozen=True)
class Limits:
    """Most jobs that may wait; seconds that a result is kept; how many workers a job may cost."""

    max_queued: int = 64
    result_ttl_s: float = 3600.0
    max_attempts: int = 3
