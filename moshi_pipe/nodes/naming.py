"""Names of result files from a template over the session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from moshi_pipe.errors import ConfigError, OutputError, closest
from moshi_pipe.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.graph.node import SessionInfo


def output_path(template: str, session: SessionInfo, suffix: str) -> Path:
    """Fill a template and put it under the session's output folder.

    Args:
        template: Text with fields in braces: ``{id}``, ``{seed}`` and what the source gives, such
            as ``{stem}``, ``{index}`` and ``{parent}``; may hold ``/`` for folders.
        session: Gives the fields.
        suffix: Added unless the name ends with it, such as ``.wav``.

    Raises:
        ConfigError: A field that the session does not have, a template that cannot be read, no
            name, or a path out of the output folder.
    """
    fields = {**session.meta, "id": session.id, "seed": session.seed}
    for name in _field_names(template):
        if name not in fields:
            raise ConfigError(
                f"the output name '{template}' asks for '{name}', which this session does not have",
                wanted=closest(name, [key for key in fields if isinstance(key, str)]),
            )
    name = _fill(template, fields)
    if not name.endswith(suffix):
        name += suffix
    root = session.output_dir.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(
            f"the output name '{template}' leaves the output folder",
            got=str(path),
            wanted=f"a path under {root}",
            fix="change output_dir instead",
        )
    return path


def make_room(path: Path) -> None:
    """Make the folder of a result file.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: Exception) -> OutputError:
    """Explain why a result file could not be written: reason, place, free space."""
    reason = getattr(error, "strerror", None) or str(error)
    folder = next((p for p in [path, *path.parents] if os.path.isdir(p)), Path("/"))
    free = f", {format_bytes(shutil.disk_usage(folder).free)} free"
    writable = os.access(folder, os.W_OK)
    return OutputError(
        f"cannot write {path}",
        got=f"{reason} ({folder}: {'writable' if writable else 'not writable'}{free})",
        fix="free some space, or choose another folder with output_dir=",
    )


def _field_names(template: str) -> list[str]:
    try:
        parsed = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _unreadable(template, error) from error
    return [name.split(".")[0].split("[")[0] for name in parsed]


def _fill(template: str, fields: Mapping[str, Any]) -> str:
    try:
        name = template.format(**fields)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise _unreadable(template, error) from error
    if not name or name.endswith("/") or "\0" in name:
        raise ConfigError(
            f"the output name '{template}' names no file",
            got=repr(name),
            wanted="a name such as {stem}",
        )
    return name


def _unreadable(template: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the output name '{template}' cannot be read",
        got=str(error),
        wanted="fields in braces, such as {stem}; write {{ for a brace",
    )
