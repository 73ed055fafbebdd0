"""The models at work: loaded in the background, refused loudly, each behind its batcher."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.batching import Admission, Batcher, Network, Place, Work
from service.errors import ConfigurationError, ModelRefused, NotReady
from service.metrics import Metrics, Stopwatch
from service.models.catalog import Catalog, ServedModel, served
from service.models.encoder import Encoder, encoder_of
from service.models.packs import PackFolder
from service.models.session import DEFAULT_GPU, SETTLE_SIDE, Gpu, ProviderChoice, trim
from service.models.store import ModelStore

log = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """Loads a store once and runs its models. ``executor`` must have a single thread: runs take turns in it."""

    def __init__(
        self,
        store: ModelStore,
        provider: ProviderChoice,
        threads: int,
        admission: Admission,
        batcher: Batcher,
        executor: Executor,
        metrics: Metrics,
        packs: PackFolder,
        gpu: Gpu = DEFAULT_GPU,
    ) -> None:
        self._store = store
        self._gpu = gpu
        self._provider = provider
        self._threads = threads
        self._admission = admission
        self._batcher = batcher
        self._executor = executor
        self._metrics = metrics
        self._packs = packs
        self._loaded: _Loaded | None = None
        self.loaded = asyncio.Event()  # set once models were loaded for the first time
        self._catalog: Catalog | None = None
        self._refused: Sequence[str] = ()
        self._started = time.monotonic()
        self.ending = asyncio.Event()  # set once it drains: what would stream on for long, ends
        self._reloading = asyncio.Lock()

    @property
    def draining(self) -> bool:
        return self.ending.is_set()

    @property
    def reasons(self) -> Sequence[str]:
        """Why the service is not ready: nothing where it is. One refused model is enough."""
        if self.draining:
            return ["the process is draining and will end"]
        if self._catalog is None:
            return ["the models are still loading"]
        return self._refused

    @property
    def catalog(self) -> Catalog:
        """What is served. A refused model keeps the service unready, but not the others from answering.

        Raises NotReady while models load, and where none could be.
        """
        if self._catalog is None or not self._catalog.models:
            raise self.not_ready()
        return self._catalog

    def not_ready(self) -> NotReady:
        """Loading lasts about as long again as it has lasted: the best guess where nothing else is known. Where a
        process drains, another should answer now."""
        return NotReady(self.reasons, 0 if self.draining else time.monotonic() - self._started)

    def drain(self) -> None:
        """Be not ready from now on; what is asked is still answered, and every connection closed after it."""
        self.ending.set()

    async def load(self) -> None:
        """Verify, load and warm every model, off the event loop. Never raises: what went wrong is in ``reasons``."""
        async with self._reloading:
            loaded = await asyncio.get_running_loop().run_in_executor(self._executor, self._load)
            self._refused = loaded.refused
            for model in loaded.models:
                self._admission.learn(model, SETTLE_SIDE**2, loaded.first_runs_s[model.name])
            await self._serve(loaded)

    async def reload(self) -> Sequence[str]:
        """Load the store anew while the old models serve, and put all of its models in their place at once.

        Where any was refused the old ones stay; gives why. What is in line still runs on what it was admitted for.
        """
        async with self._reloading:
            loaded = await asyncio.to_thread(self._load)
            if loaded.refused:
                log.error("the store was not reloaded; the models loaded before go on serving")
            else:
                self._refused = ()
                await self._serve(loaded)
            return loaded.refused

    @property
    def dimensions(self) -> dict[str, int]:
        """The length of a vector of every network that takes one, by ``Card.network_sha256``."""
        cards = [model.card for model in (self._loaded.models if self._loaded else [])]
        return {card.network_sha256: card.dimension for card in cards if card.kind == "conditional"}

    async def refresh(self) -> None:
        """Serve the styles of one's own as they are now."""
        if loaded := self._loaded:
            packs = await asyncio.to_thread(self._packs.packs, self.dimensions)
            if loaded is self._loaded:  # else they were read just now
                self._catalog = Catalog.of(loaded.models, loaded.encoders, packs)

    async def _serve(self, loaded: _Loaded) -> None:
        self._metrics.model_info.clear()
        at_work: list[ServedModel | Encoder] = [*loaded.models, *loaded.encoders]
        for model in at_work:
            labels = model.card.name, str(model.card.version), model.sha256, model.provider
            self._metrics.model_info.labels(*labels).set(1)
        self._loaded = loaded
        packs = await asyncio.to_thread(self._packs.packs, self.dimensions)
        self._catalog = Catalog.of(loaded.models, loaded.encoders, packs)
        self.loaded.set()
        for encoder in loaded.encoders:
            if encoder not in self._catalog.encoders.values():
                log.warning("%s is of no use: the network that it makes vectors for is not served", encoder.card.label)

    async def paint(self, network: Network, place: Place, work: Work[T], watch: Stopwatch) -> T:
        """As ``Batcher.paint``."""
        return await self._batcher.paint(network, place, work, watch)

    def _load(self) -> _Loaded:
        loaded = _Loaded()
        try:
            for folder in self._store.folders():
                if model := self._load_model(folder, loaded):
                    loaded.models.append(model)
            if not loaded.models and not loaded.refused:
                raise ModelRefused("the store", "holds no network that can stylise")
        except ModelRefused as error:
            loaded.refuse(error)
        trim()
        return loaded

    def _load_model(self, folder: Path, loaded: _Loaded) -> ServedModel | None:
        """None for a model that was refused, for one that is only verified here (the slow path's), and an encoder."""
        started = time.perf_counter()
        try:
            stored = self._store.load(folder)
            if stored.card.kind == "features":
                return None
            if stored.card.kind == "encoder":
                read = partial(self._store.load, folder)
                loaded.encoders.append(encoder_of(stored, self._provider, self._threads, self._gpu, read))
                return None
            model = served(stored, self._provider, self._threads, self._gpu, lanes=True)
            model.warm()
            run_started = time.perf_counter()
            model.settle()
            run_s = time.perf_counter() - run_started
        except (ModelRefused, ConfigurationError) as error:
            loaded.refuse(error)
            return None
        except Exception as error:  # one model's surprise must not leave the service loading for ever
            log.exception("%s could not be loaded", folder)
            loaded.refuse(ModelRefused(f"{folder.parent.name}/{folder.name}", f"failed to load: {error}"))
            return None
        self._metrics.model_load.labels(model.name).set(time.perf_counter() - started)
        log.info("%s is loaded on %s", model.card.label, model.provider)
        loaded.first_runs_s[model.name] = run_s
        return model


@dataclass
class _Loaded:
    """What came of reading a store."""

    models: list[ServedModel] = field(default_factory=list)
    encoders: list[Encoder] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    first_runs_s: dict[str, float] = field(default_factory=dict)

    def refuse(self, error: Exception) -> None:
        log.error("refused: %s", error)
        self.refused.append(str(error))
