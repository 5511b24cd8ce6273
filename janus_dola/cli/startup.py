"""Imports torch and transformers for the command line, and mutes what other libraries say to its user."""

import logging
import math
import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType

# A container's quota and period: microseconds of processor time, per microseconds that pass.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def end_by_sigterm() -> None:
    """Makes SIGTERM do what Ctrl-C does at that moment; a container's first process would not hear it otherwise."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    heard = signal.getsignal(signal.SIGINT)
    if callable(heard):
        heard(number, frame)
    else:  # a shell's background ignores Ctrl-C
        sys.exit(128 + number)


def import_quietly(name: str) -> ModuleType:
    """Imports a module that takes seconds; Ctrl-C or SIGTERM meanwhile ends the process at once, without a traceback."""
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _end}
    changed = {number: handler for number, handler in ours.items() if signal.getsignal(number) is handler}
    for number in changed:
        signal.signal(number, lambda number, _: os._exit(128 + number))
    module = import_module(name)
    for number, handler in changed.items():
        signal.signal(number, handler)
    return module


def import_libraries() -> None:
    """Imports the libraries that take seconds. Commands call it; help and wrong options come without it."""
    let_threads_sleep()
    import_quietly("torch")
    mute_torchao()
    warnings.filterwarnings("ignore", category=FutureWarning)  # about changes to libraries, not for users
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about images that carry no recipe
    import_quietly("janus_dola.pipeline")
    import huggingface_hub
    import transformers

    use_processors()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # our own errors say in one line what is wrong with a model
    huggingface_hub.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()


def mute_torchao() -> None:
    """Mutes torchao, which transformers imports if it is installed, and which warns of what this machine lacks."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def processors() -> int:
    """Returns how many processors this process may use: those it is bound to, at most its container's quota, at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return bound if quota == "max" else max(1, min(bound, math.ceil(int(quota) / int(period))))


def let_threads_sleep() -> None:
    """Lets torch's threads sleep when they have waited for some 0.1 ms, unless the user said how they wait.

    They would spin for some 20 ms, and keep a processor from whoever else needs it, also from the thread they wait for
    (bench/findings.md). torch's OpenMP reads this when it is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def use_processors() -> None:
    """Limits torch's threads to `processors`, unless the user set OMP_NUM_THREADS; torch would count the host's."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), processors()))
