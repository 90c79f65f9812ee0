"""What comes with the package, registered through the same hooks as what does not.

Classes are named, not imported: listing them costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import BackendOptions, OwnedRegistry, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.hooks import Progress
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, Quantizer, SpeechLM
    from moshi_pipe.nn.backend import TorchOptions

NODES: Final = (
    ("source", "file", "file_source:FileSource", "FileSourceOptions"),
    ("source", "silence", "array_source:SilenceSource", "SilenceSourceOptions"),
    ("source", "mic", "microphone:MicSource", "MicOptions"),
    ("source", "duplex", "duplex:DuplexSource", "DuplexOptions"),
    ("source", "codes", "codes_source:CodesSource", "CodesSourceOptions"),
    ("source", "fdb", "fdb_source:FdbSource", "FdbSourceOptions"),
    ("sink", "speaker", "speaker:SpeakerSink", "SpeakerOptions"),
    ("sink", "file", "file_sink:FileSink", "FileSinkOptions"),
    ("sink", "transcript", "transcript_sink:TranscriptSink", "TranscriptSinkOptions"),
    ("sink", "user_transcript", "transcript_sink:TranscriptSink", "UserTranscriptSinkOptions"),
    ("sink", "codes", "codes_sink:CodesSink", "CodesSinkOptions"),
    ("sink", "fdb", "fdb_sink:FdbSink", "FdbSinkOptions"),
    ("node", "stt", "stt_node:SttNode", "SttOptions"),
    ("sink", "metrics", "metrics_sink:MetricsSink", "MetricsSinkOptions"),
)
"""Every node in :mod:`moshi_pipe.nodes`: kind, name, class, and options in its ``options``."""

SERVER_NODES: Final = (
    ("source", "websocket", "source:WebsocketSource", "moshi_pipe.server.options:WebsocketOptions"),
    ("sink", "websocket", "sink:WebsocketSink", None),
)
"""Every node in :mod:`moshi_pipe.server`: kind, name, class and options."""


class BuiltinNodes:
    """Sources and sinks of the package."""

    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        """Offer :data:`NODES` and :data:`SERVER_NODES`."""
        for kind, name, cls, options in NODES:
            registry.add(
                kind, name, f"moshi_pipe.nodes.{cls}", f"moshi_pipe.nodes.options:{options}"
            )
        for kind, name, cls, server_options in SERVER_NODES:
            registry.add(kind, name, f"moshi_pipe.server.{cls}", server_options)


class TorchBackend:
    """The PyTorch backend and its quantizer.

    Args:
        open_quantizer: Finds the quantizer that options name, among those of all plugins; None
            knows the package's own, as a plugin that builds upon this backend may want it.
    """

    def __init__(
        self, open_quantizer: Callable[[BackendOptions, str], Quantizer] | None = None
    ) -> None:
        self._find_quantizer = open_quantizer or self._own_quantizer

    @hookimpl
    def open_codec(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> Codec | None:
        """Open Mimi when ``options.backend`` is ``torch``."""
        if options.backend != "torch":
            return None
        from moshi_pipe.nn import backend

        return backend.open_codec(checkpoint, _torch_options(options), progress=progress)

    @hookimpl
    def open_lm(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> SpeechLM | None:
        """Open Moshi when ``options.backend`` is ``torch``."""
        if options.backend != "torch":
            return None
        from moshi_pipe.nn import backend

        torch_options = _torch_options(options)
        quantizer = None
        if options.quant != "none":
            quantizer = self._find_quantizer(options, str(torch_options.device))
        return backend.open_lm(checkpoint, torch_options, quantizer=quantizer, progress=progress)

    @hookimpl
    def open_quantizer(self, options: BackendOptions, device: str) -> Quantizer | None:
        """Open the package's own quantizer for ``int8`` and ``int4``."""
        if options.quant not in ("int8", "int4"):
            return None
        from moshi_pipe.nn.weight_quantizer import WeightQuantizer

        return WeightQuantizer(
            options.quant,
            group_size=options.quant_group,
            product=options.quant_kernel,
            exact=options.numerics == "reference",
            device=device,
        )

    def _own_quantizer(self, options: BackendOptions, device: str) -> Quantizer:
        quantizer: Quantizer | None = self.open_quantizer(options, device)
        if quantizer is None:
            raise BackendError(
                f"backend torch has no quantization '{options.quant}'", fix="set quant=none"
            )
        return quantizer


def _torch_options(options: BackendOptions) -> TorchOptions:
    from moshi_pipe.nn import backend

    device = backend.choose_device(options.device)
    given = options.kv_dtype
    kv_dtype = None if given is None else backend.choose_kv_dtype(given, device)
    return backend.TorchOptions(
        device=device,
        dtype=backend.choose_dtype(options.dtype, device),
        kv_dtype=kv_dtype,
        numerics=options.numerics,
        kernels=options.cuda_kernels,
        context=options.context,
    )
