"""Styles of one's own: brought in as packs, or made of a painting by a job, and then in the running service."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.encodings import Encodings
from service.engine import Engine
from service.errors import Forbidden, GatysUnavailable, InvalidFields, NameTaken, Offence, ServiceError, UnknownStyle
from service.fields import invalid, repeated
from service.images import Picture, decode, encode, on_white, open_photo
from service.jobs.job import Job, Order
from service.jobs.parameters import VECTORS_FILE, RefineParameters, packed_vectors
from service.jobs.supervisor import Supervisor
from service.models.catalog import Catalog
from service.models.encoder import painting_size
from service.models.packs import Pack, PackFolder
from service.models.store import PAINTING, StyleName

log = logging.getLogger(__name__)

T = TypeVar("T")

PAINTING_SIDE = 384  # pixels, of the shorter side, where no encoder says its own
MIN_SIDE = 16  # pixels: VGG halves a picture three times
MAX_STEPS = 5000
LOOK_S, HEARTBEAT_S = 1.0, 15.0
UNKNOWN = "unknown"


class StyleFields(BaseModel):
    """The fields of ``POST /styles`` beside the painting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: StyleName
    title: Annotated[str, Field(max_length=200)] | None = None
    artist: str = Field(UNKNOWN, max_length=200)
    year: str = Field(UNKNOWN, max_length=200)
    credit: str = Field("not stated", max_length=1000)
    steps: int = Field(200, ge=1, le=MAX_STEPS)
    model: str | None = None

    @classmethod
    def read(cls, fields: Sequence[tuple[str, str]], catalog: Catalog, offences: Sequence[Offence]) -> StyleFields:
        """Raises InvalidFields with every offence at once."""
        found = [*offences, *repeated(fields)]
        try:
            valid = cls.model_validate(dict(fields))
        except ValidationError as error:
            unknown = "unknown field; there are " + ", ".join(cls.model_fields)
            raise InvalidFields(found + invalid(error, unknown)) from error
        able = [model.name for model in catalog.conditional]
        if valid.model not in (None, *able):
            found.append(Offence("model", f"no such model takes styles of one's own; there are {', '.join(able)}"))
        if found:
            raise InvalidFields(found)
        return valid


class Refinements:
    """The styles of one's own of a service. ``codec`` is the bounded pool that decodes."""

    def __init__(
        self,
        engine: Engine,
        supervisor: Supervisor,
        encodings: Encodings,
        folder: PackFolder,
        codec: Executor,
        max_pixels: int,
    ) -> None:
        self._engine, self._supervisor, self._encodings = engine, supervisor, encodings
        self._folder, self._codec, self._max_pixels = folder, codec, max_pixels
        self._following: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep up with the folder, and with the jobs of before, while the block lasts."""
        for name, job_id in (await asyncio.to_thread(self._folder.pending)).items():
            self._follow(name, job_id)
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            tasks = [looking, *self._following]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def install(self, content: bytes) -> str:
        """A pack's style, served from now on; its name. Raises InvalidFields, NameTaken, StylesUnavailable."""
        pack = await self._in_codec(Pack.unzipped, content, self._engine.dimensions)
        self._check_free(pack.name)
        await asyncio.to_thread(self._folder.add, pack)
        await self._engine.refresh()
        return pack.name

    async def submit(self, painting: bytes, fields: StyleFields, client: str) -> Job:
        """The job that makes a style of a painting's file. Raises GatysUnavailable, NameTaken, Saturated,
        StylesUnavailable, and what ``open_photo`` and ``decode`` do."""
        self._check_free(fields.name)
        order = await self._order(painting, fields, client)
        self._supervisor.check_available()
        if importlib.util.find_spec("onnx") is None:
            raise GatysUnavailable("onnx cannot be found: install the extra 'gatys' and restart the service")
        await asyncio.to_thread(self._folder.reserve, fields.name)
        try:
            job, _ = await asyncio.to_thread(self._supervisor.queue.submit, order)
        except BaseException:
            self._folder.release(fields.name)
            raise
        await asyncio.to_thread(self._folder.assign, fields.name, job.id)
        await self._supervisor.submitted()
        self._follow(fields.name, job.id)
        return job

    async def remove(self, name: str) -> None:
        """Raises UnknownStyle, Forbidden where it is the store's, StylesUnavailable."""
        if name not in self._engine.catalog.names:
            raise UnknownStyle(f"no style is called {name[:64]!r}; GET /styles lists them")
        if not await asyncio.to_thread(self._folder.remove, name):
            raise Forbidden(f"{name} belongs to the model store: only styles of one's own can be deleted")
        await self._engine.refresh()

    async def _order(self, content: bytes, fields: StyleFields, client: str) -> Order:
        catalog = self._engine.catalog
        model = next(model for model in catalog.conditional if fields.model in (None, model.name))
        encoder = catalog.encoders.get(model.name)
        side_px = encoder.side_px if encoder else PAINTING_SIDE
        files = {"painting-0": await self._in_codec(self._painting, content, side_px)}
        if encoder:
            vector = await self._encodings.vector(encoder, content)
            files[VECTORS_FILE] = packed_vectors({PAINTING: vector}, model.card.network_sha256)
        parameters = RefineParameters(
            name=fields.name,
            title=fields.title or fields.name,
            artist=fields.artist,
            year=fields.year,
            credit=fields.credit,
            painting_sha256=hashlib.sha256(content).hexdigest(),
            painting_side_px=side_px,
            model=model.name,
            iterations=fields.steps,
        )
        return Order(client, parameters, files)

    def _painting(self, content: bytes, side_px: int) -> bytes:
        """As a PNG, no larger than it is looked at."""
        painting = open_photo(content, self._max_pixels)
        size = painting_size(painting.width, painting.height, side_px)
        if min(size) < MIN_SIDE:
            detail = f"{painting.width} x {painting.height} pixels; both sides must have at least {MIN_SIDE}"
            raise InvalidFields([Offence("painting", detail)])
        return encode(Picture(on_white(decode(painting, size))), "png", 100)

    def _check_free(self, name: str) -> None:
        if name in self._engine.catalog.names:
            raise NameTaken(f"there is a style {name} already: choose another name")

    def _follow(self, name: str, job_id: str) -> None:
        task = asyncio.create_task(self._followed(name, job_id))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _followed(self, name: str, job_id: str) -> None:
        """Install what the job makes; whatever became of it, the name is free again, but where the service ends."""
        try:
            async for _ in self._supervisor.watch(job_id, 0, HEARTBEAT_S):
                pass
            if self._engine.draining:
                return
            content = await asyncio.to_thread(self._supervisor.queue.result, job_id)
            if content is not None:
                await self._engine.loaded.wait()
                await asyncio.to_thread(self._folder.add, Pack.unzipped(content, self._engine.dimensions))
        except NameTaken:
            log.info("the style %s is there already: another service was faster", name)
        except ServiceError as error:
            log.warning("the style %s of job %s did not come to be: %s", name, job_id, error.detail)
        await asyncio.to_thread(self._folder.release, name)
        await self._engine.refresh()

    async def _look(self) -> None:
        """What others put into the folder, or take out, is served, or is not any more."""
        seen = self._folder.stamp()
        while True:
            await asyncio.sleep(LOOK_S)
            if (found := self._folder.stamp()) != seen:
                seen = found
                await self._engine.refresh()

    async def _in_codec(self, step: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codec, step, *arguments)
