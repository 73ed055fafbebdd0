"""For those who run the service: probes and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.engine import Engine
from service.errors import NotReady
from service.jobs.supervisor import Supervisor
from service.metrics import Metrics
from service.schemas import Readiness, Status

JOBS_RETRY_S = 5.0


def ops_router(engine: Engine, supervisor: Supervisor, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/livez", summary="Whether the process can answer")
    async def livez() -> Status:
        return Status(status="alive")

    @router.get("/readyz", summary="Whether every model is loaded, verified and warm")
    async def readyz() -> Readiness:
        if engine.reasons:
            raise engine.not_ready()
        if supervisor.reasons:
            raise NotReady(supervisor.reasons, JOBS_RETRY_S)
        return Readiness(status="ready", troubles=list(supervisor.troubles))

    @router.get("/metrics", summary="Prometheus text, or OpenMetrics by negotiation", response_class=Response)
    def get_metrics(request: Request) -> Response:
        content, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type, "Vary": "Accept"})

    return router
