"""The checks of ``moshi-pipe doctor``. Each looks at one thing and says what it found.

A check downloads nothing and leaves nothing behind. It may raise: then it has failed.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import re
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from moshi_pipe.device_table import NO_DEVICE, one_line
from moshi_pipe.errors import BackendError, CheckpointError, MoshiPipeError, SessionError
from moshi_pipe.models.hub import is_offline
from moshi_pipe.nodes.portaudio import find_device, import_pyaudio, list_devices, portaudio
from moshi_pipe.units import NS_PER_MS, NS_PER_SECOND, format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import torch

    from moshi_pipe.assembly import Assembly
    from moshi_pipe.config import RunConfig
    from moshi_pipe.engine.engine import Engine
    from moshi_pipe.engine.session import Session
    from moshi_pipe.graph.format import Format
    from moshi_pipe.graph.node import SessionSettings
    from moshi_pipe.graph.schedule import Schedule
    from moshi_pipe.models.plan import Plan
    from moshi_pipe.models.protocols import Capabilities, Codec
    from moshi_pipe.models.remote import RemoteOptions

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

SERVER_PORT: Final = 8998

CORE: Final[Mapping[str, str]] = {
    "torch": ">=2.4",
    "hydra-core": ">=1.3.2,<1.5",
    "omegaconf": ">=2.3,<2.5",
    "sentencepiece": ">=0.2",
    "huggingface_hub": ">=0.24",
    "safetensors": ">=0.4.3",
    "sphn": ">=0.2",
    "soundfile": ">=0.12.1",
    "soxr": ">=1.0",
    "pluggy": ">=1.5",
    "packaging": ">=21",
    "numpy": ">=1.26",
    "rich": ">=13",
    "jinja2": ">=3.1",
}
"""What must be installed, and in which versions; a test compares it with ``pyproject.toml``."""

OPTIONAL: Final[Mapping[str, str]] = {
    "pyaudio": "mic",
    "pywebrtc-audio": "echo",
    "starlette": "server",
    "uvicorn": "server",
    "websockets": "server",
    "prometheus_client": "server",
    "cryptography": "server",
}
"""What may be installed, and which extra brings it."""

_NATIVE: Final = ("sentencepiece", "soundfile", "soxr", "sphn")  # each brings a C library
_OLDEST: Final = (3, 10)
_NEWEST: Final = (3, 14)
_HUB_LIMIT_S: Final = 3.0
_ENOUGH_BYTES: Final = 1_000_000_000  # a day of speech is 4 GB
_ROUND_TRIP_FRAMES: Final = 10
_MEASURE_NS: Final = 3 * NS_PER_SECOND
_MEASURE_FRAMES: Final = 500
_NOISE: Final = 0.1  # amplitude; speech is about as loud


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        status: ``ok``, ``warn`` or ``fail``.
        title: What was looked at.
        found: What was found, with numbers.
        fix: What to do about it; empty when it is ok.
    """

    status: str
    title: str
    found: str
    fix: str = ""


