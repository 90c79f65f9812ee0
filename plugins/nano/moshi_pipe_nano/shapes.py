"""The options as configs of the released layout, and as specs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moshi_pipe.models.spec import LMSpec, MimiSpec

if TYPE_CHECKING:
    from moshi_pipe_nano.options import CodecOptions, LMOptions

TEXT_CARDINALITY = 128
_RATIOS = [4, 5, 6, 8]  # the first stride of the encoder is the longest: that is what costs


def mimi_config(options: CodecOptions) -> dict[str, Any]:
    """Mimi's config, as the reference writes it."""
    dim = options.dimension
    return {
        "sample_rate": 24_000,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": {
            "channels": 1,
            "dimension": dim,
            "causal": True,
            "n_filters": options.num_filters,
            "n_residual_layers": 1,
            "activation": "ELU",
            "compress": 2,
            "dilation_base": 2,
            "disable_norm_outer_blocks": 0,
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 3,
            "norm": "none",
            "pad_mode": "constant",
            "ratios": _RATIOS,
            "true_skip": True,
        },
        "quantizer": {
            "dimension": options.quantizer_dim,
            "n_q": options.num_codebooks,
            "bins": options.cardinality,
            "input_dimension": dim,
            "output_dimension": dim,
        },
        "transformer": {
            "d_model": dim,
            "num_heads": max(dim // 32, 1),
            "num_layers": options.num_layers,
            "causal": True,
            "layer_scale": 0.1,
            "context": options.context,
            "conv_layout": True,
            "max_period": 10_000,
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": 4 * dim,
            "input_dimension": dim,
            "output_dimensions": [dim],
        },
    }


def mimi_spec(options: CodecOptions) -> MimiSpec:
    """The codec's numbers."""
    return MimiSpec.from_config(mimi_config(options))


def lm_config(options: LMOptions, codec: CodecOptions) -> dict[str, Any]:
    """The model's keys of ``config.json``, without file names."""
    stream = [0, *[1] * (codec.num_codebooks - 1)]
    return {
        "dim": options.dim,
        "num_heads": options.num_heads,
        "num_layers": options.num_layers,
        "hidden_scale": 4.125,
        "context": options.context,
        "max_period": 10_000,
        "causal": True,
        "layer_scale": None,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "text_card": TEXT_CARDINALITY,
        "existing_text_padding_id": 3,
        "card": codec.cardinality,
        "n_q": 2 * codec.num_codebooks,
        "dep_q": codec.num_codebooks,
        "delays": [0, *stream, *stream],
        "depformer_dim": options.depth_dim,
        "depformer_dim_feedforward": options.depth_feedforward,
        "depformer_num_heads": options.depth_heads,
        "depformer_num_layers": options.depth_layers,
        "depformer_layer_scale": None,
        "depformer_gating": "silu",
        "depformer_multi_linear": True,
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
    }


def lm_spec(options: LMOptions, codec: CodecOptions) -> LMSpec:
    """The language model's numbers."""
    return LMSpec.from_config(lm_config(options, codec))
