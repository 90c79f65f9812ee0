"""Sink ``codes``: columns of codes in a safetensors file.

A file holds ``codes`` int16 or int32 ``[K, T]``, ``valid`` bool ``[T]`` and, where the graph makes
text, ``text`` int32 ``[T]``; columns that did not come are 0 and not valid. Metadata:
``frame_rate``, ``cardinality``, ``seed``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.graph.format import Codes
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.naming import make_room, output_path, write_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.nodes.options import CodesSinkOptions

_SUFFIX: Final = ".safetensors"
_NO_TEXT: Final = -1
_OUTPUTS: Final = ("codes", "user_codes")


class CodesSink(Sink):
    """Writes one safetensors file per session.

    The file appears when the session ends, whole or not at all: after a kill there is none. Until
    then the columns are in memory, a few dozen bytes for each frame.

    Raises:
        ConfigError: An option has no such value.
    """

    def __init__(self, options: CodesSinkOptions) -> None:
        if options.output not in _OUTPUTS:
            raise ConfigError(
                "sink.codes.output has no such value",
                got=options.output,
                wanted=closest(options.output, _OUTPUTS),
            )
        self.options = options
        self.takes = (options.output,)
        self.optional = ("text",) if options.text else ()
        self._path = Path()
        self._session: SessionInfo | None = None
        self._form: Codes | None = None
        self._rows = bytearray()
        self._row = np.zeros(0, dtype=np.int32)  # valid, text, codes
        self._frame = -1  # of the row

    def outputs(self, session: SessionInfo) -> list[Path]:
        """The file."""
        return [output_path(self.options.path, session, _SUFFIX)]

    async def open(self, session: SessionInfo) -> None:
        """Make sure that the file can be written.

        Raises:
            OutputError: It cannot.
            ConfigError: The graph does not make these codes.
        """
        form = session.formats.get(self.options.output)
        if not isinstance(form, Codes):
            raise ConfigError(
                f"sink=codes needs the output '{self.options.output}', "
                "which this graph does not make",
                wanted=closest(self.options.output, session.formats),
            )
        self._session, self._form = session, form
        self._path = self.outputs(session)[0]
        self._row = np.zeros(2 + form.num_codebooks, dtype=np.int32)
        make_room(self._path)
        try:
            self._part_path.open("wb").close()
            self._part_path.unlink()
        except OSError as error:
            raise write_error(self._path, error) from error

    async def write(self, packet: Packet) -> None:
        """Take one column or one text token."""
        self._next_row(packet.frame)
        if packet.output == "text":
            self._row[1] = packet.payload
        else:
            self._row[0] = 1
            self._row[2:] = packet.payload

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Write the file, but for a session that failed before its first frame.

        Raises:
            OutputError: The disk does not take it.
        """
        if self._session is None or self._form is None:
            return {}
        if not end.complete and not end.num_frames:
            return {"sink": "codes", "files": [], "frames": 0}
        self._next_row(end.num_frames)
        rows = np.frombuffer(self._rows, dtype=np.int32).reshape(-1, self._row.size)
        dtype = np.int16 if self._form.cardinality <= 2**15 else np.int32
        tensors = {
            "codes": np.ascontiguousarray(rows[:, 2:].T.astype(dtype)),
            "valid": rows[:, 0] > 0,
        }
        if self.options.text and "text" in self._session.formats:
            tensors["text"] = rows[:, 1].copy()
        metadata = {
            "frame_rate": str(float(self._form.frame_rate)),
            "cardinality": str(self._form.cardinality),
            "seed": str(self._session.seed),
        }
        self._save(tensors, metadata)
        return {"sink": "codes", "files": [str(self._path)], "frames": len(rows)}

    def _save(self, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> None:
        from safetensors.numpy import save

        try:
            self._part_path.write_bytes(save(tensors, metadata))
            os.replace(self._part_path, self._path)
        except OSError as error:
            self._part_path.unlink(missing_ok=True)
            raise write_error(self._path, error) from error

    @property
    def _part_path(self) -> Path:
        return self._path.with_name(self._path.name + ".part")

    def _next_row(self, frame: int) -> None:
        """Keep the row that is whole, and empty ones up to ``frame``."""
        while self._frame < frame:
            if self._frame >= 0:
                self._rows += self._row.tobytes()
            self._row[:] = 0
            self._row[1] = _NO_TEXT
            self._frame += 1
