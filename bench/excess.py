"""Any painting as a style: how far from what Gatys' optimisation reaches on the same loss, encoded and refined."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
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


def compare_excesses(corpus: Path, sheet: Path | None, steps: int, photos: Sequence[Path] = JUDGED_PHOTOS) -> str:
    """A Markdown section on the first encoder, before and after ``steps`` of refinement. The pictures go into
    ``sheet``, a row a pair: then the optimum's are painted anew, which takes some twenty minutes more."""
    encoder, session = encoders()[0]
    paintings = [unknown_painting(corpus / name) for name in encoder.card.training["held_out"][:PAINTINGS]]
    evaluator, rival = Evaluator(VGG_WEIGHTS, OPTIMA, encoder.side_px), rival_of_any_painting(exact=True)
    files = {painting.name: painting.path for painting in paintings}
    vectors = _vectors(encoder, paintings, steps)
    stylizers: dict[str, Stylize] = {
        "encoded": lambda image, style: session.run(image, vectors.encoded[style][None]),
        f"refined, {steps} steps": lambda image, style: session.run(image, vectors.refined[style][None]),
        RIVAL: lambda image, style: rival(image, files[style]),
    }
    found = {name: evaluator.score(stylize, paintings, photos) for name, stylize in stylizers.items()}
    if sheet:
        _draw(sheet, evaluator, paintings, photos, {name: pictures for name, (_, pictures) in found.items()})
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


def _draw(
    sheet: Path,
    evaluator: Evaluator,
    paintings: Sequence[Painting],
    photos: Sequence[Path],
    found: Mapping[str, Sequence[Sequence[Image.Image]]],
) -> None:
    """``found``: by whom they were painted, a row a photo, which comes first."""
    rows = []
    for column, painting in enumerate(tqdm(paintings, desc="Gatys")):
        shown = to_image(load_picture(painting.path, short_side=SHOWN_SIDE))
        for row, photo in enumerate(photos):
            made = [pictures[row][1 + column] for pictures in found.values()]
            made.append(to_image(evaluator.optimised(painting, photo)))
            rows.append([shown, *map(_small, made)])
    contact_sheet(sheet, ["painting", *found, "Gatys' optimisation"], rows)


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
