"""Jobs over HTTP: real workers, real torch, small pictures."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.client import Client, GatysOrder
from service.settings import Settings
from tests.jobs.conftest import PAINTING, PATIENCE_S, PHOTO, ROOT, Service, wait_for
from tests.service.conftest import wait_until_loaded
from tests.service.pictures import encoded, gradient, pixels

Serve = Callable[..., Service]


def leftovers(data: Path) -> list[str]:
    kept = {"preview.jpg", "result"}
    return [str(path) for path in (data / "jobs").rglob("*") if path.is_file() and path.name not in kept]


def events(service: Service, id: str, after: int = 0) -> list[tuple[int, str]]:
    text = service.http.get(f"/jobs/{id}/events", headers={"Last-Event-ID": str(after)}).text
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(int(block["id"]), block["event"]) for block in blocks if "id" in block]


def test_a_job_from_its_order_to_its_result(serve: Serve) -> None:
    service = serve()
    job = service.submit(iterations=12)
    assert job["status"] == "queued"
    assert job["position"] == 1
    told = events(service, job["id"])  # to the end of the stream: the job's end
    assert [type for _, type in told].count("succeeded") == 1
    assert told[-1][1] == "succeeded"
    assert {"progress", "preview"} <= {type for _, type in told}
    assert [id for id, _ in told] == list(range(1, len(told) + 1))
    assert events(service, job["id"], after=2) == told[2:]
    done = service.job(job["id"])
    assert (done["status"], done["progress"], done["attempt"]) == ("succeeded", 1.0, 1)
    assert done["parameters"]["seed"] == 5
    assert done["loss"]["total"] > 0
    result = service.http.get(f"/jobs/{job['id']}/result")
    assert result.headers["content-type"] == "image/png"
    assert pixels(result.content).shape == (48, 64, 3)
    assert np.abs(pixels(result.content).astype(int) - gradient(64, 48)).mean() > 1
    again = service.http.get(f"/jobs/{job['id']}/result", headers={"If-None-Match": result.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert service.http.get(f"/jobs/{job['id']}/preview").headers["content-type"] == "image/jpeg"
    assert service.http.delete(f"/jobs/{job['id']}").status_code == 204
    wait_for(lambda: leftovers(service.data) == [])  # they go once the end is told
    assert service.metric('stylize_jobs_total{outcome="succeeded"}') == 1
    assert service.metric('stylize_jobs{status="succeeded"}') == 1
    assert service.metric("stylize_job_iterations_total") >= 12


def test_a_shipped_painting_is_asked_for_by_its_name(serve: Serve) -> None:
    service = serve()
    fields = {"style": "red", "iterations": "8", "seed": "1", "preserve_color": "luminance", "format": "jpeg"}
    response = service.http.post("/gatys", files={"image": PHOTO, "mask": PHOTO}, data=fields)
    assert response.status_code == 202, response.text
    job = service.wait(response.json()["id"])
    assert job["parameters"]["style"] == {"red": 1.0}
    assert service.http.get(f"/jobs/{job['id']}/result").headers["content-type"] == "image/jpeg"


def test_several_paintings_count_by_their_weights(serve: Serve) -> None:
    service = serve()
    other = encoded(255 - gradient(50, 40))
    pictures = []
    with Client(str(service.http.base_url)) as client:
        for paintings, weights in (((PAINTING,), None), ((PAINTING, other), "3,1"), ((other, PAINTING), "1,3")):
            order = GatysOrder(PHOTO, paintings, weights, iterations=8, seed=5, format="png")
            made = client.wait(client.submit(order))
            pictures.append(made.content)
            style = made.job.parameters["style"]
            assert list(style) == ["style_image", "style_image-2"][: len(paintings)]
            assert sum(style.values()) == pytest.approx(1)
    assert pictures[0] != pictures[1]
    difference = np.abs(pixels(pictures[1]).astype(int) - pixels(pictures[2]))
    assert difference.mean() < 1  # the order of the sums, and nothing else


@pytest.mark.parametrize(
    ("fields", "model"),
    [({}, "toy"), ({"init": "content"}, None), ({"preserve_color": "histogram"}, None), ({"preset": "balanced"}, None)],
)
def test_fast_begins_with_the_networks_picture(serve: Serve, fields: dict[str, str], model: str | None) -> None:
    service = serve()
    data = {"style": "red", "preset": "fast", "iterations": "5", "format": "png"} | fields
    job = service.http.post("/gatys", files={"image": PHOTO}, data=data).json()
    assert job["parameters"]["start_model"] == model
    assert service.wait(job["id"])["status"] == "succeeded"


def test_equal_seeds_make_equal_pictures_and_a_key_makes_one_job(serve: Serve) -> None:
    service = serve()
    first = service.submit(init="noise", seed=9, headers={"Idempotency-Key": "a"})
    assert service.submit(init="noise", seed=9, headers={"Idempotency-Key": "a"})["id"] == first["id"]
    second = service.submit(init="noise", seed=9)
    assert second["id"] != first["id"]
    results = []
    for job in (first, second):
        service.wait(job["id"])
        results.append(service.http.get(f"/jobs/{job['id']}/result").content)
    assert results[0] == results[1]
    response = service.http.post(
        "/gatys",
        files={"image": PHOTO, "style_image": PAINTING},
        data={"seed": "10"},
        headers={"Idempotency-Key": "a"},
    )
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["Idempotency-Key"]


def test_a_running_job_is_cancelled_and_its_worker_is_free_for_the_next(serve: Serve) -> None:
    service = serve()
    long = service.submit(iterations=5000, preset="keras")
    waiting = service.submit()
    service.wait(long["id"], "running")
    assert service.http.get(f"/jobs/{long['id']}/result").status_code == 409
    assert service.job(waiting["id"])["position"] == 1
    wait_for(lambda: service.job(long["id"])["iteration"] > 0)
    answer = service.http.delete(f"/jobs/{long['id']}")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert events(service, long["id"])[-1][1] == "cancelled"
    service.wait(waiting["id"])
    wait_for(lambda: leftovers(service.data) == [])  # they go once the end is told


def test_a_queued_job_is_cancelled_before_it_begins(serve: Serve) -> None:
    service = serve()
    long, queued = service.submit(iterations=5000, preset="keras"), service.submit()
    assert service.http.delete(f"/jobs/{queued['id']}").status_code == 204
    assert service.job(queued["id"])["status"] == "cancelled"
    assert service.http.delete(f"/jobs/{long['id']}").status_code in (202, 204)


def test_a_killed_worker_is_replaced_and_its_job_goes_on_from_the_checkpoint(serve: Serve) -> None:
    service = serve()
    job = service.submit(iterations=4000, preset="keras")
    checkpoint = service.data / "jobs" / job["id"] / "checkpoint"
    wait_for(checkpoint.exists)
    reached = service.job(job["id"])["iteration"]
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: service.job(job["id"])["attempt"] == 2)
    wait_for(lambda: service.job(job["id"])["iteration"] > reached)
    assert _progress(service.data, job["id"]).count(1) == 1, "it began anew"
    service.http.delete(f"/jobs/{job['id']}")
    assert service.metric('stylize_worker_restarts_total{reason="died"}') == 1


def _progress(data: Path, id: str) -> list[int]:
    with sqlite3.connect(data / "jobs.sqlite") as db:
        rows = db.execute(
            "SELECT data FROM events WHERE job_id = ? AND type = 'progress' ORDER BY id", (id,)
        ).fetchall()
    db.close()
    return [json.loads(row[0])["iteration"] for row in rows]


def test_a_job_that_kills_its_workers_fails_after_three(serve: Serve) -> None:
    service = serve()
    job = service.submit(iterations=5000, preset="keras")
    for attempt in (1, 2, 3):
        wait_for(lambda attempt=attempt: service.job(job["id"])["attempt"] == attempt and service.workers())  # type: ignore[misc]
        for worker in service.workers():
            os.kill(worker, signal.SIGKILL)
    failed = service.wait(job["id"], "failed")
    assert failed["error"]["code"] == "worker_lost"
    assert "signal 9" in failed["error"]["detail"]
    assert events(service, job["id"])[-1][1] == "failed"


def test_the_service_is_killed_and_goes_on_where_it_was(serve: Serve) -> None:
    service = serve()
    running = service.submit(iterations=4000, preset="keras")
    queued = service.submit()
    wait_for((service.data / "jobs" / running["id"] / "checkpoint").exists)
    reached = service.job(running["id"])["iteration"]
    service.kill()
    wait_for(lambda: not service.workers())  # they do not outlive it
    service.start()
    wait_for(lambda: service.job(running["id"])["attempt"] == 2)
    wait_for(lambda: service.job(running["id"])["iteration"] > reached)
    assert service.job(queued["id"])["status"] == "queued"
    assert service.http.delete(f"/jobs/{running['id']}").status_code == 202
    service.wait(queued["id"])


def test_numbers_that_leave_their_range_fail_the_job_alone(serve: Serve) -> None:
    service = serve()
    bad = service.submit(preset="keras", style_weight="1e12", content_weight="1e12", iterations=200)
    failed = service.wait(bad["id"], "failed")
    assert (failed["error"]["code"], failed["error"]["status"]) == ("diverged", 422)
    (worker,) = service.workers()
    service.wait(service.submit()["id"])
    assert service.workers() == [worker]


def test_a_job_that_takes_too_long_fails(serve: Serve) -> None:
    service = serve(STYLIZE_JOB_TIMEOUT_S="1")
    job = service.submit(iterations=5000, preset="keras")
    assert service.wait(job["id"], "failed")["error"]["code"] == "deadline_exceeded"


def test_a_result_expires(serve: Serve) -> None:
    service = serve(STYLIZE_RESULT_TTL_S="3")
    job = service.submit()
    assert service.wait(job["id"], "succeeded", "expired")
    service.wait(job["id"], "expired")
    gone = service.http.get(f"/jobs/{job['id']}/result")
    assert (gone.status_code, gone.json()["code"]) == (410, "expired")
    assert service.http.get(f"/jobs/{job['id']}/events").status_code == 410
    assert not (service.data / "jobs" / job["id"]).exists()


def test_a_full_queue_is_503(serve: Serve) -> None:
    service = serve(STYLIZE_MAX_JOBS="1")
    running = service.submit(iterations=5000, preset="keras")
    service.wait(running["id"], "running")
    waiting = service.submit()
    response = service.http.post("/gatys", files={"image": PHOTO, "style_image": PAINTING})
    assert (response.status_code, response.json()["code"]) == (503, "saturated")
    assert int(response.headers["retry-after"]) >= 1
    for job in (running, waiting):
        service.http.delete(f"/jobs/{job['id']}")


def test_chaos_loses_nothing(serve: Serve) -> None:
    """Twenty jobs; ten times a worker is killed and twice the service; every job has its one result."""
    service = serve(STYLIZE_GATYS_WORKERS="2")
    random = np.random.default_rng(1)
    ids = [service.submit(iterations=60, preset="keras", seed=seed)["id"] for seed in range(20)]
    for killed in range(1, 11):
        wait_for(lambda: _safe_victims(service))
        time.sleep(random.uniform(0, 0.5))
        wait_for(lambda: _killed_one_of(_safe_victims(service), random))
        if killed in (4, 7):
            service.kill()
            service.start()
    assert any(service.job(id)["status"] != "succeeded" for id in ids), (
        "all were done before the last worker was killed"
    )
    for id in ids:
        service.wait(id)
        kinds = [type for _, type in events(service, id)]
        assert kinds.count("succeeded") == 1
        assert kinds[-1] == "succeeded"
        assert service.http.get(f"/jobs/{id}/result").status_code == 200
    wait_for(lambda: leftovers(service.data) == [])  # they go once the end is told
    assert len(list((service.data / "jobs").iterdir())) == 20


def _killed_one_of(workers: list[int], random: np.random.Generator) -> bool:
    if not workers:
        return False
    try:
        os.kill(int(random.choice(workers)), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _safe_victims(service: Service) -> list[int]:
    """Workers, while no job has lost two already: chance must not make one fail."""
    with closing(sqlite3.connect(service.data / "jobs.sqlite", timeout=30)) as db:
        deaths = db.execute("SELECT max(deaths) FROM jobs WHERE status IN ('running', 'queued')").fetchone()[0]
    return service.workers() if (deaths or 0) < 2 else []


@pytest.fixture(scope="module")
def client(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """No worker ever has to start for it."""
    settings = Settings(
        model_store=store,
        provider="cpu",
        data_dir=tmp_path_factory.mktemp("data"),
        max_side=600,
        sync_max_pixels=10**5,
        max_queue_pixels=10**6,
    )
    with TestClient(create_app(settings)) as client:
        yield wait_until_loaded(client)


def order(
    client: TestClient, image: bytes = PHOTO, painting: bytes | None = PAINTING, **fields: object
) -> httpx.Response:
    files = {"image": ("a", image)} | ({"style_image": ("b", painting)} if painting is not None else {})
    return client.post("/gatys", files=files, data={name: str(value) for name, value in fields.items()})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("iterations", 10**9),
        ("style_weight", 0),
        ("style_weight", "nan"),
        ("content_weight", -1),
        ("tv_weight", "inf"),
        ("preset", "worst"),
        ("init", "nothing"),
        ("optimizer", "newton"),
        ("network", "vgg19"),
        ("max_side", 4),
        ("max_side", 601),
        ("preserve_color", "purple"),
        ("format", "gif"),
        ("quality", 0),
        ("seed", -1),
        ("style", "red"),
        ("style_image_weights", "1,1"),
        ("style_image_weights", "-1"),
        ("style_image_weights", "nan"),
        ("style_image_weights", ""),
        ("webhook_url", "https://example.org/"),
        ("deadline_ms", 5),
        ("colour", 1),
    ],
)
def test_a_wrong_field_is_named(client: TestClient, field: str, value: str | int) -> None:
    response = order(client, PHOTO, PAINTING, **{field: value})
    assert response.status_code == 422, response.text
    assert [error["field"] for error in response.json()["errors"]] == [field]


def test_every_wrong_field_is_named_at_once(client: TestClient) -> None:
    response = client.post(
        "/gatys", data={"iterations": "0", "seed": "x", "mask": "x"}, headers={"Idempotency-Key": ""}
    )
    named = {error["field"] for error in response.json()["errors"]} if response.status_code == 422 else set()
    assert response.status_code in (415, 422)
    response = client.post(
        "/gatys",
        files={"other": PHOTO},
        data={"iterations": "0", "seed": "x", "preset": "worst"},
        headers={"Idempotency-Key": "with space"},
    )
    named = {error["field"] for error in response.json()["errors"]}
    assert named == {"other", "image", "style", "iterations", "seed", "preset", "Idempotency-Key"}


def test_the_remedy_for_a_network_that_is_not_there_is_told(client: TestClient) -> None:
    assert "python -m export fetch vgg19" in order(client, network="vgg19").json()["detail"]


def test_only_shipped_paintings_can_be_named(client: TestClient) -> None:
    response = order(client, painting=None, style="green")
    assert response.status_code == 422
    assert "there are red" in response.json()["detail"]


@pytest.mark.parametrize("size", [(1, 1), (8, 4000), (4000, 8)])
def test_a_picture_too_small_to_have_features_is_refused(client: TestClient, size: tuple[int, int]) -> None:
    small = encoded(gradient(*size))
    assert [error["field"] for error in order(client, small).json()["errors"]] == ["image"]
    assert [error["field"] for error in order(client, painting=small).json()["errors"]] == ["style_image"]


def test_more_than_eight_paintings_are_refused(client: TestClient) -> None:
    response = client.post("/gatys", files=[("image", ("a", PHOTO)), *[("style_image", ("b", PAINTING))] * 9])
    assert [error["field"] for error in response.json()["errors"]] == ["style_image"]


def test_what_is_no_picture_is_400(client: TestClient) -> None:
    assert order(client, b"no picture").status_code == 400
    assert order(client, painting=b"no picture").status_code == 400
    assert order(client, PHOTO[:90]).status_code == 400


@pytest.mark.parametrize("path", ["", "/events", "/preview", "/result"])
def test_an_unknown_job_is_404(client: TestClient, path: str) -> None:
    assert client.get(f"/jobs/nothing{path}").status_code == 404
    assert client.delete("/jobs/nothing").status_code == 404


WITHOUT_TORCH = """
import os, pathlib, sys, time
from importlib.machinery import PathFinder

