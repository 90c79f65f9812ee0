"""Sink ``metrics``: what is measured of a session, in ``<session>.metrics.json``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError, InputError
from moshi_pipe.graph.format import Audio, Codes
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.fdb_layout import ANSWERS, BACKCHANNEL, INPUT, Sample
from moshi_pipe.nodes.naming import output_path
from moshi_pipe.nodes.word_track import WordTrack
from moshi_pipe.report import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.metrics.activity import Activity, ActivityOptions, Detector
    from moshi_pipe.metrics.conversation import Conversation, Metrics
    from moshi_pipe.metrics.spans import Span
    from moshi_pipe.metrics.tokens import CodeCounts, TextCounts
    from moshi_pipe.nodes.options import MetricsSinkOptions

SUFFIX: Final = ".metrics.json"

_SIDES: Final = {"user_audio": "user", "audio": "model"}
_WRITERS: Final = {"user_text": "user", "text": "model"}
_OPTIONAL: Final = {
    "turns": ("user_audio", "audio", "text", "user_text"),
    "words": ("user_audio", "audio", "text", "user_text"),
    "tokens": ("text", "codes"),
    "codec": ("user_audio", "audio", "text"),
    "fdb": ("user_audio", "audio", "text"),
}
_MEASURED: Final = {
    "turns": ("user_audio", "audio"),
    "words": ("text", "user_text"),
    "tokens": ("text", "codes"),
}
"""Without any of these outputs a metric has no number; of the others, the graph or the source is
refused."""
_CODEC_S: Final = 600.0  # of a recording, so that an hour does not fill the memory


class MetricsSink(Sink):
    """Measures both sides of a session and writes one JSON file when it ends, whole or not at all.

    The file holds ``metrics`` (``{name: {"value": number or null, "unit": text}}``), ``turns`` and
    ``speech`` of each side that was listened to, ``events`` by kind, and ``words``, all in seconds
    on the time line of the input, which begins after ``lead_s``. A session that was cut
    short is measured as far as it went.

    What is kept until then is small: a number per 10 or 32 ms and side, words, and counts; with
    ``codec`` also the first ten minutes of both sides.

    Raises:
        ConfigError: An option has no such value, or a package that it needs is not installed.
    """

    def __init__(self, options: MetricsSinkOptions) -> None:
        from moshi_pipe.metrics.activity import choose_detector

        self.options = options
        self._detector = choose_detector(options.vad)
        _check(options)
        wanted = [name for name in _OPTIONAL if getattr(options, name)]
        self.optional = tuple(dict.fromkeys(one for name in wanted for one in _OPTIONAL[name]))
        self._session: SessionInfo | None = None
        self._voices: dict[str, _Voice] = {}
        self._words: dict[str, WordTrack] = {}
        self._text: TextCounts | None = None
        self._codes: CodeCounts | None = None
        self._codec: _RoundTrip | None = None
        self._sample: Sample | None = None
        self._reference: list[float] | None = None

    def outputs(self, session: SessionInfo) -> list[Path]:
        """The file."""
        return [output_path(self.options.path, session, SUFFIX)]

    async def open(self, session: SessionInfo) -> None:
        """Get ready to measure what the graph makes.

        Raises:
            ConfigError: The graph makes nothing that could be measured; ``codec`` is asked for and
                the graph is more than a codec; ``fdb`` is, and the session is no sample of it.
            InputError: The annotation or the reference of ``fdb`` cannot be read.
        """
        from moshi_pipe.metrics.activity import make_detector

        options, formats = self.options, session.formats
        there = [name for name in self.optional if name in formats]
        if not there:
            raise ConfigError(
                "sink=metrics has nothing to measure: the graph makes none of its outputs",
                wanted=", ".join(self.optional),
                fix="leave it out, or choose graph=dialogue",
            )
        self._session = session
        if options.codec:
            self._codec = _round_trip(session)
        if options.fdb:
            self._sample = _sample(session)
            self._sample.event_s()  # a wrong annotation is told before the model runs
            self._reference = _reference(options.fdb_reference, self._sample)
        listens = options.turns or options.words or options.fdb
        for output, side in _SIDES.items() if listens else ():
            form = formats.get(output)
            if output in self.optional and isinstance(form, Audio):
                detector = make_detector(self._detector, form.sample_rate, options.threshold)
                self._voices[output] = _Voice(side, detector, form.frame_size)
        for output in _WRITERS if listens else ():
            if output in formats and session.reader(output) is not None:
                self._words[output] = WordTrack(session, output)
        reader = session.reader("text")
        if options.tokens and reader is not None and "text" in formats:
            from moshi_pipe.metrics.tokens import TextCounts

            self._text = TextCounts(reader.tokenizer.padding_id)
        codes = formats.get("codes")
        if options.tokens and isinstance(codes, Codes):
            from moshi_pipe.metrics.tokens import CodeCounts

            self._codes = CodeCounts(codes.num_codebooks, codes.cardinality)

    async def write(self, packet: Packet) -> None:
        """Take one frame of one output."""
        import numpy as np

        if packet.output in _WRITERS:
            if packet.output in self._words:
                self._words[packet.output].push(int(packet.payload), packet.frame)
            has_id = int(packet.payload) >= 0  # those of a remote model have none
            if packet.output == "text" and self._text is not None and has_id:
                self._text.add(int(packet.payload))
        elif packet.output == "codes":
            if self._codes is not None:
                self._codes.add(np.asarray(packet.payload))
        else:
            samples_N = np.asarray(packet.payload, dtype=np.float32)[0]
            if packet.output in self._voices:
                self._voices[packet.output].push(packet.frame, samples_N)
            if self._codec is not None:
                self._codec.push(packet.output, packet.frame, samples_N)

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Write the file, but for a session that ended before its first frame.

        Raises:
            OutputError: The disk does not take it.
        """
        session = self._session
        if session is None:
            return {}
        if not end.num_frames:
            return {"sink": "metrics", "files": [], "metrics": 0}
        heard = self._heard(session, end)
        found = self._measure(heard)
        if self._sample is not None:
            found |= self._score(session, self._sample, heard)
        path = self.outputs(session)[0]
        write_atomically(path, _to_text(self._record(session, heard, found)))
        said = {"sink": "metrics", "files": [str(path)], "metrics": len(found)}
        idle = self._idle(session)
        return {**said, "warnings": idle} if idle else said

    def _idle(self, session: SessionInfo) -> list[str]:
        """What was asked for, and nothing of this graph could say."""
        return [
            f"metric={name} measured nothing: the graph makes none of {', '.join(outputs)}"
            for name, outputs in _MEASURED.items()
            if getattr(self.options, name) and not set(outputs) & set(session.formats)
        ]

    def _heard(self, session: SessionInfo, end: SessionEnd) -> Conversation:
        """Both sides on the time line of the input."""
        from moshi_pipe.metrics.conversation import Conversation

        end_s = end.num_frames * session.frame_s - end.padding_s - session.lead_s
        heard = Conversation(max(0.0, end_s))
        for voice in self._voices.values():
            voice.finish(end.num_frames)
            speech = voice.speech(_activity(self.options), session.lead_s, heard.duration_s)
            setattr(heard, f"{voice.side}_speech", speech)
        for output, track in self._words.items():
            setattr(heard, f"{_WRITERS[output]}_words", track.finish())
        return heard

    def _measure(self, heard: Conversation) -> Metrics:
        from moshi_pipe.metrics.conversation import turn_events, turn_metrics, word_metrics

        found: Metrics = {}
        if self.options.turns:
            found |= turn_metrics(heard, turn_events(heard))
        if self.options.words:
            found |= word_metrics(heard)
        found |= self._token_metrics()
        if self._codec is not None:
            found |= self._codec.measure()
        return found

    def _score(self, session: SessionInfo, sample: Sample, heard: Conversation) -> Metrics:
        """What the benchmark says of an answer, while its input lasts."""
        from moshi_pipe.metrics.duplex_bench import SPEECH, Answer, score

        meta, duration_s = session.meta, heard.duration_s
        if "num_samples" in meta:
            duration_s = min(duration_s, meta["num_samples"] / meta["sample_rate"])
        speech = {
            voice.side: voice.speech(SPEECH, session.lead_s, duration_s)
            for voice in self._voices.values()
        }
        answer = Answer(
            sample.kind,
            sample.event_s() if meta["answer"] == ANSWERS[INPUT] else None,
            duration_s,
            [word for word in heard.model_words or [] if word.start_s < duration_s],
            speech.get("user", []),
            speech.get("model", []),
            self._reference,
        )
        return score(answer)

    def _token_metrics(self) -> Metrics:
        found: Metrics = {}
        if self._text is not None:
            found["text_padding_rate"] = self._text.padding_rate, "of frames"
            found["text_entropy_bits"] = self._text.entropy_bits, "bit"
        if self._codes is not None:
            bits = self._codes.entropy_bits
            known = [one for one in bits if one is not None]
            found["semantic_code_entropy_bits"] = bits[0] if bits else None, "bit"
            found["code_entropy_bits"] = sum(known) / len(known) if known else None, "bit"
            found["code_usage"] = self._codes.usage, "of all codes"
        return found

    def _record(self, session: SessionInfo, heard: Conversation, found: Metrics) -> dict[str, Any]:
        from moshi_pipe.metrics.conversation import spans_to_json, to_json, turn_events

        record: dict[str, Any] = {
            "session": session.id,
            "seed": session.seed,
            "duration_s": round(heard.duration_s, 4),
            "lead_s": session.lead_s,
            "metrics": to_json(found),
        }
        if self._voices:
            listened = [voice.side for voice in self._voices.values()]
            record["turns"] = {
                side: spans_to_json(getattr(heard, f"{side}_turns")) for side in listened
            }
            record["vad"] = {
                "detector": self._detector,
                "min_silence_ms": self.options.min_silence_ms,
                "min_speech_ms": self.options.min_speech_ms,
                "threshold": self.options.threshold,
            }
            record["speech"] = {
                side: spans_to_json(getattr(heard, f"{side}_speech") or []) for side in listened
            }
            events = turn_events(heard)
            record["events"] = {
                one.name: spans_to_json(getattr(events, one.name)) for one in fields(events)
            }
        said = {"user": heard.user_words, "model": heard.model_words}
        record["words"] = {
            side: [[one.start_s, one.end_s, one.text] for one in words]
            for side, words in said.items()
            if words is not None
        }
        return record


