"""Finding input files and naming them."""

from __future__ import annotations

import glob
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from moshi_pipe.errors import InputError, closest

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAGIC = re.compile(r"[*?\[]")


def find_files(text: str, *, suffixes: Sequence[str], recursive: bool = False) -> list[Path]:
    """Turn a file, a glob or a folder into files, in natural order (``a2`` before ``a10``).

    An existing file is taken literally, even if its name looks like a glob.

    Args:
        text: What the user wrote; ``~`` is the home folder.
        suffixes: Endings that are taken from a folder, lower case with the dot.
        recursive: Look into sub-folders of a folder.

    Raises:
        InputError: Nothing is there, or nothing of these kinds.
    """
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return [path.absolute()]
        if path.is_dir():
            return _in_folder(path, suffixes, recursive)
        if _MAGIC.search(text):
            return _matching(str(path))
    except OSError as error:
        raise InputError(f"cannot look at {path}", got=error.strerror or str(error)) from error
    raise _missing(path)


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which numbers inside names count as numbers."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name per file that no other has: its stem, made longer only where stems are equal.

    What is added (the folder's name, then the ending, then a number) follows from the files alone.
    """
    names = [path.stem for path in paths]
    for longer in (
        lambda path: f"{path.parent.name}-{path.stem}",
        lambda path: f"{path.parent.name}-{path.stem}-{path.suffix[1:]}",
    ):
        taken = Counter(names)
        names = [
            longer(path) if taken[name] > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    taken, seen = Counter(names), Counter[str]()
    for i, name in enumerate(names):
        if taken[name] > 1:
            seen[name] += 1
            names[i] = f"{name}-{seen[name]}"
    return names


def _in_folder(folder: Path, suffixes: Sequence[str], recursive: bool) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    found = [path.absolute() for path in entries if path.suffix.lower() in suffixes]
    if not found:
        hint = "" if recursive else "; sub-folders are read with source.recursive=true"
        raise InputError(
            f"folder {folder} holds no files to read",
            got=_listing(folder),
            wanted="files ending in " + ", ".join(suffixes) + hint,
        )
    return sorted(found, key=natural_key)


def _matching(pattern: str) -> list[Path]:
    found = [Path(p).absolute() for p in glob.glob(pattern, recursive=True) if Path(p).is_file()]
    if not found:
        raise InputError(
            f"no file matches '{pattern}'",
            wanted="a glob such as 'recordings/*.wav', quoted so that the shell leaves it alone",
        )
    return sorted(found, key=natural_key)


def _missing(path: Path) -> InputError:
    folder = path.parent
    if not folder.is_dir():
        return InputError(f"there is no file {path}", got=f"folder {folder} does not exist either")
    names = [entry.name for entry in folder.iterdir()]
    near = closest(path.name, names)
    return InputError(
        f"there is no file {path}",
        wanted=near if near.startswith("did you mean") and len(names) <= 20 else None,
        got=None if len(names) <= 20 else f"{len(names)} other files in {folder}",
        fix="check the path; it is relative to where you are",
    )


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "an empty folder"
    return f"{len(names)} entries, such as {names[0]}"
