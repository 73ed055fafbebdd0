"""The style encoder: a painting in, the style vector of a conditional transformer out.

A few convolutions, the means and standard deviations of all that they find (Huang & Belongie 2017: they are what a
style is), and a small perceptron. What VGG sees of a painting would do in the place of the convolutions, at twenty-five
times their work; while they learn they are asked to tell it.
A vector is the mean of the known ones and a step from there, so that an untrained encoder gives just that mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.gatys.losses import TRAINING_STYLE_LAYERS

WIDTHS = (64, 128, 256)  # of 1/4, 1/8 and 1/16 of the resolution, two convolutions each
STATISTICS = 2 * 2 * sum(WIDTHS)
SEEN = 2 * (64 + 128 + 256 + 512)  # what `seen_by_vgg` has of relu1_2, 2_2, 3_3 and 4_3
EPSILON = 1e-8  # of a variance: of nothing at all, a root has no gradient
AT_ONCE = 16  # paintings
NARROW = 0.05  # the least spread of a statistic, and of a number of the vector, where the known styles agree on it
FAR = 6.0  # spreads: what is farther from the corpus (a white picture) tells no more than that
FARTHEST = 5.0  # spreads of the known styles: as far as a number of a vector gets
FOLLOWING = 0.01  # how much a step's paintings count for the unit of the statistics, which move as long as it learns


def seen_by_vgg(features: Mapping[str, Tensor]) -> Tensor:
    """The `statistics` of VGG's layers of pictures: {layer: (N, C, H, W)} -> (N, 1920), fp32."""
    return statistics([features[layer] for layer in TRAINING_STYLE_LAYERS])


def statistics(features: Sequence[Tensor]) -> Tensor:
    """Mean and standard deviation of every channel of features (N, C, H, W), none of them negative, in logarithms:
    channels differ in scale by orders of magnitude. (N, 2 x all channels), fp32."""
    found = []
    for layer in features:
        variance, mean = torch.var_mean(layer.float(), dim=(2, 3), correction=0)
        found += [mean, (variance + EPSILON).sqrt()]
    return torch.cat(found, dim=1).log1p()


