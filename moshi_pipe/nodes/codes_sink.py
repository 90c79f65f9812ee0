"""Sink ``codes``: columns of codes in a safetensors file.

A file holds ``codes`` int16 or int32 ``[K, T]``, ``valid`` bool ``[T]`` and, where the graph makes
text, ``text`` int32 ``[T]``; columns that did not come are 0 and not valid. Metadata:
``frame_rate``, ``cardinality``, ``seed``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.graph.format import Codes
from moshi_pipe.graph.node import SessionInfo, Sink
from moshi_pipe.nodes.naming import make_room, output_path, write_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.graph.packet import Packet

_SUFFIX: Final = ".safetensors"
_NO_TEXT: Final = -1
_OUTPUTS: Final = ("codes", "user_codes")


@dataclass
class CodesSinkOptions:
    """How codes are written.

    Attributes:
        path: Name of the file under ``output_dir``, without its ending.
        output: ``codes`` that the model made, or ``user_codes`` that it heard.
        text: Also keep the text tokens, where the graph makes them.
    """

    path: str = "{stem}"
    output: str = "codes"
    text: bool = True


class CodesSink(Sink):
    """Writes one safetensors file per session.

    Columns are appended to a ``.part`` file while the session runs and become the final file, which
    appears under its name only when it is whole.

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
        self._part: IO[bytes] | None = None
        self._session: SessionInfo | None = None
        self._row = np.zeros(0, dtype=np.int32)
        self._frame = -1

    def outputs(self, session: SessionInfo) -> list[Path]:
        """The file."""
        return [output_path(self.options.path, session, _SUFFIX)]

    async def open(self, session: SessionInfo) -> None:
        """Create the ``.part`` file.

        Raises:
            OutputError: It cannot be created.
            ConfigError: The graph does not make these codes.
        """
        form = session.formats.get(self.options.output)
        if not isinstance(form, Codes):
            raise ConfigError(
                f"sink=codes needs the output '{self.options.output}', "
                "which this graph does not make",
                wanted=closest(self.options.output, session.formats),
            )
        self._session = session
        self._path = self.outputs(session)[0]
        self._row = np.zeros(2 + form.num_codebooks, dtype=np.int32)
        make_room(self._path)
        try:
            self._part = self._part_path.open("wb")
        except OSError as error:
            raise write_error(self._path, error) from error

    async def write(self, packet: Packet) -> None:
        """Take one column or one text token.

        Raises:
            OutputError: The disk does not take it.
        """
        if packet.frame != self._frame:
            self._next_row(packet.frame)
        if packet.output == "text":
            self._row[1] = packet.payload
        else:
            self._row[0] = 1
            self._row[2:] = packet.payload

    async def close(self, num_frames: int, *, complete: bool) -> Mapping[str, Any]:
        """Turn the columns into the final file.

        Raises:
            OutputError: The disk does not take it.
        """
        if self._part is None or self._session is None:
            return {}
        from safetensors.numpy import save_file

        self._next_row(num_frames)
        self._part.close()
        rows = np.fromfile(self._part_path, dtype=np.int32).reshape(-1, self._row.size)
        form = self._session.formats[self.options.output]
        if not isinstance(form, Codes):
            raise TypeError(f"codes have the format {form}")
        dtype = np.int16 if form.cardinality <= 2**15 else np.int32
        tensors = {
            "codes": np.ascontiguousarray(rows[:, 2:].T.astype(dtype)),
            "valid": rows[:, 0] > 0,
        }
        if self.options.text and "text" in self._session.formats:
            tensors["text"] = rows[:, 1].copy()
        metadata = {
            "frame_rate": str(float(form.frame_rate)),
            "cardinality": str(form.cardinality),
            "seed": str(self._session.seed),
        }
        final = self._path.with_name(self._path.name + ".tmp")
        try:
            save_file(tensors, final, metadata=metadata)
            os.replace(final, self._path)
        except Exception as error:  # safetensors wraps what the disk said in an error of its own
            raise write_error(self._path, error) from error
        self._part_path.unlink()
        return {"sink": "codes", "files": [str(self._path)], "frames": len(rows)}

    @property
    def _part_path(self) -> Path:
        return self._path.with_name(self._path.name + ".part")

    def _next_row(self, frame: int) -> None:
        """Write the row that is whole, and empty ones up to ``frame``."""
        if self._part is None:
            return
        try:
            if self._frame >= 0:
                self._row.tofile(self._part)
            self._row[:] = 0
            self._row[1] = _NO_TEXT
            for _ in range(self._frame + 1, frame):
                self._row.tofile(self._part)
            self._part.flush()
        except OSError as error:
            raise write_error(self._path, error) from error
        self._frame = frame
