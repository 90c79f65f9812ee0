"""Full-Duplex-Bench in miniature: every task, with answers whose scores are known."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from support import scripted
from support.duplex_bench import (
    AGREES,
    ASKS,
    FRAME,
    FRAME_S,
    LONG,
    MODEL_RATE,
    OVERLAPS,
    TELLS,
    TOKENIZER,
    USER_RATE,
    Bench,
    Said,
    after,
    answer_audio,
    answer_tokens,
    length_s,
    make_bench,
)
from support.speech import needs_espeak

from moshi_pipe.cli import main
from moshi_pipe.engine.framing import Reframer
from moshi_pipe.errors import ConfigError, InputError, OutputError
from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.node import SessionEnd, SessionInfo
from moshi_pipe.graph.packet import Packet
from moshi_pipe.metrics.duplex_bench import jensen_shannon_distance
from moshi_pipe.nodes.fdb_layout import Sample, find_samples
from moshi_pipe.nodes.fdb_sink import FdbSink
from moshi_pipe.nodes.fdb_source import FdbSource
from moshi_pipe.nodes.metrics_sink import MetricsSink
from moshi_pipe.nodes.options import FdbSinkOptions, FdbSourceOptions, MetricsSinkOptions
from moshi_pipe.resume import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.graph.node import SessionInput, Sink

TASKS = [
    *("background_speech", "candor_pause_handling", "candor_turn_taking", "icc_backchannel"),
    *("synthetic_pause_handling", "synthetic_user_interruption", "talking_to_other"),
    *("user_backchannel", "user_interruption"),
]
FORMATS: dict[str, Any] = {
    "user_audio": Audio(MODEL_RATE, FRAME),
    "audio": Audio(MODEL_RATE, FRAME),
    "text": Text(400, 12.5),  # type: ignore[arg-type]
}
STEP_S = 0.08


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("data"))


def sessions(path: Path, **options: Any) -> list[SessionInput]:
    async def collect() -> list[SessionInput]:
        source = FdbSource(FdbSourceOptions(str(path), **options))
        found = [item async for item in source.sessions()]
        assert source.num_sessions() == len(found)
        return found

    return asyncio.run(collect())


def answer(
    item: SessionInput,
    said: tuple[Said, ...],
    out: Path,
    sinks: Sequence[Sink],
    *,
    lead_s: float = 0.0,
    tail_s: float = 0.0,
    complete: bool = True,
) -> None:
    """Let a model that says this answer an input, frame by frame, as a run would."""
    info = SessionInfo(
        *(item.id, item.meta, out, FORMATS, FRAME_S, 7), lead_s=lead_s, tokenizer=TOKENIZER
    )

    async def go() -> None:
        reframer = Reframer(item.sample_rate, MODEL_RATE, FRAME, lead_s=lead_s, tail_s=tail_s)
        frames = [frame async for chunk in item.chunks() for frame in reframer.push(chunk)]
        frames += list(reframer.finish())
        audio_N = answer_audio(said, len(frames))
        tokens = answer_tokens(said, len(frames))
        for sink in sinks:
            await sink.open(info)
        for i, frame in enumerate(frames):
            row: dict[str, Any] = {"text": tokens[i], "user_audio": frame}
            row["audio"] = audio_N[None, i * FRAME : (i + 1) * FRAME]
            for sink in sinks:
                for name, value in row.items():
                    if name in sink.takes or name in sink.optional:
                        await sink.write(Packet(name, i, 0, value))
        end = SessionEnd(len(frames), complete, reframer.padding / MODEL_RATE)
        for sink in sinks:
            await sink.close(end)

    asyncio.run(go())


def scores(folder: Path, session: str) -> dict[str, float | None]:
    record = json.loads((folder / f"{session}.metrics.json").read_text("utf-8"))
    return {name: one["value"] for name, one in record["metrics"].items()}


def near(value: float) -> Any:
    return pytest.approx(value, abs=STEP_S)


def check(
    bench: Bench,
    out: Path,
    task: str,
    said: tuple[Said, ...],
    wanted: dict[str, Any],
    *,
    clean: bool = False,
    **options: Any,
) -> None:
    """Answer a task's sample, and compare its scores with what they must be."""
    items = {item.id: item for item in sessions(bench.root / task)}
    item = items[f"{task}-1-clean" if clean else f"{task}-1"]
    metrics = MetricsSink(MetricsSinkOptions(fdb=True, vad="energy", **options))

    answer(item, said, out, [metrics])

    assert scores(out, item.id) == wanted


