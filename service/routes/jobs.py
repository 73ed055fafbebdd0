"""``POST /gatys`` and what becomes of it: jobs, their events, previews and results."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from service.engine import Engine
from service.errors import Expired, InvalidFields, NotFinished, NotFound, Offence
from service.images import Photo, Picture, decode, decode_mask, encode, media_type, open_photo
from service.jobs.job import UNFINISHED, Event, Job, Order
from service.jobs.parameters import AnyParameters, Parameters, RefineParameters
from service.jobs.supervisor import Supervisor
from service.jobs.webhook import UrlRefused, Webhooks
from service.models.store import feature_weights
from service.models.style import Mix
from service.orders import FILES, MIN_SIDE, PAINTING, GatysFields, JobView, Offer
from service.routes.accept import negotiate
from service.routes.conditional import matches
from service.routes.openapi import GATYS
from service.routes.upload import Upload, Uploads, received

T = TypeVar("T")

HEARTBEAT_S = 15.0
NETWORKS = ("vgg16", "vgg19")
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class JobLimits:
    """Pixels of a photo taken in; of a result's longer side; evaluations of a job."""

    max_pixels: int
    max_side: int
    max_iterations: int


class OrderDesk:
    """Makes orders of uploads. ``codec`` is the bounded pool that decodes."""

    def __init__(
        self, engine: Engine, store: Path, webhooks: Webhooks | None, codec: Executor, limits: JobLimits
    ) -> None:
        self._engine, self._store, self._webhooks = engine, store, webhooks
        self._codec, self._limits = codec, limits

    async def order(self, upload: Upload, request: Request) -> Order:
        """Raises what the contract's table of errors says: everything wrong with fields and header at once."""
        key = request.headers.get("idempotency-key")
        offences = list(upload.offences)
        if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
            offences.append(Offence("Idempotency-Key", "must be 1 to 255 visible ASCII characters"))
        offer = self._offer(named=any(name == "style" for name, _ in upload.fields))
        uploaded = upload.several.get(PAINTING, [])
        fields = GatysFields.read(upload.fields, offer, offences, len(uploaded))
        photo = await self._in_codec(open_photo, upload.image, self._limits.max_pixels)
        format = fields.format or negotiate(request.headers.get("accept"), photo.format)
        parameters = fields.applied(offer, format, len(uploaded))
        paintings = [offer.paintings[name] for name in parameters.style] if fields.style else uploaded
        files = await self._in_codec(self._files, photo, paintings, upload.files.get("mask"), parameters)
        return Order(
            client=request.client.host if request.client else "unknown",
            parameters=parameters,
            files=files,
            idempotency_key=key,
            webhook_url=fields.webhook_url,
            seeded=fields.seed is not None,
        )

    def _offer(self, named: bool) -> Offer:
        networks = [name for name in NETWORKS if feature_weights(self._store, name)]
        paintings = self._engine.catalog.paintings() if named else {}
        return Offer(
            self._limits.max_iterations,
            self._limits.max_side,
            networks,
            paintings,
            self._webhook_refusal,
            self._model_for,
        )

    def _model_for(self, mix: Mix) -> str | None:
        able = self._engine.catalog.models_with(set(mix.weights))
        return able[0].name if able else None

    def _webhook_refusal(self, url: str) -> str | None:
        if self._webhooks is None:
            return "webhooks are off: STYLIZE_WEBHOOK_HOSTS allows no host"
        try:
            self._webhooks.check(url)
        except UrlRefused as error:
            return str(error)
        return None

    def _files(
        self, photo: Photo, paintings: list[bytes], mask: bytes | None, parameters: Parameters
    ) -> dict[str, bytes]:
        """The pictures as PNGs, upright, in sRGB, no larger than they are needed."""
        size = photo.size_within(parameters.max_side)
        _check_size("image", size)
        files = {"photo": encode(decode(photo, size), "png", 100)}
        for index, content in enumerate(paintings):
            painting = open_photo(content, self._limits.max_pixels)
            _check_size(PAINTING, (painting.width, painting.height))
            picture = decode(painting, painting.size_within(parameters.max_side))
            files[f"painting-{index}"] = encode(replace(picture, alpha=None), "png", 100)
        if mask is not None:
            grey = decode_mask(open_photo(mask, self._limits.max_pixels), size)
            files["mask"] = encode(Picture(grey[..., None].repeat(3, axis=2)), "png", 100)
        return files

    async def _in_codec(self, step: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, step, *arguments)


