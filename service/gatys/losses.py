"""Content, style and total-variation losses without dimension: each is relative to its target's size.

Unlike Gatys 2015 and Johnson 2016, whose losses carry the scale of the features and need weights between 1e-5 and
1e10, these need weights near 1 and balance the styles of one network against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TRAINING_STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
TRAINING_CONTENT_LAYER = "relu3_3"
GATYS_STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
PATCH = 32  # px a side: of what a checkerboard is averaged over


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


def checkerboards(pictures: Tensor) -> Tensor:
    """What each picture (N, 3, H, W), 0-1, of at least PATCH px a side, has of a pattern of 2 px: (N,), a mean square.

    It is the variance of the four places of all blocks of 2 x 2 px, each averaged over patches of PATCH px. Strokes
    and edges begin at any place, and average out; what a network lays by its own blocks does not. A photo has 2e-5.
    """
    even = pictures[..., : pictures.shape[-2] // 2 * 2, : pictures.shape[-1] // 2 * 2]
    places = torch.unflatten(F.avg_pool2d(F.pixel_unshuffle(even, 2), PATCH // 2), 1, (3, 4))
    found: Tensor = places.var(2, unbiased=False).mean((1, 2, 3))
    return found


def edge_similarities(pictures: Tensor, photos: Tensor) -> Tensor:
    """SSIM (Wang 2004, 11 px Gaussian) of the Sobel edges of the luminances: (N, 3, H, W) twice, 0-1 -> (N,). 1 where
    every edge is kept."""
    a, b = _edges(pictures), _edges(photos)
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (alike / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean((1, 2, 3))


def luminance_of(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W), with BT.709's weights."""
    red, green, blue = (pictures[:, place : place + 1] for place in range(3))
    luminance: Tensor = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return luminance


def _edges(pictures: Tensor) -> Tensor:
    """Sobel's: (N, 3, H, W) -> (N, 1, H - 2, W - 2)."""
    luminance = luminance_of(pictures)
    across, down = luminance[..., 2:] - luminance[..., :-2], luminance[..., 2:, :] - luminance[..., :-2, :]
    across = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
    down = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    strength: Tensor = (across.square() + down.square() + 1e-8).sqrt()  # whose slope at an even place is no NaN
    return strength


def _blurred(x: Tensor) -> Tensor:
    axis = torch.exp(-((torch.arange(11, device=x.device) - 5.0) ** 2) / (2 * 1.5**2))
    axis = axis / axis.sum()
    return F.conv2d(F.conv2d(x, axis.view(1, 1, -1, 1)), axis.view(1, 1, 1, -1))


def grams_of(features: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
    """The Gram matrices of the named layers: {layer: (N, C, C)}."""
    return {layer: gram_matrix(features[layer]) for layer in layers}


class Relative:
    """The losses of this module: relative to their target's size."""

    scale = 1e4  # keeps L-BFGS's curvature tests clear of fp32's smallest differences

    def style(self, grams: Mapping[str, Tensor], targets: Mapping[str, Tensor], picture: Tensor) -> Tensor:
        """Grams and targets {layer: (1, C, C)} of a picture (1, 3, H, W) -> scalar."""
        return style_losses(grams, targets)[0]

    def content(self, features: Tensor, target: Tensor) -> Tensor:
        """(1, C, H, W) twice -> scalar."""
        return content_losses(features, target)[0]

    def total_variation(self, picture: Tensor) -> Tensor:
        """(1, 3, H, W), 0-1 -> scalar."""
        return total_variation(picture)[0]


class Gatys2015(Relative):
    """Equations 1, 4 and 5 of the paper, unscaled: half the squared error; 1 / (4 N^2 M^2), layers weighted alike.

    Our Grams are divided by M already, each by its own, so that painting and photo may differ in size.
    """

    scale = 1.0

    def style(self, grams: Mapping[str, Tensor], targets: Mapping[str, Tensor], picture: Tensor) -> Tensor:
        layers = [
            (grams[name] - target).square().sum() / (4 * target.shape[1] ** 2) for name, target in targets.items()
        ]
        return torch.stack(layers).mean()

    def content(self, features: Tensor, target: Tensor) -> Tensor:
        return (features - target).float().square().sum() / 2


class Keras(Relative):
    """keras.io's "Neural style transfer": sums of squares; style over 4 * 3^2 * (pixels of the picture)^2; the total
    variation of 0-255 pixels to the power 1.25. Unlike there, a painting keeps its own shape."""

    scale = 1.0

    def style(self, grams: Mapping[str, Tensor], targets: Mapping[str, Tensor], picture: Tensor) -> Tensor:
        layers = []
        for name, target in targets.items():
            places = 4.0 ** (1 - int(name.removeprefix("relu")[0]))  # of the layer, as a share of the picture's
            layers.append((grams[name] - target).square().sum() * places**2 / 36)
        return torch.stack(layers).mean()

    def content(self, features: Tensor, target: Tensor) -> Tensor:
        return (features - target).float().square().sum()

    def total_variation(self, picture: Tensor) -> Tensor:
        pixels = picture * 255
        down = (pixels[..., :-1, :-1] - pixels[..., 1:, :-1]).square()
        across = (pixels[..., :-1, :-1] - pixels[..., :-1, 1:]).square()
        return (down + across).pow(1.25).sum()


MEASURES: Mapping[str, Relative] = {"relative": Relative(), "gatys2015": Gatys2015(), "keras": Keras()}
