"""Where each in-memory tensor lies in a weight file, and how it is stored there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from moshi_pipe.models.formats.names import CANDLE, MLX
from moshi_pipe.models.layout import TensorSpec
from moshi_pipe.units import format_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.models.safetensors_header import Header

PLAIN: Final = "plain"
"""Numbers of a float type."""
INT8_ROWS: Final = "int8 rows"
"""``w = code * absmax / 127``, one absmax per row: released PyTorch q8."""
AFFINE: Final = "affine"
"""``w = code * scale + bias``, codes packed into uint32, scale and bias per group: MLX."""
Q8_0: Final = "Q8_0"
"""``w = code * scale`` in blocks of 32 that begin with their float16 scale: GGUF."""

FORMATS: Final = ("torch", "torch-q8", "mlx", "mlx-q8", "mlx-q4", "candle", "gguf")
"""The released formats."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of one array in a file.

    Attributes:
        name: The array's, in the file.
        spec: Shape and type of these rows.
        start: Byte of the file at which they begin.
    """

    name: str
    spec: TensorSpec
    start: int

    @property
    def num_rows(self) -> int:
        """Sizes of the first axis; 1 for a scalar."""
        return self.spec.shape[0] if self.spec.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.spec.num_bytes // self.num_rows if self.num_rows else 0


@dataclass(frozen=True, slots=True)
class Stored:
    """How one in-memory tensor is stored.

    Attributes:
        encoding: ``plain``, ``int8 rows``, ``affine`` or ``Q8_0``.
        shape: In memory.
        parts: Its arrays: the numbers; int8 rows: codes, absmax; affine: codes, scales, biases.
        copies: The same once more for every further slice that uses this tensor.
        bits: Of a code; 0 where the numbers are plain.
        group: Neighbours in a row that share a scale; 0 where the numbers are plain.
    """

    encoding: str
    shape: tuple[int, ...]
    parts: tuple[Rows, ...]
    copies: tuple[tuple[Rows, ...], ...] = ()
    bits: int = 0
    group: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of one copy."""
        return sum(part.spec.num_bytes for part in self.parts)

    @property
    def dtype(self) -> str:
        """Type of the numbers, or of the codes."""
        return self.parts[0].spec.dtype

    def __str__(self) -> str:
        if self.encoding == PLAIN:
            return self.dtype
        if self.encoding == INT8_ROWS:
            return "int8 per row"
        if self.encoding == Q8_0:
            return "Q8_0 (int8 in groups of 32)"
        return f"int{self.bits} in groups of {self.group}"


@dataclass(frozen=True, slots=True)
class Contents:
    """A weight file that holds exactly one model.

    Attributes:
        header: The file's header.
        naming: ``hub``, ``mlx`` or ``candle``.
        is_gguf: Whether the container is GGUF; else it is safetensors.
        stored: How each in-memory tensor is stored, in the order of the file.
    """

    header: Header
    naming: str
    is_gguf: bool
    stored: Mapping[str, Stored]
    _forms: Counter[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        forms = Counter(str(s) for s in self.stored.values() if s.encoding != PLAIN)
        object.__setattr__(self, "_forms", forms)

    @property
    def format(self) -> str:
        """One of :data:`FORMATS`, or ``mlx-qN`` where MLX packed to N bits."""
        if self.is_gguf:
            return "gguf"
        if self.naming == CANDLE:
            return "candle"
        packed = Counter(s.bits for s in self.stored.values() if s.encoding == AFFINE)
        if packed:
            return f"mlx-q{packed.most_common(1)[0][0]}"
        if self.naming == MLX:
            return "mlx"
        return "torch-q8" if self._forms else "torch"

    @property
    def quantization(self) -> str:
        """How tensors are quantized, with counts; ``none`` where all are plain."""
        if not self._forms:
            return "none"
        kinds = [f"{format_count(n, 'tensor')} {form}" for form, n in self._forms.most_common()]
        return ", ".join(kinds)

    @property
    def is_quantized(self) -> bool:
        """Whether any tensor is not plain."""
        return bool(self._forms)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, each counted once."""
        return sum(stored.num_bytes for stored in self.stored.values())

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors, each counted once."""
        return sum(TensorSpec(stored.shape, "F32").num_elements for stored in self.stored.values())
