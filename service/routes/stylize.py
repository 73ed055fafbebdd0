"""``POST /stylize``: one image in, the stylised image out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from service.animations import MOVING, Animation, AnimationLimits, encode_film, may_be_animation, open_animation
from service.batching import Admission, Network, Work
from service.encodings import Encodings
from service.engine import Engine
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    GatysUnavailable,
    InvalidFields,
    Offence,
    Saturated,
    TooManyPixels,
)
from service.images import FORMATS, AnyFormat, Format, Photo, decode, encode, media_type, open_at_once, open_photo
from service.jobs.job import Order
from service.jobs.parameters import VECTORS_FILE, LargeParameters, packed_vectors
from service.jobs.supervisor import Supervisor
from service.metrics import Metrics, Stopwatch
from service.models.catalog import Catalog, Moving, ServedModel, Stroked
from service.models.store import PAINTING
from service.models.style import Pixels, Rows
from service.painting import check_film, decode_masks, decode_moving, finished, model_for, naming, open_mask, stroke_of
from service.routes.accept import negotiate
from service.routes.jobs import accepted
from service.routes.openapi import STYLIZE
from service.routes.upload import Upload, Uploads, received, take_what_came
from service.schemas import StylizeFields

T = TypeVar("T")
U = TypeVar("U")

WANTED_KEPT = 64  # sets of fields: most requests ask for what another did
QUICK_PIXELS = 2**20  # of a photo: decoding and encoding it takes at most 30 ms


@dataclass(frozen=True)
class PictureLimits:
    """Pixels of a photo taken in; default of a result's longer side; pixels of a result that a client waits for; and
    what is taken in of animations."""

    max_pixels: int
    max_side: int
    sync_max_pixels: int
    animation: AnimationLimits


@dataclass(frozen=True)
class _Moving:
    """An order of an animation."""

    animation: Animation
    mask: Photo | None
    fields: StylizeFields
    model: ServedModel
    rows: Rows
    format: AnyFormat

    @property
    def frames(self) -> int:
        """A JPEG shows the first alone."""
        return 1 if self.format == "jpeg" else self.animation.frames


Fields = tuple[tuple[str, str], ...]
_Wanted = tuple[StylizeFields, ServedModel, Rows]


class Stylizer:
    """Takes an upload through its stages. ``codec`` is the bounded pool that decodes and encodes, ``headers`` reads
    what is to be known before a place is taken there; ``supervisor`` has what is too large to wait for made as a job.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        codec: Executor,
        headers: Executor,
        metrics: Metrics,
        limits: PictureLimits,
        supervisor: Supervisor,
        encodings: Encodings,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._codec, self._headers = codec, headers
        self._metrics = metrics
        self._limits = limits
        self._supervisor = supervisor
        self._encodings = encodings
        self._wanted_of: Catalog | None = None
        self._wanted_by: Callable[[Fields], _Wanted]

    def check(self, give_up: float | None) -> None:
        """Raises Saturated where a request need not be read: see ``Admission.check``."""
        self._admission.check(give_up)

    async def answer(
        self, upload: Upload, accept: str | None, client: str, watch: Stopwatch, give_up: float | None
    ) -> Response:
        """The stylised picture, or its job. ``give_up`` is the deadline by the monotonic clock, if there is one.

        Raises what api.md's table of errors says.
        """
        catalog = self._engine.catalog
        fields, model, rows = self._wanted(upload, catalog)
        with watch.time("decode"):
            animation = await self._animation(upload.image)
            if animation is None:
                photo = await self._photo(upload.image)
            # A thread's turn costs more than most requests would use it for.
            mask = await self._header(open_mask, upload.files) if upload.files else None
        if animation and (steady := model_for(fields, catalog, moving=True)) is not model:
            model, rows = steady, np.empty((0, 0), np.float32)
            if PAINTING not in upload.files:
                rows = model.rows(fields.mixes, fields.strength)
        known = model
        if PAINTING in upload.files:
            with watch.time("infer"), naming(PAINTING):
                vector = await self._encodings.vector(catalog.encoders[model.name], upload.files[PAINTING])
            known = model.knowing({PAINTING: vector})
            rows = known.rows(fields.mixes, fields.strength)
        if animation:
            format = fields.format or negotiate(accept, animation.format, MOVING)
            moving = _Moving(animation, mask, fields, model, rows, format)
            return await self._answer_moving(moving, partial(_job_files, upload, known, fields), client, watch, give_up)
        format = _still_format(fields.format) or negotiate(accept, photo.format)
        size = photo.size_within(fields.max_side or self._limits.max_side)
        if self._is_large(size, len(rows)):
            self._check_large(model, size, len(rows))
            parameters = _large_parameters(fields, model, size, len(rows), format)
            return await accepted(self._supervisor, Order(client, parameters, _job_files(upload, known, fields)))
        network = Stroked(model, stroke) if (stroke := stroke_of(fields, size)) > 1 else model
        decode = partial(_decoded, photo, mask, size, model, fields, format)
        source_pixels = photo.pixels + (mask.pixels if mask else 0)
        quick = source_pixels <= QUICK_PIXELS
        work = Work((size[1], size[0], 3), rows, decode, quick=quick, source_pixels=source_pixels)
        content = await self._painted(network, work, watch, give_up)
        self._record_soon(fields, size, watch)
        return _answer(content, format, fields, model, watch)

    def _wanted(self, upload: Upload, catalog: Catalog) -> _Wanted:
        """Raises InvalidFields and UnknownStyle."""
        if upload.offences or upload.files:
            return _wanted(catalog, tuple(upload.fields), upload.offences, tuple(upload.files))
        if catalog is not self._wanted_of:
            self._wanted_of, self._wanted_by = catalog, lru_cache(WANTED_KEPT)(partial(_wanted, catalog))
        return self._wanted_by(tuple(upload.fields))

    async def _answer_moving(
        self,
        moving: _Moving,
        files: Callable[[], dict[str, bytes]],
        client: str,
        watch: Stopwatch,
        give_up: float | None,
    ) -> Response:
        """As ``answer``, of an animation: its frames are one picture, one below the other. ``files`` are those of the
        job that it may become."""
        fields, model, rows, frames = moving.fields, moving.model, moving.rows, moving.frames
        width, height = size = moving.animation.size_within(fields.max_side or self._limits.max_side, moving.format)
        check_film(fields, model, size, moving.format)
        if moving.format == "mp4":
            self._supervisor.check_workers()
        if moving.format == "mp4" or self._is_large((width, height * frames), len(rows)):
            self._check_large(model, size, len(rows), frames)
            parameters = _large_parameters(fields, model, size, len(rows), moving.format, frames)
            return await accepted(self._supervisor, Order(client, parameters, files()))
        decode = partial(_decoded_film, moving, size)
        source_pixels = moving.animation.width * moving.animation.height * frames
        source_pixels += moving.mask.pixels if moving.mask else 0
        work = Work((height * frames, width, 3), rows, decode, quick=False, source_pixels=source_pixels)
        content = await self._painted(Moving(model, frames), work, watch, give_up)
        self._record_soon(fields, (width, height * frames), watch)
        return _answer(content, moving.format, fields, model, watch)

    async def _painted(self, network: Network, work: Work[bytes], watch: Stopwatch, give_up: float | None) -> bytes:
        """The file. Raises Saturated where there is no place for it."""
        pixels = work.shape[0] * work.shape[1] * max(1, len(work.rows))
        slow_pixels = 0 if work.quick else work.source_pixels  # what is quick holds nobody up
        with self._admission.admit(network, pixels, give_up, slow_pixels) as place:
            if len(work.rows):
                return await self._engine.paint(network, place, work, watch)
            with watch.time("decode"):
                image, encode = await self._in_codec(work.decode)
            place.decoded()
            with watch.time("encode"):
                return await self._in_codec(encode, image[None])

    async def _photo(self, content: bytes) -> Photo:
        """Its header."""
        if photo := open_at_once(content, self._limits.max_pixels):
            return photo
        return await self._header(open_photo, content)

    async def _animation(self, content: bytes) -> Animation | None:
        """What moves, and any GIF; None where it is a photo."""
        if not may_be_animation(content):
            return None
        animation = await self._in_codec(open_animation, content, self._limits.animation)
        return animation if animation.moves else None

    @asynccontextmanager
    async def within(self, deadline_s: float | None, watch: Stopwatch) -> AsyncIterator[None]:
        """Bound the block in time. What it was doing is dropped, and it raises DeadlineExceeded; a ClientGone, or a
        DeadlineExceeded from within, is counted as it passes."""
        deadline = asyncio.timeout(deadline_s)
        try:
            async with deadline:
                yield
        except (ClientGone, DeadlineExceeded):
            self._metrics.abandoned.labels(watch.stage).inc()
            raise
        except TimeoutError as error:
            if not deadline.expired():
                raise
            self._metrics.abandoned.labels(watch.stage).inc()
            raise DeadlineExceeded(f"the deadline passed in the stage {watch.stage!r}; allow for more time") from error

    def _is_large(self, size: tuple[int, int], rows: int) -> bool:
        """Whether it is more than a client should wait for: a strength between 0 and 1 has two rows."""
        pixels, most = size[0] * size[1], self._limits.sync_max_pixels
        return pixels > most or pixels * rows > 2 * most

    def _check_large(self, model: ServedModel, size: tuple[int, int], rows: int, frames: int = 1) -> None:
        """Raises TooManyPixels where such a picture cannot be made even as a job."""
        pixels = size[0] * size[1] * frames * max(1, rows / 2)
        try:
            self._supervisor.check_workers()
            if model.tiled is None:
                most, reason = self._limits.sync_max_pixels, f"{model.name} has no graphs for tiles"
            elif pixels > self._limits.max_pixels:
                most, reason = self._limits.max_pixels, "for one job"
            else:
                return
        except GatysUnavailable as error:
            most, reason = self._limits.sync_max_pixels, f"larger ones are jobs, and there are none: {error.detail}"
        fits = int(max(size) * math.sqrt(most / pixels))
        wanted = f"{rows * frames} runs at {size[0]} x {size[1]} pixels"
        raise TooManyPixels(f"{wanted} are too much ({reason}): ask for a max_side of {fits} or less")

    def _record_soon(self, fields: StylizeFields, size: tuple[int, int], watch: Stopwatch) -> None:
        """Once the answer is on its way: no client is to wait for it."""
        asyncio.get_running_loop().call_soon(self._record, fields, size[0] * size[1], watch)

    def _record(self, fields: StylizeFields, pixels: int, watch: Stopwatch) -> None:
        for mix in fields.mixes:
            for name, weight in mix.weights.items():
                self._metrics.pixels.labels(name).inc(weight * pixels)
        for stage, duration_s in watch.durations_s.items():
            self._metrics.stage_duration.labels(stage).observe(duration_s)

    async def _header(self, step: Callable[[U, int], T], content: U) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._headers, step, content, self._limits.max_pixels)

    async def _in_codec(self, step: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, step, *arguments)


