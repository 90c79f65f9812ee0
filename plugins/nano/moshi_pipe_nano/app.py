"""The command ``moshi-pipe-nano stage=...``: one stage of making the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hydra

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe_nano.options import STAGES, Options, read_options

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_stage(options: Options) -> None:
    """Do what ``options.stage`` says.

    Raises:
        ConfigError: There is no such stage.
    """
    if options.stage == "codec":
        from moshi_pipe_nano.codec_train import train_codec

        train_codec(options)
    elif options.stage == "codes":
        from moshi_pipe_nano.codes import write_codes

        write_codes(options)
    elif options.stage == "lm":
        from moshi_pipe_nano.lm_train import train_lm

        train_lm(options)
    elif options.stage == "export":
        from moshi_pipe_nano.export import export

        export(options)
    elif options.stage == "data":
        from moshi_pipe_nano.conversation import write_recordings

        write_recordings(options)
    else:
        raise ConfigError("unknown stage", got=options.stage, wanted=closest(options.stage, STAGES))


@hydra.main(version_base="1.3", config_path="conf", config_name="nano")
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_stage(read_options(cfg))


if __name__ == "__main__":
    main()