@needs_espeak
@pytest.mark.parametrize("task", ["candor_pause_handling", "synthetic_pause_handling"])
def test_a_pause_is_not_the_models_to_take(bench: Bench, tmp_path: Path, task: str) -> None:
    pause_s = after(bench.spans[task][0][1], 0.2)

    check(bench, tmp_path, task, (), {"fdb_take_over": 0})
    check(bench, tmp_path, task, (Said(pause_s, "mhm"),), {"fdb_take_over": 0})
    check(bench, tmp_path, task, (Said(pause_s, ASKS),), {"fdb_take_over": 1})


@needs_espeak
def test_a_turn_is_taken_some_time_after_its_end(bench: Bench, tmp_path: Path) -> None:
    task = "candor_turn_taking"
    end_s = bench.spans[task][0][1]
    at_s = after(end_s, 0.4)
    exactly = pytest.approx(at_s - end_s, abs=1e-3)

    check(bench, tmp_path, task, (), {"fdb_take_over": 0, "fdb_latency_s": None})
    wanted = {"fdb_take_over": 1, "fdb_latency_s": exactly}
    check(bench, tmp_path, task, (Said(at_s, ASKS),), wanted)
    wanted = {"fdb_take_over": 1, "fdb_latency_s": 0}
    check(bench, tmp_path, task, (Said(2.0, ASKS),), wanted)


@needs_espeak
def test_a_listener_makes_short_sounds(bench: Bench, tmp_path: Path) -> None:
    task = "icc_backchannel"
    duration_s = 1 + length_s(LONG)
    reference = tmp_path / "people.json"
    people = np.zeros(int(duration_s / 0.2) + 1)
    listens = (Said(2.56, "mhm"), Said(4.88, "Yes"))
    for one in listens:  # people make the same sounds, which are widened by 30 ms
        people[int((one.at_s - 0.03) / 0.2) : int((one.end_s + 0.03) / 0.2) + 1] = 1
    reference.write_text(json.dumps({"1": list(people)}))

    def judge(said: tuple[Said, ...], took: int, rate: float, divergence: Any) -> None:
        wanted = {
            "fdb_take_over": took,
            "fdb_backchannel_rate": pytest.approx(rate, abs=1e-4),
            "fdb_backchannel_divergence": divergence,
        }
        check(bench, tmp_path, task, said, wanted, fdb_reference=str(reference))

    judge((), 0, 0, 1)
    judge((Said(1.6, "mhm"), Said(3.2, ASKS)), 1, 0, 1)
    judge(listens, 0, 2 / duration_s, pytest.approx(0, abs=1e-3))
    elsewhere = (Said(0.8, "mhm"), Said(6.4, "Yes"))
    farthest = jensen_shannon_distance([1, 0], [0, 1])
    judge(elsewhere, 0, 2 / duration_s, pytest.approx(farthest, abs=1e-3))


@needs_espeak
def test_without_a_reference_times_are_not_compared(bench: Bench, tmp_path: Path) -> None:
    wanted = {"fdb_take_over": 0, "fdb_backchannel_rate": 0}

    check(bench, tmp_path, "icc_backchannel", (), wanted)


