"""What a configuration describes, put together: checkpoint, graph, schedule, nodes, defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.foreign import Guarded, foreign_nodes, foreign_ports, make_foreign
from moshi_pipe.graph.format import Codes
from moshi_pipe.graph.graph import Graph, Ports, check_graph, kinds_needed, model_ports
from moshi_pipe.graph.schedule import Schedule, make_schedule
from moshi_pipe.models.checkpoint import (
    LM,
    MIMI,
    TOKENIZER,
    Checkpoint,
    ModelOptions,
    open_checkpoint,
    read_specs,
)
from moshi_pipe.models.protocols import Capabilities
from moshi_pipe.registry import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.node import BatchedNode, SessionSettings, TextReader
    from moshi_pipe.hooks import BackendOptions
    from moshi_pipe.models.plan import Plan
    from moshi_pipe.models.protocols import Codec, SpeechLM
    from moshi_pipe.models.spec import CodecSpec, LMSpec
    from moshi_pipe.models.tokenizer import SentencePieceTokenizer
    from moshi_pipe.plugins import Plugins

LM_KIND: Final = "lm"
ENCODE_KIND: Final = "codec.encode"
DECODE_KIND: Final = "codec.decode"

# How far past the delay the model listens before it has written everything down, in seconds.
# Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/run_inference.py (stt padding).
_STT_EXTRA_TAIL_S: Final = 1.0

# Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/lm.py, LMGen.__init__.
_SAMPLING_DEFAULTS: Final = {"temp": 0.8, "temp_text": 0.7, "top_k": 250, "top_k_text": 25}


@dataclass(slots=True)
class Models:
    """Opened models; None where the graph needs none."""

    codec: Codec | None = None
    lm: SpeechLM | None = None

    @property
    def caps(self) -> Capabilities:
        """Where the largest of them runs; on the CPU where a graph has nodes of plugins alone."""
        model = self.lm or self.codec
        return Capabilities("none", "cpu", "float32") if model is None else model.caps


@dataclass(slots=True)
class Assembly:
    """A checked graph and the files of its model; no weights are in memory yet.

    Attributes:
        checkpoint: The model's files, found.
        graph: Checked.
        codec: What the graph needs to know of the codec.
        lm: The language model's numbers; None where the graph has none.
        backend: Where and how models run.
        plugins: Open the models.
        warnings: What a user should know.
        readers: What texts other than the language model's stand for, by output of the graph.
        node_files: Files of nodes that bring their own.
    """

    checkpoint: Checkpoint
    graph: Graph
    codec: CodecSpec
    lm: LMSpec | None
    backend: BackendOptions
    plugins: Plugins
    warnings: list[str] = field(default_factory=list)
    readers: dict[str, TextReader] = field(default_factory=dict)
    node_files: list[Path] = field(default_factory=list)

    @property
    def frame_s(self) -> float:
        """Duration of a frame in seconds."""
        return self.codec.frame_s

    @property
    def model_type(self) -> str:
        """``moshi``, ``hibiki`` or ``stt``."""
        return self.checkpoint.config.model_type

    def schedule(self, wanted: Iterable[str] | None = None) -> Schedule:
        """Order of firing for the wanted outputs; None wants all."""
        return make_schedule(self.graph, wanted)

    def tokenizer(self) -> SentencePieceTokenizer | None:
        """The text tokenizer; None where the graph makes no text."""
        if self.checkpoint.tokenizer is None:
            return None
        from moshi_pipe.models.tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer(self.checkpoint.tokenizer)

    def open_models(
        self, schedule: Schedule, loading: Callable[[str, int, int], None] | None = None
    ) -> Models:
        """Load what the scheduled nodes need; on the thread that will step them.

        Args:
            schedule: Which nodes.
            loading: Called with what is loaded, bytes done and bytes in all.

        Raises:
            BackendError: No plugin has this backend, or it cannot run here.
            CheckpointError: The weights cannot be used.
        """
        kinds = {self.graph.nodes[name] for name in schedule.order}
        models = Models()
        tell = loading or _tell_nobody
        if kinds & {ENCODE_KIND, DECODE_KIND}:
            models.codec = self.plugins.open_codec(
                self.checkpoint, self.backend, partial(tell, "the codec")
            )
        if LM_KIND in kinds:
            models.lm = self.plugins.open_lm(
                self.checkpoint, self.backend, partial(tell, "the language model")
            )
        return models

    def make_nodes(
        self, schedule: Schedule, models: Models, *, guided: bool, max_candidates: int
    ) -> dict[str, BatchedNode]:
        """Make the scheduled nodes around opened models.

        Args:
            schedule: Which nodes.
            models: Opened.
            guided: Whether sessions may use classifier-free guidance.
            max_candidates: Largest top-k of a session; 0 allows all.
        """
        graphs = self.backend.cuda_graphs
        makers: dict[str, Callable[[], BatchedNode]] = {
            ENCODE_KIND: lambda: _encode(models, graphs),
            DECODE_KIND: lambda: _decode(models, self.lm, graphs),
            LM_KIND: lambda: _lm(models, self.codec, guided, max_candidates, graphs),
        }
        nodes: dict[str, BatchedNode] = {}
        for name in schedule.order:
            kind = self.graph.nodes[name]
            if kind in makers:
                nodes[name] = makers[kind]()
            else:
                entry = self.plugins.nodes.get("node", kind)
                node = make_foreign(entry, self.graph.options.get(name), self.codec)
                own = entry.owner in BUILT_IN
                nodes[name] = node if own else Guarded(node, f"node '{name}'", entry.owner)
        return {name: self._guard(name, node) for name, node in nodes.items()}

    def _guard(self, name: str, node: BatchedNode) -> BatchedNode:
        """Have a stage around a plugin's model say whose it is when it fails."""
        part = {LM_KIND: "lm", ENCODE_KIND: "codec", DECODE_KIND: "codec"}
        owner = self.plugins.opened_by.get(part.get(self.graph.nodes[name], ""))
        if owner is None or owner in BUILT_IN:
            return node
        backend = self.backend.backend
        if self.graph.nodes[name] != LM_KIND:
            backend = self.backend.codec_backend or backend
        return Guarded(node, f"node '{name}' (backend '{backend}')", owner)

    def default_settings(self, *, live: bool = False) -> SessionSettings:
        """What the model itself wants; seed 0.

        Args:
            live: Whether audio comes at its own pace: then the first frame is treated as the
                reference's server does, else as its file command does.
        """
        from moshi_pipe.graph.node import SessionSettings

        given = {**_SAMPLING_DEFAULTS, **self.checkpoint.config.lm_gen_config}
        settings = SessionSettings(
            temperature=float(given["temp"]),
            text_temperature=float(given["temp_text"]),
            top_k=int(given["top_k"]),
            text_top_k=int(given["top_k_text"]),
            first_frame="reset" if live else "duplicate",
        )
        if self.model_type == "stt":
            settings.text_temperature = float(
                self.checkpoint.config.lm_gen_config.get("temp_text", 0.0)
            )
        if self.model_type == "hibiki" and self.lm is not None:
            settings.conditions = self._hibiki_conditions()
            tokenizer = self.tokenizer()
            settings.end_on_text = None if tokenizer is None else tokenizer.eos_id
        return settings

    def settings(self, config: RunConfig, *, live: bool = False) -> SessionSettings:
        """What the configuration says, over what the model itself wants; seed 0.

        Raises:
            ConfigError: A condition that the model does not have, or a key that a graph without
                a language model cannot obey.
        """
        given = {k: v for k, v in asdict(config.sampling).items() if v is not None}
        settings = replace(self.default_settings(live=live), **given)
        if config.first_frame is not None:
            settings.first_frame = config.first_frame
        settings.max_tail_frames = max(1, round(config.max_tail_s / self.frame_s))
        for key in ("end_on_silence_s", "drop_until_pad_s"):
            if getattr(config, key) is not None and self.lm is None:
                raise ConfigError(
                    f"{key} needs a model that writes down what it says",
                    got=f"graph '{self.graph.name}'",
                    fix=f"leave {key} out, or choose graph=dialogue",
                )
        if config.end_on_silence_s is not None and not live:  # live, who leaves waits for nothing
            settings.end_on_padding = max(1, round(config.end_on_silence_s / self.frame_s))
        declared = {entry.name for entry in self.lm.conditioners} if self.lm else set()
        for name in config.conditions:
            if name.removesuffix("!") not in declared:
                raise ConfigError(
                    f"the model has no condition '{name}'", wanted=closest(name, declared)
                )
        settings.conditions = {**settings.conditions, **config.conditions}
        return settings

    def files(self) -> list[Path]:
        """Files of models that the graph needs."""
        found = self.checkpoint
        paths = (found.lm_weights, found.mimi_weights, found.tokenizer)
        return [*(path for path in paths if path is not None), *self.node_files]

    @property
    def lead_s(self) -> float:
        """Silence that the model wants before speech, in seconds."""
        if self.lm is None:
            return 0.0
        config = self.checkpoint.config.stt_config
        return float(config.get("audio_silence_prefix_seconds", 0.0))

    @property
    def text_delay_s(self) -> float:
        """By how much text lags the sound it writes down, in seconds."""
        if self.lm is None:
            return 0.0
        return float(self.checkpoint.config.stt_config.get("audio_delay_seconds", 0.0))

    @property
    def tail_s(self) -> float:
        """Silence that the model wants after speech, in seconds."""
        delays = [reader.delay_s for reader in self.readers.values()]
        if self.lm is not None and self.model_type == "stt":
            delays.append(self.text_delay_s)
        return max(delays) + _STT_EXTRA_TAIL_S if delays else 0.0

    @property
    def latency_ms(self) -> float:
        """By how much an answer lags what it can have heard: one frame and the model's delay."""
        delay = self.lm.max_delay if self.lm is not None else 0
        return (1 + delay) * self.frame_s * 1000

    def _hibiki_conditions(self) -> dict[str, str]:
        """The best voice wanted, the worst unwanted.

        Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/run_inference.py.
        """
        names = {entry.name for entry in self.lm.conditioners} if self.lm is not None else set()
        if "description" not in names:
            return {}
        return {"description": "very_good", "description!": "very_bad"}


