"""Whether a source and a sink keep the promises of :mod:`moshi_pipe.graph.node`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.graph.format import Audio, Codes, Format, Text
from moshi_pipe.graph.node import SessionEnd, SessionInfo, SessionInput, Sink, Source
from moshi_pipe.graph.packet import Packet
from moshi_pipe.testing.conformance import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_RATE = 24_000
_FRAME = 1_920
_FORMATS: dict[str, Format] = {
    "audio": Audio(_RATE, _FRAME),
    "user_audio": Audio(_RATE, _FRAME),
    "codes": Codes(8, 2_048, Fraction(25, 2)),
    "user_codes": Codes(8, 2_048, Fraction(25, 2)),
    "text": Text(32_000, Fraction(25, 2)),
}
_UNSAFE = '/\\:*?"<>|\0'
_LOUDEST = 1.0 + 1e-6


def check_source(
    make: Callable[[], Source], *, max_chunks: int = 200, timeout_s: float = 10.0
) -> None:
    """Check a source: its sessions, the form of what they yield, how they stop and close.

    Args:
        make: Constructs the source; called several times.
        max_chunks: After so many chunks a session's input is closed, or stopped if it is live.
        timeout_s: Longest that the next chunk, or the end after :meth:`Source.stop`, may take.

    Raises:
        ConformanceError: A promise is broken.
    """
    source = make()
    require(isinstance(source, Source), "it is no Source", got=type(source).__name__)
    require(source.gives in ("audio", "codes"), "a source gives audio or codes", got=source.gives)
    require(
        not isinstance(source.takes, str) and all(isinstance(t, str) for t in source.takes),
        "takes is no sequence of names",
        got=repr(source.takes),
    )
    for name, key in source.keys().items():
        require(len(name) == 1 and callable(key.press), "a key cannot be pressed", got=name)
    asyncio.run(_check_sessions(make, max_chunks, timeout_s))
    asyncio.run(_check_closing(make, timeout_s))
    asyncio.run(_check_stop(make, timeout_s))


async def _check_sessions(make: Callable[[], Source], max_chunks: int, timeout_s: float) -> None:
    source = make()
    expected = source.num_sessions()
    before = asyncio.all_tasks()
    ids: list[str] = []
    async with aclosing(source.sessions()) as sessions:  # type: ignore[type-var]
        async for item in _timed(sessions, timeout_s, "the next session"):
            _check_input(item, ids)
            ids.append(item.id)
            await _check_chunks(source, item, max_chunks, timeout_s)
            _check_report(f"the report of session {item.id}", item.report())
            if source.live and len(ids) >= (expected or 1):
                break
    require(ids, "the source gives no session", wanted="one, or an InputError with the reason")
    if expected is not None and not source.live:
        require(
            len(ids) == expected,
            "num_sessions does not say how many sessions come",
            got=f"{len(ids)} came",
            wanted=str(expected),
        )
    source.stop()
    _check_no_tasks(before)


def _check_input(item: SessionInput, ids: Sequence[str]) -> None:
    require(isinstance(item, SessionInput), "a session is no SessionInput", got=type(item).__name__)
    require(isinstance(item.id, str) and item.id, "a session has no id", got=repr(item.id))
    require(item.id not in ids, "two sessions have the same id", got=item.id)
    require(
        not set(item.id) & set(_UNSAFE) and item.id.strip(". ") == item.id,
        "the id of a session is not safe as a file name",
        got=repr(item.id),
    )
    require(isinstance(item.meta, Mapping), "meta is no mapping", got=item.meta)
    require(isinstance(item.meta.get("stem"), str), "meta has no text 'stem'", got=dict(item.meta))


async def _check_chunks(
    source: Source, item: SessionInput, max_chunks: int, timeout_s: float
) -> None:
    """The form of what one session yields; ends it early if it does not end."""
    kept: list[tuple[Any, Any]] = []
    total, rows, ended, delivered_ns = 0, None, True, -1
    async with aclosing(item.chunks()) as stream:  # type: ignore[type-var]
        async for chunk in _timed(stream, timeout_s, f"the next chunk of session {item.id}"):
            _check_chunk(chunk, source.gives, rows)
            rows = chunk.shape[0]
            total += chunk.shape[1]
            kept.append((chunk, chunk.copy()))
            if item.delivered_ns is not None:
                require(item.delivered_ns >= delivered_ns, "delivered_ns goes back")
                delivered_ns = item.delivered_ns
            if len(kept) >= max_chunks:
                ended = False
                break
    rate = getattr(item, "sample_rate", None)
    if source.gives == "audio":
        require(isinstance(rate, int) and rate > 0, "sample_rate is no number of Hz", got=rate)
        number = item.num_samples
        if ended and number is not None:
            require(
                total == number,
                f"num_samples of session {item.id} is not what comes",
                got=f"{total} samples came",
                wanted=str(number),
            )
    for chunk, copy in kept:
        require(
            np.array_equal(chunk, copy),
            "a chunk changes after it was yielded",
            wanted="an array of its own per chunk: the edge keeps them for a while",
        )
    wrong = [said for said in item.warnings if not isinstance(said, str)]
    require(not wrong, "a warning is no text", got=wrong)


def _check_chunk(chunk: Any, gives: str, rows: int | None) -> None:
    require(isinstance(chunk, np.ndarray), "a chunk is no numpy array", got=type(chunk).__name__)
    form = "float32 [channels, samples]" if gives == "audio" else "whole numbers [K, frames]"
    right = chunk.dtype == np.float32 if gives == "audio" else chunk.dtype.kind in "iu"
    require(
        right and chunk.ndim == 2 and chunk.shape[0] >= 1,
        "a chunk has a wrong form",
        got=f"{chunk.dtype} {list(chunk.shape)}",
        wanted=form,
    )
    require(
        rows is None or chunk.shape[0] == rows,
        "the number of channels changes within a session",
        got=f"{rows}, then {chunk.shape[0]}",
    )
    if gives == "audio" and chunk.size:
        require(np.isfinite(chunk).all(), "a chunk holds numbers that are not finite")
        peak = float(np.abs(chunk).max())
        require(peak <= _LOUDEST, "audio leaves [-1, 1]", got=f"a sample of {peak:.3g}")


async def _check_closing(make: Callable[[], Source], timeout_s: float) -> None:
    """An input that is closed after its first chunk leaves nothing running."""
    before = asyncio.all_tasks()
    source = make()
    async with aclosing(source.sessions()) as sessions:  # type: ignore[type-var]
        async for item in _timed(sessions, timeout_s, "the first session"):
            async with aclosing(item.chunks()) as stream:
                async for _ in _timed(stream, timeout_s, "the first chunk"):
                    break
            break
    source.stop()
    _check_no_tasks(before)


async def _check_stop(make: Callable[[], Source], timeout_s: float) -> None:
    """Live: what is heard ends soon after ``stop``, and no further session comes."""
    source = make()
    if not source.live:
        return
    async with aclosing(source.sessions()) as sessions:  # type: ignore[type-var]
        async for item in _timed(sessions, timeout_s, "the first session"):
            stopped = False
            async for _ in _timed(item.chunks(), timeout_s, "the end after stop()"):
                if not stopped:
                    source.stop()
                    stopped = True


def _check_no_tasks(before: set[asyncio.Task[Any]]) -> None:
    left = [task for task in asyncio.all_tasks() - before if not task.done()]
    require(
        not left,
        "the source leaves tasks running when it is closed",
        got=", ".join(task.get_name() for task in left),
        wanted="what chunks() starts ends when its iteration is closed",
    )


async def _timed(stream: AsyncIterator[Any], timeout_s: float, what: str) -> AsyncIterator[Any]:
    """Yield what a stream yields; refuses one that keeps us waiting."""
    while True:
        try:
            item = await asyncio.wait_for(anext(stream), timeout_s)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            require(False, f"{what} does not come", got=f"nothing for {timeout_s:g} s")
        yield item


def check_sink(
    make: Callable[[], Sink],
    *,
    formats: Mapping[str, Format] | None = None,
    tokenizer: Any = None,
    num_frames: int = 5,
) -> None:
    """Check a sink: calls in order, gaps, sessions that are empty or failed, two at once, files.

    Args:
        make: Constructs the sink; called several times.
        formats: Outputs of the graph and their formats; the usual five where not given.
        tokenizer: For sinks of text; see :class:`moshi_pipe.graph.node.TextTokenizer`.
        num_frames: Frames of a session.

    Raises:
        ConformanceError: A promise is broken.
    """
    formats = dict(_FORMATS if formats is None else formats)
    sink = make()
    require(isinstance(sink, Sink), "it is no Sink", got=type(sink).__name__)
    for name in ("takes", "optional"):
        named = getattr(sink, name)
        require(
            not isinstance(named, str) and all(isinstance(t, str) for t in named),
            f"{name} is no sequence of names",
            got=repr(named),
        )
    unknown = [output for output in sink.takes if output not in formats]
    require(not unknown, "it takes what no graph makes", got=unknown, wanted=", ".join(formats))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check = _SinkCheck(make, formats, tokenizer, folder, num_frames)
        asyncio.run(check.whole_session())
        asyncio.run(check.session_without_frames())
        asyncio.run(check.session_that_failed())
        asyncio.run(check.two_at_once())


class _SinkCheck:
    def __init__(
        self,
        make: Callable[[], Sink],
        formats: Mapping[str, Format],
        tokenizer: Any,
        folder: Path,
        num_frames: int,
    ) -> None:
        self.make = make
        self.formats = formats
        self.tokenizer = tokenizer
        self.folder = folder
        self.num_frames = num_frames

    def info(self, name: str) -> SessionInfo:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        meta = {"stem": name, "index": 0, "name": f"{name}.wav", "parent": "."}
        return SessionInfo(
            id=name,
            meta=meta,
            output_dir=folder,
            formats=self.formats,
            frame_s=0.08,
            seed=1,
            tokenizer=self.tokenizer,
        )

    async def whole_session(self) -> None:
        """A session with a gap in it: frame numbers rise but may skip."""
        sink, info = self.make(), self.info("whole")
        await sink.open(info)
        for frame in range(self.num_frames):
            if frame != 1:
                await self.write(sink, frame)
        await self.close(sink, info, SessionEnd(self.num_frames, padding_s=0.01))

    async def session_without_frames(self) -> None:
        sink, info = self.make(), self.info("empty")
        await sink.open(info)
        await self.close(sink, info, SessionEnd(0))

    async def session_that_failed(self) -> None:
        sink, info = self.make(), self.info("failed")
        await sink.open(info)
        await self.write(sink, 0)
        _check_report("close of a failed session", await sink.close(SessionEnd(1, complete=False)))

    async def two_at_once(self) -> None:
        """Two sessions of one run write into one folder, and in turn."""
        sinks = self.make(), self.make()
        first = self.info("one")
        second = SessionInfo(
            **{
                **{name: getattr(first, name) for name in SessionInfo.__dataclass_fields__},
                "id": "two",
                "meta": {**first.meta, "stem": "two", "name": "two.wav", "index": 1},
            }
        )
        files = [sink.outputs(info) for sink, info in zip(sinks, (first, second), strict=True)]
        require(
            not set(files[0]) & set(files[1]),
            "two sessions write into the same file",
            got=[str(path) for path in files[0]],
            wanted="names that follow from the session: its id, or meta",
        )
        for sink, info in zip(sinks, (first, second), strict=True):
            await sink.open(info)
        for frame in range(self.num_frames):
            for sink in sinks:
                await self.write(sink, frame)
        for sink, info in zip(sinks, (first, second), strict=True):
            await self.close(sink, info, SessionEnd(self.num_frames))

    async def write(self, sink: Sink, frame: int) -> None:
        for output, form in self.formats.items():
            if output in sink.takes or output in sink.optional:
                payload = _payload(form, frame)
                kept = np.array(payload)
                await sink.write(Packet(output, frame, frame * 80_000_000, payload))
                require(
                    np.array_equal(kept, payload),
                    f"the sink changes the packet of '{output}', which other sinks get too",
                )

    async def close(self, sink: Sink, info: SessionInfo, end: SessionEnd) -> None:
        said = await sink.close(end)
        _check_report("close", said)
        _check_files(said, sink.outputs(info))


def _check_files(said: Mapping[str, Any], outputs: Sequence[Path]) -> None:
    """What a sink says that it wrote, and would write, must be there."""
    for file in said.get("files", ()):
        require(Path(file).is_absolute(), "close names a file without its folder", got=file)
        require(Path(file).is_file(), "close names a file that is not there", got=file)
    missing = [str(path) for path in outputs if not path.is_file()]
    require(
        not missing,
        "outputs() names files that are not there after a whole session",
        got=", ".join(missing),
        wanted="only files that a whole session leaves: the run is resumed by them",
    )


def _check_report(what: str, said: Any) -> None:
    require(isinstance(said, Mapping), f"{what} is no mapping", got=repr(said))
    try:
        json.dumps(dict(said))
    except (TypeError, ValueError) as error:
        require(False, f"{what} cannot be written as JSON", got=str(error))


def _payload(form: Format, frame: int) -> Any:
    generator = np.random.default_rng(frame)
    if isinstance(form, Audio):
        return generator.uniform(-0.9, 0.9, form.shape).astype(np.float32)
    if isinstance(form, Text):
        return int(generator.integers(0, form.cardinality))
    return generator.integers(0, form.cardinality, form.shape)
