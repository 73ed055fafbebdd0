"""A service on a toy store, in process, ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.toy import write_store

ClientFactory = Callable[..., TestClient]


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only by agreement; a test that spoils a store writes its own."""
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def client(toy_store: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(model_store=toy_store, provider="cpu"))) as client:
        yield wait_until_loaded(client)


@pytest.fixture
def start(toy_store: Path) -> Iterator[ClientFactory]:
    """Start a service with settings of the test's own."""
    with ExitStack() as stack:

        def _start(**settings: object) -> TestClient:
            defaults: dict[str, Any] = {"model_store": toy_store, "provider": "cpu"}
            app = create_app(Settings(**defaults | settings))
            return wait_until_loaded(stack.enter_context(TestClient(app)))

        yield _start


def wait_until_loaded(client: TestClient) -> TestClient:
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        ready = client.get("/readyz")
        if ready.status_code == 200 or "loading" not in ready.text:
            return client
        time.sleep(0.01)
    raise AssertionError(f"still not loaded: {ready.text}")
