import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException  # type: ignore[import-untyped]
from PIL import Image

from service.models.catalog import StoppableRun
from service.models.session import Session
from tests.service.conftest import ClientFactory
from tests.service.pictures import encoded, gradient, pixels, png_header
from tests.service.toy import VECTORS, toy_stylized

PHOTO = gradient(60, 40)
PNG = encoded(PHOTO)
Send = Callable[..., httpx.Response]


def post(
    client: TestClient, content: bytes = PNG, headers: dict[str, str] | None = None, **fields: object
) -> httpx.Response:
    """The raw way in."""
    headers = {"Content-Type": "image/png"} | (headers or {})
    return client.post(
        "/stylize",
        params={"style": "red", **{name: str(value) for name, value in fields.items()}},
        content=content,
        headers=headers,
    )


def post_form(client: TestClient, content: bytes = PNG, **fields: object) -> httpx.Response:
    files = {"image": ("photo.png", content, "image/png")}
    return client.post("/stylize", data={"style": "red"} | fields, files=files)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.keys() >= {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def offences(response: httpx.Response) -> dict[str, str]:
    return {error["field"]: error["detail"] for error in problem(response, 422, "invalid_fields")["errors"]}


@pytest.mark.parametrize("send", [post, post_form])
@pytest.mark.parametrize("style", ["red", "green", "negative"])
def test_both_ways_in_give_the_style_asked_for(client: TestClient, send: Send, style: str) -> None:
    response = send(client, style=style)
    assert response.status_code == 200, response.text
    assert np.array_equal(pixels(response.content), toy_stylized(PHOTO, VECTORS[style]))


def test_the_answer_says_what_was_done(client: TestClient) -> None:
    headers = post(client, headers={"X-Request-ID": "mine-1"}, style="red:1,green:3").headers
    assert headers["content-type"] == "image/png"
    assert headers["x-style"] == "red:0.25,green:0.75"
    assert headers["x-model"] == "toy@1"
    assert headers["x-request-id"] == "mine-1"
    assert headers["cache-control"] == "no-store"
    assert headers["vary"] == "Accept"
    assert headers["x-content-type-options"] == "nosniff"
    stages = [part.split(";dur=") for part in headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["decode", "queue", "infer", "encode"]
    assert all(float(duration) >= 0 for _, duration in stages)


@pytest.mark.parametrize(
    ("fields", "applied"),
    [
        ({"style": "green", "style_coarse": "negative"}, "style=green; style_coarse=negative"),
        ({"style": "negative", "style_fine": "green"}, "style=negative; style_fine=green"),
        ({"style_fine": "green", "style_coarse": "negative"}, "style_fine=green; style_coarse=negative"),
    ],
)
def test_strokes_of_one_style_in_the_palette_of_another(
    client: TestClient, fields: dict[str, str], applied: str
) -> None:
    response = client.post("/stylize", data=fields, files={"image": PNG})
    assert np.array_equal(pixels(response.content), toy_stylized(PHOTO, [0, 80, 0, 1]))
    assert response.headers["x-style"] == applied
    own = client.post("/stylize", data=fields | {"strength": "0"}, files={"image": PNG})
    assert np.array_equal(pixels(own.content), PHOTO)


@pytest.mark.parametrize(
    ("fields", "offence"),
    [
        ({"style": "red", "style_fine": "red", "style_coarse": "green"}, "style"),
        ({"style_fine": "red"}, "style"),
        ({"style_coarse": "red"}, "style"),
        ({"style": "red", "style_coarse": "ink"}, "style"),
        ({"style": "red", "style_coarse": "red:0"}, "style_coarse"),
        ({"style": "red", "style_coarse": "green", "model": "classic_ink"}, "model"),
    ],
)
def test_strokes_and_palettes_that_cannot_be(client: TestClient, fields: dict[str, str], offence: str) -> None:
    assert offences(client.post("/stylize", data=fields, files={"image": PNG})).keys() == {offence}


def test_a_request_id_that_is_not_valid_is_replaced(client: TestClient) -> None:
    assert post(client, headers={"X-Request-ID": "a b" * 100}).headers["x-request-id"] != "a b" * 100


def test_a_mix_is_the_weighted_sum_of_its_vectors(client: TestClient) -> None:
    mixed = 0.25 * np.array(VECTORS["red"]) + 0.75 * np.array(VECTORS["green"])
    assert np.array_equal(pixels(post(client, style="red:1,green:3").content), toy_stylized(PHOTO, mixed))


def test_strength_0_gives_the_photo_back(client: TestClient) -> None:
    assert np.array_equal(pixels(post(client, strength=0).content), PHOTO)
    assert np.array_equal(pixels(post(client, style="ink", strength=0).content), PHOTO)


def test_strength_between_is_between(client: TestClient) -> None:
    half = PHOTO.astype(int) + np.array([40, 0, 0])
    assert np.array_equal(pixels(post(client, strength=0.5).content), half)
    assert np.abs(pixels(post(client, style="ink", strength=0.5).content).astype(int) - 127.5).max() <= 0.5


@pytest.mark.parametrize(("style", "model"), [("ink", "classic_ink@1"), ("foreign", "classic_foreign@1")])
def test_a_classic_network_is_served_beside_the_others(client: TestClient, style: str, model: str) -> None:
    response = post(client, style=style)
    assert response.headers["x-model"] == model
    assert np.array_equal(pixels(response.content), 255 - PHOTO)


def test_a_classic_style_cannot_be_mixed_nor_a_model_do_what_it_has_not(client: TestClient) -> None:
    assert "no one model" in offences(post(client, style="ink:1,red:1"))["style"]
    assert "models that can: toy" in offences(post(client, model="classic_ink"))["model"]


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (4000, 3), (3, 2048), (1500, 1000)])
def test_the_size_is_kept_to_the_pixel(client: TestClient, size: tuple[int, int]) -> None:
    photo = gradient(*size)
    response = post(client, encoded(photo), max_side=4000)
    assert np.array_equal(pixels(response.content), toy_stylized(photo, VECTORS["red"]))


