"""What the quantizers have in common: names, refusals, and what they say of themselves."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moshi_pipe.errors import BackendError, closest
from moshi_pipe.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def require(package: str) -> Any:
    """Import a package.

    Raises:
        BackendError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        raise BackendError(
            f"this quantization needs {package}, which cannot be imported",
            got=str(error),
            fix=f"pip install {package}, or take the package's own: quant=int8",
        ) from error


def check_form(name: str, forms: Mapping[str, bool], device: str) -> None:
    """Refuse what is not there.

    Args:
        name: As ``quant`` says it.
        forms: Whether each needs CUDA.
        device: Where the layers shall live.

    Raises:
        BackendError: Names what is there.
    """
    if name not in forms:
        raise BackendError(f"there is no quant '{name}'", wanted=closest(name, forms))
    if forms[name] and not device.startswith("cuda"):
        raise BackendError(
            f"quant={name} needs CUDA",
            got=f"device {device}",
            fix="set quant=int8 or quant=int4, which run on any device",
        )


class Tally:
    """Counts what became of the layers.

    Args:
        name: Of the form.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._layers = self._plain = self._kept = 0

    def add(self, weight_OD: Tensor, num_bytes: int) -> None:
        """Count a layer that was quantized to so many bytes."""
        self._layers += 1
        self._plain += weight_OD.nbytes
        self._kept += num_bytes

    def __str__(self) -> str:
        sizes = f"{format_bytes(self._plain)} in {format_bytes(self._kept)}"
        return f"{self._name}: {self._layers} layers, {sizes}"
