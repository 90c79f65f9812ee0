"""What sources may know of a run once its models are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.graph.host import RunFacts
from moshi_pipe.remote.assembly import RemoteAssembly
from moshi_pipe.remote.audio import FRAME_SIZE, SAMPLE_RATE
from moshi_pipe.report import versions

if TYPE_CHECKING:
    from moshi_pipe.assembly import Assembly, Models
    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.node import SessionSettings
    from moshi_pipe.graph.schedule import Schedule
    from moshi_pipe.models.spec import LMSpec


def max_candidates(settings: SessionSettings) -> int:
    """Most candidates that a session may choose from, 0 for all.

    As many as the run itself has, of codes or of text: noise is drawn for so many.
    """
    wanted = (settings.top_k, settings.text_top_k)
    return 0 if 0 in wanted else max(wanted)


def late_policy(late: str | None, *, live: bool) -> str:
    """What happens to frames that the models are too late for; None chooses by the source."""
    return late or ("drop_oldest" if live else "slow_down")


def numerics_line(config: RunConfig, device: str) -> str | None:
    """Which forms the language model is computed in, and what else rounds; None where not by torch.

    What quantizing does is said of the weights themselves.

    Args:
        config: The run.
        device: That was chosen.
    """
    backend = config.backend
    if config.remote is not None or backend.backend != "torch":
        return None
    parts = [backend.numerics]
    parts += [] if backend.kv_dtype is None else [f"keys and values in {backend.kv_dtype}"]
    if device.startswith("cuda") and backend.cuda_kernels != "torch":
        parts.append(f"kernels of {backend.cuda_kernels}")
    return ", ".join(parts)


def make_facts(
    config: RunConfig,
    assembly: Assembly | RemoteAssembly,
    models: Models,
    schedule: Schedule,
    settings: SessionSettings,
    *,
    seed: int,
    slots: int,
    live: bool,
) -> RunFacts:
    """Gather what does not change while a run lasts.

    Args:
        config: The run.
        assembly: Its model, found.
        models: Loaded; of a remote model nothing is.
        schedule: What is computed.
        settings: What a session gets that asks for nothing.
        seed: Of the run.
        slots: Sessions that the engine holds at once.
        live: Whether audio comes at its own pace.
    """
    caps, remote = models.caps, isinstance(assembly, RemoteAssembly)
    most = max_candidates(settings)
    if isinstance(assembly, RemoteAssembly):
        lm, random, model_type = None, False, "moshi"
        sample_rate, frame_samples = SAMPLE_RATE, FRAME_SIZE
    else:
        lm, random = assembly.lm, assembly.checkpoint.is_random
        model_type = assembly.model_type
        sample_rate, frame_samples = assembly.codec.sample_rate, assembly.codec.frame_size
    return RunFacts(
        model=config.model.name,
        random=random,
        model_type=model_type,
        backend="remote" if remote else caps.backend,
        device=config.remote.url if config.remote is not None else caps.device,
        dtype="unknown" if remote else caps.dtype,
        quant=None if remote else caps.quant,
        slots=slots,
        frame_s=assembly.frame_s,
        frame_samples=frame_samples,
        sample_rate=sample_rate,
        settings=settings,
        max_top_k=_most(most, lm, "cardinality"),
        max_text_top_k=_most(most, lm, "text_cardinality"),
        outputs=tuple(schedule.outputs),
        tokenizer=assembly.tokenizer(),
        late=late_policy(config.engine.late, live=live),
        numerics=config.backend.numerics,
        seed=seed,
        versions=versions(),
    )


def _most(candidates: int, lm: LMSpec | None, of: str) -> int:
    """Most candidates among as many as there are; without a model here, as many as are asked."""
    if lm is None:
        return max(1, candidates)
    largest: int = getattr(lm, of)
    return min(candidates or largest, largest)
