"""What is done already: seeds that follow from ids, and signatures of what shapes a result."""

from __future__ import annotations

import hashlib
import json
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import OutputError
from moshi_pipe.identity import file_stamp, read_composed
from moshi_pipe.report import read_record, read_report, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.node import SessionInput

_SEED_BITS: Final = 63

# Keys that change where results go or how fast they are made, not what they are.
_NOT_IN_SIGNATURE: Final = ("output_dir", "resume", "experiment", "hydra")
_NOT_IN_SIGNATURE_OF_SOURCE: Final = ("path",)
_ALL_IN_SIGNATURE_OF_ENGINE: Final = ("slots", "threads")

# What a source may say of a session that shapes its result.
_IDENTITY: Final = ("path", "start_s", "duration_s", "channel")


def derive_seed(seed: int, session_id: str) -> int:
    """Seed of a session: follows from the run's seed and the session's id, not from its place."""
    digest = hashlib.sha256(f"{seed}:{session_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - _SEED_BITS)


def choose_seed(config: RunConfig, *, live: bool) -> int:
    """The run's seed: as configured, else that of the run which is resumed, else drawn."""
    if config.seed is not None:
        return config.seed
    earlier = read_report(config.output_dir) if config.resume and not live else {}
    seed = earlier.get("seed")
    return seed if isinstance(seed, int) else secrets.randbits(31)


def run_signature(config: RunConfig, files: Sequence[Path]) -> str:
    """Hash of everything that shapes every session's results: configuration, model, version."""
    composed = read_composed(config.composed)
    kept = {k: v for k, v in composed.items() if k not in _NOT_IN_SIGNATURE}
    source, engine = kept.get("source") or {}, kept.get("engine") or {}
    kept["source"] = {k: v for k, v in source.items() if k not in _NOT_IN_SIGNATURE_OF_SOURCE}
    kept["engine"] = {k: v for k, v in engine.items() if k in _ALL_IN_SIGNATURE_OF_ENGINE}
    stamp = [kept, [file_stamp(path) for path in files], versions()["moshi-pipe"]]
    return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:16]


def session_signature(signature: str, meta: Mapping[str, Any], seed: int) -> str:
    """Identifies configuration and input: a changed file or key makes results anew."""
    stamp = [signature, seed, [meta.get(name) for name in _IDENTITY]]
    if "path" in meta:
        stamp.append(file_stamp(Path(meta["path"])))
    return hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]


def is_done(record: Path, signature: str, outputs: Sequence[Path]) -> bool:
    """Whether an earlier run finished a session with the same configuration and input.

    Args:
        record: What it wrote about the session.
        signature: Of the session now.
        outputs: Files that must be there.
    """
    done = read_record(record)
    return (
        done.get("status") == "done"
        and done.get("signature") == signature
        and all(path.is_file() for path in outputs)
    )


def keep_input(item: SessionInput, outputs: Sequence[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        OutputError: Names the file.
    """
    source = item.meta.get("path")
    for path in outputs:
        with suppress(OSError):
            if source is not None and path.samefile(source):
                raise OutputError(
                    f"the results of {path} would be written over it",
                    fix="choose another folder: output_dir=FOLDER",
                )


def keep_others(item: SessionInput, record: Path, outputs: Sequence[Path]) -> None:
    """Refuse to write over the results of another input that has the same name.

    Raises:
        OutputError: Names both inputs.
    """
    source = item.meta.get("path")
    done = read_record(record)
    earlier = done.get("input")
    written = [path for path in outputs if path.is_file()]
    if source is None or earlier in (None, source) or done.get("status") != "done" or not written:
        return
    raise OutputError(
        f"the results of {source} would be written over those of {earlier}",
        got=f"the same name for both: {written[0]}",
        fix="choose another folder, output_dir=FOLDER, or move the earlier results",
    )
