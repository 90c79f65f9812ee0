"""Write the table of ``docs/backends.md``: every backend with every file in every form.

    PYTHONPATH=tests python scripts/backend_table.py [--check]

Needs every backend and tool: ``pip install gguf ./plugins/mlx ./plugins/rust`` and
``pip install --no-deps moshi_mlx``. With ``--check`` nothing is written, and the exit code says
whether the table has drifted.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from support.backend_table import CELLS, NEEDS, TOOLS, BackendTable, missing, read, render

PAGE = Path(__file__).resolve().parents[1] / "docs" / "backends.md"
BEGIN = "<!-- Written by scripts/backend_table.py; run it again. -->\n"
END = "\n<!-- The end of what it wrote. -->"


def main() -> None:
    """Fill every cell, and write or check the page."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    absent = missing([name for names in (*NEEDS.values(), *TOOLS.values()) for name in names])
    if absent:
        raise SystemExit(f"not installed: {', '.join(absent)}")
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = BackendTable(Path(folder))
        for number, cell in enumerate(CELLS, start=1):
            print(f"\r\033[K{number}/{len(CELLS)} {' '.join(cell):40}", end="", file=sys.stderr)
            cells[cell] = bench.cell(*cell)
    print(file=sys.stderr)
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        raise SystemExit(read(page) != cells)
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + render(cells) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