def _to_text(record: Mapping[str, Any]) -> str:
    """JSON with a line per metric, and per kind of span or word."""

    def one(name: str, value: Any, indent: str) -> str:
        return f"{indent}{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"

    parts = []
    for name, value in record.items():
        if isinstance(value, dict) and value:
            inside = ",\n".join(one(key, item, "  ") for key, item in value.items())
            parts.append(f" {json.dumps(name)}: {{\n{inside}\n }}")
        else:
            parts.append(one(name, value, " "))
    return "{\n" + ",\n".join(parts) + "\n}\n"


class _Voice:
    """One speaker's audio, silence for frames that did not come."""

    def __init__(self, side: str, detector: Detector, frame_size: int) -> None:
        import numpy as np

        self.side = side
        self._detector = detector
        self._silence_N = np.zeros(frame_size, np.float32)
        self._num_frames = 0
        self._activity: Activity | None = None

    def push(self, frame: int, samples_N: npt.NDArray[np.float32]) -> None:
        self._fill(frame)
        self._detector.push(samples_N)
        self._num_frames += 1

    def finish(self, num_frames: int) -> None:
        self._fill(num_frames)
        self._activity = self._detector.finish()

    def speech(self, options: ActivityOptions, lead_s: float, end_s: float) -> list[Span]:
        """Stretches of speech on the time line of the input, up to ``end_s``."""
        from moshi_pipe.metrics.spans import shifted

        return (
            [] if self._activity is None else shifted(self._activity.spans(options), lead_s, end_s)
        )

    def _fill(self, frame: int) -> None:
        while self._num_frames < frame:
            self._detector.push(self._silence_N)
            self._num_frames += 1


