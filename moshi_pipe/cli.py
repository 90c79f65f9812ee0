"""The command ``moshi-pipe``: finds out what the words mean and returns an exit code.

``moshi-pipe key=value ...`` is a Hydra application; ``moshi-pipe plugins``, ``plan`` ... are
commands. The guide, the help and the version come from metadata and import neither.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moshi_pipe.completion import asks_for_completion, check_asking, completions
from moshi_pipe.errors import ConfigError, MoshiPipeError, closest
from moshi_pipe.guide import FLAGS, group_help_text, guide_text, help_text
from moshi_pipe.plugins import chosen_plugins, load_plugins
from moshi_pipe.report import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HYDRA_FLAGS: Final = (
    *("-c", "-m", "-p", "-i", "-cp", "-cn", "-cd", "-sc"),
    *("--cfg", "--info", "--multirun", "--resolve", "--package", "--run", "-r"),
    *("--config-path", "--config-name", "--config-dir", "--shell-completion"),
    *("--hydra-help", "--experimental-rerun"),
)
_TAKE_A_WORD: Final = (
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "-i", "--info", "-sc", "--shell-completion", "--experimental-rerun"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Words after the program's name; None takes those of the process.

    Returns:
        The exit code; see :data:`moshi_pipe.guide.EXIT_CODES`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in words
    words = [word for word in words if word != "--verbose"]
    try:
        with chosen_plugins(words) as words:
            return _dispatch(words)
    except MoshiPipeError as error:
        return _fail(error, str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        sys.stderr.write("\nmoshi-pipe: interrupted; what was written is kept\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a bug: say so without burying the reader
        text = (
            f"an error that should not happen: {type(error).__name__}: {error}\n"
            "  do:     run it again with --verbose and report what it prints"
        )
        return _fail(error, text, MoshiPipeError.exit_code, verbose)


def _fail(error: BaseException, text: str, exit_code: int, verbose: bool) -> int:
    """Say what failed on standard error."""
    if verbose:
        traceback.print_exception(error)
    sys.stderr.write(f"moshi-pipe: {text}\n")
    return exit_code


def _dispatch(words: list[str]) -> int:
    """Find what the words ask for and do it."""
    if not words:
        sys.stdout.write(guide_text())
        return 0
    if "--version" in words:
        import moshi_pipe

        sys.stdout.write(f"moshi-pipe {moshi_pipe.__version__}\n")
        return 0
    if "--help" in words or "-h" in words:
        return _help([word for word in words if word not in ("--help", "-h")])
    from moshi_pipe.commands import BUILTIN

    check_asking(words, os.environ)
    if asks_for_completion(words) and not _complete(BUILTIN):
        return 0
    first = words[0]
    if first in BUILTIN:
        return BUILTIN[first].run(words[1:])
    if first.startswith(("-", "~")) or "=" in first:
        _check_words(words)
        from moshi_pipe.hydra_app import run_app

        return run_app(words)
    return _foreign_command(words)


def _complete(builtin: Iterable[str]) -> bool:
    """Offer commands and flags to a shell; returns whether Hydra has something to add."""
    names = [*builtin, *load_plugins(reserved=tuple(builtin)).commands]
    found, line = completions(os.environ.get("COMP_LINE", ""), names, FLAGS)
    sys.stdout.write("".join(f"{word}\n" for word in found))
    if line is not None:
        os.environ |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    return line is not None


def _help(words: Sequence[str]) -> int:
    """Show the help, of a group if one is named."""
    from moshi_pipe.commands import BUILTIN

    plugins = load_plugins(reserved=tuple(BUILTIN))
    named = [word for word in words if not word.startswith("-")]
    command = {**plugins.commands, **BUILTIN}.get(named[0]) if named else None
    if command is not None:
        text = f"moshi-pipe {command.name} {command.usage}\n  {command.summary}\n"
        text += command.details() if command.details else ""
    elif named:
        text = group_help_text(named[0], plugins.nodes)
    else:
        text = help_text([*BUILTIN.values(), *plugins.commands.values()], plugins.nodes)
    sys.stdout.write(text)
    return 0


def _foreign_command(words: Sequence[str]) -> int:
    """Run a plugin's command.

    Raises:
        ConfigError: Nobody has this command; gives the closest.
    """
    from moshi_pipe.commands import BUILTIN

    first = words[0]
    plugins = load_plugins(reserved=tuple(BUILTIN))
    command = plugins.commands.get(first)
    if command is not None:
        return command.run(words[1:])
    if Path(first).exists():
        raise ConfigError(
            f"'{first}' is a file or folder, not a command", fix=f"moshi-pipe source.path={first}"
        )
    error = ConfigError(
        f"there is no command '{first}'",
        wanted=closest(first, [*BUILTIN, *plugins.commands]),
        fix="see `moshi-pipe --help`; values are given as key=value",
    )
    raise plugins.blame(error)


def _check_words(words: Sequence[str]) -> None:
    """Refuse flags that nobody knows, and words that are neither flag nor ``key=value``.

    Raises:
        ConfigError: Names the word, and the closest flag.
    """
    taken = False
    if "-p" in words and "-c" not in words and "--cfg" not in words:  # else it is Hydra's
        raise ConfigError("-p leaves plugins out", got="-p without no:", wanted="-p no:NAME")
    for word in words:
        if taken and not word.startswith("-"):
            taken = False
            continue
        taken = word in _TAKE_A_WORD
        name = word.partition("=")[0]
        if word.startswith("-"):
            if name not in _HYDRA_FLAGS:
                raise ConfigError(f"there is no flag '{name}'", wanted=closest(name, FLAGS))
        elif "=" not in word and not word.startswith("~"):
            raise ConfigError(
                f"cannot read the word '{word}'",
                wanted='key=value; a path with spaces is quoted as a whole: "source.path=My file"',
                fix="see `moshi-pipe --help`; commands come first",
            )
