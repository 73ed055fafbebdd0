"""A typed client of the HTTP contract, sync and async. It needs the extra ``client`` (httpx2).

    with Client("http://127.0.0.1:8000") as client:
        painting = client.stylize(Path("photo.jpg").read_bytes(), "starry_night:0.7,great_wave:0.3", strength=0.8)
        Path("painting.jpg").write_bytes(painting.content)

        slow = GatysOrder(Path("photo.jpg").read_bytes(), style_image=Path("any.jpg").read_bytes(), preset="fast")
        optimized = client.optimize(slow, lambda event: print(event.type, event.data))

ClientError
├── Unreachable     no answer: no server there, or it left, or it took too long
└── Refused         the server's problem+json, with its status, code and every offence
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

import httpx2 as httpx

from service.colour import PreserveColor
from service.errors import Offence, Translation, translating
from service.images import AnyFormat, Format
from service.jobs.job import FINAL, UNFINISHED, Event, EventType
from service.jobs.parameters import Init, NetworkName, Optimizer, PresetName
from service.orders import JobView
from service.schemas import Style, Styles, applied_style

TIMEOUT_S = 120.0
SILENCE_S = 60.0  # longest time without an event: the service tells every 15 s that it is still there
AGAIN_S = 1.0  # before a lost connection is tried again
PATIENCE_S = 60.0  # longest time that a job's service may be away, to be started again for instance
ACCEPTED = 202
INSTALL_TRIES = 10  # a second each: once its job has succeeded, a style is there at once, or never

OnProgress = Callable[[float], None]  # 0 to 1
OnEvent = Callable[[Event], None]


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

    ``image``, ``style_image``, ``mask`` and ``masks`` are files' bytes. Raises nothing: the server names
    every offence at once.
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
    style_fine: str | None = None
    style_coarse: str | None = None
    style_image: bytes | None = field(default=None, repr=False)

    @property
    def fields(self) -> dict[str, str]:
        """What is not a file."""
        return _fields(self)

    @property
    def files(self) -> dict[str, bytes]:
        """The painting and the masks that were given."""
        return {name: content for name, content in _files(self) if name != "image"}


@dataclass(frozen=True)
class GatysOrder:
    """One picture to be optimised, as ``POST /gatys`` takes it; None leaves a field to the preset or the server.

    ``image``, ``style_image`` (the painting, or several; or else ``style``) and ``mask`` are files' bytes;
    ``style_image_weights`` is like ``0.7,0.3``. Raises nothing: the server names every offence at once.
    """

    image: bytes = field(repr=False)
    style_image: bytes | tuple[bytes, ...] | None = field(default=None, repr=False)
    style_image_weights: str | None = None
    style: str | None = None
    preset: PresetName | None = None
    content_weight: float | None = None
    style_weight: float | None = None
    tv_weight: float | None = None
    init: Init | None = None
    optimizer: Optimizer | None = None
    iterations: int | None = None
    network: NetworkName | None = None
    max_side: int | None = None
    preserve_color: PreserveColor | None = None
    format: Format | None = None
    quality: int | None = None
    seed: int | None = None
    webhook_url: str | None = None
    mask: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class StyleOrder:
    """A style to be made of a painting, as ``POST /styles`` takes it: the file's bytes, a name of a-z, 0-9 and _, and
    what is told of it. Raises nothing."""

    painting: bytes = field(repr=False)
    name: str
    title: str | None = None
    artist: str | None = None
    year: str | None = None
    credit: str | None = None
    steps: int | None = None
    model: str | None = None


AnyOrder = Order | GatysOrder | StyleOrder


@dataclass(frozen=True)
class Stylized:
    """A finished picture: the file's bytes, its format, the mix as applied, and ``name@version`` of the model (of a
    job, its name; ``request_id`` is the job's id then)."""

    content: bytes = field(repr=False)
    format: AnyFormat
    style: str
    model: str
    request_id: str | None = None


