"""Where a run's first weights come from, when not from chance: another run, or a published model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from export.to_onnx import load_graph
from export.train import Run, StyledNetwork
from service.gatys.transformer import Transformer
from service.models.store import CARD, PHOTO, ModelStore


def starting_network(source: Path, styles: Sequence[str]) -> StyledNetwork:
    """The network of a run's folder or of <store>/<model>/<version>; a style that it lacks begins as its average.

    Raises ValueError where the source was not made by this pipeline.
    """
    transformer, vectors = _published(source) if (source / CARD).exists() else _trained(source)
    average = torch.stack(list(vectors.values())).mean(0)
    return StyledNetwork(transformer, torch.stack([vectors.get(style, average) for style in styles]))


def starting_photo_vector(source: Path) -> Tensor | None:
    """As `starting_network`: the vector, (D,), with which it leaves photos as they are; None where it has none."""
    if not (source / CARD).exists():
        return Run.load(source).photo_vector
    vector = ModelStore(source.parent.parent).load(source).vectors.get(PHOTO)
    return None if vector is None else torch.from_numpy(vector)


def _trained(folder: Path) -> tuple[Transformer, dict[str, Tensor]]:
    run = Run.load(folder)
    return run.network.transformer, run.vectors()


def _published(folder: Path) -> tuple[Transformer, dict[str, Tensor]]:
    stored = ModelStore(folder.parent.parent).load(folder)
    if stored.card.graph is None:
        raise ValueError(f"{stored.card.label} has no network")
    graph = load_graph(folder / stored.card.graph)
    if graph.vector is not None:  # a classic network's one style
        return graph.transformer, {stored.card.styles[0].name: graph.vector.data}
    names = [style.name for style in stored.card.styles]
    return graph.transformer, {name: torch.from_numpy(stored.vectors[name]) for name in names}