class StylizeRoute(APIRoute):
    """``POST /stylize``. FastAPI describes it; answering, its stack would cost more than all else that is done outside
    the codec and the network, and a request that reads itself needs nothing of it."""

    def __init__(self, stylizer: Stylizer, uploads: Uploads) -> None:
        self._stylizer = stylizer
        self._uploads = uploads
        super().__init__(
            "/stylize", self._answer, methods=["POST"], summary="Stylise a photo", name="stylize",
            response_class=Response, **STYLIZE,
        )  # fmt: skip

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        """Where the queue is full, a request is turned away unread."""
        watch = request.state.watch = Stopwatch()
        client = request.client.host if request.client else "unknown"
        deadline_header = _deadline_header(request)
        deadline_s = _deadline_s(request.query_params.multi_items() + deadline_header)
        give_up = None if deadline_s is None else time.monotonic() + deadline_s
        try:
            self._stylizer.check(give_up)
        except Saturated:
            await take_what_came(request.receive)
            raise
        async with self._stylizer.within(deadline_s, watch), received(request, self._uploads) as upload:
            upload.fields.extend(deadline_header)
            async with while_connected(request):
                return await self._stylizer.answer(upload, request.headers.get("accept"), client, watch, give_up)


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


def _deadline_header(request: Request) -> list[tuple[str, str]]:
    return [("deadline_ms", value) for value in request.headers.getlist("x-deadline-ms")]


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


