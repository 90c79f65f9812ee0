"""Random weights that keep a model alive: codes that vary, logits with entropy, audible sound.

Every tensor is drawn from its own stream, seeded by the checkpoint's seed and the crc32 of the
tensor's name, so bytes depend on nothing else: not on order, machine, threads or NumPy's version.
Numbers are uniform over 65 536 levels, looked up in a table: no rounding happens on the way.

The scales keep every activation near 1. Where that alone would not do:

- Mimi's down-sampling takes the difference of two positions, so that what is constant in a latent
  (a network of random weights has much of it) does not decide the codes.
- Its transformers' branches outweigh the convolutions' output, so that the level of the recording
  decides little: they start with a norm.
- Codebook ``q`` is drawn to the scale of what the codebooks before it leave of a Gaussian latent.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import log2, prod, sqrt
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.models.layout import TensorSpec
    from moshi_pipe.models.spec import LMSpec, MimiSpec

_LEVELS: Final = 65_536
_CHUNK: Final = 1 << 22  # elements written at once, 16 MB in float32

# Measured on speech with the tiny, small and released shapes: 8 codebooks take 60 to 98 % distinct
# values over 7 to 14 s, and what they decode to has an rms of 0.1 and peaks near 0.6.
_ENCODER_GAIN: Final = 3.0  # speech at rms 0.1 becomes latents of about 0.3
_ENCODER_BRANCH: Final = 1.0  # of the transformers, relative to the latent
_DECODER_BRANCH: Final = 0.3  # what is decoded follows the codes, not a constant
_DECODER_LEVEL: Final = 0.25  # small, so that ELU is nearly linear and adds little offset
_OUTPUT_GAIN: Final = 0.4
_CODEBOOK_GAIN: Final = 0.8  # below the optimum: too small still varies, too large dies
_CLUSTER_USAGE: Final = 2.0
_LOGIT_SCALE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Fill:
    """How one tensor is made.

    Attributes:
        scale: Standard deviation of uniform numbers, or the constant itself.
        constant: All elements are ``scale``.
        difference: The second half of the last axis is the first, negated.
    """

    scale: float
    constant: bool = False
    difference: bool = False


def mimi_fill(name: str, shape: tuple[int, ...], spec: MimiSpec) -> Fill:
    """How to draw one tensor of a codec."""
    last = name.rpartition(".")[2]
    if last == "bias":
        return Fill(0.0, constant=True)
    if "norm" in name or last == "_initialized":
        return Fill(1.0, constant=True)
    if last == "scale":
        weight = _ENCODER_BRANCH if name.startswith("encoder_") else _DECODER_BRANCH
        return Fill(weight / sqrt(spec.transformer.num_layers), constant=True)
    if last == "cluster_usage":
        return Fill(_CLUSTER_USAGE, constant=True)
    if last == "embedding_sum":
        layer = int(name.partition(".layers.")[2].partition(".")[0])
        return Fill(_CLUSTER_USAGE * _centroid_scale(layer, spec))
    if name.startswith("downsample."):
        return Fill(0.8 / sqrt(shape[1] * shape[2]), difference=True)
    if "convtr" in name:
        # Each output sample is a sum over two taps of every input channel of its group.
        if name.startswith("upsample."):
            return Fill(1 / (sqrt(2) * _sum_scale(spec)))
        return Fill(1 / sqrt(2 * shape[0]))
    return Fill(_mimi_gain(name, spec) / sqrt(prod(shape[1:])))


def lm_fill(name: str, shape: tuple[int, ...], spec: LMSpec) -> Fill:
    """How to draw one tensor of a language model."""
    if name.endswith(".bias"):
        return Fill(0.0, constant=True)
    if name.endswith(".alpha") or "norm" in name:
        return Fill(1.0, constant=True)
    if name.endswith(".scale"):
        return Fill(0.3, constant=True)
    if name.endswith("learnt_padding"):
        return Fill(0.1)
    if name.startswith("condition_provider."):
        return Fill(1.0 if name.endswith(".embed.weight") else 0.5 / sqrt(shape[-1]))
    if name.startswith(("emb.", "text_emb.")) and not name.endswith("low_rank.weight"):
        return Fill(1 / sqrt(spec.num_streams))  # the streams' sum is 1
    if name.startswith("depformer_") and "emb" in name and not name.endswith("low_rank.weight"):
        return Fill(1.0)
    return Fill(_lm_gain(name, spec) / sqrt(shape[-1]))


def draw(name: str, spec: TensorSpec, fill: Fill, seed: int) -> Iterator[npt.NDArray[Any]]:
    """Yield one tensor's elements in row-major order, in pieces of at most a few MB.

    Args:
        name: The tensor; its stream of numbers depends on it and on ``seed``.
        spec: Shape and type: ``F32``, ``F16`` or ``BF16`` (yielded as uint16).
        fill: What to draw.
        seed: Of the checkpoint.
    """
    import numpy as np

    table = _table(fill, spec.dtype)
    if fill.difference:
        yield _differences(name, spec, table, seed)
        return
    bits = _stream(name, seed)
    for start in range(0, spec.num_elements, _CHUNK):
        count = min(_CHUNK, spec.num_elements - start)
        if fill.constant:
            yield np.full(count, table[0])
            continue
        raw = bits.random_raw((count + 3) // 4).view(np.uint16)[:count]
        yield table.take(raw)


def _differences(
    name: str, spec: TensorSpec, table: npt.NDArray[Any], seed: int
) -> npt.NDArray[Any]:
    """Draw the first half of the last axis and negate it for the second."""
    import numpy as np

    half = (*spec.shape[:-1], spec.shape[-1] // 2)
    count = prod(half)
    raw = _stream(name, seed).random_raw((count + 3) // 4).view(np.uint16)[:count].reshape(half)
    # The table is symmetric: level i is minus level 65535 - i.
    both = np.concatenate([raw, np.uint16(_LEVELS - 1) - raw], axis=-1)
    return table.take(both.reshape(-1))


def _stream(name: str, seed: int) -> np.random.SFC64:
    import numpy as np

    return np.random.SFC64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


def _table(fill: Fill, dtype: str) -> npt.NDArray[Any]:
    """The values that 16 random bits stand for, in the file's type."""
    import numpy as np

    if fill.constant:
        values = np.array([fill.scale], dtype=np.float32)
    else:
        centred = (np.arange(_LEVELS, dtype=np.float64) - (_LEVELS - 1) / 2) / (_LEVELS / 2)
        values = (fill.scale * sqrt(3) * centred).astype(np.float32)
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # ties to even
    rounded: npt.NDArray[Any] = (nearest >> np.uint32(16)).astype(np.uint16)
    return rounded


