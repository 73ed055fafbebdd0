"""Optimisation of the picture itself (Gatys, Ecker & Bethge 2015, "A Neural Algorithm of Artistic Style")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from service.gatys.losses import content_losses, grams_of, style_losses, total_variation
from service.gatys.vgg import VGG

EDGE = 1 / 512  # pixels start this far inside 0-1, where the sigmoid still has a slope
HISTORY = 20
LOSS_SCALE = 1e4  # keeps L-BFGS's curvature tests clear of fp32's smallest differences
FIRST_STEP = 0.01  # mean change of a logit that the first line search begins with


@dataclass(frozen=True)
class Losses:
    """The losses of one picture, without dimension; `total` is their weighted sum."""

    total: float
    style: float
    content: float
    tv: float


class Objective:
    """L = style + content_weight * content + tv_weight * TV of one photo and one painting."""

    def __init__(
        self,
        vgg: VGG,
        photo: Tensor,
        style_targets: Mapping[str, Tensor],
        *,
        content_layer: str,
        content_weight: float = 0.1,
        tv_weight: float = 0.03,
    ) -> None:
        """photo (1, 3, H, W), 0-1; style_targets {layer: Gram (1, C, C)} of the painting."""
        self.vgg, self.style_targets, self.content_layer = vgg, dict(style_targets), content_layer
        self.content_weight, self.tv_weight = content_weight, tv_weight
        self._layers = (*self.style_targets, content_layer)
        with torch.no_grad():
            self._content_target = vgg(photo, (content_layer,))[content_layer]

    def parts(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Style, content and total variation of a picture (1, 3, H, W), 0-1: three scalars."""
        features = self.vgg(picture, self._layers)
        style = style_losses(grams_of(features, tuple(self.style_targets)), self.style_targets)
        content = content_losses(features[self.content_layer], self._content_target)
        return style[0], content[0], total_variation(picture)[0]

    def __call__(self, picture: Tensor) -> Tensor:
        """The weighted sum, a scalar to minimise."""
        style, content, tv = self.parts(picture)
        return style + self.content_weight * content + self.tv_weight * tv

    @torch.no_grad()
    def losses(self, picture: Tensor) -> Losses:
        """The losses as numbers."""
        style, content, tv = (float(part) for part in self.parts(picture))
        return Losses(style + self.content_weight * content + self.tv_weight * tv, style, content, tv)


def optimize(objective: Objective, start: Tensor, *, evaluations: int) -> Tensor:
    """Minimises the objective by L-BFGS from `start` (1, 3, H, W), 0-1; the result is in 0-1.

    Unlike the public implementations, which optimise unbounded pixels and clip when saving, the pixels are the
    sigmoid of what is optimised: what is shown is what was optimised. torch's first step is one of length 1 in the L1
    norm, next to nothing for a picture, and would drown in the noise of bf16; so the unit is chosen to suit.
    """
    unit = FIRST_STEP * start.numel()
    scaled_logits = (torch.logit(start.clamp(EDGE, 1 - EDGE)) / unit).contiguous().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [scaled_logits],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=HISTORY,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    best, best_loss = start, float("inf")

    def closure() -> Tensor:
        nonlocal best, best_loss
        optimizer.zero_grad()
        picture = torch.sigmoid(scaled_logits * unit)
        loss = objective(picture)
        if loss.item() < best_loss:
            best, best_loss = picture.detach().clone(), loss.item()
        scaled = loss * LOSS_SCALE
        scaled.backward()  # type: ignore[no-untyped-call]
        assert scaled_logits.grad is not None
        scaled_logits.grad = (
            scaled_logits.grad.contiguous()
        )  # channels_last gradients would be flattened in another order
        return scaled

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return best
