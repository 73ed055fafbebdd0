"""What ``POST /gatys`` takes, and a job as clients see it."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from service.colour import PreserveColor
from service.errors import InvalidFields, Offence
from service.fields import invalid, not_files, repeated
from service.images import Format
from service.jobs.job import Job, Status
from service.jobs.parameters import PRESETS, Init, NetworkName, Optimizer, Parameters, PresetName
from service.models.style import MAX_WEIGHT, Mix

DEFAULT_SIDE = 512  # pixels
MIN_SIDE = 16  # pixels: VGG halves a picture four times
LARGEST = 1e12
FILES = ("mask",)
PAINTING = "style_image"  # a file too, once or several times
MAX_PAINTINGS = 8


@dataclasses.dataclass(frozen=True)
class Offer:
    """What can be ordered here: limits, networks whose weights are in the store, the paintings that it ships."""

    max_iterations: int
    max_side: int  # pixels
    networks: Collection[str]
    paintings: Mapping[str, bytes]
    webhook_refusal: Callable[[str], str | None]  # why a URL may not be told, or None
    model_for: Callable[[Mix], str | None]  # the network that paints a mix in one pass


def _within(limit: Callable[[Offer], int]) -> AfterValidator:
    def check(value: int, info: ValidationInfo) -> int:
        most = limit(cast(Offer, info.context))
        if value > most:
            raise ValueError(f"at most {most} here")
        return value

    return AfterValidator(check)


def _network(value: str, info: ValidationInfo) -> str:
    if value not in cast(Offer, info.context).networks:
        raise ValueError(f"its weights are not in the store: python -m export fetch {value} puts them there")
    return value


def _paintings(mix: Mix, info: ValidationInfo) -> Mix:
    shipped = cast(Offer, info.context).paintings
    missing = [name for name in mix.weights if name not in shipped]
    if missing:
        there = f"there are {', '.join(sorted(shipped))}" if shipped else "there are none"
        raise ValueError(f"the store ships no painting for {', '.join(missing)}; {there}; or send a style_image")
    return mix


def _webhook(url: str, info: ValidationInfo) -> str:
    if refusal := cast(Offer, info.context).webhook_refusal(url):
        raise ValueError(refusal)
    return url


def _shares(text: object) -> tuple[float, ...]:
    """``0.7,0.3`` or ``7,3``, made to sum to 1."""
    weights = [_positive(part) for part in str(text).split(",")]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def _positive(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= MAX_WEIGHT:
        raise ValueError(f"{text[:32]!r} is not a number above 0 and at most {MAX_WEIGHT:g}; weights are like 0.7,0.3")
    return weight


Weight = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]


class GatysFields(BaseModel):
    """The fields of ``POST /gatys``. Validated in the context of an Offer."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    style: Annotated[Mix, BeforeValidator(Mix.parse), AfterValidator(_paintings)] | None = None
    style_image_weights: Annotated[tuple[float, ...], BeforeValidator(_shares)] | None = None
    preset: PresetName = "balanced"
    content_weight: Weight | None = None
    style_weight: Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)] | None = None
    tv_weight: Weight | None = None
    init: Init | None = None
    optimizer: Optimizer | None = None
    iterations: Annotated[int, Field(ge=1), _within(lambda offer: offer.max_iterations)] | None = None
    network: Annotated[NetworkName, AfterValidator(_network)] | None = None
    max_side: Annotated[int, Field(ge=MIN_SIDE), _within(lambda offer: offer.max_side)] | None = None
    preserve_color: PreserveColor = "none"
    format: Format | None = None
    quality: int = Field(90, ge=1, le=100)
    seed: int | None = Field(None, ge=0, lt=2**63)
    webhook_url: Annotated[str, Field(max_length=2048), AfterValidator(_webhook)] | None = None

    @classmethod
    def read(
        cls,
        fields: Sequence[tuple[str, str]],
        offer: Offer,
        offences: Iterable[Offence] = (),
        paintings: int = 0,
    ) -> GatysFields:
        """Validate the fields as they came. ``paintings`` is how many were sent as files.

        Raises InvalidFields with every offence at once.
        """
        found = list(offences)
        names = {name for name, _ in fields}
        found += repeated(fields)
        found += not_files(names, (PAINTING, *FILES))
        if "style" in names and paintings:
            found.append(Offence("style", "not together with style_image"))
        if "style" not in names and not paintings and PAINTING not in names:
            found.append(Offence("style", "required: a style whose painting is in the store, or the file style_image"))
        if paintings > MAX_PAINTINGS:
            found.append(Offence(PAINTING, f"{paintings} of them; at most {MAX_PAINTINGS}"))
        values = {name: value for name, value in fields if name not in (PAINTING, *FILES)}
        try:
            valid = cls.model_validate(values, context=offer)
            if valid.network is None and not offer.networks:
                found.append(Offence("network", "no weights are in the store: python -m export fetch vgg16"))
            if valid.style_image_weights and len(valid.style_image_weights) != paintings:
                detail = f"{len(valid.style_image_weights)} weights for {paintings} style_image files"
                found.append(Offence("style_image_weights", detail))
        except ValidationError as error:
            found += invalid(error, "unknown field")
        if found:
            raise InvalidFields(found)
        return valid

    def applied(self, offer: Offer, photo_format: Format, paintings: int = 0) -> Parameters:
        """Everything settled: by the fields, else by the preset, else here."""
        preset = dataclasses.asdict(PRESETS[self.preset])
        preferred: NetworkName = "vgg19" if self.preset == "keras" and "vgg19" in offer.networks else "vgg16"
        chosen = preset | self.model_dump(include=set(preset), exclude_none=True)
        return Parameters(
            preset=self.preset,
            style=dict(self.style.weights) if self.style else self._uploaded(paintings),
            content_weight=chosen["content_weight"],
            style_weight=chosen["style_weight"],
            tv_weight=chosen["tv_weight"],
            init=chosen["init"],
            optimizer=chosen["optimizer"],
            iterations=min(chosen["iterations"], offer.max_iterations),
            network=self.network or preferred,
            max_side=self.max_side or min(DEFAULT_SIDE, offer.max_side),
            preserve_color=self.preserve_color,
            format=self.format or photo_format,
            quality=self.quality,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            start_model=self._start_model(offer),
        )

    def _uploaded(self, paintings: int) -> dict[str, float]:
        weights = self.style_image_weights or (1 / paintings,) * paintings
        names = [PAINTING, *(f"{PAINTING}-{number}" for number in range(2, paintings + 1))]
        return dict(zip(names, weights, strict=True))

    def _start_model(self, offer: Offer) -> str | None:
        """`fast` begins with the network's picture, where nobody asked for another start: on four pairs at 256 px it
        was after 15 to 51 evaluations where the photo's start is after 60 (measured). It has the painting's colours, so
        not where the painting is recoloured."""
        wanted = self.preset == "fast" and self.init is None and self.preserve_color != "histogram"
        return offer.model_for(self.style) if wanted and self.style else None


