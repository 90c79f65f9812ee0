"""The run as a Hydra application: ``--cfg``, ``--info``, ``-m`` and completion are Hydra's own."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from moshi_pipe.compose import resolve, store_schemas
from moshi_pipe.config_errors import explain, is_ours_to_explain
from moshi_pipe.config_files import conf_dir
from moshi_pipe.errors import MoshiPipeError, SessionError
from moshi_pipe.overrides import MULTIRUN_FLAGS, prepare, split_words
from moshi_pipe.plugins import load_plugins
from moshi_pipe.report import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omegaconf import DictConfig

    from moshi_pipe.plugins import Plugins


def run_app(words: Sequence[str]) -> int:
    """Let Hydra read the words, and run what they describe.

    Args:
        words: Overrides and Hydra's flags.

    Returns:
        The exit code; in a multirun that of the jobs that failed.

    Raises:
        MoshiPipeError: The configuration is wrong, or the only job failed.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    plugins = load_plugins()
    store_schemas(plugins.nodes)
    overrides, flags = split_words(words)
    prepared = prepare([*overrides, *flags])  # Hydra reads no override after a flag
    multirun = any(word in MULTIRUN_FLAGS for word in words)
    jobs = _Jobs(plugins, multirun)
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(jobs)
    try:
        with _hydra_environment(prepared):
            app()
    except (HydraException, OmegaConfBaseException) as error:
        raise plugins.blame(explain(error, prepared)) from error
    except ValueError as error:
        if not is_ours_to_explain(error):
            raise
        raise explain(error, prepared) from error
    except SystemExit as error:  # Hydra's way to end --cfg, --info and completion
        return error.code if isinstance(error.code, int) else 0
    return jobs.exit_code()


class _Jobs:
    """What Hydra calls once per job; keeps what became of each.

    Errors are kept, not raised: Hydra would wrap the error in a text of its own, and a sweep would
    end with its first failure.
    """

    def __init__(self, plugins: Plugins, multirun: bool) -> None:
        self.__name__ = self.__qualname__ = "moshi_pipe"  # what Hydra takes for a function's name
        self._plugins = plugins
        self._multirun = multirun
        self._process = os.getpid()
        self._codes: list[int] = []
        self._error: Exception | None = None

    def __call__(self, cfg: DictConfig) -> int:
        try:
            code = run_job(cfg, self._plugins)
        except Exception as error:
            if os.getpid() != self._process:  # a launcher's worker: Hydra carries the error home
                raise
            code = error.exit_code if isinstance(error, MoshiPipeError) else 1
            if self._multirun:
                sys.stderr.write(f"moshi-pipe: job {len(self._codes)}: {error}\n")
            else:
                self._error = error
        self._codes.append(code)
        if self._multirun and code == INTERRUPTED:
            raise KeyboardInterrupt  # ends the sweep, not this job alone
        return code

    def exit_code(self) -> int:
        """The code that all failed jobs share, else that of a failed session.

        Raises:
            Exception: What the only job raised.
        """
        if self._error is not None:
            raise self._error
        failed = {code for code in self._codes if code}
        if not failed:
            return 0
        return failed.pop() if len(failed) == 1 else SessionError.exit_code


def run_job(cfg: DictConfig, plugins: Plugins) -> int:
    """Check one composed configuration and run it.

    In a multirun each job writes into a folder of its own, ``output_dir/0``, ``output_dir/1`` ...

    Raises:
        MoshiPipeError: It cannot run.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_cfg = HydraConfig.get()
    if hydra_cfg.mode == RunMode.MULTIRUN:
        cfg.output_dir = os.path.join(cfg.output_dir, str(hydra_cfg.job.num))
    config = resolve(cfg, plugins.nodes)
    from moshi_pipe.terminal_run import run_in_terminal

    return run_in_terminal(config, plugins)


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
