"""Disks that are full, users that may not write, and processes that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65_534
_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def small_disk(folder: Path, size: str = "64k") -> Iterator[Path]:
    """A file system of this size, mounted on ``folder``; skips where that is not permitted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run_as_nobody(prepare: str, code: str, *args: object) -> str:
    """Run Python code in a process, its last part as a user with no rights; return its output.

    Args:
        prepare: Run first, as root: imports, which the other user may not be allowed to read.
        code: Run then.
        args: ``sys.argv[1:]``.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    become = f"import os; os.setgroups([]); os.setuid({NOBODY})"
    command = _command("\n".join([prepare, become, code]), args)
    done = subprocess.run(command, capture_output=True, text=True, env=_env())
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_after_ready(code: str, *args: object) -> None:
    """Run Python code in a process until it writes a line, then kill it without a warning."""
    with subprocess.Popen(_command(code, args), stdout=subprocess.PIPE, env=_env()) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        child.kill()
        child.wait()
    assert line == b"ready\n"


def _command(code: str, args: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


def _env() -> dict[str, str]:
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
