"""Pages that must not drift from what they describe."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from moshi_pipe.commands import BUILTIN
from moshi_pipe.config_files import choice_names, group_names, read_choice, root_options
from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.guide import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])
CHOICES = [(group, name) for group in group_names() for name in choice_names(group)]


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "scripts/reference.py", "--check"]

    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"{done.stdout}{done.stderr}run python scripts/reference.py"


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=["=".join(c) for c in CHOICES])
def test_every_choice_says_what_it_is_and_how_to_choose_it(group: str, name: str) -> None:
    choice = read_choice(group, name)

    assert "Choose it with `" in choice.summary
    assert name in choice.summary


def test_every_key_says_what_it_means() -> None:
    options = [*root_options()]
    for group, name in CHOICES:
        options += read_choice(group, name).options

    silent = {option.key for option in options if not option.comment}

    # Said by the file's first lines, or beside the first of several alike.
    said_elsewhere = {"model.name", "model.repo", "model.revision", "model.path", "engine.mode"}
    said_elsewhere |= {"model.lm_file", "model.mimi_file", "model.tokenizer_file"}
    assert silent <= said_elsewhere


def test_every_error_has_a_documented_exit_code() -> None:
    documented = {code for code, _ in EXIT_CODES}

    def codes(error: type[MoshiPipeError]) -> set[int]:
        return {error.exit_code}.union(*(codes(child) for child in error.__subclasses__()))

    assert codes(MoshiPipeError) <= documented


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)

    broken = [
        link for link in links if "://" not in link and not (page.parent / link).resolve().exists()
    ]

    assert broken == []


def test_commands_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    fenced = [part for i, part in enumerate(text.split("```")) if i % 2 and part[0] == "\n"]
    lines = [line for part in fenced for line in part.splitlines() if "moshi-pipe " in line]

    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line)
        after = [b for a, b in pairwise(words) if a.endswith("moshi-pipe") and b.isidentifier()]
        assert set(after) <= set(BUILTIN), line


def test_the_package_uses_the_words_of_the_glossary() -> None:
    banned = re.compile(r"audio_token|num_pads|chunk_frames|cfg_coef|batch_item")

    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in (ROOT / "moshi_pipe").rglob("*.py")
        if (match := banned.search(path.read_text(encoding="utf-8")))
    }

    assert found == {}