def _centroid_scale(layer: int, spec: MimiSpec) -> float:
    """Scale of the entries of a group's codebook ``layer``.

    A random code of ``r`` bits per dimension leaves ``2 ** (-2 r)`` of a Gaussian's variance, and
    its entries have the rest. The latent's own scale is 1.
    """
    left = 2.0 ** (-2 * log2(spec.cardinality) / spec.quantizer_dim)
    return _CODEBOOK_GAIN * sqrt((1 - left) * left**layer)


def _sum_scale(spec: MimiSpec) -> float:
    """Scale of what 8 codes decode to: one semantic entry and 7 acoustic ones."""
    acoustic = range(min(7, spec.num_codebooks - 1))
    return sqrt(sum(_centroid_scale(layer, spec) ** 2 for layer in (0, *acoustic)))


def _mimi_gain(name: str, spec: MimiSpec) -> float:
    """Gain of a convolution or linear layer of the codec, relative to keeping the scale."""
    if name == "encoder.model.0.conv.conv.weight":
        return _ENCODER_GAIN
    if name == "decoder.model.0.conv.conv.weight":
        return _DECODER_LEVEL
    if name == f"decoder.model.{_last_decoder_index(spec)}.conv.conv.weight":
        return _OUTPUT_GAIN
    if ".block.3." in name:
        return 0.5  # the residual branch adds to an identity
    if ".in_proj" in name or ".linear" in name:
        return 1.5  # attention that looks at something; GELU halves its input
    return 1.0


def _last_decoder_index(spec: MimiSpec) -> int:
    return 2 + len(spec.ratios) * (2 + spec.num_residual_layers)


def _lm_gain(name: str, spec: LMSpec) -> float:
    """Gain of a linear layer of the language model, relative to keeping the scale."""
    stack = spec.temporal if name.startswith("transformer.") or spec.depth is None else spec.depth
    branch = 1 / sqrt(2 * stack.num_layers)
    if name.startswith("text_linear."):
        return _LOGIT_SCALE
    if name.startswith("linears."):
        return _LOGIT_SCALE / sqrt(3)  # input, embedding and branches add up without a norm
    if ".in_proj" in name:
        return 1.3
    if ".out_proj" in name:
        return 1.3 * branch
    if name.endswith(("linear_out.weight", "linear2.weight")):
        return 2 * branch  # the gate halves its input
    return 1.0
