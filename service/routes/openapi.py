"""What ``POST /stylize`` takes and gives, for the schema: FastAPI cannot read it off a body that streams."""

from __future__ import annotations

from typing import Any, get_args

from service.errors import PROBLEMS
from service.images import FORMATS, AnyFormat, media_type
from service.jobs.parameters import Init, NetworkName, Optimizer, PresetName
from service.models.store import NAME_PATTERN
from service.orders import MAX_PAINTINGS
from service.schemas import Problem

PROBLEM_TYPE = "application/problem+json"

_FIELDS: dict[str, dict[str, Any]] = {
    "style": {
        "type": "string",
        "description": "A style's name, or a mix `name:weight,name:weight`; weights are normalised to sum 1.",
        "examples": ["starry_night", "starry_night:2,udnie:1"],
    },
    "style_fine": {
        "type": "string",
        "description": "A style or mix for the strokes, where `style`, or `style_coarse`, says the palette.",
    },
    "style_coarse": {
        "type": "string",
        "description": "A style or mix for the palette, where `style`, or `style_fine`, says the strokes.",
    },
    "strength": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 1,
        "description": "0 gives the photo back, 1 the full style.",
    },
    "stroke": {
        "type": "number",
        "minimum": 1,
        "maximum": 16,
        "description": "Strokes so many times as large as the network's own. Default: 1 up to 2 megapixels; larger "
        "pictures look like their preview of 1,024 px, only sharper.",
    },
    "max_side": {
        "type": "integer",
        "minimum": 1,
        "maximum": 16383,
        "description": "Shrink so that the longer side is at most this; never enlarge. Default: the server's.",
    },
    "format": {
        "type": "string",
        "enum": list(get_args(AnyFormat)),
        "description": "Of the answer; else `Accept` decides, else it is the photo's own. `gif` is for animations; of "
        "an animation a `jpeg` shows the first frame.",
    },
    "quality": {
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "default": 90,
        "description": "For JPEG and WebP.",
    },
    "model": {"type": "string", "description": "A model by name. Default: the server's choice."},
    "preserve_color": {
        "type": "string",
        "enum": ["none", "luminance", "histogram"],
        "default": "none",
        "description": "`luminance`: the style's light and dark, the photo's colours at every place. `histogram`: the "
        "photo's palette as a whole.",
    },
}
_DEADLINE = {
    "type": "number",
    "exclusiveMinimum": 0,
    "description": "Bounds the whole request, in ms; 504 when it passes.",
}
_BINARY = {"type": "string", "format": "binary"}
_MASKS = {
    "style_image": _BINARY
    | {
        "description": "A picture to take the style from, in one pass; transparency is shown on white. A mix names it "
        "`style_image`, as in `style_image:0.6,udnie:0.4`. 422 while no model in the store can."
    },
    "mask": _BINARY | {"description": "Greyscale, stretched to the photo: white is stylised, black stays photo."},
    "masks": _BINARY | {"description": "An indexed PNG instead: a style for each palette index."},
    "mask_styles": {
        "type": "string",
        "description": "With `masks`, in place of `style`: `index:style,index:style`; other indices stay photo.",
        "examples": ["1:starry_night,2:great_wave"],
    },
}


def _form(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """The content of a multipart body."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"multipart/form-data": {"schema": schema | ({"required": list(required)} if required else {})}}


_PROBLEM = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_HEADERS = {
    "X-Style": "the mix as applied",
    "X-Model": "name@version",
    "X-Request-ID": "the client's own where it sent a valid one",
    "Server-Timing": "decode, queue, infer and encode in ms",
}

STYLIZE: dict[str, Any] = {
    "description": (
        "Two ways in, one meaning: the image as the body and the fields as query parameters, or "
        "`multipart/form-data` with the file field `image` and the fields beside it."
    ),
    "responses": {
        200: {
            "description": "The stylised picture: the photo's size after EXIF orientation and `max_side`.",
            "content": {media_type(format): {"schema": _BINARY} for format in get_args(AnyFormat)},
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
        },
        202: {
            "description": "Too large to wait for: a Job, as `POST /gatys` gives; `Location` says where to follow it.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobView"}}},
        },
    },
    "openapi_extra": {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in (_FIELDS | {"deadline_ms": _DEADLINE}).items()
        ]
        + [{"name": "X-Deadline-Ms", "in": "header", "required": False, "schema": _DEADLINE}],
        "requestBody": {
            "required": True,
            "content": {media_type(format): {"schema": _BINARY} for format in get_args(AnyFormat)}
            | _form({"image": _BINARY} | _MASKS | _FIELDS, "image"),
        },
    },
}

_GATYS_NUMBERS = {
    name: {"type": "number", "minimum": 0, "description": f"{text} Default: the preset's."}
    for name, text in {
        "content_weight": "How much of the photo stays.",
        "style_weight": "How much the painting counts; above 0.",
        "tv_weight": "How smooth it is.",
    }.items()
}
_GATYS_CHOICES = {
    name: {"type": "string", "enum": list(get_args(choices))}
    for name, choices in {"preset": PresetName, "init": Init, "optimizer": Optimizer, "network": NetworkName}.items()
}
GATYS: dict[str, Any] = {
    "description": "The picture itself is optimised, in a job: `Location` says where to follow it.",
    "openapi_extra": {
        "parameters": [{"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"}}],
        "requestBody": {
            "required": True,
            "content": _form(
                {
                    "image": _BINARY,
                    "style_image": {
                        "type": "array",
                        "items": _BINARY,
                        "maxItems": MAX_PAINTINGS,
                        "description": "The painting, or several; or else `style`.",
                    },
                    "style_image_weights": {
                        "type": "string",
                        "description": "How much each counts, as `0.7,0.3`; all alike by default.",
                    },
                    "style": {
                        "type": "string",
                        "description": "A style whose painting the store ships, or a mix of such.",
                    },
                    "mask": _MASKS["mask"],
                    "iterations": {"type": "integer", "minimum": 1},
                    "seed": {"type": "integer", "minimum": 0},
                    "webhook_url": {"type": "string", "description": "Told when the job is finished."},
                }
                | _GATYS_CHOICES
                | _GATYS_NUMBERS
                | {name: _FIELDS[name] for name in ("max_side", "preserve_color", "quality")}
                | {"format": {"type": "string", "enum": list(FORMATS)}},
                "image",
            ),
        },
    },
}


STYLES: dict[str, Any] = {
    "description": "A style of a painting, made by a job (`202`, `Location` says where to follow it) that starts from "
    "the encoder's vector and trains the vector alone; or one brought in as a pack (`201`). Open from the service's "
    "own machine, or with the bearer token of `STYLIZE_ADMIN_TOKEN`.",
    "responses": {
        201: {"description": "The pack's style, served from now on."},
        202: {"description": "The job that makes it."},
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": _form(
                {
                    "painting": _BINARY,
                    "name": {"type": "string", "pattern": NAME_PATTERN},
                    "steps": {"type": "integer", "minimum": 1, "default": 200},
                    "model": _FIELDS["model"],
                    "pack": _BINARY | {"description": "Instead of all the others."},
                }
                | {name: {"type": "string"} for name in ("title", "artist", "year", "credit")}
            ),
        }
    },
}


def with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """Add to an OpenAPI schema what every operation may answer: the problem document and its codes."""
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components["Problem"] = Problem.model_json_schema()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "A problem (RFC 9457).", "content": _PROBLEM}
    schema["x-problems"] = [{"code": p.code, "status": p.status, "title": p.title} for p in PROBLEMS]
    return schema
