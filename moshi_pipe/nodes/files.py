"""Finding input files and naming them."""

from __future__ import annotations

import difflib
import glob
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from moshi_pipe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAGIC = re.compile(r"[*?\[]")


def find_files(text: str, *, suffixes: Sequence[str], recursive: bool = False) -> list[Path]:
    """Turn a file, a glob or a folder into files, in natural order (``a2`` before ``a10``).

    An existing file is taken literally, even if its name looks like a glob.

    Args:
        text: What the user wrote; ``~`` is the home folder.
        suffixes: Endings that are taken from a folder, lower case with the dot.
        recursive: Look into sub-folders of a folder; what begins with a dot is left out.

    Raises:
        InputError: Nothing is there, or nothing of these kinds.
    """
    if not text.strip():
        raise InputError(
            "the path of the input is empty",
            wanted="a file, a glob or a folder",
            fix="name one, or `.` for the folder where you stand",
        )
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return [path.absolute()]
        if path.is_dir():
            return _in_folder(path, suffixes, recursive)
        if _MAGIC.search(text):
            return _matching(str(path))
        raise _missing(path)
    except OSError as error:
        raise InputError(f"cannot look at {path}", got=error.strerror or str(error)) from error


def natural_key(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key under which numbers inside names count as numbers; no two paths share one."""
    parts = re.split(r"(\d+)", str(path).casefold())
    key = [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
    return key, str(path)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name per file that no other has: its stem, made longer only where stems are equal.

    What is added (folders, then the ending) follows from the set of files, not from their order;
    only a file that is there twice is told apart by a number.
    """
    candidates = {path: _candidates(path) for path in paths}
    while True:
        taken = Counter(names[0] for names in candidates.values())
        equal = [n for n in candidates.values() if taken[n[0]] > 1 and len(n) > 1]
        if not equal:
            break
        for names in equal:
            del names[0]
    return _numbered(paths, [candidates[path][0] for path in paths])


def _candidates(path: Path) -> list[str]:
    """Names for a file, shorter ones first: ``a``, ``a-wav``, ``folder-a``, ``folder-a-wav`` ..."""
    name, names = path.stem, []
    for folder in [None, *path.parents]:
        if folder is not None and not folder.name:
            break
        name = name if folder is None else f"{folder.name}-{name}"
        names += [name, f"{name}-{path.suffix[1:]}"]
    return names


def _numbered(paths: Sequence[Path], names: list[str]) -> list[str]:
    """Put numbers after names that are still equal, in the order of their paths."""
    taken, count = Counter(names), Counter[str]()
    for i in sorted(range(len(paths)), key=lambda i: natural_key(paths[i])):
        name = names[i]
        if taken[name] < 2:
            continue
        while not count[name] or taken[f"{name}-{count[name]}"]:
            count[name] += 1
        names[i] = f"{name}-{count[name]}"
        count[name] += 1
    return names


def _in_folder(folder: Path, suffixes: Sequence[str], recursive: bool) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    found = [
        path.absolute()
        for path in entries
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
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
    if path.name in names:
        return InputError(
            f"cannot read {path}",
            got="a pipe, a device or a broken link",
            wanted="a file, a folder or a glob",
        )
    near = difflib.get_close_matches(path.name, names, n=1)
    return InputError(
        f"there is no file {path}",
        wanted=f"did you mean '{folder / near[0]}'?" if near else None,
        fix="check the path; it is relative to where you are",
    )


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "an empty folder"
    return f"{len(names)} entries, such as {names[0]}"
