"""Publishing into the model store: graph, vectors, previews and card, seen by a service whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from export.data import Painting, load_picture
from export.to_onnx import FreezingGraph, FrozenGraph, PixelGraph, export_graph, load_graph, rounded
from export.train import Run, check_finished
from export.verify import GraphDiffers, verify, verify_halved, verify_tiling
from service.gatys.pictures import to_pixels
from service.models.store import CARD, PHOTO, Card, ModelStore, StyleEntry, TensorSpec, Tiling, file_sha256

GRAPH = "model.onnx"
PREVIEW_SIDE_PX = 512
PIXELS: tuple[int | str, ...] = ("N", "H", "W", 3)


def publish(
    run: Run,
    paintings: Sequence[Painting],
    target: Path,
    *,
    title: str,
    description: str,
    licence: str,
    preview_photo: Path,
) -> Card:
    """Exports, verifies and publishes a run as `target`, a folder <store>/<model>/<version> that is not there yet.

    Raises FileExistsError where it is, GraphDiffers where the graph's pixels are not torch's, ValueError where the
    run is not finished.
    """
    check_finished(run.step, run.config)
    conditional = run.photo_vector is not None
    vectors = run.network.vectors.detach().numpy()
    with staged(target) as folder:
        graph = pixel_graph(run)
        export_graph(graph, folder / GRAPH)
        photo = preview_picture(preview_photo)
        comparisons = verify(graph, folder / GRAPH, vectors if conditional else None, [photo])
        entries = []
        for slot, painting in enumerate(paintings):
            vector = write_vector(folder, painting.name, vectors[slot]) if conditional else None
            write_preview(folder, painting.name, graph, photo, vectors[slot] if conditional else None)
            entries.append(style_entry(painting, run.config["painting_side"], vector, ship(folder, painting)))
        photo_vector = None if run.photo_vector is None else write_vector(folder, PHOTO, run.photo_vector.numpy())
        tiling = write_tiling(folder, graph, photo, vectors[0]) if conditional else None
        card = Card(
            schema=1,
            name=target.parent.name,
            version=int(target.name),
            kind="conditional" if conditional else "classic",
            title=title,
            description=description,
            licence=licence,
            created_at=now(),
            graph=GRAPH,
            tiling=tiling,
            inputs=(TensorSpec(name="image", dtype="uint8", shape=PIXELS),)
            + ((TensorSpec(name="style", dtype="float32", shape=("N", vectors.shape[1])),) if conditional else ()),
            outputs=(TensorSpec(name="stylized", dtype="uint8", shape=PIXELS),),
            photo_vector=photo_vector,
            palette_size=2 * graph.transformer.config.norm_widths[-1] if conditional else 0,
            styles=tuple(entries),
            files=checksums(folder),
            training=training_record(run),
            quality={"verify": [dataclasses.asdict(comparison) for comparison in comparisons]},
        )
        write_card(folder, card)
    return card


def republish(model: Path, target: Path, photos: Sequence[Path]) -> Card:
    """Exports a published network's graphs anew, as `target`, the next version: what else it has stays, and vectors for
    the one are for the other. Graphs of before and of now are verified on photos; the first tries the tiles.

    Raises FileExistsError, GraphDiffers where either's pixels are not torch's, ValueError where it has no such graph.
    """
    before, path_before, graph, vectors = _stylising(model)
    pictures = [preview_picture(photo) for photo in photos]
    with staged(target) as folder:
        verify(graph, path_before, vectors, pictures)
        for path in before.files:
            if not path.endswith(".onnx"):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model / path, folder / path)
        export_graph(graph, folder / GRAPH)
        comparisons = verify(graph, folder / GRAPH, vectors, pictures)
        quality = before.quality | {"verify": [dataclasses.asdict(comparison) for comparison in comparisons]}
        tiling, fp16 = None, dict[str, str]()
        if before.tiling and vectors is not None:
            tiling = write_tiling(folder, graph, pictures[0], vectors[0])
        if before.fp16:
            fp16, quality["fp16"] = write_halved(folder, graph, tiling, vectors, pictures)
        return write_changed(
            folder,
            before,
            name=target.parent.name,
            version=int(target.name),
            created_at=now(),
            graph=GRAPH,
            tiling=tiling,
            fp16=fp16,
            first_graph=before.network_sha256,
            files=checksums(folder),
            quality=quality,
        )


def add_tiling(model: Path, photo: Path) -> Card:
    """Gives a published model the graphs of large pictures, tried on a photo. Raises GraphDiffers, ValueError."""
    stored = ModelStore(model.parent.parent).load(model)
    if stored.card.graph is None or stored.card.kind != "conditional":
        raise ValueError(f"{stored.card.label} has no network that takes a style")
    row = next(iter(stored.vectors.values()))
    tiling = write_tiling(model, load_graph(model / stored.card.graph), preview_picture(photo), row)
    added = {name: file_sha256(model / name) for name in (tiling.freezing, tiling.frozen)}
    return write_changed(model, stored.card, tiling=tiling, files=stored.card.files | added)


def add_halved(model: Path, photos: Sequence[Path]) -> Card:
    """Gives a published model graphs of fp16, judged on photos. Raises GraphDiffers, ValueError."""
    card, _, graph, vectors = _stylising(model)
    pictures = [preview_picture(photo) for photo in photos]
    fp16, closeness = write_halved(model, graph, card.tiling, vectors, pictures)
    files = card.files | {path: file_sha256(model / path) for path in fp16.values()}
    return write_changed(model, card, fp16=fp16, files=files, quality=card.quality | {"fp16": closeness})


def _stylising(model: Path) -> tuple[Card, Path, PixelGraph, np.ndarray | None]:
    """A published network's card, its graph's file, that graph in torch, and its vectors (K, D), if it takes any.
    Raises ValueError where it does not stylise."""
    stored = ModelStore(model.parent.parent).load(model)
    if stored.card.graph is None or stored.card.kind == "encoder":
        raise ValueError(f"{stored.card.label} has no network that stylises")
    vectors = np.stack(list(stored.vectors.values())) if stored.vectors else None
    path = model / stored.card.graph
    return stored.card, path, load_graph(path), vectors


def write_halved(
    folder: Path, graph: PixelGraph, tiling: Tiling | None, vectors: np.ndarray | None, photos: Sequence[np.ndarray]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes graphs of fp16 beside a model's own, those of fp32: their paths by the paths of those, and how near they
    come. Raises GraphDiffers where that is not near enough, and leaves none."""
    graphs = {GRAPH: graph} | ({tiling.frozen: FrozenGraph(graph.transformer)} if tiling else {})
    paths = {of: f"{Path(of).stem}.fp16.onnx" for of in graphs}
    closeness: dict[str, Any] = {}
    try:
        for of, path in paths.items():
            halved = graphs[of].halved()
            export_graph(halved, folder / path)
            closeness[of] = dataclasses.asdict(verify_halved(graph, halved, folder / path, vectors, photos))
    except GraphDiffers:
        for path in paths.values():
            (folder / path).unlink(missing_ok=True)
        raise
    return paths, closeness


