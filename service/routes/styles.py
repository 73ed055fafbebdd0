"""``/styles``: what ``/stylize`` accepts now, and styles of one's own."""

from __future__ import annotations

import hashlib
import mimetypes
from typing import Any

from fastapi import APIRouter, Request, Response

from service.engine import Engine
from service.errors import NotFound, Offence, UnknownStyle
from service.models.catalog import Catalog, ServedModel
from service.models.store import StyleEntry
from service.orders import JobView
from service.refinements import Refinements, StyleFields
from service.routes.conditional import matches
from service.routes.jobs import job_answer
from service.routes.openapi import STYLES
from service.routes.upload import Upload, Uploads, received
from service.routes.writers import Writers
from service.schemas import Style, Styles

PAINTING, PACK = "painting", "pack"  # files of a POST

_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "A small JPEG of the style at work."},
    304: {"description": "The client's copy is the newest."},
}

_ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}, "description": "A few KB."}}
_PAINTING: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {}}, "description": "An image file."}}


def styles_router(engine: Engine, refinements: Refinements, writers: Writers, uploads: Uploads) -> APIRouter:
    router = APIRouter()

    @router.get("/styles", summary="Every style", response_model=Styles)
    def list_styles() -> Styles:
        catalog = engine.catalog
        takers = [model.name for model in catalog.conditional if model.name in catalog.encoders]
        return Styles(styles=[_style(entry, catalog) for entry in catalog.styles()], style_image=takers)

    @router.post("/styles", summary="A style of one's own", response_model=Style | JobView, **STYLES)
    async def add_style(request: Request) -> Response:
        writers.check(request)
        async with received(request, uploads, (PACK, PAINTING), image=None) as upload:
            return await added(upload, request.client.host if request.client else "unknown")

    async def added(upload: Upload, client: str) -> Response:
        if PACK in upload.files and not (PAINTING in upload.files or upload.fields or upload.offences):
            name = await refinements.install(upload.files[PACK])
            style = _style(_first_choice(name, engine.catalog).styles[name], engine.catalog)
            location = {"Location": f"/styles/{name}"}
            return Response(style.model_dump_json(), 201, headers=location, media_type="application/json")
        offences = list(upload.offences)
        if PACK in upload.files:
            offences.append(Offence(PACK, "alone: it says everything itself"))
        elif PAINTING not in upload.files:
            offences.append(Offence(PAINTING, "required: a picture, as a file; or the file pack alone"))
        fields = StyleFields.read(upload.fields, engine.catalog, offences)
        return job_answer(await refinements.submit(upload.files[PAINTING], fields, client), 202)

    @router.delete("/styles/{name}", summary="Delete a style of one's own", status_code=204, response_class=Response)
    async def delete_style(name: str, request: Request) -> Response:
        writers.check(request)
        await refinements.remove(name)
        return Response(status_code=204)

    @router.get("/styles/{name}/pack", summary="A style to take away", response_class=Response, responses=_ZIP)
    def get_pack(name: str, request: Request) -> Response:
        model = _first_choice(name, engine.catalog)
        if model.card.kind != "conditional":
            raise NotFound(f"{name} is a network of its own ({model.name}), and has no vector to take away")
        answer = _kept(request, model.pack(name).zipped(), "application/zip")
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}.zip"'
        return answer

    @router.get("/styles/{name}", summary="One style", response_model=Style)
    def get_style(name: str) -> Style:
        model = _first_choice(name, engine.catalog)
        return _style(model.styles[name], engine.catalog)

    @router.get("/styles/{name}/preview", summary="A style at work", response_class=Response, responses=_JPEG)
    def get_preview(name: str, request: Request) -> Response:
        model = _first_choice(name, engine.catalog)
        return _kept(request, model.previews[name], "image/jpeg")

    @router.get("/styles/{name}/painting", summary="The painting itself", response_class=Response, responses=_PAINTING)
    def get_painting(name: str, request: Request) -> Response:
        _first_choice(name, engine.catalog)
        model = _with_painting(name, engine.catalog)
        if model is None:
            raise NotFound(f"the store does not ship the painting of {name}; its style has a preview")
        return _kept(request, model.paintings[name], mimetypes.guess_type(str(model.styles[name].painting))[0])

    return router


def _first_choice(name: str, catalog: Catalog) -> ServedModel:
    models = catalog.models_with({name})
    if not models:
        raise UnknownStyle(f"no style is called {name[:64]!r}; GET /styles lists them")
    return models[0]


def _with_painting(name: str, catalog: Catalog) -> ServedModel | None:
    return next((model for model in catalog.models_with({name}) if name in model.paintings), None)


def _kept(request: Request, content: bytes, media_type: str | None) -> Response:
    """A file that clients keep, but ask for again: a store may change."""
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def _style(entry: StyleEntry, catalog: Catalog) -> Style:
    path, models = f"/styles/{entry.name}", catalog.models_with({entry.name})
    links = {"self": path, "preview": f"{path}/preview", "stylize": f"/stylize?style={entry.name}"}
    if _with_painting(entry.name, catalog):
        links["painting"] = f"{path}/painting"
    if models[0].card.kind == "conditional":
        links["pack"] = f"{path}/pack"
    return Style(
        **entry.model_dump(include={"name", "title", "artist", "year", "credit", "painting_sha256"}),
        models=[model.card.name for model in models],
        own=any(entry.name in model.own for model in models),
        links=links,
    )