@dataclass
class Context:
    """What the checks are about.

    Attributes:
        compose: Makes the configuration.
        now_ns: Reads a clock that never goes back.
    """

    compose: Callable[[], RunConfig]
    now_ns: Callable[[], int] = time.monotonic_ns

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, composed when it is first asked for."""
        return self.compose()

    @cached_property
    def plan(self) -> Plan:
        """The memory that a run needs; nothing is downloaded for it."""
        from moshi_pipe.assembly import plan_run

        return plan_run(self.config, offline=True)


Check = Callable[[Context], Finding]


def check_python(context: Context) -> Finding:
    """Whether this Python and this system are ones that moshi-pipe is tested on."""
    version, system = platform.python_version(), platform.system()
    found = f"{version} on {system} {platform.release()}, {platform.machine()}"
    major, minor = (int(part) for part in version.split(".")[:2])
    if not _OLDEST <= (major, minor) <= _NEWEST:
        between = f"{_dotted(_OLDEST)} to {_dotted(_NEWEST)}"
        return Finding(FAIL, "python", found, f"install into a Python from {between}")
    if system not in ("Linux", "Darwin"):
        fix = "moshi-pipe is tested on Linux; on Windows, WSL is a Linux"
        return Finding(WARN, "python", found, fix)
    return Finding(OK, "python", found)


def check_packages(context: Context) -> Finding:
    """Whether the packages that moshi-pipe needs are there, load, and are not too old or new."""
    installed = {name: _installed(name) for name in (*CORE, *OPTIONAL)}
    problems = {
        name: _package_problem(name, installed[name], wanted) for name, wanted in CORE.items()
    }
    wrong = {name: problem for name, problem in problems.items() if problem}
    listed = ", ".join(wrong.values())
    if set(wrong) == {"sphn"}:  # not on every platform: see pyproject.toml
        fix = "pip install sphn, where it has wheels; without it AAC and the like are not read"
        return Finding(WARN, "packages", listed, fix)
    if wrong:
        names = " ".join(f"'{name}{CORE[name]}'" for name in wrong)
        return Finding(FAIL, "packages", listed, f"pip install --force-reinstall {names}")
    found = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
    missing = [extra for name, extra in OPTIONAL.items() if installed[name] is None]
    extras = list(dict.fromkeys(missing))
    without = f"; not installed: extra {_listed(extras)}" if extras else ""
    return Finding(OK, "packages", found + without)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def check_torch(context: Context) -> Finding:
    """Which device is chosen, and whether threads and driver go with it."""
    import torch

    from moshi_pipe.models.plan import free_gpu_bytes
    from moshi_pipe.nn.backend import choose_device

    config = context.config
    name = config.backend.device if config.backend.backend == "torch" else "auto"
    threads, cores = config.engine.threads, num_cores()
    device = choose_device(name)
    found = (
        f"{torch.__version__}, device={name} takes {_device_name(device)}; "
        f"{format_count(cores, 'core')}, engine.threads={threads}"
    )
    if device.type == "cpu" and name == "auto" and free_gpu_bytes():
        return Finding(
            WARN,
            "torch",
            f"{found}; the driver shows an NVIDIA GPU that this torch cannot use",
            f"install a torch built for CUDA that this driver knows (this one is built for "
            f"{torch.version.cuda or 'no CUDA'}): https://pytorch.org/get-started/locally",
        )
    if threads > cores:
        return Finding(WARN, "torch", found, f"set engine.threads={cores}: more threads only wait")
    return Finding(OK, "torch", found)


def check_memory(context: Context) -> Finding:
    """Whether the model fits."""
    remote = context.config.remote
    if remote is not None:
        found = f"{remote.name} runs at {remote.place}: nothing of it is loaded here"
        return Finding(OK, "memory", found)
    try:
        plan = context.plan
    except CheckpointError as error:
        return _not_here("memory", context.config, error)
    what = f"{plan.model}, {plan.dtype}, {format_count(plan.slots, 'slot')}"
    if plan.fits is None:
        fix = "compare it with what the machine has; `moshi-pipe plan` lists what needs it"
        return Finding(WARN, "memory", f"{what} {plan.verdict}", fix)
    verdict, _, advice = plan.verdict.partition("; ")
    found = f"{what} {verdict}"
    if not plan.fits:
        return Finding(FAIL, "memory", found, f"{advice}; see `moshi-pipe plan`")
    return Finding(OK, "memory", found)


def check_sound(context: Context) -> Finding:
    """Whether there are a microphone and a speaker. Files work without."""
    try:
        with portaudio() as host:
            version = import_pyaudio().get_portaudio_version_text().partition(",")[0]
            devices = list_devices(host)
        if not devices:
            return Finding(WARN, "sound", f"{version} lists no device", NO_DEVICE)
        names = []
        for direction, what in (("input", "microphone"), ("output", "speaker")):
            device = find_device(devices, None, direction)
            names.append(f"{what} '{one_line(device.name)}' ({device.index})")
    except BackendError as error:
        found = f"{error.what}: {error.got}" if error.got else error.what
        return Finding(WARN, "sound", f"{found}; files work without", error.fix or NO_DEVICE)
    return Finding(OK, "sound", ", ".join([version, *names]))


def check_hub(context: Context) -> Finding:
    """Whether the hub that models come from answers."""
    if is_offline(context.config.model.offline):
        return Finding(OK, "hub", "offline, as HF_HUB_OFFLINE or model.offline wants; not asked")
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if urlsplit(endpoint).scheme not in ("http", "https"):
        fix = "set it to an address such as https://huggingface.co, or unset it"
        return Finding(WARN, "hub", f"HF_ENDPOINT is no address: {endpoint}", fix)
    start_ns = context.now_ns()
    reason = _within(_HUB_LIMIT_S, lambda: _why_unreachable(endpoint))
    took_ms = (context.now_ns() - start_ns) / NS_PER_MS
    if reason is None:
        return Finding(OK, "hub", f"{endpoint} answers in {took_ms:.0f} ms")
    return Finding(
        WARN,
        "hub",
        f"{endpoint} cannot be reached: {reason}",
        "models that are here work without; behind a proxy set HTTPS_PROXY, for a mirror "
        "HF_ENDPOINT, or bring a model in a folder: model=local model.path=FOLDER",
    )


def check_cache(context: Context) -> Finding:
    """Whether the folder that models are downloaded into can be written and has room."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    found, reason, free_bytes = _look_at(folder)
    lacking = _lacking_bytes(context)
    if lacking:
        name = context.config.model.name
        found += f"; {name} is not downloaded, it takes about {format_bytes(lacking)}"
    fix = "set HF_HOME to a folder on a disk with room that you may write"
    if reason is not None:
        status = FAIL if lacking else WARN
        return Finding(status, "cache", f"{found}; {reason}", fix)
    if free_bytes < lacking:
        return Finding(FAIL, "cache", found, fix)
    return Finding(OK, "cache", found)


