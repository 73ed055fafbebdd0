"""Training and publishing of a style encoder for a published conditional model, whose convolutions stay as they are.

The loop, the losses and the checkpoints are those of `export.train`: in the place of a slot the network is told the
painting's statistics.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: the Linux wheels report home otherwise
import onnxruntime  # type: ignore[import-untyped]

from export.corpus import Corpus
from export.data import ahead, load_picture
from export.networks.style_encoder import StyleEncoder, padded, statistics
from export.publish import GRAPH, PIXELS, checksums, now, staged, write_card
from export.sheet import contact_sheet, stylise, to_image
from export.to_onnx import SMALLEST_SIDE, keep_in_half, load_graph, write_onnx
from export.train import CHECKPOINT, StyledNetwork, TrainConfig, Trainer, last_losses
from export.verify import GraphDiffers
from service.gatys.losses import TRAINING_STYLE_LAYERS, grams_of
from service.gatys.pictures import to_pixels
from service.gatys.transformer import Transformer, graph_weights
from service.gatys.vgg import VGG
from service.models.store import CARD, PHOTO, Card, ModelStore, TensorSpec, VectorsOf

STREAM = 5  # of random numbers: photos, slots and paintings have others
NORMALISED_BY, AT_ONCE = 256, 4  # paintings whose statistics set the encoder's unit
SHEET_PAINTINGS = 5
BLOCK = 16  # steps' paintings whose Grams are kept at a time: 22 MB for each of a batch
TOLERANCE = 2e-2  # of a vector's numbers, whose spread is about 1: the graph's perceptron is kept in fp16
SHAPES = ((256, 256), (97, 130), (33, 500), (2, 2), (1, 1))


@dataclass(frozen=True)
class EncoderConfig(TrainConfig):
    """As TrainConfig; `rank` as `StyleEncoder` has it; what is `held_out` is `Corpus.read`'s. A painting is learnt from
    `painting_uses` times, with other photos, before it is cut out anew. `model` and its graph's sha256 say whose
    vectors it learns to make; the corpus' sha256 is of its names."""

    learning_rate: float = 1e-3
    painting_side: int = 256
    painting_uses: int = 4
    hidden: int = 512
    rank: int = 0
    held_out: int = 30
    held_out_prefix: str = "wikiart_"
    model: str = ""
    model_sha256: str = ""
    corpus_sha256: str = ""


class EncodedNetwork(StyledNetwork):
    """A frozen transformer and the encoder that makes its vectors; `vectors` are those of the named styles."""

    def __init__(self, transformer: Transformer, vectors: Tensor, encoder: StyleEncoder) -> None:
        super().__init__(transformer, vectors)
        self.requires_grad_(False)
        self.encoder = encoder

    def forward(self, photos: Tensor, slots: Tensor, spikes: list[Tensor] | None = None) -> Tensor:
        """Every photo in the style of its row of `slots`, which are statistics here: (N, 4032)."""
        with torch.autocast(photos.device.type, enabled=False):  # a vector's numbers are worth fp32
            style = self.encoder(slots.float())
        stylised: Tensor = self.transformer(photos, style, spikes)
        return stylised


