"""Pictures to send, and reading those that come back."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def gradient(width: int, height: int) -> np.ndarray:
    """(H, W, 3), every corner different, so that a turned picture is told from an upright one."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 40 + 120 * x / max(1, width - 1), 40 + 120 * y / max(1, height - 1)
    return np.dstack([red, green, np.full_like(red, 90)]).round().astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, format, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and has none."""
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (data, idat)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
