"""The networks that are being served, and which of them can do what."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from service.models.encoder import Encoder
from service.models.film import STEPS, as_frames, run_film
from service.models.packs import Pack, Papers
from service.models.session import (
    DEFAULT_GPU,
    Gpu,
    Images,
    OrtSession,
    Provider,
    ProviderChoice,
    RunOptions,
    Session,
    StyleRows,
    gives_cuda,
    open_session,
)
from service.models.store import PAINTING, PHOTO, StoredModel, StyleEntry, Vector
from service.models.strokes import sizes, with_strokes
from service.models.style import Mix, Pixels, Rows, blend, rows_for
from service.models.tiling import Observe, TiledNetwork

log = logging.getLogger(__name__)

LANE_PIXELS = 2**18  # a lane for each core, of as much memory as one whole picture on eight of them
STEADY_RADIUS = 64  # pixels: see ServedModel.is_steady
WHOLE_PIXELS = 2**21  # up to here a picture runs whole, and a GPU's lanes together: tiles overlap, a quarter more time


@dataclass(frozen=True)
class Lane:
    """Where small runs go beside each other, of at most so many pixels: a session of one thread, or the GPU's own."""

    session: Session
    pixels: int


class ServedModel:
    """A network with its session, its tiles where it has them, and its vectors."""

    def __init__(
        self, stored: StoredModel, session: Session, tiled: TiledNetwork | None = None, lane: Lane | None = None
    ) -> None:
        self.card = stored.card
        self.name = stored.card.name
        self.sha256 = stored.card.graph_sha256
        self.previews = stored.previews
        self.paintings = stored.paintings
        self.styles = {style.name: style for style in stored.card.styles}
        self.own: frozenset[str] = frozenset()  # of its styles those that are not in the store
        self.provider: Provider = session.provider
        self.tiled = tiled
        self.warm = session.warm
        self._session = session
        self._lane = lane.session if lane else session
        self.lane_pixels = lane.pixels if lane else 0
        self.lanes_first = self.provider == "cuda"
        self._vectors = stored.vectors

    def knowing(self, vectors: dict[str, Vector]) -> ServedModel:
        """The same network: mixes may name these styles (D,) too. PAINTING is one that came with a request."""
        known = copy.copy(self)
        known._vectors = self._vectors | vectors
        return known

    def with_packs(self, packs: Iterable[Pack]) -> ServedModel:
        """The same network with styles of one's own, those of the packs that are for it."""
        fitting = [pack for pack in packs if pack.papers.network == self.card.network_sha256]
        model = self.knowing({pack.name: pack.vector for pack in fitting})
        model.styles = self.styles | {pack.name: pack.entry for pack in fitting}
        model.previews = self.previews | {pack.name: pack.preview for pack in fitting}
        model.own = frozenset(pack.name for pack in fitting)
        return model

    def pack(self, name: str) -> Pack:
        """One of its styles, to take away. The network must be a conditional one."""
        entry = self.styles[name].model_dump(include=set(Papers.model_fields))
        papers = Papers(**entry, model=self.name, network=self.card.network_sha256)
        return Pack(papers, self._vectors[name], self.previews[name])

    def travelling(self, names: Collection[str]) -> dict[str, Vector]:
        """The vectors of those of ``names`` that are not in the store: a worker elsewhere has them not."""
        return {name: self._vectors[name] for name in names if name in self.own or name == PAINTING}

    @property
    def is_steady(self) -> bool:
        """Whether animations do not flicker: with a network that looks far, places change for what moves elsewhere, and
        for the grain of all that it sees (`deep`, of 93 px, by 1.5 times the clip's own motion; `multistyle`, 1.3)."""
        return self.card.tiling is None or self.card.tiling.radius_px <= STEADY_RADIUS

    @property
    def names(self) -> Set[str]:
        """What mixes may name."""
        return self.styles.keys() | self._vectors.keys() - {PHOTO}

    def begin(self, stroke: float = 1.0, *, lane: bool = False) -> StoppableRun:
        """A run, to be called once with (N, H, W, 3) and (N, D); with strokes so many times as large as its own. In a
        ``lane``, up to ``lane_pixels``, it goes beside others."""
        return StoppableRun(self._lane if lane else self._session, self.tiled, stroke)

    def settle(self) -> None:
        """One small run; the memory that large pictures took goes back to the system."""
        self._session.settle()
        if self._lane is not self._session:
            self._lane.settle()
        if self.tiled:
            self.tiled.settle(self.provider)

    def tiles(self, size: tuple[int, int], stroke: float) -> int:
        """How many tiles a picture of (width, height) pixels has for each of its rows, over all sizes of strokes."""
        large = [size for size in sizes(size, stroke) if size[0] * size[1] > WHOLE_PIXELS]
        return sum(self.tiled.tiles(size) for size in large) if self.tiled else 0

    def steps(self, frames: int, rows: int) -> int:
        """How often a run of an animation tells that it goes on."""
        return STEPS * frames * rows

    def rows(self, mixes: Sequence[Mix], strength: float) -> Rows:
        """What to run the network on for some mixes: (R, D), one row a mix, and the photo's between strengths."""
        return rows_for(self._vectors, mixes, strength, self.card.palette_size)

    def finish(self, photo: Pixels, outputs: Pixels, strength: float, mixes: int) -> Iterator[Pixels]:
        """A picture for each mix, from the outputs (R, H, W, 3) of their ``rows``."""
        return (blend(photo, [outputs[i], *outputs[mixes:]], strength) for i in range(mixes))


