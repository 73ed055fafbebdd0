"""Pictures too large to wait for: ``/stylize`` as a job, done by a real worker that needs no torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from service.client import Client, Order
from tests.jobs.conftest import PHOTO, Service, wait_for
from tests.jobs.test_service import events, leftovers
from tests.service.pictures import encoded, gradient, pixels
from tests.service.toy import VECTORS, toy_stylized

Serve = Callable[..., Service]
SIZE = (64, 48)  # of the photo; larger than what is made at once here
RED = toy_stylized(gradient(*SIZE), VECTORS["red"])


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve(STYLIZE_SYNC_MAX_PIXELS="1000")


def ask(service: Service, **fields: object) -> httpx.Response:
    files = {"image": ("a.png", PHOTO)} | fields.pop("files", {})  # type: ignore[operator]
    data = {name: str(value) for name, value in fields.items()}
    return service.http.post("/stylize", files=files, data=data)


def test_a_picture_too_large_to_wait_for_is_a_job(service: Service) -> None:
    answer = ask(service, style="red", format="png")
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"]
    told = [type for _, type in events(service, job["id"])]
    assert told[-1] == "succeeded"
    assert "preview" in told
    done = service.job(job["id"])
    assert (done["status"], done["loss"], done["progress"]) == ("succeeded", None, 1.0)
    assert done["parameters"] | {"width": 64, "height": 48, "style": "red", "model": "toy"} == done["parameters"]
    result = service.http.get(job["links"]["result"])
    assert result.headers["content-type"] == "image/png"
    assert np.array_equal(pixels(result.content), RED)
    preview = service.http.get(job["links"]["preview"])
    assert np.abs(pixels(preview.content).astype(int) - RED).mean() < 8
    wait_for(lambda: leftovers(service.data) == [])  # they go once the end is told
    for worker in service.workers():
        assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text()


def test_a_large_picture_has_the_strokes_and_the_palette_asked_for(service: Service) -> None:
    with Client(str(service.http.base_url)) as client:
        made = client.fill(Order(PHOTO, "green", style_coarse="negative", format="png"))
    assert np.array_equal(pixels(made.content), toy_stylized(gradient(*SIZE), [0, 80, 0, 1]))
    assert made.style == "style=green; style_coarse=negative"


def test_a_large_picture_has_the_style_of_the_painting_that_came_with_it(service: Service) -> None:
    painting = {"style_image": ("p.png", encoded(np.full((8, 8, 3), (10, 20, 30), np.uint8)))}
    job = ask(service, style="style_image:1,red:1", format="png", files=painting).json()
    assert service.wait(job["id"])["parameters"]["style"] == "style_image:0.5,red:0.5"
    found = pixels(service.http.get(job["links"]["result"]).content)
    assert np.array_equal(found, toy_stylized(gradient(*SIZE), [45, 10, 15, 0]))


def test_smaller_ones_are_answered_at_once(service: Service) -> None:
    assert ask(service, style="red", max_side=30).status_code == 200


def test_all_fields_mean_what_they_mean_at_once(service: Service) -> None:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:, 32:] = 255
    job = ask(service, style="red", strength=0.5, format="png", files={"mask": ("m.png", encoded(mask))}).json()
    service.wait(job["id"])
    found = pixels(service.http.get(job["links"]["result"]).content)
    photo = gradient(*SIZE)
    half = np.rint(photo + 0.5 * (RED.astype(np.float32) - photo))
    assert np.array_equal(found[:, :32], photo[:, :32])
    assert np.abs(found[:, 32:] - half[:, 32:]).max() <= 1


def test_regions_are_painted_in_their_styles(service: Service) -> None:
    regions = Image.fromarray((np.indices((48, 64))[1] // 32 + 1).astype(np.uint8), "P")
    regions.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    files = {"masks": ("m.png", encoded(regions))}
    job = ask(service, mask_styles="1:red,2:negative", format="png", files=files).json()
    service.wait(job["id"])
    found = pixels(service.http.get(job["links"]["result"]).content)
    assert np.array_equal(found[:, :32], RED[:, :32])
    assert np.array_equal(found[:, 32:], 255 - gradient(*SIZE)[:, 32:])


def test_a_damaged_photo_fails_its_job_alone(service: Service) -> None:
    whole = encoded(Image.fromarray(gradient(*SIZE)), "PNG")
    answer = ask(service, style="red", files={"image": ("a.png", whole[: len(whole) // 2])})
    assert answer.status_code == 202  # its header is sound: what it lacks shows when it is decoded
    job = service.wait(answer.json()["id"], "failed")
    assert job["error"]["code"] == "invalid_image"
    assert service.http.get(job["links"]["result"]).status_code == 409
    assert service.wait(ask(service, style="red").json()["id"])["status"] == "succeeded"


def test_the_client_waits_for_the_job(service: Service) -> None:
    shares: list[float] = []
    with Client(str(service.http.base_url)) as client:
        painting = client.fill(Order(PHOTO, "red", format="png"), shares.append)
    assert np.array_equal(pixels(painting.content), RED)
    assert (painting.style, painting.model) == ("red", "toy")
    assert shares[-1] == 1.0


def test_an_animation_too_long_to_wait_for_is_a_job(service: Service) -> None:
    frames = [np.roll(gradient(*SIZE), 16 * shift, axis=1) for shift in range(4)]
    first, *others = map(Image.fromarray, frames)
    apng = encoded(first, "PNG", save_all=True, append_images=others, duration=70, loop=0)
    answer = ask(service, style="red", files={"image": ("a.png", apng)})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["parameters"] | {"frames": 4, "format": "png", "iterations": 8} == job["parameters"]
    told = [type for _, type in events(service, job["id"])]
    assert told[-1] == "succeeded"
    assert "preview" in told
    assert service.job(job["id"])["iteration"] == 8
    result = service.http.get(job["links"]["result"])
    assert result.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(result.content))
    assert (image.n_frames, image.info["loop"]) == (4, 0)  # type: ignore[attr-defined]
    for number, frame in enumerate(frames):
        image.seek(number)
        assert np.array_equal(np.asarray(image.convert("RGB")), toy_stylized(frame, VECTORS["red"]))
    gif = encoded(first, "GIF", save_all=True, append_images=others, duration=70)
    with Client(str(service.http.base_url)) as client:
        painting = client.fill(Order(gif, "red"))
    assert painting.format == "gif"
    assert Image.open(io.BytesIO(painting.content)).n_frames == 4  # type: ignore[attr-defined]
    broken = ask(service, style="red", files={"image": ("a.png", apng[: int(0.9 * len(apng))])}).json()
    assert service.wait(broken["id"], "failed")["error"]["code"] == "invalid_image"
