"""The client and ``stylize gatys`` against a real server with real workers."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.cli import main
from service.client import AsyncClient, Client, GatysOrder, Optimized, Refused
from service.jobs.job import Event
from tests.jobs.conftest import PAINTING, PATIENCE_S, PHOTO, ROOT, Service, wait_for
from tests.service.pictures import pixels

Serve = Callable[..., Service]
ORDER = GatysOrder(PHOTO, style_image=PAINTING, preset="fast", iterations=10, seed=5, format="png")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    (tmp_path / "monet.png").write_bytes(PAINTING)
    return path


def url(service: Service) -> str:
    return str(service.http.base_url)


def test_sync_and_async_follow_a_job_to_the_same_picture(service: Service) -> None:
    events: list[Event] = []

    async def ask() -> Optimized:
        async with AsyncClient(url(service)) as client:
            return await client.optimize(ORDER)

    with Client(url(service)) as client:
        made = client.optimize(ORDER, events.append)
        assert client.job_preview(made.job.id).startswith(b"\xff\xd8")
        assert [event.id for event in client.events(made.job.id, after=2)] == [event.id for event in events[2:]]
    assert pixels(made.content).shape == (48, 64, 3)
    assert made.content == asyncio.run(ask()).content
    assert (made.format, made.job.status, made.job.parameters["seed"]) == ("png", "succeeded", 5)
    assert {"progress", "preview"} <= {event.type for event in events}
    assert [event.type for event in events].count("succeeded") == 1


def test_a_key_makes_one_job_and_wrong_fields_are_all_named(service: Service) -> None:
    with Client(url(service)) as client:
        first = client.submit(ORDER, "key")
        assert client.submit(ORDER, "key").id == first.id
        with pytest.raises(Refused) as refused:
            client.submit(GatysOrder(PHOTO, style="nobody", iterations=0, style_weight=float("nan")))
    assert {offence.field for offence in refused.value.offences} == {"style", "iterations", "style_weight"}


def test_a_job_that_is_cancelled_is_refused_with_the_reason(service: Service) -> None:
    with Client(url(service)) as client:
        job = client.submit(GatysOrder(PHOTO, style="red", iterations=5000))
        cancelled = threading.Timer(1, lambda: service.http.delete(f"/jobs/{job.id}"))
        cancelled.start()
        with pytest.raises(Refused, match="cancelled"):
            client.wait(job)
        cancelled.join()


def test_events_go_on_after_the_service_was_killed_and_started_again(service: Service) -> None:
    with Client(url(service)) as client:
        job = client.submit(GatysOrder(PHOTO, style="red", iterations=60, seed=1))
        heard: list[Event] = []
        for event in client.events(job.id):
            heard.append(event)
            if len(heard) == 1:
                service.kill()
                again = threading.Timer(1, service.restart_at, [service.http.base_url.port])
                again.start()
        again.join()
    assert [event.id for event in heard] == list(range(1, len(heard) + 1))
    assert heard[-1].type == "succeeded"


@pytest.mark.parametrize("source", [["-p", "monet.png"], ["--style", "red"]], ids=str)
def test_the_command_optimises_photos(
    service: Service,
    photo: Path,
    source: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photo.parent)
    assert main(["gatys", "photo.png", *source, "--iterations", "8", "--server", url(service)]) == 0
    made = photo.with_name(f"photo.{Path(source[1]).stem}.png")
    assert made.name in capsys.readouterr().err
    assert pixels(made.read_bytes()).shape == (48, 64, 3)
    assert main(["gatys", "photo.png", *source, "--iterations", "8", "-o", "out.webp", "--server", url(service)]) == 0
    assert (photo.parent / "out.webp").read_bytes()[8:12] == b"WEBP"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["photo.png"], 2, "either a painting"),
        (["photo.png", "-p", "monet.png", "-s", "red"], 2, "either a painting"),
        (["photo.png", "-p", "gone.png"], 2, "gone.png cannot be read"),
        (["gone.jpg", "-p", "monet.png"], 2, "gone.jpg: no photo"),
        (["photo.png", "-s", "green"], 1, "ships no painting for green; there are red"),
        (["photo.png", "-s", "red", "--iterations", "999999"], 1, "at most 5000"),
        (["photo.png", "-s", "red", "-o", "out.gif"], 1, "format"),
        (["photo.png", "-s", "red", "--server", NOWHERE], 3, "is the service running"),
    ],
)
def test_what_cannot_be_optimised_is_said_with_an_exit_status(
    service: Service,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(photo.parent)
    assert main(["gatys", "--server", url(service), *arguments]) == status
    assert said in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal_and_ctrl_c_cancels_the_job(service: Service, photo: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service.cli", "gatys", str(photo), "-s", "red", "--iterations", "5000"]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it
    command += ["--server", url(service)]
    with subprocess.Popen(command, stderr=theirs, cwd=ROOT, preexec_fn=listening) as process:
        os.close(theirs)
        told = b""
        while b" s left" not in told:
            told += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    os.close(ours)
    assert "█" in told.decode() or "░" in told.decode()
    assert "5000, loss" in told.decode()
    wait_for(lambda: service.metric('stylize_jobs{status="cancelled"}') == 1)
