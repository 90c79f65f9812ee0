"""From nothing to an installed plugin: the guide, run block by block in a clean environment.

The environment is a fresh venv that sees the libraries of this one but not this source tree;
moshi-pipe and the plugins are installed into it from wheels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "plugins.md"

INSTALL = "pip install -q --no-index --no-deps --no-build-isolation "

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class Environment:
    """A clean environment.

    Attributes:
        folder: Of the venv.
        work: Where commands run.
    """

    folder: Path
    work: Path

    def run(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MOSHI"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-ec", command],
            cwd=self.work,
            env={**kept, "PATH": path, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, command: str, **variables: str) -> str:
        done = self.run(command, **variables)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def completions(self, line: str) -> list[str]:
        length = str(len(line))
        shown = self.must("moshi-pipe -sc query=bash", COMP_LINE=line, COMP_POINT=length)
        return shown.split()


@pytest.fixture
def clean(tmp_path: Path) -> Environment:
    """A venv with moshi-pipe installed from its wheel."""
    pytest.importorskip("hatchling")
    pytest.importorskip("editables")
    folder, work = tmp_path / "venv", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    libraries = next(folder.glob("lib/python*/site-packages"))
    (libraries / "libraries.pth").write_text(f"{_libraries(tmp_path)}\n", encoding="utf-8")
    work.mkdir()
    made = Environment(folder, work)
    made.must(f"pip wheel -q --no-deps --no-build-isolation -w {tmp_path / 'dist'} {ROOT}")
    made.must(f"{INSTALL} {tmp_path}/dist/moshi_pipe-*.whl")
    where = made.must("python -c 'import moshi_pipe; print(moshi_pipe.__file__)'").strip()
    assert Path(where).is_relative_to(folder)
    return made


def _libraries(folder: Path) -> Path:
    """A folder of links to the libraries of this environment, without ours and its plugins."""
    made = folder / "libraries"
    made.mkdir()
    for place in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in place.iterdir():
            ours = entry.name.lower().startswith(("moshi_pipe", "__editable__"))
            link = made / entry.name
            if not ours and entry.suffix != ".pth" and not link.exists():
                link.symlink_to(entry)
    return made


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the file that the line before it names."""

    language: str
    text: str
    path: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    fenced = re.compile(r"(?:^`([^`\n]+)`\n\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for match in fenced.finditer(text):
        yield Block(match[2], match[3], match[1])


def test_every_block_of_the_guide_works(clean: Environment) -> None:
    shown, num_run = "", 0
    for block in blocks(GUIDE):
        if block.path is not None:
            path = clean.work / block.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            # The index is not asked, and what builds is here: the test needs no network.
            text = block.text.replace("pip install ", INSTALL)
            shown = clean.must(text)
            num_run += 1
        elif block.language == "text":
            for line in block.text.splitlines():
                assert " ".join(line.split()) in " ".join(shown.split()), f"{line}\n--\n{shown}"
        else:
            assert block.language == "sh upload", block

    assert num_run > 10
    assert (clean.work / "moshi-out" / "tone.wav").is_file()
    assert '"dbfs": -9.0' in (clean.work / "out-hum" / "hum.level.jsonl").read_text(
        encoding="utf-8"
    )
    assert (clean.work / "out-timed" / "hum.wav").is_file()


@pytest.mark.parametrize(
    ("kind", "words", "offer", "line", "completion"),
    [
        (
            "source",
            "source=mine source.frequency_hz=330 graph=codec sink=[file]",
            "source mine",
            "moshi-pipe source=mi",
            "source=mine",
        ),
        (
            "sink",
            "source=silence source.duration_s=0.4 graph=codec sink=[mine]",
            "sink mine",
            "moshi-pipe sink=mi",
            "sink=mine",
        ),
        (
            "transform",
            "source=silence source.duration_s=0.4 graph=dialogue_mine "
            "graph.nodes.mine.options.gain_db=3",
            "node mine",
            "moshi-pipe graph=dialogue_",
            "graph=dialogue_mine",
        ),
        (
            "backend",
            "source=silence source.duration_s=0.4 backend=mine backend_options.mine.slow_ms=500",
            "options of backend mine",
            "moshi-pipe backe",
            "backend=",
        ),
    ],
)
def test_a_new_plugin_is_built_installed_and_used(
    clean: Environment, kind: str, words: str, offer: str, line: str, completion: str
) -> None:
    clean.must(f"moshi-pipe plugin new mine --kind {kind}")
    clean.must("pip wheel -q --no-deps --no-build-isolation -w dist ./moshi-pipe-mine")
    clean.must("rm -r moshi-pipe-mine")
    clean.must(f"{INSTALL} dist/moshi_pipe_mine-0.1.0-py3-none-any.whl")

    clean.must(f"moshi-pipe {words}")
    listed = clean.must("moshi-pipe plugins")
    assert "mine  (moshi-pipe-mine 0.1.0)" in listed
    assert f"  {offer}\n" in listed
    assert "mine" in clean.must("moshi-pipe --help")
    assert completion in clean.completions(line)
    assert "all are sound" in clean.must("moshi-pipe plugins doctor")
    assert clean.must("moshi-pipe plugins --requirements") == "moshi-pipe-mine==0.1.0\n"
    without = clean.run(f"moshi-pipe {words} -p no:mine output_dir=without")
    assert without.returncode in (2, 6), without.stderr
    assert "mine" in without.stderr
