"""Styles that are made of a painting: the training of one vector, and the job that does it in a running service."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.cli import main
from service.client import AsyncClient, Client, StyleOrder
from service.gatys.refine import Progress, State, nearest_of, refine
from service.gatys.run import load_vgg
from service.gatys.transformer import Transformer, load_transformer
from service.gatys.vgg import VGG
from service.jobs.job import Event
from service.models.packs import Pack
from service.models.store import ModelStore, StoredModel
from tests.jobs.conftest import PHOTO, ROOT, Service, wait_for
from tests.jobs.test_service import events
from tests.service.pictures import encoded, pixels

Serve = Callable[..., Service]
STORE = ROOT / "model_store"
PHOTOS = ROOT / "tests" / "photos"


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    return ModelStore(STORE).load(STORE / "fast" / "2")


@pytest.fixture(scope="module")
def network(stored: StoredModel) -> Transformer:
    return load_transformer(stored.graph, "fast")[0]


@pytest.fixture(scope="module")
def vgg() -> VGG:
    return load_vgg(STORE / "vgg16" / "1" / "vgg16.safetensors", "vgg16")


@pytest.fixture(scope="module")
def painting() -> np.ndarray:
    with Image.open(PHOTOS / "astronaut.jpg") as file:
        return np.asarray(file.convert("RGB").resize((128, 128)))


def test_a_vector_comes_closer_to_its_painting(
    stored: StoredModel, network: Transformer, vgg: VGG, painting: np.ndarray
) -> None:
    seen: list[Progress] = []
    known = {name: stored.vectors[name] for name in ("kiss", "udnie")}
    start = nearest_of(vgg, network, painting, known)
    assert any(start is vector for vector in known.values())
    made = refine(vgg, network, painting, State.first(start), steps=24, observe=seen.append)
    assert made.shape == start.shape
    assert not np.array_equal(made, start)
    losses = [progress.losses.style for progress in seen]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    assert seen[-1].pixels().shape[2] == 3


def test_a_refinement_goes_on_as_if_it_had_never_been_stopped(
    stored: StoredModel, network: Transformer, vgg: VGG, painting: np.ndarray
) -> None:
    states: list[bytes] = []
    start = State.first(stored.vectors["kiss"])
    whole = refine(
        vgg, network, painting, start, steps=6, seed=3, observe=lambda p: states.append(p.checkpoint().packed())
    )
    resumed = refine(vgg, network, painting, State.unpacked(states[2]), steps=6, seed=3)
    assert np.allclose(resumed, whole, atol=1e-5)
    other = refine(vgg, network, painting, start, steps=6, seed=4)
    assert not np.allclose(other, whole, atol=1e-5)


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve(STYLIZE_MODEL_STORE=str(STORE))


def submit(service: Service, **fields: Any) -> Any:  # noqa: ANN401
    files = {"painting": ("p.jpg", (PHOTOS / "coffee.jpg").read_bytes())} | fields.pop("files", {})
    return service.http.post("/styles", files=files, data={"name": "cup", "steps": "3", "model": "fast"} | fields)


def test_a_painting_becomes_a_style_of_the_running_service(service: Service, tmp_path: Path) -> None:
    answer = submit(service, title="A cup", artist="R. Michetti")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == job["links"]["self"]
    assert submit(service).status_code == 409  # the name is taken already
    assert events(service, job["id"])[-1][1] == "succeeded"
    done = service.job(job["id"])
    assert (done["iterations"], done["parameters"]["method"]) == (3, "refine")
    assert done["loss"]["style"] > 0
    style = _wait_for_style(service, "cup")
    assert (style["title"], style["artist"], style["own"], style["models"]) == ("A cup", "R. Michetti", True, ["fast"])
    painted = service.http.post("/stylize?style=cup&format=png", content=PHOTO, headers={"Content-Type": "image/png"})
    assert painted.status_code == 200
    mixed = service.http.post(
        "/stylize?style=cup:1,kiss:1&format=png", content=PHOTO, headers={"Content-Type": "image/png"}
    )
    assert not np.array_equal(pixels(mixed.content), pixels(painted.content))
    preview = service.http.get("/styles/cup/preview")
    assert max(Image.open(io.BytesIO(preview.content)).size) == 512
    pack = service.http.get("/styles/cup/pack")
    assert pack.content == service.http.get(job["links"]["result"]).content
    service.kill()
    service.start()
    assert _wait_for_style(service, "cup") == style  # it is still there
    assert service.http.delete("/styles/cup").status_code == 204
    assert service.http.get("/styles/cup").status_code == 404
    assert service.http.post("/styles", files={"pack": ("cup.zip", pack.content)}).status_code == 201
    again = service.http.post("/stylize?style=cup&format=png", content=PHOTO, headers={"Content-Type": "image/png"})
    assert again.content == painted.content


def test_a_service_that_was_killed_still_gets_its_style(service: Service) -> None:
    job = submit(service, steps="8").json()
    service.wait(job["id"], "running", "succeeded")
    service.kill()
    service.start()
    service.wait(job["id"])
    assert _wait_for_style(service, "cup")["own"]


def test_a_cancelled_job_frees_its_name_and_leaves_no_style(service: Service) -> None:
    job = submit(service, steps="5000").json()
    service.wait(job["id"], "running")
    service.http.delete(f"/jobs/{job['id']}")
    service.wait(job["id"], "cancelled")
    assert service.http.get("/styles/cup").status_code == 404
    wait_for(lambda: submit(service).status_code == 202)


def test_a_large_picture_is_painted_in_a_style_of_one_s_own(serve: Serve) -> None:
    service = serve(STYLIZE_MODEL_STORE=str(STORE), STYLIZE_SYNC_MAX_PIXELS="1000")
    kiss = Pack.unzipped(service.http.get("/styles/kiss/pack").content, _dimensions())
    mine = replace(kiss, papers=kiss.papers.model_copy(update={"name": "mine"}))
    assert service.http.post("/styles", files={"pack": ("a.zip", mine.zipped())}).status_code == 201
    found = []
    for style in ("mine", "kiss"):
        model = kiss.papers.model
        job = service.http.post(
            f"/stylize?style={style}&model={model}&format=png", content=PHOTO, headers={"Content-Type": "image/png"}
        ).json()
        service.wait(job["id"])
        found.append(service.http.get(job["links"]["result"]).content)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("fields", "files", "status", "named"),
    [
        ({"name": "kiss"}, {}, 409, "kiss"),
        ({"name": "Ünïcode"}, {}, 422, "name"),
        ({"name": "../up"}, {}, 422, "name"),
        ({"name": "photo"}, {}, 422, "name"),
        ({"steps": "0"}, {}, 422, "steps"),
        ({"steps": "1e9"}, {}, 422, "steps"),
        ({"model": "classic_udnie"}, {}, 422, "model"),
        ({"colour": "x"}, {}, 422, "colour"),
        ({}, {"painting": ("p", b"")}, 400, ""),
        ({}, {"painting": ("p", encoded(np.zeros((2, 2, 3), np.uint8)))}, 422, "painting"),
        ({}, {"pack": ("p", b"PK")}, 422, "pack"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    service: Service, fields: dict[str, str], files: dict[str, Any], status: int, named: str
) -> None:
    before = service.http.get("/styles").json()
    answer = submit(service, **fields, files=files)
    assert answer.status_code == status
    assert named in answer.json()["detail"]
    assert service.http.get("/styles").json() == before
    assert not list((service.data / "styles").glob("*"))


@pytest.mark.parametrize("colour", [(255, 255, 255, 255), (200, 30, 30, 0)])
def test_a_white_picture_and_a_transparent_logo_make_styles(service: Service, colour: tuple[int, ...]) -> None:
    painting = encoded(np.full((64, 64, 4), colour, np.uint8))
    job = submit(service, files={"painting": ("p.png", painting)}).json()
    service.wait(job["id"])
    assert _wait_for_style(service, "cup")["own"]


def _dimensions() -> dict[str, int]:
    cards = [model.card for model in ModelStore(STORE).networks()]
    return {card.network_sha256: card.dimension for card in cards}


def _wait_for_style(service: Service, name: str) -> dict[str, Any]:
    wait_for(lambda: service.http.get(f"/styles/{name}").status_code == 200)
    found: dict[str, Any] = service.http.get(f"/styles/{name}").json()
    return found


def test_the_client_and_the_command_make_take_away_and_bring_in_a_style(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(service.http.base_url)
    told: list[Event] = []
    order = StyleOrder((PHOTOS / "coffee.jpg").read_bytes(), "cup", title="A cup", steps=2, model="fast")
    with Client(url) as client:
        assert client.make_style(order, told.append).title == "A cup"
        assert {"progress", "succeeded"} <= {event.type for event in told}
    at = ["--server", url]
    pack = tmp_path / "cup.zip"
    assert main(["style", "pack", "cup", "-o", str(pack), *at]) == 0
    assert main(["style", "install", str(pack), *at]) == 1
    assert main(["style", "remove", "cup", *at]) == 0
    assert main(["style", "install", str(pack), *at]) == 0
    painting = ["style", "add", str(PHOTOS / "flower.jpg"), "--steps", "2", "--model", "fast"]
    assert main([*painting, "--name", "petals", *at]) == 0
    assert main([*painting, "--name", "petals", *at]) == 1
    assert main(["style", "remove", "kiss", *at]) == 1
    assert main(["style", "install", str(tmp_path / "nothing.zip"), *at]) == 2
    said = capsys.readouterr().err
    assert "petals is there, in fast" in said
    assert "belongs to the model store" in said

    async def by_asyncio() -> str:
        async with AsyncClient(url) as client:
            taken = await client.pack("petals")
            await client.remove_style("petals")
            style = await client.install(taken)
            await client.make_style(replace(order, name="bowl"))
            return style.name

    assert asyncio.run(by_asyncio()) == "petals"
