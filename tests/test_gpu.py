"""What `python -m bench gpu` would do on a GPU, done in small on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bench import gpu
from bench.__main__ import main
from bench.gpu import Clock, Tried
from bench.work import shipped
from service.errors import OutOfMemory
from service.models.session import cuda_works


@pytest.mark.skipif(cuda_works(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", "--out", str(tmp_path)]) == 1
    assert "SKIPPED" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_network_and_precision_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SIDES", (16,))
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    table = "\n".join(gpu._precisions(1, "cpu", Clock()))
    assert "| 1 x 16 px | 2 x 16 px |" in table
    for row in ("multistyle, fp32", "multistyle, tf32", "multistyle, fp16", "fast, fp32"):
        assert f"| {row} |" in table


def test_what_there_is_no_time_for_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SIDES", (16,))
    monkeypatch.setattr(gpu, "TOTAL_S", 0.0)
    assert "no time" in "\n".join(gpu._precisions(1, "cpu", Clock()))
    left_out = len(gpu.CHOICES) * (2 if shipped().fp16 else 1)
    assert f"({left_out} left out for time)" in gpu._choices(1, "cpu", Clock())[0]


def test_what_fails_is_said_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_at_32(session: object, feed: dict[str, np.ndarray]) -> np.ndarray:
        if feed["image"].shape[1] == 32:
            raise OutOfMemory("it does not fit")
        return feed["image"]

    monkeypatch.setattr(gpu, "CHOICE_SIDES", (16, 32))
    monkeypatch.setattr(gpu, "run_session", fails_at_32)
    rows = [line for line in gpu._choices(1, "cpu", Clock()) if "shipped" in line]
    assert all(re.search(r"\| \d+ \| failed \| \d+ \| \d+\.\d\d \| failed \|$", row) for row in rows)
    assert "it does not fit" in capsys.readouterr().err


def test_the_peers_answer_beside_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PHOTO_SIDE", 64)
    monkeypatch.setattr(gpu, "SERVICES", {})
    monkeypatch.setattr(gpu, "CLIENTS", (1,))
    table = gpu._service(0.3, "cpu", Clock())
    peers = [line for line in table if line.startswith("| FastAPI")]
    assert [line.split("|")[1].strip() for line in peers] == ["FastAPI, fp32, 1", "FastAPI, fp32, our codec, 1"]
    assert any(line.startswith("Not answered with a picture: 0.") for line in table)


def test_options_tried_go_before_those_shipped() -> None:
    tried = Tried(precision="tf32", others={"cudnn_conv_algo_search": "EXHAUSTIVE"}).options
    assert (tried["cudnn_conv_algo_search"], tried["use_tf32"]) == ("EXHAUSTIVE", "1")
    assert tried["arena_extend_strategy"] == "kSameAsRequested"
