"""Strokes larger than the network's own: a large picture looks like its preview, only sharper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.images import halved_and_back
from service.models.catalog import ServedModel, served
from service.models.store import ModelStore
from service.models.strokes import sizes, with_strokes
from service.models.style import Mix
from tests.service.pictures import encoded, gradient, pixels
from tests.service.test_stylize import offences, post
from tests.service.toy import VECTORS, toy_stylized

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def multistyle() -> ServedModel:
    folder = ROOT / "model_store" / "multistyle" / "2"
    return served(ModelStore(ROOT / "model_store").load(folder), "cpu", 2)


def photo(width: int, height: int) -> np.ndarray:
    with Image.open(ROOT / "tests" / "photos" / "neuschwanstein.jpg") as file:
        return np.asarray(file.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))


def shrunk_to(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX)).astype(float)


def test_a_picture_is_painted_at_every_doubling() -> None:
    assert sizes((4000, 3000), 1) == [(4000, 3000)]
    assert sizes((4000, 3000), 4) == [(1000, 750), (2000, 1500), (4000, 3000)]
    assert sizes((3000, 10), 3) == [(1000, 3), (1500, 5), (3000, 10)]
    assert sizes((1, 1), 16) == [(1, 1)] * 5


def test_detail_of_a_strip_is_the_whole_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 41, 3), dtype=np.uint8)
    assert np.array_equal(halved_and_back(image[240:528])[16:-16], halved_and_back(image)[256:512])


def test_without_larger_strokes_the_picture_is_painted_once() -> None:
    image = gradient(30, 20)
    assert np.array_equal(with_strokes(image, 1, lambda pixels: 255 - pixels), 255 - image)


@pytest.mark.parametrize("style", ["starry_night", "roman_mosaic"])
def test_a_large_picture_looks_like_its_preview_only_sharper(multistyle: ServedModel, style: str) -> None:
    large, small = photo(800, 600), photo(200, 150)
    row = multistyle.rows([Mix({style: 1.0})], 1.0)
    preview = multistyle.begin()(small[None], row)[0].astype(float)
    as_preview = multistyle.begin(4.0)(large[None], row)[0]
    plain = multistyle.begin()(large[None], row)[0]
    apart, plain_apart = (np.abs(shrunk_to(each, 200, 150) - preview).mean() for each in (as_preview, plain))
    assert apart < 6
    assert apart < plain_apart / 3
    enlarged = np.asarray(Image.fromarray(preview.astype(np.uint8)).resize((800, 600), Image.Resampling.LANCZOS))
    detail, none = (np.abs(each.astype(float) - halved_and_back(each)).mean() for each in (as_preview, enlarged))
    assert detail > 2 * none


def test_the_field_stroke(client: TestClient) -> None:
    image = gradient(80, 60)
    found = pixels(post(client, encoded(image), stroke=2, format="png").content)
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - toy_stylized(image, VECTORS["red"])).mean() < 3
    assert np.array_equal(pixels(post(client, encoded(image), stroke=2, strength=0, format="png").content), image)
    for wrong in ("0.5", "17", "nan", "large"):
        assert "stroke" in offences(post(client, encoded(image), stroke=wrong))
