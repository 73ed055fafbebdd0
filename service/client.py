"""A typed client of the HTTP contract, sync and async. It needs the extra ``client`` (httpx2).

    with Client("http://127.0.0.1:8000") as client:
        painting = client.stylize(Path("photo.jpg").read_bytes(), "starry_night:0.7,great_wave:0.3", strength=0.8)
        Path("painting.jpg").write_bytes(painting.content)

ClientError
├── Unreachable     no answer: no server there, or it left, or it took too long
└── Refused         the server's problem+json, with its status, code and every offence
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

import httpx2 as httpx

from service.colour import PreserveColor
from service.errors import Offence, Translation, translating
from service.images import AnyFormat
from service.schemas import Style, Styles

TIMEOUT_S = 120.0
POLL_S = 0.5
ACCEPTED = 202
FILES = ("image", "mask", "masks")

OnProgress = Callable[[float], None]  # 0 to 1


class ClientError(Exception):
    """Whatever keeps the client from an answer; the message says what to do."""


class Unreachable(ClientError):
    pass


class Refused(ClientError):
    """``retry_after_s`` only where the server said when to come back (429, 503)."""

    def __init__(
        self, status: int, code: str, detail: str, offences: tuple[Offence, ...], retry_after_s: float | None
    ) -> None:
        again = f" (try again in {retry_after_s:g} s)" if retry_after_s else ""
        super().__init__(f"{detail}{again}")
        self.status = status
        self.code = code
        self.detail = detail
        self.offences = offences
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Order:
    """One picture to be stylised, as ``POST /stylize`` takes it; None leaves a field to the server.

    ``image``, ``mask`` and ``masks`` are files' bytes. Raises nothing: the server names every offence at once.
    """

    image: bytes = field(repr=False)
    style: str | None = None
    strength: float | None = None
    preserve_color: PreserveColor | None = None
    stroke: float | None = None
    max_side: int | None = None
    model: str | None = None
    format: AnyFormat | None = None
    quality: int | None = None
    mask: bytes | None = field(default=None, repr=False)
    masks: bytes | None = field(default=None, repr=False)
    mask_styles: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in FILES}
        return {name: str(value) for name, value in values.items() if value is not None}

    @property
    def files(self) -> dict[str, bytes]:
        """The masks that were given."""
        return {name: value for name in ("mask", "masks") if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Stylized:
    """A finished picture: the file's bytes, its format, the mix as applied, and ``name@version`` of the model (of a
    job, its name; ``request_id`` is the job's id then)."""

    content: bytes = field(repr=False)
    format: AnyFormat
    style: str
    model: str
    request_id: str | None = None


