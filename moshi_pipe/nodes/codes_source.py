"""Source ``codes``: files of codes, for graphs that begin with codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import InputError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.nodes.files import find_files, unique_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import numpy.typing as npt

    from moshi_pipe.nodes.options import CodesSourceOptions

_CHUNK_FRAMES: Final = 256
_TENSORS: Final = ("codes", "valid")


class CodesSource(Source):
    """One session per file that sink ``codes`` wrote, or any safetensors with ``codes [K, T]``."""

    gives = "codes"

    def __init__(self, options: CodesSourceOptions) -> None:
        self.options = options

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield the files in natural order.

        Raises:
            InputError: Nothing is found.
        """
        paths = self._files()
        for index, (path, name) in enumerate(zip(paths, unique_names(paths), strict=True)):
            yield _CodesInput(path, name, index)

    def num_sessions(self) -> int:
        """Files that were found."""
        return len(self._files())

    def _files(self) -> list[Path]:
        return find_files(
            self.options.path, suffixes=(".safetensors",), recursive=self.options.recursive
        )


class _CodesInput(SessionInput):
    codes = True

    def __init__(self, path: Path, name: str, index: int) -> None:
        self.id = name
        self.meta = {
            "stem": name,
            "path": str(path),
            "name": path.name,
            "parent": path.parent.name,
            "index": index,
        }
        self.sample_rate = 0
        self._path = path

    async def chunks(self) -> AsyncIterator[npt.NDArray[Any]]:
        """Yield int64 ``[K, T]`` pieces; columns that are not valid are left out."""
        codes_KT = self._read()
        for start in range(0, codes_KT.shape[1], _CHUNK_FRAMES):
            yield codes_KT[:, start : start + _CHUNK_FRAMES]

    def _read(self) -> npt.NDArray[np.int64]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="numpy") as file:
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in _TENSORS if name in names}
        except (SafetensorError, OSError, TypeError) as error:
            raise InputError(
                f"cannot read {self._path}",
                got=str(error),
                wanted="a safetensors file with codes",
            ) from error
        codes_KT = tensors.get("codes")
        if codes_KT is None:
            raise self._unusable(", ".join(names) or "no tensors")
        if codes_KT.ndim != 2 or codes_KT.dtype.kind not in "iu":
            raise self._unusable(f"codes of type {codes_KT.dtype} {list(codes_KT.shape)}")
        valid_T = tensors.get("valid", np.ones(codes_KT.shape[1], dtype=np.bool_))
        if valid_T.dtype != np.bool_ or valid_T.shape != codes_KT.shape[1:]:
            raise self._unusable(f"valid of type {valid_T.dtype} {list(valid_T.shape)}")
        if not valid_T.any():
            raise self._unusable("no column that is valid")
        columns_KT: npt.NDArray[np.int64] = codes_KT[:, valid_T].astype(np.int64)
        return columns_KT

    def _unusable(self, got: str) -> InputError:
        return InputError(
            f"{self._path} holds no codes that can be used",
            got=got,
            wanted="whole numbers 'codes' [codebooks, frames], and 'valid' [frames] if any",
        )
