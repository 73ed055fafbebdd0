"""OpenVINO in the place of ONNX Runtime: the same pictures, to what bf16 leaves of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service.app import create_app
from service.errors import ConfigurationError
from service.models.session import RunOptions, Session, check_provider
from service.models.store import ModelStore, StoredModel
from service.settings import Settings
from tests.service.conftest import wait_until_loaded
from tests.service.pictures import encoded, gradient, pixels
from tests.service.toy import VECTORS, toy_stylized

pytest.importorskip("openvino")
from bench.runtimes import difference

ROOT = Path(__file__).parents[2]
STORE = ROOT / "model_store"
MOST = 16  # of 255: bf16 has eight bits


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    return ModelStore(STORE).load(STORE / "fast" / "2")


@pytest.fixture(scope="module")
def session(stored: StoredModel) -> Session:
    return Session(stored, "openvino", 2)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    with Image.open(ROOT / "tests" / "photos" / "coffee.jpg") as file:
        return np.asarray(file.convert("RGB").resize((300, 200)))[None]


def test_it_paints_what_onnx_runtime_paints(stored: StoredModel, session: Session, photo: np.ndarray) -> None:
    row = stored.vectors["kiss"][None]
    difference = np.abs(session.run(photo, row).astype(int) - Session(stored, "cpu", 2).run(photo, row))
    assert session.provider == "openvino"
    assert difference.max() <= MOST
    assert difference.mean() < 0.6


def test_in_fp32_it_paints_what_onnx_runtime_paints_to_a_rounding(stored: StoredModel, photo: np.ndarray) -> None:
    from service.models.openvino import OpenVinoSession

    feed = {
        spec.name: each for spec, each in zip(stored.card.inputs, (photo, stored.vectors["kiss"][None]), strict=True)
    }
    (found,) = OpenVinoSession(stored.graph, 2, "f32").run(None, feed)
    told = difference(Session(stored, "cpu", 2).run(*feed.values()), found)
    assert told in ("0; 0.00%, 0.00%, 0.00%", "1; 0.00%, 0.00%, 0.00%")


def test_differences_are_told_by_their_most_and_their_shares() -> None:
    one, other = np.zeros((2, 3, 8), np.uint8), np.zeros((2, 3, 8), np.uint8)
    other[0, 0, :4] = 2, 3, 3, 9
    assert difference(one, other) == difference(other, one) == "9; 8.33%, 6.25%, 2.08%"


def test_a_batch_is_bit_for_bit_what_its_pictures_are_alone(
    stored: StoredModel, session: Session, photo: np.ndarray
) -> None:
    photos = np.concatenate([photo, photo[:, ::-1], 255 - photo])
    rows = np.stack([stored.vectors[name] for name in ("kiss", "udnie", "scream")])
    together = session.run(photos, rows)
    for picture, image, row in zip(together, photos, rows, strict=True):
        assert np.array_equal(session.run(image[None], row[None])[0], picture)


def test_a_run_is_stopped_and_the_next_is_as_ever(stored: StoredModel, session: Session, photo: np.ndarray) -> None:
    row, options = stored.vectors["kiss"][None], RunOptions()
    expected = session.run(photo, row)
    threading.Timer(0.1, lambda: setattr(options, "terminate", True)).start()
    begun = time.monotonic()
    with pytest.raises(RuntimeError):
        session.run(np.zeros((1, 4000, 4000, 3), np.uint8), row, options)
    assert time.monotonic() - begun < 30
    assert np.array_equal(session.run(photo, row), expected)


@pytest.fixture
def client(toy_store: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(model_store=toy_store, provider="openvino", data_dir=tmp_path, sync_max_pixels=10**6)
    with TestClient(create_app(settings)) as client:
        yield wait_until_loaded(client)


def test_the_service_runs_on_it_and_says_so(client: TestClient) -> None:
    photo = gradient(40, 30)
    files = {"image": encoded(photo), "style_image": encoded(np.full((9, 7, 3), (10, 20, 30), np.uint8))}
    found = pixels(client.post("/stylize?format=png", files=files).content)
    assert np.abs(found - toy_stylized(photo, [10, 20, 30, 0]).astype(int)).max() <= 2
    named = client.post("/stylize?style=red&format=png", content=encoded(photo), headers={"Content-Type": "image/png"})
    assert np.abs(pixels(named.content) - toy_stylized(photo, VECTORS["red"]).astype(int)).max() <= 2
    assert 'provider="openvino"' in client.get("/metrics").text


def test_where_it_is_not_installed_the_service_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="openvino"):
        check_provider("openvino")
