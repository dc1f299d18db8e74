"""What a method hands over to be saved, and what it is handed back, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..errors import SavedModelError

if TYPE_CHECKING:
    from ..backbones import Backbone


@dataclass(frozen=True)
class State:
    """What a method learned.

    Attributes
    ----------
    arrays
        By name; numbers, finite.
    facts
        Plain JSON values by name.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)


class SavedState:
    """A `State` read back. What is not asked for by the end is refused.

    Parameters
    ----------
    arrays, facts
        As in the files.
    n_train
        How many training images were learned from.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        facts: Mapping[str, Any],
        n_train: int = 1,
    ) -> None:
        self._arrays = dict(arrays)
        self._facts = dict(facts)
        self.n_train = n_train

    def array(self, name: str, dtype: str, shape: Sequence[int | None]) -> npt.NDArray[Any]:
        """Return an array of this dtype, such as `float32`, and shape; None is any length.

        Raises
        ------
        SavedModelError
            It is not there, or is another.
        """
        self.require_shape(name, dtype, shape)
        return self._arrays.pop(name)

    def require_shape(self, name: str, dtype: str, shape: Sequence[int | None]) -> None:
        """Check an array as `array` does, and leave it to be asked for: before room for it is
        taken.
        """
        if name not in self._arrays:
            raise SavedModelError(f"the array {name!r} is missing")
        found = self._arrays[name]
        fits = found.ndim == len(shape) and all(
            have >= 1 if want is None else have == want for have, want in zip(found.shape, shape)
        )
        if found.dtype != np.dtype(dtype) or not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise SavedModelError(
                f"the array {name!r} is {found.dtype} of shape {found.shape}, "
                f"wanted {dtype} of shape ({wanted})"
            )

    def has_fact(self, name: str) -> bool:
        """Return whether there is a fact of this name, which earlier versions may not have
        written.
        """
        return name in self._facts

    def fact(self, name: str, annotation: Any) -> Any:
        """Return a fact as `annotation` wants it (any type that pydantic understands, strictly).

        Raises
        ------
        SavedModelError
            It is not there, or is something else.
        """
        if name not in self._facts:
            raise SavedModelError(f"state.{name} is missing")
        adapter = TypeAdapter(annotation, config=ConfigDict(strict=True))
        try:
            return adapter.validate_python(self._facts.pop(name))
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise SavedModelError(f"state.{name}: {message[0].lower()}{message[1:]}") from None

    def require_backbone(self, backbone: Backbone | None, expected: str | None) -> None:
        """Raise `SavedModelError` if a backbone has not the weights that it had in the fit.

        Parameters
        ----------
        backbone
            The one that is here; None if the method has none.
        expected
            The hash of the weights that the detector was fitted with; None without any.
        """
        if backbone is None:
            if expected is not None:
                raise SavedModelError("it names a backbone, and the model has none")
            return
        found = backbone.state_sha256
        if found != expected:
            origin = f"{backbone.weights.source} {backbone.weights.detail}"
            wanted = "none" if expected is None else f"{expected[:12]}..."
            raise SavedModelError(
                f"the weights of backbone {backbone.name} found here ({origin}, hash "
                f"{found[:12]}...) are not those it was fitted with (hash {wanted}); give these "
                "with load_model(..., weights=), or save with include_backbone=True"
            )

    def require_all_used(self) -> None:
        """Raise `SavedModelError` if something was never asked for."""
        for kind, left in (("array", self._arrays), ("fact", self._facts)):
            if left:
                raise SavedModelError(f"an unexpected {kind}: {min(left)!r}")
