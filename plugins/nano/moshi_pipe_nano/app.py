"""The command ``moshi-pipe-nano stage=...``: one stage of making the model, or all of them."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe_nano.options import STAGES, parse_options

if TYPE_CHECKING:
    from moshi_pipe_nano.options import Options


def run_stage(options: Options) -> None:
    """Do what ``options.stage`` says.

    Raises:
        ConfigError: There is no such stage.
    """
    if options.stage == "start":
        from moshi_pipe_nano.start import start_from_released

        start_from_released(options)
    elif options.stage == "codec":
        from moshi_pipe_nano.codec_train import train_codec

        train_codec(options)
    elif options.stage == "decoder":
        from moshi_pipe_nano.codec_train import train_decoder

        train_decoder(options)
    elif options.stage == "codes":
        from moshi_pipe_nano.codes import write_codes

        write_codes(options)
    elif options.stage == "clips":
        from moshi_pipe_nano.clips import write_clips

        write_clips(options)
    elif options.stage == "lm":
        from moshi_pipe_nano.lm_train import train_lm

        train_lm(options)
    elif options.stage == "evaluate":
        from moshi_pipe_nano.evaluate import evaluate

        evaluate(options)
    elif options.stage == "export":
        from moshi_pipe_nano.export import export

        export(options)
    elif options.stage == "data":
        from moshi_pipe_nano.recordings import write_recordings

        write_recordings(options)
    elif options.stage == "plots":
        from moshi_pipe_nano.plots import draw_journals

        draw_journals(options)
    elif options.stage == "all":
        from moshi_pipe_nano.everything import run_everything

        run_everything(options)
    else:
        raise ConfigError("unknown stage", got=options.stage, wanted=closest(options.stage, STAGES))


def main() -> None:
    """Entry point; without Hydra the command takes plain ``key=value`` alone."""
    if importlib.util.find_spec("hydra") is None:
        run_stage(parse_options(sys.argv[1:]))
        return
    from moshi_pipe_nano.hydra_app import hydra_main

    hydra_main()


if __name__ == "__main__":
    main()
