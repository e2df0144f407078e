"""Stopping between two steps: SIGINT (Ctrl-C), SIGTERM and SIGHUP wait until the step is done and saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minibn.training.history import History

AGAIN = 1.0  # seconds after which the same signal means: at once


class Stopped(BaseException):
    """Training was stopped by a signal, at the end of a step.

    Ctrl-C raises the subclass `Interrupted`, which is a KeyboardInterrupt, other signals
    `Terminated`, which is a SystemExit with the status 128 + number of the signal.

    Attributes:
        signal: `signal.Signals`.
        status: 128 + number of the signal.
        step: number of steps done.
        path: the checkpoint that holds them, or None if nothing was saved.
        history: `History` of these steps.
    """

    def __init__(self, received: signal.Signals, step: int, path: str | Path | None, history: History) -> None:
        super().__init__(received, step, path, history)
        self.signal, self.step, self.path, self.history = received, step, path, history
        self.status = 128 + received

    def __str__(self) -> str:
        saved = "nothing was saved: no path was given" if self.path is None else f"saved at step {self.step} in {self.path}"
        return f"stopped by {self.signal.name} after {self.step} steps; {saved}"


class Interrupted(Stopped, KeyboardInterrupt):
    """Training was stopped by Ctrl-C, at the end of a step."""


class Terminated(Stopped, SystemExit):
    """Training was stopped by SIGTERM or SIGHUP, at the end of a step."""

    def __init__(self, received: signal.Signals, step: int, path: str | Path | None, history: History) -> None:
        super().__init__(received, step, path, history)
        self.code = self.status  # with which Python ends, unless this is caught


class Signals:
    """Which signal has come; None if none has."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def stop_if_received(self, step: int, path: str | Path | None, history: History) -> None:
        """Raise `Interrupted` or `Terminated` if a signal has come."""
        if self.received is not None:
            received, self.received = self.received, None
            raise (Interrupted if received == signal.SIGINT else Terminated)(received, step, path, history)


_current: Signals | None = None


@contextmanager
def deferred() -> Iterator[Signals]:
    """Delay signals until the block allows them, and tell which signal has come.

    A block inside another one shares its `Signals`. A signal that no `stop_if_received` has handled
    takes effect at the end of the outermost block. If the same signal comes again a second later or
    more, it takes effect at once.

    Signals that the program handles or ignores by itself are left alone. Nothing is done in threads
    other than the main one, since Python delivers no signals there.
    """
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current if _current is not None and threading.current_thread() is threading.main_thread() else Signals()
        return
    signals, since = Signals(), 0.0
    handlers: dict[int, Any] = {}

    def wait(number: int, frame: Any) -> None:
        nonlocal since
        if signals.received is None:
            signals.received, since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - since > AGAIN:
            signal.signal(number, handlers[number])
            signal.raise_signal(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            handlers[number] = signal.getsignal(number)
    _current = signals
    try:
        for number in handlers:
            signal.signal(number, wait)
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _current = None
        if signals.received is not None:
            signal.raise_signal(signals.received)
