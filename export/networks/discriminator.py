"""The discriminator of the adversarial recipe: says of every patch of a picture how much it looks painted in a style.

PatchGAN (Isola 2017), with the largest singular value of every layer held at 1 (Miyato 2018), and the style by
projection (Miyato & Koyama 2018): what is asked is not only "a painting?" but "this painting?".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2  # of the rectifiers below zero


class Discriminator(nn.Module):
    """A judgement for every patch of `patch_side` px, in steps of 2 ** len(widths)."""

    def __init__(self, styles: int, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        steps = pairwise((3, *widths))
        self.layers = nn.ModuleList([spectral_norm(nn.Conv2d(finer, coarser, 4, 2)) for finer, coarser in steps])
        self.painted = spectral_norm(nn.Conv2d(widths[-1], 1, 1))
        self.styles = spectral_norm(nn.Embedding(styles, widths[-1]))

    @property
    def patch_side(self) -> int:
        """Side of what one judgement sees, in px: 22 with three layers."""
        return 3 * (1 << len(self.layers)) - 2

    def forward(self, pictures: Tensor, slots: Tensor) -> Tensor:
        """pictures (N, 3, H, W), 0-1, of at least `patch_side`; slots (N,), the styles -> (N, 1, h, w), fp32."""
        x = pictures * 2 - 1
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        projected = (x * self.styles(slots).to(x.dtype)[:, :, None, None]).sum(1, keepdim=True)
        judged: Tensor = self.painted(x) + projected
        return judged.float()


def hinge_losses(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """What the discriminator minimises (Lim & Ye 2017): of the paintings' judgements, and of the made pictures'."""
    return F.relu(1 - real).mean(), F.relu(1 + made).mean()
