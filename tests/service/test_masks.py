from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.colour import keep_color
from service.masks import Regions
from tests.service.conftest import ClientFactory
from tests.service.pictures import encoded, gradient, pixels, png_header
from tests.service.test_stylize import offences, problem
from tests.service.toy import VECTORS, toy_stylized

PHOTO = gradient(60, 40)
RED, GREEN = (toy_stylized(PHOTO, VECTORS[style]) for style in ("red", "green"))
RAMP = np.tile(np.linspace(0, 255, 60).round().astype(np.uint8), (40, 1))


def post(client: TestClient, files: dict[str, bytes], photo: bytes = b"", **fields: object) -> httpx.Response:
    data = {name: str(value) for name, value in fields.items()}
    return client.post("/stylize", data=data, files={"image": photo or encoded(PHOTO), **files})


def indexed(indices: np.ndarray) -> bytes:
    palette = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
    return encoded(palette)


def blended(photo: np.ndarray, painted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = photo + (painted.astype(float) - photo) * mask[..., None] / 255
    return mixed


@pytest.mark.parametrize("strength", [1, 0.5])
def test_white_is_painted_black_is_photo_and_grey_in_between(client: TestClient, strength: float) -> None:
    result = pixels(post(client, {"mask": encoded(RAMP)}, style="red", strength=strength).content)
    painted = PHOTO + (RED.astype(int) - PHOTO) * strength
    assert np.abs(result - blended(PHOTO, painted, RAMP)).max() <= 1
    assert np.array_equal(result[:, 0], PHOTO[:, 0])


def test_a_black_mask_and_a_strength_of_0_give_the_photo_back(client: TestClient) -> None:
    black, white = (encoded(np.full((4, 6), value, np.uint8)) for value in (0, 255))
    assert np.array_equal(pixels(post(client, {"mask": black}, style="red").content), PHOTO)
    assert np.array_equal(pixels(post(client, {"mask": white}, style="red").content), RED)
    assert np.array_equal(pixels(post(client, {"mask": encoded(RAMP)}, style="red", strength=0).content), PHOTO)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "16-bit"])
def test_a_mask_of_any_mode_and_size_is_read_by_its_brightness(client: TestClient, mode: str) -> None:
    halves = np.zeros((80, 120), np.uint8)
    halves[:, 60:] = 255
    image = Image.fromarray(halves)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(0)
    image = Image.fromarray(halves.astype(np.uint16) * 257) if mode == "16-bit" else image.convert(mode)
    result = pixels(post(client, {"mask": encoded(image)}, style="red").content)
    assert np.array_equal(result[:, :28], PHOTO[:, :28])
    assert np.array_equal(result[:, 32:], RED[:, 32:])


def test_a_turned_mask_lies_upright_on_a_turned_photo(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 60 x 40, seen 40 x 60
    top = np.zeros((40, 60), np.uint8)
    top[:, :30] = 255  # the stored left is the top that is seen
    result = pixels(post(client, {"mask": encoded(top, exif=exif)}, encoded(PHOTO, exif=exif), style="red").content)
    upright = np.rot90(PHOTO, -1)
    assert np.array_equal(result[:30], np.rot90(RED, -1)[:30])
    assert np.array_equal(result[30:], upright[30:])


@pytest.mark.parametrize("strength", [1, 0.5])
def test_each_region_has_its_style_in_one_run_and_the_rest_stays_photo(start: ClientFactory, strength: float) -> None:
    client = start()
    indices = np.zeros((40, 60), int)
    indices[:, 20:40], indices[:, 40:] = 1, 2
    response = post(client, {"masks": indexed(indices)}, mask_styles="1:red,2:green", strength=strength)
    assert response.headers["x-style"] == "1:red,2:green"
    result = pixels(response.content)
    assert np.array_equal(result[:, :20], PHOTO[:, :20])
    for columns, painted in ((slice(20, 40), RED), (slice(40, 60), GREEN)):
        expected = PHOTO + (painted.astype(int) - PHOTO) * strength
        assert np.abs(result[:, columns] - expected[:, columns]).max() <= 0.5
    rows = {1: 2, 0.5: 3}[strength]
    metrics = client.get("/metrics").text
    assert f'stylize_batch_size_sum{{model="toy"}} {rows}.0' in metrics
    assert 'stylize_batch_size_count{model="toy"} 1.0' in metrics


def test_colours_are_kept_inside_the_mask(client: TestClient) -> None:
    response = post(client, {"mask": encoded(RAMP)}, style="negative", preserve_color="luminance")
    painted = keep_color(toy_stylized(PHOTO, VECTORS["negative"]), PHOTO, "luminance")
    assert np.abs(pixels(response.content) - blended(PHOTO, painted, RAMP)).max() <= 1


@pytest.mark.parametrize(
    ("files", "fields", "named"),
    [
        ({"mask": b"x", "masks": b"x"}, {"style": "red", "strength": 2}, {"mask", "style", "mask_styles", "strength"}),
        ({"masks": indexed(RAMP)}, {}, {"mask_styles"}),
        ({"masks": indexed(RAMP)}, {"mask_styles": "300:red,1:green,1:red"}, {"mask_styles"}),
        ({"masks": indexed(RAMP)}, {"mask_styles": "1:ink,2:red"}, {"mask_styles"}),
        ({"masks": encoded(RAMP)}, {"mask_styles": "1:red"}, {"masks"}),
        ({}, {"style": "red", "mask_styles": "1:red"}, {"mask_styles"}),
        ({}, {"style": "red", "mask": "x", "masks": "x"}, {"mask", "masks"}),
    ],
)
def test_what_contradicts_itself_is_named(
    client: TestClient, files: dict[str, bytes], fields: dict[str, Any], named: set[str]
) -> None:
    assert offences(post(client, files, **fields)).keys() == named


@pytest.mark.parametrize(
    ("mask", "status", "code"),
    [
        (b"", 400, "invalid_image"),
        (b"not an image", 400, "invalid_image"),
        (encoded(RAMP)[:60], 400, "invalid_image"),
        (png_header(20_000, 20_000), 413, "too_many_pixels"),
        (encoded(RAMP, "GIF"), 415, "unsupported_media_type"),
    ],
)
def test_a_mask_that_cannot_be_read_is_a_problem_with_its_name(
    client: TestClient, mask: bytes, status: int, code: str
) -> None:
    detail = problem(post(client, {"mask": mask}, style="red"), status, code)["detail"]
    assert detail.startswith("mask: ")


def test_an_unknown_style_of_a_region_is_404(client: TestClient) -> None:
    problem(post(client, {"masks": indexed(RAMP)}, mask_styles="1:nobody"), 404, "unknown_style")


def test_regions_that_take_too_much_work_are_413_with_a_side_that_works(start: ClientFactory) -> None:
    client = start(max_side=60, sync_max_pixels=3600)
    files = {"masks": indexed(np.zeros((4, 6)))}
    styles = ",".join(f"{index}:{style}" for index, style in enumerate(["red", "green"] * 4))
    photo = encoded(gradient(60, 60))
    detail = problem(post(client, files, photo, mask_styles=styles), 413, "too_many_pixels")["detail"]
    side = int(detail.split("max_side of ")[1].split()[0])
    assert post(client, files, photo, mask_styles=styles, max_side=side).status_code == 200


def test_forty_regions_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8"):
        Regions.parse(",".join(f"{index}:red" for index in range(40)))
