"""``create_app(settings)``: the only place where objects are wired."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service import __version__
from service.animations import AnimationLimits
from service.batching import Admission, Batcher
from service.encodings import Encodings
from service.engine import Engine
from service.errors import ClientGone, ConfigurationError, Internal, MethodNotAllowed, NotFound, ServiceError
from service.jobs.job import Limits
from service.jobs.queue import EmbeddedQueue
from service.jobs.supervisor import Crew, Supervisor
from service.jobs.webhook import Webhooks
from service.metrics import Metrics
from service.middleware import Edge, problem_response
from service.models.packs import PackFolder
from service.models.session import Gpu, check_provider, cpu_quota, gives_cuda
from service.models.store import ModelStore
from service.orders import JobView
from service.refinements import Refinements
from service.routes.jobs import JobLimits, OrderDesk, jobs_router
from service.routes.openapi import with_problems
from service.routes.ops import ops_router
from service.routes.pages import pages_router, web_files
from service.routes.styles import styles_router
from service.routes.stylize import PictureLimits, Stylizer, StylizeRoute
from service.routes.upload import Uploads
from service.routes.writers import Writers
from service.settings import Settings
from service.tracing import Tracer

DECODING_PHOTOS = 8  # of the largest there are, or as many pixels, may wait to be decoded: some seconds' work
FILM_PIXELS = 4  # times the pixels of the largest photo: all frames of an animation, which are decoded one by one


def create_app(settings: Settings, tracer: Tracer | None = None) -> FastAPI:
    """The service. Its models load once its lifespan has begun; until then, and while they do, it is not ready.

    Raises ConfigurationError where the provider demanded cannot be had.
    """
    check_provider(settings.provider)
    threads = cpu_quota()
    metrics = Metrics()
    metrics.build_info.labels(__version__, settings.commit).set(1)
    inference = ThreadPoolExecutor(1, "inference")
    codec, headers = ThreadPoolExecutor(threads, "codec"), ThreadPoolExecutor(1, "headers")
    gpu = Gpu(settings.gpu_mem_limit_bytes, settings.precision, settings.gpu_lanes)
    lanes = gpu.lanes if gives_cuda(settings.provider) else threads
    most = DECODING_PHOTOS * settings.max_pixels
    admission = Admission(settings.max_queue_pixels, metrics, lanes, max_source_pixels=most, codec_threads=threads)
    store = ModelStore(settings.model_store)
    batcher = Batcher(admission, inference, codec, metrics, settings.max_batch_pixels, settings.max_wait_ms)
    packs = PackFolder(settings.own_styles)
    engine = Engine(store, settings.provider, threads, admission, batcher, inference, metrics, packs, gpu)

    webhooks = _webhooks(settings)
    crew = Crew(
        settings.gatys_workers,
        max(1, threads // (2 * max(1, settings.gatys_workers))),
        settings.job_timeout_s,
        settings.result_ttl_s,
        settings.data_dir.absolute(),
        settings.model_store.absolute(),
        settings.provider,
    )
    kept = Limits(max_queued=settings.max_jobs, result_ttl_s=settings.result_ttl_s)
    supervisor = (
        _dispatch(settings, kept, crew, metrics, webhooks, engine)
        if settings.jobs_url
        else Supervisor(lambda: EmbeddedQueue(crew.data_dir, kept, owner=True), crew, metrics, webhooks, engine.ending)
    )
    animations = AnimationLimits(settings.max_frames, FILM_PIXELS * settings.max_pixels)
    pictures = PictureLimits(settings.max_pixels, settings.max_side, settings.sync_max_pixels, animations)
    encodings = Encodings(codec, inference, admission, metrics, settings.max_pixels)
    stylizer = Stylizer(engine, admission, codec, headers, metrics, pictures, supervisor, encodings)
    job_limits = JobLimits(settings.max_pixels, settings.max_side, settings.max_iterations)
    desk = OrderDesk(engine, settings.model_store, webhooks, codec, job_limits)
    refinements = Refinements(engine, supervisor, encodings, packs, codec, settings.max_pixels)
    uploads = Uploads(settings.max_upload_bytes, settings.upload_timeout_s, settings.max_held_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(engine.load())
        async with supervisor.running(), refinements.running():
            yield
        loading.cancel()
        batcher.close()
        inference.shutdown(cancel_futures=True)
        codec.shutdown(cancel_futures=True)
        headers.shutdown(cancel_futures=True)
        if tracer:
            await asyncio.to_thread(tracer.close)

    app = FastAPI(
        title="Style transfer", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # Edge has ours
    )  # fmt: skip
    app.router.routes.insert(0, StylizeRoute(stylizer, uploads))
    app.include_router(jobs_router(desk, supervisor, uploads))
    app.include_router(styles_router(engine, refinements, Writers(settings.admin_token), uploads))
    app.include_router(ops_router(engine, supervisor, metrics))
    app.include_router(pages_router())
    app.mount("/web", web_files(), name="web")
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    _answer_errors(app, metrics)
    app.add_middleware(Edge, metrics=metrics, closing=lambda: engine.draining, tracer=tracer)
    app.state.engine = engine
    return app


def create_admin(engine: Engine) -> Starlette:
    """For a port that only those who run the service can reach: ``POST /-/reload``."""

    async def reload(request: Request) -> Response:
        refused = await engine.reload()
        return JSONResponse({"refused": list(refused)}, status_code=409 if refused else 200)

    return Starlette(routes=[Route("/-/reload", reload, methods=["POST"])])


def _dispatch(
    settings: Settings, kept: Limits, crew: Crew, metrics: Metrics, webhooks: Webhooks | None, engine: Engine
) -> Supervisor:
    """Jobs that are done elsewhere; what it stands on is imported nowhere else."""
    try:
        from service.jobs.distributed.dispatch import Dispatch
        from service.jobs.distributed.queue import Place
    except ImportError as error:
        raise ConfigurationError(f"STYLIZE_JOBS_URL needs the extra 'distributed': {error}") from error
    assert settings.jobs_place is not None
    store = ModelStore(settings.model_store)
    queue = Place(*settings.jobs_place).queue(kept, store.version, patience_s=1.0, issues=True)
    return Dispatch(queue, crew, metrics, webhooks, engine.ending)


def _webhooks(settings: Settings) -> Webhooks | None:
    """None where no host is allowed."""
    if not settings.webhook_hosts or settings.webhook_secret is None:
        return None
    hosts = settings.webhook_hosts.lower().split(",")
    try:
        return Webhooks(
            hosts, settings.webhook_secret.get_secret_value(), lambda job: JobView.of(job).model_dump(mode="json")
        )
    except ValueError as error:
        raise ConfigurationError(f"STYLIZE_WEBHOOK_SECRET: {error}") from error


def _schema(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        app.openapi_schema = with_problems(schema)
    return app.openapi_schema


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """The HTTP seam: our errors as problems, and the framework's own few as ours."""

    @app.exception_handler(ServiceError)
    async def on_service_error(request: Request, error: ServiceError) -> Response:
        if request.method == "POST":
            metrics.rejected.labels(error.code).inc()
        return problem_response(error, request.scope)

    @app.exception_handler(ClientGone)
    async def on_client_gone(request: Request, error: ClientGone) -> Response:
        return _Silence()

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        return problem_response(_ours(request, error), request.scope)


class _Silence(Response):
    """Nothing is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        return


def _ours(request: Request, error: HTTPException) -> ServiceError:
    if error.status_code == 404:
        return NotFound(f"there is no {request.url.path[:200]}; GET /docs lists what there is")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        methods = [method.strip() for method in allow.split(",") if method.strip()]
        allow = ", ".join([*methods, "HEAD"] if "GET" in methods and "HEAD" not in methods else methods)
        return MethodNotAllowed(f"allowed here: {allow}", allow)
    return Internal(f"{error.status_code}: {error.detail}")
