"""A worker: a process that does the jobs whose leases it is given, one at a time. The only one that imports torch,
and only for Gatys' optimisation.

``python -m service.jobs.worker DATA_DIR STORE THREADS RESULT_TTL_S PROVIDER``. A line ``<job id> <attempt>`` on stdin
begins a job; lines on stdout tell of it: ``told`` (watchers have something to read) and ``done`` (whatever became of
it). The end of stdin is the end of the service, and of this process.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from service.animations import AnimationLimits, Film, encode_film, open_animation
from service.errors import Internal, InvalidFields, ModelRefused, Offence, OutOfMemory, RunDiverged, ServiceError
from service.images import Picture, decode, decode_mask, encode, open_photo, shrunk, within
from service.jobs.job import Lease, Limits, Loss
from service.jobs.parameters import (
    VECTORS_FILE,
    LargeParameters,
    NetworkName,
    Parameters,
    Pooling,
    Precision,
    RefineParameters,
    unpacked_vectors,
)
from service.jobs.queue import EmbeddedQueue, JobQueue, LeaseLost
from service.masks import Mask
from service.models.catalog import Catalog, ServedModel, served
from service.models.packs import Pack, Papers
from service.models.session import ProviderChoice, Session
from service.models.store import PAINTING, Card, ModelStore, StoredModel, Vector, feature_weights
from service.models.style import Mix
from service.models.tiling import THUMBNAIL_SIDE, Observe
from service.painting import PREVIEW_SIDE, decode_masks, decode_moving, model_for, open_mask, painted, painted_film
from service.schemas import StylizeFields

if TYPE_CHECKING:
    from service.gatys.refine import Progress as Refinement
    from service.gatys.run import Pixels, Progress
    from service.gatys.vgg import VGG

log = logging.getLogger(__name__)

NICE = 10  # the fast path goes first
REPORT_S, CHECKPOINT_S = 1.0, 3.0
FIRST_PREVIEW = 5  # evaluations; then at 10, 20, 40 …
PREVIEW_QUALITY = 85
STYLE_PREVIEW_SIDE = 512  # pixels, as those of the store
MANY_PIXELS = 2**31  # our own files were measured when they came in


def main(arguments: Sequence[str]) -> int:
    """Work until stdin ends."""
    root, store = map(Path, arguments[:2])
    threads, limits = int(arguments[2]), Limits(result_ttl_s=float(arguments[3]))
    os.nice(NICE)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    jobs = EmbeddedQueue(root, limits, owner=False, told=lambda: _say("told"))
    worker = Worker(jobs, store, threads, cast(ProviderChoice, arguments[4]))
    _say("ready")
    while True:
        job_id, attempt = orders.get().split()
        worker.work(Lease(job_id, int(attempt)))
        _say("done")


class Worker:
    """Does jobs of a queue with the networks of a store, on so many threads."""

    def __init__(self, jobs: JobQueue, store: Path, threads: int, provider: ProviderChoice) -> None:
        self._jobs, self._store, self._threads = jobs, store, threads
        self._provider = provider
        self._vgg: tuple[object, VGG] | None = None

    def work(self, lease: Lease) -> None:
        """Do the job. Never raises: what goes wrong becomes the job's error, and a lost lease ends it quietly."""
        try:
            try:
                self._jobs.succeed(lease, self._done(lease))
            except ServiceError as error:
                self._jobs.fail(lease, error)
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
                    raise
                self._jobs.fail(lease, OutOfMemory("the job does not fit into memory: ask for a smaller max_side"))
        except LeaseLost:
            log.info("job %s is no longer ours", lease.job_id)
        except Exception:
            log.exception("a bug: job %s", lease.job_id)
            try:
                self._jobs.fail(lease, Internal("please report it, with the id of the job"))
            except LeaseLost:
                return

    def _done(self, lease: Lease) -> bytes:
        """The result, a file."""
        parameters = self._jobs.parameters(lease)
        if isinstance(parameters, LargeParameters):
            return self._large(lease, parameters)
        if isinstance(parameters, RefineParameters):
            return self._refined(lease, parameters)
        return self._optimised(lease, parameters)

    def _refined(self, lease: Lease, parameters: RefineParameters) -> bytes:
        """A painting's style, as a pack. It begins with the vector that came with the order, or with the nearest.

        Raises InvalidFields where the network is not of our making, Internal where the vector is for another."""
        from service.gatys.refine import PREVIEW_PHOTO, State, nearest_of, refine
        from service.gatys.transformer import load_transformer

        stored = self._stored(parameters.model)
        try:
            network, _ = load_transformer(stored.graph, stored.card.label)
        except ValueError as error:
            raise InvalidFields([Offence("model", str(error))]) from error
        vgg = self._features("vgg16")
        files, saved = self._jobs.inputs(lease), self._jobs.checkpoint(lease)
        painting, came = _picture(files["painting-0"]).rgb, _vectors(files, stored.card)
        if saved:
            start = State.unpacked(saved)
        elif PAINTING in came:
            start = State.first(came[PAINTING])
        else:
            known = {style.name: stored.vectors[style.name] for style in stored.card.styles}
            start = State.first(nearest_of(vgg, network, painting, known))
        observe = _Reporter(self._jobs, lease).observe
        vector = refine(
            vgg, network, painting, start, steps=parameters.iterations, seed=parameters.seed, observe=observe
        )
        photo = open_photo(PREVIEW_PHOTO.read_bytes(), MANY_PIXELS)
        session = Session(stored, self._provider, self._threads)
        shown = session.run(decode(photo, photo.size_within(STYLE_PREVIEW_SIDE)).rgb[None], vector[None])[0]
        told = parameters.as_dict()
        papers = {name: told[name] for name in Papers.model_fields if name in told}
        preview = encode(Picture(shown), "jpeg", PREVIEW_QUALITY)
        return Pack(Papers(**papers, network=stored.card.network_sha256), vector, preview).zipped()

    def _optimised(self, lease: Lease, parameters: Parameters) -> bytes:
        """Raises RunDiverged."""
        from service.gatys.optimize import Diverged
        from service.gatys.run import Checkpoint, paint

        order = _Inputs.read(self._jobs.inputs(lease), parameters)
        saved = self._jobs.checkpoint(lease)
        reporter, resume = _Reporter(self._jobs, lease), Checkpoint.unpacked(saved) if saved else None
        try:
            picture = paint(
                self._features(parameters.network, parameters.defaults.pooling, parameters.defaults.precision),
                order.photo.rgb,
                order.paintings,
                parameters,
                mask=order.mask,
                start=None if resume else self._start(parameters, order.photo.rgb),
                resume=resume,
                observe=reporter.observe,
            )
        except Diverged as error:
            raise RunDiverged(str(error)) from error
        return encode(Picture(picture, order.photo.alpha), parameters.format, parameters.quality)

    def _start(self, parameters: Parameters, photo: Pixels) -> Pixels | None:
        """What a network makes of the photo, for the optimisation to begin with; it brings it to its own size."""
        if parameters.start_model is None:
            return None
        model = self._model(parameters.start_model)
        small = shrunk(photo, THUMBNAIL_SIDE)
        stylized: Pixels = model.begin()(small[None], model.rows([Mix(parameters.style)], 1.0))[0]
        return stylized

    def _large(self, lease: Lease, parameters: LargeParameters) -> bytes:
        """The picture in tiles; before it, a small one with the same statistics as the preview."""
        files = self._jobs.inputs(lease)
        image = files.pop("photo")
        model = self._model(parameters.model)
        vectors = _vectors(files, model.card)
        catalog = Catalog.of([model.knowing(vectors)])
        if PAINTING in vectors:
            files[PAINTING] = b""  # as a request names it
        fields = StylizeFields.read(_fields(parameters), catalog, files=files)
        size = parameters.width, parameters.height
        if parameters.frames is not None:
            return self._moving(lease, parameters, image, files, fields, catalog)
        small = fields.model_copy(update={"stroke": max(1.0, parameters.stroke * PREVIEW_SIDE / max(size))})
        preview = _stylized(image, files, small, catalog, within(size, PREVIEW_SIDE))
        self._jobs.show(lease, 0, encode(preview, "jpeg", PREVIEW_QUALITY))
        tiles = _Tiles(self._jobs, lease, parameters.iterations)
        picture = _stylized(image, files, fields, catalog, size, tiles.observe)
        assert parameters.format != "gif"  # these are for animations
        assert parameters.format != "mp4"
        return encode(picture, parameters.format, parameters.quality)

    def _moving(
        self,
        lease: Lease,
        parameters: LargeParameters,
        image: bytes,
        files: Mapping[str, bytes],
        fields: StylizeFields,
        catalog: Catalog,
    ) -> bytes:
        """An animation; before it, its first frame as the preview."""
        model, size = model_for(fields, catalog), (parameters.width, parameters.height)
        limits = AnimationLimits(MANY_PIXELS, MANY_PIXELS)

        def opened(frames: int | None) -> tuple[Film, list[Mask]]:
            mask = open_mask(files, MANY_PIXELS)
            return decode_moving(open_animation(image, limits), mask, fields, size, frames)

        film, masks = opened(1)
        first = painted_film(film, fields, model, masks)
        self._jobs.show(lease, 0, encode_film(first, "jpeg", PREVIEW_QUALITY))
        film, masks = opened(parameters.frames)
        frames = _Tiles(self._jobs, lease, parameters.iterations)
        return encode_film(
            painted_film(film, fields, model, masks, frames.observe), parameters.format, parameters.quality
        )

    def _model(self, name: str) -> ServedModel:
        """A network of the store, at work. Raises Internal."""
        return served(self._stored(name), self._provider, self._threads)

    def _stored(self, name: str) -> StoredModel:
        """Raises Internal where it has left the store, or is not sound any more."""
        store = ModelStore(self._store)
        try:
            return store.load(next(folder for folder in store.folders() if folder.parent.name == name))
        except (StopIteration, ModelRefused) as error:
            raise Internal(f"the model {name} cannot be used any more: {error}") from error

    def _features(self, network: NetworkName, pooling: Pooling = "max", precision: Precision = "auto") -> VGG:
        """The last job's network is kept. Raises Internal where its weights have left the store."""
        import torch

        from service.gatys.run import load_vgg

        torch.set_num_threads(self._threads)
        key = network, pooling, precision
        if self._vgg is None or self._vgg[0] != key:
            weights = feature_weights(self._store, network)
            if weights is None:
                raise Internal(f"the weights of {network} have left the store")
            self._vgg = key, load_vgg(weights, network, pooling, precision)
        return self._vgg[1]


