"""What a codec and a language model are, as frozen numbers: no weights, no torch.

A spec is read once from a released ``config.json`` (or Mimi's config) and then never changes.

Source of every rule below: kyutai-labs/moshi@e6a55d2, moshi/moshi/models/{loaders,lm,lm_utils}.py
and moshi/moshi/modules/{transformer,gating,seanet}.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

from moshi_pipe.errors import CheckpointError, closest

ZERO_CODE: Final = -1
"""A stream that is muted: its embedding is exactly zero."""

UNGENERATED: Final = -2
"""Fill value of the delay line: nothing was generated here."""


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """What a codec promises about time, independent of the backend that runs it.

    Attributes:
        sample_rate: PCM rate in Hz.
        frame_size: PCM samples per channel in one frame.
        num_codebooks: Codes per frame (``K``).
        cardinality: Entries per codebook; legal codes are ``0 .. cardinality - 1``.
        channels: Audio channels, 1 for every released codec.
    """

    sample_rate: int
    frame_size: int
    num_codebooks: int
    cardinality: int
    channels: int = 1

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second, exact: Mimi's 12.5 Hz is ``Fraction(25, 2)``."""
        return Fraction(self.sample_rate, self.frame_size)

    @property
    def frame_s(self) -> float:
        """Duration of one frame in seconds: 0.08 for Mimi."""
        return self.frame_size / self.sample_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSpec:
    """One stack of blocks.

    Attributes:
        dim: Model width ``D``.
        num_heads: Attention heads ``H``; the width of one head is ``dim / num_heads``.
        num_layers: Blocks.
        feedforward: Declared hidden size, one per weight set (see :func:`gated_hidden`).
        norm: ``layer_norm``, ``layer_norm_f32``, ``rms_norm`` or ``rms_norm_f32``.
        gating: ``silu`` for the gated form, ``none`` for plain GELU.
        positional_embedding: ``rope`` (interleaved pairs), ``rope_concat`` or ``none``.
        max_period: RoPE's longest period, in positions.
        context: Positions that attention sees, the current one included; None without a limit.
        kv_repeat: Query heads that share one key and value head.
        layer_scale: Initial LayerScale, or None without one.
        weight_sets: Weight set of each step of a depth transformer; empty with a single set.
    """

    dim: int
    num_heads: int
    num_layers: int
    feedforward: tuple[int, ...]
    norm: str = "layer_norm"
    gating: str = "none"
    positional_embedding: str = "rope"
    max_period: float = 10_000.0
    context: int | None = None
    kv_repeat: int = 1
    layer_scale: float | None = None
    weight_sets: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """Width of one head, ``E``."""
        return self.dim // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_heads // self.kv_repeat

    @property
    def num_weight_sets(self) -> int:
        """Sets of attention and gating weights, 1 unless the stack has weights per step."""
        return max(self.weight_sets) + 1 if self.weight_sets else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MimiSpec:
    """Every hyperparameter of a Mimi codec.

    Attributes:
        sample_rate: PCM rate in Hz.
        frame_size: PCM samples in one frame.
        channels: Audio channels.
        dimension: Width of the latent between SEANet and the transformers.
        num_filters: SEANet's narrowest width.
        ratios: Up-sampling factors in decoder order; the encoder uses them reversed.
        kernel_size: First convolution's kernel.
        residual_kernel_size: Kernel inside a residual block.
        last_kernel_size: Last convolution's kernel.
        num_residual_layers: Residual blocks per ratio.
        dilation_base: Dilation of residual block ``i`` is ``dilation_base ** i``.
        compress: Bottleneck factor inside a residual block.
        transformer: Shape of both the encoder's and the decoder's transformer.
        quantizer_dim: Width of a codebook entry.
        num_codebooks: Codebooks in the checkpoint, the semantic one included.
        num_active: Codebooks in use, ``1 .. num_codebooks``.
        cardinality: Entries per codebook.
    """

    sample_rate: int = 24_000
    frame_size: int = 1_920
    channels: int = 1
    dimension: int = 512
    num_filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    num_residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    transformer: TransformerSpec = field(
        default_factory=lambda: TransformerSpec(
            dim=512,
            num_heads=8,
            num_layers=8,
            feedforward=(2048,),
            context=250,  # 10 s: two positions per frame
            layer_scale=0.01,
        )
    )
    quantizer_dim: int = 256
    num_codebooks: int = 32
    num_active: int = 8
    cardinality: int = 2_048

    @property
    def hop_size(self) -> int:
        """PCM samples per latent position before the down-sampling: 960 for Mimi."""
        size = 1
        for ratio in self.ratios:
            size *= ratio
        return size

    @property
    def stride(self) -> int:
        """Latent positions per frame: 2 for Mimi."""
        return self.frame_size // self.hop_size

    @property
    def codec(self) -> CodecSpec:
        """What the graph needs to know of this codec."""
        return CodecSpec(
            sample_rate=self.sample_rate,
            frame_size=self.frame_size,
            num_codebooks=self.num_active,
            cardinality=self.cardinality,
            channels=self.channels,
        )

    def with_codebooks(self, num_active: int) -> MimiSpec:
        """Return this spec with another number of codebooks in use.

        Raises:
            CheckpointError: ``num_active`` is not in ``1 .. num_codebooks``.
        """
        if not 1 <= num_active <= self.num_codebooks:
            raise CheckpointError(
                "cannot use this many codebooks",
                got=f"{num_active}",
                wanted=f"1 to {self.num_codebooks}, what the codec's checkpoint holds",
            )
        return replace(self, num_active=num_active)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MimiSpec:
        """Read Mimi's config as the reference writes it (``mimi_config_name``).

        Raises:
            CheckpointError: A key is missing, unknown or has a value that Mimi has no form for.
        """
        _refuse_unknown(config, _MIMI_KEYS, "the Mimi config")
        seanet, quantizer = _section(config, "seanet"), _section(config, "quantizer")
        transformer = _section(config, "transformer")
        _refuse_unknown(seanet, _SEANET_KEYS, "the Mimi config's 'seanet'")
        _refuse_unknown(quantizer, _QUANTIZER_KEYS, "the Mimi config's 'quantizer'")
        _refuse_unknown(transformer, _MIMI_TRANSFORMER_KEYS, "the Mimi config's 'transformer'")
        _require_value(seanet, "activation", "ELU")
        _require_value(seanet, "norm", "none")
        _require_value(seanet, "pad_mode", "constant")
        _require_value(seanet, "causal", True)
        _require_value(seanet, "true_skip", True)
        _require_value(seanet, "lstm", 0)
        _require_value(transformer, "causal", True)
        _require_value(transformer, "gating", "none")
        _require_value(transformer, "positional_embedding", "rope")
        _require_value(transformer, "norm", "layer_norm")
        sample_rate = int(_key(config, "sample_rate"))
        return cls(
            sample_rate=sample_rate,
            frame_size=int(Fraction(sample_rate) / Fraction(str(_key(config, "frame_rate")))),
            channels=int(_key(config, "channels")),
            dimension=int(_key(seanet, "dimension")),
            num_filters=int(_key(seanet, "n_filters")),
            ratios=tuple(int(ratio) for ratio in _key(seanet, "ratios")),
            kernel_size=int(seanet.get("kernel_size", 7)),
            residual_kernel_size=int(seanet.get("residual_kernel_size", 3)),
            last_kernel_size=int(seanet.get("last_kernel_size", 7)),
            num_residual_layers=int(seanet.get("n_residual_layers", 3)),
            dilation_base=int(seanet.get("dilation_base", 2)),
            compress=int(seanet.get("compress", 2)),
            transformer=TransformerSpec(
                dim=int(_key(transformer, "d_model")),
                num_heads=int(_key(transformer, "num_heads")),
                num_layers=int(_key(transformer, "num_layers")),
                feedforward=(int(transformer.get("dim_feedforward", 2048)),),
                context=int(_key(transformer, "context")),
                max_period=float(transformer.get("max_period", 10_000)),
                layer_scale=transformer.get("layer_scale"),
            ),
            quantizer_dim=int(_key(quantizer, "dimension")),
            num_codebooks=int(_key(quantizer, "n_q")),
            num_active=int(_key(quantizer, "n_q")),
            cardinality=int(_key(quantizer, "bins")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionerSpec:
    """One named condition of a model, such as Hibiki's ``description``.

    Attributes:
        name: Key in the config and in the checkpoint.
        num_bins: Entries of the table, one more is stored.
        dim: Width of an entry before its projection to the model's width.
        values: Legal values in table order.
    """

    name: str
    num_bins: int
    dim: int
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LMSpec:
    """Every number of a Moshi language model.

    Streams are numbered as in the checkpoint: 0 is text, ``1 .. num_generated`` the model's own
    codebooks, the rest the user's.

    Attributes:
        delays: Frames by which each stream is delayed, ``[1 + num_codebooks]``.
        num_codebooks: Audio streams, own and user's (``n_q``).
        num_generated: Audio streams the model predicts (``dep_q``); 0 for speech to text.
        cardinality: Codes per codebook (``card``); ``cardinality`` itself is the initial code.
        text_cardinality: Text tokens (``text_card``); that number itself is the initial token.
        text_head_size: Rows of the text head (``text_card_out``).
        temporal: The large transformer, one position per frame.
        depth: The small transformer, one position per codebook; None when nothing is generated.
        multi_linear: One input projection per weight set of the depth transformer.
        low_rank: Width of factorised embeddings of the depth transformer, or None.
        norm_embeddings: LayerNorm behind every embedding table.
        bias_heads: Bias on the text and audio heads.
        depth_norm: Norm before each audio head, or None.
        text_padding_id: Token of a frame without a new text piece.
        text_end_padding_id: Token before a new word.
        num_extra_heads: Further classifiers on the temporal output (speech to text: turn end).
        extra_head_size: Classes of each of them.
        conditioners: Conditions summed onto the embedding at every step.
        quantized: The released weights are int8 with ``weight_scb`` scales.
        num_stored: Codebooks that the file's depth transformer predicts, where those are more than
            the model says; 0 where they are not. It also guesses what it hears (PersonaPlex).
    """

    delays: tuple[int, ...]
    num_codebooks: int
    num_generated: int
    cardinality: int
    text_cardinality: int
    temporal: TransformerSpec
    depth: TransformerSpec | None
    text_head_size: int = 0
    multi_linear: bool = False
    low_rank: int | None = None
    norm_embeddings: bool = False
    bias_heads: bool = False
    depth_norm: str | None = None
    text_padding_id: int = 3
    text_end_padding_id: int = 0
    num_extra_heads: int = 0
    extra_head_size: int = 6
    conditioners: tuple[ConditionerSpec, ...] = ()
    quantized: bool = False
    num_stored: int = 0

    @property
    def num_streams(self) -> int:
        """Streams of one column: text and all codebooks (``S``)."""
        return self.num_codebooks + 1

    @property
    def num_user(self) -> int:
        """Codebooks that are heard, not generated."""
        return self.num_codebooks - self.num_generated

    @property
    def max_delay(self) -> int:
        """Largest delay over all streams, in frames: how far an output lags its text."""
        return max(self.delays)

    @property
    def initial_codes(self) -> tuple[int, ...]:
        """The column before time begins, ``[S]``."""
        return (self.text_cardinality, *[self.cardinality] * self.num_codebooks)

    def as_stored(self) -> LMSpec:
        """The model with every codebook that its file predicts; itself where none is left out."""
        depth = self.depth
        if not self.num_stored or depth is None:
            return self
        more = self.num_stored - self.num_generated
        if depth.weight_sets:
            # What is left out has weights of its own: the sets go on where those in use end.
            sets = (*depth.weight_sets, *(depth.num_weight_sets + i for i in range(more)))
            feedforward = (*depth.feedforward, *depth.feedforward[-1:] * more)
            depth = replace(depth, weight_sets=sets, feedforward=feedforward)
        return replace(self, num_generated=self.num_stored, num_stored=0, depth=depth)

    def codebook_weight_set(self, codebook: int) -> int:
        """Weight set that the depth transformer uses for ``codebook``."""
        if self.depth is None or not self.depth.weight_sets:
            return 0
        return self.depth.weight_sets[codebook]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LMSpec:
        """Read the language model's keys of a released ``config.json``.

        The keys that name files or the kind of model must have been taken out before.

        Raises:
            CheckpointError: A key is missing, unknown or asks for a form that is not supported.
        """
        values = {k: v for k, v in config.items() if k not in _LM_IGNORED}
        if "demux_second_stream" in values:
            values["demux_second_text_stream"] = values.pop("demux_second_stream")
        _refuse_unknown(
            values, _LM_KEYS | _TRANSFORMER_KEYS | _DEPTH_KEYS, "config.json of the language model"
        )
        _refuse_tts(values)
        _require_value(values, "causal", True)
        num_stored = int(values.get("dep_q", 8))
        num_generated = int(values.pop("dep_q_used", num_stored))
        if num_generated > num_stored or (num_generated < num_stored and not num_generated):
            raise CheckpointError(
                "config.json: 'dep_q_used' is not a part of the codebooks",
                got=str(num_generated),
                wanted=f"1 to dep_q={num_stored}",
            )
        num_codebooks = int(values.get("n_q", 8))
        delays = tuple(int(delay) for delay in values.get("delays", [0]))
        if len(delays) != num_codebooks + 1:
            raise CheckpointError(
                "config.json: 'delays' needs one entry per stream",
                got=f"{len(delays)} entries",
                wanted=f"{num_codebooks + 1}: the text stream and n_q={num_codebooks} codebooks",
            )
        text_cardinality = int(values.get("text_card", 32_000))
        dim = int(values.get("dim", 128))
        return cls(
            delays=delays,
            num_codebooks=num_codebooks,
            num_generated=num_generated,
            cardinality=int(values.get("card", 1024)),
            text_cardinality=text_cardinality,
            text_head_size=int(values.get("text_card_out") or text_cardinality),
            temporal=_temporal_spec(values, dim),
            depth=_depth_spec(values, num_generated) if num_generated else None,
            multi_linear=bool(values.get("depformer_multi_linear", False)),
            low_rank=values.get("depformer_low_rank_embeddings"),
            norm_embeddings=bool(values.get("norm_emb", False)),
            bias_heads=bool(values.get("bias_proj", False)),
            depth_norm=values.get("depformer_norm"),
            text_padding_id=int(values.get("existing_text_padding_id", 3)),
            text_end_padding_id=int(values.get("existing_text_end_padding_id", 0)),
            num_extra_heads=int(values.get("extra_heads_num_heads", 0)),
            extra_head_size=int(values.get("extra_heads_dim", 6)),
            conditioners=_conditioners(values),
            quantized=bool(values.get("quantize", False)),
            num_stored=num_stored if num_stored > num_generated else 0,
        )


def gated_hidden(dim: int, feedforward: int) -> int:
    """Hidden size of a gated feed-forward: 11264 for ``(4096, 16896)``.

    Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/gating.py.
    """
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


def _temporal_spec(values: Mapping[str, Any], dim: int) -> TransformerSpec:
    return TransformerSpec(
        dim=dim,
        num_heads=int(values.get("num_heads", 8)),
        num_layers=int(_key(values, "num_layers")),
        feedforward=(int(values.get("hidden_scale", 4) * dim),),
        norm=_choice(values, "norm", "layer_norm", _NORMS),
        gating=_choice(values, "gating", "none", _GATINGS),
        positional_embedding=_choice(values, "positional_embedding", "sin", _POSITIONS),
        max_period=float(values.get("max_period", 10_000)),
        context=values.get("context"),
        kv_repeat=int(values.get("kv_repeat", 1)),
        layer_scale=values.get("layer_scale"),
    )


def _depth_spec(values: Mapping[str, Any], num_generated: int) -> TransformerSpec:
    """Overlay ``depformer_X`` on ``X``, then force what the reference forces."""

    def own(key: str, default: Any = None) -> Any:
        return values.get(f"depformer_{key}", values.get(key, default))

    if "depformer_num_heads" not in values:
        _key(values, "depformer_num_heads")
    _choice(values, "depformer_pos_emb", "sin", ("none",))
    dim = int(values.get("depformer_dim", 256))
    sets: tuple[int, ...] = ()
    if values.get("depformer_weights_per_step", False):
        schedule = values.get("depformer_weights_per_step_schedule") or range(num_generated)
        sets = tuple(int(i) for i in schedule)
        if len(sets) != num_generated:
            raise CheckpointError(
                "config.json: 'depformer_weights_per_step_schedule' needs one entry per codebook",
                got=f"{len(sets)} entries",
                wanted=f"dep_q={num_generated}",
            )
    declared = values.get("depformer_dim_feedforward") or int(values.get("hidden_scale", 4) * dim)
    num_sets = max(sets) + 1 if sets else 1
    feedforward = (
        tuple(int(size) for size in declared)
        if isinstance(declared, Sequence)
        else (int(declared),) * num_sets
    )
    if len(feedforward) != num_sets:
        raise CheckpointError(
            "config.json: 'depformer_dim_feedforward' needs one entry per weight set",
            got=f"{len(feedforward)} entries",
            wanted=f"{num_sets}",
        )
    return TransformerSpec(
        dim=dim,
        num_heads=int(values["depformer_num_heads"]),
        num_layers=int(own("num_layers")),
        feedforward=feedforward,
        norm=_choice(values, "norm", "layer_norm", _NORMS),
        gating=str(own("gating", "none")),
        positional_embedding="none",
        max_period=float(own("max_period", 10_000)),
        context=None,
        kv_repeat=int(own("kv_repeat", 1)),
        layer_scale=own("layer_scale"),
        weight_sets=sets,
    )


def _conditioners(values: Mapping[str, Any]) -> tuple[ConditionerSpec, ...]:
    declared = values.get("conditioners") or {}
    fuser = values.get("fuser") or {}
    summed = set(fuser.get("sum", []))
    specs = []
    for name, entry in declared.items():
        if entry.get("type") != "lut" or name not in summed:
            raise CheckpointError(
                f"config.json: condition '{name}' is of a kind that is not supported",
                got=f"type '{entry.get('type')}', fused by "
                + (
                    ", ".join(k for k, v in fuser.items() if isinstance(v, list) and name in v)
                    or "nothing"
                ),
                wanted="type 'lut', fused by 'sum'",
            )
        table = entry["lut"]
        specs.append(
            ConditionerSpec(
                name=name,
                num_bins=int(table["n_bins"]),
                dim=int(table["dim"]),
                values=tuple(table.get("possible_values") or ()),
            )
        )
    return tuple(specs)


def _refuse_tts(values: Mapping[str, Any]) -> None:
    for key in ("demux_second_text_stream", "cross_attention"):
        if values.get(key):
            raise CheckpointError(
                "this is a text-to-speech model, which moshi-pipe does not run",
                got=f"config.json sets '{key}'",
                wanted="a dialogue, translation or speech-to-text model",
            )


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = _key(config, key)
    if not isinstance(value, Mapping):
        raise CheckpointError(f"'{key}' must be a table of keys", got=repr(value))
    return value


def _key(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise CheckpointError(f"the model's config lacks the key '{key}'", fix="add it to the file")
    return config[key]


def _choice(values: Mapping[str, Any], key: str, default: str, known: Sequence[str]) -> str:
    value = str(values.get(key, default))
    if value not in known:
        raise CheckpointError(
            f"config.json: '{key}' has a value that is not supported",
            got=value if key in values else f"{value} (the default of a missing key)",
            wanted=closest(value, known),
        )
    return value


def _require_value(values: Mapping[str, Any], key: str, wanted: Any) -> None:
    if values.get(key, wanted) != wanted:
        raise CheckpointError(
            f"the model's config has a '{key}' that is not supported",
            got=repr(values[key]),
            wanted=repr(wanted),
        )


def _refuse_unknown(values: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(
            f"{where} has unknown keys",
            got=", ".join(unknown),
            wanted="; ".join(f"{key}: {closest(key, known)}" for key in unknown[:1]),
        )


_NORMS: Final = ("layer_norm", "layer_norm_f32", "rms_norm", "rms_norm_f32")
_GATINGS: Final = ("none", "silu")
_POSITIONS: Final = ("rope", "rope_concat", "none")
_MIMI_KEYS: Final = frozenset(
    {"sample_rate", "channels", "frame_rate", "seanet", "quantizer", "transformer"}
)
_SEANET_KEYS: Final = frozenset(
    [
        "channels",
        "dimension",
        "n_filters",
        "ratios",
        "kernel_size",
        "residual_kernel_size",
        "last_kernel_size",
        "n_residual_layers",
        "dilation_base",
        "compress",
        "activation",
        "activation_params",
        "norm",
        "norm_params",
        "causal",
        "pad_mode",
        "true_skip",
        "disable_norm_outer_blocks",
        "lstm",
        "final_activation",
        "final_activation_params",
        "trim_right_ratio",
    ]
)
_QUANTIZER_KEYS: Final = frozenset(
    ["dimension", "n_q", "bins", "input_dimension", "output_dimension", "n_q_semantic"]
)
_MIMI_TRANSFORMER_KEYS: Final = frozenset(
    [
        "d_model",
        "num_heads",
        "num_layers",
        "causal",
        "layer_scale",
        "context",
        "conv_layout",
        "max_period",
        "gating",
        "norm",
        "positional_embedding",
        "dim_feedforward",
        "input_dimension",
        "output_dimensions",
    ]
)
_TRANSFORMER_KEYS: Final = frozenset(
    [
        "num_layers",
        "positional_embedding",
        "max_period",
        "positional_scale",
        "layer_scale",
        "gating",
        "kv_repeat",
        "cross_attention",
        "causal",
        "context",
    ]
)
_DEPTH_KEYS: Final = frozenset(
    f"depformer_{key}"
    for key in [
        "dim",
        "dim_feedforward",
        "num_heads",
        "num_layers",
        "layer_scale",
        "multi_linear",
        "context",
        "max_period",
        "gating",
        "pos_emb",
        "weights_per_step",
        "weights_per_step_schedule",
        "low_rank_embeddings",
        "norm",
        "kv_repeat",
        "positional_scale",
    ]
)
_LM_KEYS: Final = frozenset(
    [
        "delays",
        "n_q",
        "dep_q",
        "dep_q_used",
        "card",
        "text_card",
        "text_card_out",
        "demux_second_text_stream",
        "dim",
        "num_heads",
        "hidden_scale",
        "norm",
        "norm_emb",
        "bias_proj",
        "existing_text_padding_id",
        "existing_text_end_padding_id",
        "extra_heads_num_heads",
        "extra_heads_dim",
        "quantize",
        "conditioners",
        "fuser",
    ]
)
_LM_IGNORED: Final = frozenset(
    {"depformer_causal", "gradient_checkpointing", "lora", "lora_rank", "lora_scaling"}
)

# The released 7B dialogue model, used where a repository has no config.json.
# Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/loaders.py:85-118.
MOSHI_7B_CONFIG: Final[Mapping[str, Any]] = {
    "dim": 4096,
    "text_card": 32000,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 3000,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}