@needs_espeak
def test_an_interruption_is_answered(bench: Bench, tmp_path: Path) -> None:
    task = "synthetic_user_interruption"
    end_s = bench.spans[task][1][1]
    at_s = after(end_s, 0.64)
    before = Said(3.2, ASKS)  # words before the end do not count
    wanted = {"fdb_take_over": 1, "fdb_latency_s": pytest.approx(at_s - end_s, abs=1e-3)}

    check(bench, tmp_path, task, (before,), {"fdb_take_over": 0, "fdb_latency_s": None})
    check(bench, tmp_path, task, (before, Said(at_s, AGREES)), wanted)


def rate_wpm(frames: list[int]) -> Any:
    """Of words that last a frame each."""
    return pytest.approx(60 * len(frames) / ((frames[-1] + 1 - frames[0]) * FRAME_S), abs=1e-3)


@needs_espeak
@pytest.mark.parametrize("task", OVERLAPS)
def test_who_goes_on_through_an_overlap_does_not_stop(
    bench: Bench, tmp_path: Path, task: str
) -> None:
    (_, first_end_s), (start_s, end_s) = bench.spans[task]
    said = Said(4.4, TELLS)
    assert said.end_s > end_s + 0.5
    frames = [frame for _, frame in said.words]
    before = [frame for frame in frames if (frame + 1) * FRAME_S <= end_s]

    wanted = {
        "fdb_stop_latency_s": near(end_s - start_s),
        "fdb_response_latency_s": near(said.at_s - first_end_s),
        "fdb_rate_before_wpm": rate_wpm(before),
        "fdb_rate_after_wpm": rate_wpm(frames[len(before) :]),
    }
    check(bench, tmp_path, task, (said,), wanted)
    wanted = {
        "fdb_clean_stop_latency_s": None,
        "fdb_clean_response_latency_s": near(said.at_s - first_end_s),
        "fdb_clean_rate_wpm": rate_wpm(frames),
    }
    check(bench, tmp_path, task, (said,), wanted, clean=True)


@needs_espeak
def test_who_is_interrupted_stops_and_answers(bench: Bench, tmp_path: Path) -> None:
    task = "user_interruption"
    (_, first_end_s), (start_s, end_s) = bench.spans[task]
    said = Said(after(start_s + 0.64, -length_s(ASKS)), ASKS)
    at_s = after(end_s, 0.8)

    items = sessions(bench.root / task, clean=False)
    metrics = MetricsSink(MetricsSinkOptions(fdb=True, turns=True, vad="energy"))
    answer(items[0], (said, Said(at_s, AGREES)), tmp_path, [metrics])

    found = scores(tmp_path, items[0].id)
    responses = (said.at_s - first_end_s, at_s - end_s)
    assert found["fdb_stop_latency_s"] == near(said.end_s - start_s)
    assert found["fdb_response_latency_s"] == near(sum(responses) / 2)
    assert found["take_over_rate"] == 1
    assert found["overlap_s"] == near(said.end_s - start_s)