class _RoundTrip:
    """What went into a codec, and what came out."""

    def __init__(self, sample_rate: int, frame_size: int) -> None:
        self._sample_rate = sample_rate
        self._most_frames = int(_CODEC_S * sample_rate) // frame_size
        self._sides: dict[str, dict[int, npt.NDArray[np.float32]]] = {one: {} for one in _SIDES}

    def push(self, output: str, frame: int, samples_N: npt.NDArray[np.float32]) -> None:
        if frame < self._most_frames:
            self._sides[output][frame] = samples_N.copy()

    def measure(self) -> Metrics:
        """Compare the frames that both sides have."""
        import numpy as np

        from moshi_pipe.metrics import sound

        both = sorted(self._sides["audio"].keys() & self._sides["user_audio"].keys())
        if not both:
            return {}
        made_N = np.concatenate([self._sides["audio"][frame] for frame in both])
        given_N = np.concatenate([self._sides["user_audio"][frame] for frame in both])
        rate = self._sample_rate
        return {
            "log_mel_distance_db": (sound.log_mel_distance_db(made_N, given_N, rate), "dB"),
            "si_sdr_db": (sound.si_sdr_db(made_N, given_N), "dB"),
            "stoi": (sound.stoi(made_N, given_N, rate), "0 to 1"),
            "pesq": (sound.pesq(made_N, given_N, rate), "MOS-LQO"),
        }


