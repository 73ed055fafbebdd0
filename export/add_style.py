"""A new style for a published conditional network: its vector alone is trained, the graph stays as it is.

Dumoulin 2017 (Magenta's fine-tuning): the convolutions are frozen, and the vector starts from the style that comes
closest to the new painting.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from export.data import Painting
from export.publish import preview_path, preview_picture, ship, style_entry, write_changed, write_preview, write_vector
from export.to_onnx import PixelGraph, load_graph
from export.train import StyledNetwork, TrainConfig, Trainer
from export.verify import verify
from service.gatys.perceptual import nearest
from service.models.store import NAME_PATTERN, PHOTO, Card, ModelStore, StoredModel, file_sha256

CONFIG = TrainConfig(
    conditional=False, steps=1200, small_steps=900, learning_rate=5e-3, vector_rate=1.0, warmup_steps=50, average=0.99
)
COMPARED_PHOTOS = 4


def add_style(
    model: Path,
    painting: Painting,
    content: Path,
    vgg_weights: Path,
    run: Path,
    *,
    config: TrainConfig = CONFIG,
    preview_photo: Path,
) -> Card:
    """Trains a vector for `painting` and adds it to `model`, a folder <store>/<model>/<version>; resumes from `run`.

    Raises ValueError where the model has a style of that name already, is not conditional, or was not made here.
    """
    stored = ModelStore(model.parent.parent).load(model)
    if stored.card.kind != "conditional":
        raise ValueError(
            f"{stored.card.label} is a {stored.card.kind} network: only a conditional one takes more styles"
        )
    if not re.match(NAME_PATTERN, painting.name):  # before it is trained for minutes, and names files
        raise ValueError(f"{painting.name!r} is not a style's name: a-z, 0-9 and _, at most 64 of them")
    if painting.name in stored.vectors:
        raise ValueError(f"{stored.card.label} has a style {painting.name} already; choose another --name")
    assert stored.card.graph is not None  # a conditional card has one
    transformer = load_graph(model / stored.card.graph).transformer
    for parameter in transformer.parameters():
        parameter.requires_grad_(False)
    config = replace(config, network=transformer.config)
    network = StyledNetwork(transformer, torch.zeros(1, transformer.config.style_size))
    trainer = Trainer(config, [painting], content, vgg_weights, run, start=network)
    if trainer.step == 0:
        nearest = _nearest_vector(trainer, stored)
        with torch.no_grad():
            network.vectors.copy_(nearest)
            trainer.average["vectors"].copy_(nearest)
    trainer.run()
    return _install(model, stored, painting, trainer, preview_photo)


def _nearest_vector(trainer: Trainer, stored: StoredModel) -> torch.Tensor:
    """The stored vector, (1, D), whose pictures come closest to the painting's Gram matrices."""
    photos = trainer.photos.batch(0, COMPARED_PHOTOS, trainer.config.small_side)
    vectors = {name: torch.from_numpy(vector) for name, vector in stored.vectors.items() if name != PHOTO}
    return vectors[nearest(trainer.network.transformer, trainer.vgg, photos, trainer.targets.grams, vectors)][None]


def _install(model: Path, stored: StoredModel, painting: Painting, trainer: Trainer, preview_photo: Path) -> Card:
    """Writes vector and preview, then the card that names them: a service sees the style whole or not at all."""
    averaged = trainer.averaged()
    vector = averaged.vectors.detach().numpy()
    graph = PixelGraph(averaged.transformer)
    photo = preview_picture(preview_photo)
    assert stored.card.graph is not None
    verify(graph, model / stored.card.graph, vector, [photo])
    path = write_vector(model, painting.name, vector[0])
    write_preview(model, painting.name, graph, photo, vector[0])
    shipped = ship(model, painting)
    entry = style_entry(painting, trainer.config.painting_side, path, shipped)
    written = (path, preview_path(painting.name), *((shipped,) if shipped else ()))
    added = {name: file_sha256(model / name) for name in written}
    return write_changed(model, stored.card, styles=(*stored.card.styles, entry), files=stored.card.files | added)