def served(
    stored: StoredModel,
    provider: ProviderChoice,
    threads: int,
    gpu: Gpu = DEFAULT_GPU,
    lanes: bool = False,
) -> ServedModel:
    """A stored model at work; small runs may go in ``lanes`` where it has a GPU, or several threads of a CPU. Raises
    what ``Session`` does."""
    if gpu.precision == "fp16" and gives_cuda(provider):
        stored = _halved(stored)

    label = stored.card.label  # open_graph stays, and would keep all files of the model in memory with it

    def open_graph(graph: bytes) -> OrtSession:
        return open_session(label, graph, provider, threads, gpu)

    session, lane = Session(stored, provider, threads, gpu), None
    if lanes and session.provider == "cuda" and gpu.lanes > 1:
        lane = Lane(session, WHOLE_PIXELS // gpu.lanes)
    if lanes and session.provider == "cpu" and threads > 1:
        lane = Lane(Session(stored, provider, 1), LANE_PIXELS)
    return ServedModel(stored, session, TiledNetwork(stored, open_graph) if stored.card.tiling else None, lane)


def _halved(stored: StoredModel) -> StoredModel:
    if not stored.fp16:
        log.warning("%s has no graph in fp16 and runs in tf32: python -m export halve makes one", stored.card.label)
    return stored.halved()


@dataclass(frozen=True)
class _Variant:
    """A model that is run in a way of its own: a network of its own to whom it waits for."""

    model: ServedModel
    lane_pixels = 0
    lanes_first = False

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def provider(self) -> Provider:
        return self.model.provider

    def settle(self) -> None:
        self.model.settle()


@dataclass(frozen=True)
class Stroked(_Variant):
    """A model with strokes so many times as large as its own."""

    stroke: float

    def begin(self, *, lane: bool = False) -> StoppableRun:
        return self.model.begin(self.stroke)


@dataclass(frozen=True)
class Moving(_Variant):
    """A model for animations of so many frames, which come one below the other in one picture. The model must have a
    ``tiled`` network."""

    frames: int

    def begin(self, *, lane: bool = False) -> FilmRun:
        return FilmRun(self.model, self.frames)


class _Stoppable:
    """A run that can be ended."""

    def __init__(self) -> None:
        self._options = RunOptions()

    def stop(self) -> None:
        """End it before its next node; the session lives on."""
        self._options.terminate = True


class FilmRun(_Stoppable):
    """One run of a network, on strips of frames."""

    def __init__(self, model: ServedModel, frames: int) -> None:
        super().__init__()
        assert model.tiled is not None
        self._tiled, self._frames = model.tiled, frames

    def __call__(self, images: Images, rows: StyleRows, observe: Observe = lambda: None) -> Images:
        """Strips (N, F H, W, 3) in the styles (N, D). ``observe`` is told as ``run_film`` does it."""
        results = np.empty_like(images, order="C")
        for image, row, result in zip(images, rows, results, strict=True):
            frames = run_film(as_frames(image, self._frames), row, self._tiled, self._options, observe)
            result[:] = frames.reshape(image.shape)
        return results


class StoppableRun(_Stoppable):
    """One run of a network, on one batch: whole pictures, large ones in tiles, and those of larger strokes."""

    def __init__(self, session: Session, tiled: TiledNetwork | None, stroke: float = 1.0) -> None:
        super().__init__()
        self._session, self._tiled, self._stroke = session, tiled, stroke

    def __call__(self, images: Images, rows: StyleRows, observe: Observe = lambda: None) -> Images:
        """As ``Session.run``; raises ONNX Runtime's error where it was stopped. ``observe`` is told of every tile."""
        if self._stroke == 1 and not self._is_large(images[0]):
            return self._session.run(images, rows, self._options)
        results = np.empty_like(images)
        for image, row, result in zip(images, rows, results, strict=True):
            result[:] = with_strokes(image, self._stroke, partial(self._paint, row=row, observe=observe))
        return results

    def _paint(self, image: Pixels, row: StyleRows, observe: Observe) -> Pixels:
        if self._tiled is None or not self._is_large(image):
            return np.asarray(self._session.run(image[None], row[None], self._options)[0])
        return self._tiled.run(image, row, self._options, observe)

    def _is_large(self, image: Pixels) -> bool:
        return self._tiled is not None and image.shape[0] * image.shape[1] > WHOLE_PIXELS


@dataclass(frozen=True)
class Catalog:
    """Every model served, the first choice first: conditional networks before classic ones, and of these the one that
    was judged best."""

    models: dict[str, ServedModel] = field(default_factory=dict)
    encoders: dict[str, Encoder] = field(default_factory=dict)  # by the model whose vectors they make

    @classmethod
    def of(cls, models: Sequence[ServedModel], encoders: Sequence[Encoder] = (), packs: Sequence[Pack] = ()) -> Catalog:
        """An encoder, and a pack, is of use where the very network is served that it is for. A style of the store goes
        before a pack of its name."""
        shipped = {name for model in models for name in model.styles}
        own = [pack for pack in packs if pack.name not in shipped]
        ordered = [model.with_packs(own) for model in sorted(models, key=_rank)]
        makers = {encoder.network_sha256: encoder for encoder in encoders}
        fitting = {model.name: maker for model in models if (maker := makers.get(model.card.network_sha256))}
        return cls({model.name: model for model in ordered}, fitting)

    @property
    def takes_paintings(self) -> bool:
        return any(map(self._takes_painting, self.models.values()))

    def styles(self) -> Iterator[StyleEntry]:
        """Every style that some model has, once, as its first choice tells it."""
        seen: dict[str, StyleEntry] = {}
        for model in self.models.values():
            seen = model.styles | seen
        return iter(sorted(seen.values(), key=lambda style: style.name))

    @property
    def conditional(self) -> list[ServedModel]:
        """The models that take vectors, the first choice first."""
        return [model for model in self.models.values() if model.card.kind == "conditional"]

    @property
    def names(self) -> set[str]:
        """Of every style that a mix may name, but PAINTING."""
        return {name for model in self.models.values() for name in model.names} - {PAINTING}

    def paintings(self) -> dict[str, bytes]:
        """The shipped paintings, image files by the name of their style."""
        found: dict[str, bytes] = {}
        for model in self.models.values():
            found = model.paintings | found
        return found

    def models_with(self, styles: set[str]) -> list[ServedModel]:
        """The models that have all of ``styles``, the first choice first. A mix needs a conditional one, and the
        style of an uploaded painting one with an encoder."""
        able = [
            model
            for model in self.models.values()
            if styles - {PAINTING} <= model.names and (len(styles) == 1 or model.card.kind == "conditional")
        ]
        if PAINTING in styles:
            return list(filter(self._takes_painting, able))
        return able

    def _takes_painting(self, model: ServedModel) -> bool:
        return PAINTING in model.names or model.name in self.encoders


def _rank(model: ServedModel) -> tuple[bool, float, str]:
    excess = model.card.quality.get("excess_mean", math.inf)
    return model.card.kind != "conditional", excess, model.card.name
