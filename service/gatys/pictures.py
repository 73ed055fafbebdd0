"""Between pixels and the tensors that networks see, rounded and clipped as the exported graphs do it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 pixels (N, H, W, 3) -> float pictures (N, 3, H, W), 0-1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255


def to_pixels(pictures: Tensor) -> npt.NDArray[np.uint8]:
    """Pictures (N, 3, H, W) -> uint8 pixels (N, H, W, 3), clipped and rounded as the exported graph does."""
    rounded = (pictures.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    pixels: npt.NDArray[np.uint8] = rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
