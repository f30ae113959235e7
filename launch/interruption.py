"""How a run is asked to stop, and says that it did: by SIGTERM or SIGUSR1, and by an exit code.

A batch system announces a job's time limit by a signal (Slurm: SIGTERM, or SIGUSR1 with ``#SBATCH --signal``). A training
run then takes its step to the end, writes a checkpoint and exits with :data:`REQUEUE_EXIT_CODE`: the same command goes on
from there. A stage that keeps what it has made of a data set stops at once, with the same code. ``accelerate launch`` and
``torchrun`` keep a stage's exit code to themselves, so a training run leaves a mark, too.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE_EXIT_CODE = 75
"""Stopped because it was asked to: start the same command again, and it goes on. (EX_TEMPFAIL of sysexits.h.)"""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to stop."""

REQUEUE_MARK = ".requeue"
"""File in ``OUTPUT.partial`` of a run that stopped so, until it is started again."""


class Interrupted(BaseException):
    """A run stops because it was asked to. No Exception, so that nobody takes it for an error and goes on."""


class StopRequests:
    """Whether a signal has asked to stop. The first one raises Interrupted at once, but not where steps are taken."""

    def __init__(self) -> None:
        self.asked_by: signal.Signals | None = None
        self._waits_for_step = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The signals' handler. Launchers and process groups may send the same signal twice."""
        if self.asked_by is None:
            self.asked_by = signal.Signals(number)
            if not self._waits_for_step:
                raise Interrupted(f"stopped by {self.asked_by.name}")

    @contextmanager
    def heeded_after_steps(self) -> Iterator[None]:
        """Within it, a signal only sets ``asked_by``: whoever takes steps looks there after each."""
        self._waits_for_step = True
        try:
            yield
        finally:
            self._waits_for_step = False


stop_requests = StopRequests()
"""Those of this process, while it is in :func:`stopping_when_asked`."""


@contextmanager
def stopping_when_asked() -> Iterator[None]:
    """Within it, a signal of ``STOP_SIGNALS`` raises Interrupted, or ends training after the step that is being taken."""
    stop_requests.asked_by = None
    before = {number: signal.signal(number, stop_requests) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