def check_output(context: Context) -> Finding:
    """Whether results can be written."""
    found, reason, free_bytes = _look_at(context.config.output_dir)
    if reason is not None:
        fix = "set output_dir to a folder that you may write"
        return Finding(FAIL, "output", f"{found}; {reason}", fix)
    if free_bytes < _ENOUGH_BYTES:
        fix = "free some, or set output_dir to another disk; speech takes 173 MB an hour"
        return Finding(WARN, "output", found, fix)
    return Finding(OK, "output", found)


def check_port(context: Context) -> Finding:
    """Whether the port that a server takes by default is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as servers do; elsewhere it would take over a port in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", SERVER_PORT))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "taken by another program" if taken else error.strerror or str(error)
            fix = f"end it (`lsof -i :{SERVER_PORT}` names it), or give the server another port"
            return Finding(WARN, "port", f"127.0.0.1:{SERVER_PORT} is {why}", fix)
    return Finding(OK, "port", f"127.0.0.1:{SERVER_PORT} is free for a server")


def check_codec(context: Context) -> Finding:
    """Whether sound survives the way through the embedded codec, on the device that is chosen."""
    import torch

    config = context.config
    with _threads(config.engine.threads):
        codec = open_embedded_codec(config)
        spec, device = codec.spec, torch.device(codec.caps.device)
        encoder, decoder = codec.new_encoder_state(1), codec.new_decoder_state(1)
        valid = torch.ones(1, dtype=torch.bool, device=device)
        noise = torch.Generator().manual_seed(0)
        shape = (1, spec.channels, spec.frame_size)
        pieces = []
        for _ in range(_ROUND_TRIP_FRAMES):
            pcm_BCN = (torch.rand(shape, generator=noise) - 0.5) * 2 * _NOISE
            codes_BK = codec.encode(pcm_BCN.to(device), valid, encoder)
            pieces.append(codec.decode(codes_BK, valid, decoder).clone())
        heard_N = torch.cat(pieces, dim=-1).flatten().cpu()
    wanted = spec.channels * spec.frame_size * _ROUND_TRIP_FRAMES
    found = f"{_ROUND_TRIP_FRAMES} frames on {codec.caps.device}: {heard_N.numel()} samples"
    is_finite = bool(torch.isfinite(heard_N).all())
    if heard_N.numel() == wanted and is_finite:
        return Finding(OK, "codec", f"{found}, all finite")
    wrong = f"{found} of {wanted}" + ("" if is_finite else ", not all finite")
    fix = "try device=cpu; if that works, torch or its driver is broken, else install them again"
    return Finding(FAIL, "codec", wrong, fix)


def check_speed(context: Context) -> Finding:
    """Whether the chosen graph keeps up with a conversation on this machine."""
    from moshi_pipe.assembly import assemble
    from moshi_pipe.plugins import load_plugins

    config = context.config
    if config.remote is not None:
        return _server(config.remote)
    model = replace(config.model, offline=True)
    try:
        if context.plan.fits is False:
            return Finding(
                WARN, "speed", "not measured: the model does not fit", "see memory above"
            )
        assembly = assemble(model, config.graph, config.backend, load_plugins())
    except CheckpointError as error:
        return _not_here("speed", config, error)
    with _threads(config.engine.threads):
        times_ns, caps = measure(assembly, config, context.now_ns)
    return judge_speed(times_ns, caps, assembly.frame_s * 1000, config)


CHECKS: Final[tuple[Check, ...]] = (
    check_python,
    check_packages,
    check_torch,
    check_memory,
    check_sound,
    check_hub,
    check_cache,
    check_output,
    check_port,
    check_codec,
    check_speed,
)
"""All checks, in the order in which they run: those that explain others come first."""


def measure(
    assembly: Assembly, config: RunConfig, now_ns: Callable[[], int]
) -> tuple[list[int], Capabilities]:
    """Load the graph's models and run them on noise for a few seconds, with all slots in use.

    Args:
        assembly: What to run.
        config: Slots and sampling.
        now_ns: Reads the clock.

    Returns:
        How long each frame took, in ns, and where the models ran.

    Raises:
        MoshiPipeError: The models cannot be opened, or a session failed.
    """
    from moshi_pipe.engine.engine import Engine, TickOptions

    schedule = assembly.schedule()
    models = assembly.open_models(schedule)
    settings = assembly.settings(config, live=True)
    top_ks = (settings.top_k, settings.text_top_k)
    engine = Engine(
        lambda: assembly.make_nodes(
            schedule,
            models,
            guided=settings.guidance != 1.0,
            max_candidates=0 if 0 in top_ks else max(top_ks),
        ),
        schedule,
        input_format=assembly.graph.input_format,
        options=TickOptions(num_slots=config.engine.slots, device=models.caps.device),
    )
    sessions = [_session(assembly, schedule, settings) for _ in range(config.engine.slots)]
    engine.open()
    try:
        for session in sessions:
            engine.submit(session)
        engine.no_more()
        return _time_frames(engine, sessions, assembly, now_ns), models.caps
    finally:
        engine.close()


def judge_speed(
    times_ns: Sequence[int], caps: Capabilities, budget_ms: float, config: RunConfig
) -> Finding:
    """Compare what frames took with what a conversation allows.

    Args:
        times_ns: How long each frame took, at least one.
        caps: Where the models ran.
        budget_ms: Duration of a frame.
        config: What ran.
    """
    p50_ms = statistics.median(times_ns) / NS_PER_MS
    p99_ms = sorted(times_ns)[math.ceil(0.99 * len(times_ns)) - 1] / NS_PER_MS
    found = (
        f"{config.model.name} on {caps.device}, {caps.dtype}, "
        f"{format_count(config.engine.slots, 'slot')}: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms "
        f"of {budget_ms:.0f} ms a frame ({format_count(len(times_ns), 'frame')})"
    )
    if p99_ms < budget_ms:
        return Finding(OK, "speed", found)
    faster = ", ".join(_faster(caps, config))
    if p50_ms < budget_ms:
        fix = f"some frames are late: end other programs, or try {faster}"
        return Finding(WARN, "speed", found, fix)
    return Finding(FAIL, "speed", found, f"too slow to talk to, files work: try {faster}")


def open_embedded_codec(config: RunConfig) -> Codec:
    """Open the codec that comes with the package, with the backend of a configuration.

    Raises:
        BackendError: There is no such backend, or it cannot run here.
    """
    from moshi_pipe.models.checkpoint import MIMI, ModelOptions, open_checkpoint
    from moshi_pipe.plugins import load_plugins

    checkpoint = open_checkpoint(ModelOptions(), parts=[MIMI])
    return load_plugins().open_codec(checkpoint, config.backend, _tell_nobody)


def meets(version: str, wanted: str) -> bool:
    """Whether a version such as ``2.4.1+cpu`` meets limits such as ``>=2.3,<2.5``."""
    for limit in wanted.split(","):
        bound = _numbers(limit.lstrip("<>="))
        ours = _numbers(version)
        if (ours < bound) if limit.startswith(">=") else (ours >= bound):
            return False
    return True


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _time_frames(
    engine: Engine, sessions: Sequence[Session], assembly: Assembly, now_ns: Callable[[], int]
) -> list[int]:
    """Time ticks of noise; the first, in which sessions join, only counts if it is the only one."""
    import numpy as np

    noise = np.random.default_rng(0)
    times_ns: list[int] = []
    began_ns = end_ns = now_ns()
    while len(times_ns) <= _MEASURE_FRAMES and end_ns - began_ns < _MEASURE_NS:
        for session in sessions:
            row = {assembly.graph.input: _noise(assembly.graph.input_format, noise)}
            session.inbox.put(session.next_frame, row)
        start_ns = now_ns()
        engine.tick()
        end_ns = now_ns()
        times_ns.append(end_ns - start_ns)
        for session in sessions:
            if session.failure is not None:
                raise session.failure
            session.outbox.take()
    return times_ns[1:] or times_ns


def _session(assembly: Assembly, schedule: Schedule, settings: SessionSettings) -> Session:
    from moshi_pipe.engine.session import make_session

    graph = assembly.graph
    return make_session(
        "doctor",
        settings,
        {graph.input: graph.input_format},
        {name: graph.output_formats[name] for name in schedule.outputs},
        inbox_frames=1,
        outbox_frames=1,
    )


def _noise(form: Format, noise: np.random.Generator) -> npt.NDArray[Any]:
    """One frame of a graph's input: quiet noise, or codes."""
    from moshi_pipe.graph.format import Codes

    if isinstance(form, Codes):
        return noise.integers(0, form.cardinality, form.shape)
    return noise.uniform(-_NOISE, _NOISE, form.shape).astype("float32")


