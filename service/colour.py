"""Keeping the photo's colours in a stylised picture. Linear in the pixels, a strip of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

PreserveColor = Literal["none", "luminance", "histogram"]
Pixels = npt.NDArray[np.uint8]  # (H, W, 3) sRGB
Floats = npt.NDArray[np.float32]

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # Rec. 709
STRIP_PIXELS = 1 << 17
SAMPLE_PIXELS = 1 << 16
FIT_ROUNDS = 6  # clipping moves the moments a little; the fit has settled by then
NOISE = 1e-5  # variance (linear light, 0 to 1) below which a colour counts as flat and is not stretched


def _to_linear() -> Floats:
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)


def _to_srgb(levels: int = 1 << 14) -> npt.NDArray[np.uint8]:
    """16384 levels: a step in the steepest, darkest part is a fifth of an 8-bit one."""
    linear = np.arange(levels) / (levels - 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded), np.uint8)


LINEAR = _to_linear()
SRGB = _to_srgb()


def keep_color(
    stylized: Pixels, photo: Pixels, preserve: PreserveColor, alpha: npt.NDArray[np.uint8] | None = None
) -> Pixels:
    """``stylized`` in the photo's colours; both (H, W, 3). Where ``alpha`` (H, W) is 0 no colour is counted.

    ``luminance``: every pixel has the luma of the stylised picture and the chroma and hue of the photo's pixel (Gatys
    et al. 2016, "Preserving Color in Neural Artistic Style Transfer"). ``histogram``: one affine map gives the picture
    the photo's mean and covariance in linear light, moving colours as little as can be (Pitié and Kokaram 2007).
    Unlike the papers, a colour outside sRGB is drawn towards the grey of its own luma instead of being clipped a
    channel at a time: that keeps its luma and its hue, and gives up chroma only.
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
    target, source = (LINEAR[_sample(picture.reshape(-1, 3)[visible])] for picture in (photo, stylized))
    if not len(source):
        return stylized
    matrix, offset = _fit(source, target)
    result = np.empty_like(stylized)
    for strip in _strips(stylized):
        mapped = _mapped(LINEAR[stylized[strip]], matrix, offset)
        result[strip] = SRGB[np.rint(mapped * (len(SRGB) - 1)).astype(np.uint16)]
    return result


def _fit(source: Floats, target: Floats) -> tuple[Floats, Floats]:
    """The affine map whose result, brought into gamut, has the moments of ``target``; both (P, 3) in linear light."""
    mean, covariance = _moments(target)
    matrix, offset = np.eye(3), np.zeros(3)
    for _ in range(FIT_ROUNDS):
        found, spread = _moments(_mapped(source, matrix.astype(np.float32), offset.astype(np.float32)))
        step = _transport(spread + NOISE * np.eye(3), covariance)
        matrix, offset = step @ matrix, step @ (offset - found) + mean
    return matrix.astype(np.float32), offset.astype(np.float32)


def _transport(source: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The symmetric T with T source T = target (3 x 3): the Monge-Kantorovich map between two Gaussians."""
    root = _root(source)
    inverse = np.linalg.inv(root)
    return np.asarray(inverse @ _root(root @ target @ root) @ inverse)


def _root(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _moments(colours: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    mean = colours.mean(axis=0, dtype=np.float64)
    centred = colours - mean
    return mean, centred.T @ centred / len(colours)


def _mapped(colours: Floats, matrix: Floats, offset: Floats) -> Floats:
    mapped: Floats = colours @ matrix.T + offset
    luma: Floats = mapped @ LUMA
    within: Floats = np.clip(luma, 0, 1)
    return _in_gamut(within, mapped - luma[..., None], 1)


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
