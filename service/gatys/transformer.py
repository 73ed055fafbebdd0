"""The transformer network: a photo and a style vector in, the stylised picture out.

Johnson, Alahi & Fei-Fei 2016 with instance norm (Ulyanov 2016), resize-convolutions instead of transposed ones
(Odena 2016: no checkerboard), and conditional instance norm (Dumoulin 2017): the scales and shifts of all norms are
the style. A classic network for one style is the same network with its one vector built in. The fast one takes blocks
of 2 x 2 pixels as channels (space-to-depth, Shi 2016) and so never works on the full picture. The deep one takes a
detour through an eighth of the resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Unlike the usual 1e-5, of the size of the variances that it is added to: what is flat in the photo may stay flat, and
# the network need not smuggle the strength of a signal past the norms (see spike_penalty).
EPSILON = 0.1
SPIKE = 3.5  # standard deviations
# Which weights of a kernel's three places meet the first and the second place of the small picture: (phase, 2, 3).
PHASE_SUMS = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])
STRIDE = 4  # px: a place of the residual blocks
COARSEST = 2 * STRIDE  # px: pictures whose sides are multiples of it suit every network
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (N, C, H, W) and two numbers a channel
HALF = ".fp16"  # after the name of a weight of a graph that is kept so
OVERSHOOT = 150 / 127.5  # the scaled tanh of the first papers: 127.5 + 150 tanh, clipped when shown


@dataclass(frozen=True)
class TransformerConfig:
    """Widths of the resolutions, fine to coarse; residual blocks; side of the first and last kernels; the side of the
    blocks of pixels that the network takes as channels; and width and residual blocks of a detour through half the
    coarsest resolution, from the middle block and back: none with a width of 0."""

    widths: tuple[int, ...] = (16, 32, 64)
    residual_blocks: int = 5
    end_kernel: int = 9
    shuffle: int = 1
    deep_width: int = 0
    deep_blocks: int = 0

    def __post_init__(self) -> None:
        if self.shuffle * 2 ** (len(self.widths) - 1) != STRIDE:
            raise ValueError(f"{self.shuffle} x {len(self.widths)} resolutions do not make a stride of {STRIDE}")

    @property
    def norms(self) -> tuple[tuple[int, bool], ...]:
        """Of every norm, in the order of the network, its channels and whether its result is added to a sum: those that
        end a block or a detour. Their shifts do nothing, for the norm behind the next convolution takes out what a
        channel has everywhere. With 3 widths and 5 residual blocks there are 15."""
        coarsest, width = self.widths[-1], self.deep_width
        ends = [(channels, False) for channels in self.widths]
        block, deep_block = ((coarsest, False), (coarsest, True)), ((width, False), (width, True))
        deep = ((width, False), *deep_block * self.deep_blocks, (coarsest, True)) if width else ()
        after = self.residual_blocks - self.middle
        return (*ends, *block * self.middle, *deep, *block * after, *reversed(ends[:-1]))

    @property
    def norm_widths(self) -> tuple[int, ...]:
        """Channels of every norm, in the order of the network."""
        return tuple(channels for channels, _ in self.norms)

    @property
    def middle(self) -> int:
        """How many residual blocks come before the detour."""
        return self.residual_blocks // 2 + 1

    @property
    def stride(self) -> int:
        """Of what the sides of a picture must be multiples, px."""
        return COARSEST if self.deep_width else STRIDE

    @property
    def style_size(self) -> int:
        """Length D of a style vector: a scale and a shift for every channel of every norm."""
        return 2 * sum(self.norm_widths)

    @property
    def radius(self) -> int:
        """How far around a pixel its result looks, in px, but for what the norms see: 54 by default."""
        halvings = range(len(self.widths) - 1)
        strided = sum(self.shuffle << step for step in halvings)  # down before the stride, up after it
        ends = 2 * self.shuffle * (self.end_kernel // 2) + self.shuffle - 1
        deep = 2 * (STRIDE + COARSEST * self.deep_blocks) if self.deep_width else 0
        return ends + 2 * (strided + STRIDE * self.residual_blocks) + deep


def neutral_vector(config: TransformerConfig) -> Tensor:
    """The style vector that leaves every normalised channel as it is: scales 1, shifts 0; (D,)."""
    return torch.cat([torch.cat([torch.ones(c), torch.zeros(c)]) for c in config.norm_widths])


class Conv(nn.Module):
    """Reflection padding and a convolution that keeps the size (or divides it by the stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.padding = (kernel // 2,) * 4
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(F.pad(x, self.padding, mode="reflect"))
        return y


class UpConv(Conv):
    """Nearest x 2 and a convolution: unlike a transposed convolution it draws no checkerboard (Odena 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SubpixelConv(nn.Module):
    """The same as an `UpConv` of kernel 3, from one 2 x 2 convolution of the small picture: 4/9 of the work.

    Of every three places that a kernel meets in the doubled picture, two are the same place of the small one, so
    their weights add up. Each of the four phases of the doubled picture has its own sums.
    """

    def __init__(self, up: UpConv) -> None:
        super().__init__()
        weight, bias = up.convolution.weight.detach(), up.convolution.bias
        assert bias is not None
        out_channels, in_channels = weight.shape[:2]
        phases = torch.einsum("asr,btc,oirc->oabist", PHASE_SUMS, PHASE_SUMS, weight)
        self.convolution = nn.Conv2d(in_channels, 4 * out_channels, 2)
        self.convolution.weight.data = phases.reshape(4 * out_channels, in_channels, 2, 2)
        self.convolution.bias.data = bias.detach().repeat_interleave(4)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, 2 H, 2 W). Reflecting the doubled picture is repeating the small one's border."""
        phases = self.convolution(F.pad(x, (1, 1, 1, 1), mode="replicate"))
        n, channels, height, width = phases.shape
        # A pixel_shuffle in two steps, columns and rows: ONNX Runtime takes six times as long for both at once.
        wide = phases.reshape(n, channels // 2, 2, height * width).transpose(2, 3)
        tall = wide.reshape(n, channels // 4, 2, height, 2 * width).transpose(2, 3)
        return F.pad(tall.reshape(n, channels // 4, 2 * height, 2 * width), (-1, -1, -1, -1))


def upconv_weight(subpixel: Tensor) -> Tensor:
    """The (O, I, 3, 3) kernel that a `SubpixelConv`'s (4 O, I, 2, 2) was made of."""
    inverse = torch.linalg.pinv(PHASE_SUMS.reshape(4, 3)).reshape(3, 2, 2)
    phases = subpixel.reshape(-1, 2, 2, *subpixel.shape[1:])
    return torch.einsum("ras,cbt,oabist->oirc", inverse, inverse, phases)


class BlockConv(nn.Module):
    """The same as a pixel_unshuffle and a `Conv`, from one strided convolution of the picture itself: no block moves,
    and ONNX Runtime, which pads a convolution's 12 channels to 16, does not pad 3."""

    def __init__(self, conv: Conv, shuffle: int) -> None:
        super().__init__()
        weight, bias = conv.convolution.weight.detach(), conv.convolution.bias
        assert bias is not None
        out_channels, channels, kernel, _ = weight.shape
        in_channels, side = channels // shuffle**2, shuffle * kernel
        places = weight.reshape(out_channels, in_channels, shuffle, shuffle, kernel, kernel)
        self.shuffle, self.blocks = shuffle, kernel // 2
        self.convolution = nn.Conv2d(in_channels, out_channels, side, shuffle)
        self.convolution.weight.data = places.permute(0, 1, 4, 2, 5, 3).reshape(out_channels, in_channels, side, side)
        self.convolution.bias.data = bias.detach().clone()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H / shuffle, W / shuffle). The border reflects whole blocks."""
        y: Tensor = self.convolution(self._reflected(self._reflected(x, 2), 3))
        return y

    def _reflected(self, x: Tensor, dim: int) -> Tensor:
        length, side = x.shape[dim], self.shuffle
        before = [x.narrow(dim, side * block, side) for block in range(self.blocks, 0, -1)]
        after = [x.narrow(dim, length - side * (block + 1), side) for block in range(1, self.blocks + 1)]
        return torch.cat([*before, x, *after], dim)


def conv_weight(strided: Tensor, shuffle: int) -> Tensor:
    """The (O, shuffle^2 I, K, K) kernel that a `BlockConv`'s (O, I, shuffle K, shuffle K) was made of."""
    out_channels, in_channels, side, _ = strided.shape
    kernel = side // shuffle
    places = strided.reshape(out_channels, in_channels, kernel, shuffle, kernel, shuffle)
    return places.permute(0, 1, 3, 5, 2, 4).reshape(out_channels, in_channels * shuffle**2, kernel, kernel)


class Transformer(nn.Module):
    """T(photo; style): pictures in 0-1, the style a vector for each picture of the batch."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        finest, coarsest, block = config.widths[0], config.widths[-1], 3 * config.shuffle**2
        steps = list(pairwise(config.widths))
        halving = [Conv(fine, coarse, 3, 2) for fine, coarse in steps]
        self.down = nn.ModuleList([Conv(block, finest, config.end_kernel), *halving])
        self.residual = nn.ModuleList([Conv(coarsest, coarsest, 3) for _ in range(2 * config.residual_blocks)])
        if deep := config.deep_width:
            self.deep_down = Conv(coarsest, deep, 3, 2)
            self.deep = nn.ModuleList([Conv(deep, deep, 3) for _ in range(2 * config.deep_blocks)])
            self.deep_up = UpConv(deep, coarsest, 3)
        self.up = nn.ModuleList([UpConv(coarse, fine, 3) for fine, coarse in reversed(steps)])
        self.last = Conv(finest, block, config.end_kernel)
        self.unshuffle = nn.PixelUnshuffle(config.shuffle) if config.shuffle > 1 else nn.Identity()
        self.shuffle = nn.PixelShuffle(config.shuffle) if config.shuffle > 1 else nn.Identity()
        self._start_without_checkerboard()

    def forward(self, photos: Tensor, style: Tensor, spikes: list[Tensor] | None = None) -> Tensor:
        """photos (N, 3, H, W) RGB 0-1, sides multiples of the stride, at least 16; style (N, D) or (D,) -> (N, 3, H, W)

        The result overshoots 0-1 by at most 0.089; it is clipped when it is shown. A list given as `spikes` gets the
        spike penalty of every norm, a scalar each.
        """

        def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            if spikes is not None:
                spikes.append(spike_penalty(x))
            return normalise(x, scale, shift)

        return self._through(photos, self._norms(style), norm)

    def freeze(self, photos: Tensor, style: Tensor) -> Tensor:
        """The style with these photos' own statistics in it, (N, D): what every norm multiplies by and adds for them.

        With it, `frozen` is this network without a look at the whole picture, so that it can be cut into tiles.
        """
        found: list[Tensor] = []

        def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            found.extend(factor_and_offset(x, scale, shift))
            return affine(x, *found[-2:])

        self._through(photos, self._norms(style), norm)
        return torch.cat(found, dim=-1)

    def frozen(self, photos: Tensor, style: Tensor) -> Tensor:
        """As `forward`, of a style (N, D) that `freeze` made: nothing depends on more of a photo than
        `TransformerConfig.radius` around it."""
        return self._through(photos, self._parts(style), affine)

    @torch.no_grad()
    def centre(self, photos: Tensor, style: Tensor) -> None:
        """Gives what the norms see a mean of zero over these photos (N, 3, H, W), by the biases before them.

        No picture changes, for a norm takes out what a channel has everywhere. So nothing holds those biases in a
        training, nor shifts so large that no rectifier cuts what they move; and half precision rounds what is large:
        where means are a hundred deviations, bf16 has half of a deviation left.
        """
        middle = 2 * self.config.middle
        deep = [self.deep_down, *self.deep, self.deep_up] if self.config.deep_width else []
        normed = iter([*self.down, *self.residual[:middle], *deep, *self.residual[middle:], *self.up])

        def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            bias: Tensor = next(normed).convolution.bias
            bias -= x.float().mean((0, 2, 3))
            return normalise(x, scale, shift)

        self._through(photos, self._norms(style), norm)

    def _through(self, photos: Tensor, norms: Iterator[tuple[Tensor, Tensor]], norm: Norm) -> Tensor:
        """The network with `norm` in the place of its norms, each given its two numbers a channel."""
        x = self.unshuffle(photos * 2 - 1)
        for conv in self.down:
            x = F.relu(norm(conv(x), *next(norms)))  # (N, a, H, W) (N, b, H/2, W/2) (N, c, H/4, W/4), a not if shuffled
        middle = 2 * self.config.middle
        x = _residual(x, self.residual[:middle], norm, norms)
        if self.config.deep_width:
            deep = F.relu(norm(self.deep_down(x), *next(norms)))  # (N, d, H/8, W/8)
            deep = _residual(deep, self.deep, norm, norms)
            x = x + norm(self.deep_up(deep), *next(norms))
        x = _residual(x, self.residual[middle:], norm, norms)
        for conv in self.up:
            x = F.relu(norm(conv(x), *next(norms)))  # (N, b, H/2, W/2) (N, a, H, W)
        return 0.5 + 0.5 * OVERSHOOT * torch.tanh(self.shuffle(self.last(x).float()))

    @torch.no_grad()
    def _start_without_checkerboard(self) -> None:
        """All places of a block begin with the same kernel (ICNR, Aitken 2017)."""
        for values in self.last.convolution.parameters():
            places = self.config.shuffle**2
            values.copy_(values[::places].repeat_interleave(places, 0))

    def _norms(self, style: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Scale and shift of every norm, the shifts that do nothing as zeros. No loss would hold those, and the sum's
        mean would drift to hundreds of deviations, where half precision does not see a deviation any more."""
        for (_, added), (scale, shift) in zip(self.config.norms, self._parts(style), strict=True):
            yield scale, torch.zeros_like(shift) if added else shift

    def _parts(self, style: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        sizes = [c for c in self.config.norm_widths for _ in range(2)]
        parts = iter(torch.split(style, sizes, dim=-1))
        return zip(parts, parts, strict=True)


def _residual(x: Tensor, convolutions: nn.ModuleList, norm: Norm, norms: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Residual blocks of two convolutions each; nothing follows their sum (Gross & Wilber 2016)."""
    for first, second in zip(convolutions[0::2], convolutions[1::2], strict=True):
        x = x + norm(second(F.relu(norm(first(x), *next(norms)))), *next(norms))
    return x


def normalise(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Instance norm with the scale and shift of a style: x (N, C, H, W); (N, C) a picture each, or (C,) for all."""
    if torch.compiler.is_exporting():
        return _exported_norm(x, scale, shift)
    return affine(x, *factor_and_offset(x, scale, shift))


def factor_and_offset(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """What instance norm multiplies x (N, C, H, W) by and what it adds, with a style's scale and shift: (N, C) each."""
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0)  # (N, C)
    factor = scale * torch.rsqrt(variance + EPSILON)
    return factor, shift - mean * factor


def affine(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """x (N, C, H, W) times factor plus offset, (N, C) each."""
    return torch.addcmul(offset.to(x.dtype)[:, :, None, None], x, factor.to(x.dtype)[:, :, None, None])


def spike_penalty(x: Tensor) -> Tensor:
    """How far single places stand out of their channel: mean of max(0, |normalised| - 3.5)^2, a scalar.

    Instance norm hides how strong a signal was. A network that misses this makes one huge spike, which fixes the
    statistics, and a droplet appears in every picture (Karras 2020, "Analyzing ... StyleGAN", section 2).
    """
    variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0, keepdim=True)
    scale = torch.rsqrt(variance + 1e-5)
    normalised = torch.addcmul(-mean * scale, x.float(), scale)
    return F.softshrink(normalised, SPIKE).square().mean()


def _exported_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The same as one InstanceNormalization node, whose scale has no batch: N pictures are one of N x C channels."""
    if scale.dim() == 1:
        return F.instance_norm(x, weight=scale, bias=shift, eps=EPSILON)
    n, c, h, w = x.shape
    channels = x.reshape(1, n * c, h, w)
    return F.instance_norm(channels, weight=scale.reshape(-1), bias=shift.reshape(-1), eps=EPSILON).reshape(n, c, h, w)


def graph_weights(graph: bytes) -> dict[str, Tensor]:
    """The weights of a graph that our pipeline exported, by their names in torch; fp32, those kept in fp16 too."""
    found = onnx.load_model_from_string(graph).graph.initializer
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found}
    return {
        name.removesuffix(HALF): torch.from_numpy(array.astype(np.float32 if name.endswith(HALF) else array.dtype))
        for name, array in arrays.items()
    }


def load_transformer(graph: bytes, label: str) -> tuple[Transformer, Tensor | None]:
    """A network that our pipeline exported, in torch again, and the one style (D,) that a classic one has built in.

    Raises ValueError, naming it by its `label`, for a graph from elsewhere.
    """
    initializers, prefix = graph_weights(graph), "transformer."
    weights = {name.removeprefix(prefix): value for name, value in initializers.items() if name.startswith(prefix)}
    kernels = {name: value for name, value in weights.items() if name.endswith(".weight")}
    for name, kernel in kernels.items():
        if name.startswith("up."):
            weights[name] = upconv_weight(kernel)
            bias = name.replace(".weight", ".bias")
            weights[bias] = weights[bias][::4].clone()
    try:
        first = "down.0.convolution.weight"
        side = kernels[first].shape[-1]
        if side % 2 == 0:  # a BlockConv's: blocks of the largest power of two, times an odd kernel
            weights[first] = kernels[first] = conv_weight(kernels[first], side & -side)
        down = [kernel for name, kernel in sorted(kernels.items()) if name.startswith("down.")]
        blocks = sum(name.startswith("residual.") for name in kernels) // 2
        shuffle = math.isqrt(down[0].shape[1] // 3)
        deep = [kernel for name, kernel in kernels.items() if name.startswith("deep.")]
        detour = (len(deep[0]), len(deep) // 2) if deep else (0, 0)
        transformer = Transformer(TransformerConfig(tuple(map(len, down)), blocks, down[0].shape[-1], shuffle, *detour))
        transformer.load_state_dict(weights)
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{label} was not exported by this pipeline: {error}") from error
    return transformer, initializers.get("vector")
