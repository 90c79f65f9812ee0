"""``moshi-pipe doctor``: does everything here work, and is this machine fast enough?"""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from moshi_pipe.doctor_checks import CHECKS, FAIL, OK, WARN, Check, Context, Finding
from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moshi_pipe.config import RunConfig

_COLOURS: Final = {OK: "green", WARN: "yellow", FAIL: "red"}
_INDENT: Final = 6  # the width of the word and its gap
_TITLE: Final = 14


def doctor(words: Sequence[str], compose: Callable[[Sequence[str]], RunConfig]) -> int:
    """Check this machine for a configuration and say what is wrong; the command.

    Each finding is shown as soon as it is there. Nothing is downloaded or left behind.

    Args:
        words: ``key=value`` words.
        compose: Makes a configuration of them.

    Returns:
        1 when a check failed, else 0.

    Raises:
        ConfigError: The words describe no configuration.
    """
    context = Context(lambda: compose(words))
    with suppress(ImportError):  # a package that is not installed is a finding, not the end
        _ = context.config
    return examine(context)


def examine(context: Context, checks: Sequence[Check] = CHECKS, out: TextIO | None = None) -> int:
    """Run checks, show what each found, and sum up.

    Args:
        context: What the checks are about.
        checks: In the order in which they run.
        out: Where findings go; standard output by default.

    Returns:
        1 when a check failed, else 0.
    """
    out = out or sys.stdout
    findings = []
    for check in checks:
        finding = run_check(check, context)
        findings.append(finding)
        _show(finding, out)
    out.write("\n" + summary(findings) + "\n")
    return int(any(finding.status == FAIL for finding in findings))


def run_check(check: Check, context: Context) -> Finding:
    """Run one check; whatever it raises becomes a finding."""
    title = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        return check(context)
    except MoshiPipeError as error:
        found = [error.what, *(text for text in (error.got,) if text)]
        fix = error.fix or (f"wanted: {error.wanted}" if error.wanted else "see the line above")
        return Finding(FAIL, title, "; ".join(found), fix)
    except Exception as error:
        return Finding(FAIL, title, _unexpected(error), _fix_of(error))


def summary(findings: Sequence[Finding]) -> str:
    """One line over all findings."""
    warned = [finding.title for finding in findings if finding.status == WARN]
    failed = [finding.title for finding in findings if finding.status == FAIL]
    if not warned and not failed:
        return f"all {format_count(len(findings), 'check')} are ok"
    parts = [f"{len(findings) - len(warned) - len(failed)} of {len(findings)} checks are ok"]
    parts += [f"{format_count(len(warned), 'warning')} ({', '.join(warned)})"] if warned else []
    parts += [f"{len(failed)} failed ({', '.join(failed)})"] if failed else []
    return ", ".join(parts)


def _show(finding: Finding, out: TextIO) -> None:
    """Write a finding: a line, and a second one that says what to do."""
    rest = f"{finding.title:<{_TITLE}}{_one_line(finding.found)}\n"
    if finding.fix:
        rest += f"{'':<{_INDENT}}do: {_one_line(finding.fix)}\n"
    word = f"{finding.status:<{_INDENT}}"
    if not (out.isatty() and _show_coloured(word, _COLOURS[finding.status], rest, out)):
        encoding = out.encoding or "utf-8"
        out.write((word + rest).encode(encoding, errors="replace").decode(encoding))
    out.flush()


def _show_coloured(word: str, colour: str, rest: str, out: TextIO) -> bool:
    """Write with a coloured first word; False where rich is not installed."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return False
    text = Text.assemble((word, f"bold {colour}"), rest)
    Console(file=out).print(text, end="", soft_wrap=True, highlight=False)
    return True


def _unexpected(error: Exception) -> str:
    """What an error says that nobody foresaw, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _fix_of(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "install moshi-pipe again: pip install --force-reinstall moshi-pipe"
    return "this check should not end so: please report the line above"


def _one_line(text: str) -> str:
    return " ".join(text.split())