class EncoderTrainer(Trainer):
    """A Trainer of the encoder alone, on a corpus in the place of named paintings."""

    config: EncoderConfig
    network: EncodedNetwork

    def __init__(
        self, config: EncoderConfig, model: Path, corpus: Corpus, content: Path, vgg_weights: Path, folder: Path,
        *, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, compiled: bool = False, start: Path | None = None,
    ) -> None:  # fmt: skip
        """As Trainer; `model` is <store>/<model>/<version>, `start` an encoder, a run's or a published one, of this
        model or of another, to begin with. Raises ValueError where the model takes no vectors, or that encoder is
        wider."""
        torch.manual_seed(config.seed)  # the encoder's first weights
        self._looked: tuple[int, Tensor, dict[str, Tensor]] | None = None  # a block's number, and what `_look` gives
        transformer, vectors, label, sha256 = _published(model)
        self.corpus = corpus
        config = dataclasses.replace(
            config, network=transformer.config, model=label, model_sha256=sha256, corpus_sha256=corpus.sha256
        )
        encoder = StyleEncoder(vectors, config.hidden, config.rank)
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
        if not self.checkpoint_path.exists():  # which has the encoder's unit
            give_unit(self.network.encoder, self.vgg, self.corpus, self.config.painting_side)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.encoder.parameters()), "ratio": 1.0}]

    def _styles(self, *pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What VGG says of the paintings of a block of steps is kept, and used `painting_uses` times in other orders:
        with small crops it takes longer for a painting than for all that is done with it."""
        uses, batch = self.config.painting_uses, self.config.batch
        block, step = divmod(self.step, BLOCK * uses)
        if self._looked is None or self._looked[0] != block:
            self._looked = block, *self._look(range(block * BLOCK, (block + 1) * BLOCK))
        _, found, grams = self._looked
        use, place = divmod(step, BLOCK)
        order = np.random.default_rng([self.config.seed, STREAM, block, use]).permutation(len(found))
        rows = torch.from_numpy(order[place * batch : (place + 1) * batch]).to(found.device)
        return found[rows], {layer: gram[rows] for layer, gram in grams.items()}

    def _look(self, steps: range) -> tuple[Tensor, dict[str, Tensor]]:
        """`statistics_and_grams` of all the paintings of some steps."""
        read = ahead(lambda step: self.corpus.batch(step, self.config.batch, self.config.painting_side), steps)
        looked = [statistics_and_grams(self.vgg, self._to_device(paintings)) for paintings in read]
        found, grams = zip(*looked, strict=True)
        return torch.cat(found), {layer: torch.cat([gram[layer] for gram in grams]) for layer in TRAINING_STYLE_LAYERS}

    def _finish(self) -> None:
        """The photo vector is the model's."""

    def _write_sheet(self, photos: Sequence[Path]) -> None:
        path = self.folder / f"sheet_{self.step:06d}.jpg"
        encoder_sheet(path, self.averaged(), self.vgg, self.corpus, photos, self.config.painting_side)


def statistics_and_grams(vgg: VGG, paintings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of paintings (N, 3, H, W): what an encoder is told, (N, 4032), and what is to come of it, {layer: (N, C, C)}."""
    with torch.no_grad():
        features = vgg(paintings, TRAINING_STYLE_LAYERS)
    return statistics(features), grams_of(features, TRAINING_STYLE_LAYERS)


def give_unit(encoder: StyleEncoder, vgg: VGG, corpus: Corpus, side: int) -> None:
    """Set the unit of those of the encoder's inputs that have none yet, by some of the corpus' paintings."""
    if not encoder.without_unit.any():
        return
    steps = range(-(-min(NORMALISED_BY, len(corpus.trained)) // AT_ONCE))
    read = ahead(lambda step: corpus.batch(step, AT_ONCE, side), steps)
    encoder.normalise_by(torch.cat([statistics_and_grams(vgg, batch.to(vgg.mean.device))[0] for batch in read]))


def encoder_sheet(
    path: Path, network: EncodedNetwork, vgg: VGG, corpus: Corpus, photos: Sequence[Path], side: int
) -> None:
    """Paintings that were held out x photos: the paintings in the first row. `network` is on the CPU."""
    chosen = corpus.held_out[:SHEET_PAINTINGS]
    paintings = [load_picture(path, short_side=side) for path in chosen]
    with torch.no_grad():
        found = [statistics_and_grams(vgg, picture.to(vgg.mean.device))[0].cpu() for picture in paintings]
        rows = [[to_image(load_picture(photos[0], short_side=side)), *map(to_image, paintings)]]
        for photo in photos:
            picture = load_picture(photo, short_side=side)
            styled = [stylise(_Told(network, row), picture, 0) for row in found]
            rows.append([to_image(picture), *map(to_image, styled)])
    contact_sheet(path, ["", *(path.stem[:40] for path in chosen)], rows)


class _Told(nn.Module):
    """A network that is told one painting's statistics (1, 4032), whatever the slot."""

    def __init__(self, network: EncodedNetwork, row: Tensor) -> None:
        super().__init__()
        self.network, self.row = network, row

    def forward(self, photos: Tensor, slots: Tensor) -> Tensor:
        stylised: Tensor = self.network(photos, self.row)
        return stylised


class EncoderGraph(nn.Module):
    """From a painting's pixels to its style vector, VGG's convolutions inside."""

    def __init__(self, vgg: VGG, encoder: StyleEncoder) -> None:
        super().__init__()
        self.vgg, self.encoder = vgg, encoder

    def forward(self, image: Tensor) -> Tensor:
        """image uint8 (N, H, W, 3) -> vectors (N, D), float32."""
        pictures = padded(image.permute(0, 3, 1, 2).float() / 255, SMALLEST_SIDE)
        vectors: Tensor = self.encoder(statistics(self.vgg(pictures, TRAINING_STYLE_LAYERS)))
        return vectors


def export_encoder(graph: EncoderGraph, path: Path) -> None:
    """Writes a self-contained ONNX file with dynamic N, H and W. Its weights are kept in fp16, which VGG's were
    published in, and cast when it is loaded: half the file."""
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


def publish_encoder(
    run: Path, model: Path, corpus: Corpus, vgg_weights: Path, target: Path, *, title: str, description: str
) -> Card:
    """Exports, verifies and publishes the encoder of a finished run, its own or one of a network and an encoder, as
    `target`, <store>/<name>/<version>, beside the model whose vectors it makes.

    Raises ValueError where the run is not finished or was for another model or corpus, GraphDiffers, FileExistsError.
    """
    state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    config = state["config"]
    _, vectors, label, sha256 = _published(model)
    if state["step"] < config["steps"]:
        raise ValueError(f"the run has done {state['step']} of {config['steps']} steps; go on with it first")
    if "model_sha256" in config:
        same, side = config["model_sha256"] == sha256, config["painting_side"]
    else:  # the network was trained along with it: it is known by its vectors
        own, side = state["average"]["vectors"], config["encoded_side"]
        same = torch.equal(own, vectors[: len(own)])
    if not same or config["corpus_sha256"] != corpus.sha256:
        raise ValueError(f"{run} was trained on a corpus that is not this one, or for another model than {label}")
    encoder = StyleEncoder(vectors, config["hidden"], config["rank"])
    encoder.load_state_dict(trained_encoder(run))
    graph = EncoderGraph(VGG.load(vgg_weights), encoder).eval()
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
            licence="Apache-2.0; VGG16's convolutions: Visual Geometry Group, Oxford, CC BY 4.0",
            created_at=now(),
            graph=GRAPH,
            inputs=(TensorSpec(name="image", dtype="uint8", shape=PIXELS),),
            outputs=(TensorSpec(name="vector", dtype="float32", shape=("N", vectors.shape[1])),),
            vectors_of=VectorsOf(model=label.partition("@")[0], sha256=sha256, painting_side_px=side),
            files=checksums(folder),
            training={
                "configuration": config,
                "steps": state["step"],
                "losses": {name: round(value, 4) for name, value in last_losses(state).items() if np.isfinite(value)},
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
    return {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}


def _published(model: Path) -> tuple[Transformer, Tensor, str, str]:
    """A conditional model's network, its named vectors (K, D), its label and its graph's sha256."""
    stored = ModelStore(model.parent.parent).load(model)
    card = stored.card
    if card.kind != "conditional" or card.graph is None:
        raise ValueError(f"{card.label} is a {card.kind} network: only a conditional one takes vectors")
    vectors = np.stack([vector for name, vector in stored.vectors.items() if name != PHOTO])
    transformer = load_graph(model / card.graph).transformer
    return transformer, torch.from_numpy(vectors), card.label, card.graph_sha256