def assemble(
    model: ModelOptions,
    graph: Mapping[str, Any],
    backend: BackendOptions,
    plugins: Plugins,
    *,
    before_files: Callable[[], None] | None = None,
) -> Assembly:
    """Read the model's config, check the graph against it, then find the model's files.

    Args:
        model: Which model.
        graph: Its graph, as plain dicts and lists.
        backend: Where and how models run.
        plugins: Open the models.
        before_files: Called when all but the model's files is known to be right; may raise.

    Raises:
        GraphError: The wiring is wrong; nothing was downloaded but the config.
        BackendError: No plugin that is installed can have the backend or the ``quant``.
        CheckpointError: The model's files cannot be found, or do not fit its config.
    """
    checked, codec, lm = wire(model, graph, plugins)
    parts = parts_needed(graph)
    plugins.refuse_absent(backend, codec=MIMI in parts, lm=LM in parts)
    if before_files is not None:
        before_files()
    checkpoint = open_checkpoint(model, parts=parts)
    checkpoint.check()
    warnings = [*plugins.warnings(), *checkpoint.warnings]
    if checkpoint.is_random:
        warnings.append(
            f"model '{model.name}' has random weights: what it says means nothing. "
            "model=nano answers a little, model=moshiko is the trained dialogue model (15.4 GB)"
        )
    nodes = foreign_nodes(checked, plugins, codec)
    readers = {name: node.readers() for name, node in nodes.items()}
    return Assembly(
        checkpoint,
        checked,
        codec,
        lm,
        backend,
        plugins,
        warnings,
        readers=_by_output(checked, readers),
        node_files=[path for node in nodes.values() for path in node.files()],
    )


