"""Training of a conditional network and a style encoder for it at the same time.

Half of a step's pictures are in the named styles, the other half in those of a corpus of paintings, for which the
encoder makes the vectors: so the network's convolutions learn what any painting needs, and not only the named ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from export.corpus import Corpus
from export.data import Painting
from export.encoder import (
    ENCODER,
    EncodedNetwork,
    EncoderTrainer,
    Looked,
    encoder_groups,
    encoder_sheet,
    learn_to_see,
    trained_encoder,
    with_told,
)
from export.networks.style_encoder import StyleEncoder
from export.train import StyledNetwork, TrainConfig, Trainer
from service.gatys.losses import edge_similarities
from service.gatys.perceptual import BatchLosses


@dataclass(frozen=True)
class JointConfig(TrainConfig):
    """As TrainConfig, `painting_side` being the named paintings'; what is of the corpus as EncoderConfig has it, with
    the weight of the edges that one of its pictures loses, and the encoder's learning rate over the network's."""

    batch: int = 8  # even: as many named as encoded
    encoded_side: int = 256
    encoded_edges: float = 3.0
    encoder_rate: float = 1.0
    encoder_started_from: str = ""
    hidden: int = 768
    seeing_steps: int = 2000
    tell: float = 1.0
    held_out: int = 30
    held_out_prefix: str = "wikiart_"
    corpus_sha256: str = ""

    def __post_init__(self) -> None:
        if self.batch % 2 or not self.batch:
            raise ValueError(f"a batch of a network and its encoder is even, not {self.batch}")

    @property
    def named(self) -> int:
        return self.batch // 2


class JointTrainer(Trainer):
    """A Trainer of a network, its named styles' vectors and its encoder."""

    loss_names: ClassVar[tuple[str, ...]] = EncoderTrainer.loss_names

    config: JointConfig
    network: EncodedNetwork
    told: Tensor  # as EncoderTrainer's

    def __init__(
        self, config: JointConfig, paintings: Sequence[Painting], corpus: Corpus, content: Path, vgg_weights: Path,
        folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, compiled: bool = False,
        start: StyledNetwork | None = None, start_encoder: Path | None = None,
    ) -> None:  # fmt: skip
        """As Trainer; `start_encoder`, a run's or a published one, is what the encoder begins as. Raises ValueError
        where that is another network."""
        torch.manual_seed(config.seed)
        begun = StyledNetwork.neutral(config.network, len(paintings)) if start is None else start
        encoder = StyleEncoder(begun.vectors.detach(), config.hidden)
        if start_encoder is not None:
            encoder.begin_as(trained_encoder(start_encoder))
            config = dataclasses.replace(config, encoder_started_from=str(start_encoder))
        config = dataclasses.replace(config, corpus_sha256=corpus.sha256)
        network = EncodedNetwork(begun.transformer, begun.vectors.detach(), encoder).requires_grad_(True)
        self.corpus = corpus
        super().__init__(
            config, paintings, content, vgg_weights, folder,
            device=device, dtype=dtype, compiled=compiled, start=network,
        )  # fmt: skip

    def _prepare(self) -> None:
        super()._prepare()
        if not self.checkpoint_path.exists():
            side, steps = self.config.encoded_side, self.config.seeing_steps
            learn_to_see(self.network.encoder, self.vgg, self.corpus, side, steps)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return [*super()._parameter_groups(), *encoder_groups(self.network.encoder, self.config.encoder_rate)]

    def _read(self, step: int) -> tuple[Tensor, ...]:
        paintings = self.corpus.batch(step, self.config.batch - self.config.named, self.config.encoded_side)
        return *super()._read(step), self._to_device(paintings)

    def _styles(self, *pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Vectors (N, D), the named styles' first, and their targets."""
        slots, named = super()._styles()
        (paintings,) = pictures
        looked = Looked.at(paintings, self.vgg)
        encoded, self.told = self.network.encoder.study(looked.paintings, looked.seen, self.vgg.dtype)
        vectors = torch.cat([self.network.vectors[slots], encoded])
        targets = {layer: torch.cat([grams, looked.grams[layer]]) for layer, grams in named.items()}
        return vectors, targets

    def _losses(self, photos: Tensor, slots: Tensor, targets: dict[str, Tensor]) -> BatchLosses:
        losses, named = super()._losses(photos, slots, targets), self.config.named
        edges = 1 - edge_similarities(losses.stylised[named:], photos[named:])
        total = losses.total + self.config.encoded_edges * edges.sum() / len(photos)
        parts = torch.cat([losses.parts[:-1], edges.mean().detach()[None]])
        return with_told(BatchLosses(total, parts, losses.stylised), self.told, self.config.tell)

    def _write_sheet(self, photos: Sequence[Path]) -> None:
        super()._write_sheet(photos)
        styled = self.averaged()
        encoder = StyleEncoder(styled.vectors.detach(), self.config.hidden)
        encoder.load_state_dict({name: value.cpu() for name, value in self.network.encoder.state_dict().items()})
        for name, value in encoder.named_parameters():
            value.data.copy_(self.average[ENCODER + name])
        network = EncodedNetwork(styled.transformer, styled.vectors.detach(), encoder)
        path = self.folder / f"encoded_{self.step:06d}.jpg"
        encoder_sheet(path, network, self.corpus, photos, self.config.encoded_side)
