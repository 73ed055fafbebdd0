"""The style encoder: a painting's feature statistics in, the style vector of a conditional transformer out.

Means and standard deviations of VGG's layers (Huang & Belongie 2017: they are what a style is), how their
channels go together, and a small perceptron.
A vector is the mean of the known ones and a step from there, so that an untrained encoder gives just that mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.gatys.losses import TRAINING_STYLE_LAYERS

CHANNELS = (64, 128, 256, 512)  # of relu1_2, 2_2, 3_3 and 4_3
MIXTURES = 32  # of a layer's channels, whose correlations stand for those of all
STATISTICS = 2 * sum(CHANNELS) + len(CHANNELS) * MIXTURES * (MIXTURES + 1) // 2
FAR = 4.0  # standard deviations: what is farther from the corpus (a white picture) tells no more than that
NARROW = 0.05  # the least spread of an input, and of a number of the vector, where the known styles agree on it
FAINT = 1e-3  # a deviation of a channel that is as good as none, and correlates with nothing


def _mixing(channels: int) -> Tensor:
    """(MIXTURES, channels, 1, 1), by chance: the same for all encoders, and with every version of NumPy."""
    mixing = np.random.RandomState(channels).standard_normal((MIXTURES, channels, 1, 1))
    return torch.from_numpy(mixing / channels**0.5).float()


MIXING = {channels: _mixing(channels) for channels in CHANNELS}


def statistics(features: Mapping[str, Tensor], layers: Sequence[str] = TRAINING_STYLE_LAYERS) -> Tensor:
    """What an encoder is told of pictures: {layer: (N, C, H, W)} -> (N, 4032), fp32.

    Mean and standard deviation of every channel, in logarithms, for channels differ in scale by orders of magnitude;
    then, of each layer, how mixtures of its channels, each in its own unit, vary and go together: Gram matrices have
    that too, and the means and deviations of its channels do not tell it.
    """
    scales, correlations = [], []
    for layer in layers:
        found = features[layer].float()
        variance, mean = torch.var_mean(found, dim=(2, 3), correction=0, keepdim=True)  # (N, C, 1, 1)
        deviation = variance.clamp(min=0).sqrt()
        scales += [mean.flatten(1), deviation.flatten(1)]
        mixing = MIXING[found.shape[1]].to(found.device)
        mixtures = F.conv2d((found - mean) / (deviation + FAINT), mixing)  # (N, MIXTURES, H, W)
        flat = mixtures.flatten(2)
        down, across = torch.triu_indices(MIXTURES, MIXTURES, device=found.device)
        correlations.append((flat @ flat.mT / flat.shape[2])[:, down, across])
    return torch.cat([torch.cat(scales, dim=1).log1p(), *correlations], dim=1)


class StyleEncoder(nn.Module):
    """Statistics (N, 4032) -> style vectors (N, D). With a `rank` the step from the mean is a sum of the known
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

    @property
    def without_unit(self) -> Tensor:
        """Which inputs have no unit yet: (4032,)."""
        return (self.centre == 0) & (self.spread == 1)

    def normalise_by(self, corpus: Tensor) -> None:
        """Take the corpus' own spread, from statistics (M, 4032) of some of it, as the unit of those inputs that have
        none yet."""
        new = self.without_unit
        self.centre[new] = corpus.mean(0)[new]
        self.spread[new] = corpus.std(0, correction=0).clamp(min=NARROW)[new]

    def begin_as(self, other: Mapping[str, Tensor]) -> None:
        """Do as another encoder does, which may be told less and be narrower: what this one has more says nothing yet.
        Where that one's vectors are of another length, the last layer stays as it is. Raises ValueError where it is
        the wider one."""
        own = self.state_dict()
        same_vectors = own["mean"].shape == other["mean"].shape and own["basis"].shape == other["basis"].shape
        last = f"layers.{len(self.layers) - 1}."
        for name, value in other.items():
            if not same_vectors and (name.startswith(last) or name in ("mean", "basis")):
                continue
            mine = own[name]
            if any(theirs > ours for theirs, ours in zip(value.shape, mine.shape, strict=True)):
                raise ValueError(f"the other encoder is wider: its {name} is {tuple(value.shape)}")
            if mine.dim() == 2:
                mine[: len(value)] = 0
                mine[: len(value), : value.shape[1]] = value
            else:
                mine[: len(value)] = value
        self.load_state_dict(own)

    def forward(self, found: Tensor) -> Tensor:
        """Statistics (N, 4032) -> (N, D)."""
        inputs = ((found - self.centre) / self.spread).clamp(-FAR, FAR)
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
