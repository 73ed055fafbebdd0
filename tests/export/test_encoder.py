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
from export.encoder import BLOCK, EncoderConfig, EncoderTrainer, Looked, learn_to_see, publish_encoder
from export.networks.style_encoder import FARTHEST, SEEN, StyleEncoder, statistics
from service.gatys.vgg import VGG
from service.models.store import ModelStore
from tests.export.conftest import PHOTOS, VGG_WEIGHTS, Published

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
    seeing_steps=3,
    held_out=2,
    held_out_prefix="",
)

MakeEncoder = Callable[..., EncoderTrainer]


@pytest.fixture
def model(published: Published) -> Path:
    """A published conditional model of two styles."""
    return published()


@pytest.fixture
def trainer_of(model: Path, corpus: Corpus, content: Path, tmp_path: Path) -> MakeEncoder:
    def make(run: str, config: EncoderConfig = TINY) -> EncoderTrainer:
        return EncoderTrainer(config, model, corpus, content, VGG_WEIGHTS, tmp_path / run, dtype=torch.float32)

    return make


def test_an_untrained_encoder_gives_the_mean_of_the_known_vectors() -> None:
    known = torch.randn(3, 20)
    assert torch.allclose(StyleEncoder(known, 8)(torch.rand(4, 3, 40, 37)), known.mean(0).expand(4, -1))


def test_an_encoder_begins_as_another() -> None:
    paintings = torch.rand(4, 3, 32, 32)
    other = StyleEncoder(torch.randn(3, 20), 8)
    other.take_unit(paintings, torch.rand(4, SEEN))
    torch.nn.init.normal_(other.layers[-1].weight)  # type: ignore[arg-type]
    same, shorter = StyleEncoder(torch.randn(5, 20), 8), StyleEncoder(torch.randn(3, 12), 8)
    same.begin_as(other.state_dict())
    assert same.sees
    assert same.tells
    assert torch.equal(same(paintings), other(paintings))
    shorter.begin_as(other.state_dict())
    assert torch.equal(shorter.layers[2].weight, other.layers[2].weight)  # type: ignore[arg-type]
    assert torch.allclose(shorter(paintings), shorter.mean.expand(4, -1))
    published = {n: v for n, v in other.state_dict().items() if not n.startswith(("tell.", "seen_"))}
    again = StyleEncoder(torch.randn(5, 20), 8)
    again.begin_as(published)
    assert torch.equal(again(paintings), other(paintings))
    assert again.sees
    assert not again.tells
    with pytest.raises(ValueError, match=r"another network: layers\.0\.weight"):
        StyleEncoder(torch.randn(3, 20), 7).begin_as(other.state_dict())
    for other_network in ({}, {"mean": other.mean}):
        with pytest.raises(ValueError, match="missing"):
            StyleEncoder(torch.randn(3, 20), 8).begin_as(other_network)


def test_an_encoder_learns_to_tell_what_vgg_sees() -> None:
    encoder = StyleEncoder(torch.randn(3, 20), 8)
    paintings, seen = torch.rand(6, 3, 32, 32), torch.rand(6, SEEN)
    encoder.take_unit(paintings, seen)
    before = encoder.centre.clone()
    _, told = encoder.study(paintings, seen, torch.float32)
    assert told.item() == pytest.approx(1, abs=0.2)  # of an untrained one: their variance
    told.backward()  # type: ignore[no-untyped-call]
    assert encoder.tell.weight.grad is not None
    assert encoder.tell.weight.grad.abs().max() > 0
    assert torch.allclose(before, encoder.centre, atol=1e-5)  # the same paintings
    encoder.study(paintings / 2, seen, torch.float32)
    assert not torch.allclose(before, encoder.centre, atol=1e-5)


def test_it_learns_to_see_before_it_is_asked_for_vectors(corpus: Corpus) -> None:
    vgg = VGG.load(VGG_WEIGHTS)
    paintings = corpus.batch(0, 8, 48)
    looked = Looked.at(paintings, vgg)

    def told_after(steps: int) -> float:
        torch.manual_seed(0)
        encoder = StyleEncoder(torch.randn(3, 20), 8)
        learn_to_see(encoder, vgg, corpus, 48, steps)
        assert encoder.tells
        assert torch.allclose(encoder(paintings), encoder.mean.expand(8, -1))
        convolutions = [parameter.clone() for parameter in encoder.convolutions.parameters()]
        learn_to_see(encoder, vgg, corpus, 48, steps)  # it can see already
        assert all(map(torch.equal, convolutions, encoder.convolutions.parameters()))
        return encoder.study(looked.paintings, looked.seen, torch.float32)[1].item()

    assert told_after(20) < 0.5 * told_after(0)


def test_one_that_can_see_only_learns_to_tell_it(corpus: Corpus) -> None:
    vgg, published = VGG.load(VGG_WEIGHTS), StyleEncoder(torch.randn(3, 20), 8)
    published.take_unit(corpus.batch(0, 4, 48), torch.rand(4, SEEN))
    encoder = StyleEncoder(torch.randn(3, 20), 8)
    encoder.begin_as({n: v for n, v in published.state_dict().items() if not n.startswith(("tell.", "seen_"))})
    learn_to_see(encoder, vgg, corpus, 48, 5)
    assert all(map(torch.equal, encoder.convolutions.parameters(), published.convolutions.parameters()))
    assert encoder.tell.weight.any()
    assert torch.allclose(encoder.spread, published.spread, atol=0.1)  # which follows what it is shown


def test_a_flat_picture_has_a_gradient() -> None:
    encoder = StyleEncoder(torch.randn(3, 20), 8)
    torch.nn.init.normal_(encoder.layers[-1].weight)  # type: ignore[arg-type]
    encoder(torch.ones(1, 3, 16, 16)).square().sum().backward()
    assert all(found.grad.isfinite().all() for found in encoder.parameters() if found.grad is not None)
    assert encoder.convolutions[0].weight.grad.any()  # type: ignore[union-attr,operator]


