"""Options of the nodes that come with the package: what config files may set.

Apart from the nodes, so that composing a configuration imports nothing that it does not need.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FileSourceOptions:
    """Which recordings are read.

    Attributes:
        path: A file, a glob, a folder, or a manifest: ``.jsonl`` with an object a line, or ``.csv``
            with these keys in its first line: ``path`` (relative to the manifest) and optionally
            ``id``, ``seed``, ``start_s``, ``duration_s`` and ``channel``. All of them may be
            addresses, such as ``s3://bucket/folder``.
        recursive: Look into sub-folders of a folder.
        channel: Use this channel only, from 0; null mixes all of them down.
    """

    path: str = "???"
    recursive: bool = False
    channel: int | None = None


@dataclass
class FdbSourceOptions:
    """Which samples of Full-Duplex-Bench are answered.

    Attributes:
        path: Folder of a sample, of a task, or of all tasks.
        clean: Also answer ``clean_input.wav`` of v1.5, the same words without an overlap.
    """

    path: str = "???"
    clean: bool = True


@dataclass
class SilenceSourceOptions:
    """How much silence.

    Attributes:
        duration_s: Length of each session, in seconds.
        count: Sessions.
        sample_rate: Hz.
    """

    duration_s: float = 10.0
    count: int = 1
    sample_rate: int = 24_000


@dataclass
class CodesSourceOptions:
    """Which files of codes are read.

    Attributes:
        path: A file, a glob or a folder.
        recursive: Look into sub-folders of a folder.
    """

    path: str = "???"
    recursive: bool = False


@dataclass
class FileSinkOptions:
    """How audio is written.

    Attributes:
        path: Name of the file under ``output_dir``; fields in braces come from the session.
        format: ``wav``, ``flac`` or ``ogg``.
        bits: Per sample: 16, or 32 for floating point in a WAV file, exact.
        output: Which side to write: ``audio`` is the model, ``user_audio`` what it heard.
        stereo: Write both sides: the model left, the user right.
    """

    path: str = "{stem}"
    format: str = "wav"
    bits: int = 16
    output: str = "audio"
    stereo: bool = False


@dataclass
class TranscriptSinkOptions:
    """How the transcript is written.

    Attributes:
        path: Name of the files under ``output_dir``, without their endings.
        formats: Any of ``jsonl`` (one word a line, with times), ``txt``, ``srt`` and ``vtt``.
        output: Which text: ``text`` of the model, or ``user_text`` where a graph hears the user.
    """

    path: str = "{stem}"
    formats: list[str] = field(default_factory=lambda: ["jsonl", "txt"])
    output: str = "text"


@dataclass
class UserTranscriptSinkOptions(TranscriptSinkOptions):
    """How what the user says is written, from a graph that hears it.

    Attributes:
        path: Name of the files under ``output_dir``, without their endings.
        formats: Any of ``jsonl`` (one word a line, with times), ``txt``, ``srt`` and ``vtt``.
        output: Which text.
    """

    path: str = "{stem}.user"
    output: str = "user_text"


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


@dataclass
class FdbSinkOptions:
    """How answers to Full-Duplex-Bench are written.

    Attributes:
        path: Name of the files under ``output_dir``, without their endings.
        sample_rate: Hz of the audio; null keeps the model's. The benchmark's scripts for
            back-channels take 16,000 for granted.
        transcript: Write the model's own words; else that is left to the benchmark's recogniser.
        copy: Copy inputs and annotations beside the answers.
    """

    path: str = "{task}/{sample}/{answer}"
    sample_rate: int | None = 16_000
    transcript: bool = True
    copy: bool = True


@dataclass
class SttOptions:
    """Which model for speech to text listens, beside the model that answers.

    Attributes:
        name: How it is called in messages.
        repo: Hub repository, ``owner/name``.
        revision: Branch, tag or commit of ``repo``.
        path: Folder with the model's files; goes before ``repo``.
        offline: Use only what the hub's cache holds.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        dtype: Of its weights: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    """

    name: str = "stt_1b_en_fr"
    repo: str | None = "kyutai/stt-1b-en_fr"
    revision: str | None = None
    path: str | None = None
    offline: bool = False
    device: str = "auto"
    dtype: str = "auto"


@dataclass
class MetricsSinkOptions:
    """What is measured, and what counts as speech.

    Attributes:
        path: Name of the file under ``output_dir``, without ``.metrics.json``.
        turns: When each side speaks, and how the floor passes between them.
        words: How much is said, and how fast.
        tokens: Entropy and padding of the tokens that the model makes.
        codec: What a codec loses: for a graph that is a codec's round trip.
        fdb: Scores of Full-Duplex-Bench: for ``source=fdb``.
        fdb_reference: JSON with the times at which people make back-channels, by sample, such as
            the benchmark's ``icc_gt_distribution.json``; null leaves that score out.
        vad: What tells speech from silence: ``silero``, ``energy``, or ``auto``, which is silero
            where it is installed.
        min_silence_ms: Shorter silence ends no stretch of speech.
        min_speech_ms: Shorter sounds are no speech.
        threshold: Silero's probability from which a window is speech.
    """

    path: str = "{id}"
    turns: bool = False
    words: bool = False
    tokens: bool = False
    codec: bool = False
    fdb: bool = False
    fdb_reference: str | None = None
    vad: str = "auto"
    min_silence_ms: float = 200.0
    min_speech_ms: float = 90.0
    threshold: float = 0.5


@dataclass
class MicOptions:
    """Which microphone is heard.

    Attributes:
        device: Index or part of the name, as ``moshi-pipe devices`` lists them; null is the
            system's default.
        sample_rate: Hz to open it at; null tries the model's, then the device's own.
        channels: Channels to open; null tries one, then all of the device.
        block_ms: What the device gives at a time, in ms.
        duration_s: Ends after so many seconds; null goes on until Ctrl-C.
    """

    device: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    block_ms: int = 20
    duration_s: float | None = None


@dataclass
class SpeakerOptions:
    """Which speaker plays, and how much it holds in reserve.

    Attributes:
        device: As of the microphone.
        sample_rate: Hz to open it at; null tries the model's, then the device's own.
        channels: Channels to open; null tries one, then all of the device.
        block_ms: What the device takes at a time, in ms.
        buffer_ms: How late a frame may come at first and still be played in time, in ms.
        buffer_min_ms: The reserve shrinks down to this while frames come in time.
        buffer_max_ms: It grows up to this when they do not.
    """

    device: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    block_ms: int = 20
    buffer_ms: float = 80.0
    buffer_min_ms: float = 20.0
    buffer_max_ms: float = 400.0


@dataclass
class DuplexOptions:
    """Microphone and speaker as one device, without the echo.

    Attributes:
        input_device: The microphone: index or part of the name; null is the system's default.
        output_device: The speaker, likewise.
        echo: ``cancel`` takes what the speaker plays out of what the microphone hears, ``duck``
            turns the microphone down while the speaker plays, ``off`` does neither.
        sample_rate: Hz of both; null is 24000.
        block_ms: What the devices give and take at a time, in ms; a multiple of 10.
        buffer_ms: As of the speaker.
        buffer_min_ms: As of the speaker.
        buffer_max_ms: As of the speaker.
        duration_s: Ends after so many seconds; null goes on until Ctrl-C.
    """

    input_device: str | None = None
    output_device: str | None = None
    echo: str = "cancel"
    sample_rate: int | None = None
    block_ms: int = 20
    buffer_ms: float = 80.0
    buffer_min_ms: float = 20.0
    buffer_max_ms: float = 400.0
    duration_s: float | None = None
