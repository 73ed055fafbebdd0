import io
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile

from service.errors import InvalidImage, ServiceError, TooManyPixels, UnsupportedMediaType
from service.images import GLANCE_BYTES, Picture, decode, encode, open_at_once, open_photo
from tests.service.pictures import encoded, gradient, pixels, png_header

MANY = 50_000_000


def read(content: bytes, max_side: int = 4096) -> Picture:
    photo = open_photo(content, MANY)
    return decode(photo, photo.size_within(max_side))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (4000, 3), (3, 4000), (64, 48)])
def test_png_pixels_come_through_unchanged(size: tuple[int, int]) -> None:
    assert np.array_equal(read(encoded(gradient(*size))).rgb, gradient(*size))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_side", [4096, 32])
def test_exif_orientation_is_applied(orientation: int, max_side: int) -> None:
    upright = Image.fromarray(gradient(64, 48))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the camera's position amounts to
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read(encoded(stored, exif=exif), max_side)
    expected = np.asarray(upright.resize((32, 24), Image.Resampling.LANCZOS)) if max_side == 32 else gradient(64, 48)
    assert picture.rgb.shape == expected.shape
    assert np.abs(picture.rgb.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((4000, 3), 1000, (1000, 1)),
        ((30, 20), 40, (30, 20)),
        ((999, 1000), 500, (500, 500)),
        ((3, 4000), 8, (1, 8)),
    ],
)
def test_the_longer_side_is_shrunk_in_proportion_and_never_enlarged(
    size: tuple[int, int], max_side: int, expected: tuple[int, int]
) -> None:
    photo = open_photo(encoded(gradient(*size)), MANY)
    assert photo.size_within(max_side) == expected
    assert decode(photo, expected).rgb.shape == (expected[1], expected[0], 3)


def test_a_jpeg_shrunk_by_the_decoder_looks_like_one_shrunk_after() -> None:
    content = encoded(gradient(1600, 1200), "JPEG", quality=95)
    shrunk = read(content, 200).rgb
    assert shrunk.shape == (150, 200, 3)
    assert np.abs(shrunk.astype(int) - gradient(200, 150)).max() < 8


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("reduced", [1, 2, 4, 8])
def test_a_jpeg_as_it_is_or_reduced_has_the_very_pixels_of_pillow(options: dict[str, Any], reduced: int) -> None:
    content = encoded(np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8), "JPEG", **options)
    size = 200 // reduced, 120 // reduced
    with Image.open(io.BytesIO(content)) as pillows:
        pillows.draft(None, size)
        assert pillows.size == size
        assert np.array_equal(decode(open_photo(content, MANY), size).rgb, np.asarray(pillows))


def test_cmyk_becomes_rgb() -> None:
    picture = read(encoded(Image.new("CMYK", (20, 10), (0, 255, 255, 0)), "JPEG"))
    assert picture.rgb.shape == (10, 20, 3)
    assert picture.rgb[5, 5, 0] > 150
    assert picture.rgb[5, 5, 1:].max() < 90


def test_16_bit_greyscale_keeps_its_brightness() -> None:
    grey = np.linspace(0, 65535, 50 * 40).reshape(40, 50).astype(np.uint16)
    picture = read(encoded(Image.fromarray(grey)))
    assert np.abs(picture.rgb[..., 1] - grey / 257).max() <= 0.5


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_greyscale_bitmap_and_palette_become_rgb(mode: str) -> None:
    image = Image.fromarray(gradient(20, 10)).convert(mode)
    picture = read(encoded(image))
    assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    assert picture.alpha is None


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_read_however_it_is_stored(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (200, 10, 10, 255))
    image.putpixel((1, 2), (0, 0, 0, 0))
    options: dict[str, Any] = {"transparency": (0, 0, 0)} if mode == "RGB" else {}
    if mode == "P":
        image = image.quantize(4)
    elif mode != "RGBA":
        image = image.convert(mode)
    picture = read(encoded(image, **options))
    assert picture.alpha is not None
    assert picture.alpha[2, 1] == 0
    assert (picture.alpha == 255).sum() == 15
    assert picture.rgb[2, 1].tolist() == [255, 255, 255]  # what nobody sees does not reach the network


def test_alpha_that_hides_nothing_is_dropped() -> None:
    assert read(encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255)))).alpha is None


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    assert read(content).rgb[8, 8].tolist() == [255, 0, 0]


def test_a_jpeg_with_a_second_picture_inside_is_a_jpeg() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    photo = open_photo(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]), MANY)
    assert photo.format == "jpeg"
    assert decode(photo, (16, 16)).rgb[8, 8, 0] > 240


def test_a_colour_profile_is_converted_to_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(gradient(8, 8))
    assert np.array_equal(read(encoded(image, icc_profile=srgb)).rgb, gradient(8, 8))
    for useless in (lab, b"not a profile"):
        assert np.array_equal(read(encoded(image, icc_profile=useless)).rgb, gradient(8, 8))


def test_a_wide_profile_changes_the_numbers_so_that_the_colour_stays() -> None:
    wide = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    swapped = _swap_primaries(bytes(wide))
    picture = read(encoded(Image.new("RGB", (4, 4), (200, 30, 30)), icc_profile=swapped))
    assert picture.rgb[0, 0, 1] > 150
    assert picture.rgb[0, 0, 0] < 100


