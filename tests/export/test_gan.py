from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from export.__main__ import main
from export.data import Painting
from export.gan import GanConfig, GanTrainer, PaintedPatches
from export.networks.discriminator import Discriminator, hinge_losses
from export.publish import publish
from export.start import starting_network
from export.train import Run
from service.gatys.pictures import to_tensor
from service.models.session import Session
from service.models.store import ModelStore
from tests.export.conftest import PHOTOS, TINY, VGG_WEIGHTS, MakeTrainer

MakeGan = Callable[..., GanTrainer]


@pytest.fixture
def make_gan(content: Path, paintings: list[Painting], tmp_path: Path) -> MakeGan:
    """Adversarial trainers of the tiny configuration; keyword arguments change it."""

    def make(run: str = "gan", start: Path | None = None, **changes: object) -> GanTrainer:
        config = GanConfig(**(vars(TINY) | {"ramp_steps": 2, "discriminator_widths": (4, 6)} | changes))
        network = None if start is None else starting_network(start, [painting.name for painting in paintings])
        return GanTrainer(config, paintings, content, VGG_WEIGHTS, tmp_path / run, dtype=torch.float32, start=network)

    return make


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in network.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_patch_of_its_size_is_judged_once_and_by_itself() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(3).eval()
    slots = torch.tensor([2, 0])
    assert discriminator.patch_side == 22
    assert discriminator(torch.rand(2, 3, 22, 22), slots).shape == (2, 1, 1, 1)
    pictures = torch.rand(2, 3, 46, 62)
    judged = discriminator(pictures, slots)
    assert judged.shape == (2, 1, 4, 6)
    alone = discriminator(pictures[..., 8:30, 16:38], slots)
    torch.testing.assert_close(judged[:, :, 1:2, 2:3], alone, rtol=1e-4, atol=1e-5)


def test_no_layer_enlarges_what_it_is_given() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(5)
    with torch.no_grad():
        for layer in (*discriminator.layers, discriminator.painted, discriminator.styles):
            layer.parametrizations.weight.original.mul_(10)
    for _ in range(20):  # of the power iteration, one a call
        discriminator(torch.rand(2, 3, 22, 22), torch.tensor([0, 1]))
    discriminator.eval()
    for layer in (*discriminator.layers, discriminator.painted, discriminator.styles):
        largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert 0.9 < float(largest) < 1.05


def test_the_same_patch_is_judged_by_the_style_it_should_have() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(2).eval()
    patch = torch.rand(1, 3, 22, 22)
    first, second = (float(discriminator(patch, torch.tensor([slot])).detach()) for slot in (0, 1))
    assert abs(first - second) > 1e-3


def test_hinge_losses_are_those_of_the_paper() -> None:
    real, made = hinge_losses(torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0]))
    assert float(real) == pytest.approx((0 + 0.5 + 2) / 3)
    assert float(made) == pytest.approx((0 + 0.5 + 2) / 3)
    assert float(hinge_losses(torch.tensor([0.25]), torch.tensor([0.0]))[0]) == pytest.approx(0.75)


def test_network_and_discriminator_learn_in_turns(make_gan: MakeGan) -> None:
    trainer = make_gan()
    photos, patches = trainer._read(0)
    judge, network = weights(trainer.discriminator), weights(trainer.network)
    slots, targets = trainer._styles(patches)
    trainer._losses(photos, slots, targets).total.backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is None for value in trainer.discriminator.parameters())
    assert all(value.grad is not None for value in trainer.network.parameters())
    trainer.optimizer.zero_grad()
    trainer._judge_step(patches)
    assert all(value.grad is None for value in trainer.network.parameters())
    assert same(weights(trainer.network), network)
    assert not same(weights(trainer.discriminator), judge)
    judge = weights(trainer.discriminator)
    super(GanTrainer, trainer)._train_step(photos, patches)
    assert same(weights(trainer.discriminator), judge)
    assert not same(weights(trainer.network), network)


