"""What a configuration with a remote model describes: a graph of one node, and no weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.graph import Graph, Ports, check_graph, kinds_needed
from moshi_pipe.graph.node import SessionSettings
from moshi_pipe.graph.schedule import Schedule, make_schedule
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.remote.audio import FRAME_SIZE, SAMPLE_RATE
from moshi_pipe.remote.connection import ANSWER_OFFSET
from moshi_pipe.remote.pieces import Pieces
from moshi_pipe.remote.talk import FRAME_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.node import TextReader
    from moshi_pipe.models.remote import RemoteOptions

DUPLEX_KIND: Final = "duplex"
"""Kind of the node that a remote model is: audio in; audio and text out."""

# Names of the Rust server, which ours knows too.
# Source: kyutai-labs/moshi@e6a55d2 rust/moshi-backend/src/stream_both.rs.
_QUERY: Final = {
    "temperature": "audio_temperature",
    "text_temperature": "text_temperature",
    "top_k": "audio_topk",
    "text_top_k": "text_topk",
    "repetition_penalty": "repetition_penalty",
}
_PENALTY_CONTEXT: Final = 64  # recent text tokens, as many as a model here looks back at


@dataclass(slots=True)
class RemoteAssembly:
    """A checked graph around a remote model; what a run needs to know in place of a checkpoint.

    Attributes:
        server: Where the model is.
        graph: Checked.
        pieces: Stand for its vocabulary.
        warnings: What a user should know.
        readers: None: no other model listens.
    """

    server: RemoteOptions
    graph: Graph
    pieces: Pieces = field(default_factory=Pieces)
    warnings: list[str] = field(default_factory=list)
    frame_s: float = FRAME_S
    lead_s: float = 0.0
    text_delay_s: float = 0.0
    tail_s: float = 0.0
    readers: Mapping[str, TextReader] = field(default_factory=dict)

    @property
    def latency_ms(self) -> float:
        """By how much an answer lags what it can have heard, without the network."""
        return (1 + ANSWER_OFFSET) * self.frame_s * 1000

    def schedule(self, wanted: Iterable[str] | None = None) -> Schedule:
        """The one node, and the wanted outputs; None wants all."""
        return make_schedule(self.graph, wanted)

    def tokenizer(self) -> Pieces:
        """Tells what the numbers of pieces stand for."""
        return self.pieces

    def files(self) -> list[Path]:
        """No file shapes the results."""
        return []

    def settings(self, config: RunConfig, *, live: bool = False) -> SessionSettings:
        """What the configuration says; what it leaves out is the server's to choose.

        Raises:
            ConfigError: It asks for what only a model that runs here can do.
        """
        given = {k: v for k, v in asdict(config.sampling).items() if v is not None}
        settings = replace(SessionSettings(), **given)
        settings.first_frame = "reset"  # as servers do
        return settings

    def query(self, config: RunConfig) -> dict[str, str]:
        """Parameters of every conversation, as the protocol calls them."""
        made = {}
        for key, name in _QUERY.items():
            value = getattr(config.sampling, key)
            if value is not None and (key, value) != ("repetition_penalty", 1.0):
                made[name] = f"{value:g}" if isinstance(value, float) else str(value)
        if "repetition_penalty" in made:  # the Rust server wants both, or obeys neither
            made["repetition_penalty_context"] = str(_PENALTY_CONTEXT)
        if self.server.audio != "ogg_opus":
            made["audio"] = self.server.audio
        if self.server.max_s is not None:
            made["max_s"] = f"{self.server.max_s:g}"
            made["max_steps"] = str(max(1, round(self.server.max_s / FRAME_S)))
        return made


def remote_graph(graph: Mapping[str, Any], name: str) -> Graph:
    """Check a graph whose model is remote.

    Args:
        graph: As plain dicts and lists.
        name: Of the model, for messages.

    Raises:
        ConfigError: It has other nodes.
        GraphError: The wiring is wrong.
    """
    kinds = kinds_needed(graph)
    if kinds - {DUPLEX_KIND}:
        raise ConfigError(
            f"model '{name}' runs elsewhere: a graph around it has no other node",
            got=f"graph '{graph.get('name')}' with {', '.join(sorted(kinds - {DUPLEX_KIND}))}",
            fix="leave graph=... out, or choose graph=remote",
        )
    audio = Audio(SAMPLE_RATE, FRAME_SIZE)
    text = Text(0, Fraction(SAMPLE_RATE, FRAME_SIZE))
    ports = {DUPLEX_KIND: Ports({"audio": audio}, {"audio": audio, "text": text})}
    checked = check_graph(graph, ports)
    if len(checked.nodes) != 1:
        raise ConfigError(
            f"model '{name}' runs elsewhere: a graph around it has one node",
            got=", ".join(checked.nodes),
        )
    return checked


def assemble_remote(config: RunConfig) -> RemoteAssembly:
    """Check what a configuration with a remote model describes.

    Raises:
        ConfigError: A key that only a model that runs here obeys.
        GraphError: The wiring is wrong.
    """
    server = config.remote
    if server is None:
        raise ValueError("the configuration has no remote model")
    local = BackendOptions()
    keys = (
        *("backend", "device", "dtype", "kv_dtype", "numerics", "context", "quant"),
        *("cuda_graphs", "cuda_kernels"),
    )
    chosen = [key for key in keys if getattr(config.backend, key) != getattr(local, key)]
    own = ("first_frame", "end_on_silence_s", "drop_until_pad_s")
    chosen += [key for key in own if getattr(config, key) is not None]
    if config.conditions:
        chosen.append("conditions")
    if config.sampling.guidance not in (None, 1.0):
        chosen.append("sampling.guidance")
    if chosen:
        raise ConfigError(
            f"model '{server.name}' runs elsewhere, where its server decides",
            got=", ".join(chosen),
            fix="leave these keys out, or set them where the server is started",
        )
    return RemoteAssembly(server, remote_graph(config.graph, server.name))
