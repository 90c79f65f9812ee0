"""Source ``codes``: files of codes, for graphs that begin with codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import InputError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.nodes.files import find_files, unique_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import numpy.typing as npt

_CHUNK_FRAMES: Final = 256


@dataclass
class CodesSourceOptions:
    """Which files of codes are read.

    Attributes:
        path: A file, a glob or a folder.
        recursive: Look into sub-folders of a folder.
    """

    path: str = "???"
    recursive: bool = False


class CodesSource(Source):
    """One session per file that sink ``codes`` wrote, or any safetensors with ``codes [K, T]``."""

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
                if "codes" not in file.keys():  # noqa: SIM118 - it is no mapping
                    raise InputError(
                        f"{self._path} holds no codes",
                        got=", ".join(file.keys()) or "no tensors",
                        wanted="a tensor 'codes' [codebooks, frames]",
                    )
                codes_KT = file.get_tensor("codes").astype(np.int64)
                if "valid" in file.keys():  # noqa: SIM118
                    codes_KT = codes_KT[:, file.get_tensor("valid")]
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"cannot read {self._path}",
                got=str(error),
                wanted="a safetensors file with codes",
            ) from error
        return codes_KT
