"""Styles that are brought in and taken away: packs, who may write, and the folder that services share."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from pydantic import SecretStr

from service.app import create_app
from service.settings import Settings
from tests.service.conftest import wait_until_loaded
from tests.service.pictures import encoded, gradient, pixels
from tests.service.toy import edit_card, toy_stylized, write_conditional

PHOTO = gradient(40, 30)
PNG = encoded(PHOTO)
HERE, ELSEWHERE = ("127.0.0.1", 50000), ("192.0.2.7", 50000)
TOKEN = "a token of sixteen"
Files = dict[str, bytes]


@pytest.fixture
def settings(toy_store: Path, tmp_path: Path) -> Settings:
    return Settings(model_store=toy_store, provider="cpu", data_dir=tmp_path / "data")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), client=HERE) as client:
        yield wait_until_loaded(client)


@pytest.fixture
def parts(client: TestClient) -> Files:
    """Of a pack of a style of one's own, plum."""
    with zipfile.ZipFile(io.BytesIO(client.get("/styles/red/pack").content)) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    papers = json.loads(found["style.json"]) | {"name": "plum", "title": "Plum"}
    return found | {"style.json": json.dumps(papers).encode(), "vector.npy": npy([70, 0, 70, 0])}


def npy(numbers: object, kind: type = np.float32) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(numbers, kind))
    return file.getvalue()


def zipped(files: Files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def install(client: TestClient, content: bytes, **headers: str) -> Response:
    return client.post("/styles", files={"pack": ("plum.zip", content)}, headers=headers)


def stylized(client: TestClient, style: str) -> np.ndarray:
    answer = client.post(f"/stylize?style={style}&format=png", content=PNG, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    return pixels(answer.content)


def test_a_pack_is_installed_served_mixed_listed_and_deleted(client: TestClient, parts: Files) -> None:
    answer = install(client, zipped(parts))
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == "/styles/plum"
    assert answer.json() == client.get("/styles/plum").json()
    assert (answer.json()["own"], answer.json()["models"], answer.json()["title"]) == (True, ["toy"], "Plum")
    assert not client.get("/styles/red").json()["own"]
    assert np.array_equal(stylized(client, "plum"), toy_stylized(PHOTO, [70, 0, 70, 0]))
    assert np.array_equal(stylized(client, "plum:1,red:1"), toy_stylized(PHOTO, [75, 0, 35, 0]))
    assert "plum" in [style["name"] for style in client.get("/styles").json()["styles"]]
    assert client.get("/styles/plum/preview").content == parts["preview.jpg"]
    assert install(client, zipped(parts)).json()["code"] == "name_taken"
    assert client.delete("/styles/plum").status_code == 204
    assert client.delete("/styles/plum").json()["code"] == "unknown_style"
    assert client.post("/stylize?style=plum", content=PNG, headers={"Content-Type": "image/png"}).status_code == 404


def test_a_pack_is_the_same_bytes_each_time_and_kept_by_clients(client: TestClient, parts: Files) -> None:
    assert install(client, zipped(parts)).status_code == 201
    first = client.get("/styles/plum/pack")
    assert first.headers["content-disposition"] == 'attachment; filename="plum.zip"'
    assert len(first.content) < 8192
    again = client.get("/styles/plum/pack", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    client.delete("/styles/plum")
    assert install(client, first.content).status_code == 201
    assert client.get("/styles/plum/pack").content == first.content


def test_a_pack_for_a_graph_of_before_is_one_for_the_same_network(tmp_path: Path, parts: Files) -> None:
    edit_card(write_conditional(tmp_path / "store"), first_graph="0" * 64)
    settings = Settings(model_store=tmp_path / "store", provider="cpu", data_dir=tmp_path / "own")
    with TestClient(create_app(settings), client=HERE) as client:
        wait_until_loaded(client)
        assert install(client, zipped(parts)).status_code == 422  # for the graph that is served, as it never was
        pack = zipped(_papers(network="0" * 64)(parts))
        assert install(client, pack).status_code == 201
        with zipfile.ZipFile(io.BytesIO(client.get("/styles/plum/pack").content)) as again:
            assert json.loads(again.read("style.json"))["network"] == "0" * 64  # services of before take it, too
        assert np.array_equal(stylized(client, "plum"), toy_stylized(PHOTO, [70, 0, 70, 0]))
        assert client.get("/readyz").status_code == 200
    with TestClient(create_app(settings), client=HERE) as client:  # and when it starts again
        wait_until_loaded(client)
        assert client.get("/styles/plum").json()["own"]


def test_the_store_s_own_styles_stay(client: TestClient, parts: Files) -> None:
    assert client.delete("/styles/red").json()["code"] == "forbidden"
    papers = json.loads(parts["style.json"]) | {"name": "red"}
    assert install(client, zipped(parts | {"style.json": json.dumps(papers).encode()})).status_code == 409
    assert client.get("/styles/ink/pack").status_code == 404  # a network of its own


def _papers(**changes: object) -> Callable[[Files], Files]:
    return lambda parts: parts | {"style.json": json.dumps(json.loads(parts["style.json"]) | changes).encode()}


def _with(name: str, content: bytes) -> Callable[[Files], Files]:
    return lambda parts: parts | {name: content}


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_papers(network="0" * 64), "not served here"),
        (_papers(name="../plum"), "pattern"),
        (_papers(name="photo"), "meaning of its own"),
        (_papers(surprise=1), "style.json: surprise: Extra inputs"),
        (_with("style.json", b"{"), "JSON"),
        (_with("vector.npy", npy([1, 2, 3])), "float32 vector of 4"),
        (_with("vector.npy", npy([1, 2, np.nan, 4])), "finite"),
        (_with("vector.npy", npy([1, 2, np.inf, 4])), "finite"),
        (_with("vector.npy", npy([1, 2, 1e9, 4])), "beyond"),
        (_with("vector.npy", npy([1, 2, 3, 4], np.float64)), "float32"),
        (_with("vector.npy", npy(None, object)), ""),  # a pickle
        (_with("vector.npy", b"PK\3\4"), ""),
        (_with("preview.jpg", b"no picture"), "preview.jpg"),
        (_with("preview.jpg", PNG), "not a JPEG"),
        (_with("../evil", b"x"), "nothing else"),
        (_with("preview.jpg", bytes(3 * 2**20)), "more than"),  # few bytes, until it is unpacked
        (lambda parts: {name: parts[name] for name in ("style.json", "vector.npy")}, "nothing else"),
    ],
)
def test_a_bad_pack_is_refused_and_nothing_changes(
    client: TestClient, settings: Settings, parts: Files, spoil: Callable[[Files], Files], word: str
) -> None:
    before = client.get("/styles").json()
    answer = install(client, zipped(spoil(parts)))
    assert answer.status_code == 422, answer.text
    assert [offence["field"] for offence in answer.json()["errors"]] == ["pack"]
    assert word in answer.json()["detail"]
    assert client.get("/styles").json() == before
    assert not settings.own_styles.exists()