def write_tiling(folder: Path, graph: PixelGraph, photo: np.ndarray, row: np.ndarray) -> Tiling:
    """Writes the two graphs of large pictures beside a model's own; with the statistics of the photo uint8 (H, W, 3)
    itself they must give what `graph` gives. Raises GraphDiffers."""
    tiling = Tiling(freezing="freezing.onnx", frozen="frozen.onnx", radius_px=graph.transformer.config.radius)
    export_graph(FreezingGraph(graph.transformer), folder / tiling.freezing)
    export_graph(FrozenGraph(graph.transformer), folder / tiling.frozen)
    verify_tiling(graph, folder / tiling.freezing, folder / tiling.frozen, photo, row)
    return tiling


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it in one rename when the block succeeds, and vanishes when it fails."""
    if target.exists():
        raise FileExistsError(f"{target} is published already; publish the next version")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".publishing-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_card(folder: Path, card: Card) -> None:
    """Writes or replaces a model's card in one step."""
    partial = folder / f".{CARD}.partial"
    partial.write_text(card.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n")
    os.replace(partial, folder / CARD)


def write_changed(folder: Path, card: Card, **changes: object) -> Card:
    """Writes a card with some changes, once they are validated."""
    changed = Card.model_validate(card.model_copy(update=changes).model_dump(by_alias=True))
    write_card(folder, changed)
    return changed


def write_vector(folder: Path, name: str, vector: np.ndarray) -> str:
    """Writes a style vector (D,) and gives its path inside the model's folder."""
    path = f"styles/{name}.npy"
    (folder / path).parent.mkdir(exist_ok=True)
    np.save(folder / path, np.ascontiguousarray(vector, dtype=np.float32), allow_pickle=False)
    return path


def write_preview(folder: Path, name: str, graph: PixelGraph, photo: np.ndarray, vector: np.ndarray | None) -> None:
    """Renders the style's preview from uint8 (H, W, 3)."""
    path = folder / preview_path(name)
    path.parent.mkdir(exist_ok=True)
    style = () if vector is None else (torch.from_numpy(vector)[None],)
    with torch.no_grad():
        stylised: np.ndarray = graph(torch.from_numpy(photo)[None], *style)[0].numpy()
    Image.fromarray(stylised).save(path, quality=88, optimize=True)


def pixel_graph(run: Run) -> PixelGraph:
    """The run's network between pixels, as it is kept; a classic one has its style built in."""
    return PixelGraph(rounded(run.network.transformer), None if run.config["conditional"] else run.network.vectors[0])


def now() -> str:
    """The time as cards say it: RFC 3339, UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def preview_path(name: str) -> str:
    return f"previews/{name}.jpg"


def preview_picture(path: Path) -> np.ndarray:
    """The photo that previews show, uint8 (H, W, 3), its longer side 512 px."""
    picture = load_picture(path)
    short = round(PREVIEW_SIDE_PX * min(picture.shape[2:]) / max(picture.shape[2:]))
    pixels: np.ndarray = to_pixels(load_picture(path, short_side=short))[0]
    return pixels


def ship(folder: Path, painting: Painting) -> str | None:
    """Copies the painting beside the model where it may be shipped, and gives its path inside the model's folder."""
    if not painting.may_ship:
        return None
    path = f"paintings/{painting.name}{painting.path.suffix}"
    (folder / path).parent.mkdir(exist_ok=True)
    shutil.copyfile(painting.path, folder / path)
    return path


def style_entry(painting: Painting, side: int, vector: str | None, shipped: str | None = None) -> StyleEntry:
    """The card's words on a style; the checksum is of the very file that it was trained from."""
    return StyleEntry(
        name=painting.name,
        title=painting.title,
        artist=painting.artist,
        year=painting.year,
        credit=painting.credit,
        painting_sha256=file_sha256(painting.path),
        painting_side_px=side,
        vector=vector,
        preview=preview_path(painting.name),
        painting=shipped,
    )


def checksums(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a model's folder but its card."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CARD)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def training_record(run: Run) -> dict[str, Any]:
    """What the card says of the run: its configuration, the steps done, the losses reached, and the same of the
    published model that it began from."""
    losses = {name: round(value, 4) for name, value in run.losses.items()}
    record = {"configuration": run.config, "steps": run.step, "losses": losses}
    source = Path(run.config.get("started_from", "")) / CARD
    return record | ({"before": Card.model_validate_json(source.read_bytes()).training} if source.exists() else {})