@needs_espeak
def test_a_whole_run_scores_every_task(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(scripted.__file__).parent, "plugins", ignore=only_scripted)
    spans = bench.spans
    turn_s, broken_s = spans["candor_turn_taking"][0][1], spans["synthetic_user_interruption"][1][1]
    at_s, later_s = after(turn_s, 0.4), after(broken_s, 0.64)
    goes_on = [(4.4, TELLS)]
    script: dict[str, list[tuple[float, str]]] = {
        "candor_pause_handling-1": [],
        "synthetic_pause_handling-1": [(2.64, ASKS)],
        "candor_turn_taking-1": [(at_s, ASKS)],
        "icc_backchannel-1": [(2.4, "mhm"), (4.8, "Yes")],
        "synthetic_user_interruption-1": [(3.2, ASKS), (later_s, AGREES)],
        **{f"{task}-1{clean}": goes_on for task in OVERLAPS for clean in ("", "-clean")},
    }
    seeded = {derive_seed(0, session): said for session, said in script.items()}
    Path("script.json").write_text(json.dumps(seeded))

    words = [f"source.path={bench.root}", "graph=scripted", "metric=[fdb,turns]", "seed=0"]
    more = ["sink.metrics.vad=energy", "engine.slots=4", "--plugins-dir", "plugins"]
    assert main(["source=fdb", "sink=[fdb]", "model=embedded", *words, *more]) == 0

    found = {session: scores(Path("moshi-out"), session) for session in script}
    assert found["candor_pause_handling-1"]["fdb_take_over"] == 0
    assert found["candor_pause_handling-1"]["take_over_rate"] == 0
    assert found["synthetic_pause_handling-1"]["fdb_take_over"] == 1
    turn = found["candor_turn_taking-1"]
    assert turn["fdb_latency_s"] == pytest.approx(at_s - turn_s, abs=1e-3)
    assert turn["response_latency_s"] == near(at_s - turn_s)
    assert turn["take_over_rate"] == 1
    listens = found["icc_backchannel-1"]
    assert listens["fdb_take_over"] == 0
    assert listens["fdb_backchannel_rate"] == pytest.approx(2 / (1 + length_s(LONG)), abs=1e-4)
    assert listens["model_backchannels"] == 2
    broken = found["synthetic_user_interruption-1"]
    assert broken["fdb_latency_s"] == pytest.approx(later_s - broken_s, abs=1e-3)
    for task in OVERLAPS:
        start_s, end_s = spans[task][1]
        assert found[f"{task}-1"]["fdb_stop_latency_s"] == near(end_s - start_s)
        assert found[f"{task}-1-clean"]["fdb_clean_stop_latency_s"] is None
        assert found[f"{task}-1"]["overlap_s"] == near(end_s - start_s)
    made_N, rate = soundfile.read("moshi-out/candor_turn_taking/1/output.wav", dtype="float32")
    assert np.flatnonzero(np.abs(made_N) > 0.015)[0] / rate == pytest.approx(at_s, abs=0.003)
    said = json.loads(Path("moshi-out/candor_turn_taking/1/output.json").read_text())
    assert said["text"] == ASKS
    assert said["chunks"][0]["timestamp"][0] == pytest.approx(at_s, abs=1e-3)


def only_scripted(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name != "scripted.py"]


@needs_espeak
def test_samples_are_found_wherever_one_points(bench: Bench) -> None:
    everything = sessions(bench.root)
    one = bench.root / "icc_backchannel"

    assert [item.id for item in everything] == [
        name
        for task in TASKS
        for name in ([f"{task}-1", f"{task}-1-clean"] if task in OVERLAPS else [f"{task}-1"])
    ]
    assert [item.id for item in sessions(one)] == ["icc_backchannel-1"]
    assert [item.id for item in sessions(one / "1")] == ["icc_backchannel-1"]
    assert [item.id for item in sessions(bench.root / TASKS[0], clean=False)] == [f"{TASKS[0]}-1"]


@needs_espeak
def test_what_is_asked_is_told_by_the_annotation(bench: Bench) -> None:
    kinds = {sample.task: sample.kind for sample in find_samples(str(bench.root))}

    assert kinds == {
        "candor_pause_handling": "pause_handling",
        "synthetic_pause_handling": "pause_handling",
        "candor_turn_taking": "smooth_turn_taking",
        "icc_backchannel": "backchannel",
        "synthetic_user_interruption": "user_interruption",
        **dict.fromkeys(OVERLAPS, "overlap"),
    }


def test_no_samples_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        find_samples(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no sample lies under"):
        find_samples(str(tmp_path))


def test_two_samples_of_one_name_are_refused(tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        folder = tmp_path / version / "task" / "1"
        folder.mkdir(parents=True)
        (folder / "input.wav").touch()

    with pytest.raises(InputError, match=r"two samples under .* are called task/1"):
        find_samples(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"timestamps": [1]}', '[{"timestamp": ["a", 2]}]'),
        *('[{"timestamp": [NaN, Infinity]}]', '[{"timestamp": [1, Infinity]}]'),
        *('[{"timestamp": [9, 3]}]', '[{"timestamp": [false, true]}]'),
        '[{"timestamp": [1, 1' + 400 * "0" + "]}]",
    ],
)
def test_an_annotation_without_times_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "interrupt.json").write_text(text)

    with pytest.raises(InputError, match=r"the annotation .*interrupt.json"):
        Sample(tmp_path).event_s()


