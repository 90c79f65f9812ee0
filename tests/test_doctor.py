from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

import pytest
import torch
from huggingface_hub import constants
from support.model import RANDOM

from moshi_pipe import doctor as command
from moshi_pipe import doctor_checks as checks
from moshi_pipe.compose import load_run
from moshi_pipe.doctor import doctor, examine, run_check, summary
from moshi_pipe.doctor_checks import CHECKS, CORE, FAIL, OK, WARN, Context, Finding, judge_speed
from moshi_pipe.errors import BackendError, ConfigError
from moshi_pipe.models import plan
from moshi_pipe.models.checkpoint import embedded_folder
from moshi_pipe.models.protocols import Capabilities
from moshi_pipe.nodes.portaudio import INSTALL, Device
from moshi_pipe.overrides import prepare
from moshi_pipe.plugins import load_plugins
from moshi_pipe.units import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from moshi_pipe.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
MIC = Device(3, "USB mic", "ALSA", 1, 0, 16_000, default_input=True)
SPEAKER = Device(4, "Loudspeaker", "ALSA", 0, 2, 48_000, default_output=True)
CPU = Capabilities("torch", "cpu", "float32")
GB = 10**9
Usage = namedtuple("Usage", "total used free")


class Ticks:
    """A clock that moves by ``step_ms`` at each reading."""

    def __init__(self, step_ms: float) -> None:
        self.step_ns = round(step_ms * NS_PER_MS)
        self.now = 0

    def __call__(self) -> int:
        self.now += self.step_ns
        return self.now


def compose(words: Sequence[str] = ()) -> RunConfig:
    return load_run(prepare([RANDOM, *words]), load_plugins().nodes, need_source=False)


def about(*words: str, step_ms: float = 5.0) -> Context:
    return Context(lambda: compose(words), now_ns=Ticks(step_ms))


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no sound card, no cache of the user's, no GPU."""
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "urlopen", answer)
    monkeypatch.setattr(checks, "_MEASURE_FRAMES", 5)
    monkeypatch.setattr(plan, "free_gpu_bytes", list)
    monkeypatch.setattr(plan, "free_cpu_bytes", lambda: 16 * GB)
    sound(monkeypatch, MIC, SPEAKER)


def answer(request: Any, timeout: float) -> Any:
    assert request.get_method() == "HEAD"
    assert timeout == 3.0
    return io.BytesIO()


def sound(monkeypatch: pytest.MonkeyPatch, *devices: Device) -> None:
    @contextmanager
    def opened() -> Iterator[None]:
        yield None

    module = SimpleNamespace(get_portaudio_version_text=lambda: "PortAudio V19.7, revision x")
    monkeypatch.setattr(checks, "portaudio", opened)
    monkeypatch.setattr(checks, "import_pyaudio", lambda: module)
    monkeypatch.setattr(checks, "list_devices", lambda host: list(devices))


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(checks, "disk_usage", lambda folder: Usage(num_bytes, 0, num_bytes))


def raising(error: Exception) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


# ---- python


@pytest.mark.parametrize(
    ("version", "system", "status"),
    [
        ("3.9.19", "Linux", FAIL),
        ("3.10.0", "Linux", OK),
        ("3.14.2", "Darwin", OK),
        ("3.15.0a1", "Linux", FAIL),
        ("3.12.1", "Windows", WARN),
    ],
)
def test_python(monkeypatch: pytest.MonkeyPatch, version: str, system: str, status: str) -> None:
    monkeypatch.setattr("platform.python_version", lambda: version)
    monkeypatch.setattr("platform.system", lambda: system)

    finding = checks.check_python(about())

    assert finding.status == status
    assert finding.found.startswith(f"{version} on {system}")
    assert bool(finding.fix) == (status != OK)


# ---- packages


