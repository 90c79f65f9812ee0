"""Quantizers of torchao and bitsandbytes, chosen with ``quant``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moshi_pipe.hooks import hookimpl

if TYPE_CHECKING:
    from moshi_pipe.hooks import BackendOptions


@hookimpl
def open_quantizer(options: BackendOptions, device: str) -> Any:
    """Open what ``options.quant`` names, if its name begins with one of ours.

    Raises:
        BackendError: There is no such form, its package is not installed, or it does not run on the
            device.
    """
    family, _, _ = options.quant.partition("-")
    if family == "torchao":
        from moshi_pipe_quantizers.torchao import TorchaoQuantizer

        return TorchaoQuantizer(options.quant, options.quant_group, device)
    if family == "bnb":
        from moshi_pipe_quantizers.bnb import BnbQuantizer

        return BnbQuantizer(options.quant, device)
    return None
