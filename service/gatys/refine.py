"""Refinement: the vector of one painting's style, trained through a network that stays as it is (Dumoulin 2017)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from service.gatys.losses import TRAINING_STYLE_LAYERS, grams_of
from service.gatys.optimize import Losses
from service.gatys.perceptual import LossWeights, batch_losses, learning_rate, moving_average, nearest
from service.gatys.pictures import read_picture, square_crop, to_pixels, to_tensor
from service.gatys.transformer import COARSEST, Transformer
from service.gatys.vgg import VGG

PHOTOS = Path(__file__).parent / "photos"  # what it is trained on: eight, with their credits
PREVIEW_PHOTO = PHOTOS / "neuschwanstein.jpg"
CROP_SIDE = 288  # px, the size that our networks are judged at
MARGIN = 8  # px, mirrored around the crops before the loss: VGG pads with zeros
LEARNING_RATE, WARMUP = 4e-2, 10  # of 1, 2, 4 and 8e-2 the best after 200 steps (measured on two held-out paintings)
AVERAGE = 0.97
ZOOM = (1.0, 1.4)

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) sRGB
Vector = npt.NDArray[np.float32]  # (D,)


@dataclass(frozen=True)
class State:
    """A refinement on its way, after so many steps: the vector, its moving average, Adam's two moments; all (D,)."""

    step: int
    vector: Vector
    average: Vector
    mean: Vector
    square: Vector

    @classmethod
    def first(cls, vector: Vector) -> State:
        return cls(0, vector, vector, np.zeros_like(vector), np.zeros_like(vector))

    def packed(self) -> bytes:
        file = io.BytesIO()
        np.savez(file, **vars(self))
        return file.getvalue()

    @classmethod
    def unpacked(cls, content: bytes) -> State:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            return cls(int(saved["step"]), *(saved[name] for name in ("vector", "average", "mean", "square")))


@dataclass(frozen=True)
class Progress:
    """After a step: its losses on one crop of a photo; and, on demand, where it is, and a photo in the style so far."""

    iteration: int
    iterations: int
    losses: Losses
    checkpoint: Callable[[], State]
    pixels: Callable[[], Pixels]


def refine(
    vgg: VGG,
    network: Transformer,
    painting: Pixels,
    start: State,
    *,
    steps: int,
    seed: int = 0,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Vector:
    """The vector (D,) of `painting`'s (H, W, 3) style, after so many steps in all, on our own photos.

    `observe` is told of every step; what it raises ends the run.
    """
    device, network = vgg.mean.device, network.to(vgg.mean.device).requires_grad_(False)
    photos, targets = _photos(), _grams(vgg, painting)
    parameter = torch.from_numpy(start.vector.copy()).to(device).requires_grad_(True)
    average, mean, square = (
        torch.from_numpy(values.copy()).to(device) for values in (start.average, start.mean, start.square)
    )
    optimizer = torch.optim.Adam([parameter], betas=(0.9, 0.99))
    optimizer.state[parameter] = {"step": torch.tensor(float(start.step)), "exp_avg": mean, "exp_avg_sq": square}

    def shown() -> Pixels:
        photo = np.asarray(read_picture(PREVIEW_PHOTO))
        height, width = (side - side % COARSEST for side in photo.shape[:2])
        with torch.no_grad():
            pixels: Pixels = to_pixels(network(to_tensor(photo[None, :height, :width]).to(device), average[None]))[0]
        return pixels

    def state(done: int) -> State:
        values = (parameter, average, *(optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")))
        return State(done, *(value.detach().cpu().numpy().copy() for value in values))

    for step in range(start.step, steps):
        crop = _crops(photos, np.random.default_rng([seed, step])).to(device, memory_format=torch.channels_last)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, LEARNING_RATE, WARMUP)
        total, parts, _ = batch_losses(network, vgg, LossWeights(), crop, parameter[None], targets, MARGIN)
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        moving_average(average, parameter, step, AVERAGE)
        style, content, tv, *_ = parts.tolist()
        losses = Losses(float(total.detach()), style, content, tv)
        observe(Progress(step + 1, steps, losses, partial(state, step + 1), shown))
    vector: Vector = average.cpu().numpy()
    return vector


def nearest_of(vgg: VGG, network: Transformer, painting: Pixels, vectors: Mapping[str, Vector]) -> Vector:
    """Of some styles' vectors the one that comes closest to the painting (H, W, 3): where to start from. It is tried on
    one photo: four, in four times as long, chose another one for one of six paintings, nearer by 1.7 % (measured)."""
    photo, targets = _crops(_photos(), np.random.default_rng(0)), _grams(vgg, painting)
    tensors = {name: torch.from_numpy(vector) for name, vector in vectors.items()}
    return vectors[nearest(network, vgg, photo, targets, tensors)]


@torch.no_grad()
def _grams(vgg: VGG, painting: Pixels) -> dict[str, Tensor]:
    return grams_of(vgg(to_tensor(painting[None]).to(vgg.mean.device), TRAINING_STYLE_LAYERS), TRAINING_STYLE_LAYERS)


def _crops(photos: Sequence[Image.Image], rng: np.random.Generator, count: int = 1) -> Tensor:
    """(count, 3, CROP_SIDE, CROP_SIDE), 0-1."""
    chosen = (photos[index] for index in rng.integers(len(photos), size=count))
    return to_tensor(np.stack([square_crop(photo, CROP_SIDE, ZOOM, rng) for photo in chosen]))


def _photos() -> list[Image.Image]:
    return [read_picture(path) for path in sorted(PHOTOS.glob("*.jpg"))]