def installed(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    enough = {name: wanted.partition(",")[0].lstrip(">=") for name, wanted in CORE.items()}
    there = {**enough, **dict.fromkeys(checks.OPTIONAL, "1.0"), **changed}
    monkeypatch.setattr(checks, "_installed", there.get)
    monkeypatch.setattr(checks, "import_module", lambda name: None)


def test_packages_of_the_lowest_versions_are_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)

    finding = checks.check_packages(about())

    assert finding.status == OK
    assert finding.found.startswith("torch 2.4, hydra-core 1.3.2, ")
    assert "not installed" not in finding.found


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, **dict.fromkeys(checks.OPTIONAL))

    finding = checks.check_packages(about())

    assert finding.status == OK
    assert finding.found.endswith("; not installed: extra mic, echo and server")


def test_without_sphn_only_some_files_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, sphn=None)

    finding = checks.check_packages(about())

    assert (finding.status, finding.found) == (WARN, "sphn is missing")


def test_missing_and_old_packages_are_installed_by_one_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, torch="2.3.1+cpu", soxr=None)

    finding = checks.check_packages(about())

    assert finding == Finding(
        FAIL,
        "packages",
        "torch 2.3.1+cpu is not >=2.4, soxr is missing",
        "pip install --force-reinstall 'torch>=2.4' 'soxr>=1.0'",
    )


def test_a_package_whose_library_does_not_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    broken = raising(OSError("sndfile library not found"))
    monkeypatch.setattr(checks, "import_module", broken)

    finding = checks.check_packages(about())

    assert finding.status == FAIL
    assert "soundfile 0.12.1 does not load: sndfile library not found" in finding.found


def test_the_listed_packages_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    needed = re.findall(r'^\s+"([\w-]+)([^";]*)', block, re.MULTILINE)

    assert dict(needed) == dict(CORE)


@pytest.mark.parametrize(
    ("version", "wanted", "is_met"),
    [
        ("2.4.0", ">=2.4", True),
        ("2.10", ">=2.4", True),
        ("2.3.9", ">=2.4", False),
        ("2.15.0+cu132", ">=2.4", True),
        ("1.4.9", ">=1.3.2,<1.5", True),
        ("1.5", ">=1.3.2,<1.5", False),
        ("1.5.0", ">=1.3.2,<1.5", False),
        ("13", ">=13", True),
    ],
)
def test_versions_are_compared_by_number(version: str, wanted: str, is_met: bool) -> None:
    assert checks.meets(version, wanted) is is_met


# ---- torch


def test_torch_says_device_cores_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "num_cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    finding = checks.check_torch(about("engine.threads=4"))

    assert finding == Finding(
        OK, "torch", f"{torch.__version__}, device=auto takes cpu; 4 cores, engine.threads=4"
    )


def test_more_threads_than_cores_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "num_cores", lambda: 2)

    finding = checks.check_torch(about("engine.threads=3", "device=cpu"))

    assert finding.status == WARN
    assert finding.fix.startswith("set engine.threads=2")


def test_a_gpu_that_torch_cannot_use_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_gpu_bytes", lambda: [80 * GB])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    finding = checks.check_torch(about())

    assert finding.status == WARN
    assert "shows an NVIDIA GPU that this torch cannot use" in finding.found


def test_a_device_that_is_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    finding = run_check(checks.check_torch, about("device=cuda"))

    assert (finding.status, finding.title) == (FAIL, "torch")
    assert finding.fix == "set device=cpu, or device=auto to take what is there"


# ---- memory


def test_a_model_that_fits_is_ok() -> None:
    finding = checks.check_memory(about("device=cpu"))

    assert finding.status == OK
    assert finding.found.startswith("embedded, float32, 1 slot fits: needs ")


def test_a_model_that_does_not_fit_fails_with_advice() -> None:
    finding = checks.check_memory(about("model=moshiko", "device=cpu"))

    assert finding.status == FAIL
    assert "does not fit: needs 34" in finding.found
    assert finding.fix.startswith("try dtype=bfloat16")


def test_memory_that_nobody_knows_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_cpu_bytes", lambda: None)

    finding = checks.check_memory(about("device=cpu"))

    assert finding.status == WARN
    assert finding.found.endswith("; the free memory of cpu is not known")


