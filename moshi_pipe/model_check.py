"""``moshi-pipe check``: does a model work here, and what are its figures?

It is for the first contact with weights that its authors could not try: everything that can be
measured without an opinion is measured and printed, ready to be sent to them.
"""

from __future__ import annotations

import hashlib
import math
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.assembly import assemble
from moshi_pipe.errors import CheckpointError, MoshiPipeError
from moshi_pipe.report import peak_rss_bytes, versions
from moshi_pipe.units import NS_PER_MS, format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.assembly import Assembly, Models
    from moshi_pipe.config import RunConfig
    from moshi_pipe.models.layout import Layout

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"

LISTEN_S: Final = 10.0
"""Seconds of clip and silence that the language model hears."""

_LISTED: Final = 5  # tensors in one finding
_HASH_FRAMES: Final = 25  # 2 s: what rounding differs in later does not change these
# A trained codec of 8 codebooks keeps the spectrum of speech to some dB; noise is 20 dB off. Our
# own bounds, to tell a codec that works from one that does not; not a measure of quality.
_MEL_BOUND_DB: Final = 12.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one part of the check found.

    Attributes:
        status: ``ok``, ``warn`` or ``fail``.
        title: What was looked at.
        found: What was found, with numbers.
    """

    status: str
    title: str
    found: str


@dataclass(slots=True)
class ModelCheck:
    """All that a check found.

    Attributes:
        model: Name, and where its files come from.
        verdict: One sentence.
        passed: Whether nothing failed.
        random: Whether the weights were never trained.
        results: In the order in which they were found.
        figures: Numbers by name, to be compared between machines.
        versions: Of the program, its libraries and the system.
    """

    model: str
    verdict: str = ""
    passed: bool = False
    random: bool = False
    results: list[Result] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self)


def clip_path() -> Path:
    """The spoken question that comes with the package, 24 kHz mono, made by espeak-ng."""
    here = Path(__file__).resolve().parent
    for path in (here / "embedded" / "question.wav", here.parent / "examples" / "question.wav"):
        if path.is_file():
            return path
    raise CheckpointError("this installation lacks its spoken clip", fix="give one: clip=FILE")


def check_model(
    config: RunConfig,
    clip: Path,
    *,
    tell: Callable[[Result], None] = lambda result: None,
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> ModelCheck:
    """Check the model of a configuration.

    Each part stands alone where it can: a codec that fails does not hide the language model.

    Args:
        config: What to load, and where; its source and sinks are not used.
        clip: A recording of speech.
        tell: Called with each result as soon as it is there.
        now_ns: Reads a clock that never goes back.

    Raises:
        InputError: The clip is no recording.
        MoshiPipeError: The model cannot be found.
    """
    from moshi_pipe.nodes.audio_reader import probe
    from moshi_pipe.plugins import load_plugins

    probe(clip)  # else the model would be blamed
    plugins = load_plugins()
    assembly = assemble(config.model, config.graph, config.backend, plugins)
    check = ModelCheck(f"{config.model.title} from {assembly.checkpoint.where}")
    check.random = assembly.checkpoint.is_random
    check.figures["machine"] = _machine(config)
    run = _Run(config, assembly, clip, check, tell, now_ns)
    for part in (run.check_tensors, run.load, run.check_codec, run.check_lm):
        try:
            part()
        except MoshiPipeError as error:
            title = part.__name__.removeprefix("check_").replace("_", " ")
            run.add(FAIL, title, " ".join(str(error).split()))
            if part == run.load:
                break
    peak = peak_rss_bytes()
    if peak is not None:
        check.figures["peak_rss_bytes"] = peak
    failed = [result.title for result in check.results if result.status == FAIL]
    warned = [result.title for result in check.results if result.status == WARN]
    check.passed = not failed
    check.verdict = _verdict(check, failed, warned)
    return check


def _verdict(check: ModelCheck, failed: Sequence[str], warned: Sequence[str]) -> str:
    if failed:
        return f"does not work: {', '.join(failed)}"
    doubts = f"; look at: {', '.join(warned)}" if warned else ""
    if check.random:
        return f"works, with random weights: what it says means nothing{doubts}"
    return f"works{doubts}"


@dataclass
class _Run:
    """One check under way."""

    config: RunConfig
    assembly: Assembly
    clip: Path
    check: ModelCheck
    tell: Callable[[Result], None]
    now_ns: Callable[[], int]
    models: Models | None = None

    def add(self, status: str, title: str, found: str) -> None:
        result = Result(status, title, found)
        self.check.results.append(result)
        self.tell(result)

    def check_tensors(self) -> None:
        """Read every tensor once: are its numbers finite and alive?"""
        from moshi_pipe.models.layout import lm_layout, mimi_layout

        checkpoint = self.assembly.checkpoint
        if checkpoint.mimi_weights is not None and checkpoint.mimi is not None:
            self._check_file("codec", checkpoint.mimi_weights, mimi_layout(checkpoint.mimi))
        if checkpoint.lm_weights is not None and checkpoint.config.lm is not None:
            self._check_file("lm", checkpoint.lm_weights, lm_layout(checkpoint.config.lm))

    def _check_file(self, part: str, path: Path, layout: Layout) -> None:
        from moshi_pipe.models.weight_check import match_weights
        from moshi_pipe.nn.tensor_figures import tensor_figures

        contents = match_weights(path, layout)
        figures = tensor_figures(contents)
        self.check.figures[f"{part}_format"] = contents.format
        self.check.figures[f"{part}_quantization"] = contents.quantization
        self.check.figures[f"{part}_bytes"] = contents.header.file_size
        self.check.figures[f"{part}_parameters"] = contents.num_parameters
        self.check.figures[f"{part}_rms"] = round(figures.rms, 6)
        found = (
            f"{format_count(len(contents.stored), 'tensor')}, {contents.format}, "
            f"{contents.num_parameters / 1e6:,.1f} M parameters, "
            f"rms {figures.rms:.4f}, largest {figures.largest:.3g}"
        )
        if figures.not_finite:
            self.add(FAIL, f"{part} tensors", f"{found}; not finite: {_some(figures.not_finite)}")
        elif figures.dead:
            self.add(WARN, f"{part} tensors", f"{found}; one value only: {_some(figures.dead)}")
        else:
            self.add(OK, f"{part} tensors", f"{found}; all finite, none dead")

    def load(self) -> None:
        """Load the models as a run would."""
        import torch

        torch.set_num_threads(self.config.engine.threads)
        start = self.now_ns()
        self.models = self.assembly.open_models(self.assembly.schedule())
        load_s = (self.now_ns() - start) / 1e9
        caps = self.models.caps
        self.check.figures |= {
            "load_s": round(load_s, 2),
            "backend": caps.backend,
            "device": caps.device,
            "dtype": caps.dtype,
        }
        found = f"{caps.backend} on {caps.device}, {caps.dtype}, loaded in {load_s:.1f} s"
        self.add(OK, "load", found)

    def check_codec(self) -> None:
        """Encode and decode the clip."""
        import numpy as np
        import torch

        codec = None if self.models is None else self.models.codec
        if codec is None:
            return
        pcm = self._pcm(codec.spec.sample_rate)
        size = codec.spec.frame_size
        frames = pcm[: len(pcm) // size * size].reshape(-1, size)
        encoder, decoder = codec.new_encoder_state(1), codec.new_decoder_state(1)
        valid_B = torch.ones(1, dtype=torch.bool, device=codec.caps.device)
        codes, heard, times_ns = [], [], []
        with torch.inference_mode():
            for frame in frames:
                pcm_BCN = torch.from_numpy(frame.copy())[None, None].to(codec.caps.device)
                start = self.now_ns()
                codes_BK = codec.encode(pcm_BCN, valid_B, encoder)
                audio = codec.decode(codes_BK, valid_B, decoder)
                codes.append(codes_BK[0].cpu().numpy().copy())
                heard.append(audio[0, 0].cpu().numpy().copy())
                times_ns.append(self.now_ns() - start)
        code_table = np.stack(codes)
        decoded = np.concatenate(heard)
        snr_db = _snr_db(frames.reshape(-1), decoded)
        mel_db = mel_distance_db(frames.reshape(-1), decoded, codec.spec.sample_rate)
        distinct = len(np.unique(code_table[:, 0]))
        self.check.figures |= {
            "codec_snr_db": round(snr_db, 2),
            "codec_mel_distance_db": round(mel_db, 2),
            "codec_codes_hash": _digest(code_table[:_HASH_FRAMES]),
            "codec_codes_hash_all": _digest(code_table),
            "codec_ms": round(statistics.median(times_ns) / NS_PER_MS, 2),
        }
        found = (
            f"{format_count(len(frames), 'frame')} of speech, {distinct} different first codes, "
            f"SNR {snr_db:.1f} dB, log-mel distance {mel_db:.1f} dB"
        )
        alive = bool(np.isfinite(decoded).all()) and distinct > 1
        if not alive:
            self.add(FAIL, "codec", f"{found}: silent, stuck or not finite")
        elif mel_db > _MEL_BOUND_DB and not self.check.random:
            self.add(WARN, "codec", f"{found}: farther than {_MEL_BOUND_DB:.0f} dB")
        else:
            self.add(OK, "codec", found)

    def check_lm(self) -> None:
        """Run the whole graph greedily on the clip and silence."""
        import numpy as np

        from moshi_pipe.api import Model

        assembly, models = self.assembly, self.models
        if models is None or models.lm is None:
            return
        frame_s, rate = assembly.frame_s, assembly.codec.sample_rate
        pcm = np.zeros(round(LISTEN_S * rate), np.float32)
        clip = self._pcm(rate)[: len(pcm)]
        pcm[: len(clip)] = clip
        tokens: list[int] = []
        codes: list[npt.NDArray[np.int64]] = []
        text, times_ns = "", []
        model = Model(self.config, assembly, assembly.schedule(), models)
        session = model.session(temperature=0.0, text_temperature=0.0, seed=0, end_on_text=None)
        with session:
            size = assembly.codec.frame_size
            for first in range(0, len(pcm) - size + 1, size):
                start = self.now_ns()
                frame = session.feed(pcm[first : first + size])
                times_ns.append(self.now_ns() - start)
                tokens += [frame.token] if frame.token is not None else []
                codes += [frame.codes] if frame.codes is not None else []
                text += frame.text
        said = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        warm = sorted(times_ns[1:] or times_ns)
        p50 = statistics.median(warm) / NS_PER_MS
        p99 = warm[math.ceil(0.99 * len(warm)) - 1] / NS_PER_MS
        self.check.figures |= {
            "step_ms_p50": round(p50, 2),
            "step_ms_p99": round(p99, 2),
            "tokens_hash": _digest(np.array(tokens[:_HASH_FRAMES])),
            "tokens_hash_all": _digest(np.array(tokens)),
            "first_tokens": tokens[:_HASH_FRAMES],
            "text": said,
        }
        if codes:
            self.check.figures["lm_codes_hash"] = _digest(np.stack(codes[:_HASH_FRAMES]))
            self.check.figures["lm_codes_hash_all"] = _digest(np.stack(codes))
        found = (
            f"{format_count(len(times_ns), 'frame')} greedy, p50 {p50:.1f} ms, p99 {p99:.1f} ms of "
            f"{1000 * frame_s:.0f} ms; {len(set(tokens))} different tokens"
        )
        found += f'; said "{said[:80]}"' if said else "; said nothing"
        stuck = len(set(tokens)) < 2 and not self.check.random
        self.add(WARN if stuck else OK, "language model", found)

    def _pcm(self, rate: int) -> npt.NDArray[np.float32]:
        """The clip at a rate, one channel."""
        import numpy as np

        from moshi_pipe.engine.framing import Reframer
        from moshi_pipe.nodes.audio_reader import probe, read

        properties = probe(self.clip)
        size = self.assembly.codec.frame_size
        reframer = Reframer(properties.sample_rate, rate, size, lead_s=0.0, tail_s=0.0)
        frames = [f for chunk in read(self.clip, properties) for f in reframer.push(chunk)]
        frames += reframer.finish()
        return np.concatenate([np.asarray(frame).reshape(-1) for frame in frames])


def mel_distance_db(
    ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32], sample_rate: int
) -> float:
    """Mean distance of two recordings in dB, over 64 mel bands of 25 ms windows.

    Bands more than 60 dB below the loudest count as that low, so that silence does not rule.
    """
    import numpy as np

    width = round(0.025 * sample_rate)
    hop = width // 2
    window = np.hanning(width).astype(np.float32)
    count = 1 + (min(len(ours), len(theirs)) - width) // hop
    if count < 1:
        return math.nan
    places = np.arange(count)[:, None] * hop + np.arange(width)
    bank = _mel_bank(width, sample_rate)
    spectra = [np.abs(np.fft.rfft(pcm[places] * window)) ** 2 @ bank.T for pcm in (ours, theirs)]
    floor = max(float(spectra[0].max()) * 1e-6, 1e-12)
    levels = [10 * np.log10(np.maximum(spectrum, floor)) for spectrum in spectra]
    return float(np.abs(levels[0] - levels[1]).mean())


def _mel_bank(width: int, sample_rate: int, num_bands: int = 64) -> npt.NDArray[np.float32]:
    """Triangles that are even on the mel scale, ``[bands, width / 2 + 1]``."""
    import numpy as np

    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top, num_bands + 2) / 2595) - 1)
    bins_hz = np.fft.rfftfreq(width, 1 / sample_rate)
    low, middle, high = (edges_hz[i : i + num_bands, None] for i in range(3))
    up, down = (bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)
    bank: npt.NDArray[np.float32] = np.maximum(0, np.minimum(up, down)).astype(np.float32)
    return bank


def _snr_db(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """Signal to error in dB, sample by sample."""
    import numpy as np

    signal = float(np.square(ours, dtype=np.float64).sum())
    error = float(np.square(ours - theirs, dtype=np.float64).sum())
    return 10 * math.log10(max(signal, 1e-20) / max(error, 1e-20))


def _digest(array: npt.NDArray[Any]) -> str:
    """A short hash of integers, the same on every machine."""
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()[:16]


def _machine(config: RunConfig) -> str:
    return f"{platform.machine()}, {format_count(config.engine.threads, 'thread')}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def check_text(check: ModelCheck) -> str:
    """The figures and the verdict, as they are to be sent."""
    lines = ["", "figures (send them with the model's name):"]
    for name, value in check.figures.items():
        shown = format_bytes(value) if name.endswith("_bytes") else value
        lines.append(f"  {name:<22} {shown}")
    lines += [f"  {name:<22} {version}" for name, version in check.versions.items()]
    return "\n".join([*lines, "", f"{check.model}: {check.verdict}"]) + "\n"
