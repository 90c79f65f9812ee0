"""Every tensor of a Mimi or a Moshi: names, shapes, types, and the size of the file they make.

Two sets of names exist. In memory each weight set of an attention has its own tensors
(``self_attn.in_projs.2.weight``); released files stack the sets along the rows of one tensor with
a fused name (``self_attn.in_proj_weight``). A :class:`Layout` holds both and the way between them.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/{transformer,seanet,resample}.py,
moshi/moshi/models/{lm,lm_utils}.py, moshi/moshi/quantization/core_vq.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Final

from moshi_pipe.models.spec import LMSpec, MimiSpec, TransformerSpec, gated_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DTYPE_BYTES: Final[Mapping[str, int]] = {
    # In the order in which safetensors sorts its entries, least first.
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes per element of each type that a safetensors header may name."""

SCALE_SUFFIX: Final = "_scb"
"""What the name of an int8 weight's row scales adds to the weight's."""

BLOCKS: Final[Mapping[str, tuple[int, int]]] = {"Q8_0": (32, 34)}
"""Elements and bytes of a block, of the types of GGUF that store blocks along a row."""

FLOAT_DTYPES: Final = ("F16", "BF16", "F32", "F64")

# Old name of a codebook's tensor -> its name today.
# Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/quantization/core_vq.py, _load_from_state_dict.
_OLD_CODEBOOK_NAMES: Final[Mapping[str, str]] = {
    "inited": "_initialized",
    "cluster_size": "cluster_usage",
    "embed_avg": "embedding_sum",
    "embed_sum": "embedding_sum",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and type of one tensor.

    Attributes:
        shape: Sizes, outermost first.
        dtype: The name that safetensors uses: ``F32``, ``BF16``, ``F16``, ``I8`` ..., or one of
            :data:`BLOCKS`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_elements(self) -> int:
        """Product of the sizes."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the data."""
        if self.dtype in BLOCKS:
            elements, num_bytes = BLOCKS[self.dtype]
            return self.num_elements // elements * num_bytes
        return self.num_elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one model under both sets of names.

    Attributes:
        tensors: In-memory name to shape and type.
        fused: Released name to the in-memory tensors that are its rows, in order. Tensors that are
            not listed have one name.
        lm: The language model, where it is one: other formats have names of their own for it.
    """

    tensors: Mapping[str, TensorSpec]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lm: LMSpec | None = None

    @property
    def weights(self) -> dict[str, TensorSpec]:
        """The in-memory tensors without the scales of int8 ones."""
        return {n: spec for n, spec in self.tensors.items() if not n.endswith(SCALE_SUFFIX)}

    def file_tensors(self) -> dict[str, TensorSpec]:
        """Shapes and types under the released, fused names."""
        found: dict[str, TensorSpec] = {}
        stacked = {part for parts in self.fused.values() for part in parts}
        found.update((n, spec) for n, spec in self.tensors.items() if n not in stacked)
        for name, parts in self.fused.items():
            found[name] = self.stacked_spec(parts)
        return found

    def resolve(self, file_name: str) -> tuple[str, ...]:
        """In-memory names that a tensor of a file holds, stacked along its rows.

        Args:
            file_name: A fused, split or old name.

        Returns:
            One name, or one per weight set; empty when no tensor of this model has that name.
        """
        if file_name in self.fused:
            return self.fused[file_name]
        if file_name in self.tensors:
            return (file_name,)
        if ".in_proj.weight" in file_name:
            return self.fused.get(file_name.replace(".in_proj.weight", ".in_proj_weight"), ())
        head, _, tail = file_name.rpartition(".")
        renamed = f"{head}.{_OLD_CODEBOOK_NAMES.get(tail, tail)}"
        return (renamed,) if head.endswith("_codebook") and renamed in self.tensors else ()

    def stacked_spec(self, parts: tuple[str, ...]) -> TensorSpec:
        """Shape and type of in-memory tensors stacked along their rows."""
        first = self.tensors[parts[0]]
        rows = sum(self.tensors[part].shape[0] for part in parts)
        return TensorSpec((rows, *first.shape[1:]), first.dtype)


def mimi_tensors(spec: MimiSpec) -> dict[str, TensorSpec]:
    """Tensors of a Mimi file: 318 with 96 151 393 elements for the released codec."""
    return mimi_layout(spec).file_tensors()


def lm_tensors(spec: LMSpec, dtype: str = "BF16") -> dict[str, TensorSpec]:
    """Tensors of a language model's file: 355 for the 7B, 439 in memory."""
    return lm_layout(spec, dtype).file_tensors()


def header_bytes(
    tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Write the header of a safetensors file, its 8 length bytes included.

    Entries are sorted as the safetensors library sorts them (wide types first, then by name), so
    that offsets ascend in the order of :func:`data_order`; the text is padded to 8 bytes.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in data_order(tensors):
        spec = tensors[name]
        end = position + spec.num_bytes
        entries[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_order(tensors: Mapping[str, TensorSpec]) -> list[str]:
    """Names in the order in which their data lies in the file."""
    rank = {dtype: i for i, dtype in enumerate(DTYPE_BYTES)}
    return sorted(tensors, key=lambda name: (-rank[tensors[name].dtype], name.encode()))


def predicted_file_size(tensors: Mapping[str, TensorSpec]) -> int:
    """Bytes of the safetensors file that holds exactly these tensors and no metadata.

    It equals the published sizes: 384 644 900 for Mimi, 15 375 500 136 for the 7B.
    """
    return len(header_bytes(tensors)) + sum(spec.num_bytes for spec in tensors.values())


def mimi_layout(spec: MimiSpec) -> Layout:
    """Tensors of a Mimi, all float32."""
    shapes: dict[str, tuple[int, ...]] = {}
    fused: dict[str, tuple[str, ...]] = {}
    shapes.update(_seanet_encoder(spec))
    shapes.update(_seanet_decoder(spec))
    for side in ("encoder", "decoder"):
        prefix = f"{side}_transformer"
        if spec.transformer.dim != spec.dimension:
            shapes[f"{prefix}.input_proj.weight"] = (spec.transformer.dim, spec.dimension)
            shapes[f"{prefix}.output_projs.0.weight"] = (spec.dimension, spec.transformer.dim)
        _transformer(shapes, fused, f"{prefix}.transformer", spec.transformer)
    for group, count in (("first", 1), ("rest", spec.num_codebooks - 1)):
        prefix = f"quantizer.rvq_{group}"
        shapes[f"{prefix}.input_proj.weight"] = (spec.quantizer_dim, spec.dimension, 1)
        shapes[f"{prefix}.output_proj.weight"] = (spec.dimension, spec.quantizer_dim, 1)
        for layer in range(count):
            codebook = f"{prefix}.vq.layers.{layer}._codebook"
            shapes[f"{codebook}._initialized"] = (1,)
            shapes[f"{codebook}.cluster_usage"] = (spec.cardinality,)
            shapes[f"{codebook}.embedding_sum"] = (spec.cardinality, spec.quantizer_dim)
    if spec.stride > 1:
        kernel = 2 * spec.stride
        width = spec.dimension
        shapes["downsample.conv.conv.conv.weight"] = (width, width, kernel)
        shapes["upsample.convtr.convtr.convtr.weight"] = (width, 1, kernel)
    return Layout({name: TensorSpec(shape, "F32") for name, shape in shapes.items()}, fused)


def lm_layout(spec: LMSpec, dtype: str = "BF16") -> Layout:
    """Tensors of a language model.

    Args:
        spec: The model; with ``quantized`` every linear weight is int8 and has float32 row scales
            named ``..._scb``.
        dtype: Type of all other weights, as safetensors names it.
    """
    dim = spec.temporal.dim
    shapes: dict[str, tuple[int, ...]] = {}
    fused: dict[str, tuple[str, ...]] = {}
    for k in range(spec.num_codebooks):
        _embedding(shapes, f"emb.{k}", spec.cardinality + 1, dim, spec)
    _embedding(shapes, "text_emb", spec.text_cardinality + 1, dim, spec)
    _head(shapes, "text_linear", spec.text_head_size, dim, spec)
    _transformer(shapes, fused, "transformer", spec.temporal)
    _norm(shapes, "out_norm", spec.temporal.norm, dim)
    for i in range(spec.num_extra_heads):
        shapes[f"extra_heads.{i}.weight"] = (spec.extra_head_size, dim)
    if spec.depth is not None:
        _depth(shapes, fused, spec, spec.depth)
    for condition in spec.conditioners:
        prefix = f"condition_provider.conditioners.{condition.name}"
        shapes[f"{prefix}.embed.weight"] = (condition.num_bins + 1, condition.dim)
        shapes[f"{prefix}.output_proj.weight"] = (dim, condition.dim)
        shapes[f"{prefix}.learnt_padding"] = (1, 1, dim)
    tensors = {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}
    if spec.quantized:
        return replace(_quantized(tensors, fused), lm=spec)
    return Layout(tensors, fused, spec)


def is_linear(name: str) -> bool:
    """Whether an in-memory LM tensor is the weight of a linear layer: what int8 and LoRA change."""
    if not name.endswith(".weight"):
        return False
    table = name.removesuffix(".weight")
    first = table.partition(".")[0]
    is_table = first in ("emb", "text_emb", "depformer_emb", "depformer_text_emb")
    if is_table or table.endswith(".embed"):
        return table.endswith(".low_rank")
    last = table.rpartition(".")[2]
    return first != "depformer_norms" and last not in ("norm1", "norm2", "out_norm", "norm")


def _quantized(tensors: dict[str, TensorSpec], fused: dict[str, tuple[str, ...]]) -> Layout:
    """Make every linear weight int8 and add its row scales."""
    found: dict[str, TensorSpec] = {}
    for name, spec in tensors.items():
        if is_linear(name):
            found[name] = TensorSpec(spec.shape, "I8")
            found[f"{name}_scb"] = TensorSpec(spec.shape[:1], "F32")
        else:
            found[name] = spec
    scales = {f"{n}_scb": tuple(f"{part}_scb" for part in parts) for n, parts in fused.items()}
    return Layout(found, {**fused, **scales})


def _depth(
    shapes: dict[str, tuple[int, ...]],
    fused: dict[str, tuple[str, ...]],
    spec: LMSpec,
    depth: TransformerSpec,
) -> None:
    """Add the depth transformer with its inputs and heads."""
    for i in range(depth.num_weight_sets if spec.multi_linear else 1):
        shapes[f"depformer_in.{i}.weight"] = (depth.dim, spec.temporal.dim)
    for k in range(spec.num_generated - 1):
        rows = spec.cardinality + 1
        _embedding(shapes, f"depformer_emb.{k}", rows, depth.dim, spec, spec.low_rank)
    rows = spec.text_cardinality + 1
    _embedding(shapes, "depformer_text_emb", rows, depth.dim, spec, spec.low_rank)
    _transformer(shapes, fused, "depformer", depth)
    for k in range(spec.num_generated):
        if spec.depth_norm is not None:
            _norm(shapes, f"depformer_norms.{k}", spec.depth_norm, depth.dim)
        _head(shapes, f"linears.{k}", spec.cardinality, depth.dim, spec)


def _transformer(
    shapes: dict[str, tuple[int, ...]],
    fused: dict[str, tuple[str, ...]],
    prefix: str,
    spec: TransformerSpec,
) -> None:
    """Add every block of a stack."""
    dim = spec.dim
    projected = dim + 2 * spec.num_kv_heads * spec.head_dim  # queries, keys, values
    sets = range(spec.num_weight_sets)
    for layer in range(spec.num_layers):
        block = f"{prefix}.layers.{layer}"
        attention = f"{block}.self_attn"
        for i in sets:
            shapes[f"{attention}.in_projs.{i}.weight"] = (projected, dim)
            shapes[f"{attention}.out_projs.{i}.weight"] = (dim, dim)
        fused[f"{attention}.in_proj_weight"] = tuple(
            f"{attention}.in_projs.{i}.weight" for i in sets
        )
        fused[f"{attention}.out_proj.weight"] = tuple(
            f"{attention}.out_projs.{i}.weight" for i in sets
        )
        for norm in ("norm1", "norm2"):
            _norm(shapes, f"{block}.{norm}", spec.norm, dim)
        if spec.gating == "none":
            shapes[f"{block}.linear1.weight"] = (spec.feedforward[0], dim)
            shapes[f"{block}.linear2.weight"] = (dim, spec.feedforward[0])
        else:
            for name, declared in _gates(f"{block}.gating", spec):
                hidden = gated_hidden(dim, declared)
                shapes[f"{name}.linear_in.weight"] = (2 * hidden, dim)
                shapes[f"{name}.linear_out.weight"] = (dim, hidden)
        if spec.layer_scale is not None:
            shapes[f"{block}.layer_scale_1.scale"] = (dim,)
            shapes[f"{block}.layer_scale_2.scale"] = (dim,)


def _gates(prefix: str, spec: TransformerSpec) -> Iterator[tuple[str, int]]:
    """Name and declared hidden size of each gate: numbered only with weights per step."""
    if not spec.weight_sets:
        yield prefix, spec.feedforward[0]
        return
    for i, declared in enumerate(spec.feedforward):
        yield f"{prefix}.{i}", declared


def _norm(shapes: dict[str, tuple[int, ...]], name: str, norm: str, dim: int) -> None:
    if norm.startswith("rms_norm"):
        shapes[f"{name}.alpha"] = (1, 1, dim)
        return
    shapes[f"{name}.weight"] = (dim,)
    shapes[f"{name}.bias"] = (dim,)


def _head(shapes: dict[str, tuple[int, ...]], name: str, rows: int, dim: int, spec: LMSpec) -> None:
    shapes[f"{name}.weight"] = (rows, dim)
    if spec.bias_heads:
        shapes[f"{name}.bias"] = (rows,)


def _embedding(
    shapes: dict[str, tuple[int, ...]],
    name: str,
    rows: int,
    dim: int,
    spec: LMSpec,
    low_rank: int | None = None,
) -> None:
    width = low_rank or dim
    shapes[f"{name}.weight"] = (rows, width)
    if spec.norm_embeddings:
        _norm(shapes, f"{name}.norm", "layer_norm", width)
    if low_rank:
        shapes[f"{name}.low_rank.weight"] = (dim, low_rank)


def _seanet_encoder(spec: MimiSpec) -> dict[str, tuple[int, ...]]:
    """Convolutions of the encoder; module numbers count the activations between them."""
    shapes: dict[str, tuple[int, ...]] = {}
    width, index = spec.num_filters, 1
    _conv(shapes, "encoder.model.0.conv.conv", width, spec.channels, spec.kernel_size)
    for ratio in reversed(spec.ratios):
        for _ in range(spec.num_residual_layers):
            _residual(shapes, f"encoder.model.{index}", width, spec)
            index += 1
        _conv(shapes, f"encoder.model.{index + 1}.conv.conv", 2 * width, width, 2 * ratio)
        width, index = 2 * width, index + 2
    name = f"encoder.model.{index + 1}.conv.conv"
    _conv(shapes, name, spec.dimension, width, spec.last_kernel_size)
    return shapes


def _seanet_decoder(spec: MimiSpec) -> dict[str, tuple[int, ...]]:
    """Convolutions of the decoder; transposed weights are ``[in, out, kernel]``."""
    shapes: dict[str, tuple[int, ...]] = {}
    width, index = spec.num_filters * 2 ** len(spec.ratios), 1
    _conv(shapes, "decoder.model.0.conv.conv", width, spec.dimension, spec.kernel_size)
    for ratio in spec.ratios:
        name = f"decoder.model.{index + 1}.convtr.convtr"
        shapes[f"{name}.weight"] = (width, width // 2, 2 * ratio)
        shapes[f"{name}.bias"] = (width // 2,)
        width, index = width // 2, index + 2
        for _ in range(spec.num_residual_layers):
            _residual(shapes, f"decoder.model.{index}", width, spec)
            index += 1
    name = f"decoder.model.{index + 1}.conv.conv"
    _conv(shapes, name, spec.channels, width, spec.last_kernel_size)
    return shapes


def _residual(shapes: dict[str, tuple[int, ...]], name: str, width: int, spec: MimiSpec) -> None:
    hidden = width // spec.compress
    _conv(shapes, f"{name}.block.1.conv.conv", hidden, width, spec.residual_kernel_size)
    _conv(shapes, f"{name}.block.3.conv.conv", width, hidden, 1)


def _conv(
    shapes: dict[str, tuple[int, ...]], name: str, channels_out: int, channels_in: int, kernel: int
) -> None:
    shapes[f"{name}.weight"] = (channels_out, channels_in, kernel)
    shapes[f"{name}.bias"] = (channels_out,)