@dataclass(frozen=True)
class _Inputs:
    photo: Picture
    paintings: list[tuple[Pixels, float]]
    mask: Pixels | None

    @classmethod
    def read(cls, files: Mapping[str, bytes], parameters: Parameters) -> _Inputs:
        photo = _picture(files["photo"])
        paintings = [_picture(files[f"painting-{index}"]).rgb for index in range(len(parameters.style))]
        mask = None
        if "mask" in files:
            height, width = photo.rgb.shape[:2]
            mask = decode_mask(open_photo(files["mask"], MANY_PIXELS), (width, height))
        return cls(photo, list(zip(paintings, parameters.style.values(), strict=True)), mask)


class _Reporter:
    """Tells the queue how a run goes: losses every second, a picture at doubling steps, a checkpoint now and then.

    That the lease holds is asked at every evaluation: so fast does a cancellation arrive.
    """

    def __init__(self, jobs: JobQueue, lease: Lease) -> None:
        self._jobs, self._lease = jobs, lease
        self._begun: tuple[int, float] | None = None
        self._reported = -REPORT_S
        self._saved = time.monotonic()

    def observe(self, progress: Progress | Refinement) -> None:
        """Raises LeaseLost."""
        now = time.monotonic()
        self._begun = self._begun or (progress.iteration - 1, now)
        self._jobs.check(self._lease)
        if now - self._reported >= REPORT_S or progress.iteration == progress.iterations:
            self._reported = now
            losses = progress.losses
            loss = Loss(losses.total, losses.content, losses.style, losses.tv)
            self._jobs.report(self._lease, progress.iteration, loss, self._eta_s(progress, now))
        if _is_shown(progress.iteration):
            preview = encode(Picture(progress.pixels()), "jpeg", PREVIEW_QUALITY)
            self._jobs.show(self._lease, progress.iteration, preview)
        if now - self._saved >= CHECKPOINT_S:
            self._saved = now
            self._jobs.save_checkpoint(self._lease, progress.checkpoint().packed())

    def _eta_s(self, progress: Progress | Refinement, now: float) -> float:
        """At the pace so far; finer stages to come take longer than that."""
        assert self._begun is not None
        first, since = self._begun
        pace_s = (now - since) / max(1, progress.iteration - first - 1)
        return pace_s * (progress.iterations - progress.iteration)


