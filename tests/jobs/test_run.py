"""The optimisation itself: on small pictures, with networks of random weights, once with the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from service.gatys.losses import GATYS_STYLE_LAYERS, Gatys2015, Keras, grams_of
from service.gatys.optimize import EDGE, Diverged, Evaluation, Objective, optimize
from service.gatys.run import Checkpoint, Pixels, Progress, load_vgg, paint, stages
from service.gatys.vgg import CONVOLUTIONS, VGG, NetworkName
from service.jobs.parameters import Pooling, PresetName
from tests.jobs.conftest import ROOT, parameters, random_vgg
from tests.service.pictures import gradient

PHOTO = gradient(48, 32)
PAINTING: Pixels = np.random.default_rng(7).integers(0, 256, (40, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def vgg() -> VGG:
    return random_vgg()


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_every_layer_is_what_a_plain_network_gives(network: NetworkName, pooling: Pooling) -> None:
    vgg = random_vgg(network, pooling)
    picture = torch.rand(1, 3, 48, 64)
    expected = _plainly(vgg, network, picture, pooling)
    with torch.no_grad():
        found = vgg(picture, list(expected))
    assert len(found) == sum(CONVOLUTIONS[network])
    for layer, features in expected.items():
        torch.testing.assert_close(found[layer], features, rtol=1e-4, atol=1e-4 * float(features.abs().max()))


@torch.no_grad()
def _plainly(vgg: VGG, network: NetworkName, picture: Tensor, pooling: Pooling) -> dict[str, Tensor]:
    """As a textbook writes it: one list of layers, no channels_last."""
    x = torch.stack([picture[:, 2] * 255 - 103.939, picture[:, 1] * 255 - 116.779, picture[:, 0] * 255 - 123.68], 1)
    found = {}
    for block, count in enumerate(CONVOLUTIONS[network], start=1):
        if block > 1:
            n, c, h, w = x.shape
            windows = x[..., : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2)
            x = windows.amax((3, 5)) if pooling == "max" else windows.mean((3, 5))
        for index in range(1, count + 1):
            weights = vgg.convolutions[f"conv{block}_{index}"]
            x = F.conv2d(x, weights.weight, weights.bias, padding=1).clamp(min=0)  # type: ignore[arg-type]
            found[f"relu{block}_{index}"] = x
    return found


def test_the_literal_losses_are_the_papers_equations() -> None:
    torch.manual_seed(0)
    picture, features, target = torch.rand(1, 3, 8, 12), torch.rand(1, 5, 4, 6), torch.rand(1, 5, 4, 6)
    grams, targets = grams_of({"relu2_1": features}, ["relu2_1"]), grams_of({"relu2_1": target}, ["relu2_1"])
    flat, wanted = features.reshape(5, 24), target.reshape(5, 24)
    squared = (flat @ flat.T - wanted @ wanted.T).square().sum()
    gatys, keras = Gatys2015(), Keras()
    torch.testing.assert_close(gatys.style(grams, targets, picture), squared / (4 * 5**2 * 24**2))
    torch.testing.assert_close(gatys.content(features, target), 0.5 * (features - target).square().sum())
    torch.testing.assert_close(keras.style(grams, targets, picture), squared / (4 * 3**2 * (8 * 12) ** 2))
    torch.testing.assert_close(keras.content(features, target), (features - target).square().sum())
    p = picture[0] * 255
    by_hand = sum(
        float((p[c, y, x] - p[c, y + 1, x]) ** 2 + (p[c, y, x] - p[c, y, x + 1]) ** 2) ** 1.25
        for c in range(3)
        for y in range(7)
        for x in range(11)
    )
    assert float(keras.total_variation(picture)) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("init", ["content", "noise", "style"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam", "sgd"])
@pytest.mark.parametrize("preset", ["balanced", "keras", "gatys2015"])  # the other two differ in numbers alone
def test_every_preset_optimizer_and_start_lowers_the_loss(
    vgg: VGG, preset: PresetName, optimizer: str, init: str
) -> None:
    seen: list[Progress] = []
    chosen = parameters(preset, optimizer=optimizer, init=init, iterations=6)
    painted = paint(vgg, PHOTO, [(PAINTING, 1.0)], chosen, observe=seen.append)
    assert painted.shape == PHOTO.shape
    assert [progress.iteration for progress in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == 6
    assert min(progress.losses.total for progress in seen) < seen[0].losses.total


def test_a_run_begins_with_the_picture_it_is_given(vgg: VGG) -> None:
    start = np.full((20, 30, 3), 200, np.uint8)
    seen: list[Progress] = []
    paint(vgg, PHOTO, [(PAINTING, 1.0)], parameters(iterations=1), start=start, observe=seen.append)
    assert np.abs(seen[0].pixels().astype(int) - 200).max() <= 1


def test_what_is_shown_is_what_was_optimised(vgg: VGG) -> None:
    seen: list[Progress] = []
    painted = paint(vgg, PHOTO, [(PAINTING, 1.0)], parameters(iterations=15), observe=seen.append)
    best = min(seen, key=lambda progress: progress.losses.total)
    assert np.array_equal(painted, best.pixels())


def test_a_resumed_run_goes_on_from_its_picture_and_its_step(vgg: VGG) -> None:
    chosen = parameters("keras", iterations=20)
    whole: list[Progress] = []
    straight = paint(vgg, PHOTO, [(PAINTING, 1.0)], chosen, observe=whole.append)
    resumed: list[Progress] = []
    middle = whole[11].checkpoint()
    again = paint(vgg, PHOTO, [(PAINTING, 1.0)], chosen, resume=middle, observe=resumed.append)
    assert [progress.iteration for progress in resumed] == list(range(13, 21))
    assert resumed[0].losses.total == pytest.approx(whole[11].losses.total, rel=1e-3)
    assert np.abs(again.astype(int) - straight).mean() < 2


def test_a_run_that_was_complete_has_nothing_left_to_do(vgg: VGG) -> None:
    picture = np.full((32, 48, 3), 0.5, np.float32)
    checkpoint = Checkpoint(10, 0, 10, picture)
    painted = paint(vgg, PHOTO, [(PAINTING, 1.0)], parameters(iterations=10), resume=checkpoint)
    assert (painted == 128).all()


def test_a_large_picture_begins_small() -> None:
    assert [stage.size for stage in stages((2000, 1000), 100)] == [(500, 250), (1000, 500), (2000, 1000)]
    assert [stage.size for stage in stages((512, 300), 100)] == [(512, 300)]
    for iterations in (1, 2, 3, 100):
        assert sum(stage.evaluations for stage in stages((2000, 1000), iterations)) == iterations


def test_coarse_to_fine_counts_on_and_resumes_in_its_stage(vgg: VGG, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.gatys.run.COARSE_SIDE", 32)
    seen: list[Progress] = []
    chosen = parameters(iterations=10)
    painted = paint(vgg, PHOTO, [(PAINTING, 1.0)], chosen, observe=seen.append)
    assert painted.shape == PHOTO.shape
    assert [progress.iteration for progress in seen] == list(range(1, 11))
    assert [progress.shown.shape[3] for progress in seen] == [24] * 6 + [48] * 4
    resumed: list[Progress] = []
    paint(vgg, PHOTO, [(PAINTING, 1.0)], chosen, resume=seen[7].checkpoint(), observe=resumed.append)
    assert [progress.iteration for progress in resumed] == [9, 10]


def test_a_plateau_ends_the_run(vgg: VGG) -> None:
    photo = torch.full((1, 3, 32, 32), 0.5)
    targets = grams_of(vgg(photo, GATYS_STYLE_LAYERS), GATYS_STYLE_LAYERS)
    objective = Objective(vgg, photo, targets, content_layer="relu4_2")
    counts: list[int] = []
    optimize(
        objective, photo, evaluations=100, optimizer="adam", plateau=True, observe=lambda e: counts.append(e.count)
    )
    assert 15 < len(counts) < 100


def test_smoothing_changes_what_lbfgs_counts_in_and_not_the_picture(vgg: VGG, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture is the start, odd sides or not; a start without any change of frequencies is as it was."""
    seen: dict[float, list[Evaluation]] = {}
    start = torch.rand(1, 3, 33, 47, generator=torch.Generator().manual_seed(2))
    photo = torch.rand(1, 3, 33, 47, generator=torch.Generator().manual_seed(3))
    targets = grams_of(vgg(photo.flip(2), GATYS_STYLE_LAYERS), GATYS_STYLE_LAYERS)
    objective = Objective(vgg, photo, targets, content_layer="relu4_2")
    for smoothness in (0.0, 0.5):
        monkeypatch.setattr("service.gatys.optimize.SMOOTHNESS", smoothness)
        optimize(objective, start, evaluations=6, observe=seen.setdefault(smoothness, []).append)
    plain, smooth = seen.values()
    torch.testing.assert_close(smooth[0].shown, start.clamp(EDGE, 1 - EDGE), atol=1e-4, rtol=0)
    moved = [evaluations[-1].shown - start for evaluations in (plain, smooth)]
    coarse, fine = (F.avg_pool2d(each, 8).square().mean() / each.square().mean() for each in reversed(moved))
    assert coarse > 1.5 * fine
    assert smooth[-1].losses.total < 0.9 * smooth[0].losses.total


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam", "sgd"])
def test_losses_beyond_all_numbers_are_an_error(vgg: VGG, optimizer: str) -> None:
    with pytest.raises(Diverged, match="evaluation"):
        paint(vgg, PHOTO, [(PAINTING, 1.0)], parameters("keras", style_weight=1e38, optimizer=optimizer, iterations=50))


