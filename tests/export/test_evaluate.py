from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export import evaluate
from export.__main__ import main
from export.data import Painting, load_picture
from export.fetch import VGG16_SHA256, WrongWeights, fetch_vgg16
from export.sheet import contact_sheet
from service.gatys.losses import TRAINING_CONTENT_LAYER, TRAINING_STYLE_LAYERS, edge_similarities, grams_of
from service.gatys.optimize import Objective, optimize
from service.gatys.run import has_fast_bf16
from service.gatys.vgg import VGG
from service.models.store import ModelStore, file_sha256
from tests.export.conftest import PHOTOS, VGG_WEIGHTS


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return load_picture(PHOTOS / "china_temple.jpg", short_side=96)


def objective_of(vgg: VGG, photo: torch.Tensor) -> Objective:
    with torch.no_grad():
        painting = vgg(load_picture(PHOTOS / "flower.jpg", short_side=96), TRAINING_STYLE_LAYERS)
    return Objective(vgg, photo, grams_of(painting, TRAINING_STYLE_LAYERS), content_layer=TRAINING_CONTENT_LAYER)


@pytest.mark.skipif(not has_fast_bf16(), reason="NOT TESTED: it takes many minutes on a CPU that has no bf16")
def test_first_steps_are_not_lost_in_the_noise_of_bf16() -> None:
    photo = load_picture(PHOTOS / "mariachi.jpg", short_side=288)
    objective = objective_of(VGG.load(VGG_WEIGHTS, dtype=torch.bfloat16), photo)
    picture = optimize(objective, photo, evaluations=8)
    assert objective.losses(picture).total < objective.losses(photo).total * 0.8


def test_optimisation_lowers_the_loss_and_stays_in_range(photo: torch.Tensor) -> None:
    objective = objective_of(VGG.load(VGG_WEIGHTS), photo)
    start, picture = objective.losses(photo), optimize(objective, photo, evaluations=20)
    end = objective.losses(picture)
    assert start.content == pytest.approx(0, abs=1e-6)
    assert end.total < start.total / 2
    assert end.total == pytest.approx(end.style + 0.1 * end.content + 0.03 * end.tv)
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1


def test_edges_and_checkerboards_are_told_from_their_absence(photo: torch.Tensor) -> None:
    assert edge_similarities(photo, photo) == pytest.approx(1)
    assert edge_similarities(photo.flip(3), photo) < 0.5
    board = photo.clone()
    board[..., ::2, ::2] += 0.03
    assert evaluate.checkerboard(photo) < 2 < evaluate.checkerboard(board)


def test_evaluation_measures_against_the_optimum_and_remembers_it(
    paintings: list[Painting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "EVALUATIONS", 5)
    monkeypatch.setattr(evaluate, "PHOTO_SIDE", 64)
    monkeypatch.setattr(evaluate, "PAINTING_SIDE", 64)
    evaluator = evaluate.Evaluator(VGG_WEIGHTS, tmp_path / "optima.json")

    def unchanged(pixels: np.ndarray, style: str) -> np.ndarray:
        return pixels

    scores, rows = evaluator.score(unchanged, paintings, [PHOTOS / "coffee.jpg"])
    assert [len(row) for row in rows] == [3]
    assert all(score.excess > 0 and score.edges == pytest.approx(1) for score in scores)
    known = evaluate.Evaluator(VGG_WEIGHTS, tmp_path / "optima.json")
    monkeypatch.setattr(evaluate, "optimize", None)  # a second optimisation would fail
    again, _ = known.score(unchanged, paintings, [PHOTOS / "coffee.jpg"])
    assert again == scores
    table = evaluate.table(scores)
    assert all(painting.name in table for painting in paintings)
    contact_sheet(tmp_path / "sheet.jpg", ["", *(painting.name for painting in paintings)], rows)
    assert load_picture(tmp_path / "sheet.jpg").shape[3] > 3 * 64


def test_fetched_weights_are_the_published_ones_or_nothing(tmp_path: Path) -> None:
    card = fetch_vgg16(str(VGG_WEIGHTS), tmp_path)
    assert card.files == {"vgg16.safetensors": VGG16_SHA256}
    assert ModelStore(tmp_path).load(tmp_path / "vgg16" / "1").card == card
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(VGG_WEIGHTS.read_bytes()[:-1])
    with pytest.raises(WrongWeights, match=file_sha256(wrong)):
        fetch_vgg16(str(wrong), tmp_path / "other")
    assert list((tmp_path / "other" / "vgg16").iterdir()) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["fetch", "vgg16", "--source", "no/such/file"], "No such file"),
        (["train", "--run", "x", "--content", "no/such", "--paintings", "."], "starry_night is not at"),
        (["train", "--run", "x", "--content", ".", "--paintings", ".", "--styles", "nonsense"], "has no nonsense"),
        (["to-onnx", "--run", "no/run", "--onnx", "x.onnx"], "no/run"),
        (["evaluate", "no/model/1", "--paintings", "."], "model.json is missing"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command[0] == "fetch":
        command = [*command, "--store", str(tmp_path)]
    assert main(command) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"{command[0]}: ")
    assert said in printed
    assert "Traceback" not in printed
