"""VGG feature networks (Simonyan & Zisserman 2015), the perceptual space of all losses here.

The weights are the ones published by Oxford's Visual Geometry Group in the Caffe convention (BGR, 0-255, minus the
ImageNet mean), not torchvision's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

NetworkName = Literal["vgg16", "vgg19"]
CONVOLUTIONS: Mapping[str, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)
MEAN_BGR = (103.939, 116.779, 123.68)


class VGG(nn.Module):
    """The frozen convolutions of VGG16 or VGG19; `forward` gives the named ReLU features of RGB pictures in 0-1.

    Training uses max pooling, as the weights were; Gatys 2015 found average pooling to give smoother pictures.
    """

    mean: Tensor

    def __init__(self, network: NetworkName = "vgg16", *, pooling: Literal["max", "average"] = "max") -> None:
        super().__init__()
        self._pool = F.max_pool2d if pooling == "max" else F.avg_pool2d
        self.convolutions = nn.ModuleDict()
        in_channels = 3
        for block, (count, channels) in enumerate(zip(CONVOLUTIONS[network], CHANNELS, strict=True), start=1):
            for index in range(1, count + 1):
                self.convolutions[f"conv{block}_{index}"] = nn.Conv2d(in_channels, channels, 3, padding=1)
                in_channels = channels
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls,
        path: Path,
        network: NetworkName = "vgg16",
        *,
        pooling: Literal["max", "average"] = "max",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> VGG:
        """Reads safetensors with keys `conv1_1.weight` … (OIHW). Features are computed in `dtype`.

        Raises RuntimeError when the file's keys or shapes are not this network's.
        """
        vgg = cls(network, pooling=pooling)
        vgg.convolutions.load_state_dict({key: value.float() for key, value in load_file(path).items()})
        vgg.convolutions.to(dtype=dtype)
        return vgg.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.convolutions.parameters()).dtype

    def forward(self, pictures: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """pictures (N, 3, H, W), RGB 0-1 -> {`reluB_I`: (N, C, H / 2^(B-1), W / 2^(B-1))} for the layers asked for."""
        wanted, features = set(layers), {}
        x = pictures.float().flip(1) * 255.0 - self.mean  # RGB -> BGR
        x = x.to(dtype=self.dtype, memory_format=torch.channels_last)
        for name, convolution in self.convolutions.items():
            block, index = name.removeprefix("conv").split("_")
            if index == "1" and block != "1":
                x = self._pool(x, 2)
            x = F.relu(convolution(x))
            if (layer := f"relu{block}_{index}") in wanted:
                features[layer] = x
                if len(features) == len(wanted):
                    return features
        raise ValueError(f"no such VGG layers: {sorted(wanted - set(features))}")
