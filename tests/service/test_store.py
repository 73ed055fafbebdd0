import hashlib
from pathlib import Path

import numpy as np
import pytest

from service.errors import ModelRefused
from service.models.store import ModelStore, file_sha256
from tests.service.toy import VECTORS, edit_card, write_conditional


def test_a_valid_model_loads_with_its_vectors_and_previews(tmp_path: Path) -> None:
    stored = ModelStore(tmp_path).load(write_conditional(tmp_path))
    assert stored.card.label == "toy@1"
    assert {name: vector.tolist() for name, vector in stored.vectors.items()} == VECTORS
    assert stored.previews.keys() == VECTORS.keys() - {"photo"}


def test_graphs_of_fp16_stand_in_for_those_they_are_of(tmp_path: Path) -> None:
    folder = write_conditional(tmp_path)
    edit_card(folder, fp16={"model.onnx": "freezing.onnx"})  # any other graph will do
    stored = ModelStore(tmp_path).load(folder)
    halved = stored.halved()
    assert (halved.graph, halved.frozen) == (stored.freezing, stored.frozen)
    assert halved.card == stored.card
    assert stored.graph == (folder / "model.onnx").read_bytes()


def test_the_highest_version_is_served_by_number_and_litter_is_passed_over(tmp_path: Path) -> None:
    for path in ("toy/2", "toy/10", "toy/11.tmp", ".publishing/1", "Strange Name/1", "empty"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "readme").write_text("hello")
    assert ModelStore(tmp_path).folders() == [tmp_path / "toy" / "10"]


@pytest.mark.parametrize("root", ["missing", ""])
def test_a_store_that_is_missing_or_empty_is_refused(tmp_path: Path, root: str) -> None:
    with pytest.raises(ModelRefused, match=str(tmp_path)):
        ModelStore(tmp_path / root).folders()


@pytest.mark.parametrize("path", ["model.onnx", "styles/red.npy", "previews/red.jpg"])
def test_a_changed_file_is_refused_by_name(tmp_path: Path, path: str) -> None:
    folder = write_conditional(tmp_path)
    (folder / path).write_bytes((folder / path).read_bytes() + b"!")
    with pytest.raises(ModelRefused, match=f"toy/1: {path} has sha256"):
        ModelStore(tmp_path).load(folder)


@pytest.mark.parametrize("path", ["model.onnx", "styles/photo.npy", "model.json"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, path: str) -> None:
    folder = write_conditional(tmp_path)
    (folder / path).unlink()
    with pytest.raises(ModelRefused, match=f"{path} is missing"):
        ModelStore(tmp_path).load(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "other"}, "says that it is other@1"),
        ({"version": 2}, "says that it is toy@2"),
        ({"schema": 2}, "schema"),
        ({"kind": "classic"}, "not these inputs"),
        ({"graph": "../model.onnx"}, "inside the model's folder"),
        ({"graph": "/model.onnx"}, "inside the model's folder"),
        ({"photo_vector": None}, "photo vector"),
        ({"styles": []}, "at least one style"),
        ({"files": {}}, "no sha256 in files"),
        ({"palette_size": 4}, "palette_size"),
        ({"fp16": {"model.onnx": "model.fp16.onnx"}}, "no sha256 in files"),
        ({"fp16": {"freezing.onnx": "model.onnx"}}, "of the graph, and of the frozen one"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    folder = write_conditional(tmp_path)
    edit_card(folder, **changes)
    with pytest.raises(ModelRefused, match=reason):
        ModelStore(tmp_path).load(folder)


@pytest.mark.parametrize("vector", [[1.0, 2.0], [0.0, 0.0, 0.0, float("nan")]])
def test_a_vector_of_the_wrong_length_or_with_a_nan_is_refused(tmp_path: Path, vector: list[float]) -> None:
    folder = write_conditional(tmp_path, vectors=VECTORS | {"red": vector})
    with pytest.raises(ModelRefused, match=r"styles/red\.npy"):
        ModelStore(tmp_path).load(folder)


def test_a_pickle_is_not_a_vector(tmp_path: Path) -> None:
    folder = write_conditional(tmp_path)
    np.save(folder / "styles" / "red.npy", np.array([{}], dtype=object), allow_pickle=True)
    card_files = {p: file_sha256(folder / p) for p in _files(folder)}
    edit_card(folder, files=card_files)
    with pytest.raises(ModelRefused, match=r"styles/red\.npy"):
        ModelStore(tmp_path).load(folder)


def test_file_sha256_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def _files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "model.json"]
