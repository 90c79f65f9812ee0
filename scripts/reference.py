"""Write the generated pages of the documentation: ``docs/config.md`` and ``docs/hooks.md``.

    python scripts/reference.py [--check]

With ``--check`` nothing is written and the exit code says whether a page has drifted.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from moshi_pipe.config_files import (
    Choice,
    OptionLine,
    choice_names,
    default_choices,
    group_names,
    read_choice,
    root_options,
)
from moshi_pipe.guide import EXIT_CODES
from moshi_pipe.hooks import Hooks, hook_names

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTE = "<!-- Written by scripts/reference.py; change the source and run it again. -->"


def config_page() -> str:
    """Every group, choice and key, from the comments in ``conf/``."""
    lines = ["# Configuration", "", NOTE, ""]
    lines += ["Keys that belong to no group:", "", *_table(root_options())]
    defaults = default_choices()
    for group in group_names():
        chosen = defaults.get(group, "null")
        lines += ["", f"## {group}", "", f"Chosen unless you choose another: `{group}={chosen}`."]
        for name in choice_names(group):
            lines += _choice(read_choice(group, name))
    lines += ["", "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {what} |" for code, what in EXIT_CODES]
    return "\n".join(lines) + "\n"


def hooks_page() -> str:
    """Every hook with its signature and what its documentation says."""
    lines = ["# Hooks", "", NOTE, "", inspect.cleandoc(_module_doc())]
    for name in hook_names():
        hook = getattr(Hooks, name)
        arguments = [p for p in inspect.signature(hook).parameters if p != "self"]
        lines += ["", f"## {name}({', '.join(arguments)})", ""]
        lines += ["```text", inspect.cleandoc(hook.__doc__), "```"]
    return "\n".join(lines) + "\n"


def _module_doc() -> str:
    return sys.modules[Hooks.__module__].__doc__ or ""


def _choice(choice: Choice) -> list[str]:
    lines = ["", f"### {choice.group}={choice.name}", "", choice.summary]
    return [*lines, "", *_table(choice.options)] if choice.options else lines


def _table(options: tuple[OptionLine, ...]) -> list[str]:
    rows = [f"| `{o.key}` | `{o.default}` | {o.comment} |" for o in options]
    return ["| key | default | meaning |", "|---|---|---|", *rows]


def main() -> int:
    """Write both pages, or compare them."""
    pages = {"config.md": config_page(), "hooks.md": hooks_page()}
    drifted = [
        name
        for name, text in pages.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv:
        print(f"drifted: {', '.join(drifted) or 'none'}")
        return 1 if drifted else 0
    for name in drifted:
        (DOCS / name).write_text(pages[name], encoding="utf-8")
        print(DOCS / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
