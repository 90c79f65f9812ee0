"""Everything that a plugin can add, and where it adds it.

A plugin is a module or object with functions marked ``@hookimpl``, found through the entry-point
group ``moshi_pipe``. The first word of a hook says how answers combine: ``register_*`` are all
collected, ``open_*`` stops at the first answer, ``on_*`` only observe. What comes with the package
is registered through the same hooks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pluggy

from moshi_pipe.registry import (
    KINDS,
    NodeEntry,
    NodeRegistry,
    OwnedRegistry,
    docstring_section,
    option_lines,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, Quantizer, SpeechLM

    Progress = Callable[[int, int], None]

__all__ = [
    "API_VERSION",
    "CONTRACT",
    "KINDS",
    "PROJECT",
    "BackendOptions",
    "Command",
    "Hooks",
    "NodeEntry",
    "NodeRegistry",
    "OwnedRegistry",
    "hook_contract",
    "hook_names",
    "hookimpl",
    "hookspec",
    "option_lines",
]

PROJECT: Final = "moshi_pipe"
"""pluggy's project name and the entry-point group."""

API_VERSION: Final = 1
"""Version of what this file promises to plugins. A plugin that says ``moshi_pipe_api = 2`` in its
module wants another one and is left out with that reason. It grows when a hook, or what a hook is
given, changes such that older plugins would break."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of ``moshi-pipe``.

    Attributes:
        name: First word on the command line.
        summary: One line for the help.
        run: Called with the words after the name; returns the exit code.
        usage: What follows the name, such as ``[key=value ...]``.
        details: Gives further lines for ``--help NAME``.
    """

    name: str
    summary: str
    run: Callable[[Sequence[str]], int]
    usage: str = ""
    details: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a model shall run.

    Attributes:
        backend: Name of the backend, such as ``torch``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or a name of the backend's own.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``: the language model's weights.
        kv_dtype: Of stored keys and values; None takes ``dtype``.
        numerics: ``fast``, or ``reference`` to follow the reference operation by operation.
        cuda_graphs: On CUDA, replay each stage of a tick as one graph.
        cuda_kernels: On CUDA, ``torch``, or ``triton`` for kernels of our own between products.
        context: Frames that the language model sees; None takes the checkpoint's.
        codec_backend: Of the codec, where it differs from ``backend``; its :meth:`Hooks.open_codec`
            finds it under ``backend``.
        quant: How the language model's weights are stored: ``none``, ``int8``, ``int4`` or a name
            of a plugin's quantizer.
        quant_group: Weights that share a scale, where the form has groups.
        quant_kernel: ``auto``, or the quantizer's name for a way to multiply.
        own: Options of backends that registered some, by backend: instances of their dataclasses.
    """

    backend: str = "torch"
    device: str = "auto"
    dtype: str = "auto"
    kv_dtype: str | None = None
    numerics: str = "fast"
    cuda_graphs: bool = False
    cuda_kernels: str = "torch"
    context: int | None = None
    codec_backend: str | None = None
    quant: str = "none"
    quant_group: int = 32
    quant_kernel: str = "auto"
    own: Mapping[str, Any] = field(default_factory=dict)


CONTRACT: Final = ("Caller", "When", "Thread", "Often", "Answers", "None", "Time")
"""What the docstring of every hook says under ``Contract:``."""


class Hooks:
    """The hooks, in the order in which a run meets them."""

    @hookspec
    def register_nodes(self, registry: OwnedRegistry) -> None:
        """Offer sources, sinks, batched nodes, graphs and engines, and options of backends.

        Import nothing heavy here: pass ``"module:Class"`` for what is costly. A plugin that
        raises is left out as a whole, with its reason in ``moshi-pipe plugins``.

        Contract:
            Caller: :func:`moshi_pipe.plugins.load_plugins`.
            When: Before the configuration is composed, also for the help and for completion.
            Thread: The main thread.
            Often: Once per process, rarely a few times; it must not matter.
            Answers: All plugins are asked; a name that another plugin has is refused.
            None: Nothing is returned; what counts is what was added.
            Time: 50 ms with the import of the plugin's module: every command waits for it.

        Args:
            registry: Takes ``registry.add(kind, name, cls, Options)``, ``registry.add_graph`` and
                ``registry.add_backend``.
        """

    @hookspec
    def register_commands(self) -> Sequence[Command]:
        """Offer commands of ``moshi-pipe``.

        Contract:
            Caller: :func:`moshi_pipe.plugins.load_plugins`.
            When: Right after :meth:`register_nodes` of the same plugin.
            Thread: The main thread.
            Often: As :meth:`register_nodes`.
            Answers: All plugins' commands are collected; a name that is taken is refused, and the
                plugin is left out.
            None: Return an empty list for no commands; None is refused.
            Time: 1 ms; import what a command needs when it runs.

        Returns:
            The plugin's commands.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def open_codec(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> Codec | None:
        """Open the codec of a checkpoint.

        Contract:
            Caller: The engine, through :meth:`moshi_pipe.plugins.Plugins.open_codec`.
            When: Before the first session, where the graph has a node of the codec.
            Thread: The one that will step the codec, and no other will touch it.
            Often: Once per engine.
            Answers: The first that is not None wins; plugins found last are asked first.
            None: ``options.backend`` is not yours.
            Time: Seconds are fine; call ``progress``.

        Args:
            checkpoint: Its files, found; ``checkpoint.mimi`` is the codec's spec.
            options: Backend, device and types; options of your own are in ``options.own``.
            progress: To be called with bytes loaded and bytes in all; seldom is enough.

        Returns:
            A codec ready to step.

        Raises:
            BackendError: The backend is yours but cannot run here. Do not return None for this:
                the user would read "no such backend" instead of the reason.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def open_lm(
        self, checkpoint: Checkpoint, options: BackendOptions, progress: Progress
    ) -> SpeechLM | None:
        """Open the language model of a checkpoint: that of ``checkpoint.config.lm``.

        Contract:
            Caller: The engine, through :meth:`moshi_pipe.plugins.Plugins.open_lm`.
            When: Before the first session, after the codec, where the graph has the node ``lm``.
            Thread: The one that will step the model, and no other will touch it.
            Often: Once per engine.
            Answers: The first that is not None wins; plugins found last are asked first.
            None: ``options.backend`` is not yours.
            Time: Minutes are fine for a large model; call ``progress``.

        Args:
            checkpoint: Its files, found.
            options: Backend, device and types; options of your own are in ``options.own``.
            progress: As for the codec.

        Returns:
            A model ready to step.

        Raises:
            BackendError: The backend is yours but cannot run here.
        """
        raise NotImplementedError

    @hookspec(firstresult=True)
    def open_quantizer(self, options: BackendOptions, device: str) -> Quantizer | None:
        """Open what makes the linear layers of the PyTorch backend smaller.

        Contract:
            Caller: Backend ``torch``, through :meth:`moshi_pipe.plugins.Plugins.open_quantizer`.
            When: Before the language model's weights are read, unless ``options.quant`` is
                ``none``.
            Thread: The one that will step the model.
            Often: Once per language model.
            Answers: The first that is not None wins; plugins found last are asked first.
            None: ``options.quant`` is not yours.
            Time: A second is fine; its layers may take what measuring products takes.

        Args:
            options: ``options.quant`` names the form; the rest says how the model runs.
            device: Where its layers must live, such as ``cpu`` or ``cuda:0``.

        Returns:
            A quantizer, or None when ``options.quant`` is not yours.

        Raises:
            BackendError: The form is yours but cannot be used here.
        """
        raise NotImplementedError

    @hookspec
    def on_session_start(self, session_id: str, meta: Mapping[str, Any], seed: int) -> None:
        """Learn that a session got its slot, or ended before it did.

        As all ``on_*`` hooks: a plugin that raises is reported and goes on to be called; after
        three failures it hears nothing more in this run. No failure stops a session, and none
        keeps another plugin from being told. One that is slow is reported with its time.

        Contract:
            Caller: :class:`moshi_pipe.observers.RunObserver`.
            When: The session's first answer is there, or it ended without one.
            Thread: The event loop.
            Often: Once per session.
            Answers: Ignored; all plugins are told.
            None: The only answer.
            Time: 1 ms: all sessions wait meanwhile.

        Args:
            session_id: Unique in the run.
            meta: From the source: at least ``stem``.
            seed: Of all the session's randomness.
        """

    @hookspec
    def on_frame(self, session_id: str, packet: Packet) -> None:
        """Learn of one output of one frame, after the sinks have it.

        Contract:
            Caller: :class:`moshi_pipe.observers.RunObserver`.
            When: The sinks have written the packet.
            Thread: The event loop.
            Often: 12.5 times a second and output, of each session that may be kept.
            Answers: Ignored; all plugins are told.
            None: The only answer.
            Time: 1 ms: all sessions wait meanwhile.

        Args:
            session_id: The session.
            packet: Not to be changed.
        """

    @hookspec
    def on_text(self, session_id: str, text: str, start_s: float, end_s: float) -> None:
        """Learn of one whole word of the model.

        Contract:
            Caller: :class:`moshi_pipe.observers.RunObserver`.
            When: The next word has begun, or the session ends.
            Thread: The event loop.
            Often: Once per word, of each session that may be kept.
            Answers: Ignored; all plugins are told.
            None: The only answer.
            Time: 1 ms: all sessions wait meanwhile.

        Args:
            session_id: The session.
            text: The word.
            start_s: When it begins, seconds from the start of the input.
            end_s: When it ends, likewise.
        """

    @hookspec
    def on_deadline_missed(self, session_id: str, frame: int, late_ms: float) -> None:
        """Learn that a live frame was answered after its deadline.

        Contract:
            Caller: :class:`moshi_pipe.observers.RunObserver`, for the engine.
            When: Between two ticks.
            Thread: The engine's, not that of the other hooks.
            Often: Once per late frame; never for recordings.
            Answers: Ignored; all plugins are told.
            None: The only answer.
            Time: 1 ms: whatever it takes makes the next frame late too.

        Args:
            session_id: The session.
            frame: Number of the frame.
            late_ms: By how much, past ``engine.budget_ms``.
        """

    @hookspec
    def on_session_end(self, session_id: str, frames: int, error: str | None) -> None:
        """Learn that a session is over and its sinks are closed.

        Contract:
            Caller: :class:`moshi_pipe.observers.RunObserver`.
            When: The session's last sink is closed.
            Thread: The event loop.
            Often: Once per session.
            Answers: Ignored; all plugins are told.
            None: The only answer.
            Time: 1 ms: all sessions wait meanwhile.

        Args:
            session_id: The session.
            frames: How many it lasted.
            error: Why it failed; None when it did not.
        """


def hook_contract(name: str) -> dict[str, str]:
    """What the docstring of a hook says under ``Contract:``, by its words; see :data:`CONTRACT`."""
    return docstring_section(getattr(Hooks, name).__doc__ or "", ("Contract:",))


def hook_names() -> list[str]:
    """Names of all hooks, in the order in which a run meets them."""
    return [name for name in vars(Hooks) if not name.startswith("_")]
