"""Sweeps: what ``-m`` makes of its words, and how it goes, with whatever launcher.

A cell may run in this process, in another one, or on another machine. So all that is known of
cells is read from their folders, by one watcher beside the launcher.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.compose import (
    NO_OUTPUT_DIR,
    WANTED_OUTPUT_DIR,
    resolve,
    store_schemas,
    written_yaml,
)
from moshi_pipe.config_files import conf_dir
from moshi_pipe.errors import ConfigError, MoshiPipeError, OutputError, SessionError
from moshi_pipe.identity import digest, input_places, reads_one_file, run_identity, swept_aside
from moshi_pipe.plugins import load_plugins
from moshi_pipe.report import INTERRUPTED, make_output_dir, versions
from moshi_pipe.sweep_cells import Cell, claim, read_cells, write_index
from moshi_pipe.units import format_count, format_duration
from moshi_pipe.urls import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omegaconf import DictConfig

    from moshi_pipe.plugins import Plugins

LOG_NAME: Final = "run.log"

_BASIC: Final = "BasicSweeper"
_POLL_S: Final = 0.25
_SHARE: Final = 20  # of the time goes to looking at a large sweep's folders
_FLAG_OF_FOLDER: Final = ("--config-dir", "-cd")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep before it starts.

    Attributes:
        folder: Where its cells go.
        words: Of the command line.
        total: Cells that it has; None where the sweeper chooses them as it goes.
        swept: Keys that differ between its cells.
        launch: Names this launch of it.
        process: Of the launch.
    """

    folder: Path
    words: tuple[str, ...] = ()
    total: int | None = None
    swept: tuple[str, ...] = ()
    launch: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: int = field(default_factory=os.getpid)


def plan_sweep(overrides: Sequence[str], flags: Sequence[str], words: Sequence[str]) -> Sweep:
    """Find out what a sweep will do.

    Args:
        overrides: ``key=value`` words, ready for Hydra.
        flags: The other words.
        words: As they were typed.

    Raises:
        ConfigError: The folder of the sweep itself is swept, is none or an address; or there is
            nothing to run.
        OutputError: That folder cannot be made.
        HydraException: A word is wrong; Hydra itself would say the same.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="moshi-pipe"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(list(overrides))
        still = [word for one in parsed for word in _one_value(one)]
        cfg = compose("config", [*still, *_search(flags)], return_hydra_config=True)
        sweeper = cfg.hydra.sweeper
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        swept = {one.get_key_element(): one for one in parser.parse_overrides(params)}
        swept |= {one.get_key_element(): one for one in parsed}
        swept = {key.lstrip("+"): one for key, one in swept.items() if one.is_sweep_override()}
        _refuse_nothing(swept)
        total = _count(swept) if str(sweeper._target_).endswith(_BASIC) else None
    if "output_dir" in swept:
        raise ConfigError(
            "output_dir is the folder of all cells, each in a folder of its own there",
            got=swept["output_dir"].input_line,
            wanted="one folder",
        )
    return Sweep(
        folder=_make_folder(str(cfg.output_dir)),
        words=tuple(words),
        total=total,
        swept=tuple(sorted(swept)),
    )


def _one_value(override: Any) -> list[str]:
    """A word as it stands; one that sweeps with its first value; nothing of a range of reals."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    values = override.sweep_string_iterator() if override.is_discrete_sweep() else iter(())
    first = next(values, None)
    return [] if first is None else [f"{override.get_key_element()}={first}"]


def _count(swept: dict[str, Any]) -> int | None:
    """Combinations of what is swept; None for ranges without end."""
    if not all(one.is_discrete_sweep() for one in swept.values()):
        return None
    return math.prod(sum(1 for _ in one.sweep_string_iterator()) for one in swept.values())


def _refuse_nothing(swept: dict[str, Any]) -> None:
    """Refuse a key without any value: no cell would run.

    Raises:
        ConfigError: Names the word.
    """
    for key, one in swept.items():
        if one.is_discrete_sweep() and next(one.sweep_string_iterator(), None) is None:
            raise ConfigError(
                f"there is nothing to run: {key} has no value",
                got=one.input_line,
                wanted="at least one value",
            )


