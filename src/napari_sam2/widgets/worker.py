"""One thread in which all work with the model happens, one piece after the other."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject, QTimer

_POLL_MS = 15
_DELIVERY = 0.02  # seconds at a time
_JOIN_AT_EXIT = 10.0  # seconds
_NICER = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Request:
    work: Callable[[], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    key: Hashable
    can_wait: bool


@dataclass(frozen=True, eq=False)
class _Run:
    steps: Callable[[], Iterator[Any]]
    each: Callable[[Any], None]
    done: Callable[[bool], None]
    failed: Callable[[Exception], None]


class Worker:
    """Runs requests in one thread of its own, and a long run of steps between them.

    Requests come first: those that wait are done between two steps of the run. Requests that can
    wait come last, when there is nothing else to do. What comes out waits for a timer of the
    window's thread, which calls the callbacks; so no callback is ever called in another thread, and
    none after `close`.
    """

    def __init__(
        self,
        parent: QObject,
        delivered: Callable[[], None] = lambda: None,
        is_held: Callable[[], bool] = lambda: False,
    ) -> None:
        """parent: it lives no longer than this. delivered: called after each look at what came out,
        while there is work. is_held: whether what comes out must wait, as while a person draws."""
        self._delivered = delivered
        self._is_held = is_held
        self._poll = QTimer(parent)
        self._poll.setInterval(_POLL_MS)
        self._poll.timeout.connect(self._deliver)
        self._wake = threading.Condition()
        self._requests: deque[_Request] = deque()
        self._run: _Run | None = None
        self._cancelled = False
        self._closed = False
        self._outbox: deque[Callable[[], None]] = deque()
        self._open = 0  # requests and runs whose last callback has not been delivered
        self._spare: _Request | None = None  # one that can wait
        self._spare_open = 0
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way or waits to be delivered, but for what can wait."""
        return self._open > 0 or bool(self._outbox)

    @property
    def is_idle(self) -> bool:
        """Whether nothing at all is under way or waits to be delivered."""
        return not (self.is_busy or self._spare_open)

    @property
    def is_running(self) -> bool:
        """Whether a run of steps is under way."""
        return self._run is not None

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there; it ends soon after `close`."""
        return self._thread is not None and self._thread.is_alive()

    def request(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
        key: Hashable = None,
    ) -> None:
        """Call `work`, then `done` with what it returns, or `failed`.

        With a key, it replaces a request of the same key that still waits, and goes first.
        """
        request = _Request(work, done, failed, key, can_wait=False)
        with self._wake:
            if self._closed:
                return
            if key is None:
                self._requests.append(request)
            else:
                waiting = [r for r in self._requests if r.key != key]
                self._open -= len(self._requests) - len(waiting)
                # Ahead of other requests with a key, behind those without: a model is loaded first.
                unkeyed = sum(r.key is None for r in waiting)
                waiting.insert(unkeyed, request)
                self._requests = deque(waiting)
            self._open += 1
            self._start()

    def request_when_idle(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """As `request`, when there is nothing else to do; replaces one that still waits."""
        with self._wake:
            if self._closed:
                return
            self._spare_open += self._spare is None
            self._spare = _Request(work, done, failed, None, can_wait=True)
            self._start()

    def run(
        self,
        steps: Callable[[], Iterator[Any]],
        each: Callable[[Any], None],
        done: Callable[[bool], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Go through an iterator: `each` with what it yields, then `done(stopped)` or `failed`."""
        with self._wake:
            if self._closed:
                return
            if self._run is not None:
                raise RuntimeError("A run is under way; cancel it first.")
            self._cancelled = False
            self._run = _Run(steps, each, done, failed)
            self._open += 1
            self._start()

    def cancel(self) -> None:
        """End the run after the step under way."""
        with self._wake:
            self._cancelled = True
            self._wake.notify()

    def close(self) -> None:
        """Drop all that waits and end the thread after the step under way. Does not wait."""
        with contextlib.suppress(RuntimeError):  # Qt may have destroyed it with its parent
            self._poll.stop()
        with self._wake:
            self._closed = True
            self._requests.clear()
            self._outbox.clear()
            self._spare = None
            self._open = self._spare_open = 0
            self._wake.notify()

    def join(self, timeout: float = _JOIN_AT_EXIT) -> None:
        """Close, and wait for the thread to end."""
        self.close()
        if self._thread is not None:
            self._thread.join(timeout)

    def _start(self) -> None:
        self._wake.notify()
        self._poll.start()

    def _start_thread(self) -> None:
        # A daemon, so that a stuck download cannot keep Python alive; but at exit it gets the
        # time to end its step, since a thread cut off inside torch can crash the process.
        self._thread = threading.Thread(target=self._work, name="napari-sam2", daemon=True)
        atexit.register(self.join)
        self._thread.start()

    def _deliver(self) -> None:
        """Call the callbacks that wait; many of them in several portions."""
        if self._thread is None:  # now that the window is drawn, which it would hold up
            self._start_thread()
        if self._is_held():
            return
        end = time.perf_counter() + _DELIVERY
        while self._outbox and time.perf_counter() < end:
            self._outbox.popleft()()
        if self.is_idle:
            self._poll.stop()
        self._delivered()

    # -- the thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        _give_way()
        steps: Iterator[Any] | None = None
        try:
            while True:
                with self._wake:
                    while not (self._closed or self._requests or self._run or self._spare):
                        self._wake.wait()
                    if self._closed:
                        return
                    request = self._requests.popleft() if self._requests else None
                    run = self._run
                    if request is None and run is None:
                        request, self._spare = self._spare, None
                if request is not None:
                    self._answer(request)
                elif run is not None:
                    steps = self._step(run, steps)
                del request, run
        finally:
            if steps is not None:
                _close(steps)
            atexit.unregister(self.join)

    def _answer(self, request: _Request) -> None:
        try:
            result = request.work()
        except Exception as error:
            logger.debug("A request failed.", exc_info=True)
            self._finish(request.failed, error, request.can_wait)
        else:
            self._finish(request.done, result, request.can_wait)

    def _step(self, run: _Run, steps: Iterator[Any] | None) -> Iterator[Any] | None:
        """One step of a run; returns its iterator, or None at the end."""
        try:
            if steps is None:
                steps = iter(run.steps())
            if not self._cancelled:
                value = next(steps)
                self._send(run.each, value)
                return steps
            _close(steps)
            self._end(run.done, True)
        except StopIteration:
            self._end(run.done, False)
        except Exception as error:
            logger.debug("A run failed.", exc_info=True)
            self._end(run.failed, error)
        return None

    def _send(self, callback: Callable[[Any], None], value: Any) -> None:
        with self._wake:
            if not self._closed:
                self._outbox.append(lambda: callback(value))

    def _finish(self, callback: Callable[[Any], None], value: Any, can_wait: bool = False) -> None:
        def last() -> None:
            if can_wait:
                self._spare_open -= 1
            else:
                self._open -= 1
            callback(value)

        with self._wake:
            if not self._closed:
                self._outbox.append(last)

    def _end(self, callback: Callable[[Any], None], value: Any) -> None:
        self._run = None
        self._finish(callback, value)


def _give_way() -> None:
    """Let the window's thread, and what draws for it, go first where there are few processors.

    Only Linux has a niceness for each thread; torch's own threads take it over from this one.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            own = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, own)
            os.setpriority(os.PRIO_PROCESS, own, niceness + _NICER)


def _close(steps: Iterator[Any]) -> None:
    close = getattr(steps, "close", None)
    if close is not None:
        close()
