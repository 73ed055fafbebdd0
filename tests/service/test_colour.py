from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.colour import LUMA, keep_color
from service.images import decode, open_photo
from tests.service.pictures import gradient
from tests.service.toy import VECTORS, toy_stylized

PHOTOS = Path(__file__).parent.parent / "photos"
STYLE = Path(__file__).parent.parent.parent / "model_store" / "multistyle" / "2" / "previews" / "starry_night.jpg"


def photo(name: str) -> np.ndarray:
    opened = open_photo((PHOTOS / f"{name}.jpg").read_bytes(), 50_000_000)
    return decode(opened, opened.size_within(320)).rgb


def painting_like(shape: tuple[int, ...]) -> np.ndarray:
    """A real painting's colours and strokes, at a photo's size."""
    with Image.open(STYLE) as image:
        return np.asarray(image.convert("RGB").resize((shape[1], shape[0])))


def mean_chroma(picture: np.ndarray) -> float:
    colours = picture.astype(np.float64)
    return float(np.linalg.norm(colours - (colours @ LUMA)[..., None], axis=-1).mean())


@pytest.mark.parametrize("name", ["kingfisher", "flower", "gateway_of_india_night", "qutub_minar_portrait"])
def test_luminance_keeps_the_paintings_light_and_the_photos_chroma(name: str) -> None:
    original = photo(name)
    painting = painting_like(original.shape)
    kept = keep_color(painting, original, "luminance")
    assert np.abs(kept @ LUMA - painting @ LUMA).max() <= 1
    share = mean_chroma(kept) / mean_chroma(original)
    assert 0.8 < share <= 1.01, share
    hue = [picture - (picture @ LUMA)[..., None] for picture in (original.astype(float), kept.astype(float))]
    alike = (hue[0] * hue[1]).sum(axis=-1) / np.maximum(np.prod([np.linalg.norm(h, axis=-1) for h in hue], axis=0), 1)
    vivid = np.minimum(*(np.linalg.norm(h, axis=-1) for h in hue)) > 20
    assert alike[vivid].min() > 0.97


@pytest.mark.parametrize("name", sorted(path.stem for path in PHOTOS.glob("*.jpg")))
def test_histogram_gives_the_photos_moments_tones_and_chroma(name: str) -> None:
    original = photo(name)
    kept = keep_color(painting_like(original.shape), original, "histogram")
    wanted, got = (picture.reshape(-1, 3) / 255 for picture in (original, kept))
    assert np.abs(got.mean(axis=0) - wanted.mean(axis=0)).max() < 0.04
    assert np.linalg.norm(np.cov(got.T) - np.cov(wanted.T)) < 0.2 * np.linalg.norm(np.cov(wanted.T))
    tones = [np.quantile(colours @ LUMA, np.linspace(0.05, 0.95, 19)) for colours in (wanted, got)]
    assert np.abs(tones[0] - tones[1]).max() < 0.15  # no tone is stretched further than STEEPEST
    assert mean_chroma(kept) == pytest.approx(mean_chroma(original), rel=0.05)


@pytest.mark.parametrize("name", ["flower", "mariachi", "gateway_of_india_night"])
def test_histogram_puts_no_more_into_the_dark_than_the_photo_has(name: str) -> None:
    original = photo(name)
    kept = keep_color(painting_like(original.shape), original, "histogram")
    dark = [float((picture @ LUMA < 8).mean()) for picture in (original, kept)]
    assert dark[1] < dark[0] + 0.02


@pytest.mark.parametrize("preserve", ["luminance", "histogram"])
def test_a_photo_in_its_own_colours_is_the_photo(preserve: str) -> None:
    original = photo("coffee")
    assert np.abs(keep_color(original, original, preserve).astype(int) - original).max() <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize("preserve", ["luminance", "histogram"])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_grey_photo_makes_a_grey_picture(preserve: str, value: int) -> None:
    flat = np.full((20, 30, 3), value, np.uint8)
    for picture in (gradient(30, 20), 255 - flat, flat):
        kept = keep_color(picture, flat, preserve).astype(int)  # type: ignore[arg-type]
        assert np.ptp(kept, axis=-1).max() <= 2


def test_what_is_transparent_counts_for_no_colour() -> None:
    original = gradient(60, 40)
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    painting = toy_stylized(original, VECTORS["negative"])
    seen = keep_color(painting, original, "histogram", alpha)[:, 30:]
    assert np.array_equal(seen, keep_color(painting[:, 30:], original[:, 30:], "histogram"))
    assert np.array_equal(keep_color(painting, original, "histogram", 0 * alpha), painting)
