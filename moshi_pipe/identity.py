"""What makes two runs the same run: a signature of their configuration, wherever it runs.

Nothing heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Keys that say where a run happens and where its results go, not what they are.
_PLACES: Final = ("output_dir", "resume", "experiment", "hydra", "device")
_PATH_NAMES: Final = ("path", "dir")
_PATH_ENDS: Final = ("_path", "_dir")
PACE: Final = (
    *("inbox_frames", "outbox_frames"),
    *("late", "max_lag_ms", "budget_ms", "min_interval_ms", "admit_ms", "restarts"),
)
"""Keys of ``engine`` that change how fast a run goes."""

MANIFEST_SUFFIXES: Final = (".jsonl", ".ndjson", ".csv")
"""Endings of files that list recordings."""

_LETTERS: Final = 16


def read_composed(composed: str) -> dict[str, Any]:
    """A configuration as plain values.

    Args:
        composed: As a run writes it into ``config.yaml``.

    Raises:
        ConfigError: It is no mapping.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.create(composed))
    if not isinstance(values, dict):
        raise ConfigError("the composed configuration is no mapping")
    return {str(key): value for key, value in values.items()}


def is_path_key(key: str) -> bool:
    """Whether a key holds a path, by its last part."""
    last = key.rpartition(".")[2]
    return last in _PATH_NAMES or last.endswith(_PATH_ENDS)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with their dots, and values; an empty mapping is a value."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from flat(value, f"{key}.")
        else:
            yield key, value


def run_identity(composed: str) -> str:
    """Signature of a run: of its configuration without device, paths and pace.

    Two runs with the same signature were asked for the same, on whatever machine and folder.

    Raises:
        ConfigError: ``composed`` is no configuration.
    """
    values = read_composed(composed)
    for name in _PLACES:
        values.pop(name, None)
    engine = values.get("engine") or {}
    values["engine"] = {key: value for key, value in engine.items() if key not in PACE}
    return digest(sorted((k, v) for k, v in flat(values) if not is_path_key(k)))


def swept_aside(composed: str, swept: Iterable[str]) -> list[tuple[str, Any]]:
    """What a signature leaves aside, where a sweep makes it differ: keys and values.

    Args:
        composed: The configuration.
        swept: Keys, groups or ``experiment``, which may set any key.

    Raises:
        ConfigError: ``composed`` is no configuration.
    """
    names = [name.replace("/", ".") for name in swept]
    paced = {f"engine.{key}" for key in PACE}
    return sorted(
        (key, value)
        for key, value in flat(read_composed(composed))
        if key == "device" or key in paced or (key.startswith("sink.") and is_path_key(key))
        if any(sets(name, key) for name in names)
    )


def sets(name: str, key: str) -> bool:
    """Whether a word that begins with ``name=`` may set a key: itself, its group, an experiment."""
    return name in (key, "experiment") or key.startswith(f"{name}.")


def reads_one_file(composed: str) -> bool:
    """Whether a run reads a single recording or none, so that :func:`input_places` tells of all.

    Not so of a folder, a pattern, an address or a manifest.

    Raises:
        ConfigError: ``composed`` is no configuration.
    """
    given = [
        str(value)
        for key, value in flat(read_composed(composed))
        if key.startswith("source.") and is_path_key(key) and value
    ]
    return all(
        Path(path).is_file() and not path.lower().endswith(MANIFEST_SUFFIXES) for path in given
    )


def input_places(composed: str) -> list[tuple[str, str, list[list[int]]]]:
    """Where a run reads: key, path, and size and time of the files there.

    A folder counts by its path: what lies in it is compared session by session.

    Raises:
        ConfigError: ``composed`` is no configuration.
    """
    given = sorted(
        (key, value)
        for key, value in flat(read_composed(composed))
        if is_path_key(key) and isinstance(value, str) and not key.startswith(("output_", "sink."))
    )
    return [(key, value, _stamps(key, Path(value))) for key, value in given]


def _stamps(key: str, path: Path) -> list[list[int]]:
    """Size and time of a file; of a model's folder, of the files in it."""
    with suppress(OSError):
        if path.is_file():
            return [file_stamp(path)]
        if key.startswith("model."):
            return [file_stamp(file) for file in sorted(path.iterdir()) if file.is_file()]
    return []


def file_stamp(path: Path) -> list[int]:
    """Size and time of a file; nothing where there is none."""
    with suppress(OSError):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    return []


def digest(values: Iterable[Any]) -> str:
    """Short hash of plain values, in their order."""
    text = json.dumps(list(values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_LETTERS]
