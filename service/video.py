"""Clips: MP4 and QuickTime files to pixels and back, through PyAV (the extra ``video``).

A clip is opened by walking through its packets, which decodes one frame only; what its header says of its length is not
believed. FFmpeg is loaded with the first clip, and not before.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from service.errors import InvalidImage, TooManyPixels, Translation, UnsupportedMediaType, translating

if TYPE_CHECKING:
    import av

STILLS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")  # boxes like an MP4's, but pictures in them
COPIED = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")  # sound that an MP4 may hold
PRESET = "veryfast"
THREADS = 2
LONE_RATE = 25  # frames a second of a clip with one
BT709, LIMITED = 1, 1  # FFmpeg's numbers of the colour space, and of its range

OPENED = {"enable_drefs": "0"}

Frame = npt.NDArray[np.uint8]  # (H, W, 3) sRGB


@dataclass(frozen=True)
class Clip:
    """A clip whose packets have been counted. Sides in pixels, upright; ``turns`` are the quarter turns, against the
    clock, that make it so; its times are in ticks of so many seconds."""

    content: bytes
    width: int
    height: int
    turns: int
    frames: int
    tick_s: Fraction


@dataclass(frozen=True)
class Reel:
    """When each frame is shown, in ticks of so many seconds; and the clip whose sound goes with them."""

    ticks: tuple[int, ...]
    tick_s: Fraction
    content: bytes | None = None


def may_be_clip(content: bytes) -> bool:
    """Whether the first bytes promise one."""
    return content[4:8] == b"ftyp" and content[8:12] not in STILLS


def check_video() -> None:
    """Raises UnsupportedMediaType where the extra is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UnsupportedMediaType(
            "videos are not read or written here: the extra is missing (pip install 'stylize[video]'); send a GIF"
        ) from error


def open_clip(content: bytes, max_frames: int, max_pixels: int) -> Clip:
    """Raises UnsupportedMediaType, InvalidImage, or TooManyPixels for more or larger frames."""
    check_video()
    with translating(_READING), _opened(content) as file:
        video = _video(file)
        if video.width * video.height > max_pixels:
            size = f"{video.width} x {video.height}"
            raise TooManyPixels(f"frames of {size} pixels; at most {max_pixels} are taken in: send a smaller clip")
        found = frames = 0
        for packet in file.demux(video):
            found += bool(packet.size)
            frames += bool(packet.size and not packet.is_discard)
            if frames > max_frames:
                raise TooManyPixels(f"the clip has more than {max_frames} frames: send a shorter one")
        if found < video.frames:
            raise InvalidImage(f"the clip is cut short: {found} of {video.frames} frames are there")
        if not frames:
            raise InvalidImage("the clip has no frames: it is damaged, or was cut short when it was made")
        file.seek(0)
        first = next(file.decode(video), None)
        if first is None:
            raise InvalidImage("the clip has no frame that can be read: it is damaged, or cut short")
        turns = round(first.rotation / 90) % 4
        width, height = (first.width, first.height) if turns % 2 == 0 else (first.height, first.width)
        return Clip(content, width, height, turns, frames, cast(Fraction, video.time_base))


def decode_clip(clip: Clip, size: tuple[int, int], frames: int) -> Iterator[tuple[Frame, int]]:
    """Up to so many frames at ``size`` (width, height), upright, each with the tick at which it is shown.

    Raises InvalidImage where the clip is damaged or cut short.
    """
    width, height = size if clip.turns % 2 == 0 else size[::-1]
    with translating(_READING), _opened(clip.content) as file:
        video = _video(file)
        last = -1
        for number, frame in enumerate(file.decode(video)):
            if number == frames:
                return
            pixels = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
            tick = last + 1 if frame.pts is None else max(last + 1, frame.pts)
            last = tick
            yield np.ascontiguousarray(np.rot90(pixels, clip.turns)), tick


def encode_clip(frames: Iterable[Frame], size: tuple[int, int], reel: Reel, quality: int) -> bytes:
    """An MP4 without metadata: H.264, 4:2:0, so ``size`` (width, height) is even. ``quality`` is 1 … 100."""
    import av

    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as file:
        # The rate says how long the last frame is shown: as long as the one before it.
        video = cast(
            Any, file.add_stream("libx264", rate=_rate(reel), options={"crf": str(_crf(quality)), "preset": PRESET})
        )
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.time_base = video.codec_context.time_base = reel.tick_s
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range, context.thread_count = LIMITED, THREADS
        packets = _sound(file, reel)
        for pixels, tick in zip(frames, reel.ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = tick, reel.tick_s
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        for packet in packets:
            file.mux(packet)
    return made.getvalue()


def _sound(file: av.container.OutputContainer, reel: Reel) -> list[av.Packet[Any]]:
    """The source's first sound, to be copied; none where there is none, or none that an MP4 may hold."""
    if reel.content is None:
        return []
    with _opened(reel.content) as source:
        if not source.streams.audio or source.streams.audio[0].codec_context.name not in COPIED:
            return []
        sound = source.streams.audio[0]
        copied = file.add_stream_from_template(sound)
        packets = [packet for packet in source.demux(sound) if packet.dts is not None]
        for packet in packets:
            packet.stream = copied
        return packets


def _opened(content: bytes) -> av.container.InputContainer:
    """Nothing but the format that was promised is probed for, and no other file is looked into."""
    import av

    return cast("av.container.InputContainer", av.open(io.BytesIO(content), format="mov", options=OPENED))


def _video(file: av.container.InputContainer) -> av.VideoStream:
    """Raises InvalidImage."""
    if not file.streams.video:
        raise InvalidImage("the file has no pictures, only sound: send a clip with a video stream")
    video = file.streams.video[0]
    video.thread_count = THREADS
    return video


def _rate(reel: Reel) -> Fraction:
    """Frames a second, by the last two."""
    return 1 / ((reel.ticks[-1] - reel.ticks[-2]) * reel.tick_s) if len(reel.ticks) > 1 else Fraction(LONE_RATE)


def _crf(quality: int) -> int:
    """x264's constant rate factor: 18, which the eye takes for the original, at 90."""
    return round(45 - 0.3 * quality)


_READING: Translation = {
    Exception: lambda error: InvalidImage(f"the clip is damaged, cut short, or of a kind that is not read: {error}"),
}