def test_two_paintings_pull_by_their_weights(vgg: VGG) -> None:
    other: Pixels = np.zeros((40, 40, 3), np.uint8)

    def closeness(weight: float) -> float:
        paintings = [(PAINTING, weight), (other, 1 - weight)]
        painted = paint(vgg, PHOTO, paintings, parameters(init="style", iterations=8, content_weight=0.0))
        return float(painted.astype(float).std())

    assert closeness(1.0) != closeness(0.2)


def test_the_mask_keeps_the_photo_where_it_is_black(vgg: VGG) -> None:
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 255
    painted = paint(vgg, PHOTO, [(PAINTING, 1.0)], parameters(iterations=8), mask=mask)
    assert np.array_equal(painted[:, :24], PHOTO[:, :24])
    assert not np.array_equal(painted[:, 24:], PHOTO[:, 24:])


def test_colours_are_the_photos_where_asked(vgg: VGG) -> None:
    means = {
        preserve: paint(vgg, PHOTO, [(PAINTING, 1.0)], parameters(init="style", iterations=3, preserve_color=preserve))
        .reshape(-1, 3)
        .mean(0)
        for preserve in ("none", "luminance", "histogram")
    }
    own = PHOTO.reshape(-1, 3).mean(0)
    assert np.abs(means["histogram"] - own).sum() < np.abs(means["none"] - own).sum()
    chroma = {preserve: mean - mean.mean() for preserve, mean in means.items()}
    assert np.abs(chroma["luminance"] - (own - own.mean())).sum() < np.abs(chroma["none"] - (own - own.mean())).sum()


