"""How good is a published model? Its losses against the optimum's, and the artefacts that people complain of.

The excess L - L* is the measure: L = style + 0.1 content + 0.03 TV of the model's own uint8 pixels, L* what 300
evaluations of L-BFGS from the photo reach on the same L. L* is costly and depends on no network, so it is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.data import Painting, load_picture
from export.sheet import to_image
from service.gatys.losses import (
    GATYS_STYLE_LAYERS,
    TRAINING_CONTENT_LAYER,
    TRAINING_STYLE_LAYERS,
    edge_similarities,
    grams_of,
    luminance_of,
    style_losses,
)
from service.gatys.optimize import Losses, Objective, optimize
from service.gatys.pictures import to_pixels, to_tensor
from service.gatys.vgg import VGG
from service.models.encoder import Encoder, encoder_of
from service.models.session import Session, cpu_quota
from service.models.store import Card, ModelStore, StoredModel, file_sha256

PAINTING_SIDE, PHOTO_SIDE = 384, 288  # shorter sides, px
EVALUATIONS = 300
MAX_PIXELS = 10**8  # of a painting's file

Stylize = Callable[[np.ndarray, str], np.ndarray]  # uint8 (1, H, W, 3) and a style's name -> uint8 (1, H, W, 3)


@dataclass(frozen=True)
class Optimum:
    """What Gatys' optimisation reaches for one painting and one photo."""

    losses: Losses
    held_out: float


@dataclass(frozen=True)
class Score:
    """One photo in one style. `held_out`: style loss on relu1_1 … relu5_1, which no network here is trained on."""

    style: str
    photo: str
    losses: Losses
    held_out: float
    optimum: Optimum
    edges: float
    checkerboard: float

    @property
    def excess(self) -> float:
        return self.losses.total - self.optimum.losses.total


class Evaluator:
    """Scores models on fixed photos and paintings, whose shorter side is `painting_side` px; optima are read from and
    added to `optima`, a JSON file."""

    def __init__(self, vgg_weights: Path, optima: Path, painting_side: int = PAINTING_SIDE) -> None:
        self.painting_side = painting_side
        self.vgg = VGG.load(vgg_weights)
        self.fast_vgg = VGG.load(vgg_weights, dtype=torch.bfloat16)
        self.optima_path = optima
        self.optima: dict[str, dict[str, Any]] = json.loads(optima.read_text()) if optima.exists() else {}

    def score(
        self, stylize: Stylize, paintings: Sequence[Painting], photos: Sequence[Path]
    ) -> tuple[list[Score], list[list[Image.Image]]]:
        """Every photo in every style, and the pictures: a row a photo, the photo itself first."""
        scores, rows = [], []
        for photo_path in photos:
            photo = load_picture(photo_path, short_side=PHOTO_SIDE)
            pixels = to_pixels(photo)
            row = [to_image(photo)]
            for painting in paintings:
                picture = to_tensor(stylize(pixels, painting.name))
                objective, held_out = self._objective(self.vgg, painting, photo), self.held_out(painting)
                optimum = self.optimum(painting, photo_path)
                scores.append(
                    Score(
                        painting.name,
                        photo_path.stem,
                        objective.losses(picture),
                        held_out(picture),
                        optimum,
                        float(edge_similarities(picture, photo)),
                        checkerboard(picture),
                    )
                )
                row.append(to_image(picture))
            rows.append(row)
        return scores, rows

    def optimum(self, painting: Painting, photo_path: Path) -> Optimum:
        """L* of a pair."""
        if (key := self._key(painting, photo_path)) not in self.optima:
            self.optimised(painting, photo_path)
        entry = self.optima[key]
        return Optimum(Losses(**entry["losses"]), entry["held_out"])

    def optimised(self, painting: Painting, photo_path: Path) -> Tensor:
        """The picture (1, 3, H, W) of L*: optimised in bf16, judged in fp32, and its losses kept."""
        photo = load_picture(photo_path, short_side=PHOTO_SIDE)
        picture = optimize(self._objective(self.fast_vgg, painting, photo), photo, evaluations=EVALUATIONS)
        losses = self._objective(self.vgg, painting, photo).losses(picture)
        record = {"painting": painting.name, "photo": photo_path.stem, "settings": self._settings}
        self.optima[self._key(painting, photo_path)] = record | {
            "losses": dataclasses.asdict(losses),
            "held_out": self.held_out(painting)(picture),
        }
        self._keep()
        return picture

    @property
    def _settings(self) -> str:
        return f"{self.painting_side} {PHOTO_SIDE} {EVALUATIONS} style + 0.1 content + 0.03 tv"

    def _key(self, painting: Painting, photo_path: Path) -> str:
        pair = f"{file_sha256(painting.path)} {file_sha256(photo_path)} {self._settings}"
        return hashlib.sha256(pair.encode()).hexdigest()[:16]

    def _keep(self) -> None:
        partial = self.optima_path.with_suffix(".partial")
        partial.write_text(json.dumps(self.optima, indent=1, sort_keys=True) + "\n")
        os.replace(partial, self.optima_path)

    def _objective(self, vgg: VGG, painting: Painting, photo: Tensor) -> Objective:
        targets = _painting_grams(vgg, painting.path, TRAINING_STYLE_LAYERS, self.painting_side)
        return Objective(vgg, photo, targets, content_layer=TRAINING_CONTENT_LAYER, content_weight=0.1, tv_weight=0.03)

    def held_out(self, painting: Painting) -> Callable[[Tensor], float]:
        """The style loss of a picture (1, 3, H, W) on layers that no network here is trained on."""
        targets = _painting_grams(self.vgg, painting.path, GATYS_STYLE_LAYERS, self.painting_side)
        return lambda picture: float(style_losses(_grams(self.vgg, picture, GATYS_STYLE_LAYERS), targets)[0])


