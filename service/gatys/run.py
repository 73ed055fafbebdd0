"""One run, from pixels to pixels: coarse to fine, observed at every evaluation, resumable from any of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from service.colour import keep_color
from service.gatys.losses import GATYS_STYLE_LAYERS, MEASURES, grams_of
from service.gatys.optimize import Evaluation, Losses, Objective, optimize
from service.gatys.pictures import to_pixels, to_tensor
from service.gatys.vgg import VGG
from service.images import resized
from service.jobs.parameters import NetworkName, Parameters, Pooling, Precision
from service.masks import Mask, composed

COARSE_SIDE = 512  # pixels; up to it a pyramid is no faster (measured), above it makes the large strokes
COARSE_SHARE = 0.6  # of the evaluations left, for the coarser picture
MIN_SIDE = 16  # pixels: the last of VGG's four poolings leaves one place

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) sRGB


@dataclass(frozen=True)
class Checkpoint:
    """A run on its way: `picture` float32 (H, W, 3) in 0-1 of the `stage`, after `iteration` evaluations of all.

    What is lost between two of them is the optimiser's history.
    """

    iteration: int
    stage: int
    stage_iteration: int
    picture: npt.NDArray[np.float32]

    def packed(self) -> bytes:
        file = io.BytesIO()
        np.savez(file, numbers=[self.iteration, self.stage, self.stage_iteration], picture=self.picture)
        return file.getvalue()

    @classmethod
    def unpacked(cls, content: bytes) -> Checkpoint:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:
            iteration, stage, stage_iteration = map(int, saved["numbers"])
            return cls(iteration, stage, stage_iteration, saved["picture"])


@dataclass(frozen=True)
class Progress:
    """After an evaluation: its `iteration` of at most `iterations`, its losses, and the picture on demand."""

    iteration: int
    iterations: int
    stage: int
    stage_iteration: int
    losses: Losses
    shown: Tensor  # (1, 3, H, W), 0-1

    def pixels(self) -> Pixels:
        pixels: Pixels = to_pixels(self.shown)[0]
        return pixels

    def checkpoint(self) -> Checkpoint:
        picture = self.shown[0].permute(1, 2, 0).float().cpu().numpy()
        return Checkpoint(self.iteration, self.stage, self.stage_iteration, np.ascontiguousarray(picture))


@dataclass(frozen=True)
class Stage:
    """A size of the picture, (width, height) in pixels, and the evaluations spent on it at most."""

    size: tuple[int, int]
    evaluations: int


def stages(size: tuple[int, int], iterations: int) -> list[Stage]:
    """Coarse to fine: halved until the longer side is at most COARSE_SIDE."""
    sizes = [size]
    while max(sizes[0]) > COARSE_SIDE:
        sizes.insert(0, (max(1, round(sizes[0][0] / 2)), max(1, round(sizes[0][1] / 2))))
    found, left = [], iterations
    for coarse in sizes[:-1]:
        spent = min(left - 1, max(1, round(COARSE_SHARE * left))) if left > 1 else 0
        found += [Stage(coarse, spent)] if spent else []
        left -= spent
    return [*found, Stage(sizes[-1], left)]


def paint(
    vgg: VGG,
    photo: Pixels,
    paintings: Sequence[tuple[Pixels, float]],
    parameters: Parameters,
    *,
    mask: Mask | None = None,
    start: Pixels | None = None,
    resume: Checkpoint | None = None,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Pixels:
    """The photo (H, W, 3) in the style of paintings (h, w, 3) with weights that sum to 1; as large as the photo.

    It begins with `start`, a picture of any size, or else with what the parameters' `init` says. `observe` is told of
    every evaluation; what it raises ends the run. Raises Diverged.
    """
    if parameters.preserve_color == "histogram":
        paintings = [(keep_color(painting, photo, "histogram"), weight) for painting, weight in paintings]
    size = photo.shape[1], photo.shape[0]
    plan = stages(size, parameters.iterations)
    picture, before = None if start is None else to_tensor(start[None]).to(vgg.mean.device), 0
    if resume is not None:
        picture, before = _from_checkpoint(resume, vgg.mean.device), resume.iteration - resume.stage_iteration
    for index, stage in enumerate(plan):
        if resume is not None and index < resume.stage:
            continue
        spent = resume.stage_iteration if resume is not None and index == resume.stage else 0
        objective, first = _prepare(vgg, photo, paintings, parameters, stage.size, picture)
        base = before + spent
        last = 0

        def watch(evaluation: Evaluation, stage: int = index, spent: int = spent, base: int = base) -> None:
            nonlocal last
            last = evaluation.count
            observe(
                Progress(
                    base + last, parameters.iterations, stage, spent + last, evaluation.losses, evaluation.shown
                )
            )  # fmt: skip

        picture = optimize(
            objective,
            first,
            evaluations=max(0, stage.evaluations - spent),
            optimizer=parameters.optimizer,
            bounds=parameters.defaults.bounds,
            plateau=parameters.defaults.plateau,
            done=base,
            observe=watch,
        )
        before = base + last
    assert picture is not None
    painted = to_pixels(picture)[0]
    if parameters.preserve_color == "luminance":
        painted = keep_color(painted, photo, "luminance")
    return painted if mask is None else composed(photo, [painted], [mask])


def load_vgg(weights: Path, network: NetworkName, pooling: Pooling = "max", precision: Precision = "auto") -> VGG:
    """The features that a run needs, on a GPU where there is one. Raises OSError or RuntimeError."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return VGG.load(weights, network, pooling=pooling, device=device, dtype=_dtype(precision, device))


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; without, bf16 is slower than fp32."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _dtype(precision: Precision, device: str) -> torch.dtype:
    if precision == "bf16" or (precision == "auto" and (device == "cuda" or has_fast_bf16())):
        return torch.bfloat16
    return torch.float32