@pytest.mark.parametrize("check", [checks.check_memory, checks.check_speed])
def test_a_model_that_is_not_downloaded_is_warned_of(check: checks.Check) -> None:
    words = ["model=local", "model.path=null", "model.repo=kyutai/new", "model.revision=v2"]

    finding = check(about(*words))

    assert finding.status == WARN
    assert finding.found == "not checked: files of local are not downloaded"
    assert finding.fix.endswith("hf download kyutai/new --revision v2")


@pytest.mark.parametrize("check", [checks.check_memory, checks.check_speed])
def test_a_folder_that_is_not_there_fails(check: checks.Check) -> None:
    finding = run_check(check, about("model=local", "model.path=/no/such/folder"))

    assert finding.status == FAIL
    assert finding.found == "there is no model folder /no/such/folder; nothing there"
    assert finding.fix.startswith("set model.path")


# ---- sound


def test_default_devices_are_named() -> None:
    finding = checks.check_sound(about())

    assert finding == Finding(
        OK, "sound", "PortAudio V19.7, microphone 'USB mic' (3), speaker 'Loudspeaker' (4)"
    )


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([], "PortAudio V19.7 lists no device"),
        ([MIC], "this machine has no sound output"),
        ([SPEAKER], "this machine has no sound input"),
        ([replace(MIC, default_input=False), SPEAKER], "the system has no default sound input"),
    ],
    ids=["none", "no speaker", "no microphone", "no default"],
)
def test_missing_devices_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, devices: list[Device], said: str
) -> None:
    sound(monkeypatch, *devices)

    finding = checks.check_sound(about())

    assert finding.status == WARN
    assert finding.found.startswith(said)
    assert finding.fix


def test_missing_portaudio_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = raising(BackendError("PortAudio is not here", got="no module", fix=INSTALL))
    monkeypatch.setattr(checks, "portaudio", missing)

    finding = checks.check_sound(about())

    assert finding == Finding(
        WARN, "sound", "PortAudio is not here: no module; files work without", INSTALL
    )


# ---- hub


@pytest.mark.parametrize("endpoint", [None, "http://mirror:8080"])
def test_a_hub_that_answers_is_ok(monkeypatch: pytest.MonkeyPatch, endpoint: str | None) -> None:
    asked: list[str] = []
    if endpoint is not None:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)

    def remember(request: Any, timeout: float) -> Any:
        asked.append(request.full_url)
        return answer(request, timeout)

    monkeypatch.setattr(checks, "urlopen", remember)

    finding = checks.check_hub(about())

    wanted = endpoint or "https://huggingface.co"
    assert asked == [wanted]
    assert finding == Finding(OK, "hub", f"{wanted} answers in 5 ms")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError(OSError(-2, "Name or service not known")), "Name or service not known"),
        (URLError("certificate verify failed"), "certificate verify failed"),
        (TimeoutError("timed out"), "timed out"),
        (RuntimeError(), "RuntimeError"),
        (HTTPError("u", 503, "Busy", Message(), None), "HTTP 503 Busy"),
        (HTTPError("u", 407, "Proxy", Message(), None), "HTTP 407 Proxy"),
        (HTTPError("u", 404, "Not Found", Message(), None), None),
    ],
    ids=["name", "certificate", "time", "odd", "503", "407", "404"],
)
def test_what_a_hub_says(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str | None
) -> None:
    monkeypatch.setattr(checks, "urlopen", raising(error))

    finding = checks.check_hub(about())

    assert finding.status == (OK if reason is None else WARN)
    assert reason is None or finding.found.endswith(f"cannot be reached: {reason}")


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(checks, "urlopen", lambda request, timeout: done.wait(60))
    monkeypatch.setattr(checks, "_HUB_LIMIT_S", 0.01)
    began = time.monotonic()

    finding = checks.check_hub(about())

    done.set()
    assert time.monotonic() - began < 30
    assert finding.found.endswith("no answer within 0.01 s")


@pytest.mark.parametrize("how", ["variable", "option"])
def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(checks, "urlopen", raising(AssertionError("asked")))
    if how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    finding = checks.check_hub(about(*["model.offline=true"] * (how == "option")))

    assert finding.status == OK
    assert finding.found.startswith("offline")