def _faster(caps: Capabilities, config: RunConfig) -> list[str]:
    """What makes frames faster, the least costly first."""
    on_cpu, cores = caps.device == "cpu", num_cores()
    ways = []
    if on_cpu and config.engine.threads < cores:
        ways.append(f"engine.threads={cores}")
    if on_cpu and caps.quant is None and caps.backend == "torch":
        ways.append("quant=int8")
    if caps.dtype == "float32" and caps.quant is None:
        ways.append("dtype=bfloat16")
    if config.engine.slots > 1:
        ways.append("fewer engine.slots")
    ways.append("a smaller model")
    return [*ways, "a GPU (device=cuda)"] if on_cpu else ways


def _server(options: RemoteOptions) -> Finding:
    """Whether the server of a remote model holds conversations."""
    from moshi_pipe.remote.probe import probe

    try:
        found = probe(options)
    except MoshiPipeError as error:
        status = WARN if isinstance(error, SessionError) else FAIL
        said = "; ".join(text for text in (error.what, error.got) if text)
        return Finding(status, "server", said, error.fix or "look into the server's log")
    took_ms = found.began_s * 1000
    return Finding(OK, "server", f"{found.url} began after {took_ms:.0f} ms: {found.what}")


def _lacking_bytes(context: Context) -> int:
    """About how much is to be downloaded for the chosen model; 0 when it is here."""
    from moshi_pipe.assembly import parts_needed
    from moshi_pipe.models.checkpoint import open_checkpoint

    config = context.config
    if config.model.path is not None or config.model.repo is None:
        return 0
    try:
        open_checkpoint(replace(config.model, offline=True), parts=parts_needed(config.graph))
    except CheckpointError:
        return _download_bytes(config)
    return 0


