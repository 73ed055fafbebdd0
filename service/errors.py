"""What can go wrong, each with one status and one code, as ``application/problem+json`` (RFC 9457) tells it.

Exception
├── ConfigurationError              the process does not start
├── ModelRefused                    the process stays unready
├── ClientGone                      nobody is left to be answered
└── ServiceError                    an answer
    ├── InvalidImage           400
    ├── MalformedUpload        400
    ├── Unauthorized           401
    ├── Forbidden              403
    ├── NotFound               404
    ├── UnknownStyle           404
    ├── MethodNotAllowed       405
    ├── NotAcceptable          406
    ├── UploadTooSlow          408
    ├── NotFinished            409
    ├── NameTaken              409
    ├── Expired                410
    ├── TooManyBytes           413
    ├── TooManyPixels          413
    ├── UnsupportedMediaType   415
    ├── InvalidFields          422
    ├── RunDiverged            422
    ├── Internal               500
    ├── WorkerLost             500
    ├── GatysUnavailable       503
    ├── StylesUnavailable      503
    ├── NotReady               503
    ├── Saturated              503
    ├── DeadlineExceeded       504
    └── OutOfMemory            507
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar


class ConfigurationError(Exception):
    """A setting is unknown, malformed or cannot be met; the message names the variable."""


class ModelRefused(Exception):
    """A model in the store cannot be trusted or loaded; the message says which and why."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model}: {reason}")


class ClientGone(Exception):
    """The client closed its connection: what it asked for is dropped, and nothing is answered."""


class ServiceError(Exception):
    """An error that the client is told of. ``detail`` says what was wrong and what to do about it."""

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @property
    def headers(self) -> Mapping[str, str]:
        return {}

    def members(self) -> dict[str, Any]:
        """The problem's members that belong to the error itself; the edge adds ``instance`` and ``request_id``."""
        return {
            "type": f"/docs#{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }


class InvalidImage(ServiceError):
    status, code, title = 400, "invalid_image", "The bytes are not an image that we can read"


class MalformedUpload(ServiceError):
    status, code, title = 400, "malformed_upload", "The request body is malformed or cut short"


class Unauthorized(ServiceError):
    status, code, title = 401, "unauthorized", "A token is needed"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    status, code, title = 403, "forbidden", "This is not yours to change"


class NotFound(ServiceError):
    status, code, title = 404, "not_found", "There is nothing here"


class UnknownStyle(ServiceError):
    status, code, title = 404, "unknown_style", "No such style"


class MethodNotAllowed(ServiceError):
    status, code, title = 405, "method_not_allowed", "This path does not know that method"

    def __init__(self, detail: str, allow: str) -> None:
        super().__init__(detail)
        self.allow = allow

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Allow": self.allow}


class NotAcceptable(ServiceError):
    status, code, title = 406, "not_acceptable", "No acceptable answer format"


class UploadTooSlow(ServiceError):
    status, code, title = 408, "upload_too_slow", "The upload took too long"


class NotFinished(ServiceError):
    status, code, title = 409, "not_finished", "The job is not finished"


class NameTaken(ServiceError):
    status, code, title = 409, "name_taken", "There is a style of that name"


class Expired(ServiceError):
    status, code, title = 410, "expired", "The job has expired"


class TooManyBytes(ServiceError):
    status, code, title = 413, "too_many_bytes", "The upload is too large"


class TooManyPixels(ServiceError):
    status, code, title = 413, "too_many_pixels", "The picture has too many pixels"


class UnsupportedMediaType(ServiceError):
    status, code, title = 415, "unsupported_media_type", "An input format that we do not read"


@dataclass(frozen=True)
class Offence:
    """One thing wrong with one field."""

    field: str
    detail: str


class InvalidFields(ServiceError):
    """Every offence of a request at once."""

    status, code, title = 422, "invalid_fields", "Some fields are wrong"

    def __init__(self, offences: Sequence[Offence]) -> None:
        super().__init__("; ".join(f"{offence.field}: {offence.detail}" for offence in offences))
        self.offences = tuple(offences)

    def members(self) -> dict[str, Any]:
        errors = [{"field": offence.field, "detail": offence.detail} for offence in self.offences]
        return super().members() | {"errors": errors}


class RunDiverged(ServiceError):
    status, code, title = 422, "diverged", "The optimisation left the range of numbers"


class Internal(ServiceError):
    status, code, title = 500, "internal", "A bug in this service"


class WorkerLost(ServiceError):
    status, code, title = 500, "worker_lost", "The job's workers died"


class GatysUnavailable(ServiceError):
    """Not a matter of waiting: something has to be installed or set."""

    status, code, title = 503, "gatys_unavailable", "This service has no workers for such jobs"


class StylesUnavailable(ServiceError):
    """Not a matter of waiting either: their folder cannot be written."""

    status, code, title = 503, "styles_unavailable", "This service cannot keep styles"


class _Unavailable(ServiceError):
    """Come back in ``retry_after_s`` seconds (rounded up to whole ones, as RFC 9110 has it)."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = max(1, math.ceil(retry_after_s))

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class NotReady(_Unavailable):
    """``reasons`` says what is still loading, or which model was refused and why."""

    status, code, title = 503, "not_ready", "The service is not ready"

    def __init__(self, reasons: Sequence[str], retry_after_s: float) -> None:
        super().__init__("; ".join(reasons), retry_after_s)
        self.reasons = tuple(reasons)

    def members(self) -> dict[str, Any]:
        return super().members() | {"reasons": list(self.reasons)}


class Saturated(_Unavailable):
    status, code, title = 503, "saturated", "The service is working at capacity"


class DeadlineExceeded(ServiceError):
    status, code, title = 504, "deadline_exceeded", "The deadline passed"


class OutOfMemory(ServiceError):
    status, code, title = 507, "out_of_memory", "Not enough memory for this picture"


PROBLEMS: tuple[type[ServiceError], ...] = (
    InvalidImage,
    MalformedUpload,
    Unauthorized,
    Forbidden,
    NotFound,
    UnknownStyle,
    MethodNotAllowed,
    NotAcceptable,
    UploadTooSlow,
    NotFinished,
    NameTaken,
    Expired,
    TooManyBytes,
    TooManyPixels,
    UnsupportedMediaType,
    InvalidFields,
    RunDiverged,
    Internal,
    WorkerLost,
    GatysUnavailable,
    StylesUnavailable,
    NotReady,
    Saturated,
    DeadlineExceeded,
    OutOfMemory,
)

Translation = Mapping[type[Exception], Callable[[Exception], Exception]]


@contextmanager
def translating(table: Translation) -> Iterator[None]:
    """The seam: a foreign exception leaves the block as ours, chained. The first class in ``table`` that fits wins;
    our own errors, and foreign ones that no row knows (or that it gives back), pass unchanged."""
    try:
        yield
    except (ServiceError, ModelRefused, ConfigurationError):
        raise
    except Exception as error:
        for foreign, ours in table.items():
            if isinstance(error, foreign) and (translated := ours(error)) is not error:
                raise translated from error
        raise