def test_an_endpoint_that_is_no_address_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "urlopen", raising(AssertionError("opened")))
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd")

    finding = checks.check_hub(about())

    assert (finding.status, finding.found) == (
        WARN,
        "HF_ENDPOINT is no address: file:///etc/passwd",
    )


# ---- folders


def test_folders_that_can_be_made_are_ok_and_stay_unmade(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free(monkeypatch, 50 * GB)

    cache, output = checks.check_cache(about()), checks.check_output(about("output_dir=a/b"))

    assert cache == Finding(OK, "cache", f"{tmp_path}/cache (not there yet), 50 GB free")
    assert output == Finding(OK, "output", f"{tmp_path}/a/b (not there yet), 50 GB free")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "status"), [((), WARN), (("model=moshiko",), FAIL)])
def test_a_cache_that_cannot_be_written_matters_to_a_model_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], status: str
) -> None:
    denied = raising(PermissionError(13, "Permission denied"))
    monkeypatch.setattr("tempfile.TemporaryFile", denied)

    finding = checks.check_cache(about(*words))

    assert finding.status == status
    assert finding.found.endswith("Permission denied")
    assert "HF_HOME" in finding.fix


@pytest.mark.parametrize(("room", "status"), [(15 * GB, FAIL), (17 * GB, OK)])
def test_a_cache_needs_room_for_the_chosen_model(
    monkeypatch: pytest.MonkeyPatch, room: int, status: str
) -> None:
    free(monkeypatch, room)

    finding = checks.check_cache(about("model=moshiko"))

    assert finding.status == status
    assert "moshiko is not downloaded, it takes about 15." in finding.found


def test_results_that_cannot_be_written_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = raising(PermissionError(13, "Permission denied"))
    monkeypatch.setattr("tempfile.TemporaryFile", denied)

    finding = checks.check_output(about())

    assert finding.status == FAIL
    assert finding.fix == "set output_dir to a folder that you may write"


def test_a_file_where_results_go_fails(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")

    finding = checks.check_output(about("output_dir=taken"))

    assert finding.status == FAIL
    assert finding.found.endswith(f"; {tmp_path}/taken is a file")


def test_little_room_for_results_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, GB - 1)

    assert checks.check_output(about()).status == WARN


# ---- port


def test_a_free_port_is_ok_and_a_taken_one_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        monkeypatch.setattr(checks, "SERVER_PORT", port)
        server.listen()
        taken = checks.check_port(about())
    unused = checks.check_port(about())

    assert taken.status == WARN
    assert taken.found == f"127.0.0.1:{port} is taken by another program"
    assert unused == Finding(OK, "port", f"127.0.0.1:{port} is free for a server")


def test_a_port_that_may_not_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = raising(PermissionError(13, "Permission denied"))
    monkeypatch.setattr(socket.socket, "bind", denied)

    finding = checks.check_port(about())

    assert (finding.status, finding.found) == (WARN, "127.0.0.1:8998 is Permission denied")


# ---- codec


class FakeCodec:
    """Decodes to ``num_samples`` times ``value``."""

    spec = SimpleNamespace(channels=1, frame_size=8)
    caps = CPU

    def __init__(self, num_samples: int = 8, value: float = 0.0) -> None:
        self.pcm = torch.full((1, 1, num_samples), value)

    def new_encoder_state(self, num_slots: int) -> None:
        pass

    new_decoder_state = new_encoder_state

    def encode(self, pcm_BCN: torch.Tensor, valid_B: torch.Tensor, state: Any) -> torch.Tensor:
        assert pcm_BCN.shape == (1, 1, 8)
        return torch.zeros(1, 2, dtype=torch.int64)

    def decode(self, codes_BK: torch.Tensor, valid_B: torch.Tensor, state: Any) -> torch.Tensor:
        return self.pcm


def test_the_embedded_codec_works() -> None:
    finding = checks.check_codec(about("device=cpu"))

    assert finding == Finding(OK, "codec", "10 frames on cpu: 19200 samples, all finite")


