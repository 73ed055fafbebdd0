"""Animations: the kind that came goes out, as long as it was, and it does not flicker. The networks are the shipped
ones where that is what is tested."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.animations import AnimationLimits, decode_film, encode_film, may_be_animation, open_animation
from service.cli import main
from service.client import Order
from service.errors import InvalidImage, TooManyPixels
from service.images import AnyFormat
from service.local import Local
from service.models.film import GRAIN, MOVED, NEAR, REACH, calmed, scenes, smoothed
from tests.service.conftest import ClientFactory
from tests.service.pictures import encoded, gradient, pixels
from tests.service.test_stylize import offences, post, problem
from tests.service.toy import VECTORS, toy_stylized

ROOT = Path(__file__).parents[2]
FLICKERING: tuple[AnyFormat, ...] = ("png", "gif")
LIMITS = AnimationLimits(100, 10**7)
DURATIONS = [40, 80, 120]
TYPES = {"gif": "image/gif", "png": "image/png", "webp": "image/webp"}
FRAMES = [np.roll(gradient(24, 16), 4 * shift, axis=1) for shift in range(3)]


def animation(format: str, frames: list[np.ndarray] = FRAMES, **options: object) -> bytes:
    first, *others = (Image.fromarray(frame) for frame in frames)
    lossless: dict[str, object] = {"lossless": True} if format == "webp" else {}
    options = {"duration": DURATIONS[: len(frames)], "loop": 0} | lossless | options
    return encoded(first, format, save_all=True, append_images=others, **options)


def played(content: bytes) -> tuple[list[np.ndarray], list[int], int | None]:
    """Frames (H, W, 3 or 4), their durations in ms, and what the file says of loops."""
    image = Image.open(io.BytesIO(content))
    frames, durations = [], []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGBA")))
        durations.append(round(image.info.get("duration", 0)))
    return frames, durations, image.info.get("loop")


def send(client: TestClient, content: bytes, kind: str, /, **fields: object) -> httpx.Response:
    return post(client, content, headers={"Content-Type": TYPES[kind]}, **fields)


@pytest.mark.parametrize("format", TYPES)
def test_the_same_kind_comes_back_as_long_and_as_often_played(client: TestClient, format: str) -> None:
    answer = send(client, animation(format, loop=2), format, quality=100)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == TYPES[format]
    frames, durations, loop = played(answer.content)
    assert (durations, loop) == (DURATIONS, 2)
    sent, _, _ = played(animation(format))
    for found, photo in zip(frames, sent, strict=True):
        assert np.abs(found[..., :3].astype(int) - toy_stylized(photo[..., :3], VECTORS["red"])).mean() < 6


def test_another_kind_may_be_asked_for(client: TestClient) -> None:
    gif = animation("gif")
    for format, wanted in (("webp", 3), ("png", 3), ("gif", 3), ("jpeg", 1)):
        answer = send(client, gif, "gif", format=format)
        assert answer.headers["content-type"] == f"image/{format}"
        assert len(played(answer.content)[0]) == wanted
    by_accept = post(client, gif, headers={"Content-Type": "image/gif", "Accept": "image/webp"})
    assert by_accept.headers["content-type"] == "image/webp"


def test_a_gif_that_is_played_once_stays_so() -> None:
    first, *others = (Image.fromarray(frame) for frame in FRAMES)
    once = encoded(first, "GIF", save_all=True, append_images=others, duration=50)
    film = decode_film(open_animation(once, LIMITS), (24, 16))
    assert film.plays == 1
    assert played(encode_film(film, "gif", 90))[2] is None
    assert played(encode_film(film, "png", 90))[2] == 1


@pytest.mark.parametrize("format", TYPES)
def test_transparency_is_kept(client: TestClient, format: str) -> None:
    frames = []
    for number, frame in enumerate(FRAMES):
        alpha = np.full(frame.shape[:2], 255, np.uint8)
        alpha[:, 8 * number : 8 * number + 4] = 0
        frames.append(np.dstack([frame, alpha]))
    options = {"disposal": 2} if format == "gif" else {}
    answer = send(client, animation(format, frames, **options), format)
    found, _, _ = played(answer.content)
    assert [np.array_equal(f[..., 3], wanted[..., 3]) for f, wanted in zip(found, frames, strict=True)] == [True] * 3


def test_fields_mean_what_they_mean_for_a_photo(client: TestClient) -> None:
    apng = animation("png")
    same = send(client, apng, "png", strength=0)
    assert all(np.array_equal(a[..., :3], b) for a, b in zip(played(same.content)[0], FRAMES, strict=True))
    half = played(send(client, apng, "png", strength=0.5).content)[0]
    for found, photo in zip(half, FRAMES, strict=True):
        wanted = photo + 0.5 * (toy_stylized(photo, VECTORS["red"]).astype(np.float32) - photo)
        assert np.abs(found[..., :3] - wanted).max() <= 1
    assert played(send(client, apng, "png", max_side=12).content)[0][0].shape == (8, 12, 4)
    mask = np.zeros((4, 6), np.uint8)  # of another size
    mask[:, 3:] = 255
    files = {"image": ("a.png", apng), "mask": ("m.png", encoded(mask))}
    answer = client.post("/stylize", data={"style": "red"}, files=files)
    for found, photo in zip(played(answer.content)[0], FRAMES, strict=True):
        assert np.array_equal(found[:, :8, :3], photo[:, :8])
        assert np.array_equal(found[:, 16:, :3], toy_stylized(photo, VECTORS["red"])[:, 16:])


def test_what_cannot_be_done_with_an_animation_is_said(client: TestClient) -> None:
    gif = animation("gif")
    assert "stroke" in offences(send(client, gif, "gif", stroke=2))
    assert "model" in offences(send(client, gif, "gif", style="ink"))
    assert "format" in offences(post(client, format="gif"))


@pytest.mark.parametrize(
    "frames", [[FRAMES[0]], [np.full((1, 1, 3), 7, np.uint8)], [np.zeros((1, 1, 3), np.uint8)] * 2]
)
def test_one_frame_or_one_pixel_is_enough(client: TestClient, frames: list[np.ndarray]) -> None:
    answer = send(client, animation("gif", frames), "gif")
    assert answer.status_code == 200, answer.text
    assert played(answer.content)[0][0].shape[:2] == frames[0].shape[:2]


@pytest.mark.parametrize("format", TYPES)
def test_a_truncated_animation_is_400(client: TestClient, format: str) -> None:
    rng = np.random.default_rng(0)
    whole = animation(format, [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)])
    for share in (0.02, 0.5, 0.9):
        problem(send(client, whole[: int(len(whole) * share)], format), 400, "invalid_image")


def test_too_many_frames_or_pixels_are_413(start: ClientFactory) -> None:
    few = start(max_frames=2)
    assert "2 frames" in problem(send(few, animation("gif"), "gif"), 413, "too_many_pixels")["detail"]
    assert "2 frames" in problem(send(few, animation("webp"), "webp"), 413, "too_many_pixels")["detail"]
    small = start(max_pixels=24 * 16 // 2)
    assert "3 frames of 24 x 16" in problem(send(small, animation("png"), "png"), 413, "too_many_pixels")["detail"]
    bomb = animation("gif", [np.zeros((3000, 3000, 3), np.uint8)] * 2)
    problem(send(small, bomb, "gif"), 413, "too_many_pixels")


def test_over_the_bound_without_workers_it_is_413_with_a_side_that_works(start: ClientFactory, tmp_path: Path) -> None:
    none = start(sync_max_pixels=400, gatys_workers=0, data_dir=tmp_path)
    detail = problem(send(none, animation("gif"), "gif"), 413, "too_many_pixels")["detail"]
    side = int(detail.split("max_side of ")[1].split()[0])
    assert send(none, animation("gif"), "gif", max_side=side).status_code == 200


def test_stills_are_not_taken_for_animations() -> None:
    for format in ("PNG", "JPEG", "WEBP"):
        assert not may_be_animation(encoded(FRAMES[0], format))
    for format in TYPES:
        assert may_be_animation(animation(format))
    with pytest.raises(InvalidImage):
        open_animation(b"GIF89a", LIMITS)
    with pytest.raises(TooManyPixels):
        open_animation(animation("png"), AnimationLimits(2, 10**7))


def test_statistics_are_averaged_up_to_a_cut() -> None:
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    found = scenes(np.stack([dark, dark + np.uint8(9), bright, bright]))
    assert found.tolist() == [0, 0, 1, 1]
    rows = np.array([[0.0], [2.0], [10.0], [20.0]], np.float32)
    assert smoothed(rows, found)[:, 0].tolist() == [1, 1, 15, 15]
    long = np.arange(4 * REACH, dtype=np.float32)[:, None]
    calm = smoothed(long, np.zeros(len(long), np.intp))
    assert calm[2 * REACH, 0] == 2 * REACH
    assert calm[0, 0] == REACH / 2


def still_camera(count: int) -> list[np.ndarray]:
    """A photo that does not move, with the grain of a camera, and something bright that crosses it."""
    rng = np.random.default_rng(0)
    with Image.open(ROOT / "tests" / "photos" / "coffee.jpg") as photo:
        scene = np.asarray(photo.convert("RGB").resize((192, 128), Image.Resampling.LANCZOS))
    frames = []
    for number in range(count):
        frame = scene + rng.normal(0, 2, scene.shape)
        frame[40:88, 10 + 16 * number : 50 + 16 * number] = (240, 220, 60)
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def motion(frames: list[np.ndarray]) -> float:
    """Mean difference of consecutive frames, in levels of 255."""
    return float(np.mean([np.abs(a[..., :3].astype(int) - b[..., :3]).mean() for a, b in pairwise(frames)]))


def test_a_still_camera_does_not_flicker_in_any_style(shipped: Local) -> None:
    clip = still_camera(6)
    content = animation("png", clip, duration=50)
    ratios = {
        f"{style.name} as {format}": motion(played(shipped.fill(Order(content, style.name, format=format)).content)[0])
        / motion(clip)
        for style in shipped.styles()
        for format in FLICKERING
    }
    print({name: round(ratio, 2) for name, ratio in ratios.items()})
    assert max(ratios.values()) <= 1.3


PAN = 4  # pixels a frame
SKY_ROWS = 60


def panning_camera(count: int) -> list[np.ndarray]:
    """A camera with grain that pans over a castle before a sky."""
    rng = np.random.default_rng(0)
    with Image.open(ROOT / "tests" / "photos" / "neuschwanstein.jpg") as photo:
        scene = np.asarray(photo.convert("RGB").resize((614, 409), Image.Resampling.LANCZOS))
    views = [scene[10:202, 20 + PAN * number : 276 + PAN * number] for number in range(count)]
    return [np.clip(view + rng.normal(0, 2, view.shape), 0, 255).astype(np.uint8) for view in views]


def along(frames: list[np.ndarray]) -> float:
    """Mean difference of consecutive skies, each place with itself, in levels of 255."""
    skies = [frame[:SKY_ROWS, :, :3].astype(int) for frame in frames]
    return float(np.mean([np.abs(b[:, :-PAN] - a[:, PAN:]).mean() for a, b in pairwise(skies)]))


def detail(frame: np.ndarray) -> float:
    """Mean step from pixel to pixel in the sky, away from the margins."""
    sky = frame[6:SKY_ROWS, 12:-12, :3].mean(axis=2)
    return float(np.abs(np.diff(sky, axis=0)).mean() + np.abs(np.diff(sky, axis=1)).mean())


def test_a_pan_keeps_its_strokes_in_the_sky_and_does_not_flicker_in_any_style(shipped: Local) -> None:
    clip = panning_camera(8)
    content = animation("png", clip, duration=50)
    flicker, kept = {}, {}
    for style in shipped.styles():
        painted = played(shipped.fill(Order(content, style.name, format="png")).content)[0]
        alone = pixels(shipped.fill(Order(encoded(clip[-1]), style.name, model="multistyle")).content)
        flicker[style.name] = along(painted) / along(clip)
        kept[style.name] = detail(painted[-1]) / detail(alone)
    print({name: (round(flicker[name], 2), round(kept[name], 2)) for name in kept})
    assert max(flicker.values()) <= 2
    assert min(kept.values()) >= 0.85


def test_frames_painted_one_by_one_do_flicker(shipped: Local) -> None:
    """So that the test above would fail without what it tests."""
    clip = still_camera(6)
    alone = [pixels(shipped.fill(Order(encoded(frame), "mondrian")).content) for frame in clip]
    assert motion(alone) / motion(clip) > 1.4


def test_grain_keeps_most_and_what_moved_nothing_nor_what_is_near() -> None:
    width = 3 * NEAR
    photos = np.zeros((3, 1, width, 3), np.uint8)
    photos[1:, 0, 0, 1] = MOVED
    photos[1:, 0, -1] = GRAIN
    painted = np.stack([np.full((1, width, 3), level, np.uint8) for level in (0, 100, 100)])
    found = np.stack(list(calmed(painted, photos, np.array([0, 0, 1]))))[:, 0, :, 0]
    assert found[1].tolist() == [100] * (NEAR + 1) + [30] * (width - NEAR - 1)
    assert found[2].tolist() == [100] * width  # a cut


@pytest.fixture(scope="module")
def shipped() -> Local:
    return Local(ROOT / "model_store", "cpu")


def test_the_command_paints_a_gif(toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.gif").write_bytes(animation("gif"))
    store = ["--store", str(toy_store), "-s", "red"]
    assert main([str(tmp_path / "a.gif"), *store]) == 0
    assert played((tmp_path / "a.red.gif").read_bytes())[1] == DURATIONS
    assert main([str(tmp_path), *store, "-o", str(tmp_path / "out")]) == 0
    assert len(played((tmp_path / "out" / "a.gif").read_bytes())[0]) == 3
    (tmp_path / "still.png").write_bytes(encoded(FRAMES[0]))
    assert main([str(tmp_path / "still.png"), *store, "-o", str(tmp_path / "b.gif")]) == 1
    assert "gif is for animations" in capsys.readouterr().err
