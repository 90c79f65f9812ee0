"""Options of the nodes that come with the package: what config files may set.

Apart from the nodes, so that composing a configuration imports nothing that it does not need.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FileSourceOptions:
    """Which recordings are read.

    Attributes:
        path: A file, a glob, a folder, or a ``.jsonl`` manifest: one object a line with ``path``
            (relative to the manifest) and optionally ``id``, ``seed``, ``start_s``, ``duration_s``
            and ``channel``.
        recursive: Look into sub-folders of a folder.
        channel: Use this channel only, from 0; null mixes all of them down.
    """

    path: str = "???"
    recursive: bool = False
    channel: int | None = None


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
        output: Which side to write: ``audio`` is the model, ``user_audio`` what it heard.
        stereo: Write both sides: the model left, the user right.
    """

    path: str = "{stem}"
    format: str = "wav"
    output: str = "audio"
    stereo: bool = False


@dataclass
class TranscriptSinkOptions:
    """How the transcript is written.

    Attributes:
        path: Name of the files under ``output_dir``, without their endings.
        formats: Any of ``jsonl`` (one word a line, with times), ``txt``, ``srt`` and ``vtt``.
    """

    path: str = "{stem}"
    formats: list[str] = field(default_factory=lambda: ["jsonl", "txt"])


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
