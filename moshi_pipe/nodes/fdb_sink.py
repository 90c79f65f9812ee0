"""Sink ``fdb``: answers as the scripts of Full-Duplex-Bench read them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.audio_writer import AudioWriter, open_writer
from moshi_pipe.nodes.fdb_layout import KEPT, Sample
from moshi_pipe.nodes.naming import make_room, output_path, write_error
from moshi_pipe.nodes.word_track import WordTrack
from moshi_pipe.report import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.metrics.words import TimedWord
    from moshi_pipe.nodes.options import FdbSinkOptions

_FIELDS: Final = ("task", "sample", "folder", "answer")


class FdbSink(Sink):
    """Writes ``TASK/SAMPLE/output.wav`` and ``output.json``, for clean inputs ``clean_output.*``.

    The audio lies on the time line of the input and is as long: what the model made while it heard
    the input's frame i is at 80 i ms; silence that the run put before or after the input is left
    out with what was said in it. The transcript is the model's own text with its times; of an
    interruption of v1 only words after its end, as the benchmark's own script has it.

    Inputs and annotations are copied beside the answers, so that the results are a folder that its
    scripts take; nothing is copied where ``output_dir`` is the data itself.

    Raises:
        ConfigError: An option has no such value.
    """

    takes = ("audio",)
    optional = ("text",)

    def __init__(self, options: FdbSinkOptions) -> None:
        if options.sample_rate is not None and options.sample_rate <= 0:
            raise ConfigError(
                f"sink.fdb.sample_rate cannot be {options.sample_rate}", wanted="Hz, above 0"
            )
        self.options = options
        self._session: SessionInfo | None = None
        self._track: _AnswerTrack | None = None
        self._words: WordTrack | None = None

    def outputs(self, session: SessionInfo) -> list[Path]:
        """Audio, and the transcript unless it is left to a script."""
        suffixes = (".wav", ".json") if self.options.transcript else (".wav",)
        return [output_path(self.options.path, session, suffix) for suffix in suffixes]

    async def open(self, session: SessionInfo) -> None:
        """Copy what belongs to the sample, and create the audio file.

        Raises:
            ConfigError: The session is no sample of the benchmark.
            InputError: Its annotation cannot be read.
            OutputError: The files cannot be created.
        """
        missing = [name for name in _FIELDS if name not in session.meta]
        form = session.formats.get("audio")
        if missing or not isinstance(form, Audio):
            raise ConfigError(
                "sink=fdb needs a sample of Full-Duplex-Bench and a model that speaks",
                got=f"a session without {missing[0] if missing else 'audio'}",
                fix="choose source=fdb graph=dialogue",
            )
        Sample(Path(session.meta["folder"])).event_s()  # a wrong annotation is told at once
        self._session = session
        path = self.outputs(session)[0]
        make_room(path)
        if self.options.copy:
            _copy(Path(session.meta["folder"]), path.parent)
        rate = self.options.sample_rate or form.sample_rate
        try:
            writer = open_writer(path, "wav", sample_rate=rate, channels=1)
        except OSError as error:
            raise write_error(path, error) from error
        self._track = _AnswerTrack(path, writer, form, rate, session)
        if self.options.transcript and "text" in session.formats and session.reader("text"):
            self._words = WordTrack(session)

    async def write(self, packet: Packet) -> None:
        """Take a frame or a token.

        Raises:
            OutputError: The disk does not take it.
        """
        if packet.output == "text":
            if self._words is not None:
                self._words.push(int(packet.payload), packet.frame)
        elif self._track is not None:
            self._track.push(packet.frame, np.asarray(packet.payload, dtype=np.float32)[0])

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Bring the audio to the input's length and write the transcript.

        A session that ended before its first frame leaves neither.

        Raises:
            OutputError: The disk does not take it.
        """
        track, session = self._track, self._session
        if track is None or session is None:
            return {}
        begun = end.complete or end.num_frames > 0
        track.finish(end)
        if not begun:
            track.path.unlink(missing_ok=True)
            return {"sink": "fdb", "files": []}
        files = [str(path) for path in self.outputs(session)]
        report: dict[str, Any] = {"sink": "fdb", "files": files, "clipped": track.clipped}
        if self.options.transcript:
            words = _heard(session, self._words.finish() if self._words is not None else [])
            write_atomically(self.outputs(session)[1], _transcript(words))
            report["words"] = len(words)
        return report


