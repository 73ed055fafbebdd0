"""The style encoder: a painting's feature statistics in, the style vector of a conditional transformer out.

Means and standard deviations of VGG's layers (Huang & Belongie 2017: they are what a style is) and a small perceptron.
A vector is the mean of the known ones and a step from there, so that an untrained encoder gives just that mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.gatys.losses import TRAINING_STYLE_LAYERS

STATISTICS = 2 * (64 + 128 + 256 + 512)  # of relu1_2, 2_2, 3_3 and 4_3
FAR = 4.0  # standard deviations: what is farther from the corpus (a white picture) tells no more than that
NARROW = 0.05  # the least spread of a number of the vector, where the known styles agree on it


def statistics(features: Mapping[str, Tensor], layers: Sequence[str] = TRAINING_STYLE_LAYERS) -> Tensor:
    """Mean and standard deviation of every channel: {layer: (N, C, H, W)} -> (N, 1920), fp32."""
    found = []
    for layer in layers:
        variance, mean = torch.var_mean(features[layer].float(), dim=(2, 3), correction=0)  # (N, C)
        found += [mean, variance.clamp(min=0).sqrt()]
    return torch.cat(found, dim=1)


class StyleEncoder(nn.Module):
    """Statistics (N, 1920) -> style vectors (N, D). With a `rank` the step from the mean is a sum of the known
    vectors' principal components; without one (0) every number of the vector is free."""

    centre: Tensor
    spread: Tensor
    mean: Tensor
    basis: Tensor

    def __init__(self, known: Tensor, hidden: int, rank: int = 0) -> None:
        """`known`: the vectors (K, D) of the named styles. Raises ValueError for a rank of K or more."""
        super().__init__()
        if rank >= len(known) > 0 and rank > 0:
            raise ValueError(f"{len(known)} styles have {len(known) - 1} principal components, not {rank}")
        self.register_buffer("centre", torch.zeros(STATISTICS))
        self.register_buffer("spread", torch.ones(STATISTICS))
        self.register_buffer("mean", known.mean(0))
        self.register_buffer("basis", _basis(known, rank))
        self.layers = nn.Sequential(
            nn.Linear(STATISTICS, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, rank or known.shape[1]),
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def normalise_by(self, corpus: Tensor) -> None:
        """Take the corpus' own spread, from statistics (M, 1920) of some of it, as the unit of the input."""
        logs = corpus.log1p()
        self.centre.copy_(logs.mean(0))
        self.spread.copy_(logs.std(0, correction=0).clamp(min=NARROW))

    def begin_as(self, other: Mapping[str, Tensor]) -> None:
        """Take the unit and the weights of another encoder, by name; what is of the vectors only where they are as
        long. Raises ValueError where it is wider or narrower than this one."""
        own = self.state_dict()
        fitting = {name: value for name, value in other.items() if own[name].shape == value.shape}
        if "layers.2.weight" not in fitting:
            raise ValueError(f"the other encoder is not {len(own['layers.0.bias'])} wide")
        self.load_state_dict(own | fitting)

    def forward(self, found: Tensor) -> Tensor:
        """Statistics (N, 1920) -> (N, D). Logarithms: channels differ in scale by orders of magnitude."""
        inputs = ((found.log1p() - self.centre) / self.spread).clamp(-FAR, FAR)
        step: Tensor = self.layers(inputs)
        moved = step @ self.basis if self.basis.dim() == 2 else step * self.basis
        vectors: Tensor = self.mean + moved
        return vectors


def _basis(known: Tensor, rank: int) -> Tensor:
    """(rank, D): principal components, as long as the known vectors vary along them; or (D,), the spread of each."""
    centred = known - known.mean(0)
    if not rank:
        return centred.square().mean(0).sqrt().clamp(min=NARROW)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    components: Tensor = directions[:rank] * lengths[:rank, None] / len(known) ** 0.5
    return components


def padded(pictures: Tensor, smallest: int) -> Tensor:
    """Pictures whose sides are repeated at the border to at least `smallest` px: what poolings leave something of."""
    height, width = pictures.shape[2:]
    down, right = (torch.sym_max(smallest, side) - side for side in (height, width))  # type: ignore[no-untyped-call]
    repeated: Tensor = F.pad(pictures, (0, right, 0, down), mode="replicate")
    return repeated
