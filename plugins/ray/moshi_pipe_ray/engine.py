"""Engine ``ray``: recordings of one run spread over the actors of a cluster.

This process reads the source and hands out one recording per free slot, wherever that is. An actor
that is lost is replaced, and what it had goes to others. Results come from the actors themselves;
only reports come back here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError, OutputError
from moshi_pipe.report import REPORT_NAME, RunReport, SessionReport
from moshi_pipe.result_store import ResultStore
from moshi_pipe.resume import choose_seed
from moshi_pipe.units import format_count
from moshi_pipe_ray.cluster import connected, share
from moshi_pipe_ray.summary import Summary
from moshi_pipe_ray.work import Job, Work
from moshi_pipe_ray.worker import EngineLostError, Ready, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.node import SessionInput, Source
    from moshi_pipe.plugins import Plugins
    from moshi_pipe.progress import UI
    from moshi_pipe_ray.cluster import Share
    from moshi_pipe_ray.options import RayOptions

_STRIKES: Final = 3
"""Actors in a row that were lost before one finished a recording: then no other is made."""

_FINISH_S: Final = 20.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class RayEngine:
    """Spreads recordings over the devices of a Ray cluster.

    Args:
        options: How.
    """

    def __init__(self, options: RayOptions) -> None:
        self._options = options

    def run(self, config: RunConfig, ui: UI, plugins: Plugins, source: Source) -> RunReport:
        """Process every recording; see :func:`moshi_pipe.build.run_config`.

        Raises:
            ConfigError: The source is live, or the model is elsewhere.
            BackendError: There is no cluster, or no actor can be kept.
        """
        if source.live:
            raise ConfigError(
                "engine=ray is for recordings",
                got="a live source",
                fix="leave engine=ray out; many conversations: moshi-pipe serve-cluster",
            )
        if config.remote is not None:
            raise ConfigError(
                "engine=ray spreads a model over devices",
                got=f"model={config.model.name}, which runs at {config.remote.place}",
            )
        with connected(self._options):
            return _RayRun(config, ui, source, self._options).run()


class _RayRun:
    """One run over a cluster."""

    def __init__(self, config: RunConfig, ui: UI, source: Source, options: RayOptions) -> None:
        self._options = options
        self._ui = ui
        self._source = source
        self._share: Share = share(config, options)
        self._place = config.output_url or str(config.output_dir)
        self._store = None if config.output_url is None else ResultStore(config.output_url)
        self._token = None if config.output_url else f".ray-{secrets.token_hex(4)}"
        seed = self._seed(config)
        model = config.model
        if model.path is not None:
            model = replace(model, path=str(Path(model.path).expanduser().absolute()))
        self._config = replace(config, seed=seed, model=model)
        self._mark()
        folder = config.output_dir if self._store is None else self._store.folder
        self._summary = Summary(folder, config, seed)
        self._begun: set[str] = set()
        self._names: dict[str, int] = {}  # running sessions, and on which actor
        self._stopping = asyncio.Event()

    def run(self) -> RunReport:
        """Run to the end, and move the report to its place."""
        try:
            return asyncio.run(self._go())
        finally:
            self._unmark()
            if self._store is not None:
                self._store.close()

    async def _go(self) -> RunReport:
        num_sessions = self._source.num_sessions()
        count = format_count(self._share.actors, "actor")
        self._ui.note(f"{self._config.model.title} on Ray, {count}, seed {self._config.seed}")
        self._ui.begin(num_sessions)
        failure: Exception | None = None
        with self._listening():
            try:
                async with aclosing(self._source.sessions()) as items:  # type: ignore[type-var]
                    await self._work(Work(items))
            except Exception as error:
                failure = error
        report = self._summary.report(interrupted=self._stopping.is_set())
        self._summary.close(report, self._config.composed)
        if self._store is not None:
            for path in sorted(self._store.folder.iterdir()):
                await asyncio.to_thread(self._store.move, path)
        if failure is not None:
            raise failure
        self._ui.finish(report)
        return report

    async def _work(self, work: Work) -> None:
        """Keep actors until all work is done, or nobody is left to do it.

        Raises:
            MoshiPipeError: The source failed, or no actor can be kept.
        """
        crew = [asyncio.create_task(self._keep(i, work)) for i in range(self._share.actors)]
        stopping = asyncio.create_task(self._stopping.wait())
        everyone: asyncio.Future[Any] = asyncio.gather(*crew, return_exceptions=True)
        try:
            first: list[asyncio.Future[Any]] = [everyone, stopping]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*crew, stopping):
                task.cancel()
            ended = await everyone
            await asyncio.gather(stopping, return_exceptions=True)
        failures = [one for one in ended if isinstance(one, Exception)]
        for error in failures[1:] if len(failures) == len(crew) else failures:
            self._warn(f"an actor was given up: {error}")
        if len(failures) == len(crew) and not self._stopping.is_set():
            raise failures[0]

    async def _keep(self, number: int, work: Work) -> None:
        """Keep one actor at work, and make another when it is lost; returns when none is left.

        Raises:
            MoshiPipeError: The source failed, or no actor can be kept here.
        """
        strikes = 0
        while True:
            done_before = self._summary.num_done(number)
            try:
                await self._employ(number, work)
            except EngineLostError as error:
                self._warn(f"actor {number} was lost: {_reason(error)}")
                strikes = 0 if self._summary.num_done(number) > done_before else strikes + 1
                if strikes >= _STRIKES:
                    raise BackendError(
                        f"actor {number} was lost {strikes} times before it finished anything",
                        got=_reason(error),
                        fix="see the logs of Ray, `ray logs`; memory is the usual reason",
                    ) from error
            else:
                return

    async def _employ(self, number: int, work: Work) -> None:
        """Make an actor and have it work until nothing is left.

        Raises:
            EngineLostError: It was lost.
            MoshiPipeError: It has no engine, or the source failed.
        """
        import ray
        from ray.exceptions import RayError

        actor = self._make()
        tasks: list[asyncio.Task[None]] = []
        try:
            ready: Ready | None = await _unless(work.over, actor.ready.remote())
            if ready is None:  # others did it all, before there was room for this one
                return
            if ready.error is not None:
                raise ready.error
            self._summary.add_actor(number, ready)
            self._log(
                logging.INFO, number, f"ready on {ready.where}, {ready.device}, {ready.dtype}"
            )
            lanes = self._config.engine.slots + self._options.ahead
            tasks = [asyncio.create_task(self._lane(number, actor, work)) for _ in range(lanes)]
            listening = asyncio.create_task(self._listen(number, actor))
            try:
                await _all(tasks)
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
            await self._dismiss(number, actor)
        except RayError as error:
            raise EngineLostError(str(error)) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(Exception):
                ray.kill(actor)

    def _make(self) -> Any:
        """Ask for an actor; it is made when there is room for it."""
        import ray

        options, part = self._options, self._share
        made = ray.remote(Worker).options(
            num_cpus=part.cpus,
            num_gpus=part.gpus,
            resources=dict(options.resources) or None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self._config.engine.slots + options.ahead + 8,
            scheduling_strategy="SPREAD",
            runtime_env=dict(options.runtime_env) or None,
        )
        return made.remote(self._config, self._place, self._token, self._source.gives)

    async def _lane(self, number: int, actor: Any, work: Work) -> None:
        """Have one slot of an actor process one recording after the other.

        Raises:
            EngineLostError: The actor was lost.
            MoshiPipeError: The source failed.
        """
        from ray.exceptions import RayError

        while (job := await work.take()) is not None:
            self._names[job.item.id] = number
            try:
                report: SessionReport = await actor.process.remote(_packed(job.item))
            except asyncio.CancelledError:
                work.give_back(job)  # the lane goes, the recording stays
                raise
            except (RayError, EngineLostError) as error:
                self._lost(number, work, job, error)
                raise EngineLostError(_reason(error)) from error
            finally:
                self._names.pop(job.item.id, None)
            if job.losses and report.status == "skipped":
                report.status = "done"  # by the actor that was lost right after
            self._end(number, work, job, report)

    def _lost(self, number: int, work: Work, job: Job, error: Exception) -> None:
        """Give a recording to another actor, unless it has taken too many with it."""
        job.losses += 1
        if job.losses <= self._options.retries:
            work.give_back(job)
            return
        failure = BackendError(
            f"{job.item.id} was given up",
            got=f"{job.losses} actors were lost while it ran; the last: {_reason(error)}",
        )
        report = SessionReport(
            job.item.id,
            "failed",
            input=job.item.meta.get("path"),
            error=str(failure),
            exit_code=failure.exit_code,
        )
        self._end(number, work, job, report)

    def _end(self, number: int, work: Work, job: Job, report: SessionReport) -> None:
        work.done(job)
        self._summary.add(number, report)
        if report.id not in self._begun:  # it was over before anybody looked
            self._ui.session_begins(report.id, report.audio_s or None)
        self._begun.discard(report.id)
        self._ui.session_ends(report)

    async def _listen(self, number: int, actor: Any) -> None:
        """Show what an actor does; its loss is the lanes' matter."""
        while True:
            await asyncio.sleep(self._options.progress_s)
            await self._hear(number, actor)

    async def _hear(self, number: int, actor: Any) -> None:
        news = await actor.news.remote()
        for session_id, audio_s in news.begun.items():
            if self._names.get(session_id) == number and session_id not in self._begun:
                self._begun.add(session_id)
                self._ui.session_begins(session_id, audio_s)
        for session_id, at_s in news.at_s.items():
            if session_id in self._begun:
                self._ui.session_at(session_id, at_s)
        for level, text in news.lines:
            self._log(level, number, text)

    async def _dismiss(self, number: int, actor: Any) -> None:
        """End an actor in order, for its report."""
        with suppress(asyncio.TimeoutError):
            await self._hear(number, actor)
            report = await asyncio.wait_for(_answer(actor.finish.remote()), _FINISH_S)
            if report is not None:
                self._summary.add_engine(report)

    def _log(self, level: int, number: int, text: str) -> None:
        """Write a line of an actor; the first warning of a kind is shown too."""
        if self._summary.log(logging.getLevelName(level), f"actor {number}", text):
            self._ui.warn(text)

    def _warn(self, text: str) -> None:
        self._summary.log("WARNING", "run", text)
        self._ui.warn(text)

    def _seed(self, config: RunConfig) -> int:
        """The run's seed; that of an earlier run into the same place, if it is resumed."""
        if config.seed is None and config.resume and self._store is not None:
            self._store.recall(REPORT_NAME)
            config = replace(config, output_dir=self._store.folder)
        return choose_seed(config, live=False)

    def _mark(self) -> None:
        """Put a file where results go, for actors to see whether they write to the same place."""
        if self._token is None:
            return
        try:
            Path(self._place).mkdir(parents=True, exist_ok=True)
            Path(self._place, self._token).touch()
        except OSError as error:
            raise OutputError(
                f"cannot write into the output folder {self._place}",
                got=error.strerror or str(error),
                fix="choose another folder: output_dir=FOLDER",
            ) from error

    def _unmark(self) -> None:
        if self._token is not None:
            with suppress(OSError):
                Path(self._place, self._token).unlink()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Let the first Ctrl-C, or SIGTERM, end the run in order; the next one is Python's own."""
        loop = asyncio.get_running_loop()

        def let_go() -> None:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

        def stop() -> None:
            let_go()
            self._ui.warn("stopping; what is done is kept (Ctrl-C again to leave at once)")
            self._stopping.set()

        try:
            for number in _SIGNALS:
                loop.add_signal_handler(number, stop)
        except (NotImplementedError, RuntimeError, ValueError):
            yield
            return
        try:
            yield
        finally:
            let_go()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all, or for the first that fails.

    Raises:
        Exception: That of the first.
    """
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


async def _answer(reference: Any) -> Any:
    return await reference


async def _unless(event: asyncio.Event, reference: Any) -> Any:
    """What comes of a call; None if the event comes first."""
    waiting = asyncio.create_task(event.wait())
    answering = asyncio.create_task(_answer(reference))
    try:
        await asyncio.wait({waiting, answering}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        waiting.cancel()
        answering.cancel()


def _packed(item: SessionInput) -> bytes:
    """An input, ready to travel.

    Raises:
        ConfigError: It holds what does not.
    """
    from ray import cloudpickle

    try:
        packed: bytes = cloudpickle.dumps(item)
    except Exception as error:  # pickling runs foreign code
        raise ConfigError(
            f"the inputs of this source cannot be sent to other machines: {item.id}",
            got=f"{type(error).__name__}: {error}",
            fix="leave engine=ray out",
        ) from error
    return packed


def _reason(error: BaseException) -> str:
    """The first line that says something, of Ray's many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


__all__ = ["MoshiPipeError", "RayEngine"]