class StyleEncoder(nn.Module):
    """Paintings (N, 3, H, W), 0-1, of 16 px and more -> style vectors (N, D)."""

    centre: Tensor
    spread: Tensor
    seen_centre: Tensor
    seen_spread: Tensor
    mean: Tensor
    basis: Tensor

    def __init__(self, known: Tensor, hidden: int) -> None:
        """`known`: the vectors (K, D) of the named styles; where all are the same, as before a training, nothing is
        known of how far a style may be from them, and the unit of the vectors is 1."""
        super().__init__()
        finest = WIDTHS[0]
        convolutions = [nn.Conv2d(3, finest, 8, 4, padding=2), nn.Conv2d(finest, finest, 3, padding=1)]
        for finer, coarser in pairwise(WIDTHS):
            convolutions += [nn.Conv2d(finer, coarser, 3, 2, padding=1), nn.Conv2d(coarser, coarser, 3, padding=1)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        self.convolutions = nn.ModuleList(convolutions)
        self.register_buffer("centre", torch.zeros(STATISTICS))
        self.register_buffer("spread", torch.ones(STATISTICS))
        self.register_buffer("seen_centre", torch.zeros(SEEN))
        self.register_buffer("seen_spread", torch.ones(SEEN))
        self.register_buffer("mean", known.mean(0))
        spread = known.std(0, correction=0)
        self.register_buffer("basis", spread.clamp(min=NARROW) if spread.any() else torch.ones_like(spread))
        self.layers = nn.Sequential(
            nn.Linear(STATISTICS, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, known.shape[1]),
        )
        self.tell = nn.Linear(STATISTICS, SEEN)
        for last in (self.layers[-1], self.tell):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    @property
    def sees(self) -> bool:
        """Whether its statistics have a unit: it learnt, or began as one that did."""
        return not bool((self.spread == 1).all())

    @property
    def tells(self) -> bool:
        """Whether what it tells of VGG's statistics has a unit: one that began as a published encoder has not."""
        return not bool((self.seen_spread == 1).all())

    @torch.no_grad()
    def take_unit(self, paintings: Tensor, seen: Tensor) -> None:
        """Take as the unit, where there is none yet, the spread of some of the corpus: of what it finds in paintings
        (M, 3, H, W) and of what VGG has `seen` of them, (M, 1920)."""
        if not self.sees:
            found = torch.cat([self.statistics(few) for few in paintings.split(AT_ONCE)])  # type: ignore[no-untyped-call]
            _set_unit(self.centre, self.spread, found)
        if not self.tells:
            _set_unit(self.seen_centre, self.seen_spread, seen)

    def begin_as(self, other: Mapping[str, Tensor]) -> None:
        """Do as another encoder does; where that one's vectors are of another length, the last layer stays as it is.
        A published one no longer tells what VGG sees. Raises ValueError where it is another network, or none."""
        own = self.state_dict()
        if any(name not in other and not name.startswith(("tell.", "seen_")) for name in own):
            raise ValueError("the other encoder is another network, or none: some of it is missing")
        last = f"layers.{len(self.layers) - 1}."
        same_vectors = own["mean"].shape == other["mean"].shape
        kept = {name for name in own if name.startswith(last) or name in ("mean", "basis")}
        taken = {name: value for name, value in other.items() if same_vectors or name not in kept}
        wrong = [name for name, value in taken.items() if name not in own or own[name].shape != value.shape]
        if wrong:
            raise ValueError(f"the other encoder is another network: {', '.join(wrong[:3])}")
        self.load_state_dict(own | taken)

    def forward(self, paintings: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D)."""
        return self._vectors(self._inputs(self.statistics(paintings)))

    def study(self, paintings: Tensor, seen: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """While it learns: as `forward`, and how far off it tells what VGG has `seen` of them, (N, 1920): the mean
        square, a scalar. The convolutions work in `dtype`, all else in fp32. The unit follows the paintings."""
        inputs = self._look(paintings, dtype)
        return self._vectors(inputs), self._misses(inputs, seen)

    def study_to_tell(self, paintings: Tensor, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """The second of `study`."""
        return self._misses(self._look(paintings, dtype), seen)

    def _look(self, paintings: Tensor, dtype: torch.dtype) -> Tensor:
        """The inputs of the layers, while it learns."""
        with torch.autocast(paintings.device.type, dtype, enabled=dtype == torch.bfloat16):
            found = self.statistics(paintings)
        with torch.no_grad():
            self.centre.lerp_(found.mean(0), FOLLOWING)
            square = (found - self.centre).square().mean(0).lerp(self.spread.square(), 1 - FOLLOWING)
            self.spread.copy_(square.sqrt().clamp(min=NARROW))
        return self._inputs(found)

    def statistics(self, paintings: Tensor) -> Tensor:
        """What the convolutions find: (N, 3, H, W) -> (N, 1792), fp32."""
        x, found = paintings * 2 - 1, []
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
            found.append(x)
        return statistics(found)

    def _inputs(self, found: Tensor) -> Tensor:
        return ((found - self.centre) / self.spread).clamp(-FAR, FAR)

    def _misses(self, inputs: Tensor, seen: Tensor) -> Tensor:
        return F.mse_loss(self.tell(inputs), (seen - self.seen_centre) / self.seen_spread)

    def _vectors(self, inputs: Tensor) -> Tensor:
        step = FARTHEST * torch.tanh(self.layers(inputs) / FARTHEST)
        vectors: Tensor = self.mean + step * self.basis
        return vectors


def _set_unit(centre: Tensor, spread: Tensor, values: Tensor) -> None:
    centre.copy_(values.mean(0))
    spread.copy_(values.std(0, correction=0).clamp(min=NARROW))


def padded(pictures: Tensor, smallest: int) -> Tensor:
    """Pictures whose sides are repeated at the border to at least `smallest` px: what strides leave something of."""
    height, width = pictures.shape[2:]
    down, right = (torch.sym_max(smallest, side) - side for side in (height, width))  # type: ignore[no-untyped-call]
    repeated: Tensor = F.pad(pictures, (0, right, 0, down), mode="replicate")
    return repeated
