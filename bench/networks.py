"""The shipped networks side by side, without the service."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench.work import SETTINGS, medians_ms
from service.models.session import Session, cpu_quota
from service.models.store import ModelStore, StoredModel

SIDES = (256, 512, 1024)


def compare_networks(rounds: int) -> str:
    """A Markdown table: median milliseconds of one picture through each network, all in turn in every round."""
    models = ModelStore(SETTINGS.model_store).networks()
    sessions = {model.card.label: (Session(model, "cpu", cpu_quota()), _row(model)) for model in models}
    lines = [
        "## Networks: one picture, milliseconds (median)",
        "",
        "| network | " + " | ".join(f"{side} x {side}" for side in SIDES) + " |",
        "|---|" + "---|" * len(SIDES),
    ]
    medians: dict[str, list[float]] = {label: [] for label in sessions}
    for side in SIDES:
        image = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        runs = {label: partial(session.run, image, row) for label, (session, row) in sessions.items()}
        for label, ms in medians_ms(runs, rounds).items():
            medians[label].append(ms)
    classic = next(label for label, model in zip(sessions, models, strict=True) if model.card.kind == "classic")
    for label, found in medians.items():
        cells = [f"{ms:.0f} ({ms / full:.0%})" for ms, full in zip(found, medians[classic], strict=True)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"In brackets: the share of what {classic}, full width, takes in the same run."])


def _row(model: StoredModel) -> np.ndarray:
    """Some style's vector, (1, D); D is 0 for a classic network."""
    return next(iter(model.vectors.values()), np.empty(0, np.float32))[None]
