"""``GET /styles``: what ``/stylize`` accepts now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.engine import Engine
from service.errors import UnknownStyle
from service.models.catalog import Catalog, ServedModel
from service.models.store import StyleEntry
from service.routes.conditional import matches
from service.schemas import Style, Styles

_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "A small JPEG of the style at work."},
    304: {"description": "The client's copy is the newest."},
}


def styles_router(engine: Engine) -> APIRouter:
    router = APIRouter()

    @router.get("/styles", summary="Every style", response_model=Styles)
    def list_styles() -> Styles:
        catalog = engine.catalog
        return Styles(styles=[_style(entry, catalog) for entry in catalog.styles()])

    @router.get("/styles/{name}", summary="One style", response_model=Style)
    def get_style(name: str) -> Style:
        model = _first_choice(name, engine.catalog)
        return _style(model.styles[name], engine.catalog)

    @router.get("/styles/{name}/preview", summary="A style at work", response_class=Response, responses=_JPEG)
    def get_preview(name: str, request: Request) -> Response:
        model = _first_choice(name, engine.catalog)
        etag = f'"{model.card.files[model.styles[name].preview]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}  # to be kept, but asked for again: a store may change
        if matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        return Response(model.previews[name], media_type="image/jpeg", headers=headers)

    return router


def _first_choice(name: str, catalog: Catalog) -> ServedModel:
    models = catalog.models_with({name})
    if not models:
        raise UnknownStyle(f"no style is called {name[:64]!r}; GET /styles lists them")
    return models[0]


def _style(entry: StyleEntry, catalog: Catalog) -> Style:
    path = f"/styles/{entry.name}"
    return Style(
        **entry.model_dump(include={"name", "title", "artist", "year", "credit", "painting_sha256"}),
        models=[model.card.name for model in catalog.models_with({entry.name})],
        links={"self": path, "preview": f"{path}/preview", "stylize": f"/stylize?style={entry.name}"},
    )