def _swap_primaries(profile: bytes) -> bytes:
    """An sRGB profile under another name whose red is green and whose green is red."""
    description = "sRGB".encode("utf-16-be")
    return (
        profile.replace(b"rXYZ", b"tmp!").replace(b"gXYZ", b"rXYZ").replace(b"tmp!", b"gXYZ")
        .replace(description, "mine".encode("utf-16-be"))
    )  # fmt: skip


def test_a_png_is_not_decoded_to_see_how_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, told = encoded(gradient(60, 40)), encoded(gradient(60, 40), exif=exif)
    start = told.index(b"eXIf") - 4
    chunk = told[start : start + 12 + int.from_bytes(told[start : start + 4], "big")]
    told_late = plain[:-12] + chunk + plain[-12:]  # the last is IEND
    decoded: list[PngImageFile] = []
    with monkeypatch.context() as patch:
        patch.setattr(PngImageFile, "load_prepare", lambda image: decoded.append(image))
        assert (open_photo(plain, MANY).width, open_photo(told, MANY).width) == (60, 40)
    assert not decoded
    assert open_photo(told_late, MANY).width == 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow says so, and goes on
def test_damaged_exif_counts_as_upright() -> None:
    content = encoded(gradient(8, 6), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20)
    assert read(content).rgb.shape == (6, 8, 3)


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    for side in (8000, 12000, 20000):
        with pytest.raises(TooManyPixels):
            open_photo(png_header(side, side), MANY)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", png_header(20, 20)])
def test_what_is_not_an_image_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidImage):
        read(content)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF"])
def test_a_format_that_is_not_read_is_named(format: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=format):
        open_photo(encoded(gradient(8, 6), format), MANY)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged metadata, and goes on
def test_damage_gives_a_picture_of_the_right_size_or_our_own_error(format: str, plain: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(noise, format, **({} if plain else {"exif": exif, "icc_profile": profile}))
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content[: rng.randrange(len(content))] if rng.random() < 0.5 else content)
        for _ in range(rng.randrange(4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            photo = open_photo(bytes(damaged), 10_000)
            picture = decode(photo, (photo.width, photo.height))
        except ServiceError:
            continue
        assert picture.rgb.shape == (photo.height, photo.width, 3)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_nothing_but_pixels_goes_out(format: str) -> None:
    image = Image.open(io.BytesIO(encode(Picture(gradient(30, 20)), format, 90)))  # type: ignore[arg-type]
    assert image.size == (30, 20)
    assert not image.getexif()
    assert not {"icc_profile", "exif", "xmp", "comment"} & image.info.keys()


@pytest.mark.parametrize("quality", [1, 75, 100])
def test_quality_of_a_jpeg_is_what_it_is_everywhere(quality: int) -> None:
    picture = gradient(64, 48)
    ours, pillows = io.BytesIO(encode(Picture(picture), "jpeg", quality)), io.BytesIO()
    Image.fromarray(picture).save(pillows, "JPEG", quality=quality)
    with Image.open(ours) as found, Image.open(pillows) as wanted:
        assert found.quantization == wanted.quantization  # type: ignore[attr-defined]
        assert found.layer == wanted.layer  # type: ignore[attr-defined]  # the subsampling


def test_transparency_is_kept_in_png_and_webp_and_shown_on_white_in_jpeg() -> None:
    picture = Picture(np.full((16, 16, 3), 100, np.uint8), np.zeros((16, 16), np.uint8))
    assert pixels(encode(picture, "png", 90))[0, 0].tolist() == [100, 100, 100, 0]
    assert pixels(encode(picture, "webp", 90))[0, 0, 3] == 0
    assert pixels(encode(picture, "jpeg", 90))[0, 0].tolist() == [255, 255, 255]


def test_other_threads_run_while_a_jpeg_is_made() -> None:
    plain = Picture(np.zeros((2000, 2000, 3), np.uint8))
    with ThreadPoolExecutor(1) as codec:
        shares = [_longest_wait(codec.submit(encode, plain, "jpeg", 90)) for _ in range(5)]
    assert min(shares) < 0.25


def _longest_wait(work: Future[bytes]) -> float:
    """Of a thread that wants to run all the time; as a share of the time until the work was done."""
    turns = [time.perf_counter()]
    while not work.done():
        time.sleep(0.0005)
        turns.append(time.perf_counter())
    return float(np.diff(turns).max()) / (turns[-1] - turns[0])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}])
def test_a_jpeg_opened_at_once_is_the_very_picture(orientation: int, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8), "JPEG", exif=exif, **options)
    assert len(content) > GLANCE_BYTES
    at_once, opened = open_at_once(content, MANY), open_photo(content, MANY)
    assert at_once
    assert (at_once.width, at_once.height, at_once.format) == (opened.width, opened.height, "jpeg")
    size = opened.width, opened.height
    assert np.array_equal(decode(at_once, size).rgb, decode(opened, size).rgb)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 10**6,  # a header of a million parts
        encoded(gradient(64, 48), "JPEG", icc_profile=b"x" * 2 * GLANCE_BYTES),
        encoded(gradient(64, 48), "JPEG")[:200],
        encoded(gradient(64, 48), "PNG"),
        b"",
    ],
)
def test_what_takes_longer_to_open_is_not_opened_at_once(content: bytes) -> None:
    assert open_at_once(content, MANY) is None


def test_too_many_pixels_are_not_opened_at_once_either() -> None:
    assert open_at_once(encoded(gradient(64, 48), "JPEG"), 64 * 48 - 1) is None
