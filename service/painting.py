"""From valid fields to a picture, but for the run itself: the same steps on the server and without one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from service.animations import Animation, Film, decode_film, stacked
from service.colour import keep_color
from service.errors import InvalidFields, NotReady, Offence, Saturated, ServiceError, TooManyPixels
from service.images import AnyFormat, Photo, Picture, decode_mask, decode_regions, open_photo
from service.masks import Mask, composed
from service.models.catalog import WHOLE_PIXELS, Catalog, FilmRun, Moving, ServedModel, StoppableRun
from service.models.store import PAINTING
from service.models.style import Pixels
from service.models.tiling import Observe
from service.schemas import StylizeFields
from service.video import check_video

PREVIEW_SIDE = 1024  # pixels, the longer side: what a large picture looks like where no stroke is asked for


def model_for(fields: StylizeFields, catalog: Catalog, *, moving: bool = False) -> ServedModel:
    """The model asked for, or the first choice for these styles; for what moves a steady one, where there is one.
    Raises InvalidFields where none has them all."""
    able = catalog.models_with(fields.style_names)
    if any(mix.palette for mix in fields.mixes):
        able = [model for model in able if model.card.palette_size]
    chosen = [model for model in able if fields.model in (None, model.card.name)]
    if chosen:
        return next((model for model in chosen if model.is_steady), chosen[0]) if moving else chosen[0]
    wanted = ", ".join(sorted(fields.style_names))
    names = ", ".join(model.card.name for model in able) or "none"
    if fields.model:
        raise InvalidFields([Offence("model", f"{fields.model} cannot do {wanted}; models that can: {names}")])
    raise InvalidFields([Offence("mask_styles" if fields.mask_styles else "style", f"no one model can mix {wanted}")])


def open_mask(files: Mapping[str, bytes], max_pixels: int) -> Photo | None:
    """The header of ``mask`` or ``masks``, where one was sent; at most one is, once the fields are valid.

    Raises what ``open_photo`` does, naming the field; InvalidFields for ``masks`` that are not an indexed PNG.
    """
    for field, content in files.items():
        if field == PAINTING:
            continue
        with naming(field):
            photo = open_photo(content, max_pixels)
        if field == "masks" and photo.image.mode != "P":
            raise InvalidFields([Offence(field, f"must be an indexed PNG (a palette), not {photo.image.mode}")])
        return photo
    return None


def decode_masks(photo: Photo | None, fields: StylizeFields, size: tuple[int, int]) -> list[Mask]:
    """A mask (H, W) for each of the fields' mixes, or none. ``size`` is (width, height). Raises InvalidImage."""
    if photo is None:
        return []
    if fields.mask_styles is None:
        with naming("mask"):
            return [decode_mask(photo, size)]
    with naming("masks"):
        return decode_regions(photo, size, list(fields.mask_styles.styles))


def stroke_of(fields: StylizeFields, size: tuple[int, int]) -> float:
    """How many times as large as the network's own the strokes are: as asked, else large pictures look like their
    preview. ``size`` is (width, height) in pixels."""
    if fields.stroke is not None:
        return fields.stroke
    return max(1.0, max(size) / PREVIEW_SIDE) if size[0] * size[1] > WHOLE_PIXELS else 1.0


def painted(
    picture: Picture,
    fields: StylizeFields,
    model: ServedModel,
    masks: Sequence[Mask],
    observe: Observe = lambda: None,
) -> Picture:
    """The whole way from a photo's pixels, in this process. ``observe`` is told of every tile of a large one."""
    stroke = stroke_of(fields, (picture.rgb.shape[1], picture.rgb.shape[0]))
    return _painted(model.begin(stroke), picture, fields, model, masks, observe)


def check_film(fields: StylizeFields, model: ServedModel, size: tuple[int, int], format: AnyFormat) -> None:
    """Raises InvalidFields, TooManyPixels, and UnsupportedMediaType, for what cannot be done with an animation."""
    if format == "mp4":
        check_video()
    found = []
    if fields.stroke not in (None, 1):
        found.append(Offence("stroke", "not for animations: their strokes are the network's own"))
    if model.tiled is None:
        found.append(Offence("model", f"{model.name} has no graphs with frozen statistics: an animation would flicker"))
    if found:
        raise InvalidFields(found)
    if size[0] * size[1] > WHOLE_PIXELS:
        fits = int(max(size) * (WHOLE_PIXELS / (size[0] * size[1])) ** 0.5)
        raise TooManyPixels(f"frames of {size[0]} x {size[1]} pixels: ask for a max_side of {fits} or less")


def decode_moving(
    animation: Animation, mask: Photo | None, fields: StylizeFields, size: tuple[int, int], frames: int | None = None
) -> tuple[Film, list[Mask]]:
    """The frames at ``size`` (width, height), all or the first so many, and the masks of their whole strip."""
    film = decode_film(animation, size, frames)
    return film, [stacked(mask, film.frames) for mask in decode_masks(mask, fields, size)]


def painted_film(
    film: Film,
    fields: StylizeFields,
    model: ServedModel,
    masks: Sequence[Mask],
    observe: Observe = lambda: None,
) -> Film:
    """The whole way from an animation's pixels, in this process. ``observe`` is told of ``model.steps``."""
    run = Moving(model, film.frames).begin()
    return replace(film, strip=_painted(run, film.strip, fields, model, masks, observe))


def _painted(
    run: StoppableRun | FilmRun,
    picture: Picture,
    fields: StylizeFields,
    model: ServedModel,
    masks: Sequence[Mask],
    observe: Observe,
) -> Picture:
    rows = model.rows(fields.mixes, fields.strength)
    images = np.broadcast_to(picture.rgb, (len(rows), *picture.rgb.shape))
    outputs = run(images, rows, observe) if len(rows) else images
    return finished(model, picture, outputs, fields, masks)


def finished(
    model: ServedModel, picture: Picture, outputs: Pixels, fields: StylizeFields, masks: Sequence[Mask]
) -> Picture:
    """The picture from the outputs (R, H, W, 3) of ``model.rows(fields.mixes, fields.strength)``."""
    if fields.strength == 0:
        return picture
    painted = [
        keep_color(stylized, picture.rgb, fields.preserve_color, picture.alpha)
        for stylized in model.finish(picture.rgb, outputs, fields.strength, len(fields.mixes))
    ]
    return Picture(composed(picture.rgb, painted, masks) if masks else painted[0], picture.alpha)


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Say which file it was, where it was not the photo."""
    try:
        yield
    except (NotReady, Saturated):  # it is not the file's fault
        raise
    except ServiceError as error:
        raise type(error)(f"{field}: {error.detail}") from error