def _download_bytes(config: RunConfig) -> int:
    """Size of a model's weights as they are released: the language model in bfloat16."""
    from moshi_pipe.assembly import plan_run

    released = replace(config.backend, device="cpu", dtype="bfloat16")
    try:
        rows = plan_run(replace(config, backend=released), offline=True).rows
    except CheckpointError:  # its config is not here either
        return _ENOUGH_BYTES
    return sum(row.num_bytes for row in rows if row.what.startswith("weights"))


def _not_here(title: str, config: RunConfig, error: CheckpointError) -> Finding:
    """Say how to get a model that is not downloaded.

    Raises:
        CheckpointError: ``error``, when it means something else.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not isinstance(error.__cause__, LocalEntryNotFoundError):
        raise error
    model = config.model
    pinned = f" --revision {model.revision}" if model.revision else ""
    now = f", and so does now: hf download {model.repo}{pinned}" if model.repo else ""
    found = f"not checked: files of {model.name} are not downloaded"
    return Finding(WARN, title, found, f"the first run downloads them{now}")


def _look_at(folder: Path) -> tuple[str, str | None, int]:
    """Look at a folder that will be written into.

    Returns:
        The folder and its room in words; why it cannot be written into, or None; bytes free.
    """
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    free_bytes = disk_usage(there).free
    absent = "" if there == folder else " (not there yet)"
    found = f"{folder}{absent}, {format_bytes(free_bytes)} free"
    if not there.is_dir():
        return found, f"{there} is a file", free_bytes
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return found, f"cannot write into {there}: {error.strerror or error}", free_bytes
    return found, None, free_bytes


def _why_unreachable(url: str) -> str | None:
    """Ask for the head of a page; None when something answers, else why not."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=_HUB_LIMIT_S):
            return None
    except HTTPError as error:
        error.close()
        is_there = error.code < 500 and error.code != 407  # 407: a proxy refused
        return None if is_there else f"HTTP {error.code} {error.reason}"
    except URLError as error:
        return getattr(error.reason, "strerror", None) or str(error.reason)
    except Exception as error:  # on a thread, where nobody would see it
        return str(error) or type(error).__name__


def _within(limit_s: float, ask: Callable[[], str | None]) -> str | None:
    """Ask on a thread of its own: looking up a name does not keep to any time limit."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(limit_s)
    return answers[0] if answers else f"no answer within {limit_s:g} s"


def _package_problem(name: str, version: str | None, wanted: str) -> str | None:
    if version is None:
        return f"{name} is missing"
    if not meets(version, wanted):
        return f"{name} {version} is not {wanted}"
    if name in _NATIVE:
        try:
            import_module(name)
        except Exception as error:  # whatever a broken library raises
            return f"{name} {version} does not load: {error}"
    return None


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    """The release of a version: ``[2, 4, 1]`` of ``2.4.1+cpu``; trailing zeros do not count."""
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use as many threads as a run would, while the block runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tell_nobody(done: int, total: int) -> None:
    """Where nobody waits for a model to load."""
