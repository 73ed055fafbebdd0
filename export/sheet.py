"""Pictures for people: contact sheets and loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from export.data import load_picture
from service.gatys.pictures import to_pixels
from service.gatys.transformer import COARSEST

GAP = 6
LABEL = 16


def sample_sheet(
    path: Path, network: nn.Module, names: Sequence[str], photos: Sequence[Path], *, short_side: int = 288
) -> None:
    """A sheet of photos x styles: a row a photo, the photo itself first; `network(photos, slots)` makes the rest."""
    rows = []
    for photo in photos:
        picture = load_picture(photo, short_side=short_side)
        with torch.no_grad():
            styled = [stylise(network, picture, slot) for slot in range(len(names))]
        rows.append([to_image(picture), *(to_image(each) for each in styled)])
    contact_sheet(path, ["", *names], rows)


def stylise(network: nn.Module, picture: Tensor, slot: int) -> Tensor:
    """The picture (1, 3, H, W), of any size, in the style of a slot, same size."""
    height, width = picture.shape[2:]
    padded = F.pad(picture, (0, -width % COARSEST, 0, -height % COARSEST), mode="replicate")
    styled: Tensor = network(padded, torch.tensor([slot]))
    return styled[..., :height, :width]


def to_image(picture: Tensor) -> Image.Image:
    """(1, 3, H, W), 0-1 -> a Pillow image."""
    return Image.fromarray(to_pixels(picture)[0])


def contact_sheet(
    path: Path, titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], *, columns: int = 7
) -> None:
    """Rows of pictures under titles, each row folded after `columns` pictures; the suffix decides the format."""
    width = max(image.width for row in rows for image in row) + GAP
    lines = [
        (row[start : start + columns], titles[start : start + columns])
        for row in rows
        for start in range(0, len(row), columns)
    ]
    heights = [max(image.height for image in line) + LABEL + GAP for line, _ in lines]
    sheet = Image.new("RGB", (width * min(columns, len(titles)) + GAP, sum(heights) + GAP), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    for (line, labels), height in zip(lines, heights, strict=True):
        for place, (image, label) in enumerate(zip(line, labels, strict=True)):
            draw.text((GAP + place * width, top), label, fill="black")
            sheet.paste(image, (GAP + place * width, top + LABEL))
        top += height
    sheet.save(path, quality=80, optimize=True, progressive=True)


def loss_curve(path: Path, names: Sequence[str], history: Sequence[Sequence[float]]) -> None:
    """The losses over the steps, logarithmic but around zero; a row of `history`: a step and a value for each name."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for column, name in enumerate(names, start=1):
        axes.plot([row[0] for row in history], [row[column] for row in history], label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
