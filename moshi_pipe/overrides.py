"""What users write as ``key=value``, made ready for Hydra.

Keys that hold paths and addresses take their text literally: Hydra's grammar would trip over
spaces, accents, parentheses, commas, quotes, ``=``, brackets, ``$`` and bare numbers.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY: Final = re.compile(r"^(?P<sign>\+\+|\+|)(?P<key>[A-Za-z_][\w./@]*)=(?P<value>.*)$", re.DOTALL)
_LITERAL_NAMES: Final = ("path", "dir", "url")
_LITERAL_ENDS: Final = ("_path", "_dir", "_file", "_url")
_SWEEPS: Final = ("choice(", "glob(", "range(", "interval(", "shuffle(", "sort(", "'", '"')
_DOLLAR: Final = re.compile(r"(\\*)\$\{")
_QUOTE: Final = re.compile(r"(\\*)'")
_TRAILING: Final = re.compile(r"(\\+)$")

_OPEN_KEYS: Final = ("conditions", "model.overrides", "backend_options")  # take any key
_NODE_OPTION: Final = re.compile(r"graph\.nodes\.[^.]+\.options\.")

MULTIRUN_FLAGS: Final = ("-m", "--multirun")


def is_literal_key(key: str) -> bool:
    """Whether a key holds a path or an address, by its last part; Hydra's own are left alone.

    ``path``, ``dir`` and ``url`` do, and what ends in ``_path``, ``_dir``, ``_file`` or ``_url``.
    """
    last = key.rpartition(".")[2]
    ours = not key.startswith("hydra")
    return ours and (last in _LITERAL_NAMES or last.endswith(_LITERAL_ENDS))


def escape_interpolation(text: str) -> str:
    """Write ``text`` such that OmegaConf gives back exactly it, not what ``${...}`` stands for."""
    # A backslash run before ${ is doubled and one more added, so that OmegaConf reads the
    # backslashes as themselves and the dollar as no interpolation.
    return _DOLLAR.sub(lambda m: m[1] * 2 + r"\${", text)


def quote_literal(text: str) -> str:
    """Write ``text`` such that Hydra and OmegaConf give back exactly it, as a string."""
    text = escape_interpolation(text)
    # Likewise for Hydra: a run before a quote, and one at the end, which meets the closing quote.
    text = _QUOTE.sub(lambda m: m[1] * 2 + r"\'", text)
    text = _TRAILING.sub(lambda m: m[1] * 2, text)
    return f"'{text}'"


def prepare(argv: Sequence[str]) -> list[str]:
    """Make a command line ready for Hydra; other words than those below are left as they are.

    Values of keys that hold paths or addresses are quoted; keys of open mappings (``conditions``,
    ``model.overrides``, ``backend_options``, options of a graph's nodes) may be set without
    Hydra's ``+``.

    ``null`` stays null (write ``./null`` for a file of that name), and nothing after ``=`` stays
    nothing. An address in quotes was quoted for Hydra already. In a multirun (``-m``) the text is
    literal if such a file exists; otherwise commas separate values, each of them literal, and
    ``choice(...)``, ``glob(...)`` or a quote at the start leave the text to Hydra's grammar.
    """
    sweep = any(word in MULTIRUN_FLAGS for word in argv)
    return [_opened(_literal(word, sweep)) for word in argv]


def _opened(word: str) -> str:
    """Let a word add a key to an open mapping."""
    key = word.partition("=")[0]
    opens = any(key == name or key.startswith(f"{name}.") for name in _OPEN_KEYS)
    opens = opens or _NODE_OPTION.match(key) is not None
    return f"++{word}" if opens and "=" in word else word


def _literal(word: str, sweep: bool) -> str:
    match = _KEY.match(word)
    if match is None or not is_literal_key(match["key"]):
        return word
    value = match["value"]
    if value in ("", "null", "???"):
        return word
    if match["key"].endswith("url") and value.startswith(("'", '"')):
        return word  # no address begins with a quote: it is quoted for Hydra
    head = f"{match['sign']}{match['key']}="
    if not sweep or os.path.lexists(value):
        return head + quote_literal(value)
    if value.startswith(_SWEEPS):
        return word
    return head + ",".join(map(quote_literal, value.split(",")))


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate ``key=value`` words (and ``~key``) from flags.

    Returns:
        Overrides, and the other words in order.
    """
    overrides = [word for word in argv if _KEY.match(word) or word.startswith("~")]
    return overrides, [word for word in argv if word not in overrides]
