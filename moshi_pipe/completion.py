"""Completion of a command line in a shell: commands and flags. Groups and keys are Hydra's part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ASKING: Final = ("-sc", "--shell-completion")

_IMPLIED: Final = {"client": ("model=remote",)}
"""What a command chooses, which then has keys."""


def asks_for_completion(words: Sequence[str]) -> bool:
    """Whether a shell asks, by Hydra's ``-sc query=SHELL``."""
    return len(words) > 1 and words[0] in _ASKING and words[1].startswith("query=")


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
