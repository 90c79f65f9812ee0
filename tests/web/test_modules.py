"""The page's modules that need no browser, run by Node."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
WEB = HERE.parents[1] / "moshi_pipe" / "web"
NODE = shutil.which("node")
TSC = shutil.which("tsc")


@pytest.mark.skipif(NODE is None, reason="node is not here")
def test_the_modules_do_what_their_own_tests_say(tmp_path: Path) -> None:
    for file in (*WEB.glob("*.js"), *HERE.glob("*.test.mjs")):
        shutil.copy(file, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')

    command = [str(NODE), "--test", *(file.name for file in sorted(tmp_path.glob("*.test.mjs")))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(TSC is None, reason="tsc is not here: npm install --global typescript")
def test_the_types_in_their_comments_hold() -> None:
    command = [str(TSC), "--project", str(HERE / "tsconfig.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    for file in WEB.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text, file.name
        assert text.replace("http://localhost", "").count("http://") == 0, file.name


def test_every_file_that_the_page_names_is_there() -> None:
    for file in WEB.iterdir():
        text = file.read_text(encoding="utf-8")
        named = re.findall(r'(?:from |src=|href=)"(?:\./)?([\w-]+\.\w+)"', text)
        named += re.findall(r'"([\w-]+-worklet\.js)"', text)
        assert [name for name in named if not (WEB / name).is_file()] == [], file.name


@pytest.mark.timeout(120)
def test_the_wheel_carries_the_page(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")

    built = next(iter(builder.WheelBuilder(str(HERE.parents[1])).build(directory=str(tmp_path))))

    names = zipfile.ZipFile(built).namelist()
    assert {f"moshi_pipe/web/{file.name}" for file in WEB.iterdir()} <= set(names)
