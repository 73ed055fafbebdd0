"""A network and its encoder, trained at the same time: what moves, what goes on to the bit, and what is published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from export.corpus import Corpus
from export.data import Painting
from export.encoder import publish_encoder
from export.interpolate import interpolate
from export.joint import JointConfig, JointTrainer
from export.publish import publish
from export.train import CHECKPOINT, Run, TrainConfig
from service.models.store import ModelStore
from tests.export.conftest import PHOTOS, ROOT, TINY, VGG_WEIGHTS

TINY_JOINT = JointConfig(
    **{field.name: getattr(TINY, field.name) for field in fields(TrainConfig)} | {"batch": 4},
    encoded_side=48,
    hidden=16,
    seeing_steps=3,
    held_out=2,
    held_out_prefix="",
)

MakeJoint = Callable[..., JointTrainer]


@pytest.fixture
def joint(paintings: list[Painting], corpus: Corpus, content: Path, tmp_path: Path) -> MakeJoint:
    def make(run: str, config: JointConfig = TINY_JOINT, start_encoder: Path | None = None) -> JointTrainer:
        folder = tmp_path / run
        return JointTrainer(
            config, paintings, corpus, content, VGG_WEIGHTS, folder, dtype=torch.float32, start_encoder=start_encoder
        )

    return make


def test_network_and_encoder_move_together_and_go_on_to_the_bit(joint: MakeJoint) -> None:
    whole = joint("whole")
    before = {name: value.clone() for name, value in whole.network.named_parameters()}
    whole.run(sheet_photos=[PHOTOS / "coffee.jpg"])
    joint("halves").run(until=3)
    resumed = joint("halves")
    assert resumed.step == 3
    resumed.run()
    after, again = whole.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"vectors", "transformer.last.convolution.weight", "encoder.layers.4.weight"} <= moved
    for sheet in ("sheet_000006.jpg", "encoded_000006.jpg"):
        assert (whole.folder / sheet).exists()
    with pytest.raises(ValueError, match="encoded_edges"):
        joint("halves", replace(TINY_JOINT, encoded_edges=1.0))


def test_a_network_that_nobody_trained_lets_its_vectors_go_anywhere(joint: MakeJoint) -> None:
    assert (joint("run").network.encoder.basis == 1).all()


def test_half_of_a_batch_is_named_and_half_encoded(joint: MakeJoint) -> None:
    trainer = joint("run")
    photos, paintings = trainer._read(0)
    assert (len(photos), len(paintings)) == (4, 2)
    vectors, targets = trainer._styles(paintings)
    assert trainer.told.item() > 0
    assert torch.equal(vectors[:2], trainer.network.vectors[trainer.slots(0)])
    assert {len(grams) for grams in targets.values()} == {4}
    with pytest.raises(ValueError, match="even"):
        replace(TINY_JOINT, batch=3)


def test_both_are_published_of_one_run(
    joint: MakeJoint, paintings: list[Painting], corpus: Corpus, tmp_path: Path
) -> None:
    trainer, store = joint("run"), tmp_path / "store"
    trainer.run()
    run, words = tmp_path / "run", {"title": "Any", "description": "For tests"}
    about = {"title": "Tiny", "description": "", "licence": "Apache-2.0"}
    publish(Run.load(run), paintings, store / "tiny" / "1", **about, preview_photo=PHOTOS / "coffee.jpg")
    card = publish_encoder(run, store / "tiny" / "1", corpus, store / "arbitrary" / "1", **words)
    network = ModelStore(store).load(store / "tiny" / "1").card
    assert card.vectors_of is not None
    assert card.vectors_of.sha256 == network.graph_sha256
    assert card.vectors_of.painting_side_px == TINY_JOINT.encoded_side
    joint("other", replace(TINY_JOINT, seed=1)).run()
    with pytest.raises(ValueError, match="another"):
        publish_encoder(tmp_path / "other", store / "tiny" / "1", corpus, store / "arbitrary" / "2", **words)


def test_an_encoder_goes_on_as_what_it_was(joint: MakeJoint, tmp_path: Path) -> None:
    first = joint("first")
    first.run()
    again = joint("again", replace(TINY_JOINT, seed=1), tmp_path / "first")
    wanted = {name: first.average.get(name, value) for name, value in first.network.state_dict().items()}
    for name, value in again.network.encoder.state_dict().items():
        assert torch.equal(value, wanted[f"encoder.{name}"]), name


def test_between_two_runs_lie_network_vectors_encoder_and_the_photo(joint: MakeJoint, tmp_path: Path) -> None:
    first, second = joint("first"), joint("second", replace(TINY_JOINT, seed=1))
    unfinished, target = joint("unfinished"), tmp_path / "between"
    first.run()
    second.run()
    unfinished.run(until=3)
    interpolate(second.folder, target, 0.25, start=first.folder, start_encoder=first.folder)
    found = torch.load(target / CHECKPOINT, weights_only=True)
    for name, weight in found["average"].items():
        assert torch.allclose(weight, 0.75 * first.average[name] + 0.25 * second.average[name], atol=1e-6), name
    assert first.photo_vector is not None
    assert second.photo_vector is not None
    assert torch.allclose(found["photo_vector"], 0.75 * first.photo_vector + 0.25 * second.photo_vector, atol=1e-6)
    run = Run.load(target)
    assert run.losses == {}
    assert run.config["interpolated"]["share"] == 0.25
    with pytest.raises(FileExistsError):
        interpolate(second.folder, target, 0.25, start=first.folder, start_encoder=first.folder)
    with pytest.raises(ValueError, match="has an encoder"):
        interpolate(second.folder, tmp_path / "half", 0.25, start=first.folder)
    with pytest.raises(ValueError, match="between 0 and 1"):
        interpolate(second.folder, tmp_path / "all", 1.0, start=first.folder)
    with pytest.raises(ValueError, match="3 of 6 steps"):
        interpolate(unfinished.folder, tmp_path / "early", 0.5, start=first.folder)
    with pytest.raises(ValueError, match="another network"):
        interpolate(second.folder, tmp_path / "other", 0.5, start=ROOT / "model_store" / "multistyle" / "2")
