"""Bytes to pixels to bytes.

A photo is opened first, which reads its header only, so that limits are applied and a place is taken before any of it
is decoded. Pixels are upright 8-bit sRGB whatever came in; metadata never goes out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, ImageCms

from service.errors import (
    InvalidImage,
    OutOfMemory,
    ServiceError,
    TooManyPixels,
    Translation,
    UnsupportedMediaType,
    translating,
)

Format = Literal["jpeg", "png", "webp"]
AnyFormat = Literal["jpeg", "png", "webp", "gif", "mp4"]  # the last two are for animations alone
FORMATS: tuple[Format, ...] = get_args(Format)
READ_AS: dict[str, Format] = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}  # MPO: JPEGs of some phones
ORIENTATION = 0x0112  # the EXIF tag
EXIF_SIGNS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # of a PNG's chunks
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNREAD = {  # what people send although we do not read it: an answer that says so, rather than "not an image"
    b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "SVG",
}  # fmt: skip
SRGB_NAMES = r"sRGB( built-in|\s*IEC61966-?2[.-]1.*)?$"  # most profiles met are sRGB's own: nothing to convert
WHITE = 255
FILE_FORMATS = ("JPEG", "PNG", "WEBP")
JPEG_MAGIC = b"\xff\xd8\xff"
GLANCE_BYTES = 4096
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
NO_PIXELS = b"\0\0\0\0IDAT\x35\xaf\x06\x1e"  # an empty chunk
MOST_CHUNKS = 2**14  # of a PNG, usually of 8 KiB or more each


@dataclass(frozen=True)
class Picture:
    """Upright 8-bit sRGB; ``alpha`` only where something is transparent."""

    rgb: npt.NDArray[np.uint8]  # (H, W, 3)
    alpha: npt.NDArray[np.uint8] | None = None  # (H, W), 255 is opaque


@dataclass(frozen=True)
class Photo:
    """An image whose header has been read. Width and height in pixels are those of the upright picture."""

    image: Image.Image
    format: Format
    orientation: int
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    def size_within(self, max_side: int) -> tuple[int, int]:
        """(width, height) with the longer side at most ``max_side``: shrunk in proportion, never enlarged."""
        return within((self.width, self.height), max_side)


def media_type(format: AnyFormat) -> str:
    """As ``Content-Type`` has it."""
    return "video/mp4" if format == "mp4" else f"image/{format}"


def within(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """A size with its longer side at most ``max_side``: shrunk in proportion, never enlarged."""
    longer = max(size)
    if longer <= max_side:
        return size
    return max(1, round(size[0] * max_side / longer)), max(1, round(size[1] * max_side / longer))


def open_at_once(content: bytes, max_pixels: int) -> Photo | None:
    """As ``open_photo``, of a JPEG whose header ends within GLANCE_BYTES, as most do; None where it does not, or
    something is wrong. So little can keep nobody waiting, whatever it says, and needs no thread's turn; a PNG's EXIF
    may be at its end."""
    if not content.startswith(JPEG_MAGIC):
        return None
    file = io.BytesIO(content[:GLANCE_BYTES])
    try:
        photo = _opened(file, content, max_pixels)
    except ServiceError:
        return None
    place = file.tell()
    file.seek(0, io.SEEK_END)
    file.write(content[GLANCE_BYTES:])  # the photo reads on in this file
    file.seek(place)
    return photo


def open_photo(content: bytes, max_pixels: int) -> Photo:
    """Read the header. Raises InvalidImage, UnsupportedMediaType or TooManyPixels."""
    return _opened(io.BytesIO(content), content, max_pixels)


def _opened(file: io.BytesIO, content: bytes, max_pixels: int) -> Photo:
    with translating(_opening(content, max_pixels)):
        image = Image.open(file, formats=FILE_FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise TooManyPixels(f"the image has {width} x {height} pixels; at most {max_pixels} are taken in")
        orientation = _orientation(image, content)
    if orientation >= 5:
        width, height = height, width
    return Photo(image, READ_AS[image.format or ""], orientation, width, height)


def decode(photo: Photo, size: tuple[int, int]) -> Picture:
    """The photo's first frame at ``size`` (width, height), upright, in sRGB. To be called once. Raises InvalidImage."""
    with translating(_DECODING):
        image = photo.image
        if photo.orientation >= 5:
            size = size[1], size[0]
        image.draft(None, size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough
        profile = image.info.get("icc_profile")
        as_it_is = image.size == size and photo.orientation not in UPRIGHT and profile is None
        if as_it_is and (rgb := _jpeg(image)) is not None:
            return Picture(rgb)
        image = _eight_bit(image)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        if photo.orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[photo.orientation])
        alpha = np.asarray(image.getchannel("A")) if image.mode in ("LA", "RGBA") else None
        rgb = np.asarray(_srgb(image, profile))
    if alpha is None or alpha.min() == WHITE:
        return Picture(rgb)
    # What is fully transparent may hold anything, and the network would see it.
    return Picture(np.where(alpha[..., None] == 0, np.uint8(WHITE), rgb), alpha)


