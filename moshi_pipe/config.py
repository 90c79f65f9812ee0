"""What a configuration holds, as dataclasses: what Hydra composes, and what a run is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moshi_pipe.hooks import BackendOptions, NodeEntry
    from moshi_pipe.models.checkpoint import ModelOptions
    from moshi_pipe.models.remote import RemoteOptions

NUMERICS: Final = ("fast", "reference")
CUDA_KERNELS: Final = ("torch", "triton")
LATE: Final = ("drop_oldest", "skip_to_live", "slow_down", "fail")
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
KV_DTYPES: Final = (*DTYPES, "int8")
OWN_ENGINE: Final = "default"
"""``engine.node`` of a run in this process."""


@dataclass
class EngineOptions:
    """How sessions share the models.

    Attributes:
        node: What runs them: ``default`` is this process, others are of plugins.
        slots: Sessions at once; 1 or a multiple of 4, others are rounded up.
        threads: Threads of torch on the CPU.
        inbox_frames: Frames that wait for the model, per session.
        outbox_frames: Frames that wait for the sinks, per session.
        late: Live: what happens to frames that the models are too late for: ``drop_oldest``,
            ``skip_to_live``, ``fail``; where the source can wait, as a server can, also
            ``slow_down``. Files always ``slow_down``. None chooses by the source.
        max_lag_ms: Live: longest that a frame waits for the models, in ms.
        budget_ms: Live: from a frame's delivery to its deadline, in ms; None is one frame.
        min_interval_ms: Live: shortest time between two ticks, in ms; None is 0 for one slot,
            else 20.
        admit_ms: Servers: a conversation is let in while a tick of all of them stays below, in ms;
            None lets in as many as there are slots, as does ``late=slow_down``.
        restarts: Servers: how often in an hour a new engine is made when one has failed.
    """

    node: str = OWN_ENGINE
    slots: int = 1
    threads: int = 1
    inbox_frames: int = 25
    outbox_frames: int = 25
    late: str | None = None
    max_lag_ms: float = 400.0
    budget_ms: float | None = None
    min_interval_ms: float | None = None
    admit_ms: float | None = 48.0
    restarts: int = 3


@dataclass
class SamplingOptions:
    """How the model chooses; None takes the model's own setting.

    Attributes:
        temperature: Of audio codes; 0 is greedy.
        text_temperature: Of text tokens; 0 is greedy.
        top_k: Candidates per audio code; 0 means all.
        text_top_k: Candidates per text token; 0 means all.
        guidance: Weight of classifier-free guidance; 1 is off.
        repetition_penalty: On recent text tokens; 1 is off.
    """

    temperature: float | None = None
    text_temperature: float | None = None
    top_k: int | None = None
    text_top_k: int | None = None
    guidance: float | None = None
    repetition_penalty: float = 1.0


@dataclass
class RootSchema:
    """Types of the keys that belong to no group, and of the groups whose keys are fixed.

    Attributes:
        output_dir: Folder of results, or an address such as ``s3://bucket/folder``.
        resume: Skip sessions whose results are complete.
        seed: Of all randomness; None draws one.
        backend: What computes the models.
        device: Where; ``auto`` takes a GPU if there is one.
        dtype: Of the language model's weights.
        kv_dtype: Of stored keys and values; None takes ``dtype``.
        numerics: ``fast`` or ``reference``.
        cuda_graphs: On CUDA, replay each stage of a tick as one graph.
        cuda_kernels: ``torch`` or ``triton``; see ``BackendOptions``.
        context: Frames that the language model sees; None takes the model's own.
        codec_backend: What computes the codec; None takes ``backend``.
        quant: How the language model's weights are stored.
        quant_group: Weights that share a scale, where the form has groups.
        quant_kernel: How quantized layers multiply.
        backend_options: Options of backends that have some, by backend.
        lead_s: Seconds of silence before the input; None takes what the model wants.
        tail_s: Seconds of silence after the input.
        max_tail_s: Seconds after the input at most, for models that say when they are done.
        end_on_silence_s: Recordings: go on after the input until the model has written nothing for
            so many seconds; None ends with the input.
        drop_until_pad_s: Leave out what the model says at first, until it has written nothing for
            so many seconds; None leaves nothing out.
        first_frame: ``duplicate``, ``reset`` or ``none``; None duplicates for files and resets
            live.
        conditions: Value per condition of the model.
        model: Which model; typed later, since a value that must be given (``???``) would take the
            default of its type here.
        engine: How sessions share it.
        sampling: How it chooses.
        graph: Nodes and links.
        source: The source's options, with its name under ``node``.
        sink: Options of each sink by label, with its name under ``node``.
        server: Of ``source=websocket``, which types it; None for other sources.
        edge: Likewise.
        experiment: Nothing; a place for complete choices.
    """

    output_dir: str = "moshi-out"
    resume: bool = True
    seed: int | None = None
    backend: str = "torch"
    device: str = "auto"
    dtype: str = "auto"
    kv_dtype: str | None = None
    numerics: str = "fast"
    cuda_graphs: bool = False
    cuda_kernels: str = "torch"
    context: int | None = None
    codec_backend: str | None = None
    quant: str = "none"
    quant_group: int = 32
    quant_kernel: str = "auto"
    backend_options: dict[str, Any] = field(default_factory=dict)
    lead_s: float | None = None
    tail_s: float = 0.0
    max_tail_s: float = 20.0
    end_on_silence_s: float | None = None
    drop_until_pad_s: float | None = None
    first_frame: str | None = None
    conditions: dict[str, str] = field(default_factory=dict)
    model: Any = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    graph: Any = None
    source: Any = None
    sink: Any = None
    server: Any = None
    edge: Any = None
    experiment: Any = None


@dataclass(frozen=True, slots=True)
class ChosenNode:
    """A source or sink of this run.

    Attributes:
        label: Where it stands in the config: ``source``, or the sink's key.
        entry: The registered node.
        options: Instance of its dataclass of options; None for a node without.
    """

    label: str
    entry: NodeEntry
    options: Any

    def make(self) -> Any:
        """Construct a node; a sink is made once per session."""
        return self.entry.make(self.options)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A whole run, typed and checked.

    Attributes:
        model: Which model.
        graph: Name, nodes, inputs, links and outputs, as plain dicts and lists; options of a node
            as an instance of its dataclass.
        source: Where sessions come from.
        sinks: Where their outputs go; may be empty.
        engine: How sessions share the models.
        sampling: How the model chooses.
        backend: What computes the models, and where.
        seed: Of all randomness; None: draw one and state it.
        output_dir: Folder of results, absolute; where they are written first if ``output_url`` is
            set.
        resume: Skip sessions whose results are complete.
        lead_s: Seconds of silence before the input; None takes what the model wants.
        tail_s: Seconds of silence after it.
        max_tail_s: Seconds after it at most, for models that say when they are done.
        first_frame: ``duplicate``, ``reset`` or ``none``; None leaves it to the source.
        conditions: Value per condition of the model.
        composed: The configuration as YAML, to be written beside the results.
        remote: Where the model is, if it does not run here; ``model`` is then only its name.
        end_on_silence_s: Go on after the input until the model has written nothing for so long.
        drop_until_pad_s: Leave out what it says at first, until it has written nothing for so long.
        output_url: Address that results belong to; None for those of a folder.
    """

    model: ModelOptions
    graph: Mapping[str, Any]
    source: ChosenNode
    sinks: tuple[ChosenNode, ...]
    engine: EngineOptions
    sampling: SamplingOptions
    backend: BackendOptions
    seed: int | None
    output_dir: Path
    resume: bool
    lead_s: float | None
    tail_s: float
    max_tail_s: float
    first_frame: str | None
    conditions: Mapping[str, str]
    composed: str
    remote: RemoteOptions | None = None
    end_on_silence_s: float | None = None
    drop_until_pad_s: float | None = None
    output_url: str | None = None
