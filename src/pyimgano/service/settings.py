"""What a service is told when it is started."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Settings:
    """Limits of a service.

    Attributes
    ----------
    batch_size
        Images of one detector that are scored together, at most, where so many wait.
    queue_size
        Requests that one detector has accepted and not yet answered, at most. Further ones are
        refused with the status 429.
    timeout
        Seconds from the acceptance of a request until it is given up.
    max_body
        Bytes of one request's body, at most.
    decoded_bytes
        Bytes of decoded images that exist at a time, of all requests together. An image that is
        larger by itself is decoded while there is no other.
    api_keys
        One of them must come with every request for a decision; none are needed if it is empty.

    Raises
    ------
    UsageError
        A limit that lets nothing through.
    """

    batch_size: int = 8
    queue_size: int = 64
    timeout: float = 10.0
    max_body: int = 64 * 2**20
    decoded_bytes: int = 512 * 2**20
    api_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue_size", "max_body", "decoded_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not self.timeout > 0:
            raise UsageError(f"timeout must be more than 0 seconds, got {self.timeout!r}")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise UsageError("an API key must be printable ASCII characters, at least one")