def _by_output(
    graph: Graph, readers: Mapping[str, Mapping[str, TextReader]]
) -> dict[str, TextReader]:
    """Readers of nodes' ports as those of the graph's outputs."""
    found = {}
    for output, place in graph.outputs.items():
        node, _, port = place.partition(".")
        if port in readers.get(node, {}):
            found[output] = readers[node][port]
    return found


def wire(
    model: ModelOptions, graph: Mapping[str, Any], plugins: Plugins
) -> tuple[Graph, CodecSpec, LMSpec | None]:
    """Read the model's config and check the graph against it.

    Returns:
        The graph, what it needs to know of the codec, and the language model if it has one.

    Raises:
        GraphError: The wiring is wrong.
        ConfigError: The graph needs a language model, and the model is only a codec.
        CheckpointError: The model's config cannot be read.
    """
    config, mimi = read_specs(model)
    kinds = kinds_needed(graph)
    if LM_KIND in kinds and config.lm is None:
        raise ConfigError(
            f"graph '{graph.get('name')}' needs a language model",
            got=f"model '{model.name}' holds only a codec",
            fix="choose graph=codec, encode or decode, or another model",
        )
    lm = config.lm if LM_KIND in kinds else None
    if lm is not None and lm.num_generated == 0 and DECODE_KIND in kinds:
        raise ConfigError(
            f"model '{model.name}' writes text and does not speak",
            got=f"graph '{graph.get('name')}', which decodes speech",
            fix="choose graph=transcribe sink=[transcript], or experiment=transcribe",
        )
    foreign = plugins.nodes.names("node")
    ports = {**model_ports(mimi.codec, lm), **{name: Ports({}, {}) for name in foreign}}
    return check_graph(graph, ports, foreign_ports(graph, plugins, mimi.codec)), mimi.codec, lm


