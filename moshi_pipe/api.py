"""The command in Python: load a model, open a session, feed frames or a recording.

::

    model = moshi_pipe.load()
    with model.session(seed=1) as session:
        for frame in session.run("question.wav"):
            frame.audio  # float32 [1, 1920] at 24 kHz, or None
            frame.text   # the new piece of text, or ""
"""

from __future__ import annotations

import math
from codecs import getincrementaldecoder
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.errors import ConfigError, InputError, closest
from moshi_pipe.graph.format import Codes
from moshi_pipe.nodes.words import piece_bytes
from moshi_pipe.units import seconds_to_samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import numpy.typing as npt

    from moshi_pipe.assembly import Assembly, Models
    from moshi_pipe.config import RunConfig
    from moshi_pipe.engine.engine import Engine
    from moshi_pipe.graph.node import SessionSettings
    from moshi_pipe.graph.schedule import Schedule


_OF_RUNS = ("source", "sink", "metric", "output_dir", "resume", "seed", "experiment")


@dataclass(frozen=True, slots=True)
class Frame:
    """What one frame of input gave.

    Attributes:
        index: Frame number, from 0.
        audio: The model's voice, float32 ``[1, frame_size]``; None where nothing came yet.
        token: The text token, None where none came.
        text: Text that became readable with this frame; often empty.
        codes: The model's codes, int64 ``[K]``; None where none came.
    """

    index: int
    audio: npt.NDArray[np.float32] | None
    token: int | None
    text: str
    codes: npt.NDArray[np.int64] | None