def decode_mask(photo: Photo, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The brightness (H, W) of a mask, upright and stretched to ``size`` (width, height); its alpha is passed over.

    Bilinear, so that soft edges stay soft and nothing rings beyond black and white. Raises InvalidImage.
    """
    with translating(_DECODING):
        return _stretched(_eight_bit(photo.image).convert("L"), photo.orientation, size)


def decode_regions(photo: Photo, size: tuple[int, int], indices: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    """A mask (H, W) for each palette index of an image of mode P, as ``decode_mask`` makes them."""
    with translating(_DECODING):
        found = np.asarray(photo.image)
        masks = (Image.fromarray(np.where(found == index, np.uint8(WHITE), np.uint8(0))) for index in indices)
        return [_stretched(mask, photo.orientation, size) for mask in masks]


def _stretched(mask: Image.Image, orientation: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if orientation in UPRIGHT:
        mask = mask.transpose(UPRIGHT[orientation])
    return np.asarray(mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR))


def resized(rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) at ``size`` (width, height)."""
    if size == (rgb.shape[1], rgb.shape[0]):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def halved_and_back(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) without what half its size could not show. Of a part of a picture that begins at an even row this is
    the same part of the whole's, but for a few rows at its ends."""
    height, width = rgb.shape[:2]
    even = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    image = Image.fromarray(even)
    return np.asarray(image.reduce(2).resize(image.size, Image.Resampling.BICUBIC))[:height, :width]


def shrunk(rgb: npt.NDArray[np.uint8], max_side: int) -> npt.NDArray[np.uint8]:
    """(H, W, 3) with its longer side at most ``max_side`` pixels."""
    found = rgb.shape[1], rgb.shape[0]
    size = within(found, max_side)
    return rgb if size == found else np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))


def encode(picture: Picture, format: Format, quality: int) -> bytes:
    """An image file without metadata. Transparency is kept in PNG and WebP and shown on white in JPEG.

    ``quality`` is 1 to 100, for JPEG and WebP. Speed goes before size: PNG level 1, WebP method 0.
    """
    if format == "jpeg":
        content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(on_white(picture)), quality, "RGB", "420")
        return content
    file = io.BytesIO()
    if format == "png":
        Image.fromarray(_with_alpha(picture)).save(file, "PNG", compress_level=1)
    else:
        Image.fromarray(_with_alpha(picture)).save(file, "WEBP", quality=quality, method=0)
    return file.getvalue()


def _orientation(image: Image.Image, content: bytes) -> int:
    """EXIF orientation, 1 to 8. Damaged EXIF is no reason to refuse a picture: it counts as upright."""
    try:
        if image.format == "PNG":  # whose own would decode it, to look behind its pixels
            if _tells_late(content):
                image = Image.open(io.BytesIO(_without_pixels(content)), formats=["PNG"])
            exif = Image.Image.getexif(image)
        else:
            exif = image.getexif()
        orientation = exif.get(ORIENTATION, 1)
    except Exception:  # hostile bytes make the parser raise anything
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _tells_late(png: bytes) -> bool:
    """Whether there may be EXIF, in any of the ways that a PNG has it, behind the last of its pixels' chunks."""
    last = png.rfind(b"IDAT")
    return any(png.find(sign, last) >= 0 for sign in EXIF_SIGNS)


