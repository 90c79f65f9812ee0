"""From a checked configuration to a finished run: engine, edge, results and report."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from moshi_pipe.assembly import (
    Assembly,
    Models,
    assemble,
    check_outputs,
    check_source,
    plan_run,
)
from moshi_pipe.config import OWN_ENGINE
from moshi_pipe.engine.exchange import ExchangeOptions, SessionPlan
from moshi_pipe.engine.session_settings import choose_settings
from moshi_pipe.engine_keeper import EngineKeeper
from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError
from moshi_pipe.graph.node import SessionInfo, SessionInput, Sink, Source
from moshi_pipe.identity import run_identity
from moshi_pipe.interrupt import Interrupt
from moshi_pipe.nodes.apart import ApartSink
from moshi_pipe.observers import RunObserver
from moshi_pipe.remote.assembly import RemoteAssembly, assemble_remote
from moshi_pipe.report import (
    CONFIG_NAME,
    REPORT_NAME,
    NodeReport,
    RunReport,
    SessionReport,
    make_output_dir,
    peak_rss_bytes,
    versions,
    write_report,
)
from moshi_pipe.result_store import ResultStore
from moshi_pipe.resume import (
    choose_seed,
    derive_seed,
    is_done,
    keep_input,
    keep_others,
    run_signature,
)
from moshi_pipe.run_facts import make_facts, max_candidates, numerics_line
from moshi_pipe.run_pace import ring_options, tick_options
from moshi_pipe.session_records import SessionRecords
from moshi_pipe.units import NS_PER_SECOND, format_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moshi_pipe.config import RunConfig
    from moshi_pipe.engine.edge import Edge
    from moshi_pipe.engine.engine import Engine
    from moshi_pipe.engine.host import EngineHost
    from moshi_pipe.engine.lateness import TickTimes
    from moshi_pipe.graph.schedule import Schedule
    from moshi_pipe.plugins import Plugins
    from moshi_pipe.progress import UI
    from moshi_pipe.remote.engine import RemoteEngine


def run_config(
    config: RunConfig, ui: UI, plugins: Plugins, source: Source | None = None
) -> RunReport:
    """Run a configuration to its end and write its results and its report.

    Ctrl-C ends the sessions that run, keeps what was written and returns a report; a second one
    raises KeyboardInterrupt.

    Args:
        config: Typed and checked.
        ui: Told how it goes.
        plugins: Nodes, backends and observers.
        source: Where sessions come from; None makes it.

    Returns:
        The report, which was also written as ``run.json`` beside ``config.yaml``.

    Raises:
        MoshiPipeError: Nothing could be run; sessions that fail are in the report instead.
    """
    source = source or config.source.make()
    if config.engine.node != OWN_ENGINE:
        entry = plugins.nodes.get("engine", config.engine.node)
        engine: ForeignEngine = entry.make(config.engine)
        return engine.run(config, ui, plugins, source)
    return run_here(config, ui, plugins, source)


def run_here(
    config: RunConfig,
    ui: UI,
    plugins: Plugins,
    source: Source,
    store: ResultStore | None = None,
) -> RunReport:
    """As :func:`run_config`, in this process, whatever engine the configuration names.

    Args:
        config: As there.
        ui: As there.
        plugins: As there.
        source: As there.
        store: Where results belong; its folder is the configuration's. None makes one where the
            configuration names an address.
    """
    if store is not None or config.output_url is None:
        return _Run(config, ui, plugins, source, store).run()
    store = ResultStore(config.output_url, config.output_dir)
    try:
        return _Run(config, ui, plugins, source, store).run()
    finally:
        store.close()


class ForeignEngine(Protocol):
    """What a plugin registers as an ``engine``: runs a configuration its own way.

    Constructed with its options, a subclass of :class:`~moshi_pipe.config.EngineOptions`.
    """

    def run(self, config: RunConfig, ui: UI, plugins: Plugins, source: Source) -> RunReport:
        """Run to the end; results, records and errors as of :func:`run_config`."""


class _Run:
    """One run; holds what its steps share."""

    def __init__(
        self,
        config: RunConfig,
        ui: UI,
        plugins: Plugins,
        source: Source,
        store: ResultStore | None,
    ) -> None:
        self.store = store
        self.config = config
        self.ui = ui
        self.plugins = plugins
        self.source = source
        self.assembly: Assembly | RemoteAssembly = (
            assemble_remote(config)
            if config.remote is not None
            else assemble(
                config.model,
                config.graph,
                config.backend,
                plugins,
                before_files=lambda: _refuse_too_large(config),
            )
        )
        self.live = self.source.live
        if config.remote is not None and source.endless:
            raise ConfigError(
                f"source={config.source.entry.name} serves a model that runs here",
                got=f"model={config.model.name}, which runs at {config.remote.place}",
                fix="let clients connect to that server themselves",
            )
        self.exchange = ring_options(config.engine, self.assembly.frame_s, self.source)
        check_source(self.assembly.graph, config.source.entry.name, source.gives)
        takes = [(sink.label, sink.make()) for sink in config.sinks]
        needed = [(label, sink.takes) for label, sink in takes]
        check_outputs(self.assembly.graph, needed)
        check_outputs(self.assembly.graph, [(config.source.entry.name, self.source.takes)])
        wanted = {name for _, sink in takes for name in (*sink.takes, *sink.optional)}
        wanted.update(self.source.takes)
        if self.live and not self.source.endless:
            wanted.update(("audio", "user_audio", "text"))  # for the view
        if store is not None and config.resume and config.seed is None:
            store.recall(REPORT_NAME)
        self.seed = choose_seed(config, live=self.live)
        self.settings = self.assembly.settings(config, live=self.live)
        if self._needs_text():
            wanted.add("text")
        outputs = self.assembly.graph.outputs
        self.schedule: Schedule = self.assembly.schedule(
            [name for name in outputs if name in wanted] or None
        )
        self.tokenizer = self.assembly.tokenizer()
        self.models = Models()
        self.engine: Engine | RemoteEngine | None = None
        self.keeper: EngineKeeper | None = None
        self.start_s: dict[str, float] = {}
        self.skipped: list[SessionReport] = []
        self.order: list[str] = []
        self.forgotten = False
        self.latency_ms = self.assembly.latency_ms
        self.records = SessionRecords(
            config.output_dir,
            {
                "latency_ms": self.latency_ms,
                "frame_s": self.assembly.frame_s,
                "lead_s": self._lead_s(),
            },
            signature=run_signature(config, self.assembly.files()),
            settings=self.settings,
            nodes=self.schedule.order,
            ticks=self._ticks,
            endless=self.source.endless,
            store=store,
        )

    def run(self) -> RunReport:
        """Process every session."""
        config = self.config
        make_output_dir(config.output_dir)
        for warning in self.assembly.warnings:
            self.ui.warn(warning)
        num_sessions = self.source.num_sessions()
        start = time.monotonic()
        if config.remote is None:
            import torch  # noqa: F401  # seconds, on a cold disk

            self.start_s["libraries"] = time.monotonic() - start
        observer = RunObserver(
            self.ui,
            self.plugins,
            self.records.report,
            live=self.live,
            endless=self.source.endless,
        )
        engine = self.engine = self._engine(observer)
        failure, interrupted = asyncio.run(self._go(engine, observer, num_sessions))
        report = self._report(self.engine, observer, interrupted)
        report.wall_s = time.monotonic() - start - report.load_s
        if failure is None or report.sessions or observer.totals.counts:
            write_report(report, config.composed, config.output_dir)
            if self.store is not None:
                for name in (REPORT_NAME, CONFIG_NAME):
                    self.store.move(config.output_dir / name)
        if failure is not None:
            raise failure
        self.ui.finish(report)
        return report

    async def _go(
        self, engine: Engine | RemoteEngine, observer: RunObserver, num_sessions: int | None
    ) -> tuple[MoshiPipeError | None, bool]:
        """Start the engine, run the edge, and see to it that both end.

        Returns:
            What went wrong, and whether Ctrl-C cut sessions short.
        """
        from moshi_pipe.engine.edge import Edge

        graph = self.assembly.graph
        options = ExchangeOptions(
            graph.input,
            graph.input_format,
            {name: graph.output_formats[name] for name in self.schedule.outputs},
            *self.exchange,
            self.live,
        )
        edge = Edge(engine, options, plan=self._plan, observer=observer)
        stopped = Interrupt(edge, self.source, self.ui)
        failure: MoshiPipeError | None = None
        try:
            with stopped.listening():
                engine.start()
                await asyncio.to_thread(engine.ready.wait)
                if self.config.remote is None:
                    self.start_s["models"] = engine.made_ns / NS_PER_SECOND
                    self.start_s["warm-up"] = engine.warm_ns / NS_PER_SECOND
                if engine.error is not None:
                    raise engine.error
                if self.live:  # what is there stays: no pause of the collector walks through it
                    gc.collect()
                    gc.freeze()
                if not stopped.seen:
                    self.ui.note(self._chosen(engine))
                    self.ui.begin(num_sessions)
                    self.source.attach(self._host(engine, edge))
                    await self._serve(engine, edge, observer)
        except MoshiPipeError as error:
            failure = error
        finally:
            gc.unfreeze()
            await asyncio.to_thread((self.engine or engine).stop)
            await self.records.finish()
        return failure, stopped.cut_short

    async def _serve(
        self, engine: Engine | RemoteEngine, edge: Edge, observer: RunObserver
    ) -> None:
        """Run the edge; without end, on another engine when one fails.

        Raises:
            MoshiPipeError: The source failed, or the engine did.
        """
        if not self.source.endless:
            await edge.run(self.source)
            return
        keeper = self.keeper = EngineKeeper(
            engine,
            self.source,
            edge,
            make=lambda: self._new_engine(observer),
            host=lambda ready: self._host(ready, edge),
            restarts=self.config.engine.restarts,
            ui=self.ui,
        )
        if engine.error is not None:  # before there was a keeper to be told
            keeper.failed(engine.error)
        keeping = asyncio.create_task(keeper.keep())
        try:
            await edge.run(self.source)
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping

    def _new_engine(self, observer: RunObserver) -> Engine | RemoteEngine:
        """Another engine; the models of the last are let go."""
        self.models = Models()
        engine = self.engine = self._engine(observer)
        return engine

    def _failed(self, error: MoshiPipeError) -> None:
        """The engine fails; from its thread."""
        if self.keeper is not None:
            self.keeper.failed(error)

    def _engine(self, observer: RunObserver) -> Engine | RemoteEngine:
        assembly = self.assembly
        if isinstance(assembly, RemoteAssembly):
            return self._remote_engine(assembly, observer)
        return self._local_engine(assembly, observer)

    def _remote_engine(self, assembly: RemoteAssembly, observer: RunObserver) -> RemoteEngine:
        from moshi_pipe.remote.engine import RemoteEngine
        from moshi_pipe.remote.talk import TalkOptions

        config, graph = self.config.engine, assembly.graph
        options = TalkOptions(
            assembly.server,
            assembly.query(self.config),
            graph.input,
            tuple(name for name, place in graph.outputs.items() if place == graph.input),
            self.live,
            config.inbox_frames,
        )
        return RemoteEngine(
            options,
            assembly.pieces,
            num_slots=config.slots,
            on_late=observer.on_late,
            on_failure=self._failed,
        )

    def _local_engine(self, assembly: Assembly, observer: RunObserver) -> Engine:
        import torch

        from moshi_pipe.engine.engine import Engine
        from moshi_pipe.nn.backend import choose_device

        config = self.config
        torch_backend = config.backend.backend == "torch"
        device = str(choose_device(config.backend.device)) if torch_backend else "cpu"
        guided = self.settings.guidance != 1.0

        def make_nodes() -> Any:
            torch.set_num_threads(config.engine.threads)
            self.models = assembly.open_models(self.schedule, self.ui.loading)
            return assembly.make_nodes(
                self.schedule,
                self.models,
                guided=guided,
                max_candidates=max_candidates(self.settings),
            )

        return Engine(
            make_nodes,
            self.schedule,
            input_format=assembly.graph.input_format,
            options=tick_options(config, assembly.frame_s, self.source, device),
            settings=self.settings,
            on_late=observer.on_late,
            on_failure=self._failed,
        )

    def _plan(self, item: SessionInput) -> SessionPlan | None:
        """Decide how a session input is run; None when its results are there."""
        config, assembly, endless = self.config, self.assembly, self.source.endless
        if not endless:
            self.order.append(item.id)
        seed = item.seed if item.seed is not None else derive_seed(self.seed, item.id)
        lead_s = self._lead_s()
        formats = assembly.graph.output_formats
        info = SessionInfo(
            id=item.id,
            meta=item.meta,
            output_dir=config.output_dir,
            formats={name: formats[name] for name in self.schedule.outputs},
            frame_s=assembly.frame_s,
            seed=seed,
            latency_ms=self.latency_ms,
            lead_s=lead_s,
            text_delay_s=assembly.text_delay_s,
            tokenizer=self.tokenizer,
            reply=item.reply,
            readers={name: one for name, one in assembly.readers.items() if name in formats},
        )
        sinks = [(config.source.entry.name, sink) for sink in item.sinks]
        sinks += self._make_sinks(item)
        labels = [label for label, _ in sinks]
        if self.store is not None:  # after the others, and no matter of the report
            sinks.append(("", self.store.sink([sink for _, sink in sinks])))
        plan = SessionPlan(
            info=info,
            settings=replace(self.settings, seed=seed),
            sinks=[sink for _, sink in sinks],
            lead_s=lead_s,
            tail_s=config.tail_s + assembly.tail_s,
            source_plugin=self.source.plugin,
            labels=labels,
            record=item.record,
            greeting_frames=self._frames(config.drop_until_pad_s),
        )
        try:
            plan.settings = choose_settings(self.settings, item.settings, seed)
        except ConfigError as error:
            plan.failure = error
        try:
            return plan if self._claim(item, plan) else None
        except MoshiPipeError as error:
            if not endless:
                raise
            plan.failure, plan.record = error, False  # what is there is another's
            return plan

    def _lead_s(self) -> float:
        """Silence before every input, in seconds."""
        chosen = self.config.lead_s
        return self.assembly.lead_s if chosen is None else chosen

    def _frames(self, seconds: float | None) -> int | None:
        """Seconds as frames, at least one."""
        return None if seconds is None else max(1, round(seconds / self.assembly.frame_s))

    def _needs_text(self) -> bool:
        """Whether something besides the sinks wants to know what the model writes."""
        settings = self.settings
        return (
            settings.end_on_text is not None
            or settings.end_on_padding is not None
            or self.config.drop_until_pad_s is not None
            or bool(self.plugins.manager.hook.on_text.get_hookimpls())
        )

    def _claim(self, item: SessionInput, plan: SessionPlan) -> bool:
        """See to it that a session's files are its own; False when they are there already.

        Raises:
            ConfigError: Another session of this run writes one of them.
            OutputError: They would be written over an input, or over results of another.
        """
        if not item.record:
            return True
        config, seed = self.config, plan.settings.seed
        outputs = [path for sink in plan.sinks for path in sink.outputs(plan.info)]
        record = self.records.path(item.id)
        self.records.claim(item.id, [*outputs, record])
        signature = self.records.signature(item.meta, seed)
        store = self.store
        if store is not None and config.resume and not self.live:
            store.recall(record.relative_to(config.output_dir).as_posix())
            outputs = []  # are where they belong, or there would be no record
        if config.resume and not self.live and is_done(record, signature, outputs):
            report = SessionReport(item.id, "skipped", input=item.meta.get("path"))
            if not self.source.endless:
                self.skipped.append(report)
            self.ui.session_ends(report)
            return False
        keep_input(item, [*outputs, record])
        keep_others(item, record, outputs)
        self._forget_run()
        self.records.forget(item.id)
        if self.live:
            self.records.watch(item.id, plan.sinks)
        return True

    def _forget_run(self) -> None:
        """Remove the report of an earlier run, before the first of its results is overwritten."""
        if not self.forgotten:
            (self.config.output_dir / REPORT_NAME).unlink(missing_ok=True)
            self.forgotten = True

    def _make_sinks(self, item: SessionInput) -> list[tuple[str, Sink]]:
        """Make the configured sinks of a session, but for those that keep what may not be kept.

        One that may wait for a disk does so on its own while a session is live.
        """
        made = []
        for chosen in self.config.sinks:
            sink: Sink = chosen.make()
            if sink.keeps and not item.record:
                continue
            apart = self.live and not sink.realtime
            made.append((chosen.label, ApartSink(sink) if apart else sink))
        return made

    def _chosen(self, engine: Engine | RemoteEngine) -> str:
        if self.config.remote is not None:
            slots = format_count(engine.num_slots, "connection")
            return (
                f"{self.config.model.name} at {self.config.remote.place}, {slots}, seed {self.seed}"
            )
        caps = self.models.caps
        quant = "" if caps.quant is None else f" ({caps.quant})"
        return (
            f"{self.config.model.title} on {caps.device}, {caps.dtype}{quant}, "
            f"{format_count(engine.num_slots, 'slot')}, seed {self.seed}, "
            f"ready in {sum(self.start_s.values()):.1f} s "
            f"({', '.join(f'{what} {seconds:.1f}' for what, seconds in self.start_s.items())})"
        )

    def _host(self, engine: Engine | RemoteEngine, edge: Edge) -> EngineHost:
        """What the source may know of the engine."""
        from moshi_pipe.engine.host import EngineHost

        facts = make_facts(
            self.config,
            self.assembly,
            self.models,
            self.schedule,
            self.settings,
            seed=self.seed,
            slots=engine.num_slots,
            live=self.live,
        )
        return EngineHost(facts, engine, edge)

    def _ticks(self) -> Iterable[TickTimes]:
        """The last ticks of the engine."""
        return () if self.engine is None else self.engine.lateness.recent

    def _report(
        self, engine: Engine | RemoteEngine, observer: RunObserver, interrupted: bool
    ) -> RunReport:
        sessions = [*self.skipped, *observer.reports]
        totals = observer.totals
        caps = self.models.caps if self.models.lm or self.models.codec else None
        statistics = engine.statistics
        nodes = []
        for name, histogram in statistics.nodes.items():
            row = histogram.to_dict()
            shown = ("mean_ms", "p50_ms", "p99_ms", "max_ms")
            nodes.append(NodeReport(name, histogram.count, *(row[key] for key in shown)))
        verdict = engine.lateness.verdict(dropped=totals.dropped, underruns=totals.underruns)
        place = {session_id: i for i, session_id in enumerate(self.order)}
        return RunReport(
            model=self.config.model.name,
            graph=self.assembly.graph.name,
            device=caps.device if caps else self._where(),
            dtype=self._dtype() if caps is None else caps.dtype,
            quant=caps.quant if caps else None,
            numerics=numerics_line(self.config, self.models.lm.caps.device)
            if self.models.lm
            else None,
            seed=self.seed,
            output_dir=str(self.config.output_dir) if self.store is None else self.store.place,
            slots=engine.num_slots,
            load_s=sum(self.start_s.values()),
            audio_s=totals.audio_s,
            frames=statistics.frames,
            ticks=statistics.ticks,
            peak_rss_bytes=peak_rss_bytes(),
            peak_device_bytes=_peak_device_bytes(caps.device if caps else "cpu"),
            interrupted=interrupted,
            nodes=nodes,
            sessions=sorted(sessions, key=lambda session: place.get(session.id, 0)),
            warnings=list(self.assembly.warnings),
            versions=versions(),
            start=self.start_s,
            verdict=f"{verdict.cause}: {verdict.text}" if self.live and statistics.ticks else None,
            live=engine.lateness.to_dict() if self.live else {},
            totals=totals if self.source.endless else None,
            signature=run_identity(self.config.composed),
            timing=_timing(engine, live=self.live),
            endless=self.source.endless,
        )

    def _where(self) -> str:
        remote = self.config.remote
        return self.config.backend.device if remote is None else remote.place

    def _dtype(self) -> str:
        return self.config.backend.dtype if self.config.remote is None else "unknown"


def _refuse_too_large(config: RunConfig) -> None:
    """Refuse what the memory cannot hold, before anything is downloaded or loaded.

    Raises:
        BackendError: The plan of the run does not fit the device; only backend torch is planned.
    """
    if config.backend.backend != "torch":
        return
    plan = plan_run(config)
    if plan.fits is False:
        raise BackendError(
            f"model '{config.model.name}' cannot run like this",
            got=plan.verdict,
            fix="see `moshi-pipe plan` with the same words",
        )


def _timing(engine: Engine | RemoteEngine, *, live: bool) -> dict[str, Any]:
    """How long ticks took, and live also how long answers did."""
    timing: dict[str, Any] = {
        "tick": engine.statistics.tick.classes(),
        "overhead": engine.statistics.overhead.to_dict(),
        "over_time": engine.statistics.series.to_dict(),
    }
    if live:
        timing["answer"] = engine.lateness.answer.classes()
    return timing


def _peak_device_bytes(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))
