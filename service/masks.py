"""Where a photo is painted: one mask, or regions with a style each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_REGIONS = 8
Pixels = npt.NDArray[np.uint8]  # (H, W, 3) sRGB
Mask = npt.NDArray[np.uint8]  # (H, W), 255 is painted, 0 is photo


@dataclass(frozen=True)
class Regions:
    """The style of each palette index of an indexed PNG; an index without one stays photo."""

    styles: Mapping[int, str]

    @classmethod
    def parse(cls, text: str) -> Regions:
        """Read ``index:style,index:style``. Raises ValueError naming everything that is wrong."""
        parts = [tuple(side.strip() for side in part.partition(":")[::2]) for part in text.split(",")]
        wrong = [
            f"{index[:32]!r}:{style[:64]!r} is not a palette index (0 to 255) and a style, as in 1:starry_night"
            for index, style in parts
            if not re.fullmatch(r"[0-9]{1,3}", index) or int(index) > 255 or not style
        ]
        indices = [index for index, _ in parts]
        wrong += [f"the index {index} is given twice" for index in sorted(set(indices)) if indices.count(index) > 1]
        if len(parts) > MAX_REGIONS:
            wrong.append(f"{len(parts)} regions; at most {MAX_REGIONS} are painted at once")
        if wrong:
            raise ValueError("; ".join(wrong))
        return cls({int(index): style for index, style in parts})

    def __str__(self) -> str:
        return ",".join(f"{index}:{style}" for index, style in self.styles.items())


def composed(photo: Pixels, pictures: Sequence[Pixels], masks: Sequence[Mask]) -> Pixels:
    """The photo with each picture laid over it through its own mask; exact where a mask is 0 or 255.

    Masks that meet must not sum to more than 255, but for a rounding.
    """
    result = np.empty_like(photo)
    for row in range(len(photo)):
        base = photo[row].astype(np.float32)
        change = np.zeros_like(base)
        for picture, mask in zip(pictures, masks, strict=True):
            change += (picture[row] - base) * (mask[row, :, None] / np.float32(255))
        result[row] = np.clip(np.rint(base + change), 0, 255)
    return result
