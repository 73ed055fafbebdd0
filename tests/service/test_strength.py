"""Strength, on the shipped networks and each of their styles: exact at both ends, and more of it is more painting."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import Order
from service.local import Local
from service.models.store import ModelStore
from tests.service.pictures import encoded, pixels

ROOT = Path(__file__).parents[2]
STORE = ROOT / "model_store"
STRENGTHS = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
CLOSE = 12  # mean levels that the last twentieth may add; the first may add as much


@pytest.fixture(scope="module")
def shipped() -> Local:
    return Local(STORE, "cpu")


@pytest.mark.parametrize("model", ["multistyle", "fast", "classic_udnie"])
def test_more_strength_is_further_from_the_photo_in_every_style(shipped: Local, model: str) -> None:
    with Image.open(ROOT / "tests" / "photos" / "neuschwanstein.jpg") as file:
        photo = np.asarray(file.convert("RGB").resize((192, 128), Image.Resampling.LANCZOS))
    (styles,) = (network.card.styles for network in ModelStore(STORE).networks() if network.card.name == model)
    assert styles
    for name in (style.name for style in styles):
        orders = (Order(encoded(photo), name, strength=strength, model=model) for strength in STRENGTHS)
        pictures = [pixels(shipped.fill(order).content).astype(int) for order in orders]
        apart = [float(np.abs(picture - photo).mean()) for picture in pictures]
        print(model, name, [round(each, 1) for each in apart])
        assert apart[0] == 0, name
        assert apart == sorted(apart), name
        assert len(set(apart)) == len(apart), name
        steps = [float(np.abs(b - a).mean()) for a, b in pairwise(pictures)]
        assert max(steps[0], steps[-1]) < CLOSE, name
