"""The run as a Hydra application: ``--cfg``, ``--info``, ``-m`` and completion are Hydra's own."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from moshi_pipe.compose import resolve, store_schemas
from moshi_pipe.config_errors import explain, is_ours_to_explain
from moshi_pipe.config_files import conf_dir
from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError
from moshi_pipe.overrides import MULTIRUN_FLAGS, prepare, split_words
from moshi_pipe.plugins import load_plugins
from moshi_pipe.sweep import CellTask, Watcher, plan_sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omegaconf import DictConfig

    from moshi_pipe.plugins import Plugins

_QUESTIONS: Final = ("-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")


def run_app(words: Sequence[str]) -> int:
    """Let Hydra read the words, and run what they describe.

    Args:
        words: Overrides and Hydra's flags.

    Returns:
        The exit code; of a sweep, that of the cells that failed.

    Raises:
        MoshiPipeError: The configuration is wrong, or the only job failed.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    plugins = load_plugins()
    store_schemas(plugins.nodes)
    overrides, flags = split_words(words)
    prepared = prepare([*overrides, *flags])  # Hydra reads no override after a flag
    try:
        if not any(word in MULTIRUN_FLAGS for word in words):
            return _run_one(prepared, plugins)
        _refuse_questions(words)
        return _run_sweep(prepared, words)
    except (HydraException, OmegaConfBaseException) as error:
        raise plugins.blame(explain(error, prepared)) from error
    except ValueError as error:
        if not is_ours_to_explain(error):
            raise
        raise explain(error, prepared) from error
    except SystemExit as error:  # Hydra's way to end --cfg, --info and completion
        return error.code if isinstance(error.code, int) else 0


def _run_one(prepared: Sequence[str], plugins: Plugins) -> int:
    """Run what the words describe.

    Raises:
        MoshiPipeError: It failed.
    """
    job = _Job(plugins)
    _hydra(job, prepared)
    if job.error is not None:
        raise job.error
    return job.code


def _refuse_questions(words: Sequence[str]) -> None:
    """Refuse what shows one configuration, where there are many.

    Raises:
        ConfigError: Names the flag.
    """
    for word in words:
        if word.partition("=")[0] in _QUESTIONS:
            raise ConfigError(f"{word} is about one run", got="-m", fix=f"leave -m or {word} out")


def _run_sweep(prepared: Sequence[str], words: Sequence[str]) -> int:
    """Run once per combination; returns the exit code that its failed cells have.

    Raises:
        BackendError: The launcher failed, such as when its worker was killed.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    sweep = plan_sweep(*split_words(prepared), words)
    watcher = Watcher(sweep)
    try:
        with watcher.watching():
            _hydra(CellTask(sweep), prepared)
    except (MoshiPipeError, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if not watcher.cells():
            raise
        raise BackendError(
            "the launcher of the sweep failed",
            got=f"{type(error).__name__}: {error}",
            fix="the same command again: finished cells are kept",
        ) from error
    sys.stderr.write(f"{watcher.summary()}\n")
    return watcher.exit_code()


def _hydra(task: _Job | CellTask, prepared: Sequence[str]) -> int:
    """Give Hydra the words; it calls the task once, or once per cell."""
    import hydra

    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    with _hydra_environment(prepared):
        app()
    return 0


class _Job:
    """What Hydra calls for a run; keeps its error, which Hydra would wrap in a text of its own."""

    def __init__(self, plugins: Plugins) -> None:
        self.__name__ = self.__qualname__ = "moshi_pipe"  # what Hydra takes for a function's name
        self._plugins = plugins
        self.code = 0
        self.error: Exception | None = None

    def __call__(self, cfg: DictConfig) -> int:
        try:
            config = resolve(cfg, self._plugins.nodes)
            from moshi_pipe.terminal_run import run_in_terminal

            self.code = run_in_terminal(config, self._plugins)
        except Exception as error:
            self.error = error
        return self.code


@contextmanager
def _hydra_environment(words: Sequence[str]) -> Iterator[None]:
    """Give Hydra our words, and have it raise its exceptions instead of printing them."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["moshi-pipe" if argv[:1] in ([""], ["-c"]) else argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
