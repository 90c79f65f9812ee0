"""What comes with the package, registered through the same hooks as what does not.

Classes are named, not imported: listing them costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import BackendOptions, OwnedRegistry, hookimpl

if TYPE_CHECKING:
    from moshi_pipe.hooks import Progress
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, SpeechLM
    from moshi_pipe.nn.backend import TorchOptions

NODES: Final = (
    ("source", "file", "file_source:FileSource", "FileSourceOptions"),
    ("source", "silence", "array_source:SilenceSource", "SilenceSourceOptions"),
    ("source", "mic", "microphone:MicSource", "MicOptions"),
    ("source", "duplex", "duplex:DuplexSource", "DuplexOptions"),
    ("source", "codes", "codes_source:CodesSource", "CodesSourceOptions"),
    ("sink", "speaker", "speaker:SpeakerSink", "SpeakerOptions"),
    ("sink", "file", "file_sink:FileSink", "FileSinkOptions"),
    ("sink", "transcript", "transcript_sink:TranscriptSink", "TranscriptSinkOptions"),
    ("sink", "codes", "codes_sink:CodesSink", "CodesSinkOptions"),
)
"""Every node in :mod:`moshi_pipe.nodes`: kind, name, class, and options in its ``options``."""


class BuiltinNodes:
    """Sources and sinks of the package."""

    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        """Offer :data:`NODES`."""
        for kind, name, cls, options in NODES:
            registry.add(
                kind, name, f"moshi_pipe.nodes.{cls}", f"moshi_pipe.nodes.options:{options}"
            )


class TorchBackend:
    """The PyTorch backend."""

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
        if options.quant != "none":
            raise BackendError(
                f"backend torch has no quantization '{options.quant}'", fix="set quant=none"
            )
        from moshi_pipe.nn import backend

        return backend.open_lm(checkpoint, _torch_options(options), progress=progress)


def _torch_options(options: BackendOptions) -> TorchOptions:
    from moshi_pipe.nn import backend

    device = backend.choose_device(options.device)
    given = options.kv_dtype
    kv_dtype = None if given is None else backend.choose_dtype(given, device)
    return backend.TorchOptions(
        device=device,
        dtype=backend.choose_dtype(options.dtype, device),
        kv_dtype=kv_dtype,
        numerics=options.numerics,
        context=options.context,
    )
