"""Every backend with every file in every form does what ``docs/backends.md`` says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.backend_table import CELLS, NEEDS, TOOLS, BackendTable, Cell, missing, read, render

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

PAGE = (Path(__file__).parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> BackendTable:
    return BackendTable(tmp_path_factory.mktemp("table"))


def parameter(cell: Cell) -> ParameterSet:
    backend, _, tool, _ = cell
    absent = missing([*NEEDS[backend], *TOOLS.get(tool, ())])
    skip = pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")
    return pytest.param(cell, marks=skip, id="-".join(word for word in cell if word))


@pytest.mark.parametrize("cell", [parameter(cell) for cell in CELLS])
def test_a_cell_is_as_documented(table: BackendTable, cell: Cell) -> None:
    assert table.cell(*cell) == read(PAGE)[cell]


def test_the_documented_table_is_whole() -> None:
    assert render(read(PAGE)) in PAGE
