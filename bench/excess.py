"""Any painting as a style: how far from what Gatys' optimisation reaches on the same loss, encoded and refined."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from bench.arbitrary import RIVAL, encoders
from bench.rival import rival_of_any_painting
from bench.work import shipped
from export.__main__ import JUDGED_PHOTOS, OPTIMA, VGG_WEIGHTS
from export.data import Painting, load_picture, unknown_painting
from export.evaluate import MAX_PIXELS, Evaluator, Score, Stylize
from export.sheet import contact_sheet, to_image
from service.gatys.refine import State, refine
from service.gatys.run import load_vgg
from service.gatys.transformer import load_transformer
from service.models.encoder import Encoder
from service.models.store import Vector

PAINTINGS = 6  # an optimum takes half a minute and more
SHOWN_SIDE = 160  # of a sheet's pictures: their height, px


@dataclass
class _Vectors:
    """Of every painting by its name, and how long its refinement took, in seconds."""

    encoded: dict[str, Vector] = field(default_factory=dict)
    refined: dict[str, Vector] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def compare_excesses(corpus: Path, sheet: Path, steps: int, photos: Sequence[Path] = JUDGED_PHOTOS) -> str:
    """A Markdown section on the first encoder, before and after ``steps`` of refinement: some twenty minutes. The
    pictures go into ``sheet``, a row a pair."""
    encoder, session = encoders()[0]
    paintings = [unknown_painting(corpus / name) for name in encoder.card.training["held_out"][:PAINTINGS]]
    evaluator, rival = Evaluator(VGG_WEIGHTS, OPTIMA, encoder.side_px), rival_of_any_painting()
    files = {painting.name: painting.path for painting in paintings}
    vectors = _vectors(encoder, paintings, steps)
    stylizers: dict[str, Stylize] = {
        "encoded": lambda image, style: session.run(image, vectors.encoded[style][None]),
        f"refined, {steps} steps": lambda image, style: session.run(image, vectors.refined[style][None]),
        RIVAL: lambda image, style: rival(image, files[style]),
    }
    pairs = [(painting, photo) for painting in paintings for photo in photos]
    optima = [to_image(evaluator.optimised(*pair)) for pair in tqdm(pairs, desc="Gatys")]
    found = {name: evaluator.score(stylize, paintings, photos) for name, stylize in stylizers.items()}
    rows = []
    for number, ((painting, _), optimum) in enumerate(zip(pairs, optima, strict=True)):
        column, row = divmod(number, len(photos))
        made = [pictures[row][1 + column] for _, pictures in found.values()]
        rows.append([to_image(load_picture(painting.path, short_side=SHOWN_SIDE)), *map(_small, [*made, optimum])])
    contact_sheet(sheet, ["painting", *found, "Gatys' optimisation"], rows)
    return "\n".join(
        [
            f"## Any painting: {len(paintings)} that were held out x {len(photos)} photos, 288 px",
            "",
            "| | excess over Gatys' optimum, mean | held-out style loss | edge SSIM |",
            "|---|---|---|---|",
            *(_line(name, scores) for name, (scores, _) in found.items()),
            "",
            f"{steps} steps of refinement took {statistics.median(vectors.seconds):.0f} s (median).",
        ]
    )


def _vectors(encoder: Encoder, paintings: Sequence[Painting], steps: int) -> _Vectors:
    made, vgg = _Vectors(), load_vgg(VGG_WEIGHTS, "vgg16")
    network, _ = load_transformer(shipped(encoder.model).graph, encoder.model)
    for painting in tqdm(paintings, desc="refined"):
        pixels = encoder.read(painting.path.read_bytes(), MAX_PIXELS)
        start = made.encoded[painting.name] = encoder.vector(pixels)
        begun = time.perf_counter()
        made.refined[painting.name] = refine(vgg, network, pixels, State.first(start), steps=steps)
        made.seconds.append(time.perf_counter() - begun)
    return made


def _line(name: str, scores: Sequence[Score]) -> str:
    excess, held_out, edges = (
        statistics.mean(values)
        for values in zip(*((score.excess, score.held_out, score.edges) for score in scores), strict=True)
    )
    return f"| {name} | {excess:.3f} | {held_out:.3f} | {edges:.3f} |"


def _small(image: Image.Image) -> Image.Image:
    return image.resize((round(image.width * SHOWN_SIDE / image.height), SHOWN_SIDE), Image.Resampling.LANCZOS)
