"""Write what is generated in ``docs/``: ``config.md``, ``hooks.md`` and ``dialogue.svg``.

    python scripts/reference.py [--check]

With ``--check`` nothing is written and the exit code says whether a page has drifted.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from moshi_pipe.config_files import (
    Choice,
    OptionLine,
    choice_names,
    conf_dir,
    default_choices,
    group_names,
    read_choice,
    root_options,
)
from moshi_pipe.graph.draw import draw_svg
from moshi_pipe.graph.graph import check_graph, model_ports
from moshi_pipe.guide import EXIT_CODES
from moshi_pipe.hooks import Hooks, hook_names
from moshi_pipe.models.spec import MOSHI_7B_CONFIG, LMSpec, MimiSpec

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


def dialogue_picture() -> str:
    """The graph of a conversation with the released 7B model."""
    config: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "graph" / "dialogue.yaml"))
    lm = LMSpec.from_config(MOSHI_7B_CONFIG)
    return draw_svg(check_graph(config, model_ports(MimiSpec().codec, lm)))


def _module_doc() -> str:
    return sys.modules[Hooks.__module__].__doc__ or ""


def _choice(choice: Choice) -> list[str]:
    lines = ["", f"### {choice.group}={choice.name}", "", choice.summary]
    return [*lines, "", *_table(choice.options)] if choice.options else lines


def _table(options: tuple[OptionLine, ...]) -> list[str]:
    rows = [f"| `{o.key}` | `{o.default}` | {o.comment} |" for o in options]
    return ["| key | default | meaning |", "|---|---|---|", *rows]


def main() -> int:
    """Write all, or compare."""
    pages = {
        "config.md": config_page(),
        "hooks.md": hooks_page(),
        "dialogue.svg": dialogue_picture(),
    }
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
