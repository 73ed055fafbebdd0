"""Training and publishing of a style encoder for a published conditional model, whose convolutions stay as they are.

The loop, the losses and the checkpoints are those of `export.train`: in the place of a slot the network is told the
vector that the encoder makes of a painting.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from tqdm import tqdm

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: the Linux wheels report home otherwise
import onnxruntime  # type: ignore[import-untyped]

from export.corpus import Corpus
from export.data import ahead, load_picture
from export.networks.style_encoder import StyleEncoder, padded, seen_by_vgg
from export.publish import GRAPH, PIXELS, checksums, now, staged, write_card
from export.sheet import contact_sheet, stylise, to_image
from export.to_onnx import SMALLEST_SIDE, keep_in_half, load_graph, write_onnx
from export.train import CHECKPOINT, LOSS_NAMES, StyledNetwork, TrainConfig, Trainer, check_finished, last_losses
from export.verify import GraphDiffers
from service.gatys.losses import TRAINING_STYLE_LAYERS, grams_of
from service.gatys.perceptual import BatchLosses, learning_rate
from service.gatys.pictures import to_pixels, to_tensor
from service.gatys.transformer import Transformer, graph_weights
from service.gatys.vgg import VGG
from service.models.store import CARD, PHOTO, Card, ModelStore, TensorSpec, VectorsOf

ENCODER = "encoder."  # what the names of its weights begin with, beside a network's
STREAM = 5  # of random numbers: photos, slots and paintings have others
MEASURED, AT_ONCE = 256, 4  # paintings whose statistics set the encoder's unit
FIRST_PAINTINGS, FIRST_USES = 1024, 2  # to learn to see by: so many at most, and so many crops of each
FIRST_BATCH, FIRST_RATE, FIRST_WARMUP = 8, 5e-4, 50
CONVOLUTIONS_RATE = 0.05  # over the rest of an encoder's
SHEET_PAINTINGS = 5
BLOCK = 16  # steps' paintings whose Grams are kept at a time: 34 MB for each of a batch
TOLERANCE = 2e-2  # of a vector's numbers, whose spread is 0.4 and more: the graph's weights are kept in fp16
SHAPES = ((256, 256), (97, 130), (33, 500), (2, 2), (1, 1))


@dataclass(frozen=True)
class EncoderConfig(TrainConfig):
    """As TrainConfig; what is `held_out` is `Corpus.read`'s. A painting is learnt from `painting_uses` times, with
    other photos, before it is cut out anew. One that has seen nothing yet learns to see first, in `seeing_steps`;
    `tell` is the weight of what it tells of VGG's statistics from then on. `model` and its network's sha256 say whose
    vectors it learns to make; the corpus' sha256 is of its names."""

    learning_rate: float = 1e-3
    painting_side: int = 256
    painting_uses: int = 4
    hidden: int = 768
    seeing_steps: int = 2000
    tell: float = 1.0
    held_out: int = 30
    held_out_prefix: str = "wikiart_"
    model: str = ""
    model_sha256: str = ""
    corpus_sha256: str = ""


class EncodedNetwork(StyledNetwork):
    """A transformer, frozen as it comes, and the encoder that makes its vectors; `vectors` are those of the named
    styles."""

    def __init__(self, transformer: Transformer, vectors: Tensor, encoder: StyleEncoder) -> None:
        super().__init__(transformer, vectors)
        self.requires_grad_(False)
        self.encoder = encoder

    def forward(self, photos: Tensor, slots: Tensor, spikes: list[Tensor] | None = None) -> Tensor:
        """Every photo in the style of its row of `slots`, which are vectors here: (N, D)."""
        stylised: Tensor = self.transformer(photos, slots, spikes)
        return stylised


@dataclass(frozen=True)
class Looked:
    """Paintings (N, 3, H, W) and what VGG has of them: what an encoder learns to tell, (N, 1920), and what is to come
    of its vectors, {layer: (N, C, C)}."""

    paintings: Tensor
    seen: Tensor
    grams: dict[str, Tensor]

    @classmethod
    def at(cls, paintings: Tensor, vgg: VGG) -> Looked:
        with torch.no_grad():
            features = vgg(paintings, TRAINING_STYLE_LAYERS)
        return cls(paintings, seen_by_vgg(features), grams_of(features, TRAINING_STYLE_LAYERS))

    @classmethod
    def all_of(cls, parts: Sequence[Looked]) -> Looked:
        grams = {layer: torch.cat([part.grams[layer] for part in parts]) for layer in parts[0].grams}
        return cls(torch.cat([part.paintings for part in parts]), torch.cat([part.seen for part in parts]), grams)

    def __getitem__(self, rows: Tensor) -> Looked:
        return Looked(self.paintings[rows], self.seen[rows], {layer: gram[rows] for layer, gram in self.grams.items()})