def _round_trip(session: SessionInfo) -> _RoundTrip:
    """See that what comes out of the graph is what a codec made of what went in."""
    form = session.formats.get("audio")
    heard = session.formats.get("user_audio")
    if "text" in session.formats or not isinstance(form, Audio) or form != heard:
        raise ConfigError(
            "metric=codec compares what goes into a codec with what comes out of it",
            got="a graph that does something else",
            fix="choose graph=codec, or leave metric=codec out",
        )
    return _RoundTrip(form.sample_rate, form.frame_size)


def _sample(session: SessionInfo) -> Sample:
    """The sample of Full-Duplex-Bench that a session is."""
    if "folder" not in session.meta or "answer" not in session.meta:
        raise ConfigError(
            "metric=fdb scores samples of Full-Duplex-Bench",
            got="a session that is none",
            fix="choose source=fdb, or leave metric=fdb out",
        )
    return Sample(Path(session.meta["folder"]))


def _reference(path: str | None, sample: Sample) -> list[float] | None:
    """When people make back-channels in a sample; None where that is not known."""
    if path is None or sample.kind != BACKCHANNEL:
        return None
    try:
        given = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        found = given.get(sample.name)
        return None if found is None else [float(one) for one in found]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot read the reference {path}",
            got=str(error),
            wanted='{"SAMPLE": [share of listeners in each window, ...], ...}',
            fix="set sink.metrics.fdb_reference=null to leave this score out",
        ) from error


def _activity(options: MetricsSinkOptions) -> ActivityOptions:
    from moshi_pipe.metrics.activity import ActivityOptions

    return ActivityOptions(options.min_silence_ms / 1000, options.min_speech_ms / 1000)


def _check(options: MetricsSinkOptions) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ConfigError: Names the first one.
    """
    for name, right, wanted in (
        ("min_silence_ms", options.min_silence_ms >= 0, "0 or more"),
        ("min_speech_ms", options.min_speech_ms >= 0, "0 or more"),
        ("threshold", 0.15 < options.threshold < 1, "above 0.15 and below 1"),
    ):
        if not right:
            raise ConfigError(
                f"sink.metrics.{name} cannot be {getattr(options, name)}", wanted=wanted
            )
    if not any(getattr(options, name) for name in _OPTIONAL):
        raise ConfigError(
            "sink=metrics is to measure nothing",
            wanted=f"one of {', '.join(_OPTIONAL)}",
            fix="choose metric=turns, or leave the sink out",
        )
