"""Where a camera turned: found for shifts of the whole picture, and nothing claimed where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.models.camera import STILL, Frame, carried, turn

PHOTOS = Path(__file__).parents[1] / "photos"
SIZE = (256, 192)
GRAIN = 2  # levels, of a camera


def seen(photo: str, x: float, y: float, zoom: float = 1, seed: int = 0) -> Frame:
    """What a camera with grain sees of a photo, from so many pixels off its middle."""
    with Image.open(PHOTOS / f"{photo}.jpg") as file:
        whole = file.convert("RGB").resize((640, 420), Image.Resampling.LANCZOS)
    left, top = (whole.width / 2 + x - SIZE[0] / zoom / 2, whole.height / 2 + y - SIZE[1] / zoom / 2)
    matrix = (1 / zoom, 0, left, 0, 1 / zoom, top)
    view = whole.transform(SIZE, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).normal(0, GRAIN, (SIZE[1], SIZE[0], 3))
    return np.clip(np.asarray(view) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("photo", ["neuschwanstein", "kingfisher", "coffee"])
@pytest.mark.parametrize("move", [(0, 0), (0, -4), (6, -15), (-40, 60)], ids=str)
def test_a_shift_is_found_through_grain_and_past_what_crosses(photo: str, move: tuple[int, int]) -> None:
    before, after = seen(photo, 0, 0), seen(photo, -move[1], -move[0], seed=1)
    before[20:60, 20:60] = (240, 220, 60)
    after[20:60, 36:76] = (240, 220, 60)
    assert turn(before, after) == move


@pytest.mark.parametrize("photo", ["neuschwanstein", "kingfisher", "coffee"])
def test_half_a_pixel_is_rounded_and_a_zoom_is_not_followed(photo: str) -> None:
    half = turn(seen(photo, 0, 0), seen(photo, 3.5, 1.5, seed=1))
    assert half is not None
    assert half in [(down, right) for down in (-1, -2) for right in (-3, -4)]
    assert turn(seen(photo, 0, 0), seen(photo, 0, 0, zoom=1.03, seed=1)) is None


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3)])
def test_what_has_no_edges_stays(shape: tuple[int, ...]) -> None:
    noise = np.random.default_rng(0).integers(100, 104, (2, *shape), dtype=np.uint8)
    assert turn(*noise) == STILL


def test_what_is_carried_leaves_a_gap_behind() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    moved, there = carried(pixels, (1, -2))
    assert moved.tolist() == [[0, 0, 0, 0], [2, 3, 0, 0], [6, 7, 0, 0]]
    assert np.array_equal(there, np.isin(np.arange(12).reshape(3, 4), [4, 5, 8, 9]))
    for away in ((3, 0), (0, -4), (-9, 9)):
        moved, there = carried(pixels, away)
        assert not moved.any()
        assert not there.any()