class _Tiles:
    """Tells the queue of a large picture's tiles: every second, and of the last."""

    def __init__(self, jobs: JobQueue, lease: Lease, count: int) -> None:
        self._jobs, self._lease, self._count = jobs, lease, count
        self._done = 0
        self._begun = self._reported = time.monotonic()

    def observe(self) -> None:
        """A tile is done. Raises LeaseLost."""
        self._done += 1
        now = time.monotonic()
        self._jobs.check(self._lease)
        if now - self._reported >= REPORT_S or self._done == self._count:
            self._reported = now
            eta_s = (now - self._begun) / self._done * (self._count - self._done)
            self._jobs.report(self._lease, self._done, None, eta_s)


def _vectors(files: dict[str, bytes], card: Card) -> dict[str, Vector]:
    """Takes the styles that came with an order out of its files. Raises Internal where they are for another network."""
    if VECTORS_FILE not in files:
        return {}
    vectors, network = unpacked_vectors(files.pop(VECTORS_FILE))
    if network != card.network_sha256:
        raise Internal("the model is not the one any more that the order's styles are for")
    return vectors


def _fields(parameters: LargeParameters) -> list[tuple[str, str]]:
    """The fields of ``/stylize`` that the parameters came from."""
    names = (
        "style",
        "style_fine",
        "style_coarse",
        "mask_styles",
        "strength",
        "preserve_color",
        "stroke",
        "model",
        "quality",
    )
    values = parameters.as_dict()
    return [(name, str(values[name])) for name in names if values[name] is not None]


def _stylized(
    image: bytes,
    files: Mapping[str, bytes],
    fields: StylizeFields,
    catalog: Catalog,
    size: tuple[int, int],
    observe: Observe = lambda: None,
) -> Picture:
    """The photo at ``size`` (width, height), painted."""
    masks = decode_masks(open_mask(files, MANY_PIXELS), fields, size)
    picture = decode(open_photo(image, MANY_PIXELS), size)
    return painted(picture, fields, model_for(fields, catalog), masks, observe)


def _is_shown(iteration: int) -> bool:
    times, rest = divmod(iteration, FIRST_PREVIEW)
    return rest == 0 and times > 0 and times & (times - 1) == 0


def _picture(content: bytes) -> Picture:
    photo = open_photo(content, MANY_PIXELS)
    return decode(photo, (photo.width, photo.height))


def _listen(orders: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)  # the service has ended: its next one resumes from the checkpoint


def _say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
