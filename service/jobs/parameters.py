"""What a job is asked to do: Gatys' optimisation, where a preset is only defaults for the fields beside it, or a large
picture through a network, or a painting's style."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

PresetName = Literal["fast", "balanced", "best", "keras", "gatys2015"]
Init = Literal["content", "noise", "style"]
Optimizer = Literal["lbfgs", "adam", "sgd"]
NetworkName = Literal["vgg16", "vgg19"]
MeasureName = Literal["relative", "gatys2015", "keras"]
Bounds = Literal["sigmoid", "none"]
Pooling = Literal["max", "average"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Preset:
    """The defaults of a run.

    ``measure`` is the scale of the losses: without dimension, or literally those of a paper. ``bounds`` is what keeps
    pixels in 0-1 while they are optimised. ``plateau`` stops once 15 evaluations gain less than 0.5 %.
    """

    iterations: int
    content_weight: float = 0.1
    style_weight: float = 1.0
    tv_weight: float = 0.03
    init: Init = "content"
    optimizer: Optimizer = "lbfgs"
    measure: MeasureName = "relative"
    bounds: Bounds = "sigmoid"
    pooling: Pooling = "max"
    precision: Precision = "auto"
    plateau: bool = True
    content_layer: str = "relu4_2"


PRESETS: Mapping[PresetName, Preset] = MappingProxyType(
    {
        "fast": Preset(iterations=60),
        "balanced": Preset(iterations=150),
        "best": Preset(iterations=500, precision="fp32"),
        # keras.io, "Neural style transfer": its losses, weights, layers and steps, on Caffe's 0-255 pixels
        "keras": Preset(
            iterations=4000,
            content_weight=2.5e-8,
            style_weight=1e-6,
            tv_weight=1e-6,
            optimizer="sgd",
            measure="keras",
            bounds="none",
            precision="fp32",
            plateau=False,
            content_layer="relu5_2",
        ),
        # Gatys, Ecker & Bethge 2015: white noise, average pooling, pixels that nothing holds in range
        "gatys2015": Preset(
            iterations=500,
            content_weight=0.025,
            style_weight=5.0,
            tv_weight=0.0,
            init="noise",
            measure="gatys2015",
            bounds="none",
            pooling="average",
            precision="fp32",
            plateau=False,
        ),
    }
)


@dataclass(frozen=True)
class _Applied:
    """What a job was asked to do, as clients are told it and as it is kept."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Parameters(_Applied):
    """Everything that makes a run what it is, as applied. ``max_side`` in pixels; ``style`` maps paintings' names to
    weights that sum to 1; ``start_model`` is the network whose picture is begun with, in place of ``init``."""

    preset: PresetName
    style: Mapping[str, float]
    content_weight: float
    style_weight: float
    tv_weight: float
    init: Init
    optimizer: Optimizer
    iterations: int
    network: NetworkName
    max_side: int
    preserve_color: Literal["none", "luminance", "histogram"]
    format: Literal["jpeg", "png", "webp"]
    quality: int
    seed: int
    start_model: str | None = None

    @classmethod
    def of(cls, preset: PresetName, style: Mapping[str, float], seed: int) -> Self:
        """What a preset does where no field says otherwise: on VGG16, at 512 px, as PNG."""
        defaults = PRESETS[preset]
        return cls(
            preset=preset,
            style=style,
            content_weight=defaults.content_weight,
            style_weight=defaults.style_weight,
            tv_weight=defaults.tv_weight,
            init=defaults.init,
            optimizer=defaults.optimizer,
            iterations=defaults.iterations,
            network="vgg16",
            max_side=512,
            preserve_color="none",
            format="png",
            quality=90,
            seed=seed,
        )

    @property
    def defaults(self) -> Preset:
        """What the preset settles beyond the fields."""
        return PRESETS[self.preset]


@dataclass(frozen=True)
class LargeParameters(_Applied):
    """A picture that ``/stylize`` makes as a job, as applied: ``width`` x ``height`` pixels in ``iterations`` tiles; or
    an animation of so many ``frames`` of that size in ``iterations`` steps, where it is not None."""

    style: str | None
    style_fine: str | None
    style_coarse: str | None
    mask_styles: str | None
    strength: float
    preserve_color: Literal["none", "luminance", "histogram"]
    stroke: float
    model: str
    width: int
    height: int
    format: Literal["jpeg", "png", "webp", "gif", "mp4"]
    quality: int
    iterations: int
    frames: int | None = None
    method: Literal["stylize"] = "stylize"

    @property
    def preset(self) -> str:
        """What its duration counts as."""
        return self.method


@dataclass(frozen=True)
class RefineParameters(_Applied):
    """A style that is made of a painting, in ``iterations`` steps, for the network ``model``: its papers, and the
    shorter side in pixels at which the painting is looked at. The result is a pack."""

    name: str
    title: str
    artist: str
    year: str
    credit: str
    painting_sha256: str
    painting_side_px: int
    model: str
    iterations: int
    seed: int = 0
    method: Literal["refine"] = "refine"

    @property
    def preset(self) -> str:
        """What its duration counts as."""
        return self.method


VECTORS_FILE = "painting-vectors"  # of an order: styles that the worker's store has not
NETWORK = "sha256 of the network"  # no style's name


def packed_vectors(vectors: Mapping[str, npt.NDArray[np.float32]], network_sha256: str) -> bytes:
    """Styles (D,) by name, for the network of that graph, as a file of an order."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {NETWORK: np.array(network_sha256), **vectors}
    np.savez(file, **arrays)
    return file.getvalue()


def unpacked_vectors(content: bytes) -> tuple[dict[str, npt.NDArray[np.float32]], str]:
    """What was packed."""
    with np.load(io.BytesIO(content), allow_pickle=False) as saved:
        return {name: saved[name] for name in saved.files if name != NETWORK}, str(saved[NETWORK])


AnyParameters = Parameters | LargeParameters | RefineParameters


def read_parameters(values: Mapping[str, Any]) -> AnyParameters:
    """What ``as_dict`` gave."""
    kinds: dict[str, type[AnyParameters]] = {"stylize": LargeParameters, "refine": RefineParameters}
    return kinds.get(values.get("method", ""), Parameters)(**values)
