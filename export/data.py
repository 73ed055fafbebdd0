"""Training data: crops of photos as a pure function of (seed, step), and paintings with their titles and credits.

Nothing here remembers how far it came, so a resumed run sees exactly the crops that it would have seen.
"""

from __future__ import annotations

import os
import tomllib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from service.gatys.pictures import read_picture, square_crop, to_tensor

MOST_FRAME = 0.9  # of a painting's width or height
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
Item = TypeVar("Item")
Read = TypeVar("Read")
CROPPED = (0.7, 1.7)  # side of what is cut out over the crop's: enlarged, a photo is as smooth as one of more pixels


@dataclass(frozen=True)
class Painting:
    """A painting to learn a style from; `credit` is the source and the licence of the reproduction.

    `frame`: how much of the file's width and height is no painting, at its left, top, right and bottom, 0-1. A network
    that sees far would learn it and draw it along the borders of photos.
    """

    name: str
    path: Path
    title: str
    artist: str
    year: str
    credit: str
    may_ship: bool = False
    frame: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def canvas(self, short_side: int) -> Image.Image:
        """What is learnt from: the file, its shorter side scaled to `short_side` px, without the frame."""
        picture = scaled(read_picture(self.path), short_side)
        left, top, right, bottom = self.frame
        (width, height), (x, y) = picture.size, (1 - right, 1 - bottom)
        return picture.crop((round(left * width), round(top * height), round(x * width), round(y * height)))


def read_paintings(manifest: Path, folder: Path, names: Sequence[str] | None = None) -> list[Painting]:
    """The paintings that the manifest (TOML, a table a style) describes and `folder` holds, in the manifest's order.

    Raises ValueError for a name that the manifest lacks or a frame that leaves nothing, FileNotFoundError for a picture
    that the folder lacks.
    """
    tables = tomllib.loads(manifest.read_text())
    chosen = list(tables) if names is None else list(names)
    if unknown := [name for name in chosen if name not in tables]:
        raise ValueError(f"{manifest} has no {', '.join(unknown)}; it has {', '.join(tables)}")
    paintings = []
    for name in chosen:
        table = dict(tables[name])
        path = folder / table.pop("file")
        if not path.is_file():
            raise FileNotFoundError(f"the painting of {name} is not at {path}")
        frame = tuple(table.pop("frame", Painting.frame))
        if len(frame) != 4 or min(frame) < 0 or max(frame[0] + frame[2], frame[1] + frame[3]) > MOST_FRAME:
            raise ValueError(
                f"the frame of {name} is left, top, right and bottom, two sides at most {MOST_FRAME}: {frame}"
            )
        paintings.append(Painting(name=name, path=path, frame=frame, **table))
    return paintings


def unknown_painting(path: Path) -> Painting:
    """A painting of which nothing is known but its file."""
    return Painting(path.stem, path, path.stem, "unknown", "unknown", "not stated")


def load_picture(path: Path, *, short_side: int | None = None) -> Tensor:
    """A picture file -> (1, 3, H, W), RGB 0-1; its shorter side scaled to `short_side` px where that is given."""
    picture = read_picture(path)
    return to_tensor(np.asarray(picture if short_side is None else scaled(picture, short_side))[None])


def scaled(picture: Image.Image, short_side: int) -> Image.Image:
    """The picture with its shorter side scaled to `short_side` px."""
    scale = short_side / min(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


class Photos:
    """The photos of a folder, cut into random square crops."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        self.seed = seed
        if not self.paths:
            raise ValueError(f"no photos ({', '.join(PICTURE_SUFFIXES)}) in {folder}")

    def batch(self, step: int, count: int, side: int) -> Tensor:
        """The crops of one step: (count, 3, side, side), 0-1. Scale jittered, mirrored half of the time."""
        rng = np.random.default_rng([self.seed, step])
        chosen = (self.paths[index] for index in rng.integers(len(self.paths), size=count))
        crops = [square_crop(read_picture(path), side, CROPPED, rng, Image.Resampling.BICUBIC) for path in chosen]
        return to_tensor(np.stack(crops))

    def batches(self, crops: Sequence[tuple[int, int, int]]) -> Iterator[Tensor]:
        """The crops of many (step, count, side), read ahead."""
        return ahead(lambda crop: self.batch(*crop), crops)


def ahead(read: Callable[[Item], Read], items: Sequence[Item]) -> Iterator[Read]:
    """`read` of every item, in order, by all but two of the cores in the background while those before are in use."""
    readers = max(1, (os.cpu_count() or 1) - 2)
    with ThreadPoolExecutor(readers) as pool:
        reading: deque[Future[Read]] = deque()
        for item in items:
            reading.append(pool.submit(read, item))
            if len(reading) > readers:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
