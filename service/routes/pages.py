"""The web page and the reference: plain files, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

WEB = Path(__file__).parent.parent / "web"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def pages_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def index() -> FileResponse:
        return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)

    @router.get("/docs")
    def docs() -> FileResponse:
        return FileResponse(WEB / "docs.html", headers=PAGE_HEADERS)

    return router


def web_files() -> StaticFiles:
    """Scripts, style sheets and the example photo, to be mounted at /web."""
    return StaticFiles(directory=WEB)
