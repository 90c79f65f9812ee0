"""Sink ``transcript``: what the model said."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from support.disk import kill_after_ready, small_disk
from support.nodes import AUDIO, session_info
from support.tokens import PAD, START, WordTokenizer, ids

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.graph.format import Text
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.options import TranscriptSinkOptions
from moshi_pipe.nodes.transcript_sink import TranscriptSink

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moshi_pipe.graph.node import SessionInfo

ALL = ["jsonl", "txt", "srt", "vtt"]
SPOKEN = ids(
    *(PAD, START, "▁Hello", START, "▁wor", "ld", ".", PAD),
    *(START, "▁caf", "é".encode(), "s", "?"),
    *[PAD] * 20,
    *("▁a<b>&", START, "▁", "😀".encode(), PAD),
)


def session(folder: Path, **changes: Any) -> SessionInfo:
    info = session_info("talk", folder, {"text": Text(300, Fraction(25, 2))})
    return replace(info, **{"frame_s": 0.08, "tokenizer": WordTokenizer(), **changes})


def run(info: SessionInfo, spoken: list[int], **options: Any) -> Mapping[str, Any]:
    async def write() -> Mapping[str, Any]:
        sink = TranscriptSink(TranscriptSinkOptions(**options))
        await sink.open(info)
        try:
            for frame, token in enumerate(spoken):
                await sink.write(Packet("text", frame, frame * 80_000_000, token))
        except OutputError:
            with suppress(OutputError):
                await sink.close(SessionEnd(len(spoken), complete=False))
            raise
        return await sink.close(SessionEnd(len(spoken), complete=True))

    return asyncio.run(write())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_format_says_the_same(tmp_path: Path) -> None:
    report = run(session(tmp_path), SPOKEN, formats=ALL)
    words = rows(tmp_path / "talk.jsonl")
    assert [(word["start_s"], word["end_s"], word["text"]) for word in words] == [
        (0.16, 0.24, "Hello"),
        (0.32, 0.56, "world."),
        (0.72, 1.12, "cafés?"),
        (2.72, 2.8, "a<b>&"),
        (2.88, 3.28, "😀"),
    ]
    pieces = [(token["piece"], token["time_s"]) for token in words[1]["tokens"]]
    assert pieces == [("▁wor", 0.32), ("ld", 0.4), (".", 0.48)]
    assert (tmp_path / "talk.txt").read_text("utf-8") == "Hello world. cafés? a<b>& 😀\n"
    assert (tmp_path / "talk.srt").read_text("utf-8") == (
        "1\n00:00:00,160 --> 00:00:00,560\nHello world.\n\n"
        "2\n00:00:00,720 --> 00:00:01,120\ncafés?\n\n"
        "3\n00:00:02,720 --> 00:00:03,280\na<b>& 😀\n\n"
    )
    assert (tmp_path / "talk.vtt").read_text("utf-8") == (
        "WEBVTT\n\n"
        "00:00:00.160 --> 00:00:00.560\nHello world.\n\n"
        "00:00:00.720 --> 00:00:01.120\ncafés?\n\n"
        "00:00:02.720 --> 00:00:03.280\na&lt;b&gt;&amp; 😀\n\n"
    )
    assert report == {
        "sink": "transcript",
        "files": [str(tmp_path / f"talk.{name}") for name in ALL],
        "words": 5,
        "tokens": 15,
    }


def test_nothing_said_leaves_valid_files(tmp_path: Path) -> None:
    run(session(tmp_path), [PAD, START, PAD], formats=ALL)
    contents = {name: (tmp_path / f"talk.{name}").read_text() for name in ALL}
    assert contents == {"jsonl": "", "txt": "\n", "srt": "", "vtt": "WEBVTT\n\n"}


def test_times_leave_out_the_lead_and_the_delay_of_text(tmp_path: Path) -> None:
    info = session(tmp_path, lead_s=0.16, text_delay_s=0.08)
    run(info, ids("▁Hello", PAD, PAD, START, "▁day", PAD), formats=["jsonl", "srt"])
    lines = (tmp_path / "talk.jsonl").read_text().splitlines()
    hello, day = ids("▁Hello", "▁day")
    assert [json.loads(line) for line in lines] == [
        {
            "start_s": 0.0,
            "end_s": 0.0,
            "text": "Hello",
            "tokens": [{"token": hello, "piece": "▁Hello", "time_s": 0.0}],
        },
        {
            "start_s": 0.08,
            "end_s": 0.16,
            "text": "day",
            "tokens": [{"token": day, "piece": "▁day", "time_s": 0.08}],
        },
    ]
    assert (tmp_path / "talk.srt").read_text() == (
        "1\n00:00:00,000 --> 00:00:00,160\nHello day\n\n"
    )


def test_a_cue_lasts_a_moment_even_where_its_words_do_not(tmp_path: Path) -> None:
    run(session(tmp_path, text_delay_s=1.0), ids("▁Hello"), formats=["srt"])
    assert "00:00:00,000 --> 00:00:00,040" in (tmp_path / "talk.srt").read_text()


def test_a_cue_ends_when_it_is_full_long_or_followed_by_a_pause(tmp_path: Path) -> None:
    many = ids(*["▁Hello"] * 40)
    run(session(tmp_path), many, formats=["srt"])
    texts = (tmp_path / "talk.srt").read_text().split("\n\n")
    assert [len(text.split("\n")[2]) for text in texts[:-1]] == [83, 83, 71]
    slow = [token for _ in range(12) for token in ids("▁Hello", *[PAD] * 11)]
    run(session(tmp_path), slow, formats=["srt"])
    assert (tmp_path / "talk.srt").read_text().count("-->") == 2
    paused = ids("▁Hello", *[PAD] * 14, "▁Hello")
    run(session(tmp_path), paused, formats=["srt"])
    assert (tmp_path / "talk.srt").read_text().count("-->") == 2


def test_hours_are_written_in_full(tmp_path: Path) -> None:
    info = session(tmp_path, frame_s=3700.0)
    run(info, ids(PAD, "▁Hello"), formats=["vtt"])
    assert "01:01:40.000 --> 02:03:20.000" in (tmp_path / "talk.vtt").read_text()


def test_a_word_is_on_disk_as_soon_as_it_is_whole(tmp_path: Path) -> None:
    async def write() -> list[int]:
        sink = TranscriptSink(TranscriptSinkOptions(formats=ALL))
        await sink.open(session(tmp_path))
        for frame, token in enumerate(ids("▁Hello", START, "▁wor", "ld", START)):
            await sink.write(Packet("text", frame, 0, token))
        seen = [(tmp_path / f"talk.{name}").read_text().count("world") for name in ALL]
        await sink.close(SessionEnd(5, complete=False))
        return seen

    assert asyncio.run(write()) == [1, 1, 1, 1]


def test_a_format_named_twice_is_written_once(tmp_path: Path) -> None:
    report = run(session(tmp_path), ids("▁Hello"), formats=["txt", "txt"])
    assert report["files"] == [str(tmp_path / "talk.txt")]
    assert (tmp_path / "talk.txt").read_text() == "Hello\n"


def test_an_unknown_format_gives_the_closest() -> None:
    with pytest.raises(ConfigError) as caught:
        TranscriptSink(TranscriptSinkOptions(formats=["json"]))
    assert str(caught.value) == (
        "sink.transcript.formats has no such format\n"
        "  got:    json\n"
        "  wanted: did you mean 'jsonl'? (there are: jsonl, srt, txt, vtt)"
    )


def test_a_graph_without_text_is_refused(tmp_path: Path) -> None:
    info = session(tmp_path, formats={"audio": AUDIO})
    with pytest.raises(ConfigError, match="sink=transcript needs the output 'text'"):
        run(info, [])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "talk.txt").mkdir()
    with pytest.raises(OutputError, match="cannot write") as caught:
        run(session(tmp_path), [])
    assert "Is a directory" in str(caught.value)


def test_a_session_that_failed_before_its_first_frame_leaves_nothing(tmp_path: Path) -> None:
    async def fail() -> Mapping[str, Any]:
        sink = TranscriptSink(TranscriptSinkOptions(formats=ALL))
        await sink.open(session(tmp_path))
        return await sink.close(SessionEnd(0, complete=False))

    assert asyncio.run(fail())["files"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_never_opened_closes_quietly() -> None:
    assert (
        asyncio.run(TranscriptSink(TranscriptSinkOptions()).close(SessionEnd(3, complete=False)))
        == {}
    )


def test_a_kill_leaves_whole_lines_and_cues(tmp_path: Path) -> None:
    code = """
