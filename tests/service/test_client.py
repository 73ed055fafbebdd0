"""The client and the command line, against a real server's process and without one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.cli import main
from service.client import AsyncClient, Client, Order, Refused, Stylized, Unreachable
from service.local import Local
from tests.service.pictures import encoded, gradient, pixels
from tests.service.test_process import serving, wait_until_ready
from tests.service.toy import VECTORS, toy_stylized

PHOTO = gradient(60, 40)
PNG = encoded(PHOTO)
RED = toy_stylized(PHOTO, VECTORS["red"])
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def url(toy_store: Path) -> Iterator[str]:
    with serving(STYLIZE_MODEL_STORE=str(toy_store)) as (url, _):
        wait_until_ready(url)
        yield url


@pytest.fixture(params=["server", "local"])
def where(request: pytest.FixtureRequest, toy_store: Path) -> list[str]:
    """The arguments that choose a server, or none."""
    if request.param == "server":
        return ["--server", request.getfixturevalue("url")]
    return ["--store", str(toy_store)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(PNG)
    (folder / "notes.txt").write_text("not a photo")
    return folder


ORDERS = [
    Order(PNG, "red"),
    Order(PNG, "red:1,green:3", strength=0.3, format="webp", quality=100),
    Order(PNG, "negative", preserve_color="histogram", mask=PNG, max_side=30),
    Order(PNG, "green", style_coarse="red:1,negative:3", format="png"),
    Order(PNG, style_image=encoded(np.full((9, 7, 3), (10, 20, 30), np.uint8))),
    Order(PNG, masks=encoded(Image.fromarray(PHOTO).quantize(4)), mask_styles="0:red,1:green"),
]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_server_async_and_local_make_the_same_picture(url: str, toy_store: Path, order: Order) -> None:
    async def ask() -> Stylized:
        async with AsyncClient(url) as client:
            return await client.fill(order)

    with Client(url) as client:
        results = [client.fill(order), asyncio.run(ask()), Local(toy_store, "cpu").fill(order)]
    assert len({result.content for result in results}) == 1
    assert len({(result.style, result.model, result.format) for result in results}) == 1


def test_the_styles_and_previews_are_there(url: str) -> None:
    with Client(url) as client:
        assert client.ready()
        styles = client.styles()
        assert {"red", "green", "ink"} <= {style.name for style in styles}
        assert client.preview("red").startswith(b"\xff\xd8")


def test_what_is_wrong_is_told_the_same_with_and_without_a_server(url: str, toy_store: Path) -> None:
    order = Order(b"not an image", "red", strength=7, quality=0)
    with Client(url) as client, pytest.raises(Refused) as remote:
        client.fill(order)
    with pytest.raises(Refused) as local:
        Local(toy_store, "cpu").fill(order)
    assert remote.value.status == local.value.status == 422
    assert remote.value.offences == local.value.offences
    assert {offence.field for offence in remote.value.offences} == {"strength", "quality"}


def test_no_server_is_told_with_its_address() -> None:
    with Client(NOWHERE) as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        client.styles()


def test_one_photo_becomes_the_file_asked_for(where: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.webp"
    assert main([str(photos / "a.png"), "-s", "red", "-o", str(out), "--quality", "100", *where]) == 0
    with Image.open(out) as image:
        assert (image.format, image.size) == ("WEBP", (60, 40))


def test_a_picture_lies_beside_its_photo_by_default(where: list[str], photos: Path) -> None:
    assert main([str(photos / "a.png"), "-s", "red:1,green:1", *where]) == 0
    assert (photos / "a.red-green.png").exists()
    assert (photos / "a.png").read_bytes() == PNG


@pytest.mark.parametrize("given", ["photos", "photos/*.png"])
def test_folders_and_patterns_fill_a_folder(where: list[str], photos: Path, tmp_path: Path, given: str) -> None:
    assert main([str(tmp_path / given), "-s", "red", "-o", str(tmp_path / "out"), *where]) == 0
    results = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in results] == ["a.png", "b.png"]
    assert all(np.array_equal(pixels(path.read_bytes()), RED) for path in results)


def test_a_photo_that_fails_is_named_and_the_others_are_made(
    where: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").write_bytes(b"x")
    assert main([str(photos), "-s", "red", "-o", str(tmp_path / "out"), *where]) == 1
    assert "broken.jpg: the bytes are not" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_any_painting_s_style_is_taken_from_its_file(where: list[str], photos: Path, tmp_path: Path) -> None:
    painting = tmp_path / "blue night.png"
    painting.write_bytes(encoded(np.full((9, 7, 3), (10, 20, 30), np.uint8)))
    assert main([str(photos / "a.png"), "--style-image", str(painting), *where]) == 0
    found = pixels((photos / "a.blue night.png").read_bytes())
    assert np.array_equal(found, toy_stylized(PHOTO, [10, 20, 30, 0]))
    painting.write_bytes(b"no picture")
    assert main([str(photos / "b.png"), "--style-image", str(painting), *where]) == 1


def test_the_styles_are_listed(where: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", *where]) == 0
    assert "negative" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["a.png"], 2, "no style"),
        (["-s", "red"], 2, "no photo"),
        (["nowhere.png", "-s", "red"], 2, "nowhere.png"),
        (["a.png", "-s", "red", "-o", "out.bmp"], 2, ".webp"),
        (["a.png", "-s", "red", "--mask", "gone.png"], 2, "gone.png"),
        (["a.png", "b.png", "-s", "red", "-o", "a.png"], 2, "folder"),
        (["a.png", "a.png", "-s", "red", "-o", "out"], 2, "overwrite"),
        (["a.png", "-s", "red", "-o", "a.png"], 1, "overwrite the photo"),
        (["a.png", "-s", "nobody"], 1, "no style is called nobody"),
        (["a.png", "-s", "red", "--server", NOWHERE], 3, "is the service running"),
        (["a.png", "-s", "red", "--store", "gone"], 3, "gone"),
    ],
)
def test_what_cannot_be_done_is_said_with_an_exit_status(
    photos: Path,
    toy_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(photos)
    assert main(["--store", str(toy_store), *arguments]) == status
    assert said in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == PNG
