"""What ``conf/nano.yaml`` may say, with types; unknown keys are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

STAGES = ("codec", "codes", "lm", "export", "data")


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
    save_every: int = 200


@dataclass
class DataOptions:
    """Conversations for the language model."""

    num_conversations: int = 3000
    seconds: float = 14.0
    shard: int = 100


@dataclass
class LMOptions:
    """Shape and training of the language model."""

    dim: int = 192
    num_layers: int = 4
    num_heads: int = 6
    context: int = 250
    depth_dim: int = 96
    depth_layers: int = 2
    depth_heads: int = 3
    depth_feedforward: int = 264
    num_steps: int = 3000
    batch: int = 16
    learning_rate: float = 1.5e-3
    heard_weight: float = 1.0
    silent_share: float = 0.08
    text_padding_weight: float = 0.15
    save_every: int = 200


@dataclass
class Options:
    """One call of the command."""

    stage: str = "codec"
    out: str = "nano-out"
    seed: int = 0
    threads: int = 2
    codec: CodecOptions = field(default_factory=CodecOptions)
    data: DataOptions = field(default_factory=DataOptions)
    lm: LMOptions = field(default_factory=LMOptions)


def read_options(cfg: DictConfig) -> Options:
    """Check what Hydra composed against the types above."""
    from omegaconf import OmegaConf

    merged: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), cfg))
    if not isinstance(merged, Options):
        raise TypeError(f"options are a {type(merged).__name__}")
    return merged
