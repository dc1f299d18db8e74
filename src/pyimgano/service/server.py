"""Running the application with uvicorn: signals, the address, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from ..errors import DataError
from .state import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

# Connections that are open at a time; further ones are answered with 503 by the server itself.
_CONNECTIONS = 1024
# A camera that sends an image now and then keeps its connection for so many seconds.
_KEEP_ALIVE = 75
_BACKLOG = 2048
# How often is looked whether a detector could not be loaded at the start.
_LOOK = 0.05


def run_service(
    app: FastAPI,
    *,
    host: str,
    port: int,
    grace: float,
    say: Callable[[str], None],
    access_log: bool = False,
) -> bool:
    """Serve until SIGTERM or SIGINT. SIGHUP loads all detectors again.

    After the signal no connection is accepted, and requests that were accepted are answered. A
    second SIGINT ends without that.

    Parameters
    ----------
    app
        Of `create_app`.
    host, port
        Where to listen; port 0 takes a free one.
    grace
        Seconds that accepted requests have after the signal.
    say
        Told in one line what a person should know: the address, and when all detectors are ready.
    access_log
        Whether each request has a line on stderr.

    Returns
    -------
    bool
        Whether all requests that were accepted could be answered or refused.

    Raises
    ------
    DataError
        The address cannot be listened on.
    PyimganoError
        A detector could not be loaded at the start.
    """
    service: Service = app.state.service
    with _listening(host, port) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="info" if access_log else "warning",
            access_log=access_log,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(grace)),
        )
        address = _address(listener)
        say(f"listening on {address}")
        server = _Server(config, service, lambda: say(f"ready: {address}"))
        server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
    return not server.force_exit


def is_local(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """Ends in the same way for all signals, without raising them again once it has ended."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._say_ready = ready
        self._reloading: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        watching = loop.create_task(self._watch())
        handlers: dict[Any, Any] = {
            signal.SIGINT: self.handle_exit,
            signal.SIGTERM: self.handle_exit,
        }
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = lambda *_: loop.call_soon_threadsafe(self._reload)
        before = {}
        with contextlib.suppress(ValueError):  # not in the main thread: signals are another's
            before = {one: signal.signal(one, handler) for one, handler in handlers.items()}
        try:
            yield
        finally:
            watching.cancel()
            for one, handler in before.items():
                signal.signal(one, handler)

    def _reload(self) -> None:
        task = asyncio.ensure_future(self._service.load_all())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _watch(self) -> None:
        """Say that the detectors are ready, or end where one of them cannot be loaded."""
        while not self._service.ready:
            if self._service.failure is not None:
                self.should_exit = True
                return
            await asyncio.sleep(_LOOK)
        self._say_ready()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = infos[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"--host {host} --port {port}: cannot be listened on ({reason})") from error
    with listener:
        yield listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
