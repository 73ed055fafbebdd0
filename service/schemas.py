"""What the HTTP edge takes and gives, as pydantic sees it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError

from service.colour import PreserveColor
from service.errors import InvalidFields, Offence, ServiceError, UnknownStyle
from service.fields import invalid, not_files, repeated
from service.images import AnyFormat
from service.masks import Regions
from service.models.catalog import Catalog
from service.models.store import PAINTING
from service.models.style import Mix

NO_ENCODER = "no model in the store can take it: publish one with python -m export publish-encoder, or name a style"
STYLES = ("style", "style_fine", "style_coarse")  # of the whole; of its strokes and its palette
FILES = ("mask", "masks", PAINTING)  # beside the photo, in multipart alone


def _known_styles(mix: Mix, info: ValidationInfo) -> Mix:
    catalog = cast(Catalog, info.context)
    known = sorted(catalog.names)
    unknown = [name for name in mix.weights if name not in (*known, PAINTING)]
    if unknown:
        detail = f"no style is called {' or '.join(unknown)}; there are {', '.join(known)}"
        raise PydanticCustomError("unknown_style", "{detail}", {"detail": detail})
    return mix


def _known_model(name: str, info: ValidationInfo) -> str:
    catalog = cast(Catalog, info.context)
    if name not in catalog.models:
        raise ValueError(f"no model is called {name[:64]!r}; there are {', '.join(catalog.models)}")
    return name


def _known_regions(regions: Regions, info: ValidationInfo) -> Regions:
    _known_styles(Mix(dict.fromkeys(regions.styles.values(), 1.0)), info)
    return regions


KnownMix = Annotated[Mix, BeforeValidator(Mix.parse), AfterValidator(_known_styles)]


class StylizeFields(BaseModel):
    """The fields of ``POST /stylize``, whichever way they came. Validated in the context of a Catalog."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    style: KnownMix | None = None
    style_fine: KnownMix | None = None
    style_coarse: KnownMix | None = None
    mask_styles: Annotated[Regions, BeforeValidator(Regions.parse), AfterValidator(_known_regions)] | None = None
    strength: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    preserve_color: PreserveColor = "none"
    stroke: float | None = Field(None, ge=1, le=16, allow_inf_nan=False)
    max_side: int | None = Field(None, ge=1, le=16383)
    model: Annotated[str, AfterValidator(_known_model)] | None = None
    format: AnyFormat | None = None
    quality: int = Field(90, ge=1, le=100)
    deadline_ms: float | None = Field(None, gt=0, allow_inf_nan=False)

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """One for each picture that is painted: the style, or those of the regions in their order."""
        if self.mask_styles:
            return tuple(Mix({name: 1.0}) for name in self.mask_styles.styles.values())
        fine, coarse = self.style_fine or self.style, self.style_coarse or self.style
        if fine is None or coarse is None:
            return ()
        return (fine,) if fine == coarse else (Mix(fine.weights, coarse.weights),)

    @property
    def style_names(self) -> set[str]:
        return {name for mix in self.mixes for name in mix.names}

    @property
    def applied_style(self) -> str:
        return applied_style({name: getattr(self, name) for name in (*STYLES, "mask_styles")})

    @classmethod
    def read(
        cls,
        fields: Sequence[tuple[str, str]],
        catalog: Catalog,
        offences: Iterable[Offence] = (),
        files: Collection[str] = (),
    ) -> StylizeFields:
        """Validate the fields as they came. ``offences`` are those that were found on the way here; ``files`` are
        which of FILES were sent.

        Raises InvalidFields with every offence at once, or UnknownStyle where that is the only one.
        """
        found = list(offences)
        names = {name for name, _ in fields}
        found += repeated(fields)
        found += not_files(names, FILES)
        found += _contradictions(names, files)
        unknown_style = None
        values = {name: value for name, value in fields if name not in FILES}
        if PAINTING in files and not names.intersection((*STYLES, "mask_styles")):
            values["style"] = PAINTING
        try:
            valid = cls.model_validate(values, context=catalog)
        except ValidationError as error:
            unknown_style = next((e["msg"] for e in error.errors() if e["type"] == "unknown_style"), None)
            found += invalid(error, "unknown field; there are " + ", ".join(cls.model_fields))
        if PAINTING in files and not catalog.takes_paintings:
            found.append(Offence(PAINTING, NO_ENCODER))
        if unknown_style and len(found) == 1:
            raise UnknownStyle(unknown_style)
        if not found:
            found += _unpaired(valid, files)
        if found:
            raise InvalidFields(found)
        return valid


def _unpaired(fields: StylizeFields, files: Collection[str]) -> list[Offence]:
    """A painting that no mix names, or a mix that names one where none came."""
    if (PAINTING in files) == (PAINTING in fields.style_names):
        return []
    if PAINTING in files:
        return [Offence(PAINTING, f"name it in the mix too, as {PAINTING}:1,{min(fields.style_names)}:1, or no style")]
    return [Offence(PAINTING, f"the mix names it: send the painting as the file {PAINTING}")]


def applied_style(fields: Mapping[str, object]) -> str:
    """As the header X-Style says it: the mix, or the regions, or where it came in parts, which is which."""
    given = {name: fields[name] for name in (*STYLES, "mask_styles") if fields[name]}
    if len(given) == 1:
        return str(*given.values())
    return "; ".join(f"{name}={part}" for name, part in given.items())


def _contradictions(names: set[str], files: Collection[str]) -> list[Offence]:
    """What is missing, or in the way of something else, among the fields and files that came."""
    if "masks" in files:
        found = [Offence(name, "not together with masks") for name in ("mask",) if name in files]
        refused = "not together with masks: mask_styles says the style of each region"
        found += [Offence(name, refused) for name in STYLES if name in names]
        if "mask_styles" not in names:
            found.append(Offence("mask_styles", "required with masks: index:style,index:style"))
        return found
    if "mask_styles" in names:
        return [Offence("mask_styles", "needs the file masks, an indexed PNG")]
    if names.issuperset(STYLES):
        return [Offence("style", "not together with style_fine and style_coarse: nothing is left for it")]
    if len(names.intersection(STYLES)) == 2 or "style" in names or (PAINTING in files and not names & set(STYLES)):
        return []
    return [Offence("style", "required: the name of a style, or a mix name:weight,name:weight")]


class Style(BaseModel):
    """A style that ``/stylize`` accepts now."""

    name: str
    title: str
    artist: str
    year: str
    credit: str = Field(description="source and licence of the reproduction")
    painting_sha256: str = Field(description="of the very file that the style was trained from")
    models: list[str] = Field(description="the models that have it, the server's first choice first")
    own: bool = Field(False, description="made or brought in here, and not the model store's")
    links: dict[str, str]


class Styles(BaseModel):
    styles: list[Style]
    style_image: list[str] = Field([], description="the models that take a painting along with the photo")


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what was wrong and what to do")
    instance: str
    code: str = Field(description="stable, snake_case")
    request_id: str
    errors: list[dict[str, str]] | None = Field(None, description="422 only: every offence, with field and detail")
    reasons: list[str] | None = Field(None, description="not_ready only")


class Status(BaseModel):
    status: str


class Readiness(Status):
    """``troubles`` are what to look into though pictures are made: jobs may wait."""

    troubles: list[str]


def problem(error: ServiceError, instance: str, request_id: str) -> dict[str, Any]:
    """The members of an error's problem document."""
    return error.members() | {"instance": instance, "request_id": request_id}
