"""Completion of a command line in a shell: commands and flags. Groups and keys are Hydra's part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ASKING: Final = ("-sc", "--shell-completion")
_SHELLS: Final = ("bash", "fish", "zsh")
_ACTIONS: Final = tuple(f"{do}={at}" for do in ("install", "uninstall", "query") for at in _SHELLS)

_IMPLIED: Final = {"client": ("model=remote",)}
"""What a command chooses, which then has keys."""


def asks_for_completion(words: Sequence[str]) -> bool:
    """Whether a shell asks, by Hydra's ``-sc query=SHELL``."""
    return len(words) > 1 and words[0] in _ASKING and words[1].startswith("query=")


def check_asking(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse what Hydra would fail on.

    Args:
        words: Of the command line.
        environment: Where a shell says which line it asks about.

    Raises:
        ConfigError: No such action, or no shell asks.
    """
    if words[0] not in _ASKING:
        return
    action = words[1] if len(words) > 1 else ""
    if action not in _ACTIONS:
        wanted = closest(action, _ACTIONS)
        raise ConfigError(f"{words[0]} cannot do this", got=action or "nothing", wanted=wanted)
    if action.startswith("query=") and "COMP_LINE" not in environment:
        fix = f'eval "$(moshi-pipe -sc install={action.partition("=")[2]})"'
        raise ConfigError(f"{action} is what a shell asks", got="no COMP_LINE", fix=fix)


def completions(
    line: str, commands: Iterable[str], flags: Iterable[str]
) -> tuple[list[str], str | None]:
    """What the last word of a line may become.

    Args:
        line: As the shell gives it, from the program's name to the cursor.
        commands: Names of all commands.
        flags: All flags.

    Returns:
        Words, and the line that Hydra shall complete, which knows no commands and no addresses;
        None where it has nothing to add.
    """
    words = line.split()
    program, rest = words[:1], words[1:]
    last = rest.pop() if rest and not line[-1:].isspace() else ""
    if last.startswith("-"):
        return [flag for flag in flags if flag.startswith(last)], None
    known = sorted(commands)
    found = [] if rest or "=" in last else [name for name in known if name.startswith(last)]
    if rest and rest[0] in known:
        rest = [*_IMPLIED.get(rest[0], ()), *rest[1:]]
    kept = [word for word in rest if "=" in word and not word.startswith("-")]
    return found, " ".join([*program, *kept, last])
