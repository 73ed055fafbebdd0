"""Paintings for a style encoder: augmented crops as a pure function of (seed, step), some paintings kept apart.

What is kept apart is decided by the files' names alone: those whose sha256 is smallest, whatever else is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from export.data import PICTURE_SUFFIXES
from service.gatys.pictures import read_picture, square_crop, to_tensor

SCALES = (1.0, 2.0)  # side of what is cut out over the crop's: 2 is a finer stroke
MIXED, TEXTURES = 0.15, 0.1  # shares: in the colours of another painting; made by ourselves
JITTER = 0.15
STREAM = 3  # of random numbers: photos and slots have others

Canvas = npt.NDArray[np.float32]  # (H, W, 3), 0-255


@dataclass(frozen=True)
class Corpus:
    """Paintings to train on, and those that are not."""

    trained: tuple[Path, ...]
    held_out: tuple[Path, ...]
    seed: int

    @classmethod
    def read(cls, folders: Sequence[Path], seed: int, *, held_out: int, prefix: str = "") -> Corpus:
        """The pictures of the folders. `held_out` of the first folder's whose names begin with `prefix` are kept
        apart. Raises ValueError where too few are left."""
        first, *others = [_pictures(folder) for folder in folders]
        candidates = sorted((path for path in first if path.name.startswith(prefix)), key=_digest)
        apart = tuple(candidates[:held_out])
        trained = tuple(path for path in [*first, *(path for other in others for path in other)] if path not in apart)
        if len(apart) < held_out or not trained:
            raise ValueError(f"{folders[0]} has {len(candidates)} paintings {prefix}*: too few to keep {held_out}")
        return cls(trained, apart, seed)

    @property
    def sha256(self) -> str:
        """Of the names of all that is trained on: another corpus is another run."""
        return hashlib.sha256("\n".join(path.name for path in self.trained).encode()).hexdigest()

    def batch(self, step: int, count: int, side: int) -> Tensor:
        """The paintings of one step: (count, 3, side, side), 0-1. Every one comes once before any comes again."""
        places = range(step * count, (step + 1) * count)
        return to_tensor(np.stack([self._augmented(place, side) for place in places]))

    def _augmented(self, place: int, side: int) -> npt.NDArray[np.uint8]:
        rng = np.random.default_rng([self.seed, STREAM, place])
        if rng.random() < TEXTURES:
            return _pixels(_texture(rng, side))
        turn, index = divmod(place, len(self.trained))
        order = np.random.default_rng([self.seed, STREAM + 1, turn]).permutation(len(self.trained))
        crop = _crop(self.trained[order[index]], side, rng)
        if rng.random() < MIXED:
            crop = _recoloured(crop, _crop(self.trained[rng.integers(len(self.trained))], side, rng))
        gains = rng.uniform(1 - JITTER, 1 + JITTER, 3) * rng.uniform(1 - JITTER, 1 + JITTER)
        return _pixels(crop * gains.astype(np.float32))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()


def _crop(path: Path, side: int, rng: np.random.Generator) -> Canvas:
    return square_crop(read_picture(path), side, SCALES, rng).astype(np.float32)


def _recoloured(crop: Canvas, palette: Canvas) -> Canvas:
    """A mix of two: the strokes of one with mean and deviation of the other's colours (Reinhard 2001, in RGB)."""
    mean, deviation = crop.mean((0, 1)), crop.std((0, 1)) + 1
    return np.asarray((crop - mean) / deviation * palette.std((0, 1)) + palette.mean((0, 1)), np.float32)


def _texture(rng: np.random.Generator, side: int) -> Canvas:
    """Stripes, waves and cells of a few random colours: a sum of plane waves, cut into levels."""
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    field = np.zeros((side, side))
    for _ in range(rng.integers(1, 6)):
        angle, length = rng.uniform(0, np.pi), side / rng.uniform(2, 24)
        wave = (across * np.cos(angle) + down * np.sin(angle)) / length
        field += np.sin(2 * np.pi * (wave + rng.random() + 0.3 * field))
    colours = rng.uniform(0, 255, (rng.integers(2, 6), 3))
    levels = np.searchsorted(np.quantile(field, np.linspace(0, 1, len(colours) + 1)[1:-1]), field)
    return np.asarray(colours[levels] + rng.normal(0, rng.uniform(0, 12), (side, side, 3)), np.float32)


def _pixels(canvas: Canvas) -> npt.NDArray[np.uint8]:
    return canvas.round().clip(0, 255).astype(np.uint8)
