"""POST /v1/models/NAME/predict: an image in, a decision out."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from ..access import require_access
from ..answers import Answer, Problem, make_answer
from ..batching import Job, Judged
from ..bodies import RawFormat, read_body, require_image_type
from ..pictures import WantedPictures
from ..refusals import CLIENT_GONE, Refusal, request_id
from ..state import Served, Service

router = APIRouter(tags=["decisions"], dependencies=[Depends(require_access)])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_TYPES = ("image/jpeg", "image/png", "image/tiff", "application/octet-stream")
_BODY = {
    "requestBody": {
        "required": True,
        "description": "The image itself: a JPEG, PNG, TIFF, BMP, WebP, PGM or PPM file, which is "
        "told by its content; or raw pixels, with shape in the query.",
        "content": dict.fromkeys(_TYPES, _BINARY),
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The query is wrong, or the body is empty."},
    401: {"model": Problem, "description": "The API key is missing or wrong."},
    404: {"model": Problem, "description": "There is no such detector."},
    413: {"model": Problem, "description": "The body is too large."},
    415: {"model": Problem, "description": "The body is a form or JSON."},
    422: {"model": Problem, "description": "The body is no whole image. There is no decision."},
    429: {"model": Problem, "description": "The queue is full; Retry-After says for how long."},
    503: {"model": Problem, "description": "Not ready, ending, or no decision in time."},
}


@router.post(
    "/v1/models/{name}/predict",
    response_model=Answer,
    responses=_PROBLEMS,
    openapi_extra=_BODY,
    summary="Decide on an image",
)
async def predict(
    request: Request,
    name: str,
    shape: Annotated[
        str | None,
        Query(
            description="The body is raw pixels of this height, width and number of channels (3, "
            "or none for grey), row by row.",
            examples=["480,640,3"],
        ),
    ] = None,
    dtype: Annotated[
        Literal["uint8", "uint16"] | None,
        Query(description="Of raw pixels; uint16 has its lower byte first. Default uint8."),
    ] = None,
    order: Annotated[
        Literal["rgb", "bgr"] | None,
        Query(description="Of the channels of raw pixels. Default rgb; OpenCV has bgr."),
    ] = None,
    regions: Annotated[bool, Query(description="List the defective regions.")] = True,
    map: Annotated[bool, Query(description="Return the anomaly map.")] = False,
    overlay: Annotated[
        bool, Query(description="Return a picture of the image with its map and regions.")
    ] = False,
) -> Response:
    """Score an image and decide on it.

    An image that cannot be read, or that is not decided on in time, is an error and never good.
    """
    service: Service = request.app.state.service
    began = time.perf_counter()
    served = service.find(name)
    try:
        raw = RawFormat.parse(shape, dtype, order)
        wanted = WantedPictures(map, overlay)
        judged = await _judge(service, served, request, raw, regions, wanted)
    except Refusal as refusal:
        service.metrics.errors.labels(name, refusal.kind).inc()
        raise
    seconds = time.perf_counter() - began
    answer = make_answer(name, request_id(request), judged, seconds)
    service.metrics.seconds.labels(name).observe(seconds)
    service.metrics.decisions.labels(name, answer.decision).inc()
    return Response(
        answer.model_dump_json(),
        media_type="application/json",
        headers={"X-Request-ID": answer.request_id},
    )


async def _judge(
    service: Service,
    served: Served,
    request: Request,
    raw: RawFormat | None,
    regions: bool,
    wanted: WantedPictures,
) -> Judged:
    """Read the body, let it be judged, and wait for that until the time is over or the client is
    gone.
    """
    settings = service.settings
    loaded = served.named.current
    if loaded is None:
        raise Refusal(
            503, "not_ready", f"the detector {served.name!r} is being loaded", retry_after=1
        )
    require_image_type(request.headers.get("content-type", ""))
    deadline = asyncio.get_running_loop().time() + settings.timeout
    try:
        served.queue.admit()
    except Refusal:
        await _read_and_forget(request, settings.max_body, settings.timeout)
        raise
    try:
        declared = request.headers.get("content-length")
        reading = read_body(request.stream(), settings.max_body, declared)
        body = await asyncio.wait_for(reading, settings.timeout)
    except BaseException as error:
        served.queue.leave()
        if isinstance(error, asyncio.TimeoutError):
            line = f"the body did not arrive within {settings.timeout:g} s"
            raise Refusal(408, "slow_client", line) from None
        raise
    job = Job(loaded, body, raw, regions, wanted)
    del body
    served.queue.submit(job)
    return await _outcome(request, job.future, deadline, settings.timeout)


async def _outcome(
    request: Request, future: Future[Judged], deadline: float, timeout: float
) -> Judged:
    waited_for: asyncio.Future[Judged] = asyncio.wrap_future(future)
    gone = asyncio.ensure_future(_client_gone(request))
    first: set[asyncio.Future[Any]] = {waited_for, gone}
    try:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait(first, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if waited_for in done:
            return waited_for.result()
        if gone in done:
            raise Refusal(CLIENT_GONE, "client_gone", "the client went away")
        raise Refusal(
            503, "timeout", f"no decision within {timeout:g} s, so there is none", retry_after=1
        )
    finally:
        gone.cancel()
        waited_for.cancel()  # the job is passed over at its next step


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_and_forget(request: Request, limit: int, timeout: float) -> None:
    """Read a body that nobody will look at: a client that is still sending it would not see the
    answer. One that waits to be asked for it (`Expect: 100-continue`) is not asked.
    """
    if "expect" in request.headers:
        return

    async def read() -> None:
        total = 0
        async for chunk in request.stream():
            total += len(chunk)
            if total > limit:
                return

    try:
        await asyncio.wait_for(read(), timeout)
    except Exception:  # slow, or gone: the answer is the same
        return
