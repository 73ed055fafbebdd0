"""Animations: GIF, APNG, animated WebP and MP4 to pixels and back.

The frames lie one below the other, as on a strip of film: so whatever is done to a picture's pixels, its colours, its
masks, its transparency, is done to all frames at once, and alike.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.errors import InvalidImage, OutOfMemory, ServiceError, TooManyPixels, Translation, translating
from service.images import WHITE, AnyFormat, Photo, Picture, decode, encode, on_white, within
from service.video import Clip, Reel, decode_clip, encode_clip, may_be_clip, open_clip

MAX_MS = 65535  # what an APNG's frame can last
COLOURS = 255  # of a GIF; the last of its 256 is what cannot be seen
LAST_MS = 40  # of a clip's only frame
SAMPLED_ROWS = 4096  # of the strip, that a GIF's palette is made from
MOVING: tuple[AnyFormat, ...] = ("gif", "png", "webp", "mp4")


@dataclass(frozen=True)
class AnimationLimits:
    """Frames of an animation, and pixels of all of them together, as they come in; a clip's frames are shrunk one by
    one, and each may have so many."""

    max_frames: int
    max_pixels: int


@dataclass(frozen=True)
class Animation:
    """An animation whose headers have been read. Sides in pixels, of every frame; ``first`` is the first frame's
    place in the file; it is played ``plays`` times, 0 is for ever."""

    image: Image.Image | Clip
    format: AnyFormat
    width: int
    height: int
    first: int
    frames: int
    plays: int

    @property
    def moves(self) -> bool:
        """Whether it is answered as an animation: any GIF or clip, and whatever else has more than one frame."""
        return self.frames > 1 or self.format in ("gif", "mp4")

    def size_within(self, max_side: int, format: AnyFormat) -> tuple[int, int]:
        """(width, height) in pixels with the longer side at most ``max_side``; even for an MP4, whose colours lie at
        half the size."""
        width, height = within((self.width, self.height), max_side)
        return (max(2, width // 2 * 2), max(2, height // 2 * 2)) if format == "mp4" else (width, height)


@dataclass(frozen=True)
class Film:
    """Decoded frames of one size, one below the other."""

    strip: Picture  # rgb (F H, W, 3), alpha (F H, W)
    durations_ms: tuple[int, ...]
    plays: int
    reel: Reel | None = None  # of a clip: its own times, and its sound

    @property
    def frames(self) -> int:
        return len(self.durations_ms)

    def still(self) -> Picture:
        """The first frame."""
        height = len(self.strip.rgb) // self.frames
        return Picture(self.strip.rgb[:height], None if self.strip.alpha is None else self.strip.alpha[:height])


def may_be_animation(content: bytes) -> bool:
    """Whether the first bytes promise one: any GIF, a PNG with an acTL before its pixels, a WebP with the flag, any
    clip."""
    if content.startswith(b"GIF8") or may_be_clip(content):
        return True
    if content.startswith(b"\x89PNG"):
        return content.find(b"acTL", 0, max(0, content.find(b"IDAT"))) >= 0
    return content[8:16] == b"WEBPVP8X" and len(content) > 20 and bool(content[20] & 2)


def open_animation(content: bytes, limits: AnimationLimits) -> Animation:
    """Read the headers of what ``may_be_animation``; one frame is enough. Raises InvalidImage, TooManyPixels,
    or UnsupportedMediaType for a clip where the extra is missing."""
    if may_be_clip(content):
        clip = open_clip(content, limits.max_frames, limits.max_pixels)
        return Animation(clip, "mp4", clip.width, clip.height, 0, clip.frames, 0)
    with translating(_opening(limits)):
        image = Image.open(io.BytesIO(content), formats=("GIF", "PNG", "WEBP"))
        width, height = image.size
        _check_pixels(image.size, 1, limits)  # before a GIF's frames are counted, which takes memory
        first = int(bool(image.info.get("default_image")))  # an APNG's picture for those who cannot play it
        frames = _count_frames(image, limits.max_frames + first) - first
        if frames > limits.max_frames:
            raise TooManyPixels(f"the animation has more than {limits.max_frames} frames: send a shorter one")
        _check_pixels(image.size, frames, limits)
        format = cast(AnyFormat, (image.format or "").lower())
        return Animation(image, format, width, height, first, frames, _plays(image))


def decode_film(animation: Animation, size: tuple[int, int], frames: int | None = None) -> Film:
    """The frames at ``size`` (width, height), upright sRGB as ``decode`` makes it, all or the first so many.

    To be called once. Raises InvalidImage.
    """
    count = min(animation.frames, frames or animation.frames)
    if isinstance(animation.image, Clip):
        return _decode_clip(animation.image, size, count)
    image = animation.image
    photo = Photo(image, "png", 1, animation.width, animation.height)
    rgb = np.empty((count, size[1], size[0], 3), np.uint8)
    alpha = np.full((count, size[1], size[0]), WHITE, np.uint8)
    durations = []
    with translating(_DECODING):
        for number in range(count):
            image.seek(animation.first + number)
            frame = image.copy()  # loads it
            durations.append(min(MAX_MS, max(0, round(image.info.get("duration", 0)))))
            picture = decode(replace(photo, image=frame), size)
            rgb[number] = picture.rgb
            if picture.alpha is not None:
                alpha[number] = picture.alpha
    hidden = None if alpha.min() == WHITE else alpha.reshape(-1, size[0])
    return Film(Picture(rgb.reshape(-1, size[0], 3), hidden), tuple(durations), animation.plays)


def encode_film(film: Film, format: AnyFormat, quality: int) -> bytes:
    """An animation file without metadata; as a JPEG, its first frame. ``quality`` is for WebP, JPEG and MP4.

    Equal frames in a row may become one that lasts as long. A GIF's frames share one palette and are not dithered:
    either would flicker.
    """
    if format == "jpeg":
        return encode(film.still(), "jpeg", quality)
    if format == "mp4":
        return _encode_clip(film, quality)
    frames = list(_indexed(film) if format == "gif" else _frames(film))
    options: dict[str, object] = {"duration": list(film.durations_ms)}
    if format == "gif":
        options |= {"disposal": 2, "optimize": False} if film.strip.alpha is not None else {"optimize": False}
        options |= {} if film.plays == 1 else {"loop": max(0, film.plays - 1)}  # a GIF's are what follows the first
    else:
        options |= {"loop": film.plays}
        options |= {"quality": quality, "method": 0} if format == "webp" else {"compress_level": 1}
    if len(frames) == 1:
        options["duration"] = film.durations_ms[0]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
    return file.getvalue()


def _decode_clip(clip: Clip, size: tuple[int, int], count: int) -> Film:
    """Raises InvalidImage where the clip breaks off."""
    rgb = np.empty((count, size[1], size[0], 3), np.uint8)
    ticks: list[int] = []
    for pixels, tick in decode_clip(clip, size, count):
        rgb[len(ticks)] = pixels
        ticks.append(tick)
    if len(ticks) < count:
        raise InvalidImage(f"the clip is damaged or cut short: {len(ticks)} of {count} frames can be read")
    begun_ms = [round(1000 * tick * clip.tick_s) for tick in ticks]
    lasting = np.diff(begun_ms).tolist() or [LAST_MS]
    durations = (min(MAX_MS, duration) for duration in [*lasting, lasting[-1]][:count])
    return Film(
        Picture(rgb.reshape(-1, size[0], 3)), tuple(durations), 0, Reel(tuple(ticks), clip.tick_s, clip.content)
    )


def _encode_clip(film: Film, quality: int) -> bytes:
    begun = np.cumsum([0, *(max(1, duration) for duration in film.durations_ms[:-1])]).tolist()
    frames = np.split(on_white(film.strip), film.frames)
    size = frames[0].shape[1], frames[0].shape[0]
    return encode_clip(frames, size, film.reel or Reel(tuple(begun), Fraction(1, 1000)), quality)


def _frames(film: Film) -> Iterator[Image.Image]:
    strip = film.strip.rgb if film.strip.alpha is None else np.dstack([film.strip.rgb, film.strip.alpha])
    return (Image.fromarray(frame) for frame in np.split(strip, film.frames))


def _indexed(film: Film) -> Iterator[Image.Image]:
    step = -(-len(film.strip.rgb) // SAMPLED_ROWS)
    sampled = Image.fromarray(np.ascontiguousarray(film.strip.rgb[::step]))
    palette = sampled.quantize(COLOURS, Image.Quantize.MEDIANCUT)
    alphas = [None] * film.frames if film.strip.alpha is None else np.split(film.strip.alpha, film.frames)
    for rgb, alpha in zip(np.split(film.strip.rgb, film.frames), alphas, strict=True):
        frame = Image.fromarray(rgb).quantize(palette=palette, dither=Image.Dither.NONE)
        if alpha is not None:
            colours = frame.getpalette() or []
            frame = Image.fromarray(np.where(alpha <= WHITE // 2, np.uint8(COLOURS), np.asarray(frame)))
            frame.putpalette([*colours, *[0] * (3 * 256 - len(colours))])
            frame.info["transparency"] = COLOURS
        yield frame


def _check_pixels(size: tuple[int, int], frames: int, limits: AnimationLimits) -> None:
    if size[0] * size[1] * frames > limits.max_pixels:
        raise TooManyPixels(
            f"the animation has {frames} frames of {size[0]} x {size[1]} pixels; at most {limits.max_pixels} pixels "
            "are taken in: send a shorter or smaller one"
        )


def _count_frames(image: Image.Image, most: int) -> int:
    """How many frames there are, or ``most`` + 1 where there are more: a GIF's must be walked through."""
    if image.format != "GIF":
        return int(getattr(image, "n_frames", 1))
    count = 1
    try:
        while count <= most:
            image.seek(count)
            count += 1
    except EOFError:
        pass
    image.seek(0)
    return count


def _plays(image: Image.Image) -> int:
    loop = int(image.info.get("loop", 0 if image.format != "GIF" else -1))
    if image.format == "GIF":  # none said: once; 0: for ever; n: n times more
        return {-1: 1, 0: 0}.get(loop, loop + 1)
    return loop


def stacked(mask: npt.NDArray[np.uint8], frames: int) -> npt.NDArray[np.uint8]:
    """A mask (H, W) for every frame of a strip, (F H, W)."""
    return np.tile(mask, (frames, 1))


def _opening(limits: AnimationLimits) -> Translation:
    def too_many(error: Exception) -> ServiceError:
        return TooManyPixels(f"{error}; at most {limits.max_pixels} pixels are taken in")

    return {
        Image.DecompressionBombError: too_many,
        Image.DecompressionBombWarning: too_many,
        Exception: lambda error: InvalidImage("the animation is damaged, or cut short"),
    }


_DECODING: Translation = {
    MemoryError: lambda error: OutOfMemory("the animation does not fit into the memory left: send a smaller one"),
    Exception: lambda error: InvalidImage(f"the animation is damaged or cut short: {error}"),
}
