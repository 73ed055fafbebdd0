"""Content, style and total-variation losses without dimension: each is relative to its target's size.

Unlike Gatys 2015 and Johnson 2016, whose losses carry the scale of the features and need weights between 1e-5 and
1e10, these need weights near 1 and balance the styles of one network against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

TRAINING_STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
TRAINING_CONTENT_LAYER = "relu3_3"
GATYS_STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


def gram_matrix(features: Tensor) -> Tensor:
    """Gatys' Gram matrix over the places of a picture: features (N, C, H, W) -> F F^T / (H W), (N, C, C), fp32."""
    n, c, h, w = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(n, h * w, c)  # a view of channels_last memory
    gram: Tensor = _Gram.apply(rows)  # type: ignore[no-untyped-call]
    return gram


class _Gram(torch.autograd.Function):
    """X^T X / P of rows X (N, P, C). Autograd would take the product's two sides apart: twice the work and a sum."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        products = torch.stack([each.T @ each for each in rows])  # ten times as fast as one batched product in bf16
        return products.float() / rows.shape[1]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (rows,), (gradient,) = ctx.saved_tensors, gradients  # type: ignore[attr-defined]
        symmetric = (gradient + gradient.transpose(1, 2)) / rows.shape[1]
        product: Tensor = rows @ symmetric.to(rows.dtype)
        return product


def style_losses(grams: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Mean over the layers of ||G - A||^2 / ||A||^2 for each picture: (N, C, C) Grams and targets -> (N,)."""
    layers = []
    for layer, target in targets.items():
        distance = (grams[layer] - target).square().sum((1, 2))
        layers.append(distance / target.square().sum((1, 2)))
    return torch.stack(layers).mean(0)


def content_losses(features: Tensor, target: Tensor) -> Tensor:
    """Mean (F - P)^2 / mean P^2 for each picture: (N, C, H, W) twice -> (N,)."""
    distance = (features - target).float().square().mean((1, 2, 3))
    return distance / target.float().square().mean((1, 2, 3))


def total_variation(pictures: Tensor) -> Tensor:
    """Mean squared difference of neighbours for each picture: (N, 3, H, W), 0-1 -> (N,)."""
    across = (pictures[..., :, 1:] - pictures[..., :, :-1]).square().mean((1, 2, 3))
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().mean((1, 2, 3))
    return across + down


def overshoot(pictures: Tensor) -> Tensor:
    """Mean squared distance from the range 0-1 for each picture: (N, 3, H, W) -> (N,)."""
    return (pictures - pictures.clamp(0, 1)).square().mean((1, 2, 3))


def grams_of(features: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """The Gram matrices of the named layers: {layer: (N, C, C)}."""
    return {layer: gram_matrix(features[layer]) for layer in layers}