@pytest.mark.parametrize(
    ("codec", "found"),
    [
        (FakeCodec(num_samples=7), "10 frames on cpu: 70 samples of 80"),
        (FakeCodec(value=float("nan")), "10 frames on cpu: 80 samples of 80, not all finite"),
    ],
    ids=["length", "nan"],
)
def test_a_broken_codec_fails(
    monkeypatch: pytest.MonkeyPatch, codec: FakeCodec, found: str
) -> None:
    monkeypatch.setattr(checks, "open_embedded_codec", lambda config: codec)

    finding = checks.check_codec(about())

    assert (finding.status, finding.found) == (FAIL, found)


def test_a_backend_that_nobody_has_fails() -> None:
    finding = run_check(checks.check_codec, about("backend=abacus"))

    assert finding.status == FAIL
    assert finding.found == "no plugin opens a codec with backend 'abacus'"


# ---- speed


@pytest.mark.parametrize(
    ("step_ms", "status", "p50"), [(79.9, OK, "79.9"), (80.0, FAIL, "80.0"), (250, FAIL, "250.0")]
)
def test_speed_is_measured_on_the_chosen_graph(step_ms: float, status: str, p50: str) -> None:
    finding = checks.check_speed(about("device=cpu", step_ms=step_ms))

    assert finding.status == status
    assert f"embedded on cpu, float32, 1 slot: p50 {p50} ms, p99 {p50} ms of 80 ms" in finding.found
    assert finding.found.endswith("a frame (5 frames)")


def test_measuring_ends_after_three_seconds() -> None:
    finding = checks.check_speed(about("device=cpu", step_ms=1000))

    assert finding.found.endswith("(1 frame)")


@pytest.mark.parametrize("graph", ["codec", "decode", "encode"])
def test_every_graph_can_be_measured_with_many_slots(graph: str) -> None:
    finding = checks.check_speed(about("device=cpu", f"graph={graph}", "engine.slots=3"))

    assert finding.status == OK
    assert "3 slots" in finding.found


def test_measuring_uses_the_threads_of_a_run_and_puts_them_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, during = torch.get_num_threads(), []

    def measure(*args: Any) -> Any:
        during.append(torch.get_num_threads())
        return [1], CPU

    monkeypatch.setattr(checks, "measure", measure)

    checks.check_speed(about("device=cpu", f"engine.threads={before + 1}"))

    assert (during, torch.get_num_threads()) == ([before + 1], before)


def test_late_frames_are_warned_of_and_the_first_one_does_not_count() -> None:
    times_ns = [10 * NS_PER_MS] * 98 + [80 * NS_PER_MS] * 2

    finding = judge_speed(times_ns, CPU, 80.0, compose())

    assert finding.status == WARN
    assert "p50 10.0 ms, p99 80.0 ms of 80 ms a frame (100 frames)" in finding.found


@pytest.mark.parametrize(
    ("num_frames", "num_late", "status"),
    [(100, 1, OK), (100, 2, WARN), (150, 1, OK), (150, 2, WARN), (10, 1, WARN)],
)
def test_one_frame_in_a_hundred_may_be_late(num_frames: int, num_late: int, status: str) -> None:
    times_ns = [10 * NS_PER_MS] * (num_frames - num_late) + [900 * NS_PER_MS] * num_late

    assert judge_speed(times_ns, CPU, 80.0, compose()).status == status


@pytest.mark.parametrize(
    ("caps", "words", "ways"),
    [
        (
            CPU,
            ["engine.slots=2"],
            "engine.threads=8, quant=int8, dtype=bfloat16, fewer engine.slots, a smaller model, "
            "a GPU (device=cuda)",
        ),
        (Capabilities("torch", "cuda:0", "bfloat16"), [], "a smaller model"),
        (
            Capabilities("torch", "cpu", "bfloat16"),
            ["engine.threads=8"],
            "quant=int8, a smaller model, a GPU (device=cuda)",
        ),
        (
            Capabilities("torch", "cpu", "bfloat16", "int8"),
            [],
            "engine.threads=8, a smaller model, a GPU (device=cuda)",
        ),
    ],
    ids=["cpu", "cuda", "cpu, all cores", "cpu, int8"],
)
def test_advice_names_what_was_not_tried(
    monkeypatch: pytest.MonkeyPatch, caps: Capabilities, words: list[str], ways: str
) -> None:
    monkeypatch.setattr(checks, "num_cores", lambda: 8)

    finding = judge_speed([90 * NS_PER_MS], caps, 80.0, compose(words))

    assert finding.status == FAIL
    assert finding.fix == f"too slow to talk to, files work: try {ways}"


