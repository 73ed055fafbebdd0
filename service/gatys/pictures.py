"""Pictures to train on; and between pixels and the tensors that networks see, rounded and clipped as the exported
graphs do it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor


def square_crop(
    picture: Image.Image,
    side: int,
    zoom: tuple[float, float],
    rng: np.random.Generator,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> npt.NDArray[np.uint8]:
    """A random square of a picture, (side, side, 3): `zoom` is the range of what is cut out, over `side`, and mirrored
    half of the time. Small pictures are enlarged."""
    edge = min(*picture.size, side * rng.uniform(*zoom))
    left, top = rng.uniform(0, picture.width - edge), rng.uniform(0, picture.height - edge)
    box = (left, top, left + edge, top + edge)
    crop = np.asarray(picture.resize((side, side), resample, box=box))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def read_picture(path: Path) -> Image.Image:
    """A picture file, RGB."""
    with Image.open(path) as file:
        return file.convert("RGB")


def to_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 pixels (N, H, W, 3) -> float pictures (N, 3, H, W), 0-1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255


def to_pixels(pictures: Tensor) -> npt.NDArray[np.uint8]:
    """Pictures (N, 3, H, W) -> uint8 pixels (N, H, W, 3), clipped and rounded as the exported graph does."""
    rounded = (pictures.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    pixels: npt.NDArray[np.uint8] = rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
