"""Whether the service runs and what it serves: /health, /ready, /metrics, /v1/models, reload."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ... import __version__
from ...errors import PyimganoError
from ..access import require_access
from ..answers import DetectorAnswer, Health, Problem, Ready, Reloaded, describe
from ..refusals import Refusal
from ..state import Service

router = APIRouter(tags=["service"])
guarded = APIRouter(tags=["service"], dependencies=[Depends(require_access)])


@router.get("/health", response_model=Health, responses={503: {"model": Problem}})
async def health(request: Request) -> Health:
    """Say that the service runs: a process that does not answer this is to be started again."""
    service: Service = request.app.state.service
    for served in service.served.values():
        if not served.queue.works:
            raise Refusal(503, "failed", f"the thread of detector {served.name!r} has ended")
    return Health(status="ok", version=__version__)


@router.get("/ready", response_model=Ready, responses={503: {"model": Ready}})
async def ready(request: Request) -> Response:
    """Say whether all detectors are loaded and warmed up."""
    service: Service = request.app.state.service
    answer = Ready(
        ready=service.ready,
        detectors={one.name: one.named.current is not None for one in service.served.values()},
    )
    return JSONResponse(answer.model_dump(), 200 if answer.ready else 503)


@guarded.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@guarded.get("/v1/models", response_model=list[DetectorAnswer])
async def models(request: Request) -> list[DetectorAnswer]:
    """List the detectors."""
    service: Service = request.app.state.service
    return [describe(one.named) for one in service.served.values()]


@guarded.post(
    "/v1/models/{name}/reload",
    response_model=Reloaded,
    responses={404: {"model": Problem}, 409: {"model": Problem}},
)
async def reload(request: Request, name: str) -> Reloaded:
    """Read a detector's folder again. The present detector goes on deciding until the new one is
    warmed up, and stays where that fails (409).
    """
    service: Service = request.app.state.service
    served = service.find(name)
    try:
        earlier, fresh = await service.load(served)
    except PyimganoError as error:
        raise Refusal(409, "failed", f"the earlier detector stays: {error}") from error
    return Reloaded(
        detector=name, earlier=None if earlier is None else earlier.version, version=fresh.version
    )