def test_a_model_that_does_not_fit_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_cpu_bytes", lambda: 1000)
    monkeypatch.setattr(checks, "measure", raising(AssertionError("loaded")))

    finding = checks.check_speed(about("device=cpu"))

    assert (finding.status, finding.found) == (WARN, "not measured: the model does not fit")


# ---- the command


def check_good(context: Context) -> Finding:
    return Finding(OK, "good", "all\nis  well")


def check_poor(context: Context) -> Finding:
    return Finding(WARN, "poor", "麦 little", "do\nmore")


def check_broken_thing(context: Context) -> Finding:
    raise RuntimeError("boom")


def test_a_check_that_raises_fails_and_the_others_go_on() -> None:
    out = io.StringIO()

    code = examine(about(), [check_broken_thing, check_good, check_poor], out)

    lines = out.getvalue().splitlines()
    assert code == 1
    assert re.fullmatch(
        r"fail  broken thing  RuntimeError: boom \(test_doctor\.py:\d+\)", lines.pop(0)
    )
    assert lines == [
        "      do: this check should not end so: please report the line above",
        "ok    good          all is well",
        "warn  poor          麦 little",
        "      do: do more",
        "",
        "1 of 3 checks are ok, 1 warning (poor), 1 failed (broken thing)",
    ]


def test_warnings_are_no_failure() -> None:
    assert examine(about(), [check_good, check_poor], io.StringIO()) == 0


def test_a_terminal_gets_colours_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)

    examine(about(), [check_good, check_poor, check_broken_thing], terminal)

    shown = terminal.getvalue()
    assert "\x1b[1;32mok    \x1b[0mgood          all is well\n" in shown
    assert "\x1b[1;33mwarn  " in shown
    assert "\x1b[1;31mfail  " in shown


def test_a_pipe_gets_no_colours_even_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()

    examine(about(), [check_good], out)

    assert out.getvalue().startswith("ok    good          all is well\n")


def test_the_summary_of_a_sound_machine_is_short() -> None:
    assert summary([Finding(OK, "a", ""), Finding(OK, "b", "")]) == "all 2 checks are ok"


def test_findings_are_shown_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "out"
    seen = []

    def check_what_is_shown(context: Context) -> Finding:
        seen.append(path.read_text(encoding="utf-8"))
        return Finding(OK, "late", "")

    with path.open("w", encoding="utf-8") as out:
        examine(about(), [check_good, check_what_is_shown], out)

    assert seen == ["ok    good          all is well\n"]


def test_the_whole_command_on_the_embedded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "Context", lambda make: Context(make, now_ns=Ticks(5.0)))
    installed(monkeypatch)
    free(monkeypatch, 50 * GB)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(checks, "SERVER_PORT", unused.getsockname()[1])
    words = ["model=local", f"model.path={embedded_folder()}", "device=cpu"]

    code = doctor(words, compose)

    shown = capsys.readouterr().out
    titles = [line.split()[1] for line in shown.splitlines() if line.startswith("ok ")]
    assert titles == [check.__name__.removeprefix("check_") for check in CHECKS]
    assert shown.endswith("\n\nall 11 checks are ok\n")
    assert code == 0
    assert list(tmp_path.iterdir()) == []


def test_wrong_words_end_the_command_before_any_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="there is no model 'moshi'"):
        doctor(["model=moshi"], compose)

    assert capsys.readouterr().out == ""


def test_a_missing_package_leaves_the_other_checks_to_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "examine", lambda context: examine(context, CHECKS[:4]))
    installed(monkeypatch)

    code = doctor([], raising(ModuleNotFoundError("No module named 'hydra'")))

    shown = capsys.readouterr().out
    assert code == 1
    assert "ok    python " in shown
    assert "fail  memory        ModuleNotFoundError: No module named 'hydra'" in shown
    assert "do: install moshi-pipe again" in shown
