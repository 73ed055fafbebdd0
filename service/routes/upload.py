"""Reading a request's body: bounded in bytes and in time while it streams in, and all of them together in bytes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.errors import (
    ClientGone,
    MalformedUpload,
    Offence,
    Saturated,
    TooManyBytes,
    Translation,
    UnsupportedMediaType,
    UploadTooSlow,
    translating,
)
from service.fields import NOT_A_FILE, REPEATED
from service.schemas import FILES

MULTIPART = "multipart/form-data"
IMAGE_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp", "image/gif", "video/mp4", "video/quicktime")
IMAGE_FIELD = "image"
MAX_PARTS = 32


class Uploads:
    """What is taken in: the largest body in bytes, the longest time in seconds that it may take to arrive, and the most
    bytes of all bodies together, each of which is held until its request is answered."""

    def __init__(self, max_bytes: int, timeout_s: float, max_held_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self._max_held_bytes = max_held_bytes
        self._came = 0.0  # the sum of the times at which the bytes came that are held
        self.held_bytes = 0

    def check(self, size: int) -> None:
        """Raises Saturated where so many bytes more are not to be held. In a steady flow a byte will be held for as
        long again as it has been."""
        if self.held_bytes + size > self._max_held_bytes:
            wait_s = time.monotonic() - self._came / self.held_bytes if self.held_bytes else 0.0
            raise Saturated(f"other uploads of {self.held_bytes} bytes are at work; come back later", wait_s)

    @contextmanager
    def held(self) -> Iterator[Held]:
        """Bytes that are given back at the end of the block."""
        held = Held(self)
        try:
            yield held
        finally:
            self._add(-held.size, -held.came)

    def _add(self, size: int, came: float) -> None:
        self.held_bytes += size
        self._came += came


class Held:
    """The bytes of one request."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self.size, self.came = 0, 0.0

    def take(self, size: int) -> None:
        """Raises Saturated where they are too many beside those of others."""
        self._uploads.check(size)
        came = size * time.monotonic()
        self._uploads._add(size, came)
        self.size += size
        self.came += came


@dataclass(frozen=True)
class Upload:
    """The image's bytes, the fields as they came, and what is already known to be wrong with them. ``several`` has the
    files that may come more than once."""

    image: bytes
    fields: list[tuple[str, str]]
    offences: list[Offence] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    several: dict[str, list[bytes]] = field(default_factory=dict)


@asynccontextmanager
async def received(
    request: Request,
    uploads: Uploads,
    files: tuple[str, ...] = FILES,
    later: tuple[str, ...] = (),
    several: tuple[str, ...] = (),
    image: str | None = IMAGE_FIELD,
) -> AsyncIterator[Upload]:
    """Read an image and its fields, whichever of the two ways they came; they are held during the block. ``files`` may
    come beside it, and ``several`` any number of times; what is ``later`` is neither read nor refused here. Without an
    ``image`` there is a form alone.

    Raises UnsupportedMediaType, TooManyBytes, UploadTooSlow, MalformedUpload, Saturated or ClientGone.
    """
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isdecimal() else 0
    if size > uploads.max_bytes:
        raise _too_many(uploads)
    try:
        uploads.check(size)
    except Saturated:
        await take_what_came(request.receive)
        raise
    with uploads.held() as held:
        with translating(_RECEIVING):
            async with asyncio.timeout(uploads.timeout_s):
                upload = await _read(request, _bounded(request, uploads, held), files, later, several, image)
        yield upload


async def take_what_came(receive: Receive) -> None:
    """The rest of a body that has arrived with its head: its connection can be kept then. Waits for nothing."""
    more = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            while more:
                more = (await receive()).get("more_body", False)


async def _read(
    request: Request,
    body: AsyncGenerator[bytes, None],
    files: tuple[str, ...],
    later: tuple[str, ...],
    several: tuple[str, ...],
    image: str | None,
) -> Upload:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = request.query_params.multi_items()
    if media_type == MULTIPART:
        form = await _Parser(request, body).parse()
        return await _from_form(form, query, files, later, several, image)
    if image and media_type in IMAGE_TYPES:
        return Upload(b"".join([chunk async for chunk in body]), query)
    ways = f"image/jpeg, image/png, image/webp, image/gif or video/mp4 with the image as the body, or {MULTIPART} with"
    wanted = f"{ways} the file field {image!r}" if image else MULTIPART
    raise UnsupportedMediaType(f"the Content-Type {media_type[:64]!r} is not read here: send {wanted}")


async def _bounded(request: Request, uploads: Uploads, held: Held) -> AsyncGenerator[bytes, None]:
    async for chunk in request.stream():
        held.take(len(chunk))
        if held.size > uploads.max_bytes:
            raise _too_many(uploads)
        yield chunk


def _too_many(uploads: Uploads) -> TooManyBytes:
    return TooManyBytes(f"at most {uploads.max_bytes} bytes are taken in")


class _Parser(MultiPartParser):
    """Starlette's parser, kept in memory (the bound is on the whole body) and aware of a missing end."""

    spool_max_size = sys.maxsize

    def __init__(self, request: Request, body: AsyncGenerator[bytes, None]) -> None:
        self._ended = False
        super().__init__(request.headers, body, max_files=MAX_PARTS, max_fields=MAX_PARTS)

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("the closing boundary is missing.")
        return form


async def _from_form(
    form: FormData,
    query: list[tuple[str, str]],
    allowed: tuple[str, ...],
    later: tuple[str, ...],
    repeatable: tuple[str, ...],
    image: str | None,
) -> Upload:
    images, fields, offences, files = [], list(query), [], {}
    several: dict[str, list[bytes]] = {}
    for name, value in form.multi_items():
        if name in later:
            fields.append((name, ""))
        elif name == image and not isinstance(value, str):
            images.append(value)
        elif name == image:
            offences.append(Offence(name, "must be sent as a file"))
        elif name in repeatable and not isinstance(value, str):
            several.setdefault(name, []).append(await value.read())
        elif name in (*allowed, *repeatable):
            if isinstance(value, str) or name in files:
                offences.append(Offence(name, NOT_A_FILE if isinstance(value, str) else REPEATED))
            else:
                files[name] = await value.read()
        elif not isinstance(value, str):
            offences.append(
                Offence(name[:64], f"is a file; only {', '.join(filter(None, (image, *repeatable, *allowed)))} may be")
            )
        elif name == "deadline_ms":
            offences.append(Offence(name, "belongs into the query, or into the header X-Deadline-Ms"))
        else:
            fields.append((name, value))
    if image and len(images) != 1 and not any(offence.field == image for offence in offences):
        offences.append(Offence(image, "required: the photo, as a file" if not images else "more than one"))
    content = await images[0].read() if images else b""
    await form.close()
    return Upload(content, fields, offences, files, several)


_RECEIVING: Translation = {
    TimeoutError: lambda error: UploadTooSlow("the body did not arrive in time: send a smaller image"),
    MultiPartException: lambda error: MalformedUpload(f"the multipart body cannot be read: {error}"),
    ClientDisconnect: lambda error: ClientGone("before its upload was complete"),
}
