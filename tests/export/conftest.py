"""A training in small: real photos, real VGG features, a network of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from export.corpus import Corpus
from export.data import Painting
from export.train import StyledNetwork, TrainConfig, Trainer
from service.gatys.transformer import TransformerConfig

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "tests" / "photos"
VGG_WEIGHTS = ROOT / "model_store" / "vgg16" / "1" / "vgg16.safetensors"

TINY = TrainConfig(
    network=TransformerConfig((4, 6, 8), residual_blocks=1, end_kernel=5, deep_width=10, deep_blocks=1),
    steps=6,
    small_steps=3,
    small_side=48,
    side=64,
    margin=4,
    batch=2,
    warmup_steps=2,
    painting_side=64,
    photo_steps=3,
)
TINY_STUDENT = TransformerConfig((6, 8), residual_blocks=1, end_kernel=3, shuffle=2)

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photos."""
    folder = tmp_path_factory.mktemp("content")
    for name in ("coffee", "flower", "horses"):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            photo.resize((120, 90)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def paintings(tmp_path_factory: pytest.TempPathFactory) -> list[Painting]:
    """Two pictures that stand in for paintings."""
    folder = tmp_path_factory.mktemp("paintings")
    found = []
    for name in ("china_temple", "kingfisher"):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            photo.resize((96, 72)).save(folder / f"{name}.png")
        found.append(Painting(name, folder / f"{name}.png", name.title(), "nobody", "2026", "tests/photos"))
    return found


@pytest.fixture
def make_trainer(content: Path, paintings: list[Painting], tmp_path: Path) -> MakeTrainer:
    """Trainers of the tiny configuration; keyword arguments change it."""

    def make(
        run: str = "run",
        *,
        styles: list[Painting] | None = None,
        teacher: StyledNetwork | None = None,
        **changes: object,
    ) -> Trainer:
        config = replace(TINY, **changes)  # type: ignore[arg-type]
        chosen = paintings if styles is None else styles
        return Trainer(config, chosen, content, VGG_WEIGHTS, tmp_path / run, dtype=torch.float32, teacher=teacher)

    return make


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("coffee", "flower", "horses", "mariachi", "kingfisher"):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            photo.resize((90, 80)).save(folder / f"{name}.png")
    return Corpus.read([folder], 0, held_out=2)