def load(
    model: str = "nano",
    *,
    graph: str = "dialogue",
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """Load a model.

    Args:
        model: A name of ``conf/model``, or a folder with a model's files.
        graph: A name of ``conf/graph``.
        overrides: Further configuration, such as ``{"device": "cuda", "numerics": "reference"}``,
            ``{"sampling.temperature": 0.5}`` or ``{"conditions": {"description": "good"}}``.

    Raises:
        MoshiPipeError: The model, the graph or an override cannot be used.
    """
    from moshi_pipe.assembly import assemble
    from moshi_pipe.compose import load_run
    from moshi_pipe.config_files import choice_names
    from moshi_pipe.overrides import prepare
    from moshi_pipe.plugins import load_plugins

    plugins = load_plugins()
    is_folder = model not in choice_names("model") and (Path(model).is_dir() or "/" in model)
    chosen = ["model=local", f"model.path={model}"] if is_folder else [f"model={model}"]
    words = [*chosen, f"graph={graph}", *_words(overrides or {})]
    config = load_run(prepare(words), plugins.nodes, need_source=False)
    if config.remote is not None:
        raise ConfigError(
            f"model '{config.model.name}' runs elsewhere: it cannot be loaded",
            fix="use the command: moshi-pipe client URL",
        )
    assembly = assemble(config.model, config.graph, config.backend, plugins)
    schedule = assembly.schedule()
    return Model(config, assembly, schedule, assembly.open_models(schedule))


class Model:
    """A loaded model; its sessions share the weights.

    Attributes:
        sample_rate: Hz of the audio it takes and gives.
        frame_size: Samples in one frame.
        warnings: What a user should know, such as random weights.
    """

    def __init__(
        self, config: RunConfig, assembly: Assembly, schedule: Schedule, models: Models
    ) -> None:
        self.sample_rate = assembly.codec.sample_rate
        self.frame_size = assembly.codec.frame_size
        self.warnings = tuple(assembly.warnings)
        self._assembly = assembly
        self._schedule = schedule
        self._models = models
        self._config = config

    def session(self, **settings: Any) -> Conversation:
        """Open a session.

        Args:
            settings: Fields of :class:`moshi_pipe.graph.node.SessionSettings`, such as ``seed``,
                ``temperature`` or ``first_frame``; the others are as loaded.

        Raises:
            ConfigError: An unknown setting, or a value that cannot be used.
        """
        import torch

        from moshi_pipe.engine.engine import Engine, TickOptions

        torch.set_num_threads(self._config.engine.threads)
        chosen = self._assembly.settings(self._config)
        known = [name for name in type(chosen).__dataclass_fields__]
        for name in settings:
            if name not in known:
                raise ConfigError(f"there is no setting '{name}'", wanted=closest(name, known))
        chosen = replace(chosen, **settings)
        top_ks = (chosen.top_k, chosen.text_top_k)
        engine = Engine(
            lambda: self._assembly.make_nodes(
                self._schedule,
                self._models,
                guided=chosen.guidance != 1.0,
                max_candidates=0 if 0 in top_ks else max(top_ks),
            ),
            self._schedule,
            input_format=self._assembly.graph.input_format,
            options=TickOptions(num_slots=1, device=self._models.caps.device),
        )
        return Conversation(engine, self._config, self._assembly, self._schedule, chosen)


class Conversation:
    """One session on a slot of its own, stepped by the caller; use it in one thread."""

    def __init__(
        self,
        engine: Engine,
        config: RunConfig,
        assembly: Assembly,
        schedule: Schedule,
        settings: SessionSettings,
    ) -> None:
        from moshi_pipe.engine.session import make_session

        self.settings = settings
        self._config = config
        self._assembly = assembly
        self._engine = engine
        self._input = assembly.graph.input
        self._form = assembly.graph.input_format
        self._tokenizer = assembly.tokenizer()
        self._utf8 = getincrementaldecoder("utf-8")(errors="replace")
        formats = assembly.graph.output_formats
        self._session = make_session(
            "session",
            settings,
            {self._input: self._form},
            {name: formats[name] for name in schedule.outputs},
            inbox_frames=1,
            outbox_frames=1,
        )
        engine.open()
        engine.submit(self._session)
        engine.no_more()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def feed(self, frame: npt.ArrayLike) -> Frame:
        """Give one frame of input, take one frame of output.

        Args:
            frame: Samples in [-1, 1], ``[frame_size]`` or ``[1, frame_size]``; for a graph that
                begins with codes, int ``[K]``.

        Raises:
            InputError: The frame has another shape, is not finite, or has codes that the model
                does not know.
            SessionError: The model's numbers are not finite; the session is over.
        """
        shape = self._form.shape
        array = np.asarray(frame, dtype=self._form.dtype)
        if array.size != math.prod(shape) or not np.isfinite(array).all():
            raise InputError(
                "this frame cannot be fed",
                got=f"an array {list(array.shape)}"
                + ("" if np.isfinite(array).all() else " with NaN or infinity"),
                wanted=f"{list(shape)}, finite",
            )
        if isinstance(self._form, Codes):
            from moshi_pipe.engine.exchange import check_codes

            check_codes(self._session.id, array.reshape(-1, 1), self._form)
        row = {self._input: array.reshape(shape)}
        if not self._session.inbox.put(self._session.next_frame, row):
            raise InputError("the session is over: it takes no further frame")
        while self._engine.tick():
            pass
        taken = self._session.outbox.take()
        if taken is None:
            if self._session.failure is not None:
                raise self._session.failure
            raise InputError("the session is over: it takes no further frame")
        return self._frame(*taken)

    def run(
        self,
        audio: str | Path | npt.ArrayLike,
        sample_rate: int | None = None,
        *,
        tail_s: float | None = None,
    ) -> Iterator[Frame]:
        """Process a recording and give its frames.

        Args:
            audio: A file, or samples ``[N]`` or ``[C, N]``.
            sample_rate: Hz of the samples; None for the model's own. Not used for a file.
            tail_s: Silence after the recording, in seconds, to let an answer end; None is as
                loaded.

        Raises:
            InputError: The recording cannot be read.
        """
        from moshi_pipe.engine.framing import Reframer

        assembly = self._assembly
        rate, chunks = _open(audio, sample_rate or assembly.codec.sample_rate)
        lead_s = self._config.lead_s
        reframer = Reframer(
            rate,
            assembly.codec.sample_rate,
            assembly.codec.frame_size,
            lead_s=assembly.lead_s if lead_s is None else lead_s,
            tail_s=(self._config.tail_s if tail_s is None else tail_s) + assembly.tail_s,
        )
        for chunk_CN in chunks:
            for frame in reframer.push(chunk_CN):
                yield self.feed(frame)
        for frame in reframer.finish():
            yield self.feed(frame)
        yield from self._speak_on()

    def close(self) -> None:
        """Free the session's state."""
        self._engine.close()

    def _speak_on(self) -> Iterator[Frame]:
        """Let a model that says when it is done say what is left."""
        if self.settings.end_on_text is None and self.settings.end_on_padding is None:
            return
        self._session.inbox.end()
        while self._engine.tick():
            taken = self._session.outbox.take()
            if taken is not None:
                yield self._frame(*taken)
        if self._session.failure is not None:
            raise self._session.failure

    def _frame(self, index: int, row: Mapping[str, npt.NDArray[Any]]) -> Frame:
        token = int(row["text"]) if "text" in row else None
        return Frame(
            index=index,
            audio=row.get("audio"),
            token=token,
            text=self._text(token),
            codes=row.get("codes"),
        )

    def _text(self, token: int | None) -> str:
        tokenizer = self._tokenizer
        if token is None or tokenizer is None or tokenizer.is_control(token):
            return ""
        return self._utf8.decode(piece_bytes(tokenizer, token))


def _open(
    audio: str | Path | npt.ArrayLike, sample_rate: int
) -> tuple[int, Iterator[npt.NDArray[np.float32]]]:
    if isinstance(audio, str | Path):
        from moshi_pipe.nodes.audio_reader import probe, read

        path = Path(audio).expanduser()
        properties = probe(path)
        return properties.sample_rate, read(path, properties)
    given = np.asarray(audio)
    pcm = given[None] if given.ndim == 1 else given
    if pcm.ndim != 2 or not pcm.size or pcm.dtype.kind != "f":
        raise InputError(
            "this audio cannot be used",
            got=f"an array {list(given.shape)} of {given.dtype}",
            wanted="floats in [-1, 1], [samples] or [channels, samples], at least one sample",
        )
    pcm = pcm.astype(np.float32, copy=False)
    piece = seconds_to_samples(1.0, sample_rate)
    return sample_rate, (pcm[:, i : i + piece] for i in range(0, pcm.shape[1], piece))


def _words(overrides: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Overrides as the command line writes them.

    Raises:
        ConfigError: A key that a loaded model has no use for.
    """
    words = []
    for key, value in overrides.items():
        if not prefix and key.partition(".")[0] in _OF_RUNS:
            raise ConfigError(
                f"a loaded model has no use for '{key}'",
                fix="give the seed to session(), recordings to run(), and write results yourself",
            )
        if isinstance(value, dict):
            words += _words(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, bool):
            words.append(f"{prefix}{key}={'null' if value is None else str(value).lower()}")
        else:
            words.append(f"{prefix}{key}={value}")
    return words
