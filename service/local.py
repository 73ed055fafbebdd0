"""A model store at work in this very process, without a server: the same fields, models, images and errors."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from service.animations import Animation, AnimationLimits, encode_film, may_be_animation, open_animation
from service.client import OnProgress, Order, Refused, Stylized
from service.errors import InvalidFields, ModelRefused, Offence, ServiceError
from service.images import decode, encode, open_photo
from service.models.catalog import Catalog, ServedModel, served
from service.models.encoder import encoder_of
from service.models.session import ProviderChoice, check_provider, cpu_quota
from service.models.store import PAINTING, ModelStore, StyleEntry
from service.painting import (
    check_film,
    decode_masks,
    decode_moving,
    model_for,
    naming,
    open_mask,
    painted,
    painted_film,
    stroke_of,
)
from service.schemas import StylizeFields

MAX_PIXELS = 178_956_970  # Pillow's own alarm
MAX_SIDE = 2048
ANIMATION = AnimationLimits(max_frames=10_000, max_pixels=2**28)


class Local:
    """Fills orders as ``service.client.Client`` does. Every model of the store is verified and loaded at once.

    Raises ModelRefused where the store cannot be trusted, ConfigurationError where ``provider`` is not to be had.
    """

    def __init__(self, store: Path, provider: ProviderChoice = "auto") -> None:
        check_provider(provider)
        threads = cpu_quota()
        stored = ModelStore(store).of_kinds("conditional", "classic", "encoder")
        networks = [served(model, provider, threads) for model in stored if model.card.kind != "encoder"]
        if not networks:
            raise ModelRefused(str(store), "holds no network that can stylise")
        encoders = [encoder_of(model, provider, threads) for model in stored if model.card.kind == "encoder"]
        self._catalog = Catalog.of(networks, encoders)

    def styles(self) -> list[StyleEntry]:
        return list(self._catalog.styles())

    def fill(self, order: Order, on_progress: OnProgress = lambda share: None) -> Stylized:
        """``on_progress`` is told of a large picture's tiles. Raises Refused, with the status and code that the server
        would have answered."""
        try:
            return self._fill(order, on_progress)
        except ServiceError as error:
            offences = error.offences if isinstance(error, InvalidFields) else ()
            raise Refused(error.status, error.code, error.detail, offences, None) from error

    def _fill(self, order: Order, on_progress: OnProgress) -> Stylized:
        fields = StylizeFields.read(list(order.fields.items()), self._catalog, files=order.files)
        if may_be_animation(order.image):
            animation = open_animation(order.image, ANIMATION)
            if animation.moves:
                model = self._knowing(model_for(fields, self._catalog, moving=True), order)
                return self._fill_moving(order, animation, fields, model, on_progress)
        model = self._knowing(model_for(fields, self._catalog), order)
        if fields.format == "gif" or fields.format == "mp4":
            raise InvalidFields([Offence("format", f"{fields.format} is for animations")])
        photo = open_photo(order.image, MAX_PIXELS)
        mask = open_mask(order.files, MAX_PIXELS)
        size = photo.size_within(fields.max_side or MAX_SIDE)
        picture = decode(photo, size)
        masks = decode_masks(mask, fields, size)
        format = fields.format or photo.format
        tiles = count(1)
        of = model.tiles(size, stroke_of(fields, size)) * len(model.rows(fields.mixes, fields.strength))
        finished = painted(picture, fields, model, masks, lambda: on_progress(next(tiles) / of))
        content = encode(finished, format, fields.quality)
        return Stylized(content, format, fields.applied_style, model.card.label)

    def _knowing(self, model: ServedModel, order: Order) -> ServedModel:
        """The network with the style of the order's painting, if there is one."""
        if order.style_image is None:
            return model
        encoder = self._catalog.encoders[model.name]
        with naming(PAINTING):
            return model.knowing({PAINTING: encoder.vector(encoder.read(order.style_image, MAX_PIXELS))})

    def _fill_moving(
        self, order: Order, animation: Animation, fields: StylizeFields, model: ServedModel, on_progress: OnProgress
    ) -> Stylized:
        format = fields.format or animation.format
        size = animation.size_within(fields.max_side or MAX_SIDE, format)
        check_film(fields, model, size, format)
        mask = open_mask(order.files, MAX_PIXELS)
        film, masks = decode_moving(animation, mask, fields, size, 1 if format == "jpeg" else None)
        done = count(1)
        of = model.steps(film.frames, len(model.rows(fields.mixes, fields.strength)))
        finished = painted_film(film, fields, model, masks, lambda: on_progress(next(done) / of))
        content = encode_film(finished, format, fields.quality)
        return Stylized(content, format, fields.applied_style, model.card.label)
