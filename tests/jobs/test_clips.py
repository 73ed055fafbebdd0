"""MP4 in, MP4 out: a job, done by a real worker with a toy network that changes colours alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import httpx2 as httpx
import numpy as np

from service.animations import AnimationLimits
from service.client import Client, Order
from tests.jobs.conftest import Service, wait_for
from tests.jobs.test_service import events
from tests.service.clips import SIZE, clip, packets, played
from tests.service.pictures import gradient
from tests.service.toy import VECTORS, toy_stylized

Serve = Callable[..., Service]
LIMITS = AnimationLimits(100, 10**6)
LOSS = 4  # mean levels that 4:2:0 and H.264 may take from a gradient


def ask(http: httpx.Client, content: bytes, **fields: str) -> httpx.Response:
    return http.post("/stylize", files={"image": ("a.mp4", content, "video/mp4")}, data={"style": "red"} | fields)


def test_a_clip_becomes_a_clip_with_its_times_and_its_sound(serve: Serve) -> None:
    service = serve()
    source = clip(sound=True)
    answer = ask(service.http, source)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["parameters"] | {"frames": 6, "format": "mp4", "iterations": 12} == job["parameters"]
    told = [type for _, type in events(service, job["id"])]
    assert {"progress", "preview"} < set(told)
    assert told[-1] == "succeeded"
    result = service.http.get(job["links"]["result"])
    assert result.headers["content-type"] == "video/mp4"
    frames, times_s = played(result.content)
    assert times_s == played(source)[1]
    assert packets(result.content, "audio") == packets(source, "audio") != []
    for number, frame in enumerate(frames):
        painted = toy_stylized(np.roll(gradient(*SIZE), 4 * number, axis=1), VECTORS["red"])
        assert np.abs(frame.astype(int) - painted).mean() < LOSS
    with Client(str(service.http.base_url)) as client:
        assert client.fill(Order(source, "red")).format == "mp4"
        assert client.fill(Order(source, "red", format="gif")).content.startswith(b"GIF8")
    raw = service.http.post("/stylize?style=red", content=source, headers={"Content-Type": "video/mp4"})
    assert raw.status_code == 202


def test_a_worker_killed_in_the_middle_of_a_clip_is_replaced_and_the_clip_is_whole(serve: Serve) -> None:
    service = serve()
    source = clip((160, 120), tuple(range(0, 1000 * 150, 1000)), sound=True)
    job = ask(service.http, source).json()
    told = service.job

    def is_amidst() -> bool:
        return bool(told(job["id"])["status"] == "running" and told(job["id"])["iteration"])

    wait_for(is_amidst, lambda: str(told(job["id"])))
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    done = service.wait(job["id"], "succeeded", "failed")
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    result = service.http.get(job["links"]["result"]).content
    frames, times_s = played(result)
    assert times_s == played(source)[1]
    assert packets(result, "audio") == packets(source, "audio") != []
    last = toy_stylized(np.roll(gradient(160, 120), 4 * 149, axis=1), VECTORS["red"])
    assert np.abs(frames[-1].astype(int) - last).mean() < LOSS
    assert service.metric('stylize_worker_restarts_total{reason="died"}') == 1