def jobs_router(desk: OrderDesk, supervisor: Supervisor, uploads: Uploads) -> APIRouter:
    router = APIRouter()

    @router.post("/gatys", summary="Optimise a picture", status_code=202, response_model=JobView, **GATYS)
    async def gatys(request: Request) -> Response:
        supervisor.check_available()
        async with received(request, uploads, FILES, (), (PAINTING,)) as upload:
            return await accepted(supervisor, await desk.order(upload, request))

    @router.get("/jobs/{id}", summary="A job", response_model=JobView)
    async def get_job(id: str) -> Response:
        return job_answer(await _job(supervisor, id), 200)

    @router.get("/jobs/{id}/events", summary="A job as it goes, as Server-Sent Events", response_class=Response)
    async def get_events(id: str, request: Request) -> Response:
        _check_kept(await _job(supervisor, id))
        last = request.headers.get("last-event-id", "")
        after = int(last) if re.fullmatch(r"[0-9]{1,15}", last) else 0
        return StreamingResponse(
            _stream(supervisor.watch(id, after, HEARTBEAT_S)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @router.get("/jobs/{id}/preview", summary="The newest picture on the way", response_class=Response)
    async def get_preview(id: str) -> Response:
        _check_kept(await _job(supervisor, id))
        preview = await asyncio.to_thread(supervisor.queue.preview, id)
        if preview is None:
            raise NotFound("the job has not shown anything yet: the first picture comes at evaluation 5")
        return Response(preview, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @router.get("/jobs/{id}/result", summary="The finished picture", response_class=Response)
    async def get_result(id: str, request: Request) -> Response:
        job = await _job(supervisor, id)
        _check_kept(job)
        result = await asyncio.to_thread(supervisor.queue.result, id) if job.status == "succeeded" else None
        if result is None:
            raise NotFinished(f"the job is {job.status}: there is no result" + _hope(job))
        etag = f'"{hashlib.sha256(result).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        return Response(result, media_type=_media_type(job.parameters), headers=headers)

    @router.delete("/jobs/{id}", summary="Cancel a job", status_code=202, response_class=Response)
    async def cancel(id: str) -> Response:
        before = await supervisor.cancel(id)
        return job_answer(await _job(supervisor, id), 202) if before == "running" else Response(status_code=204)

    return router


async def accepted(supervisor: Supervisor, order: Order) -> Response:
    """An order's job, 202. Raises Saturated."""
    job, _ = await asyncio.to_thread(supervisor.queue.submit, order)
    await supervisor.submitted()
    return job_answer(job, 202)


async def _job(supervisor: Supervisor, id: str) -> Job:
    return await asyncio.to_thread(supervisor.queue.get, id)


def job_answer(job: Job, status: int) -> Response:
    """A job, and where it is."""
    return Response(
        JobView.of(job).model_dump_json(),
        status,
        headers={"Location": f"/jobs/{job.id}", "Cache-Control": "no-store"},
        media_type="application/json",
    )


def _media_type(parameters: AnyParameters) -> str:
    """Of the result: a picture, an animation, or a pack."""
    return "application/zip" if isinstance(parameters, RefineParameters) else media_type(parameters.format)


def _check_kept(job: Job) -> None:
    if job.status == "expired":
        raise Expired("its pictures were kept for a while and are gone: submit it again")


def _check_size(field: str, size: tuple[int, int]) -> None:
    if min(size) < MIN_SIDE:
        detail = f"{size[0]} x {size[1]} pixels at this max_side; both sides must have at least {MIN_SIDE}"
        raise InvalidFields([Offence(field, detail)])


def _hope(job: Job) -> str:
    return " yet; its events tell when there is" if job.status in UNFINISHED else ""


async def _stream(events: AsyncIterator[Event | None]) -> AsyncIterator[str]:
    async for event in events:
        if event is None:
            yield ": still here\n\n"
        else:
            yield f"id: {event.id}\nevent: {event.type}\ndata: {json.dumps(event.data)}\n\n"