def test_the_real_network_paints() -> None:
    chosen = parameters("fast", iterations=25)
    real = load_vgg(ROOT / "model_store" / "vgg16" / "1" / "vgg16.safetensors", "vgg16")
    seen: list[Progress] = []
    paint(real, PHOTO, [(PAINTING, 1.0)], chosen, observe=seen.append)
    assert seen[-1].losses.total < 0.9 * seen[0].losses.total


def test_the_bench_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from service.gatys.__main__ import main

    photos = ROOT / "tests" / "photos"
    pictures = ["--photo", str(photos / "flower.jpg"), "--painting", str(photos / "coffee.jpg"), "--side", "48"]
    assert (
        main(["bench", *pictures, "--reference", "6", "--plain", "24", "--presets", "fast", "--iterations", "5"]) == 0
    )
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert "fast" in rows[-1]


def test_a_sheet_shows_its_cells_and_paints_only_what_is_missing(tmp_path: Path) -> None:
    from service.gatys.__main__ import main

    photos = ROOT / "tests" / "photos"
    sheet, cells = tmp_path / "sheet.png", tmp_path / "cells"
    ask = ["sheet", str(sheet), "--photos", str(photos / "flower.jpg"), "--paintings", str(photos / "coffee.jpg")]
    ask += ["--side", "48", "--presets", "fast", "gatys2015", "--limit", "fast=2", "gatys2015=3", "--bf16"]
    assert main([*ask, "--cells", str(cells)]) == 0
    names = ["flower_coffee_fast_2_48_bf16.png", "flower_coffee_gatys2015_3_48_bf16.png"]
    assert sorted(path.name for path in cells.iterdir()) == names
    Image.new("RGB", (48, 32), "red").save(cells / names[0])
    (cells / names[1]).unlink()
    assert main([*ask, "--cells", str(cells)]) == 0
    assert sorted(path.name for path in cells.iterdir()) == names
    with Image.open(sheet) as drawn:
        colours = drawn.convert("RGB").getcolors(maxcolors=10**6)
    assert (48 * 32, (255, 0, 0)) in (colours or [])