def _without_pixels(png: bytes) -> bytes:
    """What a PNG has before and behind its pixels, up to MOST_CHUNKS pieces."""
    kept, place = [png[: len(PNG_MAGIC)]], len(PNG_MAGIC)
    for _ in range(MOST_CHUNKS):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] not in (b"IDAT", b"IEND"):
            kept.append(png[place:end])
        place = end
    return b"".join([*kept, NO_PIXELS])


def _jpeg(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """The pixels (H, W, 3) of a JPEG in colour that is not loaded yet, drafted or not: the very ones that Pillow has,
    but not by way of its own four bytes a pixel. None where it is anything else, or something is wrong with it."""
    if READ_AS.get(image.format or "") != "jpeg" or image.mode != "RGB":
        return None
    width, height = image.size
    content = image.fp.getvalue()  # type: ignore[attr-defined]  # a BytesIO, which shares what it was made of
    try:
        rgb = simplejpeg.decode_jpeg(content, "RGB", min_width=width, min_height=height)
    except ValueError:
        return None
    return rgb if rgb.shape == (height, width, 3) else None


def _eight_bit(image: Image.Image) -> Image.Image:
    """The decoded pixels as L, LA, RGB, RGBA or CMYK."""
    image.load()
    if image.mode.startswith(("I", "F")):  # 16-bit greyscale
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours, without alpha, in sRGB as RGB. A profile that cannot be used is passed over, as browsers do."""
    image = _in_mode(image, {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
    if profile:
        try:
            return _from_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return _in_mode(image, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Unlike Pillow's ``convert``, which copies what is in that mode already."""
    return image if image.mode == mode else image.convert(mode)


def _from_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    space = profile.profile.xcolor_space.strip()
    if space == "RGB" and image.mode != "CMYK":
        image = _in_mode(image, "RGB")
        if re.match(SRGB_NAMES, profile.profile.profile_description or ""):
            return image
    elif (space, image.mode) not in (("GRAY", "L"), ("CMYK", "CMYK")):
        raise ValueError(f"a profile for {space} on a picture in {image.mode}")
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # None is for inPlace only
    return converted


def _with_alpha(picture: Picture) -> npt.NDArray[np.uint8]:
    return picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha])


def on_white(picture: Picture) -> npt.NDArray[np.uint8]:
    """(H, W, 3), what is transparent shown on white."""
    if picture.alpha is None:
        return picture.rgb
    opacity = picture.alpha[..., None].astype(np.float32) / WHITE
    return np.rint(WHITE + opacity * (picture.rgb.astype(np.float32) - WHITE)).astype(np.uint8)


def _unreadable(content: bytes) -> ServiceError:
    if not content:
        return InvalidImage("the image is empty: 0 bytes arrived")
    unread = next((name for magic, name in UNREAD.items() if content.startswith(magic)), None)
    if content[4:8] == b"ftyp":
        unread = "HEIC or AVIF"
    if unread:
        return UnsupportedMediaType(f"{unread} is not read here: send JPEG, PNG or WebP")
    return InvalidImage("the bytes are not a JPEG, PNG or WebP image (or GIF or MP4, to be painted), or are cut short")


def _opening(content: bytes, max_pixels: int) -> Translation:
    def too_many(error: Exception) -> ServiceError:
        return TooManyPixels(f"{error}; at most {max_pixels} pixels are taken in")

    # Pillow's own alarm goes off before it tells us the size. Hostile bytes make its parsers raise anything.
    return {
        Image.DecompressionBombError: too_many,
        Image.DecompressionBombWarning: too_many,
        Exception: lambda error: _unreadable(content),
    }


_DECODING: Translation = {
    MemoryError: lambda error: OutOfMemory("the image does not fit into the memory left: send a smaller one"),
    Exception: lambda error: InvalidImage(f"the image is damaged or cut short: {error}"),
}
