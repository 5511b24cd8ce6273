"""Ends a server by signals."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A terminal that is closed sends SIGHUP, which Windows does not have.
STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def on_signals(signals: tuple[signal.Signals, ...], act: Callable[[], object]) -> Iterator[None]:
    """Calls `act` on each of these signals, but for those that the process was started to ignore, as by nohup."""
    before = {each: signal.getsignal(each) for each in signals}
    try:
        for each, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(each, lambda *_: act())
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