@dataclass(frozen=True)
class Optimized:
    """A finished optimisation: the file's bytes, and its job."""

    content: bytes = field(repr=False)
    job: JobView

    @property
    def format(self) -> Format:
        return cast(Format, self.job.parameters["format"])


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
        job = self._finished(JobView.model_validate_json(response.content), _shares(on_progress))
        return _of_job(job, self.result(job.id))

    def optimize(
        self, order: GatysOrder, on_event: OnEvent = lambda event: None, idempotency_key: str | None = None
    ) -> Optimized:
        """The picture optimised: submitted, waited for, fetched. Raises Refused too where the job failed, or was
        cancelled."""
        return self.wait(self.submit(order, idempotency_key), on_event)

    def wait(self, job: JobView, on_event: OnEvent = lambda event: None) -> Optimized:
        """A job that was submitted, to its end."""
        job = self._finished(job, on_event)
        return Optimized(self.result(job.id), job)

    def submit(self, order: GatysOrder, idempotency_key: str | None = None) -> JobView:
        """The job of a new order; of an old one, where the key was used for it."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        response = self._request("POST", "/gatys", headers=headers, **_multipart(order))
        return JobView.model_validate_json(response.content)

    def job(self, id: str) -> JobView:
        return JobView.model_validate_json(self._request("GET", f"/jobs/{id}").content)

    def events(self, id: str, after: int = 0) -> Iterator[Event]:
        """What happens to a job, as it happens, from the first event with an id above ``after`` to its last, over lost
        connections and restarts of the service. Raises Unreachable once it was away for a minute."""
        ear = _Ear(after)
        while not ear.heard_all:
            try:
                ended = self.job(id).status not in UNFINISHED
                with (
                    translating(_transport(self._http.base_url)),
                    self._http.stream("GET", f"/jobs/{id}/events", **ear.request()) as response,
                ):
                    if not response.is_success:
                        response.read()
                    for line in _checked(response).iter_lines():
                        yield from ear.hear(line)
                ear.heard_all |= ended
            except Unreachable as error:
                ear.lost(error)
            if not ear.heard_all:
                time.sleep(AGAIN_S)

    def job_preview(self, id: str) -> bytes:
        """The newest picture on the way, a JPEG."""
        return self._request("GET", f"/jobs/{id}/preview").content

    def result(self, id: str) -> bytes:
        """The finished picture, in the format that its job's parameters say."""
        return self._request("GET", f"/jobs/{id}/result").content

    def cancel(self, id: str) -> None:
        """Stop a job; one that is finished stays what it is."""
        self._request("DELETE", f"/jobs/{id}")

    def make_style(self, order: StyleOrder, on_event: OnEvent = lambda event: None) -> Style:
        """A style of a painting, in the running service: submitted, waited for. Needs leave to write (``headers``).
        Raises Refused too where the job failed, or was cancelled."""
        return self.style_of(self.submit_style(order), on_event)

    def style_of(self, job: JobView, on_event: OnEvent = lambda event: None) -> Style:
        """The style that a submitted job makes."""
        name = self._finished(job, on_event).parameters["name"]
        for _ in range(INSTALL_TRIES):
            with contextlib.suppress(Refused):  # the service has yet to take it in
                return self.style(name)
            time.sleep(AGAIN_S)
        return self.style(name)

    def submit_style(self, order: StyleOrder) -> JobView:
        """The job of ``make_style``; its result is the pack."""
        return JobView.model_validate_json(self._request("POST", "/styles", **_multipart(order)).content)

    def install(self, pack: bytes) -> Style:
        """The style of a pack, served from now on."""
        files = {"pack": ("pack.zip", pack)}
        return Style.model_validate_json(self._request("POST", "/styles", files=files).content)

    def style(self, name: str) -> Style:
        return Style.model_validate_json(self._request("GET", f"/styles/{name}").content)

    def pack(self, name: str) -> bytes:
        """A style to take away: a zip."""
        return self._request("GET", f"/styles/{name}/pack").content

    def remove_style(self, name: str) -> None:
        """Only one's own."""
        self._request("DELETE", f"/styles/{name}")

    def _finished(self, job: JobView, on_event: OnEvent) -> JobView:
        for event in self.events(job.id):
            on_event(event)
        return _succeeded(self.job(job.id))

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
        job = await self._finished(JobView.model_validate_json(response.content), _shares(on_progress))
        return _of_job(job, await self.result(job.id))

    async def optimize(
        self, order: GatysOrder, on_event: OnEvent = lambda event: None, idempotency_key: str | None = None
    ) -> Optimized:
        """The picture optimised: submitted, waited for, fetched. Raises Refused too where the job failed, or was
        cancelled."""
        return await self.wait(await self.submit(order, idempotency_key), on_event)

    async def wait(self, job: JobView, on_event: OnEvent = lambda event: None) -> Optimized:
        """A job that was submitted, to its end."""
        job = await self._finished(job, on_event)
        return Optimized(await self.result(job.id), job)

    async def submit(self, order: GatysOrder, idempotency_key: str | None = None) -> JobView:
        """The job of a new order; of an old one, where the key was used for it."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        response = await self._request("POST", "/gatys", headers=headers, **_multipart(order))
        return JobView.model_validate_json(response.content)

    async def job(self, id: str) -> JobView:
        return JobView.model_validate_json((await self._request("GET", f"/jobs/{id}")).content)

    async def events(self, id: str, after: int = 0) -> AsyncIterator[Event]:
        """What happens to a job, as it happens, from the first event with an id above ``after`` to its last, over lost
        connections and restarts of the service. Raises Unreachable once it was away for a minute."""
        ear = _Ear(after)
        while not ear.heard_all:
            try:
                ended = (await self.job(id)).status not in UNFINISHED
                with translating(_transport(self._http.base_url)):
                    async with self._http.stream("GET", f"/jobs/{id}/events", **ear.request()) as response:
                        if not response.is_success:
                            await response.aread()
                        async for line in _checked(response).aiter_lines():
                            for event in ear.hear(line):
                                yield event
                ear.heard_all |= ended
            except Unreachable as error:
                ear.lost(error)
            if not ear.heard_all:
                await asyncio.sleep(AGAIN_S)

    async def job_preview(self, id: str) -> bytes:
        """The newest picture on the way, a JPEG."""
        return (await self._request("GET", f"/jobs/{id}/preview")).content

    async def result(self, id: str) -> bytes:
        """The finished picture, in the format that its job's parameters say."""
        return (await self._request("GET", f"/jobs/{id}/result")).content

    async def cancel(self, id: str) -> None:
        """Stop a job; one that is finished stays what it is."""
        await self._request("DELETE", f"/jobs/{id}")

    async def make_style(self, order: StyleOrder, on_event: OnEvent = lambda event: None) -> Style:
        """A style of a painting, in the running service: submitted, waited for. Needs leave to write (``headers``).
        Raises Refused too where the job failed, or was cancelled."""
        return await self.style_of(await self.submit_style(order), on_event)

    async def style_of(self, job: JobView, on_event: OnEvent = lambda event: None) -> Style:
        """The style that a submitted job makes."""
        name = (await self._finished(job, on_event)).parameters["name"]
        for _ in range(INSTALL_TRIES):
            with contextlib.suppress(Refused):  # the service has yet to take it in
                return await self.style(name)
            await asyncio.sleep(AGAIN_S)
        return await self.style(name)

    async def submit_style(self, order: StyleOrder) -> JobView:
        """The job of ``make_style``; its result is the pack."""
        return JobView.model_validate_json((await self._request("POST", "/styles", **_multipart(order))).content)

    async def install(self, pack: bytes) -> Style:
        """The style of a pack, served from now on."""
        files = {"pack": ("pack.zip", pack)}
        return Style.model_validate_json((await self._request("POST", "/styles", files=files)).content)

    async def style(self, name: str) -> Style:
        return Style.model_validate_json((await self._request("GET", f"/styles/{name}")).content)

    async def pack(self, name: str) -> bytes:
        """A style to take away: a zip."""
        return (await self._request("GET", f"/styles/{name}/pack")).content

    async def remove_style(self, name: str) -> None:
        """Only one's own."""
        await self._request("DELETE", f"/styles/{name}")

    async def _finished(self, job: JobView, on_event: OnEvent) -> JobView:
        async for event in self.events(job.id):
            on_event(event)
        return _succeeded(await self.job(job.id))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _request(self, method: str, path: str, **body: Any) -> httpx.Response:  # noqa: ANN401
        with translating(_transport(self._http.base_url)):
            return _checked(await self._http.request(method, path, **body))