def test_the_servers_own_max_side_is_the_default(start: ClientFactory) -> None:
    client = start(max_side=30, sync_max_pixels=900)
    assert pixels(post(client).content).shape == (20, 30, 3)
    assert pixels(post(client, max_side=12).content).shape == (8, 12, 3)
    problem(post(client, max_side=60), 413, "too_many_pixels")


PICTURES = {
    "cmyk": encoded(Image.new("CMYK", (12, 9), (0, 255, 255, 0)), "JPEG"),
    "16-bit": encoded(Image.fromarray(np.full((9, 12), 30000, np.uint16))),
    "palette with transparency": encoded(Image.new("RGBA", (12, 9), (9, 9, 9, 0)).quantize(4)),
    "animated": encoded(Image.new("RGB", (12, 9)), save_all=True, append_images=[Image.new("RGB", (12, 9), "red")]),
    "greyscale": encoded(Image.new("L", (12, 9), 77), "JPEG"),
    "webp": encoded(Image.new("RGB", (12, 9)), "WEBP"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_an_unusual_picture_is_stylised_at_its_size(client: TestClient, name: str) -> None:
    response = post(client, PICTURES[name])
    assert response.status_code == 200, response.text
    assert pixels(response.content).shape[:2] == (9, 12)


def test_a_turned_photo_comes_back_upright(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels(post(client, encoded(PHOTO, exif=exif)).content).shape == (60, 40, 3)


def test_transparency_is_kept(client: TestClient) -> None:
    image = Image.fromarray(PHOTO).convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 0))
    kept = pixels(post(client, encoded(image)).content)
    assert kept.shape == (40, 60, 4)
    assert kept[4, 3, 3] == 0
    assert pixels(post(client, encoded(image), format="jpeg").content).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_image"),
        (b"not an image", 400, "invalid_image"),
        (PNG[: len(PNG) // 2], 400, "invalid_image"),
        (encoded(PHOTO, "JPEG")[:600], 400, "invalid_image"),
        (encoded(PHOTO, "WEBP")[:-30], 400, "invalid_image"),
        (png_header(20_000, 20_000), 413, "too_many_pixels"),
        (encoded(PHOTO, "TIFF"), 415, "unsupported_media_type"),
    ],
)
@pytest.mark.parametrize("send", [post, post_form])
def test_what_cannot_be_read_is_a_problem(
    client: TestClient, send: Send, content: bytes, status: int, code: str
) -> None:
    problem(send(client, content), status, code)


@pytest.mark.parametrize("send", [post, post_form])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("style", "red:-1"),
        ("style", ""),
        ("strength", "2"),
        ("strength", "nan"),
        ("quality", "0"),
        ("quality", "101"),
        ("max_side", "0"),
        ("max_side", "wide"),
        ("format", "gif"),
        ("model", "best"),
        ("preserve_color", "purple"),
        ("style_image", "x"),
        ("mask", "x"),
        ("colour", "x"),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, send: Send, field: str, value: str) -> None:
    assert offences(send(client, **{field: value})).keys() == {field}