import asyncio, sys, time
from fractions import Fraction
from pathlib import Path
from moshi_pipe.graph.format import Text
from moshi_pipe.graph.node import SessionInfo
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.transcript_sink import TranscriptSink
from moshi_pipe.nodes.options import TranscriptSinkOptions
from support.tokens import WordTokenizer, ids

async def run():
    options = TranscriptSinkOptions(formats=["jsonl", "txt", "srt", "vtt"])
    sink = TranscriptSink(options)
    formats = {"text": Text(300, Fraction(25, 2))}
    tokenizer = WordTokenizer()
    await sink.open(
        SessionInfo("talk", {}, Path(sys.argv[1]), formats, 0.08, 0, tokenizer=tokenizer)
    )
    for frame, token in enumerate(ids("▁Hello", "▁wor", "ld", "▁New", "▁day")):
        await sink.write(Packet("text", frame, 0, token))
    print("ready", flush=True)
    time.sleep(60)

asyncio.run(run())
""".replace("{}", '{"stem": "talk"}')
    kill_after_ready(code, tmp_path)
    lines = [row["text"] for row in rows(tmp_path / "talk.jsonl")]
    assert lines == ["Hello", "world", "New"]
    assert (tmp_path / "talk.txt").read_text() == "Hello world New"
    assert (tmp_path / "talk.srt").read_text() == (
        "1\n00:00:00,000 --> 00:00:00,320\nHello world New\n\n"
    )
    assert (tmp_path / "talk.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:00.320\nHello world New\n\n"
    )


@pytest.mark.parametrize("kind", ALL)
def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        with pytest.raises(OutputError) as caught:
            run(session(disk), ids(*["▁Hello"] * 5000), formats=[kind])
        assert caught.value.what == f"cannot write {disk / f'talk.{kind}'}"
        assert str(caught.value.got).startswith("No space left on device")
        text = (disk / f"talk.{kind}").read_text()
        assert len(text) > 8000
        if kind == "jsonl":
            assert {json.loads(line)["text"] for line in text.splitlines()} == {"Hello"}
        elif kind == "txt":
            assert set(text.split(" ")) == {"Hello"}
        else:
            assert text.endswith("Hello\n\n")