class _Ear:
    """What was heard of a job so far: lines of Server-Sent Events come in, events go out."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.heard_all = False
        self._fields: dict[str, str] = {}
        self._lost_at: float | None = None

    def request(self) -> dict[str, Any]:
        """How to ask for what comes next."""
        return {
            "headers": {"Last-Event-ID": str(self.after)},
            "timeout": httpx.Timeout(TIMEOUT_S, read=SILENCE_S),
        }

    def hear(self, line: str) -> Iterator[Event]:
        """The event that ends with this line, if one does."""
        self._lost_at = None
        if line:
            name, _, value = line.partition(": ")
            self._fields[name] = value
            return
        fields, self._fields = self._fields, {}
        if "data" in fields:
            event = Event(int(fields["id"]), cast(EventType, fields["event"]), json.loads(fields["data"]))
            self.after = event.id
            self.heard_all = event.type in FINAL
            yield event

    def lost(self, error: Unreachable) -> None:
        """The connection broke, or was not to be had. Raises ``error`` once that lasts too long."""
        self._fields = {}
        now = time.monotonic()
        self._lost_at = self._lost_at or now
        if now - self._lost_at > PATIENCE_S:
            raise error


def _given(order: AnyOrder) -> Iterator[tuple[str, Any]]:
    named = ((each.name, getattr(order, each.name)) for each in dataclasses.fields(order))
    return ((name, value) for name, value in named if value is not None)


def _fields(order: AnyOrder) -> dict[str, str]:
    return {name: str(value) for name, value in _given(order) if not isinstance(value, bytes | tuple)}


def _files(order: AnyOrder) -> list[tuple[str, bytes]]:
    found = ((name, value if isinstance(value, tuple) else (value,)) for name, value in _given(order))
    return [(name, content) for name, contents in found for content in contents if isinstance(content, bytes)]


def _multipart(order: AnyOrder) -> dict[str, Any]:
    return {"data": _fields(order), "files": [(name, (name, content)) for name, content in _files(order)]}


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
    format = cast(AnyFormat, headers["content-type"].partition("/")[2])
    return Stylized(response.content, format, headers["x-style"], headers["x-model"], headers.get("x-request-id"))


def _shares(on_progress: OnProgress) -> OnEvent:
    def on_event(event: Event) -> None:
        if event.type in ("progress", "succeeded"):
            on_progress(event.data.get("progress", 1.0))

    return on_event


def _succeeded(job: JobView) -> JobView:
    """Raises Refused where it has no result, and never will."""
    if job.status == "succeeded":
        return job
    problem = job.error or {"status": 410, "code": job.status, "detail": f"the job was {job.status}"}
    raise Refused(problem["status"], problem["code"], problem["detail"], (), None)


def _of_job(job: JobView, content: bytes) -> Stylized:
    asked = job.parameters
    return Stylized(content, asked["format"], applied_style(asked), asked["model"], job.id)


def _transport(url: httpx.URL) -> Translation:
    return {
        httpx.TimeoutException: lambda error: Unreachable(f"{url} took too long to answer; ask for a smaller max_side"),
        httpx.TransportError: lambda error: Unreachable(f"{url} cannot be reached ({error}); is the service running?"),
        httpx.InvalidURL: lambda error: Unreachable(f"{url} is not an address: {error}"),
    }
