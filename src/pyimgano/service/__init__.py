"""An HTTP service that decides on images: `pyimgano serve`, of the extra `pyimgano[serve]`.

`app` puts it together and `server` runs it. A request is read by `bodies`, waits in `batching`,
is scored by the detector that `detectors` holds, and is answered by `answers`. Each group of
addresses is a router of its own, a module in `routes`.
"""

from .app import create_app
from .settings import Settings

__all__ = ["Settings", "create_app"]