class EncoderTrainer(Trainer):
    """A Trainer of the encoder alone, on a corpus in the place of named paintings."""

    loss_names: ClassVar[tuple[str, ...]] = (*LOSS_NAMES, "told")

    config: EncoderConfig
    network: EncodedNetwork
    told: Tensor  # how far off the encoder told what VGG sees of this step's paintings

    def __init__(
        self, config: EncoderConfig, model: Path, corpus: Corpus, content: Path, vgg_weights: Path, folder: Path,
        *, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, compiled: bool = False, start: Path | None = None,
    ) -> None:  # fmt: skip
        """As Trainer; `model` is <store>/<model>/<version>, `start` an encoder, a run's or a published one, of this
        model or of another, to begin with. Raises ValueError where the model takes no vectors, or that encoder is
        another network."""
        torch.manual_seed(config.seed)  # the encoder's first weights
        self._looked: tuple[int, Looked] | None = None  # a block's number, and its paintings
        transformer, vectors, card = _published(model)
        self.corpus = corpus
        config = dataclasses.replace(
            config,
            network=transformer.config,
            model=card.label,
            model_sha256=card.network_sha256,
            corpus_sha256=corpus.sha256,
        )
        encoder = StyleEncoder(vectors, config.hidden)
        network = EncodedNetwork(transformer, vectors, encoder)
        if start is not None:
            encoder.begin_as(trained_encoder(start))
            config = dataclasses.replace(config, started_from=str(start))
        super().__init__(
            config, [], content, vgg_weights, folder, device=device, dtype=dtype, compiled=compiled, start=network
        )

    def averaged(self) -> EncodedNetwork:
        network = copy.deepcopy(self.network).requires_grad_(False)
        for name, value in network.named_parameters():
            value.copy_(self.average[name])
        return network.cpu().eval()

    def _prepare(self) -> None:
        if not self.checkpoint_path.exists():
            side, steps = self.config.painting_side, self.config.seeing_steps
            learn_to_see(self.network.encoder, self.vgg, self.corpus, side, steps)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return encoder_groups(self.network.encoder, 1.0)

    def _losses(self, photos: Tensor, slots: Tensor, targets: dict[str, Tensor]) -> BatchLosses:
        return with_told(super()._losses(photos, slots, targets), self.told, self.config.tell)

    def _styles(self, *pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What VGG says of the paintings of a block of steps is kept, and used `painting_uses` times in other orders:
        with small crops it takes longer for a painting than for all that is done with it."""
        uses, batch = self.config.painting_uses, self.config.batch
        block, step = divmod(self.step, BLOCK * uses)
        if self._looked is None or self._looked[0] != block:
            self._looked = block, self._look(range(block * BLOCK, (block + 1) * BLOCK))
        looked = self._looked[1]
        use, place = divmod(step, BLOCK)
        order = np.random.default_rng([self.config.seed, STREAM, block, use]).permutation(len(looked.seen))
        given = looked[torch.from_numpy(order[place * batch : (place + 1) * batch]).to(looked.seen.device)]
        vectors, self.told = self.network.encoder.study(given.paintings, given.seen, self.vgg.dtype)
        return vectors, given.grams

    def _look(self, steps: range) -> Looked:
        """All the paintings of some steps."""
        read = ahead(lambda step: self.corpus.batch(step, self.config.batch, self.config.painting_side), steps)
        return Looked.all_of([Looked.at(self._to_device(paintings), self.vgg) for paintings in read])

    def _finish(self) -> None:
        """The photo vector is the model's."""

    def _write_sheet(self, photos: Sequence[Path]) -> None:
        path = self.folder / f"sheet_{self.step:06d}.jpg"
        encoder_sheet(path, self.averaged(), self.corpus, photos, self.config.painting_side)


def encoder_groups(encoder: StyleEncoder, ratio: float) -> list[dict[str, Any]]:
    """An encoder's parameters and their learning rates over the configuration's. Its convolutions, which nothing holds
    but the units behind them, would grow without end if they moved as fast as the rest."""
    slow = list(encoder.convolutions.parameters())
    fast = [*encoder.layers.parameters(), *encoder.tell.parameters()]
    return [{"params": fast, "ratio": ratio}, {"params": slow, "ratio": CONVOLUTIONS_RATE * ratio}]


def with_told(losses: BatchLosses, told: Tensor, weight: float) -> BatchLosses:
    """The losses, and how far off the encoder tells what VGG sees, a scalar."""
    parts = torch.cat([losses.parts, told.detach()[None]])
    return BatchLosses(losses.total + weight * told, parts, losses.stylised)


def learn_to_see(encoder: StyleEncoder, vgg: VGG, corpus: Corpus, side: int, steps: int) -> None:
    """An encoder that was never trained gets its unit, and learns to tell what VGG sees of the corpus' paintings, cut
    to `side` px, so that it is asked for vectors only when it can see. A published one can see and no longer tells it:
    its convolutions stay as they are. This is not resumed: a run that is stopped here begins anew."""
    if encoder.tells:
        return
    many = min(FIRST_PAINTINGS, FIRST_USES * len(corpus.trained))
    kept, found = [], []
    for paintings in ahead(lambda step: corpus.batch(step, AT_ONCE, side), range(-(-many // AT_ONCE))):
        with torch.no_grad():
            found.append(seen_by_vgg(vgg(paintings.to(vgg.mean.device), TRAINING_STYLE_LAYERS)))
        kept.append(to_pixels(paintings))
    pixels, seen = np.concatenate(kept), torch.cat(found)
    learning = [*encoder.tell.parameters(), *(() if encoder.sees else encoder.convolutions.parameters())]
    encoder.take_unit(to_tensor(pixels[:MEASURED]).to(seen.device), seen[:MEASURED])
    optimizer = torch.optim.Adam(learning, betas=(0.9, 0.99))
    rng = np.random.default_rng([corpus.seed, STREAM])
    for step in tqdm(range(steps), desc="seeing", unit="step", mininterval=5):
        rows = rng.permutation(len(pixels))[:FIRST_BATCH]
        told = encoder.study_to_tell(to_tensor(pixels[rows]).to(seen.device), seen[rows], vgg.dtype)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, FIRST_RATE, FIRST_WARMUP)
        optimizer.zero_grad()
        told.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def encoder_sheet(path: Path, network: EncodedNetwork, corpus: Corpus, photos: Sequence[Path], side: int) -> None:
    """Paintings that were held out x photos: the paintings in the first row. `network` is on the CPU."""
    chosen = corpus.held_out[:SHEET_PAINTINGS]
    paintings = [load_picture(path, short_side=side) for path in chosen]
    with torch.no_grad():
        vectors = [network.encoder(painting) for painting in paintings]
        rows = [[to_image(load_picture(photos[0], short_side=side)), *map(to_image, paintings)]]
        for photo in photos:
            picture = load_picture(photo, short_side=side)
            styled = [stylise(_Told(network, vector), picture, 0) for vector in vectors]
            rows.append([to_image(picture), *map(to_image, styled)])
    contact_sheet(path, ["", *(path.stem[:40] for path in chosen)], rows)


class _Told(nn.Module):
    """A network that is told one vector (1, D), whatever the slot."""

    def __init__(self, network: EncodedNetwork, vector: Tensor) -> None:
        super().__init__()
        self.network, self.vector = network, vector

    def forward(self, photos: Tensor, slots: Tensor) -> Tensor:
        stylised: Tensor = self.network(photos, self.vector)
        return stylised


class EncoderGraph(nn.Module):
    """From a painting's pixels to its style vector."""

    def __init__(self, encoder: StyleEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """image uint8 (N, H, W, 3) -> vectors (N, D), float32."""
        vectors: Tensor = self.encoder(padded(image.permute(0, 3, 1, 2).float() / 255, SMALLEST_SIDE))
        return vectors


def export_encoder(graph: EncoderGraph, path: Path) -> None:
    """Writes a self-contained ONNX file with dynamic N, H and W. Its weights are kept in fp16 and cast when it is
    loaded: half the file."""
    batch, height, width = Dim("N", min=1, max=64), Dim("H", min=1, max=16384), Dim("W", min=1, max=16384)
    example = (torch.zeros(2, 37, 50, 3, dtype=torch.uint8),)
    write_onnx(graph.eval(), example, path, ["image"], "vector", [{0: batch, 1: height, 2: width}])
    keep_in_half(path, lossless=False)


def verify_encoder(graph: EncoderGraph, path: Path, pictures: Sequence[np.ndarray] = ()) -> float:
    """The largest difference of any number of a vector between torch and the ONNX file, over noise of odd sizes and
    `pictures` uint8 (H, W, 3). Raises GraphDiffers above TOLERANCE."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    largest = 0.0
    for image in [*images, np.full((8, 8, 3), 255, np.uint8), *pictures]:
        (found,) = session.run(None, {"image": image[None]})
        with torch.no_grad():
            wanted = graph(torch.from_numpy(image)[None]).numpy()
        largest = max(largest, float(np.abs(found - wanted).max()))
    if not largest <= TOLERANCE:
        raise GraphDiffers(f"{path.name} differs from torch by {largest:.4f}, more than {TOLERANCE}")
    return largest


def publish_encoder(run: Path, model: Path, corpus: Corpus, target: Path, *, title: str, description: str) -> Card:
    """Exports, verifies and publishes the encoder of a finished run, its own or one of a network and an encoder, as
    `target`, <store>/<name>/<version>, beside the model whose vectors it makes.

    Raises ValueError where the run is not finished or was for another model or corpus, GraphDiffers, FileExistsError.
    """
    state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    config = state["config"]
    _, vectors, of = _published(model)
    check_finished(state["step"], config)
    if "model_sha256" in config:
        same, side = config["model_sha256"] == of.network_sha256, config["painting_side"]
    else:  # the network was trained along with it: it is known by its vectors
        own, side = state["average"]["vectors"], config["encoded_side"]
        same = torch.equal(own, vectors[: len(own)])
    if not same or config["corpus_sha256"] != corpus.sha256:
        raise ValueError(f"{run} was trained on a corpus that is not this one, or for another model than {of.label}")
    encoder = StyleEncoder(vectors, config["hidden"])
    encoder.load_state_dict(trained_encoder(run))
    graph = EncoderGraph(encoder).eval()
    with staged(target) as folder:
        export_encoder(graph, folder / GRAPH)
        shown = [to_pixels(load_picture(path, short_side=192))[0] for path in corpus.held_out[:2]]
        difference = verify_encoder(graph, folder / GRAPH, shown)
        card = Card(
            schema=1,
            name=target.parent.name,
            version=int(target.name),
            kind="encoder",
            title=title,
            description=description,
            licence="Apache-2.0",
            created_at=now(),
            graph=GRAPH,
            inputs=(TensorSpec(name="image", dtype="uint8", shape=PIXELS),),
            outputs=(TensorSpec(name="vector", dtype="float32", shape=("N", vectors.shape[1])),),
            vectors_of=VectorsOf(model=of.name, sha256=of.network_sha256, painting_side_px=side),
            files=checksums(folder),
            training={
                "configuration": config,
                "steps": state["step"],
                "losses": {name: round(value, 4) for name, value in last_losses(state).items()},
                "held_out": [path.name for path in corpus.held_out],
            },
            quality={"verify": {"largest_difference": difference}},
        )
        write_card(folder, card)
    return card


def trained_encoder(source: Path) -> dict[str, Tensor]:
    """The weights of a run's folder, or of a published encoder's."""
    weights: dict[str, Tensor]
    if (source / CARD).exists():
        weights = graph_weights((source / GRAPH).read_bytes())
    else:
        state = torch.load(source / CHECKPOINT, map_location="cpu", weights_only=True)
        weights = state["network"] | state["average"]
    return {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}


def _published(model: Path) -> tuple[Transformer, Tensor, Card]:
    """A conditional model's network, its named vectors (K, D), and its card."""
    stored = ModelStore(model.parent.parent).load(model)
    card = stored.card
    if card.kind != "conditional" or card.graph is None:
        raise ValueError(f"{card.label} is a {card.kind} network: only a conditional one takes vectors")
    vectors = np.stack([vector for name, vector in stored.vectors.items() if name != PHOTO])
    transformer = load_graph(model / card.graph).transformer
    return transformer, torch.from_numpy(vectors), card