def test_no_painting_gets_far_from_the_known_styles() -> None:
    encoder = StyleEncoder(torch.randn(3, 20), 8)
    torch.nn.init.normal_(encoder.layers[-1].weight, std=1e3)  # type: ignore[arg-type]
    farthest = ((encoder(torch.rand(4, 3, 32, 32)) - encoder.mean) / encoder.basis).abs().max()
    assert farthest.item() == pytest.approx(FARTHEST, rel=1e-3)


def test_statistics_are_those_of_every_channel() -> None:
    layers = [torch.rand(2, 3, 5, 7), torch.zeros(2, 4, 1, 1)]
    found = statistics(layers)
    assert found.shape == (2, 14)
    assert torch.allclose(found[:, :3].expm1(), layers[0].mean((2, 3)))
    assert torch.allclose(found[:, 3:6].expm1(), layers[0].std((2, 3), correction=0), atol=1e-6)
    assert found[:, 6:].abs().max() < 2e-4


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
    assert all(name.startswith("encoder.") for name in moved)
    assert {"encoder.convolutions.0.weight", "encoder.layers.4.weight", "encoder.tell.weight"} <= moved
    rates = {len(group["params"]): group["lr"] for group in whole.optimizer.param_groups}
    assert rates[12] == pytest.approx(rates[8] / 20)  # six convolutions; three layers and what tells
    with pytest.raises(ValueError, match="hidden"):
        trainer_of("halves", replace(TINY, hidden=24))


def test_a_painting_is_learnt_from_as_often_as_asked_in_other_company(trainer_of: MakeEncoder, corpus: Corpus) -> None:
    trainer = trainer_of("uses", replace(TINY, painting_uses=2))
    trainer.network.encoder.layers[-1].weight.data.normal_()  # type: ignore[operator]
    given: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for trainer.step in range(2 * BLOCK):
        vectors, grams = trainer._styles()
        given.append((vectors.detach(), grams))
    found = torch.cat([grams["relu1_2"].flatten(1) for _, grams in given])
    _, times = torch.unique(found, dim=0, return_counts=True)
    assert times.tolist() == [2] * (BLOCK * TINY.batch)
    assert not torch.equal(found[: len(times)], found[len(times) :])
    paintings = torch.cat([corpus.batch(step, TINY.batch, TINY.painting_side) for step in range(BLOCK)])
    looked = Looked.at(paintings, trainer.vgg)
    (row,) = (looked.grams["relu1_2"].flatten(1) - found[:1]).abs().sum(1).argmin(keepdim=True)
    assert torch.allclose(given[0][1]["relu3_3"][0], looked.grams["relu3_3"][row], rtol=1e-4)
    with torch.no_grad():
        made = trainer.network.encoder(paintings[row : row + 1])[0]
    assert torch.allclose(given[0][0][0], made, atol=0.3)  # the unit has moved since
    trainer.step = 2 * BLOCK
    assert not (trainer._styles()[1]["relu1_2"].flatten(1)[:1] == found).all(1).any()  # others, from here on


def test_an_encoder_is_published_with_what_it_was_made_for(
    trainer_of: MakeEncoder, model: Path, corpus: Corpus, content: Path, tmp_path: Path
) -> None:
    run, target = tmp_path / "run_encoder", tmp_path / "store" / "arbitrary" / "1"
    words = {"title": "Any", "description": "For tests"}
    trainer = trainer_of("run_encoder")
    trainer.run(until=3)
    with pytest.raises(ValueError, match="3 of 6 steps"):
        publish_encoder(run, model, corpus, target, **words)
    trainer.run(sheet_photos=[PHOTOS / "coffee.jpg"])
    assert (run / "losses.csv").exists()
    assert (run / "sheet_000006.jpg").exists()
    card = publish_encoder(run, model, corpus, target, **words)
    stored = ModelStore(tmp_path / "store").load(target)
    network = ModelStore(tmp_path / "store").load(model)
    assert card.vectors_of is not None
    assert card.dimension == network.card.dimension
    assert card.vectors_of.sha256 == network.card.files["model.onnx"]
    assert card.training["held_out"] == [path.name for path in corpus.held_out]
    assert len(stored.graph) < 4e6  # kept in fp16
    assert [kept.card.name for kept in ModelStore(tmp_path / "store").networks()] == ["tiny"]

    session = onnxruntime.InferenceSession(stored.graph, providers=["CPUExecutionProvider"])
    picture = np.asarray(Image.open(corpus.trained[0]).convert("RGB"))
    (found,) = session.run(None, {"image": picture[None]})
    with torch.no_grad():
        wanted = trainer.averaged().encoder(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255).numpy()
    assert np.abs(found - wanted).max() < 0.02
    (white,) = session.run(None, {"image": np.full((1, 2, 2, 3), 255, np.uint8)})
    assert np.isfinite(white).all()
    assert np.abs(white - found).max() > 1e-6

    again = EncoderTrainer(TINY, model, corpus, content, VGG_WEIGHTS, tmp_path / "again", start=target)
    for part in ("convolutions", "layers"):
        mine, theirs = (getattr(found.encoder, part).state_dict() for found in (again.network, trainer.averaged()))
        assert all(torch.allclose(value, theirs[name], atol=1e-3) for name, value in mine.items())

    shutil.rmtree(target)
    with pytest.raises(ValueError, match="another"):
        publish_encoder(run, model, replace(corpus, trained=corpus.trained[:1]), target, **words)
    assert not target.exists()
    assert not list(target.parent.glob(".publishing-*"))
