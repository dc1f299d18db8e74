"""The service as an ASGI application: for `pyimgano serve`, or for a server of your own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from .. import __version__
from .detectors import DetectorSource
from .refusals import install
from .routes import page, predict, status
from .settings import Settings
from .state import Service

_ABOUT = """Decides whether images show good or defective parts.

POST an image to `/v1/models/NAME/predict`. An image that cannot be read, or that is not decided on
in time, is an error and never good. Errors have one form: `error`, one line, and `request_id`.
"""


def create_app(sources: Sequence[DetectorSource], settings: Settings | None = None) -> FastAPI:
    """Make the application.

    Detectors are loaded when it starts, while it answers `/health` already; `/ready` says when
    all of them are warmed up. It is for one process: each worker of a server that forks would have
    detectors and queues of its own.

    Parameters
    ----------
    sources
        The detectors, each under a name of its own.
    settings
        Limits and API keys; by default those of `Settings`.

    Returns
    -------
    fastapi.FastAPI
        `app.state.service` is its `Service`.

    Raises
    ------
    DataError, UsageError
        A folder holds no detector that can be read.
    """
    for source in sources:
        source.check()
    service = Service(sources, settings or Settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with service:
            loading = asyncio.create_task(service.load_all())
            try:
                yield
            finally:
                loading.cancel()
                with suppress(asyncio.CancelledError):
                    await loading

    app = FastAPI(
        title="pyimgano",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        # their pages load scripts from elsewhere
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    install(app)
    for router in (predict.router, status.router, status.guarded, page.router):
        app.include_router(router)
    return app
