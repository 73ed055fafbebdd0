"""Keeping the photo's colours in a stylised picture. In time linear in the pixels, a strip of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

PreserveColor = Literal["none", "luminance", "histogram"]
Pixels = npt.NDArray[np.uint8]  # (H, W, 3) sRGB
Floats = npt.NDArray[np.float32]
Moments = npt.NDArray[np.float64]

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709
STRIP_PIXELS = 1 << 17
SAMPLE_PIXELS = 1 << 16
QUANTILES = np.linspace(0, 1, 65)
STEEPEST = 4.0  # no difference of luma is stretched further: what is nearly flat stays so
FIT_ROUNDS = 4  # what is brought into gamut moves the moments a little; the fit has settled by then
NOISE = 1e-4  # variance (0 to 1) of the grain that any picture is taken to have: nothing is stretched that is finer


def keep_color(
    stylized: Pixels, photo: Pixels, preserve: PreserveColor, alpha: npt.NDArray[np.uint8] | None = None
) -> Pixels:
    """``stylized`` in the photo's colours; both (H, W, 3). Where ``alpha`` (H, W) is 0 no colour is counted.

    ``luminance``: every pixel has the luma of the stylised picture and the chroma and hue of the photo's pixel (Gatys
    et al. 2016, "Preserving Color in Neural Artistic Style Transfer"). ``histogram``: one affine map brings the picture
    to the photo's mean and covariance, moving colours as little as can be (Pitié and Kokaram 2007); then its lumas take
    the photo's quantiles, and its chroma the photo's mean.

    Unlike the papers: a colour outside sRGB is drawn towards the grey of its own luma instead of being clipped a
    channel at a time, which keeps its luma and its hue and gives up chroma only. And an affine map alone, in linear
    light above all, turns half of a bright flower before a dark ground black (README has the numbers).
    """
    if preserve == "luminance":
        return _with_chroma(stylized, photo)
    if preserve == "histogram":
        return _with_palette(stylized, photo, alpha)
    return stylized


def _with_chroma(stylized: Pixels, photo: Pixels) -> Pixels:
    result = np.empty_like(stylized)
    for strip in _strips(stylized):
        colours = photo[strip].astype(np.float32)
        chroma = colours - (colours @ LUMA)[..., None]
        luma = stylized[strip].astype(np.float32) @ LUMA
        result[strip] = np.rint(_in_gamut(luma, chroma, 255))
    return result


def _with_palette(stylized: Pixels, photo: Pixels, alpha: npt.NDArray[np.uint8] | None) -> Pixels:
    visible = slice(None) if alpha is None else alpha.reshape(-1) > 0
    source, target = (_unit(_sample(picture.reshape(-1, 3)[visible])) for picture in (stylized, photo))
    if not len(source):
        return stylized
    recolor = _fit(source, target)
    result = np.empty_like(stylized)
    for strip in _strips(stylized):
        result[strip] = np.rint(255 * recolor(_unit(stylized[strip])))
    return result


@dataclass(frozen=True)
class _Recolor:
    """An affine map of colours (…, 3), 0 to 1; then a curve on their luma, a factor on their chroma, and into gamut."""

    matrix: Moments = field(default_factory=lambda: np.eye(3))
    offset: Moments = field(default_factory=lambda: np.zeros(3))
    tones: tuple[Moments, Moments] = field(default_factory=lambda: (np.zeros(1), np.zeros(1)))  # luma -> luma
    chroma: float = 1.0

    def __call__(self, colours: Floats) -> Floats:
        mapped = self.mapped(colours)
        luma: Floats = mapped @ LUMA
        toned = np.interp(luma, *self.tones).astype(np.float32)
        return _in_gamut(toned, np.float32(self.chroma) * (mapped - luma[..., None]), 1)

    def mapped(self, colours: Floats) -> Floats:
        return np.asarray(colours @ self.matrix.T.astype(np.float32) + self.offset.astype(np.float32))


def _fit(source: Floats, target: Floats) -> _Recolor:
    """What gives ``source`` the moments, tones and chroma of ``target``; both (P, 3), 0 to 1."""
    mean, covariance = _moments(target)
    grain = NOISE * np.eye(3)
    tones, chroma = np.quantile(target @ LUMA, QUANTILES), _mean_chroma(target)
    recolor = _toned(_Recolor(), source, tones)
    for _ in range(FIT_ROUNDS):
        found, spread = _moments(recolor(source))
        step = _transport(spread + recolor.matrix @ grain @ recolor.matrix.T, covariance + grain)
        moved = replace(recolor, matrix=step @ recolor.matrix, offset=step @ (recolor.offset - found) + mean)
        recolor = _toned(moved, source, tones)
    for _ in range(FIT_ROUNDS):
        share = chroma / max(_mean_chroma(recolor(source)), 1e-3)
        recolor = replace(recolor, chroma=recolor.chroma * min(share, 2.0))
    return recolor


def _toned(recolor: _Recolor, source: Floats, after: Moments) -> _Recolor:
    """With the lumas ``after``, quantile by quantile, from the middle outwards."""
    before = np.quantile(recolor.mapped(source) @ LUMA, QUANTILES)
    steps = np.maximum(np.diff(before), np.diff(after) / STEEPEST)
    reached = np.concatenate([[0], np.cumsum(steps)])
    middle = len(QUANTILES) // 2
    return replace(recolor, tones=(before[middle] + reached - reached[middle], after))


def _unit(pixels: Pixels) -> Floats:
    return np.divide(pixels, 255, dtype=np.float32)


def _mean_chroma(colours: Floats) -> float:
    return float(np.linalg.norm(colours - (colours @ LUMA)[..., None], axis=-1).mean())


def _transport(source: Moments, target: Moments) -> Moments:
    """The symmetric T with T source T = target (3 x 3): the Monge-Kantorovich map between two Gaussians."""
    root = _root(source)
    inverse = np.linalg.inv(root)
    return np.asarray(inverse @ _root(root @ target @ root) @ inverse)


def _root(matrix: Moments) -> Moments:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _moments(colours: Floats) -> tuple[Moments, Moments]:
    mean = colours.mean(axis=0, dtype=np.float64)
    centred = colours - mean
    return mean, centred.T @ centred / len(colours)


def _in_gamut(luma: Floats, chroma: Floats, white: float) -> Floats:
    """luma (…) + chroma (…, 3), with as much of the chroma as stays within 0 … ``white``."""
    highest, lowest = chroma.max(axis=-1), chroma.min(axis=-1)
    tiny = np.float32(1e-6)
    share = np.minimum((white - luma) / np.maximum(highest, tiny), luma / np.maximum(-lowest, tiny))
    kept = luma[..., None] + np.minimum(share, 1)[..., None] * chroma
    return np.asarray(np.clip(kept, 0, white), np.float32)


def _sample(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """At most SAMPLE_PIXELS of (P, 3), scattered as golden-ratio steps are: moments need no more."""
    if len(colours) <= SAMPLE_PIXELS:
        return colours
    steps = np.arange(SAMPLE_PIXELS) * 0.6180339887498949 % 1
    return colours[(steps * len(colours)).astype(np.int64)]


def _strips(picture: Pixels) -> Iterator[slice]:
    rows = max(1, STRIP_PIXELS // picture.shape[1])
    return (slice(top, top + rows) for top in range(0, len(picture), rows))
