"""A painting that comes with the photo: its style in one pass."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from PIL import Image

from service.app import create_app
from service.batching import Admission
from service.encodings import MOST_RUNNING, Encodings
from service.errors import NotReady, Saturated
from service.metrics import Metrics
from service.models.encoder import Encoder, encoder_of
from service.models.session import Session
from service.models.store import ModelStore, StoredModel
from service.settings import Settings
from tests.service.conftest import wait_until_loaded
from tests.service.toy import (
    VECTORS,
    classic_graph,
    edit_card,
    toy_stylized,
    write_classic,
    write_conditional,
    write_encoder,
)

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 120, (20, 24, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def plain(*colour: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, len(colour)), colour, np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_encoder(root, write_conditional(root))
    write_classic(root, "classic_ink", "ink", classic_graph())
    return root


@pytest.fixture(scope="module")
def client(store: Path) -> Iterator[TestClient]:
    settings = Settings(model_store=store, provider="cpu", max_pixels=40_000, sync_max_pixels=10_000, gatys_workers=0)
    with TestClient(create_app(settings)) as client:
        yield wait_until_loaded(client)


def ask(client: TestClient, painting: bytes, photo: bytes = png(PHOTO), **fields: str) -> Response:
    files = {"image": ("photo.png", photo), "style_image": ("painting.png", painting)}
    return client.post("/stylize", files=files, data=fields)


def pixels(response: Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def test_a_painting_gives_its_style(client: TestClient) -> None:
    answer = ask(client, png(plain(10, 20, 30)))
    assert np.array_equal(pixels(answer), toy_stylized(PHOTO, [10, 20, 30, 0]))
    assert (answer.headers["x-style"], answer.headers["x-model"]) == ("style_image", "toy@1")


def test_a_painting_is_mixed_and_weakened_like_any_style(client: TestClient) -> None:
    mixed = ask(client, png(plain(10, 20, 30)), style="style_image:1,red:1")
    assert np.array_equal(pixels(mixed), toy_stylized(PHOTO, [45, 10, 15, 0]))
    half = pixels(ask(client, png(plain(10, 20, 30)), strength="0.5"))
    assert np.array_equal(half, toy_stylized(PHOTO, [5, 10, 15, 0]))
    palette = pixels(ask(client, png(plain(10, 20, 30)), style_fine="red", style_coarse="style_image"))
    assert np.array_equal(palette, toy_stylized(PHOTO, [VECTORS["red"][0], 0, 30, 0]))


@pytest.mark.parametrize(
    ("painting", "colour"),
    [
        (plain(255, 255, 255, side=64), (255, 255, 255)),
        (plain(9, 9, 9, side=2), (9, 9, 9)),
        (plain(7, 8, 9, side=1), (7, 8, 9)),
        (plain(200, 0, 0, 0), (255, 255, 255)),  # a logo's transparent ground is white
        (np.full((1, 3000, 3), 40, np.uint8), (40, 40, 40)),
    ],
)
def test_odd_paintings_give_a_sensible_picture(
    client: TestClient, painting: np.ndarray, colour: tuple[int, int, int]
) -> None:
    assert np.array_equal(pixels(ask(client, png(painting))), toy_stylized(PHOTO, [*colour, 0]))


@pytest.mark.parametrize(
    ("painting", "status", "word"),
    [
        (b"", 400, "style_image"),
        (b"not a picture", 400, "style_image"),
        (png(PHOTO)[:-60], 400, "style_image"),
        (png(plain(1, 2, 3, side=201)), 413, "style_image"),
        (b"%PDF-1.7 " + bytes(99), 415, "style_image"),
    ],
)
def test_a_bad_painting_is_named_and_nothing_is_kept(
    client: TestClient, painting: bytes, status: int, word: str
) -> None:
    for _ in range(2):
        answer = ask(client, painting)
        assert answer.status_code == status
        assert word in answer.json()["detail"]
    assert ask(client, png(plain(1, 1, 1))).status_code == 200


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"style": "red"}, "style_image"),  # which of the two is meant?
        ({"model": "classic_ink"}, "model"),
        ({"style": "style_image:1,ink:1"}, "style"),
    ],
)
def test_what_does_not_fit_a_painting_is_said(client: TestClient, fields: dict[str, str], field: str) -> None:
    answer = ask(client, png(plain(1, 2, 3)), png(PHOTO), **fields)
    assert answer.status_code == 422
    assert [offence["field"] for offence in answer.json()["errors"]] == [field]


def test_a_mix_cannot_name_a_painting_that_did_not_come(client: TestClient) -> None:
    answer = client.post("/stylize", files={"image": png(PHOTO)}, data={"style": "style_image:1,red:1"})
    assert answer.status_code == 422
    assert [offence["field"] for offence in answer.json()["errors"]] == ["style_image"]


def test_where_there_are_no_jobs_what_would_be_one_is_refused_with_what_fits(client: TestClient) -> None:
    photo = png(plain(1, 2, 3, side=150))
    refused = ask(client, png(plain(1, 2, 3)), photo)
    assert refused.status_code == 413
    found = re.search(r"max_side of (\d+)", refused.json()["detail"])
    assert found
    assert ask(client, png(plain(1, 2, 3)), photo, max_side=found[1]).status_code == 200


def test_without_its_network_an_encoder_is_of_no_use_and_the_service_goes_on(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, write_conditional(tmp_path))
    edit_card(folder, vectors_of={"model": "toy", "sha256": "0" * 64, "painting_side_px": 32})
    with TestClient(create_app(Settings(model_store=tmp_path, provider="cpu"))) as client:
        wait_until_loaded(client)
        answer = ask(client, png(plain(1, 2, 3)))
        assert answer.status_code == 422
        assert "publish-encoder" in answer.json()["detail"]
        assert client.get("/readyz").status_code == 200


def test_an_encoder_for_a_graph_of_before_is_one_for_the_same_network(tmp_path: Path) -> None:
    network = write_conditional(tmp_path)
    folder = write_encoder(tmp_path, network)
    edit_card(folder, vectors_of={"model": "toy", "sha256": "0" * 64, "painting_side_px": 32})
    edit_card(network, first_graph="0" * 64)
    with TestClient(create_app(Settings(model_store=tmp_path, provider="cpu"))) as client:
        wait_until_loaded(client)
        answer = ask(client, png(plain(1, 2, 3)))
        assert answer.status_code == 200, answer.text


def test_an_encoder_is_tried_when_loaded_and_opened_for_the_first_painting(store: Path) -> None:
    read = partial(ModelStore(store).load, store / "arbitrary" / "1")
    stored, opened = read(), []

    def opening(stored: StoredModel) -> Session:
        opened.append(Session(stored, "cpu", 1))
        return opened[-1]

    encoder = Encoder(stored, opening, read)
    tried = weakref.ref(opened.pop())
    assert tried() is None  # the memory that it took is free again
    first, second = (encoder.vector(np.full((32, 32, 3), 7, np.uint8)) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(opened) == 1
    kept = weakref.ref(stored)
    del stored
    assert kept() is None  # and so are the bytes of its graph
    other = replace(read(), card=read().card.model_copy(update={"files": dict.fromkeys(read().card.files, "0" * 64)}))
    with pytest.raises(NotReady, match="replaced"):
        Encoder(read(), opening, lambda: other).vector(np.full((32, 32, 3), 7, np.uint8))


def test_an_encoder_that_left_the_store_is_told_of(tmp_path: Path) -> None:
    write_encoder(tmp_path / "store", write_conditional(tmp_path / "store"))
    with TestClient(create_app(Settings(model_store=tmp_path / "store", provider="cpu"))) as client:
        wait_until_loaded(client)
        shutil.move(tmp_path / "store" / "arbitrary", tmp_path / "gone")
        answer = ask(client, png(plain(1, 2, 3)))
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        shutil.move(tmp_path / "gone", tmp_path / "store" / "arbitrary")
        assert ask(client, png(plain(1, 2, 3))).status_code == 200


def test_one_painting_is_read_once_for_many_at_a_time_and_kept(store: Path) -> None:
    metrics = Metrics()
    encoder = encoder_of(ModelStore(store).load(store / "arbitrary" / "1"), "cpu", 1)

    async def ask_often() -> None:
        encodings = Encodings(codec, inference, Admission(1000, metrics), metrics, 1000)
        found = await asyncio.gather(*(encodings.vector(encoder, png(plain(4, 5, 6))) for _ in range(5)))
        assert all(np.allclose(vector, [4, 5, 6, 0]) for vector in found)
        await encodings.vector(encoder, png(plain(4, 5, 6)))

    with ThreadPoolExecutor(1) as codec, ThreadPoolExecutor(1) as inference:
        asyncio.run(ask_often())
    told = metrics.render("text/plain")[0].decode()
    counted = {source: float(count) for source, count in re.findall(r'encodings_total\{source="(\w+)"\} (\S+)', told)}
    assert counted == {"made": 1, "shared": 4, "kept": 1}


def test_a_client_that_leaves_takes_the_vector_from_nobody(store: Path) -> None:
    encoder = encoder_of(ModelStore(store).load(store / "arbitrary" / "1"), "cpu", 1)

    async def leave() -> np.ndarray:
        encodings = Encodings(codec, inference, Admission(1000, Metrics()), Metrics(), 1000)
        first, second = (asyncio.create_task(encodings.vector(encoder, png(plain(4, 5, 6)))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    with ThreadPoolExecutor(1) as codec, ThreadPoolExecutor(1) as inference:
        codec.submit(time.sleep, 0.2)  # both are there before it begins
        assert np.allclose(asyncio.run(leave()), [4, 5, 6, 0])


def test_a_vector_that_nobody_wants_any_more_is_not_made_and_one_that_asks_then_has_it(store: Path) -> None:
    encoder = encoder_of(ModelStore(store).load(store / "arbitrary" / "1"), "cpu", 1)
    metrics = Metrics()
    admission = Admission(1000, metrics)

    async def leave() -> np.ndarray:
        encodings = Encodings(codec, inference, admission, metrics, 1000)
        asked = [asyncio.create_task(encodings.vector(encoder, png(plain(4, 5, 6)))) for _ in range(2)]
        await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        await asyncio.sleep(0)
        vector = await encodings.vector(encoder, png(plain(4, 5, 6)))  # not by way of what is given up
        assert [task.cancelled() for task in asked] == [True, True]
        assert not encodings._running
        return vector

    with ThreadPoolExecutor(1) as codec, ThreadPoolExecutor(1) as inference:
        codec.submit(time.sleep, 0.2)
        assert np.allclose(asyncio.run(leave()), [4, 5, 6, 0])
    assert admission.busy_s == 0
    assert metrics._registry.get_sample_value("stylize_encodings_total", {"source": "made"}) == 2


def test_too_many_paintings_at_once_are_refused_for_as_long_as_those_take(store: Path) -> None:
    encoder = encoder_of(ModelStore(store).load(store / "arbitrary" / "1"), "cpu", 1)
    admission, go = Admission(1000, Metrics()), threading.Event()
    admission.learn(encoder, 4096, 60.0)

    async def ask() -> None:
        encodings = Encodings(codec, inference, admission, Metrics(), 1000)
        asked = [
            asyncio.create_task(encodings.vector(encoder, png(plain(4, 5, value)))) for value in range(MOST_RUNNING)
        ]
        async with asyncio.timeout(20):
            while not admission.busy_s:
                await asyncio.sleep(0.005)
        with pytest.raises(Saturated) as refused:
            await encodings.vector(encoder, png(plain(0, 0, 0)))
        assert 30 < refused.value.retry_after_s <= 60  # until the first of them is done, however many wait
        go.set()
        await asyncio.gather(*asked)

    with ThreadPoolExecutor(1) as codec, ThreadPoolExecutor(1) as inference:
        inference.submit(go.wait, 60)
        asyncio.run(ask())
