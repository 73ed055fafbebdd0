"""A style is a vector: mixes are weighted sums, and strength is a step away from the photo's own vector."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.models.store import NAME_PATTERN, PHOTO, Vector

PAINTING = "style_image"  # in a mix: the style of the painting that came with the request
MAX_WEIGHT = 1e6
STRIP_ROWS = 256

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) sRGB
Rows = npt.NDArray[np.float32]  # (R, D), one style vector for each run of the network; D is 0 for a classic one


@dataclass(frozen=True)
class Mix:
    """Styles and their weights, which are positive and sum to 1; those of the palette, where the colours are to be
    another mix's."""

    weights: Mapping[str, float]
    palette: Mapping[str, float] | None = None

    @property
    def names(self) -> set[str]:
        return {*self.weights, *(self.palette or ())}

    @classmethod
    def parse(cls, text: str) -> Mix:
        """Read ``name`` or ``name:weight,name:weight``. Raises ValueError naming everything that is wrong."""
        parts = [part.strip().partition(":") for part in text.split(",")]
        wrong = [message for name, colon, weight in parts for message in _wrong(name, bool(colon), weight)]
        names = [name for name, _, _ in parts]
        wrong += [f"{name!r} is named twice" for name in sorted(set(names)) if names.count(name) > 1]
        if wrong:
            raise ValueError("; ".join(wrong))
        weights = {name: float(weight) if colon else 1.0 for name, colon, weight in parts}
        total = math.fsum(weights.values())
        return cls({name: weight / total for name, weight in weights.items()})

    def __str__(self) -> str:
        if len(self.weights) == 1:
            return next(iter(self.weights))
        return ",".join(f"{name}:{weight:.4g}" for name, weight in self.weights.items())


def _wrong(name: str, weighted: bool, weight: str) -> list[str]:
    wrong = [] if re.match(NAME_PATTERN, name) else [f"{name[:64]!r} is not a style's name (a name, or name:weight,…)"]
    if weighted:
        try:
            fits = 0 < float(weight) <= MAX_WEIGHT
        except ValueError:
            fits = False
        if not fits:
            wrong.append(f"the weight {weight[:32]!r} is not a number above 0 and at most {MAX_WEIGHT:g}")
    return wrong


def rows_for(vectors: Mapping[str, Vector], mixes: Sequence[Mix], strength: float, palette_size: int = 0) -> Rows:
    """The vectors to run the network on, (R, D): none at strength 0, each mix's at 1, and in between
    each one's s_a = (1 - a) s_photo + a s, and s_photo last. A classic network takes an empty row a mix. The colours
    are made by the last ``palette_size`` numbers of a vector."""
    if strength == 0:
        return np.empty((0, 0), np.float32)
    if not vectors:
        return np.empty((len(mixes), 0), np.float32)
    styles = [_vector(vectors, mix, palette_size) for mix in mixes]
    if strength == 1:
        return np.asarray(np.stack(styles), np.float32)
    photo = vectors[PHOTO]
    return np.stack([*(photo + np.float32(strength) * (style - photo) for style in styles), photo])


def _vector(vectors: Mapping[str, Vector], mix: Mix, palette_size: int) -> Vector:
    mixed = _sum(vectors, mix.weights)
    if mix.palette:
        mixed[-palette_size:] = _sum(vectors, mix.palette)[-palette_size:]
    return mixed


def _sum(vectors: Mapping[str, Vector], weights: Mapping[str, float]) -> Vector:
    return np.asarray(np.sum([np.float32(weight) * vectors[name] for name, weight in weights.items()], axis=0))


def blend(photo: Pixels, outputs: Sequence[Pixels] | Pixels, strength: float) -> Pixels:
    """The picture of ``strength`` a from one mix's outputs for ``rows_for(…)``; exact at both ends.

    Conditional: y = T(x; s_a) + (1 - a)(x - T(x; s_photo)). Classic: y = x + a (T(x) - x).
    """
    if strength == 0:
        return photo
    stylized = outputs[0]
    if strength == 1:
        return stylized
    if len(outputs) == 2:
        return _rounded(stylized, photo, outputs[1], 1 - strength)
    return _rounded(photo, stylized, photo, strength)


def _rounded(base: Pixels, plus: Pixels, minus: Pixels, weight: float) -> Pixels:
    """base + weight * (plus - minus), to the nearest value of a pixel; a strip at a time, for large pictures' sake."""
    result = np.empty_like(base)
    for top in range(0, len(base), STRIP_ROWS):
        strip = slice(top, top + STRIP_ROWS)
        change = plus[strip].astype(np.float32)
        change -= minus[strip]
        change *= np.float32(weight)
        change += base[strip]
        result[strip] = np.clip(np.rint(change, out=change), 0, 255, out=change)
    return result