class _AnswerTrack:
    """The model's audio on the time line of the input, at another rate."""

    def __init__(
        self, path: Path, writer: AudioWriter, form: Audio, rate: int, session: SessionInfo
    ) -> None:
        self.path = path
        self.clipped = 0
        self._writer = writer
        self._form = form
        self._rate = rate
        self._frame_s = session.frame_s
        self._lead = round(session.lead_s * form.sample_rate)  # samples still to be left out
        self._lead_s = session.lead_s
        self._wanted = _answer_length(session, rate)
        self._num_frames = 0
        self._num_written = 0
        self._resampler: Any = None
        if rate != form.sample_rate:
            import soxr

            self._resampler = soxr.ResampleStream(form.sample_rate, rate, 1, dtype="float32")

    def push(self, frame: int, samples_N: npt.NDArray[np.float32]) -> None:
        self._fill(frame)
        self._take(samples_N)

    def finish(self, end: SessionEnd) -> None:
        """Fill up with silence, or cut, to the length of the input; close the file."""
        try:
            self._fill(end.num_frames)
            if self._resampler is not None:
                self._write(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            lasted_s = end.num_frames * self._frame_s - end.padding_s - self._lead_s
            length = self._wanted if end.complete else None
            if length is None:
                length = max(0, round(lasted_s * self._rate))
            self._write(np.zeros(max(0, length - self._num_written), np.float32))
        finally:
            self._writer.close()

    def _fill(self, frame: int) -> None:
        while self._num_frames < frame:
            self._take(np.zeros(self._form.frame_size, np.float32))

    def _take(self, samples_N: npt.NDArray[np.float32]) -> None:
        self._num_frames += 1
        left_out = min(self._lead, samples_N.size)
        self._lead -= left_out
        samples_N = samples_N[left_out:]
        if samples_N.size and self._resampler is not None:
            samples_N = self._resampler.resample_chunk(np.ascontiguousarray(samples_N))
        self._write(samples_N)

    def _write(self, samples_N: npt.NDArray[np.float32]) -> None:
        if self._wanted is not None:
            samples_N = samples_N[: self._wanted - self._num_written]
        if not samples_N.size:
            return
        self.clipped += int(np.count_nonzero(np.abs(samples_N) > 1))
        try:
            self._writer.write(np.clip(samples_N, -1, 1)[None])
        except OSError as error:
            raise write_error(self.path, error) from error
        self._num_written += samples_N.size


def _answer_length(session: SessionInfo, rate: int) -> int | None:
    """Samples of an answer that is as long as its input; None where that is not known."""
    meta = session.meta
    if "num_samples" not in meta:
        return None
    length: int = round(meta["num_samples"] * rate / meta["sample_rate"])
    return length


def _heard(session: SessionInfo, words: Sequence[TimedWord]) -> list[TimedWord]:
    """Words that the benchmark hears: while the input lasts, and after an interruption of v1."""
    meta = session.meta
    after_s, until_s = 0.0, float("inf")
    if "num_samples" in meta:
        until_s = meta["num_samples"] / meta["sample_rate"]
    sample = Sample(Path(meta["folder"]))
    event_s = sample.event_s() if sample.kind == "user_interruption" else None
    if event_s is not None:
        after_s = event_s[1]
    return [word for word in words if after_s <= word.start_s < until_s]


def _transcript(words: Sequence[TimedWord]) -> str:
    """As the benchmark's recogniser writes it.

    Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/get_transcript/asr.py.
    """
    chunks = [{"text": word.text, "timestamp": [word.start_s, word.end_s]} for word in words]
    text = " ".join(word.text for word in words)
    return json.dumps({"text": text, "chunks": chunks}, indent=4, ensure_ascii=False) + "\n"


def _copy(sample: Path, folder: Path) -> None:
    """Copy a sample's files that are not there yet; each appears whole or not at all.

    Raises:
        OutputError: One cannot be written.
    """
    if sample.resolve() == folder.resolve():
        return
    for name in KEPT:
        source, path = sample / name, folder / name
        if not source.is_file():
            continue
        part = folder / f".{name}.{os.getpid()}.part"
        try:
            if path.is_file() and path.stat().st_size == source.stat().st_size:
                continue
            shutil.copyfile(source, part)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise write_error(path, error) from error