class Client:
    """Talks to one service; a context manager, or ``close`` it. Every method raises Unreachable or Refused."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S, headers: Mapping[str, str] | None = None) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=headers)

    def styles(self) -> list[Style]:
        return Styles.model_validate(self._request("GET", "/styles").json()).styles

    def preview(self, style: str) -> bytes:
        """A small JPEG of the style at work."""
        return self._request("GET", f"/styles/{style}/preview").content

    def ready(self) -> bool:
        """Whether the service takes requests now. Raises Unreachable where nothing answers."""
        try:
            return self._request("GET", "/readyz").is_success
        except Refused:
            return False

    def stylize(self, image: bytes, style: str | None = None, **fields: Any) -> Stylized:  # noqa: ANN401
        """The picture painted; ``fields`` are those of Order."""
        return self.fill(Order(image, style, **fields))

    def fill(self, order: Order, on_progress: OnProgress = lambda share: None) -> Stylized:
        """The picture painted. One so large that it is a job is waited for, and ``on_progress`` told of it."""
        response = self._request("POST", "/stylize", **_multipart(order))
        if response.status_code != ACCEPTED:
            return _stylized(response)
        job = response.json()
        while _is_going_on(job):
            time.sleep(POLL_S)
            job = self._request("GET", job["links"]["self"]).json()
            on_progress(job["progress"])
        return _finished(job, self._request("GET", job["links"]["result"]))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _request(self, method: str, path: str, **body: Any) -> httpx.Response:  # noqa: ANN401
        with translating(_transport(self._http.base_url)):
            return _checked(self._http.request(method, path, **body))


class AsyncClient:
    """``Client`` for asyncio."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S, headers: Mapping[str, str] | None = None) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s, headers=headers)

    async def styles(self) -> list[Style]:
        return Styles.model_validate((await self._request("GET", "/styles")).json()).styles

    async def preview(self, style: str) -> bytes:
        """A small JPEG of the style at work."""
        return (await self._request("GET", f"/styles/{style}/preview")).content

    async def ready(self) -> bool:
        """Whether the service takes requests now. Raises Unreachable where nothing answers."""
        try:
            return (await self._request("GET", "/readyz")).is_success
        except Refused:
            return False

    async def stylize(self, image: bytes, style: str | None = None, **fields: Any) -> Stylized:  # noqa: ANN401
        """The picture painted; ``fields`` are those of Order."""
        return await self.fill(Order(image, style, **fields))

    async def fill(self, order: Order, on_progress: OnProgress = lambda share: None) -> Stylized:
        """The picture painted. One so large that it is a job is waited for, and ``on_progress`` told of it."""
        response = await self._request("POST", "/stylize", **_multipart(order))
        if response.status_code != ACCEPTED:
            return _stylized(response)
        job = response.json()
        while _is_going_on(job):
            await asyncio.sleep(POLL_S)
            job = (await self._request("GET", job["links"]["self"])).json()
            on_progress(job["progress"])
        return _finished(job, await self._request("GET", job["links"]["result"]))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _request(self, method: str, path: str, **body: Any) -> httpx.Response:  # noqa: ANN401
        with translating(_transport(self._http.base_url)):
            return _checked(await self._http.request(method, path, **body))


def _multipart(order: Order) -> dict[str, Any]:
    files = {"image": order.image, **order.files}
    return {"data": order.fields, "files": {name: (name, content) for name, content in files.items()}}


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        problem = response.json()
    except json.JSONDecodeError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    offences = tuple(Offence(error["field"], error["detail"]) for error in problem.get("errors") or ())
    again = response.headers.get("retry-after", "")
    raise Refused(
        response.status_code,
        problem.get("code", "unknown"),
        problem.get("detail") or f"the server answered {response.status_code} {response.reason_phrase}",
        offences,
        float(again) if again.isdecimal() else None,
    )


def _stylized(response: httpx.Response) -> Stylized:
    headers = response.headers
    format = cast(AnyFormat, headers["content-type"].removeprefix("image/"))
    return Stylized(response.content, format, headers["x-style"], headers["x-model"], headers.get("x-request-id"))


def _is_going_on(job: Mapping[str, Any]) -> bool:
    """Raises Refused where it will never have a result."""
    if job["status"] in ("queued", "running", "succeeded"):
        return bool(job["status"] != "succeeded")
    problem = job["error"] or {"status": 410, "code": job["status"], "detail": f"the job was {job['status']}"}
    raise Refused(problem["status"], problem["code"], problem["detail"], (), None)


def _finished(job: Mapping[str, Any], result: httpx.Response) -> Stylized:
    asked = job["parameters"]
    return Stylized(result.content, asked["format"], asked["style"] or asked["mask_styles"], asked["model"], job["id"])


def _transport(url: httpx.URL) -> Translation:
    return {
        httpx.TimeoutException: lambda error: Unreachable(f"{url} took too long to answer; ask for a smaller max_side"),
        httpx.TransportError: lambda error: Unreachable(f"{url} cannot be reached ({error}); is the service running?"),
        httpx.InvalidURL: lambda error: Unreachable(f"{url} is not an address: {error}"),
    }