def test_every_offence_is_named_at_once(client: TestClient) -> None:
    response = client.post(
        "/stylize?strength=2&deadline_ms=soon",
        data={"style": "nobody", "quality": "0", "colour": "x", "format": "png"},
        files=[("style_image", ("m.png", PNG)), ("extra", ("e.png", PNG))],
    )
    named = offences(response)
    assert named.keys() == {"style", "strength", "quality", "colour", "extra", "image", "deadline_ms"}


def test_a_field_given_twice_is_an_offence(client: TestClient) -> None:
    response = client.post("/stylize?style=red&style=green", content=PNG, headers={"Content-Type": "image/png"})
    assert "more than once" in offences(response)["style"]


def test_an_unknown_style_is_404_and_a_missing_one_422(client: TestClient) -> None:
    assert "red" in problem(post(client, style="nobody"), 404, "unknown_style")["detail"]
    response = client.post("/stylize", content=PNG, headers={"Content-Type": "image/png"})
    assert offences(response).keys() == {"style"}
    assert post(client, preserve_color="none").status_code == 200


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/avif,image/webp,*/*;q=0.8", "image/webp"),
        ("image/png;q=0.1,image/jpeg;q=0.2", "image/jpeg"),
        ("image/jpeg;q=0, */*", "image/png"),
    ],
)
def test_accept_decides_the_format(client: TestClient, accept: str | None, expected: str) -> None:
    response = post(client, headers={"Accept": accept or ""})
    assert response.headers["content-type"] == expected
    assert Image.open(io.BytesIO(response.content)).get_format_mimetype() == expected


def test_the_field_format_goes_before_accept(client: TestClient) -> None:
    assert post(client, headers={"Accept": "image/png"}, format="webp").headers["content-type"] == "image/webp"


@pytest.mark.parametrize("accept", ["text/html", "image/avif", "image/*;q=0"])
def test_an_answer_format_that_we_do_not_do_is_406(client: TestClient, accept: str) -> None:
    problem(post(client, headers={"Accept": accept}), 406, "not_acceptable")


def test_quality_changes_the_size_of_a_jpeg(client: TestClient) -> None:
    sizes = [len(post(client, format="jpeg", quality=quality).content) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "image/tiff"])
def test_an_input_type_that_we_do_not_read_is_415(client: TestClient, content_type: str) -> None:
    problem(post(client, headers={"Content-Type": content_type}), 415, "unsupported_media_type")


@pytest.mark.parametrize("cut", [20, 200])
def test_a_multipart_body_that_is_cut_short_is_400(client: TestClient, cut: int) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + PNG + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(client.post("/stylize?style=red", content=body[:-cut], headers=headers), 400, "malformed_upload")
    assert client.post("/stylize?style=red", content=body, headers=headers).status_code == 200


