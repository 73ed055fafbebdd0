"""The work that is measured: a photo, a style, and the network in this process."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from service.images import Picture, decode, encode, open_photo
from service.models.session import DEFAULT_GPU, Gpu, OnnxRuntimeProvider, Session, cpu_quota
from service.models.store import ModelStore, StoredModel
from service.settings import Settings

T = TypeVar("T")

MODEL = "multistyle"
STYLE = "starry_night"
PATH = f"/stylize?model={MODEL}&style={STYLE}"
PHOTO = Path(__file__).parents[1] / "tests" / "photos" / "picos_de_europa.jpg"
SETTINGS = Settings.from_env({})


@dataclass(frozen=True)
class InProcess:
    """The network without a server: alone, and between a decoder and an encoder."""

    run: Callable[[], object]
    stylize: Callable[[], bytes]


def shipped(name: str = MODEL) -> StoredModel:
    """A model of the store by its name. Raises LookupError."""
    for model in ModelStore(SETTINGS.model_store).networks():
        if model.card.name == name:
            return model
    raise LookupError(f"{SETTINGS.model_store} holds no {name}")


def in_process(photo: bytes, provider: OnnxRuntimeProvider = "cpu", gpu: Gpu = DEFAULT_GPU) -> InProcess:
    """On as many threads as the service takes."""
    model = shipped().halved() if gpu.precision == "fp16" else shipped()
    session = Session(model, provider, cpu_quota(), gpu)
    row = model.vectors[STYLE][None]
    pixels = _decoded(photo)

    def stylize() -> bytes:
        return encode(Picture(session.run(_decoded(photo), row)[0]), "jpeg", 90)

    return InProcess(lambda: session.run(pixels, row), stylize)


def rotated(names: Sequence[T], by: int) -> list[T]:
    """The same, begun `by` places on: nobody is always the first."""
    first = by % len(names)
    return [*names[first:], *names[:first]]


def medians_ms(acts: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """How long each act takes, by its name: all of them in turn in every round, the first of which warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds + 1):
        for name, act in acts.items():
            started = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(found[1:]) for name, found in seconds.items()}


def jpeg(width: int, height: int) -> bytes:
    """A photo of that many pixels."""
    file = io.BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _decoded(photo: bytes) -> np.ndarray:
    """(1, H, W, 3)"""
    opened = open_photo(photo, SETTINGS.max_pixels)
    return decode(opened, opened.size_within(SETTINGS.max_side)).rgb[None]
