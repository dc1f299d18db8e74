"""Who may ask: API keys, and pages of other sites that may not."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from .refusals import Refusal

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The service's API key.")
_bearer = HTTPBearer(auto_error=False, description="The service's API key.")


async def require_access(
    request: Request,
    header: Annotated[str | None, Depends(_header)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let a request pass that has a key, where the service has any.

    All keys are compared in full, so that the time tells nothing of them. A request that a
    browser makes for a page of another site is refused, key or none: the page would otherwise use
    the service behind the back of who looks at it.

    Raises
    ------
    Refusal
        401 or 403.
    """
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise Refusal(403, "forbidden", "a page of another site asks; this is not allowed")
    keys: tuple[str, ...] = request.app.state.service.settings.api_keys
    if not keys:
        return
    given = header if header is not None else (bearer.credentials if bearer is not None else "")
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    if not any(matches):
        raise Refusal(
            401, "forbidden", "an API key is wanted, as X-API-Key or Authorization: Bearer"
        )
