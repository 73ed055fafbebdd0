"""Where a camera turned from one frame to the next: a shift of the whole picture, in pixels.

Found by phase correlation (Kuglin and Hines 1975), and believed where most of what has edges is then where it was: a
camera that zooms or rolls moves every place otherwise, and is not followed.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Move = tuple[int, int]  # rows down and columns to the right that what was seen went
Frame = npt.NDArray[np.uint8]  # (H, W, 3)
Grey = npt.NDArray[np.float32]  # (H, W), in levels of 255
Scalar = TypeVar("Scalar", bound=np.generic)
STILL: Move = (0, 0)
EDGE = 18  # levels of 255 to the next pixel: what is steeper is no grain
# Median of an edge's change over its steepness, from which on it is lost. Measured on crops of five photos that move:
# at most 0.23 for shifts by half a pixel, 0.25 and more for 2 % of zoom or a degree of roll a frame.
LOST = 0.25
DIM = 1e-3  # of the mean magnitude: frequencies below are noise, and count less


def turn(before: Frame, after: Frame) -> Move | None:
    """How far the picture went from one frame to the next; None where it did not go as a whole."""
    old, new = (frame.mean(axis=2, dtype=np.float32) for frame in (before, after))
    steep = _steepness(new)
    losses = {move: _lost(old, new, steep, move) for move in (STILL, _correlated(old, new))}
    best = min(losses, key=losses.__getitem__)  # the first, where both are alike
    return best if losses[best] < LOST else None


def carried(pixels: npt.NDArray[Scalar], move: Move) -> tuple[npt.NDArray[Scalar], npt.NDArray[np.bool_]]:
    """(H, W, ...) moved, zero where nothing came from; and where something did, (H, W)."""
    result = np.zeros_like(pixels)
    seen = np.zeros(pixels.shape[:2], np.bool_)
    (to_rows, rows), (to_columns, columns) = (_parts(seen.shape[axis], move[axis]) for axis in (0, 1))
    result[to_rows, to_columns] = pixels[rows, columns]
    seen[to_rows, to_columns] = True
    return result, seen


def _parts(length: int, step: int) -> tuple[slice, slice]:
    """Along one side: the part that is moved to, and the one that is moved."""
    return slice(max(0, step), max(0, length + min(0, step))), slice(max(0, -step), max(0, length - max(0, step)))


def _correlated(old: Grey, new: Grey) -> Move:
    window = np.outer(np.hanning(old.shape[0]), np.hanning(old.shape[1]))
    spectra = [np.fft.rfft2((grey - grey.mean()) * window) for grey in (old, new)]
    product = spectra[1] * spectra[0].conj()
    size = np.abs(product)
    peaks = np.fft.irfft2(product / (size + DIM * size.mean() + np.finfo(np.float64).tiny), s=old.shape)
    down, right = (int(at) for at in np.unravel_index(peaks.argmax(), peaks.shape))
    height, width = old.shape
    return down - height * (down > height // 2), right - width * (right > width // 2)


def _lost(old: Grey, new: Grey, steep: Grey, move: Move) -> float:
    """Median of the edges' change over their steepness; 0 without edges."""
    moved, seen = carried(old, move)
    edges = seen & (steep > EDGE)
    return float(np.median(np.abs(new - moved)[edges] / steep[edges])) if edges.any() else 0.0


def _steepness(grey: Grey) -> Grey:
    """The largest step to a next pixel, around each."""
    steps = [np.abs(np.diff(grey, axis=axis, append=grey.take([-1], axis=axis))) for axis in (0, 1)]
    around = np.pad(np.maximum(*steps), 1)
    around = np.maximum(np.maximum(around[:-2], around[1:-1]), around[2:])
    steepest: Grey = np.maximum(np.maximum(around[:, :-2], around[:, 1:-1]), around[:, 2:])
    return steepest
