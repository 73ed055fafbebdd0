"""Small networks with random weights, small pictures, and the service as a process with workers of its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save

from service.gatys.vgg import VGG, NetworkName
from service.jobs.parameters import Parameters, Pooling, PresetName
from tests.service.live import sample, start
from tests.service.pictures import encoded, gradient
from tests.service.toy import write_store

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0  # for a loaded machine
PHOTO = encoded(gradient(64, 48))
PAINTING = encoded(np.random.default_rng(7).integers(0, 256, (40, 56, 3), np.uint8))


def random_vgg(network: NetworkName = "vgg16", pooling: Pooling = "max") -> VGG:
    """He-initialised: features neither vanish nor explode."""
    torch.manual_seed(3)
    vgg = VGG(network, pooling=pooling)
    for parameter in vgg.convolutions.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_normal_(parameter)
        else:
            torch.nn.init.zeros_(parameter)
    return vgg


def parameters(preset: PresetName = "balanced", **changes: object) -> Parameters:
    chosen: Parameters = replace(Parameters.of(preset, {"style_image": 1.0}, seed=1), **changes)  # type: ignore[arg-type]
    return chosen


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy store with a VGG16 of random weights, and paintings to one style."""
    weights = {name: value.half() for name, value in random_vgg().convolutions.state_dict().items()}
    return write_store(tmp_path_factory.mktemp("store"), save(weights), {"red": PAINTING})


class Service:
    """``python -m service`` on a folder of jobs; killed without warning, and started again, as a test likes."""

    def __init__(self, store: Path, data: Path, ready: bool = True, /, **variables: str) -> None:
        self.data = data
        self._variables = {
            "STYLIZE_PROVIDER": "cpu",
            "STYLIZE_MODEL_STORE": str(store),
            "STYLIZE_DATA_DIR": str(data),
            **variables,
        }
        self.start(ready)

    def start(self, ready: bool = True) -> None:
        self._process = start(**self._variables)
        assert self._process.stdout
        greeting = self._process.stdout.readline()
        self.http = httpx.Client(base_url=greeting.split()[-1], timeout=PATIENCE_S)
        if ready:
            wait_for(lambda: self.http.get("/readyz").status_code == 200)

    def restart_at(self, port: int | None) -> None:
        """At the address that its clients know."""
        self._variables["STYLIZE_PORT"] = str(port)
        self.start()

    def kill(self) -> None:
        """As the kernel does it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        self.http.close()
        self._process.send_signal(number)
        self._process.wait(PATIENCE_S)
        assert self._process.stdout
        self._process.stdout.close()

    def submit(self, **fields: object) -> dict[str, Any]:
        headers = fields.pop("headers", None)
        files = {"image": ("a.png", PHOTO), "style_image": ("b.png", PAINTING)} | fields.pop("files", {})  # type: ignore[operator]
        data = {"iterations": "10", "seed": "5"} | {name: str(value) for name, value in fields.items()}
        response = self.http.post("/gatys", files=files, data=data, headers=headers)  # type: ignore[arg-type]
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        assert response.headers["location"] == job["links"]["self"]
        return job

    def job(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/jobs/{id}").json()
        return found

    def wait(self, id: str, *statuses: str) -> dict[str, Any]:
        wait_for(lambda: self.job(id)["status"] in (statuses or ("succeeded",)), lambda: str(self.job(id)))
        return self.job(id)

    def workers(self) -> list[int]:
        """The processes that work for this very folder."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    command = (folder / "cmdline").read_text()
                except OSError:
                    continue
                if "service.jobs.worker" in command and str(self.data) in command:
                    found.append(int(folder.name))
        return found

    def metric(self, name: str) -> float:
        return sample(self.http.get("/metrics").text, name)


def wait_for(condition: Callable[[], object], said: Callable[[], str] = lambda: "") -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain: {said()}"
        time.sleep(0.05)


@pytest.fixture
def serve(store: Path, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:

        def serve(**variables: str) -> Service:
            return stack.enter_context(_serving(store, tmp_path / "data", **variables))

        yield serve


@contextmanager
def _serving(store: Path, data: Path, **variables: str) -> Iterator[Service]:
    service = Service(store, data, **variables)
    try:
        yield service
    finally:
        service.stop()
    wait_for(lambda: not service.workers())