@functools.cache
def _painting_grams(vgg: VGG, painting: Path, layers: tuple[str, ...], side: int) -> dict[str, Tensor]:
    return _grams(vgg, load_picture(painting, short_side=side), layers)


@torch.no_grad()
def _grams(vgg: VGG, picture: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
    return grams_of(vgg(picture, layers), layers)


def store_stylizer(folder: Path) -> Stylize:
    """The model of a store's folder, run as the service runs it."""
    stored = ModelStore(folder.parent.parent).load(folder)
    session = Session(stored, "cpu", cpu_quota())

    def stylize(pixels: np.ndarray, style: str) -> np.ndarray:
        vector = stored.vectors.get(style, np.empty(0, np.float32))  # a classic network has none
        return session.run(pixels, vector[None])

    return stylize


def encoder_stylizer(encoder: Encoder, session: Session, paintings: Sequence[Painting]) -> Stylize:
    """An encoder and its network, run as the service runs them. A style is one of `paintings`."""
    vectors = {p.name: encoder.vector(encoder.read(p.path.read_bytes(), MAX_PIXELS)) for p in paintings}
    return lambda pixels, style: session.run(pixels, vectors[style][None])


def at_work(store: ModelStore, stored: StoredModel) -> tuple[Encoder, Session]:
    """An encoder of the store, and the network whose vectors it makes. Raises ValueError where that is not there any
    more."""
    encoder = encoder_of(stored, "cpu", cpu_quota())
    for network in store.networks():
        if network.card.network_sha256 == encoder.network_sha256:
            return encoder, Session(network, "cpu", cpu_quota())
    raise ValueError(f"{encoder.card.label} makes vectors for a {encoder.model} that is not in the store")


def checkerboard(picture: Tensor) -> float:
    """Power of the luminance's spectrum at a period of 2 px over that at 2.1-2.4 px; about 1 without artefact."""
    luminance = luminance_of(picture)[0, 0]
    height, width = (side - side % 2 for side in luminance.shape)
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)[None]
    power = torch.fft.fft2((luminance[:height, :width] - luminance.mean()) * window).abs().square()
    down, across = torch.fft.fftfreq(height).abs(), torch.fft.fftfreq(width).abs()
    frequency = torch.maximum(down[:, None], across[None])
    return float(power[frequency > 0.497].mean() / power[(frequency > 0.42) & (frequency < 0.475)].mean())


def table(scores: Sequence[Score]) -> str:
    """Markdown: a line a style, the worst first, then the mean over styles."""
    lines = [
        "| style | L | L* | excess | style | content | held-out style (optimum) | edge SSIM | 2-px peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    summaries = summarise(scores)
    for name, row in sorted(summaries.items(), key=lambda item: -item[1]["excess"]):
        lines.append(
            "| {name} | {loss:.3f} | {optimum:.3f} | **{excess:.3f}** | {style:.3f} | {content:.2f} "
            "| {held_out:.3f} ({held_out_optimum:.3f}) | {edges:.2f} | {checkerboard:.2f} |".format(name=name, **row)
        )
    mean, worst = mean_and_worst(summaries)
    return "\n".join([*lines, "", f"Excess over the optimum: mean {mean:.3f}, worst style {worst:.3f}."])


def summarise(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Means over the photos, a dictionary a style."""
    columns: dict[str, Callable[[Score], float]] = {
        "loss": lambda s: s.losses.total,
        "optimum": lambda s: s.optimum.losses.total,
        "excess": lambda s: s.excess,
        "style": lambda s: s.losses.style,
        "content": lambda s: s.losses.content,
        "held_out": lambda s: s.held_out,
        "held_out_optimum": lambda s: s.optimum.held_out,
        "edges": lambda s: s.edges,
        "checkerboard": lambda s: s.checkerboard,
    }
    names = list(dict.fromkeys(score.style for score in scores))
    return {
        name: {
            column: round(statistics.mean(value(s) for s in scores if s.style == name), 4)
            for column, value in columns.items()
        }
        for name in names
    }


def mean_and_worst(summaries: dict[str, dict[str, float]]) -> tuple[float, float]:
    """Mean and largest excess over the styles."""
    excesses = [row["excess"] for row in summaries.values()]
    return round(statistics.mean(excesses), 4), max(excesses)


def with_quality(card: Card, scores: Sequence[Score]) -> Card:
    """The card with the numbers of this evaluation, for the model and for every style in it."""
    summaries = summarise(scores)
    mean, worst = mean_and_worst(summaries)
    overall = {"excess_mean": mean, "excess_worst": worst, "photos": sorted({score.photo for score in scores})}
    styles = tuple(
        style.model_copy(update={"quality": summaries.get(style.name, style.quality)}) for style in card.styles
    )
    return card.model_copy(update={"styles": styles, "quality": card.quality | overall})