def _job_files(upload: Upload, model: ServedModel, fields: StylizeFields) -> dict[str, bytes]:
    """What a worker needs of a request: the painting's vector in the painting's place."""
    files = {"photo": upload.image} | {name: content for name, content in upload.files.items() if name != PAINTING}
    vectors = model.travelling(fields.style_names)
    return files | ({VECTORS_FILE: packed_vectors(vectors, model.card.network_sha256)} if vectors else {})


def _large_parameters(
    fields: StylizeFields,
    model: ServedModel,
    size: tuple[int, int],
    rows: int,
    format: AnyFormat,
    frames: int | None = None,
) -> LargeParameters:
    stroke = 1.0 if frames else stroke_of(fields, size)
    return LargeParameters(
        style=str(fields.style) if fields.style else None,
        style_fine=str(fields.style_fine) if fields.style_fine else None,
        style_coarse=str(fields.style_coarse) if fields.style_coarse else None,
        mask_styles=str(fields.mask_styles) if fields.mask_styles else None,
        strength=fields.strength,
        preserve_color=fields.preserve_color,
        stroke=stroke,
        model=model.name,
        width=size[0],
        height=size[1],
        format=format,
        quality=fields.quality,
        iterations=max(1, model.steps(frames, rows) if frames else rows * model.tiles(size, stroke)),
        frames=frames,
    )


