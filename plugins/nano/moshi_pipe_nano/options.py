"""What ``conf/nano.yaml`` may say, with types; unknown keys are refused."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from moshi_pipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omegaconf import DictConfig

STAGES = (
    "start", "codec", "decoder", "codes", "clips", "lm", "evaluate", "export", "data", "plots",
    "all",
)  # fmt: skip


@dataclass
class CodecOptions:
    """Shape and training of the codec; the comments in ``conf/nano.yaml`` give the units."""

    num_filters: int = 12
    dimension: int = 128
    num_layers: int = 2
    context: int = 32
    quantizer_dim: int = 64
    num_codebooks: int = 6
    cardinality: int = 512
    num_salads: int = 1200
    num_user_sentences: int = 6000
    assistant_batch: int = 6
    assistant_frames: int = 12
    user_batch: int = 8
    user_frames: int = 18
    num_steps: int = 2400
    num_decoder_steps: int = 2400
    learning_rate: float = 1e-3
    phone_weight: float = 1.0
    commitment_weight: float = 0.25
    waveform_weight: float = 1.0
    seconds: float = 0.0
    decoder_seconds: float = 0.0
    save_every_s: float = 30.0


@dataclass
class DataOptions:
    """Conversations for the language model."""

    num_conversations: int = 8000
    num_frames: int = 176
    num_validation: int = 128
    batch: int = 16
    seconds: float = 0.0


@dataclass
class LMOptions:
    """Shape and training of the language model."""

    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    context: int = 100
    depth_dim: int = 96
    depth_layers: int = 2
    depth_heads: int = 3
    depth_feedforward: int = 264
    num_steps: int = 6000
    batch: int = 8
    learning_rate: float = 2e-3
    muon_rate: float = 0.02
    decay_share: float = 0.3
    heard_weight: float = 0.7
    counted_weight: float = 1.0
    spoken_share: float = 0.6
    silent_share: float = 0.03
    text_padding_weight: float = 0.15
    result_weight: float = 3.0
    read_weight: float = 0.0
    decoy_share: float = 0.25
    sum_share: float = 0.375
    own_noise: float = 0.1
    user_noise: float = 0.05
    hidden_share: float = 0.3
    ema_decay: float = 0.99
    seconds: float = 0.0
    save_every_s: float = 30.0


@dataclass
class Options:
    """One call of the command."""

    stage: str = "codec"
    out: str = "nano-out"
    seed: int = 0
    threads: int = 2
    workers: int = 2
    device: str = "auto"
    deadline_s: float = 0.0
    codec_from: str = ""
    released: str = ""
    codec: CodecOptions = field(default_factory=CodecOptions)
    data: DataOptions = field(default_factory=DataOptions)
    lm: LMOptions = field(default_factory=LMOptions)


def parse_options(arguments: Sequence[str]) -> Options:
    """Read ``key=value`` and ``group.key=value`` without Hydra, over the defaults above.

    Raises:
        ConfigError: There is no such key, or its value is of another type.
    """
    options = Options()
    for argument in arguments:
        name, equals, text = argument.partition("=")
        group, _, key = name.rpartition(".")
        target: Any = getattr(options, group, None) if group else options
        known = {f.name for f in fields(target)} if is_dataclass(target) else set()
        old = getattr(target, key) if key in known else None
        if not equals or old is None or is_dataclass(old):
            raise ConfigError("unknown option", got=argument, wanted="key=value of conf/nano.yaml")
        try:
            setattr(target, key, type(old)(text))
        except ValueError as error:
            raise ConfigError(
                "an option has another type", got=argument, wanted=type(old).__name__
            ) from error
    return options


def read_options(cfg: DictConfig) -> Options:
    """Check what Hydra composed against the types above."""
    from omegaconf import OmegaConf

    merged: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), cfg))
    if not isinstance(merged, Options):
        raise TypeError(f"options are a {type(merged).__name__}")
    return merged
