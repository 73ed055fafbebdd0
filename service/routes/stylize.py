"""``POST /stylize``: one image in, the stylised image out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import APIRouter, Request, Response

from service.batching import Admission
from service.engine import Engine
from service.errors import ClientGone, DeadlineExceeded, TooManyPixels
from service.images import Format, Photo, Picture, decode, encode, open_photo
from service.masks import Mask
from service.metrics import Metrics, Stopwatch
from service.models.catalog import ServedModel
from service.models.style import Pixels
from service.painting import decode_masks, finished, model_for, open_mask
from service.routes.accept import negotiate
from service.routes.openapi import STYLIZE
from service.routes.upload import Upload, UploadLimits, read_upload
from service.schemas import StylizeFields

T = TypeVar("T")


@dataclass(frozen=True)
class PictureLimits:
    """Pixels of a photo taken in; default of its longer side in pixels, whose square bounds a result's pixels."""

    max_pixels: int
    max_side: int


class Stylizer:
    """Takes an upload through its stages. ``codec`` is the bounded pool that decodes and encodes."""

    def __init__(
        self, engine: Engine, admission: Admission, codec: Executor, metrics: Metrics, limits: PictureLimits
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._codec = codec
        self._metrics = metrics
        self._limits = limits

    async def answer(self, upload: Upload, accept: str | None, watch: Stopwatch, give_up: float | None) -> Response:
        """The stylised picture. ``give_up`` is the deadline by the monotonic clock, if there is one.

        Raises what api.md's table of errors says.
        """
        catalog = self._engine.catalog
        fields = StylizeFields.read(upload.fields, catalog, upload.offences, upload.files)
        model = model_for(fields, catalog)
        with watch.time("decode"):
            photo = await self._in_codec(open_photo, upload.image, self._limits.max_pixels)
            # A thread's turn costs more than most requests would use it for.
            mask = await self._in_codec(open_mask, upload.files, self._limits.max_pixels) if upload.files else None
        format = fields.format or negotiate(accept, photo.format)
        size = self._size(photo, fields.max_side)
        rows = model.rows(fields.mixes, fields.strength)
        self._check_rows(size, len(rows))
        with self._admission.admit(model, size[0] * size[1] * max(1, len(rows)), give_up) as place:
            with watch.time("decode"):
                picture = await self._in_codec(decode, photo, size)
                masks = await self._in_codec(decode_masks, mask, fields, size) if mask else []
            outputs = picture.rgb[None]
            if len(rows):
                outputs = await self._engine.submit(model, place, picture.rgb, rows, watch)
            with watch.time("encode"):
                content = await self._in_codec(_developed, model, picture, outputs, fields, masks, format)
            self._admission.codec.learn(size[0] * size[1], watch.durations_s["decode"] + watch.durations_s["encode"])
        self._count(fields, size, watch)
        headers = {
            "X-Style": str(fields.style or fields.mask_styles),
            "X-Model": model.card.label,
            "Server-Timing": watch.header(),
            "Cache-Control": "no-store",
            "Vary": "Accept",
        }
        return Response(content, media_type=f"image/{format}", headers=headers)

    @asynccontextmanager
    async def within(self, deadline_s: float | None, watch: Stopwatch) -> AsyncIterator[None]:
        """Bound the block in time. What it was doing is dropped, and it raises DeadlineExceeded; a ClientGone that
        passes is counted."""
        deadline = asyncio.timeout(deadline_s)
        try:
            async with deadline:
                yield
        except ClientGone:
            self._metrics.abandoned.labels(watch.stage).inc()
            raise
        except TimeoutError as error:
            if not deadline.expired():
                raise
            self._metrics.abandoned.labels(watch.stage).inc()
            raise DeadlineExceeded(f"the deadline passed in the stage {watch.stage!r}; allow for more time") from error

    def _size(self, photo: Photo, max_side: int | None) -> tuple[int, int]:
        """(width, height) of the result, in pixels. Raises TooManyPixels."""
        width, height = photo.size_within(max_side or self._limits.max_side)
        most = self._limits.max_side**2
        if width * height > most:
            raise TooManyPixels(
                f"the result would have {width} x {height} pixels; at most {most} are made: "
                f"ask for a max_side of {self._limits.max_side} or less"
            )
        return width, height

    def _check_rows(self, size: tuple[int, int], rows: int) -> None:
        """Regions need a row each: no more work at once than a strength between 0 and 1 may. Raises TooManyPixels."""
        most = 2 * self._limits.max_side**2
        if size[0] * size[1] * rows > most:
            fits = int(max(size) * math.sqrt(most / (size[0] * size[1] * rows)))
            raise TooManyPixels(f"{rows} runs at {size[0]} x {size[1]} pixels: ask for a max_side of {fits} or less")

    def _count(self, fields: StylizeFields, size: tuple[int, int], watch: Stopwatch) -> None:
        for mix in fields.mixes:
            for name, weight in mix.weights.items():
                self._metrics.pixels.labels(name).inc(weight * size[0] * size[1])
        for stage, duration_s in watch.durations_s.items():
            self._metrics.stage_duration.labels(stage).observe(duration_s)

    async def _in_codec(self, step: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, step, *arguments)


def stylize_router(stylizer: Stylizer, limits: UploadLimits) -> APIRouter:
    router = APIRouter()

    @router.post("/stylize", summary="Stylise a photo", response_class=Response, **STYLIZE)
    async def stylize(request: Request) -> Response:
        watch = request.state.watch = Stopwatch()
        header = [("deadline_ms", value) for value in request.headers.getlist("x-deadline-ms")]
        deadline_s = _deadline_s(request.query_params.multi_items() + header)
        give_up = None if deadline_s is None else time.monotonic() + deadline_s
        async with stylizer.within(deadline_s, watch):
            upload = await read_upload(request, limits)
            upload.fields.extend(header)
            async with while_connected(request):
                return await stylizer.answer(upload, request.headers.get("accept"), watch, give_up)

    return router


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the block once the client has closed its connection, and raise ClientGone. The body must be read."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone("before its answer was ready") from None
        raise
    finally:
        watching.cancel()


def _deadline_s(fields: list[tuple[str, str]]) -> float | None:
    """The deadline while nothing has been validated yet; a malformed one bounds nothing and is named later."""
    for name, value in fields:
        if name == "deadline_ms":
            try:
                milliseconds = float(value)
            except ValueError:
                return None
            return milliseconds / 1000 if 0 < milliseconds < math.inf else None
    return None


def _developed(
    model: ServedModel, picture: Picture, outputs: Pixels, fields: StylizeFields, masks: list[Mask], format: Format
) -> bytes:
    """The file from the network's outputs (R, H, W, 3)."""
    return encode(finished(model, picture, outputs, fields, masks), format, fields.quality)