def _make_folder(output_dir: str) -> Path:
    """The folder of a sweep, made.

    Raises:
        ConfigError: It is not named, or is an address.
        OutputError: It cannot be made.
    """
    if not output_dir.strip():
        raise ConfigError(NO_OUTPUT_DIR, wanted=WANTED_OUTPUT_DIR)
    if is_url(output_dir):
        raise ConfigError(
            "a sweep cannot write to an address",
            got=f"output_dir={output_dir}",
            wanted="a folder, in which cells are found again and kept apart by locks",
            fix="output_dir=FOLDER and copy it when the sweep is over, or run without -m",
        )
    folder = Path(os.path.abspath(os.path.expanduser(output_dir)))
    make_output_dir(folder)
    return folder


def _search(flags: Sequence[str]) -> list[str]:
    """The user's own folder of configs, as an override."""
    for i, flag in enumerate(flags):
        name, _, value = flag.partition("=")
        if name in _FLAG_OF_FOLDER and (value or i + 1 < len(flags)):
            folder = Path(value or flags[i + 1]).absolute()
            return [f"hydra.searchpath=['file://{folder}']"]
    return []


def run_cell(cfg: DictConfig, sweep: Sweep, plugins: Plugins, number: int, words: list[str]) -> int:
    """Run one cell of a sweep, unless it is finished; what became of it is in its folder.

    Args:
        cfg: Composed.
        sweep: Which it belongs to.
        plugins: Nodes, backends and observers.
        number: Its place in the sweep, from 0 on.
        words: That make it what it is.

    Returns:
        The exit code.
    """
    cfg.output_dir = str(sweep.folder / str(number))
    composed = written_yaml(cfg)
    aside = swept_aside(composed, sweep.swept)
    signature = run_identity(composed)
    cell = claim(
        Cell(
            folder=sweep.folder / str(number),
            key=digest([signature, input_places(composed), versions()["moshi-pipe"], aside]),
            signature=signature,
            number=number + 1,
            overrides=words,
            launches={sweep.launch: False},
        )
    )
    cfg.output_dir = str(cell.folder)
    other = f"cell {cell.number}: another process runs it in {cell.folder}; waiting for that"
    with cell.held(lambda: _say(other)):
        cell.recall()
        if cfg.resume and cell.is_finished and reads_one_file(composed):
            cell.launches[sweep.launch] = True
            cell.write()
        else:
            _run(cell, cfg, sweep, plugins)
    return cell.exit_code or 0


def _run(cell: Cell, cfg: DictConfig, sweep: Sweep, plugins: Plugins) -> None:
    """Run a cell and remember in it what became of it."""
    begun = time.monotonic()
    earlier = cell.finished_report()
    cell.begin()
    try:
        cell.exit_code = _run_config(cell, cfg, sweep, plugins)
        cell.state = {0: "done", INTERRUPTED: "interrupted"}.get(cell.exit_code, "failed")
    except KeyboardInterrupt:
        cell.state, cell.exit_code = "interrupted", INTERRUPTED
        raise
    except Exception as error:
        cell.state = "failed"
        cell.exit_code = error.exit_code if isinstance(error, MoshiPipeError) else 1
        cell.error = str(error) or type(error).__name__
        if not isinstance(error, MoshiPipeError):
            cell.error = f"{type(error).__name__}: {cell.error}"
    finally:
        if cell.state == "done" and cell.did_nothing:
            cell.launches[sweep.launch] = True
            cell.keep_report(earlier)
        else:
            cell.wall_s = round(time.monotonic() - begun, 3)
        cell.write()


def _run_config(cell: Cell, cfg: DictConfig, sweep: Sweep, plugins: Plugins) -> int:
    """Run a cell; in another process than the launch's, its log takes what would be shown."""
    config = resolve(cfg, plugins.nodes)
    from moshi_pipe.terminal_run import run_in_terminal

    here = os.getpid() == sweep.process
    if here:
        of = f" of {sweep.total}" if sweep.total else ""
        _say(f"\ncell {cell.number}{of}: {_label(cell, sweep)}")
    with (cell.folder / LOG_NAME).open("a", encoding="utf-8", buffering=1) as log:
        return run_in_terminal(config, plugins, log=log, quiet=not here)