def test_a_multipart_body_of_a_thousand_parts_is_400(client: TestClient) -> None:
    problem(client.post("/stylize", files=[("image", PNG)] * 1000), 400, "malformed_upload")


def test_too_many_bytes_are_413_whether_announced_or_not(start: ClientFactory) -> None:
    client = start(max_upload_bytes=1000)
    problem(post(client, b"x" * 1001), 413, "too_many_bytes")
    problem(post_form(client, b"x" * 1001), 413, "too_many_bytes")
    chunked = client.post("/stylize?style=red", content=iter([b"x" * 600] * 2), headers={"Content-Type": "image/png"})
    problem(chunked, 413, "too_many_bytes")


class Held:
    """Keeps every run waiting until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.started = threading.Event(), threading.Event()
        call = StoppableRun.__call__

        def held(run: StoppableRun, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
            self.started.set()
            self.go.wait(10)
            return call(run, images, rows)

        monkeypatch.setattr(StoppableRun, "__call__", held)


def test_a_deadline_that_passes_is_504_and_the_next_request_is_served(
    start: ClientFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    client = start()
    assert "infer" in problem(post(client, deadline_ms=500), 504, "deadline_exceeded")["detail"]
    assert "queue" in problem(post(client, headers={"X-Deadline-Ms": "500"}), 504, "deadline_exceeded")["detail"]
    held.go.set()
    assert post(client, deadline_ms=20_000).status_code == 200
    metrics = client.get("/metrics").text
    assert 'stylize_abandoned_total{stage="infer"} 1.0' in metrics
    assert 'stylize_queue_depth{model="toy"} 0.0' in metrics


def test_a_full_queue_is_503_with_a_time_to_come_back(start: ClientFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    client = start(max_side=40, sync_max_pixels=1600, max_queue_pixels=3200)
    photo = encoded(gradient(40, 40))
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(post, client, photo)
        assert held.started.wait(10)
        others = [pool.submit(post, client, photo) for _ in range(5)]
        refused = [other.result() for other in others if _done_within(other, 3)]
        assert len(refused) == 3  # two wait, 3200 pixels of them
        for response in refused:
            problem(response, 503, "saturated")
            assert int(response.headers["retry-after"]) >= 1
        held.go.set()
        assert [future.result().status_code for future in [first, *others]].count(200) == 3
    assert 'stylize_rejected_total{reason="saturated"} 3.0' in client.get("/metrics").text


def _done_within(future: Future[httpx.Response], timeout_s: float) -> bool:
    try:
        future.result(timeout_s)
    except TimeoutError:
        return False
    return True


def test_a_broken_run_is_500_with_a_problem(start: ClientFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    client = start()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.models.style._rounded", broken)
    problem(post(client, strength=0.5), 500, "internal")
    assert post(client).status_code == 200


def test_memory_that_runs_out_is_507_and_the_session_lives_on(
    start: ClientFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start()

    class Exhausted:
        def run(self, *_: object) -> None:
            raise RuntimeException("Failed to allocate memory for requested buffer of size 1")

    real = Session.run
    monkeypatch.setattr(Session, "run", lambda self, *a: real(_with(self, Exhausted()), *a))
    problem(post(client), 507, "out_of_memory")
    monkeypatch.setattr(Session, "run", real)
    assert post(client).status_code == 200


def _with(session: Session, inner: object) -> Session:
    copy = object.__new__(Session)
    copy.__dict__ = session.__dict__ | {"_session": inner}
    return copy


def test_what_was_done_is_counted(start: ClientFactory) -> None:
    client = start()
    post(client, style="red:1,green:1")
    metrics = client.get("/metrics").text
    assert 'stylize_pixels_total{style="green"} 1200.0' in metrics
    assert 'stylize_http_requests_total{code="200",method="POST",route="/stylize"} 1.0' in metrics
    assert 'stylize_stage_duration_seconds_count{stage="encode"} 1.0' in metrics
    assert 'stylize_inference_duration_seconds_count{model="toy",provider="cpu"} 1.0' in metrics
