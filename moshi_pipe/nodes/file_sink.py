"""Sink ``file``: audio files aligned with time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.audio_writer import FLOAT_BITS, FORMATS, INT_BITS, AudioWriter, open_writer
from moshi_pipe.nodes.naming import make_room, output_path, write_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.nodes.options import FileSinkOptions

_OUTPUTS = ("audio", "user_audio")


class FileSink(Sink):
    """Writes one audio file per session.

    What frame i made occupies ``[i, i + 1)`` frames of the file; frames that did not come are
    silence; the file is as long as the session. Samples beyond [-1, 1] are clipped and counted.
    A kill leaves a file that is valid up to the last second.

    Raises:
        ConfigError: An option has no such value.
    """

    def __init__(self, options: FileSinkOptions) -> None:
        if options.format not in FORMATS:
            raise ConfigError(
                "sink.file.format has no such value",
                got=options.format,
                wanted=closest(options.format, FORMATS),
            )
        if options.bits != INT_BITS and (options.bits, options.format) != (FLOAT_BITS, "wav"):
            raise ConfigError(
                "sink.file.bits has no such value",
                got=f"{options.bits} for {options.format}",
                wanted="16, or 32 for wav",
            )
        if options.output not in _OUTPUTS:
            raise ConfigError(
                "sink.file.output has no such value",
                got=options.output,
                wanted=closest(options.output, _OUTPUTS),
            )
        self.options = options
        self.takes = _OUTPUTS if options.stereo else (options.output,)
        self._path = Path()
        self._latency_ms = 0.0
        self._sample_rate = 0
        self._writer: AudioWriter | None = None
        self._row_CN: npt.NDArray[np.float32] = np.zeros((1, 1), dtype=np.float32)
        self._frame = -1  # of the row, which is not on disk yet
        self._clipped = 0
        self._broken = False

    def outputs(self, session: SessionInfo) -> list[Path]:
        """The audio file."""
        return [output_path(self.options.path, session, f".{self.options.format}")]

    async def open(self, session: SessionInfo) -> None:
        """Create the file.

        Raises:
            OutputError: It cannot be created.
            ConfigError: The graph does not make what is to be written.
        """
        for output in self.takes:
            if output not in session.formats:
                raise ConfigError(
                    f"sink=file needs the output '{output}', which this graph does not make",
                    wanted=closest(output, session.formats),
                )
        form = session.formats[self.takes[0]]
        if not isinstance(form, Audio):
            raise ConfigError(f"output '{self.takes[0]}' is no audio", got=str(form))
        self._path = self.outputs(session)[0]
        self._latency_ms = session.latency_ms
        self._sample_rate = form.sample_rate
        self._row_CN = np.zeros((len(self.takes), form.frame_size), dtype=np.float32)
        make_room(self._path)
        try:
            self._writer = open_writer(
                self._path,
                self.options.format,
                sample_rate=form.sample_rate,
                channels=len(self.takes),
                bits=self.options.bits,
            )
        except OSError as error:
            raise write_error(self._path, error) from error

    async def write(self, packet: Packet) -> None:
        """Put one frame of one side in its place.

        Raises:
            OutputError: The disk does not take it.
        """
        samples = np.asarray(packet.payload)[0]
        self._clipped += int(np.count_nonzero(np.abs(samples) > 1))
        self._advance_to(packet.frame)
        self._row_CN[self.takes.index(packet.output)] = np.clip(samples, -1, 1)

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Fill up with silence to the session's length, less its padding, and finish the file.

        A session that failed before its first frame leaves no file.

        Raises:
            OutputError: The disk does not take it.
        """
        if self._writer is None:
            return {}
        try:
            if not self._broken:
                self._advance_to(end.num_frames - 1)
                self._write_row(self._row_CN.shape[1] - round(end.padding_s * self._sample_rate))
        finally:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except OSError as error:
                raise write_error(self._path, error) from error
        begun = end.complete or end.num_frames > 0
        if not begun:
            self._path.unlink(missing_ok=True)
        return {
            "sink": "file",
            "files": [str(self._path)] if begun else [],
            "latency_ms": self._latency_ms,
            "clipped_samples": self._clipped,
        }

    def _advance_to(self, frame: int) -> None:
        """Write the row that is whole, and silence for those that did not come."""
        while self._frame < frame:
            self._write_row(self._row_CN.shape[1])
            self._frame += 1

    def _write_row(self, num_samples: int) -> None:
        if self._writer is None or self._frame < 0:
            return
        try:
            self._writer.write(self._row_CN[:, :num_samples])
        except OSError as error:
            self._broken = True  # a part of the row may be there: nothing fits behind it
            raise write_error(self._path, error) from error
        self._row_CN[:] = 0