def _label(cell: Cell, sweep: Sweep) -> str:
    """What makes a cell differ from the others."""
    words = [word for word in cell.overrides if word.partition("=")[0].lstrip("+") in sweep.swept]
    return " ".join(words) or " ".join(cell.overrides) or "as it is"


class Watcher:
    """Tells how a sweep goes, from the folders of its cells, and keeps its index.

    Args:
        sweep: Which.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._told: set[Path] = set()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._index_of: list[Cell] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Tell while the block runs."""
        thread = threading.Thread(target=self._watch, name="sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self.poll(ended=True)

    def cells(self) -> list[Cell]:
        """Cells that this launch has begun or found finished."""
        found = read_cells(self._sweep.folder)
        return [cell for cell in found if self._sweep.launch in cell.launches]

    def exit_code(self) -> int:
        """The code that all failed cells share, else that of a failed session; 0 without."""
        codes = {cell.exit_code for cell in self.cells() if cell.exit_code}
        return codes.pop() or 0 if len(codes) == 1 else SessionError.exit_code if codes else 0

    def summary(self) -> str:
        """What became of the sweep, in a line."""
        cells = self.cells()
        kept = sum(cell.launches[self._sweep.launch] for cell in cells)
        total = self._sweep.total or len(cells)
        done = sum(cell.state == "done" for cell in cells)
        parts = [f"{done} of {format_count(total, 'cell')} done"]
        parts += [f"{kept} of them before"] if kept else []
        failed = [f"{cell.folder.name}/" for cell in cells if cell.state == "failed"]
        parts += [f"failed: {', '.join(failed)}"] if failed else []
        return f"sweep: {', '.join(parts)}; moshi-pipe report {self._sweep.folder}"

    def poll(self, *, ended: bool = False) -> None:
        """Tell what is new."""
        with self._lock:
            cells = self.cells()
            for cell in cells:
                if cell.state != "running" and cell.folder not in self._told:
                    self._told.add(cell.folder)
                    _say(self._line(cell))
            if cells != self._index_of or (ended and cells):
                write_index(self._sweep.folder, self._sweep.words, self._sweep.total, ended=ended)
                self._index_of = cells

    def _watch(self) -> None:
        wait_s = _POLL_S
        while not self._ended.wait(wait_s):
            begun = time.monotonic()
            with suppress(OutputError):  # said at the end, if it is still so
                self.poll()
            wait_s = max(_POLL_S, _SHARE * (time.monotonic() - begun))

    def _line(self, cell: Cell) -> str:
        what = f"{cell.state} in {format_duration(cell.wall_s)}"
        if cell.launches[self._sweep.launch]:
            what = "was done before"
        if cell.state == "failed":
            error = cell.error or f"exit code {cell.exit_code}, see {cell.folder / LOG_NAME}"
            what = f"failed: {error}"
        place = f"[{len(self._told)}/{self._sweep.total}] " if self._sweep.total else ""
        return f"{place}{_label(cell, self._sweep)}: {what} ({cell.folder.name}/)"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class CellTask:
    """What a launcher calls for each cell, in whatever process; it can be pickled.

    Args:
        sweep: Which.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.__name__ = self.__qualname__ = "moshi_pipe"  # what Hydra takes for a function's name
        self._sweep = sweep
        self._plugins: Plugins | None = None

    def __reduce__(self) -> tuple[type[CellTask], tuple[Sweep]]:
        return CellTask, (self._sweep,)  # each process loads plugins of its own

    def __call__(self, cfg: DictConfig) -> int:
        """Run a cell.

        Raises:
            KeyboardInterrupt: Ctrl-C ended it: that ends the sweep, not this cell alone.
        """
        from hydra.core.hydra_config import HydraConfig

        if self._plugins is None:
            self._plugins = load_plugins()
            store_schemas(self._plugins.nodes)
        hydra_cfg = HydraConfig.get()
        words = [str(word) for word in hydra_cfg.overrides.task]
        code = run_cell(cfg, self._sweep, self._plugins, int(hydra_cfg.job.num), words)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code