def test_a_truncated_pack_is_refused_wherever_it_ends(client: TestClient, parts: Files) -> None:
    whole = zipped(parts)
    for end in range(0, len(whole), len(whole) // 40):
        answer = install(client, whole[:end])
        assert answer.status_code == 422
        assert "its end is missing" in answer.json()["detail"]
    for place in range(0, len(whole), len(whole) // 40):  # a bit of it is wrong: refused, or of no importance
        answer = install(client, whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert answer.status_code in (201, 422), answer.text
        if answer.status_code == 201:
            assert client.delete(answer.headers["location"]).status_code == 204


@pytest.mark.parametrize(
    ("token", "client_address", "headers", "status"),
    [
        (None, HERE, {}, 201),
        (None, ("::1", 1), {}, 201),
        (None, ELSEWHERE, {}, 403),
        (None, ("not an address", 1), {}, 403),
        (None, ELSEWHERE, {"X-Forwarded-For": "127.0.0.1"}, 403),
        (None, ELSEWHERE, {"Authorization": "Bearer "}, 403),
        (None, HERE, {"Origin": "http://evil.example"}, 403),
        (None, HERE, {"Origin": "null"}, 403),
        (None, HERE, {"Origin": "http://testserver"}, 201),
        (TOKEN, ELSEWHERE, {}, 401),
        (TOKEN, ELSEWHERE, {"Authorization": f"Bearer {TOKEN}"}, 201),
        (TOKEN, ELSEWHERE, {"Authorization": f"bearer {TOKEN}"}, 201),
        (TOKEN, ELSEWHERE, {"Authorization": f"Bearer {TOKEN}x"}, 401),
        (TOKEN, ELSEWHERE, {"Authorization": f"Basic {TOKEN}"}, 401),
        (TOKEN, HERE, {}, 201),
        (TOKEN, HERE, {"Authorization": "Bearer wrong"}, 401),
    ],
)
def test_who_may_write(
    settings: Settings,
    parts: Files,
    token: str | None,
    client_address: tuple[str, int],
    headers: dict[str, str],
    status: int,
) -> None:
    given = settings.model_copy(update={"admin_token": SecretStr(token) if token else None})
    with TestClient(create_app(given), client=client_address) as client:
        wait_until_loaded(client)
        answer = install(client, zipped(parts), **headers)
        assert answer.status_code == status, answer.text
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert client.delete("/styles/red", headers=headers).status_code == (403 if status == 201 else status)


def test_services_that_share_a_folder_share_their_styles(
    settings: Settings, parts: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(create_app(settings), client=HERE) as one, TestClient(create_app(settings), client=HERE) as other:
        wait_until_loaded(one)
        wait_until_loaded(other)
        assert install(one, zipped(parts)).status_code == 201
        _wait(lambda: other.get("/styles/plum").status_code == 200)
        (settings.own_styles / "broken.zip").write_bytes(b"PK")
        assert one.delete("/styles/plum").status_code == 204
        _wait(lambda: other.get("/styles/plum").status_code == 404)
        assert other.get("/styles/red").status_code == 200
    assert "broken.zip" in caplog.text


def test_a_folder_that_cannot_be_written_is_said(settings: Settings, parts: Files, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    given = settings.model_copy(update={"styles_dir": tmp_path / "file" / "styles"})
    with TestClient(create_app(given), client=HERE) as client:
        wait_until_loaded(client)
        answer = install(client, zipped(parts))
        assert (answer.status_code, answer.json()["code"]) == (503, "styles_unavailable")
        assert client.get("/styles/red").status_code == 200


def test_what_is_neither_a_painting_nor_a_pack_is_said(client: TestClient, parts: Files) -> None:
    assert client.post("/styles", content=b"x", headers={"Content-Type": "image/png"}).status_code == 415
    answer = client.post("/styles", files={"other": b"x"})
    assert {offence["field"] for offence in answer.json()["errors"]} == {"other", "painting", "name"}
    both = {"pack": ("p.zip", zipped(parts)), "painting": ("p.png", PNG)}
    answer = client.post("/styles", files=both, data={"name": "x"})
    assert [offence["field"] for offence in answer.json()["errors"]] == ["pack"]


def _wait(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)
