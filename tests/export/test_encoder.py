"""The style encoder: what it learns, what it must not have seen, and the graph that is published."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from PIL import Image

from export.corpus import Corpus
from export.data import Painting
from export.encoder import BLOCK, EncoderConfig, EncoderTrainer, publish_encoder, statistics_and_grams
from export.networks.style_encoder import STATISTICS, StyleEncoder, statistics
from service.gatys.losses import TRAINING_STYLE_LAYERS
from service.gatys.vgg import VGG
from service.models.store import ModelStore
from tests.export.conftest import PHOTOS, VGG_WEIGHTS, MakeTrainer
from tests.export.test_publish import published

TINY = EncoderConfig(
    steps=6,
    small_steps=3,
    small_side=48,
    side=64,
    margin=4,
    batch=2,
    warmup_steps=2,
    painting_side=48,
    hidden=16,
    held_out=2,
    held_out_prefix="",
)

MakeEncoder = Callable[..., EncoderTrainer]


@pytest.fixture
def model(make_trainer: MakeTrainer, paintings: list[Painting], tmp_path: Path) -> Path:
    """A published conditional model of two styles."""
    target = tmp_path / "store" / "tiny" / "1"
    published(make_trainer, paintings, target)
    return target


@pytest.fixture
def trainer_of(model: Path, corpus: Corpus, content: Path, tmp_path: Path) -> MakeEncoder:
    def make(run: str, config: EncoderConfig = TINY) -> EncoderTrainer:
        return EncoderTrainer(config, model, corpus, content, VGG_WEIGHTS, tmp_path / run, dtype=torch.float32)

    return make


def test_an_untrained_encoder_gives_the_mean_of_the_known_vectors() -> None:
    known = torch.randn(3, 20)
    for rank in (0, 2):
        made = StyleEncoder(known, 8, rank)(torch.rand(4, STATISTICS) * 1000)
        assert torch.allclose(made, known.mean(0).expand(4, -1))
    with pytest.raises(ValueError, match="2 principal components"):
        StyleEncoder(known, 8, 3)


def test_an_encoder_begins_as_another_that_may_be_narrower_and_told_less() -> None:
    found = torch.rand(4, STATISTICS)
    other = StyleEncoder(torch.randn(3, 20), 8)
    other.normalise_by(found)
    torch.nn.init.normal_(other.layers[-1].weight)  # type: ignore[arg-type]
    wanted = other(found)
    wider, shorter = StyleEncoder(torch.randn(5, 20), 12), StyleEncoder(torch.randn(3, 12), 8)
    wider.begin_as(other.state_dict())
    assert torch.allclose(wider(found), wanted, atol=1e-5)
    shorter.begin_as(other.state_dict())
    assert torch.equal(shorter.layers[2].weight, other.layers[2].weight)  # type: ignore[arg-type]
    assert torch.allclose(shorter(found), shorter.mean.expand(4, -1))
    with pytest.raises(ValueError, match="wider"):
        StyleEncoder(torch.randn(3, 20), 7).begin_as(other.state_dict())

    less = other.state_dict()
    less |= {
        "centre": other.centre[:1920],
        "spread": other.spread[:1920],
        "layers.0.weight": less["layers.0.weight"][:, :1920],
    }
    more = StyleEncoder(torch.randn(3, 20), 8)
    more.begin_as(less)
    more.normalise_by(torch.rand(9, STATISTICS))
    assert torch.equal(more.spread[:1920], other.spread[:1920])
    assert not (more.spread == 1).any()
    before = more(found)
    assert torch.allclose(more(torch.cat([found[:, :1920], torch.rand(4, STATISTICS - 1920)], 1)), before)
    assert not torch.allclose(more(found.flip(0)), before)


def test_statistics_tell_how_channels_go_together() -> None:
    base = torch.rand(1, 64, 20, 20)
    mixed = base.clone()
    mixed[:, ::2] = base[:, ::2].flip(2, 3)  # every channel has the same mean and deviation as before
    others = {
        "relu2_2": torch.rand(1, 128, 9, 9),
        "relu3_3": torch.rand(1, 256, 5, 5),
        "relu4_3": torch.ones(1, 512, 3, 3),
    }
    first, second = (statistics({"relu1_2": features} | others) for features in (base, mixed))
    assert torch.allclose(first[:, :1920], second[:, :1920], atol=1e-6)
    assert (first - second).abs().max() > 0.05
    assert torch.isfinite(first).all()


def test_what_is_held_out_is_fixed_by_its_name_and_never_seen(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    by_digest = sorted(folder.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
    assert corpus.held_out == tuple(by_digest[:2])
    assert not {path.name for path in corpus.held_out} & {path.name for path in corpus.trained}
    for path in corpus.held_out:  # whoever reads it now, fails
        path.write_bytes(b"not a picture")
    assert corpus.batch(0, 40, 32).shape == (40, 3, 32, 32)


def test_a_step_has_the_same_paintings_whenever_it_is_asked_for(corpus: Corpus) -> None:
    assert torch.equal(corpus.batch(3, 4, 32), corpus.batch(3, 4, 32))
    assert not torch.equal(corpus.batch(3, 4, 32), corpus.batch(4, 4, 32))


def test_training_moves_the_encoder_alone_and_goes_on_to_the_bit(trainer_of: MakeEncoder) -> None:
    whole = trainer_of("whole")
    before = {name: value.clone() for name, value in whole.network.state_dict().items()}
    whole.run()
    trainer_of("halves").run(until=3)
    resumed = trainer_of("halves")
    assert resumed.step == 3
    resumed.run()
    after, again = whole.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("encoder.layers.") for name in moved)
    with pytest.raises(ValueError, match="hidden"):
        trainer_of("halves", replace(TINY, hidden=24))


def test_a_painting_is_learnt_from_as_often_as_asked_in_other_company(trainer_of: MakeEncoder, corpus: Corpus) -> None:
    trainer = trainer_of("uses", replace(TINY, painting_uses=2))
    given: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for trainer.step in range(2 * BLOCK):
        given.append(trainer._styles())
    found = torch.cat([statistics for statistics, _ in given])
    _, times = torch.unique(found, dim=0, return_counts=True)
    assert times.tolist() == [2] * (BLOCK * TINY.batch)
    assert not torch.equal(found[: len(times)], found[len(times) :])
    paintings = torch.cat([corpus.batch(step, TINY.batch, TINY.painting_side) for step in range(BLOCK)])
    wanted, grams = statistics_and_grams(trainer.vgg, paintings)
    (row,) = (wanted - found[:1]).abs().sum(1).argmin(keepdim=True)
    assert torch.allclose(given[0][1]["relu3_3"][0], grams["relu3_3"][row], rtol=1e-4)
    trainer.step = 2 * BLOCK
    assert not (trainer._styles()[0][:1] == found).all(1).any()  # others, from here on


def test_an_encoder_is_published_with_what_it_was_made_for(
    trainer_of: MakeEncoder, model: Path, corpus: Corpus, content: Path, tmp_path: Path
) -> None:
    run, target = tmp_path / "run_encoder", tmp_path / "store" / "arbitrary" / "1"
    words = {"title": "Any", "description": "For tests"}
    trainer = trainer_of("run_encoder")
    trainer.run(until=3)
    with pytest.raises(ValueError, match="3 of 6 steps"):
        publish_encoder(run, model, corpus, VGG_WEIGHTS, target, **words)
    trainer.run(sheet_photos=[PHOTOS / "coffee.jpg"])
    assert (run / "losses.csv").exists()
    assert (run / "sheet_000006.jpg").exists()
    card = publish_encoder(run, model, corpus, VGG_WEIGHTS, target, **words)
    stored = ModelStore(tmp_path / "store").load(target)
    network = ModelStore(tmp_path / "store").load(model)
    assert card.vectors_of is not None
    assert card.dimension == network.card.dimension
    assert card.vectors_of.sha256 == network.card.files["model.onnx"]
    assert card.training["held_out"] == [path.name for path in corpus.held_out]
    assert len(stored.graph) < 20e6  # VGG's weights are kept in fp16
    assert [kept.card.name for kept in ModelStore(tmp_path / "store").networks()] == ["tiny"]

    session = onnxruntime.InferenceSession(stored.graph, providers=["CPUExecutionProvider"])
    picture = np.asarray(Image.open(corpus.trained[0]).convert("RGB"))
    (found,) = session.run(None, {"image": picture[None]})
    features = VGG.load(VGG_WEIGHTS)(
        torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255, TRAINING_STYLE_LAYERS
    )
    with torch.no_grad():
        wanted = trainer.averaged().encoder(statistics(features)).numpy()
    assert np.abs(found - wanted).max() < 0.02
    (white,) = session.run(None, {"image": np.full((1, 2, 2, 3), 255, np.uint8)})
    assert np.isfinite(white).all()
    assert np.abs(white - found).max() > 1e-6

    again = EncoderTrainer(TINY, model, corpus, content, VGG_WEIGHTS, tmp_path / "again", start=target)
    for name, value in again.network.encoder.layers.state_dict().items():
        assert torch.allclose(value, trainer.averaged().encoder.layers.state_dict()[name], atol=1e-3), name

    shutil.rmtree(target)
    with pytest.raises(ValueError, match="another"):
        publish_encoder(run, model, replace(corpus, trained=corpus.trained[:1]), VGG_WEIGHTS, target, **words)
    assert not target.exists()
    assert not list(target.parent.glob(".publishing-*"))
