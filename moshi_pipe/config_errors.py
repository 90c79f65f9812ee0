"""What Hydra and OmegaConf complain about, said in our words with the closest match."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from moshi_pipe.config_files import choice_names, group_names, root_options
from moshi_pipe.errors import ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Sequence

_NULL_GROUP = "Config group override must be"  # how a bare ValueError of Hydra begins
_OVERRIDDEN = re.compile(r"Could not override '(?P<key>[^']+)'")
_NO_GROUP = re.compile(r"Could not (?:override|find|append) '(?P<key>[^']+)'")


def explain(error: Exception, overrides: Sequence[str] = ()) -> ConfigError:
    """Turn an exception of Hydra or OmegaConf into a short error with the closest match.

    Args:
        error: Any of their exceptions.
        overrides: What the user wrote, to quote the word that is wrong.
    """
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return ConfigError(
            "cannot read what was given on the command line",
            got=str(error.override),
            wanted="key=value; lists as key=[a,b], text with special characters as key='a, b'",
            fix="quote the word for the shell as a whole: \"key='a, b'\"",
        )
    if isinstance(error, ValueError) and is_ours_to_explain(error):
        return _null_group(overrides)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_choice(error)
    text = _full_text(error)
    match = _OVERRIDDEN.search(text) or _NO_GROUP.search(text)
    cause = _deepest(error)
    if type(cause).__name__ in ("ValidationError", "UnsupportedValueType"):
        key = getattr(cause, "full_key", None) or (match["key"] if match else "a value")
        return _bad_value(str(key), cause, overrides)
    if match is not None:
        return _unknown_key(match["key"], cause, overrides)
    what, _, rest = text.partition("\n")
    return ConfigError(f"cannot compose the configuration: {what}", got=rest.strip() or None)


def explain_value(key: str, error: Exception) -> str:
    """One line on a value of the wrong type."""
    return f"{key} has the wrong type: {_wanted_type(_first_line(error))}"


def _unknown_choice(error: Any) -> ConfigError:
    """A group has no such file, or there is no such group."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or choice_names(group))
    if not group or not options:
        wrong = group or name
        return ConfigError(
            f"there is no group '{wrong}'", wanted=closest(wrong, group_names()), fix=_HELP
        )
    return ConfigError(
        f"there is no {group} '{name}'",
        got=f"{group}={name}",
        wanted=closest(name, options),
        fix=f"see `moshi-pipe --help {group}`",
    )


def is_ours_to_explain(error: ValueError) -> bool:
    """Whether a plain ``ValueError`` is Hydra's way to say that a group was set to null."""
    return str(error).startswith(_NULL_GROUP)


def _null_group(overrides: Sequence[str]) -> ConfigError:
    """A group that must have a choice was given none."""
    groups = group_names()
    wrong = [w for w in overrides if w.partition("=")[0] in groups and w.endswith("=null")]
    group = wrong[0].partition("=")[0] if wrong else "GROUP"
    return ConfigError(
        "a group cannot be null",
        got=wrong[0] if wrong else None,
        wanted="sink=[] for no sink" if group == "sink" else f"{group}=NAME",
        fix=f"leave it out, or see `moshi-pipe --help {group}`",
    )


_HELP = "see `moshi-pipe --help`"


def _unknown_key(key: str, cause: Any, overrides: Sequence[str]) -> ConfigError:
    """A key that is not in the configuration."""
    parent, _, last = key.rpartition(".")
    node = getattr(cause, "parent_node", None)
    wrong = getattr(cause, "key", None)
    known: list[str] = []
    if node is not None and hasattr(node, "keys") and wrong is not None:
        last = str(wrong)
        full = str(getattr(cause, "full_key", "") or key)
        parent = full.rpartition(".")[0]
        known = [str(name) for name in node if str(name) not in ("hydra", "node")]
    if not parent:
        known = sorted({*known, *group_names(), *(option.key for option in root_options())})
    dotted = [f"{parent}.{name}" if parent else name for name in known]
    wrong_key = f"{parent}.{last}" if parent else last
    group = parent.partition(".")[0]
    return ConfigError(
        f"there is no key '{wrong_key}'",
        got=_word(key, overrides),
        wanted=closest(wrong_key, dotted) if dotted else None,
        fix=f"see `moshi-pipe --help {group}`" if group in group_names() else _HELP,
    )


def _bad_value(key: str, cause: BaseException, overrides: Sequence[str]) -> ConfigError:
    """A value of the wrong type."""
    return ConfigError(
        f"{key} has the wrong type",
        got=_word(key, overrides),
        wanted=_wanted_type(_first_line(cause)),
    )


def _wanted_type(text: str) -> str:
    """What OmegaConf says a value should have been, in plain words."""
    words = {
        "Integer": "a whole number",
        "Float": "a number",
        "Boolean": "true or false",
    }
    match = re.search(r"could not be converted to (\w+)", text)
    if match and match[1] in words:
        return words[match[1]]
    if "is not a valid bool" in text:
        return words["Boolean"]
    if "is not a ListConfig, list or tuple" in text:
        return "a list, such as [a,b]"
    return text


def _word(key: str, overrides: Sequence[str]) -> str | None:
    """The user's word for a key."""
    for word in overrides:
        name = word.partition("=")[0].lstrip("+~")
        if name == key:
            return word
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _full_text(error: BaseException) -> str:
    """Texts of an error and of what caused it."""
    texts = []
    current: BaseException | None = error
    while current is not None:
        texts.append(str(current))
        current = current.__cause__
    return "\n".join(texts)


def _deepest(error: BaseException) -> BaseException:
    """The first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