def plan_run(config: RunConfig, *, offline: bool | None = None) -> Plan:
    """Predict the memory of a run from its configuration alone.

    Args:
        config: The run.
        offline: True downloads nothing; None leaves it to the model's options.

    Raises:
        CheckpointError: The model's config cannot be read.
    """
    from moshi_pipe.models.plan import plan_model

    if config.remote is not None:
        raise ConfigError(
            f"model '{config.model.name}' runs elsewhere: nothing of it is loaded here",
            got=config.remote.place,
        )
    backend = config.backend
    return plan_model(
        config.model if offline is None else replace(config.model, offline=offline),
        device=backend.device,
        dtype=backend.dtype,
        kv_dtype=backend.kv_dtype,
        slots=config.engine.slots,
        context=backend.context,
        quant=backend.quant,
        quant_group=backend.quant_group,
        parts=parts_needed(config.graph),
        rows_per_slot=2 if (config.sampling.guidance or 1.0) != 1.0 else 1,
    )


def parts_needed(graph: Mapping[str, Any]) -> list[str]:
    """Parts of a model that a graph's nodes need."""
    kinds = kinds_needed(graph)
    codec = [MIMI] if kinds & {ENCODE_KIND, DECODE_KIND} else []
    return [*codec, LM, TOKENIZER] if LM_KIND in kinds else codec


def check_source(graph: Graph, name: str, gives: str) -> None:
    """Refuse a source that gives what the graph does not take, before any weight is loaded.

    Args:
        graph: Checked.
        name: Of the source.
        gives: ``audio`` or ``codes``.

    Raises:
        ConfigError: Names both, and what would fit.
    """
    wanted = "codes" if isinstance(graph.input_format, Codes) else "audio"
    if gives != wanted:
        fitting = "source=codes" if wanted == "codes" else "source=file"
        raise ConfigError(
            f"graph '{graph.name}' takes {wanted}, source '{name}' gives {gives}",
            fix=f"choose {fitting}, or another graph",
        )


def check_outputs(graph: Graph, sinks: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Refuse sinks whose outputs the graph does not make, before any weight is loaded.

    Args:
        graph: Checked.
        sinks: Label and needed outputs of each sink.

    Raises:
        ConfigError: Names the sink, the output and what there is.
    """
    needs = [(label, tuple(needed)) for label, needed in sinks]
    fitting = [label for label, needed in needs if set(needed) <= set(graph.outputs)]
    for label, needed in needs:
        for output in needed:
            if output not in graph.outputs:
                example = f": sink=[{','.join(fitting)}]" if fitting else ""
                raise ConfigError(
                    f"sink={label} needs the output '{output}', which graph '{graph.name}' does "
                    "not make",
                    wanted=f"one of its outputs: {', '.join(graph.outputs)}",
                    fix=f"leave this sink out{example}, or choose another sink or graph",
                )


def _encode(models: Models, graphs: bool) -> BatchedNode:
    from moshi_pipe.engine.stages import EncodeStage

    return EncodeStage(_present(models.codec), graphs=graphs)


def _decode(models: Models, lm: LMSpec | None, graphs: bool) -> BatchedNode:
    from moshi_pipe.engine.stages import DecodeStage

    num_codebooks = lm.num_generated if lm is not None and lm.num_generated else None
    return DecodeStage(_present(models.codec), num_codebooks, graphs=graphs)


def _lm(
    models: Models, codec: CodecSpec, guided: bool, max_candidates: int, graphs: bool
) -> BatchedNode:
    from moshi_pipe.engine.stages import LMStage

    return LMStage(
        _present(models.lm),
        frame_rate=codec.frame_rate,
        guided=guided,
        max_candidates=max_candidates,
        graphs=graphs,
    )


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Where nobody waits for a model to load."""


def _present(model: Any) -> Any:
    if model is None:
        raise RuntimeError("a node was made before its model was opened")
    return model
