"""A training in small: real photos, real VGG features, a network of a few thousand weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol

import pytest
import torch
from PIL import Image

from export.corpus import Corpus
from export.data import Painting
from export.publish import publish
from export.train import Run, StyledNetwork, TrainConfig, Trainer
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

WORDS = {"title": "Tiny", "description": "For tests", "licence": "Apache-2.0"}
PREVIEW = PHOTOS / "coffee.jpg"
TARGET = Path("store") / "tiny" / "1"

MakeTrainer = Callable[..., Trainer]


class Published(Protocol):
    def __call__(self, *, conditional: bool = True) -> Path: ...


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
        styles: list[Painting] = paintings,
        teacher: StyledNetwork | None = None,
        **changes: object,
    ) -> Trainer:
        return _trainer(tmp_path / run, styles, content, teacher, **changes)

    return make


def _trainer(
    folder: Path,
    styles: list[Painting],
    content: Path,
    teacher: StyledNetwork | None = None,
    **changes: object,
) -> Trainer:
    config = replace(TINY, **changes)  # type: ignore[arg-type]
    return Trainer(config, styles, content, VGG_WEIGHTS, folder, dtype=torch.float32, teacher=teacher)


@pytest.fixture(scope="session")
def published_once(
    content: Path, paintings: list[Painting], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], Path]:
    """A folder with the run of a network, conditional or not, and the store that it is in: an export takes seconds."""

    @cache
    def made(conditional: bool) -> Path:
        folder, styles = tmp_path_factory.mktemp("published"), paintings if conditional else paintings[:1]
        _trainer(folder / "run", styles, content, conditional=conditional, steps=2).run()
        publish(Run.load(folder / "run"), styles, folder / TARGET, **WORDS, preview_photo=PREVIEW)
        return folder

    return made


@pytest.fixture
def published(published_once: Callable[[bool], Path], tmp_path: Path) -> Published:
    """Gives the folder of a published network, to do with as one likes; its run is `tmp_path / "run"`."""

    def copied(*, conditional: bool = True) -> Path:
        shutil.copytree(published_once(conditional), tmp_path, dirs_exist_ok=True)
        return tmp_path / TARGET

    return copied


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("coffee", "flower", "horses", "mariachi", "kingfisher"):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            photo.resize((90, 80)).save(folder / f"{name}.png")
    return Corpus.read([folder], 0, held_out=2)
