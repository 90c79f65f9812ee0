"""Manifests of any length."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from moshi_pipe.errors import InputError
from moshi_pipe.nodes.file_source import FileSource
from moshi_pipe.nodes.manifest import Manifest
from moshi_pipe.nodes.options import FileSourceOptions

if TYPE_CHECKING:
    from pathlib import Path

MANY = 1_000_000
SOME = 20_000


def write(path: Path, rows: Any) -> str:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def test_csv_says_what_json_lines_say(tmp_path: Path) -> None:
    rows = [
        {"path": "a.wav", "seed": 3, "start_s": 1.5, "duration_s": 2},
        {"path": "s3://bucket/b.wav", "id": "0012", "channel": 1},
    ]
    lines = write(tmp_path / "list.jsonl", rows)
    (tmp_path / "list.csv").write_text(
        "path,id,seed,start_s,duration_s,channel\n"
        "a.wav,,3,1.5,2,\n"
        "\n"
        '"s3://bucket/b.wav",0012,,,,1\n'
    )

    assert list(Manifest(str(tmp_path / "list.csv"), None)) == list(Manifest(lines, None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,strat_s\na.wav,3\n", "line 2 .* has an unknown key 'strat_s'"),
        ("path,start_s\na.wav,soon\n", "line 2 .* has a wrong start_s"),
        ("id\na\n", "line 2 .* has no path"),
        ("path\na.wav,b.wav\n", "line 2 .* has an unknown key ''"),
        ("path\n", "is empty"),
    ],
)
def test_a_wrong_row_of_csv_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        len(Manifest(str(tmp_path / "list.csv"), None))


def test_names_that_are_not_their_own_are_made_longer_and_no_other_is_hit(tmp_path: Path) -> None:
    paths = ["1/a.wav", "2/a.wav", "1-a.wav", "b.wav", "b.flac"]
    manifest = Manifest(write(tmp_path / "l.jsonl", ({"path": one} for one in paths)), None)

    names = [entry.name for entry in manifest]

    assert len(set(names)) == len(paths)
    assert names[3:] == ["b-wav", "b-flac"]


def test_so_many_recordings_of_the_same_name_need_ids(tmp_path: Path) -> None:
    rows = [{"path": f"{i}/audio.wav"} for i in range(10_001)]
    path = write(tmp_path / "list.jsonl", rows)
    with pytest.raises(InputError, match="are called the same"):
        len(Manifest(path, None))
    named = write(tmp_path / "named.jsonl", ({**row, "id": i} for i, row in enumerate(rows)))
    assert len(Manifest(named, None)) == len(rows)


def test_a_long_manifest_takes_some_bytes_a_row(tmp_path: Path) -> None:
    rows = ({"path": f"speech/{i:08d}.wav", "duration_s": 30.5} for i in range(SOME))
    path = write(tmp_path / "list.jsonl", rows)
    tracemalloc.start()
    try:
        manifest = Manifest(path, None)
        assert len(manifest) == SOME
        assert sum(1 for _ in manifest) == SOME
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 60 * SOME  # as an entry, a row takes over 500


def test_a_million_rows_are_read_as_sessions_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    with path.open("w") as file:
        file.write("path\n")
        file.writelines(f"speech/{i:08d}.wav\n" for i in range(MANY))
    source = FileSource(FileSourceOptions(str(path)))

    async def first() -> list[str]:
        ids = []
        async for item in source.sessions():
            ids.append(item.id)
            if len(ids) == 3:
                break
        return ids

    assert source.num_sessions() == MANY
    assert asyncio.run(first()) == ["00000000", "00000001", "00000002"]
