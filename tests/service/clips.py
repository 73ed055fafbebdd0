"""Clips for tests, made with PyAV: still pictures that roll by, with a tone."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np

from tests.service.pictures import gradient

SIZE = (64, 48)
TICKS = (0, 1000, 2000, 4000, 5000, 9000)  # of TICK_S: the frame rate varies
TICK_S = Fraction(1, 30000)
RATE = 48000


def clip(
    size: tuple[int, int] = SIZE,
    ticks: tuple[int, ...] = TICKS,
    sound: bool = False,
    turned: int = 0,
    pictures: bool = True,
) -> bytes:
    """An MP4 of a gradient that rolls by 4 pixels a frame, ``turned`` by so many degrees for whoever plays it."""
    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as file:
        video = _pictures(file, size) if pictures else None
        tone = cast(Any, file.add_stream("aac", rate=RATE)) if sound else None
        if video is not None:
            for number, tick in enumerate(ticks):
                frame = av.VideoFrame.from_ndarray(np.roll(gradient(*size), 4 * number, axis=1), "rgb24")
                frame.pts, frame.time_base = tick, TICK_S
                file.mux(video.encode(frame))
            file.mux(video.encode(None))
        if tone is not None:
            file.mux([*tone.encode(_tone()), *tone.encode(None)])
    return _turned(made.getvalue(), turned)


def _pictures(file: av.container.OutputContainer, size: tuple[int, int]) -> Any:  # noqa: ANN401 (PyAV's types)
    video: Any = file.add_stream("libx264", rate=30, options={"crf": "1"})
    video.width, video.height, video.pix_fmt = *size, "yuv444p"
    video.time_base = video.codec_context.time_base = TICK_S
    return video


def _tone() -> av.AudioFrame:
    waves = np.sin(np.arange(RATE // 4, dtype=np.float32) / 20)[None]
    frame = av.AudioFrame.from_ndarray(waves, "fltp", "mono")
    frame.sample_rate, frame.pts = RATE, 0
    return frame


def _turned(content: bytes, degrees: int) -> bytes:
    """With the matrix of the picture's track (ISO 14496-12, 8.3.2) turned clockwise by 0 or 90 degrees."""
    if not degrees:
        return content
    upright = bytes.fromhex("00010000 00000000 00000000 00000000 00010000 00000000 00000000 00000000 40000000")
    turned = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000 00000000 00000000 00000000 40000000")
    at = content.index(upright, content.index(b"tkhd"))
    return content[:at] + turned + content[at + len(upright) :]


def packets(content: bytes, kind: str) -> list[bytes]:
    with av.open(io.BytesIO(content), "r") as file:
        return [bytes(packet) for packet in file.demux(**{kind: 0}) if packet.size]


def played(content: bytes) -> tuple[list[np.ndarray], list[float]]:
    """Frames (H, W, 3), and when they are shown, in seconds."""
    with av.open(io.BytesIO(content), "r") as file:
        frames = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in file.decode(video=0)]
    return [pixels for pixels, _ in frames], [time for _, time in frames]


def without_frames(content: bytes) -> bytes:
    """With a table of samples (ISO 14496-12, 8.6 and 8.7) that has none."""
    for box, place in {b"stts": 8, b"stsc": 8, b"stco": 8, b"stsz": 12}.items():
        at = content.index(box) + place
        content = content[:at] + bytes(4) + content[at + 4 :]
    return content


def rate(content: bytes) -> Fraction | None:
    """Frames a second, on average."""
    with av.open(io.BytesIO(content), "r") as file:
        return file.streams.video[0].average_rate
