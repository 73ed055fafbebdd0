"""Reading a request's body: bounded in bytes and in time while it streams in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    ClientGone,
    MalformedUpload,
    Offence,
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


@dataclass(frozen=True)
class UploadLimits:
    """The largest body in bytes, and the longest time in seconds that it may take to arrive."""

    max_bytes: int
    timeout_s: float


@dataclass(frozen=True)
class Upload:
    """The image's bytes, the fields as they came, and what is already known to be wrong with them. ``several`` has the
    files that may come more than once."""

    image: bytes
    fields: list[tuple[str, str]]
    offences: list[Offence] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    several: dict[str, list[bytes]] = field(default_factory=dict)


async def read_upload(
    request: Request,
    limits: UploadLimits,
    files: tuple[str, ...] = FILES,
    later: tuple[str, ...] = (),
    several: tuple[str, ...] = (),
    image: str | None = IMAGE_FIELD,
) -> Upload:
    """Read an image and its fields, whichever of the two ways they came. ``files`` may come beside it, and ``several``
    any number of times; what is ``later`` is neither read nor refused here. Without an ``image`` there is a form alone.

    Raises UnsupportedMediaType, TooManyBytes, UploadTooSlow, MalformedUpload or ClientGone.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = request.query_params.multi_items()
    with translating(_RECEIVING):
        async with asyncio.timeout(limits.timeout_s):
            if media_type == MULTIPART:
                form = await _Parser(request, limits.max_bytes).parse()
                return await _from_form(form, query, files, later, several, image)
            if image and media_type in IMAGE_TYPES:
                content = b"".join([chunk async for chunk in _bounded(request, limits.max_bytes)])
                return Upload(content, query)
    ways = f"image/jpeg, image/png, image/webp, image/gif or video/mp4 with the image as the body, or {MULTIPART} with"
    wanted = f"{ways} the file field {image!r}" if image else MULTIPART
    raise UnsupportedMediaType(f"the Content-Type {media_type[:64]!r} is not read here: send {wanted}")


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    too_many = TooManyBytes(f"at most {max_bytes} bytes are taken in")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_many
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_many
        yield chunk


class _Parser(MultiPartParser):
    """Starlette's parser, kept in memory (the bound is on the whole body) and aware of a missing end."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self.spool_max_size = max_bytes + 1
        self._ended = False
        stream = _bounded(request, max_bytes)
        super().__init__(request.headers, stream, max_files=MAX_PARTS, max_fields=MAX_PARTS)

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
