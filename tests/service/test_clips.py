"""MP4s to pixels and back, what cannot be read of them, and the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from service.animations import AnimationLimits, decode_film, encode_film, open_animation
from service.cli import main
from service.client import Order
from service.errors import InvalidImage, TooManyPixels
from service.images import AnyFormat
from service.local import Local
from service.video import may_be_clip
from tests.jobs.conftest import Service
from tests.service.clips import SIZE, clip, played, rate, without_frames
from tests.service.conftest import ClientFactory
from tests.service.pictures import encoded, gradient
from tests.service.test_animations import ROOT, animation, motion, still_camera
from tests.service.test_animations import played as pictures_of

Serve = Callable[..., Service]
LIMITS = AnimationLimits(100, 10**6)
LOSS = 4  # mean levels that 4:2:0 and H.264 may take from a gradient


def ask(http: httpx.Client, content: bytes, **fields: str) -> httpx.Response:
    return http.post("/stylize", files={"image": ("a.mp4", content, "video/mp4")}, data={"style": "red"} | fields)


def test_a_phone_held_upright_and_odd_sides() -> None:
    found = open_animation(clip(turned=90), LIMITS)
    assert (found.width, found.height) == SIZE[::-1]
    film = decode_film(found, SIZE[::-1])
    assert np.abs(film.still().rgb.astype(int) - np.rot90(gradient(*SIZE), -1)).mean() < LOSS
    frames, _ = played(encode_film(film, "mp4", 90))
    assert frames[0].shape == film.still().rgb.shape
    odd = open_animation(clip((63, 47)), LIMITS)
    assert (odd.size_within(1000, "mp4"), odd.size_within(1000, "gif")) == ((62, 46), (63, 47))
    assert played(encode_film(decode_film(odd, (62, 46)), "mp4", 90))[0][0].shape == (46, 62, 3)


def test_the_frame_rate_is_kept() -> None:
    steady = clip(ticks=tuple(range(0, 12_000, 2000)))
    made = encode_film(decode_film(open_animation(steady, LIMITS), SIZE), "mp4", 90)
    assert rate(made) == 15


def test_one_frame_is_enough() -> None:
    film = decode_film(open_animation(clip(ticks=(0,)), LIMITS), SIZE)
    assert len(played(encode_film(film, "mp4", 90))[0]) == 1


def test_a_better_quality_is_closer_to_the_pixels_and_larger() -> None:
    film = decode_film(open_animation(clip(), LIMITS), SIZE)
    coarse, fine = (encode_film(film, "mp4", quality) for quality in (10, 100))
    apart = [np.abs(played(each)[0][0].astype(int) - film.still().rgb).mean() for each in (coarse, fine)]
    assert apart[0] > apart[1]
    assert len(coarse) < len(fine)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (clip()[:-200], InvalidImage, "cut short"),
        (clip()[:40], InvalidImage, "cut short"),
        (clip(sound=True, pictures=False), InvalidImage, "only sound"),
        (without_frames(clip()), InvalidImage, "no frame"),
        (clip()[:24] + bytes(1000), InvalidImage, "damaged"),
        (clip(ticks=tuple(range(0, 110_000, 1000))), TooManyPixels, "more than 100 frames"),
    ],
)
def test_what_cannot_be_read_is_said(content: bytes, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        open_animation(content, LIMITS)


def test_a_clip_of_frames_too_large_is_refused_before_they_are_decoded() -> None:
    with pytest.raises(TooManyPixels, match="64 x 48"):
        open_animation(clip(), AnimationLimits(100, 64 * 48 - 1))


def test_pictures_in_the_same_kind_of_box_are_no_clips() -> None:
    assert may_be_clip(clip())
    assert not may_be_clip(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert not may_be_clip(encoded(gradient(*SIZE)))


def test_without_workers_or_the_extra_it_is_said(start: ClientFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    http = start(gatys_workers=0)
    refused = ask(http, clip())
    assert (refused.status_code, refused.json()["code"]) == (503, "gatys_unavailable")
    contents = clip(), animation("gif")
    monkeypatch.setitem(sys.modules, "av", None)
    for content in contents:
        refused = ask(http, content, format="mp4")
        assert refused.status_code == 415
        assert "stylize[video]" in refused.json()["detail"]


def _frames(content: bytes, format: AnyFormat) -> list[np.ndarray]:
    return played(content)[0] if format == "mp4" else pictures_of(content)[0]


def test_a_still_camera_does_not_flicker() -> None:
    local = Local(ROOT / "model_store", "cpu")
    frames = still_camera(6)
    content = animation("png", frames, duration=50)
    formats: tuple[AnyFormat, ...] = ("mp4", "png")
    ratios = {
        format: motion(_frames(local.fill(Order(content, "mondrian", format=format)).content, format)) / motion(frames)
        for format in formats
    }
    print({format: round(ratio, 2) for format, ratio in ratios.items()})
    assert max(ratios.values()) <= 1.3


def test_the_command_paints_a_clip(toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(clip())
    store = ["--store", str(toy_store), "-s", "red"]
    assert main([str(tmp_path / "a.mp4"), *store]) == 0
    assert played((tmp_path / "a.red.mp4").read_bytes())[1] == played(clip())[1]
    (tmp_path / "still.png").write_bytes(encoded(gradient(*SIZE)))
    assert main([str(tmp_path / "still.png"), *store, "-o", str(tmp_path / "b.mp4")]) == 1
    assert "mp4 is for animations" in capsys.readouterr().err
