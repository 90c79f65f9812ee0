"""Matrices as they are stored: in the model's type, or packed to a few bits.

Shape letters: D in, O out, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Packing:
    """How a packed matrix is quantized: affine, one scale and one bias per group of a row.

    Attributes:
        bits: Per weight.
        group_size: Neighbours in a row that share scale and bias.
    """

    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"int{self.bits} in groups of {self.group_size}"

    def fits(self, dim_in: int) -> bool:
        """Whether rows of this length divide into whole groups."""
        return dim_in % self.group_size == 0


@dataclass(slots=True)
class Dense:
    """A matrix in a float type.

    Attributes:
        weight: ``[O, D]``, or ``[D, O]`` if ``in_major``.
        in_major: Stored for products on a CPU; such a matrix has no rows to look up.
    """

    weight: mx.array
    in_major: bool = False

    def project(self, x: mx.array) -> mx.array:
        """``x @ weight.T`` over the last axis."""
        if not self.in_major:
            return x @ self.weight.T
        # The CPU library's product of one long matrix is quicker than a batch of short ones.
        flat = x.reshape(-1, x.shape[-1]) @ self.weight
        return flat.reshape(*x.shape[:-1], flat.shape[-1])

    def rows(self, ids: mx.array) -> mx.array:
        """Look rows up."""
        return self.weight[ids]

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite one row by another."""
        self.weight[target] = self.weight[source]

    def stored(self, dtype: mx.Dtype | None) -> dict[str, mx.array]:
        """What a file holds, by suffix: ``weight`` as ``[O, D]``."""
        weight = self.weight.T if self.in_major else self.weight
        return {"weight": mx.contiguous(weight if dtype is None else weight.astype(dtype))}

    @property
    def arrays(self) -> list[mx.array]:
        """Everything in memory."""
        return [self.weight]


@dataclass(slots=True)
class Packed:
    """A quantized matrix, in MLX's form.

    Attributes:
        weight: ``[O, D * bits / 32]``, uint32.
        scales: ``[O, G]`` in the type of the activations, so that no step converts them.
        biases: ``[O, G]``, likewise.
        packing: Bits and group.
        stored_dtype: Type of scales and biases in files.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    packing: Packing
    stored_dtype: mx.Dtype

    @classmethod
    def quantize(cls, weight_OD: mx.array, packing: Packing, dtype: mx.Dtype) -> Packed:
        """Quantize as the released files were: from bfloat16, to bfloat16 scales and biases."""
        packed = mx.quantize(
            weight_OD.astype(mx.bfloat16), group_size=packing.group_size, bits=packing.bits
        )
        return cls.wrap(packed[0], packed[1], packed[2], packing, dtype)

    @classmethod
    def wrap(
        cls,
        weight: mx.array,
        scales: mx.array,
        biases: mx.array,
        packing: Packing,
        dtype: mx.Dtype,
    ) -> Packed:
        """Take the three arrays of a file."""
        stored = scales.dtype
        return cls(weight, scales.astype(dtype), biases.astype(dtype), packing, stored)

    def project(self, x: mx.array) -> mx.array:
        """``x @ weight.T`` over the last axis."""
        return mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.biases,
            transpose=True,
            group_size=self.packing.group_size,
            bits=self.packing.bits,
        )

    def rows(self, ids: mx.array) -> mx.array:
        """Look rows up, dequantized."""
        return mx.dequantize(
            self.weight[ids],
            self.scales[ids],
            self.biases[ids],
            group_size=self.packing.group_size,
            bits=self.packing.bits,
        )

    def copy_row(self, source: int, target: int) -> None:
        """Overwrite one row by another."""
        for array in self.arrays:
            array[target] = array[source]

    def stored(self, dtype: mx.Dtype | None) -> dict[str, mx.array]:
        """What a file holds, by suffix; scales and biases keep the type that they came in."""
        return {
            "weight": self.weight,
            "scales": self.scales.astype(self.stored_dtype),
            "biases": self.biases.astype(self.stored_dtype),
        }

    @property
    def arrays(self) -> list[mx.array]:
        """Everything in memory."""
        return [self.weight, self.scales, self.biases]


Matrix = Dense | Packed


class Weights:
    """A model's weights by in-memory name, as :mod:`moshi_pipe.models.layout` names them."""

    def __init__(self) -> None:
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, mx.array] = {}

    def matrix(self, name: str) -> Matrix:
        """A weight with two axes."""
        return self.matrices[name]

    def vector(self, name: str) -> mx.array:
        """Any other weight."""
        return self.vectors[name]

    @property
    def num_bytes(self) -> int:
        """Bytes of everything in memory."""
        packed = [array for matrix in self.matrices.values() for array in matrix.arrays]
        return sum(array.nbytes for array in [*packed, *self.vectors.values()])