def test_adversarial_weight_grows_from_nothing(make_gan: MakeGan) -> None:
    config = GanConfig(adversarial_weight=0.05, ramp_steps=100)
    assert [config.adversarial(step) for step in (0, 50, 100, 5000)] == pytest.approx([0, 0.025, 0.05, 0.05])
    one, other = make_gan("with", adversarial_weight=0.5), make_gan("without", adversarial_weight=0.0)
    one.run(until=2)
    other.run(until=2)  # step 0 has the weight 0 in both
    assert not same(weights(one.network), weights(other.network))


def test_resumed_run_comes_to_the_very_weights_of_an_uninterrupted_one(make_gan: MakeGan) -> None:
    stopped = make_gan("stopped")
    stopped.run(until=4)
    stopped._train_step(*stopped._read(4))  # lost
    resumed, whole = make_gan("stopped"), make_gan("whole")
    assert resumed.step == 4
    resumed.run()
    whole.run()
    assert same(weights(resumed.network), weights(whole.network))
    assert same(list(resumed.average.values()), list(whole.average.values()))
    torch.testing.assert_close(resumed.discriminator.state_dict(), whole.discriminator.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="adversarial_weight"):
        make_gan("whole", adversarial_weight=1.0)


def test_discriminator_learns_to_tell_paintings_from_what_is_made(make_gan: MakeGan, tmp_path: Path) -> None:
    trainer = make_gan(steps=100, small_steps=100, adversarial_weight=0.0, learning_rate=1e-6, discriminator_rate=4e-3)
    trainer.run()
    with (tmp_path / "gan" / "losses.csv").open() as file:
        first, last = csv.DictReader(file)
    assert float(last["real"]) + float(last["made"]) < 0.9 * (float(first["real"]) + float(first["made"]))
    assert float(last["real"]) + float(last["made"]) < 2  # what knowing nothing costs
    assert float(last["adversarial"]) > float(first["adversarial"])
    assert (tmp_path / "gan" / "losses.png").stat().st_size > 5_000


def test_patches_are_of_the_painting_of_their_slot_and_depend_on_seed_and_step(
    paintings: list[Painting], tmp_path: Path
) -> None:
    plain = []
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (90, 60), colour).save(tmp_path / f"{name}.png")
        plain.append(Painting(name, tmp_path / f"{name}.png", "", "", "", ""))
    blue, red = PaintedPatches(plain, 48, seed=1).batch(0, [1, 0], 32)
    assert blue.mean((1, 2)).tolist() == [0, 0, 1]
    assert red.mean((1, 2)).tolist() == [1, 0, 0]
    patches = PaintedPatches(paintings, 48, seed=1)
    assert torch.equal(patches.batch(3, [0, 1], 32), PaintedPatches(paintings, 48, seed=1).batch(3, [0, 1], 32))
    assert not torch.equal(patches.batch(3, [0, 1], 32), patches.batch(4, [0, 1], 32))


def test_adversarial_run_goes_the_way_of_the_others_to_the_service(
    make_trainer: MakeTrainer, make_gan: MakeGan, paintings: list[Painting], tmp_path: Path
) -> None:
    make_trainer("first").run(until=2)
    make_gan(start=tmp_path / "first", steps=2, started_from=str(tmp_path / "first")).run(
        sheet_photos=[PHOTOS / "coffee.jpg"]
    )
    assert (tmp_path / "gan" / "sheet_000002.jpg").stat().st_size > 10_000
    run, target = Run.load(tmp_path / "gan"), tmp_path / "store" / "painted" / "1"
    card = publish(
        run,
        paintings,
        target,
        title="Painted",
        description="",
        licence="Apache-2.0",
        preview_photo=PHOTOS / "coffee.jpg",
    )
    assert card.training["configuration"]["adversarial_weight"] == 0.05
    stored = ModelStore(target.parent.parent).load(target)
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    found = Session(stored, "cpu", 1).run(image, stored.vectors["kingfisher"][None])
    with torch.no_grad():
        wanted = run.network(to_tensor(image), torch.tensor([1]))
    assert np.abs(found / 255 - wanted.clamp(0, 1).permute(0, 2, 3, 1).numpy()).max() < 1.6 / 255


def test_command_line_refuses_a_weight_without_a_discriminator(
    content: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--run", str(tmp_path / "run"), "--content", str(content), "--paintings", str(content)]
    assert main([*command, "--adversarial-weight", "0.1"]) == 1
    assert "--recipe gan" in capsys.readouterr().err