@needs_espeak
@pytest.mark.parametrize("lead_s", [0.0, 1.0, 0.33])
def test_an_answer_lies_on_the_time_line_of_its_input(
    bench: Bench, tmp_path: Path, lead_s: float
) -> None:
    task = "candor_turn_taking"
    (item,) = sessions(bench.root / task)
    said = Said(5.6, ASKS)

    answer(item, (said,), tmp_path, [FdbSink(FdbSinkOptions())], lead_s=lead_s, tail_s=2)

    given_N, given_rate = soundfile.read(bench.root / task / "1" / "input.wav")
    made_N, rate = soundfile.read(tmp_path / task / "1" / "output.wav", dtype="float32")
    assert rate == given_rate == USER_RATE
    assert made_N.size == given_N.size
    loud = np.flatnonzero(np.abs(made_N) > 0.015)
    assert loud[0] / rate == pytest.approx(said.at_s - lead_s, abs=0.003)
    assert loud[-1] / rate == pytest.approx(said.end_s - lead_s, abs=0.003)
    record = json.loads((tmp_path / task / "1" / "output.json").read_text("utf-8"))
    assert record["text"] == ASKS
    assert [chunk["text"] for chunk in record["chunks"]] == ASKS.split()
    starts = [chunk["timestamp"][0] for chunk in record["chunks"]]
    assert starts[0] == pytest.approx(said.at_s - lead_s, abs=1e-3)
    assert starts == sorted(starts)


@needs_espeak
def test_the_models_own_rate_may_be_kept(bench: Bench, tmp_path: Path) -> None:
    task = "candor_turn_taking"
    (item,) = sessions(bench.root / task)

    answer(item, (), tmp_path, [FdbSink(FdbSinkOptions(sample_rate=None))])

    info = soundfile.info(tmp_path / task / "1" / "output.wav")
    assert info.samplerate == MODEL_RATE
    assert info.frames == 9 * MODEL_RATE


@needs_espeak
def test_of_an_interruption_only_words_after_its_end_are_written(
    bench: Bench, tmp_path: Path
) -> None:
    task = "synthetic_user_interruption"
    (item,) = sessions(bench.root / task)
    at_s = after(bench.spans[task][1][1], 0.64)

    answer(item, (Said(3.2, ASKS), Said(at_s, AGREES)), tmp_path, [FdbSink(FdbSinkOptions())])

    record = json.loads((tmp_path / task / "1" / "output.json").read_text("utf-8"))
    assert record["text"] == AGREES


@needs_espeak
def test_results_are_a_folder_that_the_scripts_take(bench: Bench, tmp_path: Path) -> None:
    for item in sessions(bench.root):
        answer(item, (), tmp_path, [FdbSink(FdbSinkOptions())])

    for sample in find_samples(str(bench.root)):
        made = tmp_path / sample.task / sample.name
        given = {path.name: path.read_bytes() for path in sample.folder.iterdir()}
        answers = {"output.wav", "output.json"}
        if sample.task in OVERLAPS:
            answers |= {"clean_output.wav", "clean_output.json"}
        assert {path.name for path in made.iterdir()} == {*given, *answers}
        assert all((made / name).read_bytes() == data for name, data in given.items())


