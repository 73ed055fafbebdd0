"""Frames of an animation, painted alike: with statistics that change no faster than what is seen.

A network that normalises every frame by itself flickers: where something moves in a corner, the statistics move, and
with them the whole picture. Here they are averaged over the frames around, up to the next cut. What is left comes from
the grain of the camera, which strokes make visible: where a photo stays as it was, so does most of its painting; and
where the camera turns, the painting goes along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from service.images import shrunk
from service.models.camera import Frame, Move, carried, turn
from service.models.session import RunOptions, StyleRows
from service.models.style import Pixels
from service.models.tiling import THUMBNAIL_SIDE, Observe, TiledNetwork

STEPS = 2  # of a frame: its statistics are taken, and it is painted
BATCH_PIXELS = 2**19  # of frames that share a run; a larger frame runs alone
REACH = 12  # frames before and after that a frame's statistics are averaged over
CUT = 40.0  # mean difference of two frames, in levels of 255, from which on they show different things
# How much of its painting a pixel keeps from the frame before, by how far its colour went, in levels of 255: as much as
# can be while it is grain, nothing once it moved. Kept by 0.7, a painting has caught up with a slow change in 3 frames.
KEPT, GRAIN, MOVED = 0.7, 10, 18
NEAR = 6  # pixels around what moved that keep nothing either: its strokes reach so far, and would be left as a trail
KEPT_BY_CHANGE = (KEPT * np.clip((MOVED - np.arange(256)) / (MOVED - GRAIN), 0, 1)).astype(np.float32)
COMPARED_SIDE = 64  # pixels: so small, noise and small movements do not count

Frames = npt.NDArray[np.uint8]  # (F, H, W, 3) sRGB


def run_film(
    frames: Frames,
    row: StyleRows,
    network: TiledNetwork,
    options: RunOptions | None = None,
    observe: Observe = lambda: None,
) -> Frames:
    """Frames in the style of a row (D,); ``observe`` is told of each of a frame's STEPS that is done.

    Raises OutOfMemory, and ONNX Runtime's error if stopped.
    """
    size = max(1, BATCH_PIXELS // (frames.shape[1] * frames.shape[2]))
    batches = [slice(first, first + size) for first in range(0, len(frames), size)]

    def frozen(batch: Frames) -> StyleRows:
        small = np.stack([shrunk(frame, THUMBNAIL_SIDE) for frame in batch])
        rows = network.freeze(small, row[None].repeat(len(batch), axis=0), options)
        for _ in batch:
            observe()
        return rows

    def painted(rows: StyleRows) -> Iterator[Frame]:
        for batch in batches:
            yield from network.run_frozen(frames[batch], rows[batch], options)

    scene = scenes(frames)
    rows = smoothed(np.concatenate([frozen(frames[batch]) for batch in batches]), scene)
    result = np.empty_like(frames)
    for number, frame in enumerate(calmed(painted(rows), frames, scene)):
        result[number] = frame
        observe()
    return result


def smoothed(rows: StyleRows, scene: npt.NDArray[np.intp]) -> StyleRows:
    """Each of the rows (F, D) as the mean of those near it in the same scene, (F,)."""
    result = np.empty_like(rows)
    for number in range(len(rows)):
        near = slice(max(0, number - REACH), number + REACH + 1)
        result[number] = rows[near][scene[near] == scene[number]].mean(axis=0)
    return result


def calmed(painted: Iterable[Frame], photos: Frames, scene: npt.NDArray[np.intp]) -> Iterator[Frame]:
    """The painted frames, each with what it keeps of the one before it in its scene, wherever the camera turned."""
    last = np.empty(0, np.float32)
    for number, frame in enumerate(painted):
        current = frame.astype(np.float32)
        goes_on = number > 0 and scene[number] == scene[number - 1]
        move = turn(photos[number - 1], photos[number]) if goes_on else None
        if move is not None:
            kept, _ = carried(last, move)
            current += _share_kept(photos[number - 1], photos[number], move)[..., None] * (kept - current)
        yield np.rint(current).astype(np.uint8)
        last = current


def _share_kept(before: Frame, after: Frame, move: Move) -> npt.NDArray[np.float32]:
    """How much of its painting each place (H, W) keeps, of that which came from where it was."""
    moved, seen = carried(before, move)
    change = np.abs(after.astype(np.int16) - moved).max(axis=2)
    change[~seen] = MOVED
    return KEPT_BY_CHANGE[_largest_near(change)]


def _largest_near(change: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """The largest of (H, W) within NEAR pixels of each place, along either side."""
    for axis in (0, 1):
        around = [(NEAR, NEAR) if axis == each else (0, 0) for each in (0, 1)]
        change = sliding_window_view(np.pad(change, around), 2 * NEAR + 1, axis=axis).max(axis=-1)
    return change


def scenes(frames: Frames) -> npt.NDArray[np.intp]:
    """The number of every frame's scene, (F,)."""
    small = np.stack([shrunk(frame, COMPARED_SIDE) for frame in frames]).astype(np.float32)
    changes = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    return np.concatenate([[0], np.cumsum(changes > CUT)]).astype(np.intp)


def as_frames(strip: Pixels, count: int) -> Frames:
    """The frames (F, H, W, 3) of a strip (F H, W, 3), one below the other."""
    return strip.reshape(count, -1, *strip.shape[1:])