def _wanted(catalog: Catalog, fields: Fields, offences: Sequence[Offence] = (), files: Sequence[str] = ()) -> _Wanted:
    """What some fields ask for: valid, the model, and its rows (R, D); no rows yet of a painting that came along."""
    valid = StylizeFields.read(fields, catalog, offences, files)
    model = model_for(valid, catalog)
    return valid, model, np.empty((0, 0), np.float32) if PAINTING in files else model.rows(valid.mixes, valid.strength)


def _still_format(format: AnyFormat | None) -> Format | None:
    """Raises InvalidFields for what only an animation can be."""
    if format == "gif" or format == "mp4":
        raise InvalidFields([Offence("format", f"{format} is for animations; a photo can be {', '.join(FORMATS)}")])
    return format


def _answer(content: bytes, format: AnyFormat, fields: StylizeFields, model: ServedModel, watch: Stopwatch) -> Response:
    headers = {
        "X-Style": fields.applied_style,
        "X-Model": model.card.label,
        "Server-Timing": watch.header(),
        "Cache-Control": "no-store",
        "Vary": "Accept",
    }
    return Response(content, media_type=media_type(format), headers=headers)


def _decoded(
    photo: Photo, mask: Photo | None, size: tuple[int, int], model: ServedModel, fields: StylizeFields, format: Format
) -> tuple[Pixels, Callable[[Pixels], bytes]]:
    """The pixels (H, W, 3), and what makes the file of the network's outputs (R, H, W, 3)."""
    picture, masks = decode(photo, size), decode_masks(mask, fields, size)

    def developed(outputs: Pixels) -> bytes:
        return encode(finished(model, picture, outputs, fields, masks), format, fields.quality)

    return picture.rgb, developed


def _decoded_film(moving: _Moving, size: tuple[int, int]) -> tuple[Pixels, Callable[[Pixels], bytes]]:
    """As ``_decoded``: the strip (F H, W, 3), and what makes the file of the network's outputs (R, F H, W, 3)."""
    film, masks = decode_moving(moving.animation, moving.mask, moving.fields, size, moving.frames)

    def developed(outputs: Pixels) -> bytes:
        strip = finished(moving.model, film.strip, outputs, moving.fields, masks)
        return encode_film(replace(film, strip=strip), moving.format, moving.fields.quality)

    return film.strip.rgb, developed
