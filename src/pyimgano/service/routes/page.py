"""GET /: a page where a person drops an image and sees what the detector sees."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ...pages.pictures import scale_of_colours
from ...pages.rendering import render
from ..state import Service

router = APIRouter()


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    """Return the page; it asks for nothing but this service's decisions."""
    service: Service = request.app.state.service
    text = render(
        "service.html",
        script="service.js",
        connects=True,
        title="pyimgano: drop an image",
        detectors=list(service.served),
        needs_key=bool(service.settings.api_keys),
        scale=scale_of_colours(),
    )
    return HTMLResponse(
        text,
        headers={
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
        },
    )
