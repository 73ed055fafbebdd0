"""The loss that a network, or one style of it, is trained with: Johnson, Alahi & Fei-Fei 2016, with what keeps pictures
in range and free of droplets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.gatys.losses import (
    TRAINING_CONTENT_LAYER,
    TRAINING_STYLE_LAYERS,
    checkerboards,
    content_losses,
    edge_similarities,
    grams_of,
    overshoot,
    style_losses,
    total_variation,
)
from service.gatys.vgg import VGG


@dataclass(frozen=True)
class LossWeights:
    """Weights of the dimensionless losses, of what leaves the range 0-1, of spikes before the norms, of the difference
    from a teacher's pictures, of checkerboards, and of edges that are not kept."""

    style: float = 10.0
    content: float = 1.0
    tv: float = 0.3
    overshoot: float = 30.0
    spikes: float = 3.0
    imitation: float = 10.0
    checkerboard: float = 0.0
    edges: float = 0.0


Window = tuple[Tensor, Tensor]  # the rows and the columns of a part of a picture


class BatchLosses(NamedTuple):
    """Of a batch: the loss to minimise, a scalar; the unweighted losses, (7,) or more; and the stylised pictures
    (N, 3, H, W), in the graph of the first."""

    total: Tensor
    parts: Tensor
    stylised: Tensor


def batch_losses(
    network: nn.Module,
    vgg: VGG,
    weights: LossWeights,
    photos: Tensor,
    slots: Tensor,
    targets: Mapping[str, Tensor],
    margin: int,
    window: Window | None = None,
) -> BatchLosses:
    """Of photos (N, 3, H, W), 0-1, in the styles of their slots; the imitation is NaN, and what has no weight: edges,
    checkerboards.

    All but the spikes see no more than the `window` of the pictures: a network that can tell where a picture ends lays
    the painting out by that, a red bar along the top, and whoever sees only a part does not reward it.

    VGG sees a mirrored `margin` (px) around the pictures: its zero padding would teach the network dirty borders, and
    a border that no loss sees is where a network puts what it wants the norms to know: a dark band, in the end.
    """
    around = (margin,) * 4
    norms: list[Tensor] = []
    with torch.autocast(photos.device.type, torch.bfloat16, enabled=vgg.dtype == torch.bfloat16):
        stylised = network(photos, slots, norms)
    shown, photographed = _seen(stylised, window), _seen(photos, window)
    with torch.no_grad():
        padded = F.pad(photographed, around, mode="reflect")
        content_target = vgg(padded, (TRAINING_CONTENT_LAYER,))[TRAINING_CONTENT_LAYER]
    features = vgg(F.pad(shown, around, mode="reflect"), TRAINING_STYLE_LAYERS)
    style = style_losses(grams_of(features, TRAINING_STYLE_LAYERS), targets).mean()
    content = content_losses(features[TRAINING_CONTENT_LAYER], content_target).mean()
    tv = total_variation(shown).mean()
    spikes = torch.stack(norms).sum()
    total = weights.style * style + weights.content * content + weights.tv * tv
    total = total + weights.overshoot * overshoot(shown).mean() + weights.spikes * spikes
    missing = torch.full_like(spikes, math.nan)
    checkerboard = edges = missing
    if weights.checkerboard:
        checkerboard = checkerboards(shown).mean()
        total = total + weights.checkerboard * checkerboard
    if weights.edges:
        edges = 1 - edge_similarities(shown, photographed).mean()
        total = total + weights.edges * edges
    parts = torch.stack([style, content, tv, spikes, missing, checkerboard, edges]).detach()
    return BatchLosses(total, parts, stylised)


def _seen(pictures: Tensor, window: Window | None) -> Tensor:
    if window is None:
        return pictures
    rows, columns = window
    return pictures.index_select(2, rows).index_select(3, columns)


def learning_rate(step: int, steps: int, highest: float, warmup_steps: int) -> float:
    """Of a step: a linear warm-up, then a cosine to zero."""
    return highest * min(1.0, (step + 1) / warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


def moving_average(average: Tensor, value: Tensor, step: int, most: float) -> None:
    """Moves `average` on, in place; the first steps count for more than 1 - `most`, or the start would last."""
    average.lerp_(value.detach(), 1 - min(most, (1 + step) / (10 + step)))


@torch.no_grad()
def nearest(
    network: nn.Module, vgg: VGG, photos: Tensor, targets: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
) -> str:
    """The name of the one of `vectors`, (D,), whose pictures of `photos` come closest to a painting's Grams."""
    distances = {}
    for name, vector in vectors.items():
        features = vgg(network(photos, vector.repeat(len(photos), 1)), TRAINING_STYLE_LAYERS)
        distances[name] = float(style_losses(grams_of(features, TRAINING_STYLE_LAYERS), targets).mean())
    return min(distances, key=distances.__getitem__)
