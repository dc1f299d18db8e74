"""Requests that get no decision: a status, and one line that says why."""

from __future__ import annotations

import logging
import re
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_log = logging.getLogger("pyimgano.service")

#: Of a client that is gone; nobody sees it but the metrics.
CLIENT_GONE = 499


class Refusal(Exception):
    """A request that is refused, or that could not be answered.

    Attributes
    ----------
    status
        The HTTP status.
    kind
        The label of the metric that counts it.
    line
        What the client reads.
    retry_after
        In so many seconds the same request may succeed; None if that is not so.
    """

    def __init__(
        self, status: int, kind: str, line: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(line)
        self.status = status
        self.kind = kind
        self.line = " ".join(line.split())
        self.retry_after = retry_after


def request_id(request: Request) -> str:
    """Return what the client calls the request in `X-Request-ID`, or a new identifier.

    A value that is too long or has odd characters is replaced: it stands in logs.
    """
    found: str | None = getattr(request.state, "request_id", None)
    if found is None:
        given = request.headers.get("x-request-id", "")
        found = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        request.state.request_id = found
    return found


def install(app: FastAPI) -> None:
    """Let every error of the app be answered in the one form of `answers.Problem`."""
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _problem(
    request: Request, status: int, line: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    name = request_id(request)
    found = {"X-Request-ID": name, **(headers or {})}
    return JSONResponse({"error": line, "request_id": name}, status, headers=found)


async def _refused(request: Request, error: Any) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _problem(request, error.status, error.line, headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    place, message = first["loc"][-1], first["msg"]
    line = f"{place}: {message[0].lower()}{message[1:]}, got {str(first.get('input'))[:100]!r}"
    return _problem(request, 400, line)


async def _http(request: Request, error: Any) -> JSONResponse:
    line = f"{request.method} {request.url.path[:200]}: {str(error.detail).lower()}"
    return _problem(request, error.status_code, line, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("request %s failed: %r", request_id(request), error)
    return _problem(request, 500, "the service failed at this request; its log says why")