def _prepare(
    vgg: VGG,
    photo: Pixels,
    paintings: Sequence[tuple[Pixels, float]],
    parameters: Parameters,
    size: tuple[int, int],
    picture: Tensor | None,
) -> tuple[Objective, Tensor]:
    """The objective at a stage's size (width, height), and the picture to start from."""
    device, preset = vgg.mean.device, parameters.defaults
    content = to_tensor(resized(photo, size)[None]).to(device)
    styles = [to_tensor(_fitted(painting, max(size))[None]).to(device) for painting, _ in paintings]
    objective = Objective(
        vgg,
        content,
        _mean_grams(vgg, styles, [weight for _, weight in paintings]),
        content_layer=preset.content_layer,
        content_weight=parameters.content_weight,
        tv_weight=parameters.tv_weight,
        style_weight=parameters.style_weight,
        measure=MEASURES[preset.measure],
    )
    if picture is None:
        picture = _start(parameters, content, to_tensor(resized(paintings[0][0], size)[None]).to(device))
    elif picture.shape[2:] != content.shape[2:]:
        picture = F.interpolate(picture, content.shape[2:], mode="bicubic", antialias=True).clamp(0, 1)
    return objective, picture


def _start(parameters: Parameters, content: Tensor, style: Tensor) -> Tensor:
    if parameters.init == "noise":
        generator = torch.Generator().manual_seed(parameters.seed)
        return torch.rand(content.shape, generator=generator).to(content.device)
    return content if parameters.init == "content" else style


@torch.no_grad()
def _mean_grams(vgg: VGG, paintings: Sequence[Tensor], weights: Sequence[float]) -> Mapping[str, Tensor]:
    """The weighted mean of the paintings' Grams: {layer: (1, C, C)}. One painting's are its own."""
    grams = [grams_of(vgg(painting, GATYS_STYLE_LAYERS), GATYS_STYLE_LAYERS) for painting in paintings]
    return {
        layer: torch.stack([weight * each[layer] for weight, each in zip(weights, grams, strict=True)]).sum(0)
        for layer in GATYS_STYLE_LAYERS
    }


def _fitted(painting: Pixels, longer_side: int) -> Pixels:
    """The painting with the picture's longer side, so that a stroke is as large in both; no side below MIN_SIDE."""
    height, width = painting.shape[:2]
    scale = longer_side / max(height, width)
    return resized(painting, (max(MIN_SIDE, round(width * scale)), max(MIN_SIDE, round(height * scale))))


def _from_checkpoint(checkpoint: Checkpoint, device: torch.device) -> Tensor:
    return torch.from_numpy(checkpoint.picture).permute(2, 0, 1)[None].contiguous().to(device)
