from __future__ import annotations

import csv
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from export.data import Painting, Photos, ahead, load_picture, read_paintings
from export.start import starting_network
from export.train import LOSS_NAMES, Run, TrainConfig, Trainer
from service.gatys.perceptual import BatchLosses, LossWeights, Window, batch_losses
from tests.export.conftest import PHOTOS, ROOT, TINY, TINY_STUDENT, MakeTrainer

KILLED_RUN = """
import sys, torch
from pathlib import Path
from export.data import Painting
from export.train import Trainer
from tests.export.conftest import TINY, VGG_WEIGHTS
content, run, *files = map(Path, sys.argv[1:])
paintings = [Painting(file.stem, file, "", "", "", "") for file in files]
trainer = Trainer(TINY, paintings, content, VGG_WEIGHTS, run, dtype=torch.float32)
trainer.run(until=4, save_every=2)
print("saved", flush=True)
trainer._train_step(*trainer._read(4))  # work that the kill loses
print("stepped", flush=True)
input()
"""


def same_weights(one: Trainer, other: Trainer) -> bool:
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    averages = zip(one.average.values(), other.average.values(), strict=True)
    return all(torch.equal(a, b) for a, b in (*pairs, *averages))


def test_killed_run_resumes_to_the_very_weights_of_an_uninterrupted_one(
    make_trainer: MakeTrainer, content: Path, paintings: list[Painting], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-c",
        KILLED_RUN,
        str(content),
        str(tmp_path / "killed"),
        *(str(p.path) for p in paintings),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == ["saved\n", "stepped\n"]
        process.send_signal(signal.SIGKILL)
    resumed = make_trainer("killed")
    assert resumed.step == 4
    resumed.run()
    whole = make_trainer("whole")
    whole.run()
    assert same_weights(resumed, whole)
    assert [row[0] for row in resumed.history] == [row[0] for row in whole.history]


def test_training_lowers_the_loss_and_keeps_a_record(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(steps=100, small_steps=100, learning_rate=1e-2)
    trainer.run(sheet_photos=[PHOTOS / "coffee.jpg"])
    assert [row[0] for row in trainer.history] == [50, 100]
    assert trainer.history[1][1] < trainer.history[0][1]
    with (tmp_path / "run" / "losses.csv").open() as file:
        assert next(csv.reader(file)) == ["step", *LOSS_NAMES]
    assert load_picture(tmp_path / "run" / "losses.png").shape[2] > 300
    assert (tmp_path / "run" / "sheet_000100.jpg").stat().st_size > 10_000


def test_only_what_requires_a_gradient_is_trained(make_trainer: MakeTrainer, paintings: list[Painting]) -> None:
    trainer = make_trainer(conditional=False, styles=paintings[:1])
    for parameter in trainer.network.transformer.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.run(until=2)
    changed = [name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["vectors"]


@pytest.mark.parametrize(("name", "unit"), [("edges", 1.0), ("checkerboard", 1e5)])
def test_edges_and_checkerboards_have_a_weight_of_their_own(make_trainer: MakeTrainer, name: str, unit: float) -> None:
    trainer = make_trainer(name, weights=LossWeights(**{name: 2 * unit}))
    photos, slots = torch.full((2, 3, 48, 48), 0.5), torch.tensor([0, 1])  # flat: there is no edge to keep

    def losses(pictures: torch.Tensor, weight: float) -> BatchLosses:
        weights = LossWeights(**{name: weight})
        return batch_losses(
            trainer.network, trainer.vgg, weights, pictures, slots, trainer.targets.of(slots), trainer.config.margin
        )

    losses(photos, 2 * unit).total.backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad.isfinite().all()) for p in trainer.network.parameters() if p.grad is not None)
    pictures, *_ = trainer._read(0)
    without, half, whole = (losses(pictures, weight * unit) for weight in (0.0, 1.0, 2.0))
    lost = float(whole.parts[LOSS_NAMES.index(name) - 1])
    assert 0 < lost < 2
    assert math.isnan(float(without.parts[LOSS_NAMES.index(name) - 1]))
    assert float((whole.total - half.total).detach()) / unit == pytest.approx(lost, rel=1e-3)
    trainer.run(until=2)


def test_checkerboards_are_not_looked_for_in_what_is_smaller_than_a_patch(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="of 32 px, not 24"):
        make_trainer("small", weights=LossWeights(checkerboard=1.0), part=24)


def strength_of_gradients(trainer: Trainer, window: Window | None = None) -> torch.Tensor:
    """Of the losses of pictures (2, 3, 48, 48): the mean at every place, (48, 48)."""

    class Picture(torch.nn.Module):
        def forward(self, photos: torch.Tensor, slots: torch.Tensor, norms: list[torch.Tensor]) -> torch.Tensor:
            norms.append(torch.zeros(()))
            return picture

    photos, slots = torch.rand(2, 3, 48, 48), torch.tensor([0, 1])
    picture = torch.rand(2, 3, 48, 48, requires_grad=True)
    targets, weights = trainer.targets.of(slots), LossWeights(tv=0.0)
    losses = batch_losses(Picture(), trainer.vgg, weights, photos, slots, targets, 8, window)
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert picture.grad is not None
    return picture.grad.abs().mean((0, 1))


def test_the_losses_see_a_picture_to_its_border(make_trainer: MakeTrainer) -> None:
    strength = strength_of_gradients(make_trainer("border"))
    rim = torch.cat([strength[0], strength[-1], strength[:, 0], strength[:, -1]]).mean()
    assert 0.3 < float(rim / strength[8:-8, 8:-8].mean()) < 3


def test_the_losses_see_a_part_and_by_and_by_all_of_it(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("parts", part=32, side=48, small_steps=0)
    strength = strength_of_gradients(trainer, (torch.arange(3, 35), torch.arange(10, 42)))
    inside = strength[3:35, 10:42]
    assert bool((inside > 0).all())
    assert float(strength.sum()) == pytest.approx(float(inside.sum()))

    seen = torch.zeros(48, 48, dtype=torch.bool)
    for step in range(200):
        window = trainer.config.window(step)
        assert window is not None
        assert [len(places) for places in window] == [32, 32]
        seen[window[0][:, None], window[1]] = True
    assert bool(seen.any(0).all())
    assert bool(seen.any(1).all())
    assert replace(trainer.config, part=48).window(0) is None
    trainer.run(until=2)


def test_centring_changes_no_picture_and_goes_on_to_the_bit(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("centred")
    transformer, (photos, *_) = trainer.network.transformer, trainer._read(0)
    style, name = trainer.network.vectors.detach(), "transformer.residual.0.convolution.bias"
    bias = dict(trainer.network.named_parameters())[name]
    with torch.no_grad():
        bias.add_(100)
        trainer.average[name].add_(100)
        before = transformer(photos, style)
        trainer._centre()
        assert (transformer(photos, style) - before).abs().max() < 1e-3
    assert bias.abs().max() < 20
    assert torch.allclose(trainer.average[name], bias, atol=1e-3)

    monkeypatch.setattr("export.train.CENTRE_EVERY", 2)
    whole, halves = make_trainer("whole"), make_trainer("halves")
    whole.run()
    halves.run(until=4)
    resumed = make_trainer("halves")
    resumed.run()
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_pictures_are_read_ahead_in_order_and_errors_arrive() -> None:
    assert list(ahead(lambda number: number * number, range(50))) == [number * number for number in range(50)]
    assert list(ahead(str, [])) == []
    reading = ahead(lambda number: 1 // (3 - number), range(10))
    assert [next(reading), next(reading), next(reading)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(reading)


def test_every_style_takes_its_turn(make_trainer: MakeTrainer, paintings: list[Painting]) -> None:
    third = replace(paintings[0], name="third")
    trainer = make_trainer(styles=[*paintings, third])  # three styles, two pictures a step
    seen = torch.cat([trainer.slots(step) for step in range(3)]).tolist()
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_photo_vector_is_learnt_last_and_reconstructs_better_than_a_style(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(steps=2, photo_steps=40)
    trainer.run(until=1)
    assert trainer.photo_vector is None
    trainer.run()
    run = Run.load(tmp_path / "run")
    assert run.photo_vector is not None
    photos = trainer.photos.batch(0, 2, 48)
    with torch.no_grad():
        as_photo, as_style = (
            (run.network.transformer(photos, vector.expand(2, -1)) - photos).square().mean()
            for vector in (run.photo_vector, run.network.vectors[0])
        )
    assert as_photo < as_style


def test_run_begins_with_the_weights_of_another(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer("first").run(until=2)
    first = Run.load(tmp_path / "first").network.vectors.data
    vectors = starting_network(tmp_path / "first", ["kingfisher", "never_seen"]).vectors.data
    torch.testing.assert_close(vectors, torch.stack([first[1], first.mean(0)]), rtol=0, atol=1e-6)


def test_student_imitates_its_teacher_and_then_learns_by_itself(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    shallow = replace(TINY.network, deep_width=0, deep_blocks=0)
    make_trainer("teacher", network=shallow).run(until=2)
    teacher = starting_network(tmp_path / "teacher", ["china_temple", "kingfisher"])
    options = {"network": TINY_STUDENT, "steps": 150, "small_steps": 150, "imitation_steps": 100, "learning_rate": 1e-2}
    with pytest.raises(ValueError, match="teacher"):
        make_trainer("student", **options)
    run = make_trainer("student", teacher=teacher, **options)
    run.run()
    first, second, last = (dict(zip(LOSS_NAMES, row[1:], strict=True)) for row in run.history)
    assert second["imitation"] < 0.9 * first["imitation"]
    assert math.isnan(second["style"])
    assert math.isnan(last["imitation"])
    assert last["style"] > 0


def test_crops_depend_on_seed_and_step_only(content: Path) -> None:
    photos = Photos(content, seed=1)
    in_order = list(photos.batches([(step, 2, 40) for step in range(3)]))
    torch.testing.assert_close(Photos(content, seed=1).batch(2, 2, 40), in_order[2], rtol=0, atol=0)
    assert not torch.equal(Photos(content, seed=2).batch(2, 2, 40), in_order[2])
    assert in_order[0].shape == (2, 3, 40, 40)
    assert 0 <= float(in_order[0].min()) < float(in_order[0].max()) <= 1


def test_run_of_other_options_is_not_mixed_with_this_one(make_trainer: MakeTrainer, paintings: list[Painting]) -> None:
    make_trainer().run(until=1)
    with pytest.raises(ValueError, match="batch"):
        make_trainer(batch=3)
    with pytest.raises(ValueError, match="styles"):
        make_trainer(styles=list(reversed(paintings)))
    assert make_trainer(steps=9).step == 1  # a longer run of the same kind goes on


def test_classic_network_learns_exactly_one_style(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="one style, not 2"):
        make_trainer(conditional=False)


def test_run_is_read_without_its_data(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.run(until=1)
    run = Run.load(tmp_path / "run")
    assert run.styles == ["china_temple", "kingfisher"]
    assert run.step == 1
    torch.testing.assert_close(run.network.vectors, trainer.average["vectors"], rtol=0, atol=0)


def test_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no photos"):
        Photos(tmp_path, seed=0)


def test_manifest_names_what_it_lacks(tmp_path: Path) -> None:
    manifest = ROOT / "export" / "styles.toml"
    with pytest.raises(ValueError, match="nonsense"):
        read_paintings(manifest, tmp_path, ["nonsense"])
    with pytest.raises(FileNotFoundError, match="starry_night"):
        read_paintings(manifest, tmp_path, ["starry_night"])


def test_frame_of_a_painting_is_not_learnt(paintings: list[Painting], tmp_path: Path) -> None:
    (painting, *_) = paintings
    framed = Image.new("RGB", (120, 90), "white")
    with Image.open(painting.path) as picture:
        framed.paste(picture, (12, 9))  # 96 x 72: a tenth on every side
    framed.save(tmp_path / "framed.png")
    table = 'file = "framed.png"\ntitle = ""\nartist = ""\nyear = ""\ncredit = ""\nframe = '
    manifest = tmp_path / "styles.toml"
    manifest.write_text(f"[framed]\n{table}[0.1, 0.1, 0.1, 0.1]")
    (found,) = read_paintings(manifest, tmp_path)
    assert found.canvas(90).tobytes() == painting.canvas(72).tobytes()
    for wrong in ("[0.1, 0.1]", "[0, 0.5, 0, 0.5]", "[-0.1, 0, 0, 0]"):
        manifest.write_text(f"[framed]\n{table}{wrong}")
        with pytest.raises(ValueError, match="frame of framed"):
            read_paintings(manifest, tmp_path)


def test_broken_weights_never_replace_a_checkpoint(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.run(until=2)
    with torch.no_grad():
        trainer.network.vectors[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="no numbers"):
        trainer.run(until=3)
    assert make_trainer().step == 2


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    config = TrainConfig(steps=1000, warmup_steps=100, learning_rate=1.0)
    assert config.rate(0) == pytest.approx(0.01)
    assert config.rate(500) == pytest.approx(0.5)
    assert config.rate(1000) == pytest.approx(0.0)
    assert TINY.crop(2) == (2, 2, 48)
    assert TINY.crop(3) == (3, 2, 64)
