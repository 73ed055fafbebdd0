"""ONNX Runtime beside OpenVINO, in fp32 and in bf16: speed, pixels, memory, size. ``python -m bench.runtimes RUNTIME``
is a process that weighs one of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.processes import status_kb
from bench.work import PHOTO, SETTINGS, medians_ms, shipped
from service.models.openvino import OpenVinoSession
from service.models.session import cpu_quota, open_session
from service.models.store import ModelStore, StoredModel

SIDES = (512, 1024)
LIMITS = (1, 2, 8)  # of 255
NEW_SHAPES = 24
PACKAGES = {"ONNX Runtime": ("onnxruntime",), "OpenVINO": ("openvino", "openvino-telemetry")}

Feed = dict[str, np.ndarray]
OPENERS: Mapping[str, Callable[[StoredModel], Any]] = {
    "ONNX Runtime": lambda model: open_session(model.card.label, model.graph, "cpu", cpu_quota()),
    "OpenVINO fp32": lambda model: OpenVinoSession(model.graph, cpu_quota(), "f32"),
    "OpenVINO bf16": lambda model: OpenVinoSession(model.graph, cpu_quota(), "bf16"),
}


@dataclass(frozen=True)
class Weight:
    """What a process costs that has one network in one runtime, and meets pictures of new shapes."""

    load_s: float  # import and graph, to the end of a first small run
    first_ms: float  # a picture of a shape that was never met, median
    again_ms: float  # of the same shape at once again, median
    peak_mb: float


def compare_runtimes(rounds: int) -> str:
    """A Markdown section. Speed is measured in this process, in turn; what a runtime costs in one of its own."""
    title = f"ONNX Runtime and OpenVINO {distribution('openvino').version}"
    speed = [row for model in ModelStore(SETTINGS.model_store).networks() for row in _rows(model, rounds)]
    weights = {name: _weighed(name) for name in OPENERS}
    return "\n".join(
        [
            f"## {title}: one picture, {cpu_quota()} threads, ms (median)",
            "",
            "| network | px | ONNX Runtime | OpenVINO fp32 | OpenVINO bf16 | fp32 differs by | bf16 differs by |",
            "|---|---|---|---|---|---|---|",
            *speed,
            "",
            "Differences are of 255: the most, and the share of values beyond "
            f"{', '.join(map(str, LIMITS))}, from ONNX Runtime's picture of the same photo.",
            "",
            f"| multistyle in a process of its own, {NEW_SHAPES} shapes of about 512 x 512 "
            "| ready in s | a new shape, ms | again, ms | memory at most, MB |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {found.load_s:.1f} | {found.first_ms:.0f} | {found.again_ms:.0f} | {found.peak_mb:.0f} |"
                for name, found in weights.items()
            ),
            "",
            "Installed: " + ", ".join(f"{name} {_installed_mb(name):.0f} MB" for name in PACKAGES) + ".",
        ]
    )


def _rows(model: StoredModel, rounds: int) -> list[str]:
    sessions = {name: opener(model) for name, opener in OPENERS.items()}
    rows = []
    for side in SIDES:
        feed = _feed(model, side, side)
        found = medians_ms({name: partial(session.run, None, feed) for name, session in sessions.items()}, rounds)
        reference, *others = (session.run(None, feed)[0] for session in sessions.values())
        cells = [f"{found[name]:.0f} ({found['ONNX Runtime'] / found[name]:.2f} x)" for name in sessions]
        cells += [difference(reference, other) for other in others]
        rows.append(f"| {model.card.label} | {side} | {' | '.join(cells)} |")
    return rows


def difference(reference: np.ndarray, other: np.ndarray) -> str:
    """The largest, and the share of values beyond each of LIMITS; both uint8."""
    distance = np.abs(reference.astype(int) - other)
    shares = ", ".join(f"{(distance > limit).mean():.2%}" for limit in LIMITS)
    return f"{distance.max()}; {shares}"


def _feed(model: StoredModel, width: int, height: int) -> Feed:
    with Image.open(PHOTO) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((width, height)))[None]
    names = [spec.name for spec in model.card.inputs]
    row = next(iter(model.vectors.values()), None)
    return {names[0]: pixels} if row is None else {names[0]: pixels, names[1]: row[None]}


def _weighed(name: str) -> Weight:
    command = [sys.executable, "-m", "bench.runtimes", name]
    return Weight(**json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def _weigh(name: str) -> Weight:
    started = time.perf_counter()
    model = shipped()
    session = OPENERS[name](model)
    session.run(None, _feed(model, 64, 64))
    load_s = time.perf_counter() - started
    times: list[list[float]] = [[], []]
    for shape in np.random.default_rng(0).integers(112, 144, (NEW_SHAPES, 2)) * 4:
        feed = _feed(model, *shape.tolist())
        for found in times:
            begun = time.perf_counter()
            session.run(None, feed)
            found.append(1000 * (time.perf_counter() - begun))
    first_ms, again_ms = map(statistics.median, times)
    # not getrusage, which counts this process' parent, from before the exec
    return Weight(load_s, first_ms, again_ms, status_kb(os.getpid(), "VmHWM") / 1000)


def _installed_mb(name: str) -> float:
    files = [Path(str(file.locate())) for package in PACKAGES[name] for file in distribution(package).files or ()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    json.dump(asdict(_weigh(sys.argv[1])), sys.stdout)