class Blocked(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in ("torch", "safetensors") else super().find_spec(name, path, target)

sys.meta_path = [Blocked if finder is PathFinder else finder for finder in sys.meta_path]
from fastapi.testclient import TestClient
from service.app import create_app
from service.settings import Settings

photo = pathlib.Path(sys.argv[1]).read_bytes()
with TestClient(create_app(Settings.from_env(os.environ)), client=("127.0.0.1", 1)) as client:
    while client.get("/readyz").status_code != 200:
        time.sleep(0.05)
    assert client.post("/stylize?style=red", content=photo, headers={"Content-Type": "image/png"}).status_code == 200
    answer = client.post("/gatys", files={"image": photo, "style_image": photo})
    assert answer.status_code == 503, answer.text
    assert answer.json()["code"] == "gatys_unavailable"
    assert "extra 'gatys'" in answer.json()["detail"]
    for name, painting, status in (("plum", photo, 503), ("red", photo, 409), ("plum", b"no picture", 400)):
        answer = client.post("/styles", data={"name": name}, files={"painting": painting})
        assert answer.status_code == status, answer.text
assert "torch" not in sys.modules
"""


def test_without_torch_stylize_serves_and_gatys_says_what_to_install(store: Path, tmp_path: Path) -> None:
    variables = {
        "STYLIZE_MODEL_STORE": str(store),
        "STYLIZE_DATA_DIR": str(tmp_path / "data"),
        "STYLIZE_PROVIDER": "cpu",
    }
    (tmp_path / "photo.png").write_bytes(PHOTO)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "photo.png")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
