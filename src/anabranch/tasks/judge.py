"""Judging in worker processes that can be killed.

    with Judge(task.checker, workers=1, timeout=5.0) as judge:
        verdicts = judge.judge_all([(problem, "... Answer: 7"), ...])

Whatever a text does to the checker, it ends as a verdict, and the next answer is judged by a fresh worker: a checker
that overruns its wall-clock limit is killed (TIMEOUT), one that dies counts as CRASH, one that raises as MALFORMED.

Workers are started with `forkserver` where there is one, else `spawn`: as always with these, a script that opens a
`Judge` needs the guard `if __name__ == "__main__":`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.context import BaseContext
from threading import Lock
from types import TracebackType
from typing import Self

from pebble import ProcessExpired, ProcessPool

from anabranch.records import Problem, Reason, Verdict
from anabranch.tasks.base import Checker
from anabranch.tasks.confine import confine, start_alarm

GRACE = 10.0
"""Seconds beyond the limit after which a worker that nobody killed ends itself."""
ATTEMPTS = 3
"""How often an answer is handed out when the pool itself breaks, before the run stops."""


class Judge:
    """A pool of workers that judge answers. A context manager; thread-safe.

    Args:
        checker: judges one answer; sent to the workers.
        workers: how many processes.
        timeout: seconds of wall clock for one verdict, counted from the moment a worker takes it up.
    """

    def __init__(self, checker: Checker, workers: int = 1, timeout: float = 5.0) -> None:
        self._checker = checker
        self._workers = workers
        self._timeout = timeout
        self._lock = Lock()
        self._pending: set[Future[Verdict]] = set()
        self._pool = self._new_pool()
        self._closed = False

    def __enter__(self) -> Self:
        self._pool.schedule(_wake)  # workers start and import while the caller goes on
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers. Verdicts still outstanding are cancelled."""
        with self._lock:
            self._closed = True
            pool, pending = self._pool, tuple(self._pending)
        for future in pending:
            future.cancel()
        pool.stop()
        pool.join()

    def submit(self, problem: Problem, text: str) -> Future[Verdict]:
        """Have one answer judged.

        Args:
            problem: the problem.
            text: the model's whole answer.

        Returns:
            A future of the verdict. It fails only if no worker can be started (`BrokenProcessPool`).

        Raises:
            RuntimeError: the judge is closed.
        """
        future: Future[Verdict] = Future()
        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._forget)
        self._hand_out(future, problem, text, ATTEMPTS)
        return future

    def judge_all(self, pairs: Iterable[tuple[Problem, str]]) -> list[Verdict]:
        """The verdicts on (problem, text) pairs, in their order."""
        futures = [self.submit(problem, text) for problem, text in pairs]
        return [future.result() for future in futures]

    def _hand_out(self, future: Future[Verdict], problem: Problem, text: str, attempts: int) -> None:
        """Give an answer to the pool; `attempts` are left, this one included."""
        task = self._open_pool().schedule(
            _judge_one, args=(self._checker, problem, text, self._timeout), timeout=self._timeout
        )

        def done(finished: Future[Verdict]) -> None:
            if future.cancelled() or finished.cancelled():
                future.cancel()
                return
            error = finished.exception()
            if isinstance(error, BrokenProcessPool) and attempts > 1:
                self._hand_out(future, problem, text, attempts - 1)
            elif error is None:
                _settle(future, finished.result())
            elif isinstance(error, FutureTimeoutError):
                _settle(future, self._lost(text, Reason.TIMEOUT, f"no verdict within {self._timeout:g} s"))
            elif isinstance(error, ProcessExpired):
                _settle(future, self._lost(text, Reason.CRASH, f"the worker died ({error.exitcode})"))
            else:
                future.set_exception(error)

        task.add_done_callback(done)

    def _lost(self, text: str, reason: Reason, detail: str) -> Verdict:
        """The verdict on an answer whose worker is gone. What was extracted is found again, here: that is safe."""
        return Verdict(0.0, reason, self._checker.find(text), detail)

    def _new_pool(self) -> ProcessPool:
        context = _context(self._checker)
        return ProcessPool(
            max_workers=self._workers, initializer=_start_worker, initargs=(self._checker,), context=context
        )

    def _open_pool(self) -> ProcessPool:
        """The pool, or a new one in place of a broken one.

        A pool breaks when a worker dies while none is known to be busy: killed from outside, or so soon after taking
        up an answer that the pool had not yet heard of it.

        Raises:
            RuntimeError: the judge is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the judge is closed")
            if not self._pool.active:
                self._pool = self._new_pool()
            return self._pool

    def _forget(self, future: Future[Verdict]) -> None:
        with self._lock:
            self._pending.discard(future)


def _settle(future: Future[Verdict], verdict: Verdict) -> None:
    """Set a result, unless the future was cancelled meanwhile."""
    if future.set_running_or_notify_cancel():
        future.set_result(verdict)


def _context(checker: Checker) -> BaseContext:
    """How workers are started: from a server that has imported the slow modules once, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anabranch.tasks.judge", *checker.preload])
    return context


def _start_worker(checker: Checker) -> None:
    """Initializer of a worker: slow imports first, then the walls go up."""
    checker.prepare()
    confine()


def _wake() -> None:
    """A task that does nothing; handing it out starts the pool."""


def _judge_one(checker: Checker, problem: Problem, text: str, timeout: float) -> Verdict:
    """One verdict, in a worker."""
    start_alarm(timeout + GRACE)
    try:
        verdict = checker(problem, text)
    except Exception as error:  # noqa: BLE001 - the one boundary where model text may raise anything
        verdict = Verdict(0.0, Reason.MALFORMED, checker.find(text), f"{type(error).__name__}: {error}"[:200])
    start_alarm(0.0)
    return replace(verdict, value=float(verdict.value))