class JobLoss(BaseModel):
    total: float
    content: float
    style: float
    tv: float


class JobView(BaseModel):
    """A job. Times are RFC 3339."""

    id: str
    status: Status
    position: int | None = Field(description="in the queue, from 1, while queued")
    progress: float = Field(ge=0, le=1)
    iteration: int
    iterations: int
    loss: JobLoss | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    expires_at: str | None
    attempt: int
    parameters: dict[str, Any] = Field(description="all of them as applied, the seed included")
    error: dict[str, Any] | None = Field(description="the problem, where it failed")
    links: dict[str, str]

    @classmethod
    def of(cls, job: Job) -> JobView:
        path = f"/jobs/{job.id}"
        return cls(
            id=job.id,
            status=job.status,
            position=job.position,
            progress=job.progress,
            iteration=job.iteration,
            iterations=job.parameters.iterations,
            loss=JobLoss(**dataclasses.asdict(job.loss)) if job.loss else None,
            created_at=_rfc3339(job.created_at),
            started_at=_rfc3339(job.started_at) if job.started_at else None,
            finished_at=_rfc3339(job.finished_at) if job.finished_at else None,
            expires_at=_rfc3339(job.expires_at) if job.expires_at else None,
            attempt=job.attempt,
            parameters=job.parameters.as_dict(),
            error=dict(job.error) if job.error else None,
            links={"self": path} | {name: f"{path}/{name}" for name in ("events", "preview", "result")},
        )


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
