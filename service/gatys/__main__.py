"""python -m service.gatys bench | sheet: what the presets cost and reach on this machine, and how they look."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from service.gatys.losses import GATYS_STYLE_LAYERS, grams_of
from service.gatys.optimize import Evaluation, Objective, optimize
from service.gatys.run import Pixels, Progress, load_vgg, paint
from service.gatys.vgg import VGG
from service.jobs.parameters import PRESETS, Parameters, Precision, PresetName
from service.models.store import feature_weights

STORE = Path(__file__).parents[2] / "model_store"
RELATIVE: tuple[PresetName, ...] = ("fast", "balanced", "best")  # those of the reference's own losses
GAP, LABEL = 6, 18  # pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when it was done."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    if options.command == "bench":
        print(_table(_bench(options)))
    else:
        _sheet(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.gatys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="presets against the reference: CPU time and loss on the shown picture")
    bench.add_argument("--photo", type=Path, required=True)
    bench.add_argument("--painting", type=Path, required=True)
    bench.add_argument("--reference", type=int, default=500, help="evaluations from noise, fp32")
    bench.add_argument("--plain", type=int, default=200, help="evaluations from the photo, fp32, unbounded pixels")
    sheet = commands.add_parser("sheet", help="photos x paintings x presets in one picture")
    sheet.add_argument("file", type=Path)
    sheet.add_argument("--photos", type=Path, nargs="+", required=True)
    sheet.add_argument("--paintings", type=Path, nargs="+", required=True)
    sheet.add_argument("--cells", type=Path, help="folder of the pictures so far: those are not painted again")
    sheet.add_argument("--limit", type=_limit, nargs="+", default=[], help="PRESET=EVALUATIONS, said on the sheet")
    sheet.add_argument("--bf16", action="store_true", help="for presets in fp32 too; said on the sheet")
    sheet.add_argument("--quality", type=int, default=88, help="of the JPEG")
    for command, side, presets in ((bench, 384, RELATIVE), (sheet, 256, tuple(PRESETS))):
        command.add_argument("--side", type=int, default=side, help="the longer side, in pixels")
        command.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=presets)
        command.add_argument("--iterations", type=int, help="at most so many, whatever the preset says")
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--store", type=Path, default=STORE)
    return parser


@dataclass
class Row:
    """One way to optimise. `curve` has the evaluations that were judged, from 1: how many there were, CPU seconds so
    far, and the loss of the picture as shown."""

    title: str
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def evaluations(self) -> int:
        return self.curve[-1][0]

    @property
    def cpu_s(self) -> float:
        return self.curve[-1][1]

    @property
    def loss(self) -> float:
        """The least reached: what a run gives is its best picture."""
        return min(loss for *_, loss in self.curve)

    def reaches(self, loss: float) -> tuple[int, float] | None:
        """The first evaluation whose shown picture has at most this loss, and CPU seconds until then."""
        return next(((count, cpu_s) for count, cpu_s, shown in self.curve if shown <= loss), None)


class _Judge:
    """Losses of a picture as shown (clamped, 8 bits) by the presets' own objective in fp32, outside of the clock; of
    every picture, or of one in `every`."""

    def __init__(self, objective: Objective, title: str, every: int = 1) -> None:
        self._objective, self.row, self._every = objective, Row(title), every
        self._count, self._judging_s, self._begun = 0, 0.0, time.process_time()

    def see(self, seen: Evaluation | Progress) -> None:
        self._count += 1
        if self._count % self._every:
            return
        entered = time.process_time()
        loss = self._objective.losses(seen.shown.float().mul(255).round().div(255)).total
        self.row.curve.append((self._count, entered - self._begun - self._judging_s, loss))
        self._judging_s += time.process_time() - entered


def _bench(options: argparse.Namespace) -> list[Row]:
    photo, painting = (_pixels(path, options.side) for path in (options.photo, options.painting))
    fp32 = _vgg(options.store, _parameters("best", options))
    content, style = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 for picture in (photo, painting))
    with torch.no_grad():
        targets = grams_of(fp32(style, GATYS_STYLE_LAYERS), GATYS_STYLE_LAYERS)
    objective = Objective(fp32, content, targets, content_layer=PRESETS["best"].content_layer)
    rows = []
    for title, start, evaluations in (
        ("reference: noise, fp32, L-BFGS", torch.rand_like(content), options.reference),
        ("plain: photo, fp32, L-BFGS", content, options.plain),
    ):
        judge = _Judge(objective, f"{title}, {evaluations}", every=min(10, evaluations))
        optimize(objective, start, evaluations=evaluations, bounds="none", observe=judge.see)
        rows.append(judge.row)
    for name in options.presets:
        parameters = _parameters(name, options)
        vgg = _vgg(options.store, parameters)
        judge = _Judge(objective, f"{name}, {str(vgg.dtype).removeprefix('torch.')}")
        paint(vgg, photo, [(painting, 1.0)], parameters, observe=judge.see)
        rows.append(judge.row)
    return rows


def _table(rows: Sequence[Row]) -> str:
    """Markdown: each row against the first, the reference, and the second, the plain start from the photo."""
    reference, plain = rows[:2]
    lines = [
        "| run | evaluations | CPU s | loss x 10^4, shown | reaches the reference | CPU s to it | times cheaper "
        "| reaches the plain one | times cheaper |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.title, str(row.evaluations), f"{row.cpu_s:.1f}", f"{1e4 * row.loss:.0f}"]
        cells += _against(row, reference, with_time=True) + _against(row, plain, with_time=False)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _against(row: Row, other: Row, *, with_time: bool) -> list[str]:
    reached = row.reaches(other.loss)
    if reached is None:
        return ["never", *(["-"] if with_time else []), "-"]
    count, cpu_s = reached
    return [str(count), *([f"{cpu_s:.1f}"] if with_time else []), f"{other.cpu_s / max(cpu_s, 1e-9):.1f}"]


def _limit(text: str) -> tuple[str, int]:
    preset, evaluations = text.split("=")
    return preset, int(evaluations)


def _sheet(options: argparse.Namespace) -> None:
    """A row for each photo and painting, the two first, then the presets; written once everything is painted."""
    asked = [_parameters(name, options, dict(options.limit).get(name)) for name in options.presets]
    rows = []
    for photo in options.photos:
        for painting in options.paintings:
            painted = [_cell(photo, painting, parameters, options) for parameters in asked]
            rows.append([_pixels(photo, options.side), _pixels(painting, options.side), *painted])
    precision = ", bf16" if options.bf16 else ""
    titles = [f"{parameters.preset}, at most {parameters.iterations}{precision}" for parameters in asked]
    _compose(rows, ["photo", "painting", *titles], options.side).save(
        options.file, quality=options.quality, optimize=True, progressive=True
    )


def _cell(photo: Path, painting: Path, parameters: Parameters, options: argparse.Namespace) -> Pixels:
    """Painted now, or taken from the folder of cells."""
    work = f"{photo.stem}_{painting.stem}_{parameters.preset}_{parameters.iterations}_{options.side}"
    kept = options.cells and options.cells / f"{work}{'_bf16' if options.bf16 else ''}.png"
    if kept and kept.exists():
        return _pixels(kept, options.side)
    vgg = _vgg(options.store, parameters, "bf16" if options.bf16 else None)
    painted = paint(vgg, _pixels(photo, options.side), [(_pixels(painting, options.side), 1.0)], parameters)
    print(f"{photo.stem} x {painting.stem} x {parameters.preset}", file=sys.stderr)
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(painted).save(kept)
    return painted


def _compose(rows: Sequence[Sequence[Pixels]], titles: Sequence[str], side: int) -> Image.Image:
    """Each row as high as its highest picture."""
    pictures = [[ImageOps.contain(Image.fromarray(each), (side, side)) for each in row] for row in rows]
    heights = [max(picture.height for picture in row) + GAP for row in pictures]
    cell, top = side + GAP, LABEL + GAP
    sheet = Image.new("RGB", (cell * len(titles) + GAP, top + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((GAP + column * cell, GAP), title, fill="black")
    for line, row in enumerate(pictures):
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * cell, top + sum(heights[:line])))
    return sheet


def _vgg(store: Path, chosen: Parameters, precision: Precision | None = None) -> VGG:
    """As the preset has it, but for a `precision` of one's own."""
    weights = feature_weights(store, chosen.network)
    if weights is None:
        raise SystemExit(f"{store} has no weights of {chosen.network}: python -m export fetch {chosen.network}")
    return load_vgg(weights, chosen.network, chosen.defaults.pooling, precision or chosen.defaults.precision)


def _parameters(preset: PresetName, options: argparse.Namespace, limit: int | None = None) -> Parameters:
    """The preset's, with at most `limit` evaluations, and at most those that the command line allows to all."""
    chosen = Parameters.of(preset, {"painting": 1.0}, seed=options.seed)
    most = min(each for each in (chosen.iterations, options.iterations, limit) if each)
    return replace(chosen, iterations=most, max_side=options.side)


def _pixels(path: Path, side: int) -> Pixels:
    """The picture with its longer side at `side` pixels."""
    with Image.open(path) as file:
        return np.array(ImageOps.contain(file.convert("RGB"), (side, side), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    sys.exit(main())