@needs_espeak
def test_answers_may_be_written_into_the_data(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    folder = tmp_path / "icc_backchannel" / "1"
    before = (folder / "input.wav").read_bytes()

    answer(sessions(folder)[0], (), tmp_path, [FdbSink(FdbSinkOptions(transcript=False))])

    assert bench.root == tmp_path
    assert {path.name for path in folder.iterdir()} == {"input.wav", "output.wav"}
    assert (folder / "input.wav").read_bytes() == before


@needs_espeak
def test_a_run_that_is_cut_short_leaves_what_there_was(bench: Bench, tmp_path: Path) -> None:
    (item,) = sessions(bench.root / "candor_turn_taking")
    sink = FdbSink(FdbSinkOptions())
    info = SessionInfo(item.id, item.meta, tmp_path, FORMATS, FRAME_S, 7, tokenizer=TOKENIZER)

    async def go() -> None:
        await sink.open(info)
        for i in range(25):
            await sink.write(Packet("audio", i, 0, np.full((1, FRAME), 0.5, np.float32)))
        await sink.close(SessionEnd(25, complete=False))

    asyncio.run(go())

    folder = tmp_path / "candor_turn_taking" / "1"
    assert soundfile.info(folder / "output.wav").frames == 2 * USER_RATE
    assert json.loads((folder / "output.json").read_text()) == {"text": "", "chunks": []}


@needs_espeak
def test_a_session_that_never_began_leaves_no_answer(bench: Bench, tmp_path: Path) -> None:
    (item,) = sessions(bench.root / "candor_turn_taking")
    sink = FdbSink(FdbSinkOptions())
    info = SessionInfo(item.id, item.meta, tmp_path, FORMATS, FRAME_S, 7, tokenizer=TOKENIZER)

    async def go() -> dict[str, Any]:
        await sink.open(info)
        return dict(await sink.close(SessionEnd(0, complete=False)))

    assert asyncio.run(go())["files"] == []
    assert not list(tmp_path.rglob("output.*"))


def test_a_session_that_is_no_sample_is_refused(tmp_path: Path) -> None:
    info = SessionInfo("s", {"stem": "s"}, tmp_path, FORMATS, FRAME_S, 0, tokenizer=TOKENIZER)

    with pytest.raises(ConfigError, match=r"^sink=fdb needs a sample of Full-Duplex-Bench"):
        asyncio.run(FdbSink(FdbSinkOptions()).open(info))
    with pytest.raises(ConfigError, match=r"^metric=fdb scores samples of Full-Duplex-Bench"):
        asyncio.run(MetricsSink(MetricsSinkOptions(fdb=True, vad="energy")).open(info))
    with pytest.raises(ConfigError, match=r"^sink\.fdb\.sample_rate cannot be 0"):
        FdbSink(FdbSinkOptions(sample_rate=0))


@needs_espeak
def test_a_wrong_annotation_is_told_before_the_model_runs(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "data")
    folder = bench.root / "candor_turn_taking"
    (folder / "1" / "turn_taking.json").write_text("[]")
    (item,) = sessions(folder)
    info = SessionInfo(item.id, item.meta, tmp_path, FORMATS, FRAME_S, 7, tokenizer=TOKENIZER)

    for sink in (FdbSink(FdbSinkOptions()), MetricsSink(MetricsSinkOptions(fdb=True))):
        with pytest.raises(InputError, match=r"turn_taking\.json has no times"):
            asyncio.run(sink.open(info))


@needs_espeak
@pytest.mark.parametrize("text", ["no JSON", "[]", '{"1": ["a"]}'])
def test_a_reference_that_cannot_be_read_is_named(bench: Bench, tmp_path: Path, text: str) -> None:
    (tmp_path / "people.json").write_text(text)
    (item,) = sessions(bench.root / "icc_backchannel")
    options = MetricsSinkOptions(
        fdb=True, vad="energy", fdb_reference=str(tmp_path / "people.json")
    )

    with pytest.raises(InputError, match="cannot read the reference"):
        answer(item, (), tmp_path, [MetricsSink(options)])


@needs_espeak
def test_a_copy_that_cannot_be_made_is_named(bench: Bench, tmp_path: Path) -> None:
    (item,) = sessions(bench.root / "icc_backchannel")
    (tmp_path / "icc_backchannel" / "1" / "input.wav" / "a folder").mkdir(parents=True)

    with pytest.raises(OutputError, match=r"cannot write .*input.wav"):
        answer(item, (), tmp_path, [FdbSink(FdbSinkOptions())])
