"""Does the exported graph give torch's pixels? Compared over sizes (odd and tiny ones too), batches and styles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: the Linux wheels report home otherwise
import onnxruntime  # type: ignore[import-untyped]

from export.to_onnx import FreezingGraph, FrozenGraph, PixelGraph

SHAPES = ((1, 256, 256), (1, 255, 257), (3, 97, 130), (2, 64, 66), (1, 33, 500), (1, 7, 5), (1, 1, 1), (2, 3, 400))
TOLERANCE = 1  # levels of 255: two roundings of nearly the same number may fall on either side
HALF_MEAN, HALF_TAIL = 0.3, 4.0  # levels of 255, of fp16 from fp32: a JPEG of quality 90 changes more


class GraphDiffers(Exception):
    """The graph's pixels are not the network's; nothing may be published."""


@dataclass(frozen=True)
class Comparison:
    """The largest difference, in levels of 255, of one batch (N, H, W); and the share of values that differ at all."""

    shape: tuple[int, ...]
    largest: int
    share: float


def verify(
    graph: PixelGraph, path: Path, vectors: np.ndarray | None, photos: Sequence[np.ndarray] = ()
) -> list[Comparison]:
    """Compares torch's `graph` with the ONNX file. `vectors` (K, D): every style is used, several in a batch.

    Noise and, where given, `photos` uint8 (H, W, 3) are the pictures. Raises GraphDiffers above 1/255 of difference.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES] + [
        photo[None] for photo in photos
    ]
    if vectors is not None:  # every style once, as one batch
        batches.append(rng.integers(0, 256, (len(vectors), 48, 40, 3), dtype=np.uint8))
    comparisons = []
    for number, image in enumerate(batches):
        feed, arguments = {"image": image}, [torch.from_numpy(image)]
        if vectors is not None:
            rows = vectors[(np.arange(len(image)) + number) % len(vectors)]
            feed["style"] = rows
            arguments.append(torch.from_numpy(rows))
        found = np.asarray(session.run(None, feed)[0])
        with torch.no_grad():
            wanted = graph(*arguments).numpy()
        if found.shape != wanted.shape or found.dtype != np.uint8:
            raise GraphDiffers(
                f"{path.name} gives {found.dtype} {found.shape} for {image.shape}; wanted uint8 {wanted.shape}"
            )
        difference = np.abs(found.astype(np.int16) - wanted)
        largest, share = int(difference.max()), float((difference > 0).mean())
        comparisons.append(Comparison((len(image), *image.shape[1:3]), largest, share))
    worst = max(comparisons, key=lambda comparison: comparison.largest)
    if worst.largest > TOLERANCE:
        raise GraphDiffers(
            f"{path.name} differs from torch by {worst.largest}/255 at {worst.shape}, more than {TOLERANCE}/255"
        )
    return comparisons


def verify_tiling(graph: PixelGraph, freezing: Path, frozen: Path, photo: np.ndarray, row: np.ndarray) -> None:
    """Do the two graphs of large pictures, one after the other, give torch's pixels for a photo uint8 (H, W, 3) that
    is its own thumbnail, in the style of row (D,)? Raises GraphDiffers above 1/255."""
    first, second = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (freezing, frozen)
    )
    (statistics,) = first.run(None, {"image": photo[None], "style": row[None]})
    (found,) = second.run(None, {"image": photo[None], "style": statistics})
    with torch.no_grad():
        wanted = graph(torch.from_numpy(photo)[None], torch.from_numpy(row)[None]).numpy()
    largest = int(np.abs(found.astype(np.int16) - wanted).max())
    if largest > TOLERANCE:
        raise GraphDiffers(f"{frozen.name} differs from torch by {largest}/255, more than {TOLERANCE}/255")


@dataclass(frozen=True)
class Closeness:
    """How far pictures in fp16 are from those in fp32, in levels of 255: on average, and the 99.9th percentile; of the
    two ways to compute them the one that is farther."""

    mean: float
    tail: float


def verify_halved(
    graph: PixelGraph, halved: PixelGraph, path: Path, vectors: np.ndarray | None, photos: Sequence[np.ndarray]
) -> Closeness:
    """Is `graph` in fp16 near enough to itself? Every style of `vectors` (K, D), each on one of `photos` uint8
    (H, W, 3), and every photo. Raises GraphDiffers beyond HALF_MEAN or HALF_TAIL.

    Judged are the pixels of torch's `halved` network, which rounds wherever a GPU does, and those of the ONNX file, on
    the CPU, where ONNX Runtime computes in fp32 what it has no kernel of fp16 for. A frozen network has the photo's
    own statistics.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences: list[list[np.ndarray]] = [[], []]
    for number in range(max(len(photos), 0 if vectors is None else len(vectors))):
        image = photos[number % len(photos)][None]
        feed, arguments = {"image": image}, [torch.from_numpy(image)]
        with torch.no_grad():
            if vectors is not None:
                arguments.append(torch.from_numpy(vectors[[number % len(vectors)]]))
            wanted = graph(*arguments).numpy()
            if vectors is not None:
                if isinstance(halved, FrozenGraph):
                    arguments[1] = FreezingGraph(graph.transformer)(*arguments)
                feed["style"] = arguments[1].numpy()
            rounded = halved(*arguments).numpy()
        for found, to in zip((rounded, np.asarray(session.run(None, feed)[0])), differences, strict=True):
            to.append(np.abs(found.astype(np.int16) - wanted).ravel())
    both = [np.concatenate(one) for one in differences]
    mean, tail = (max(map(of, both)) for of in (np.mean, partial(np.quantile, q=0.999)))
    closeness = Closeness(round(float(mean), 3), float(tail))
    if closeness.mean > HALF_MEAN or closeness.tail > HALF_TAIL:
        raise GraphDiffers(
            f"{path.name} differs from fp32 by {closeness.mean:.2f}/255 on average and {closeness.tail:g}/255 at the "
            f"99.9th percentile; at most {HALF_MEAN:g} and {HALF_TAIL:g} may be"
        )
    return closeness
