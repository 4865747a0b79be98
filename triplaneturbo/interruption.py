"""SIGTERM, SIGINT and SIGUSR1: a program that is told to stop loses nothing and says in one line how to go on.

SIGTERM and SIGINT stop. A training makes the update under way, saves and stops, all its processes after the same update
(`Checkpointer`). Everything else stops where it is: files are written aside, so that none is left half written. A
second signal ends the process at once. SIGUSR1 makes a training save and go on.

The exit code is 143 after SIGTERM and 130 after SIGINT. Of several processes that train together, the first has it; the
others end with 0, as Lightning kills them all within seconds when one of them ends with another code.

Under SLURM nothing else happens. Lightning's automatic requeue saves in the middle of whatever it interrupts, so it is
switched off (`build_trainer`), and starting a job again is left to the job's script, where the exit code says when:

    #SBATCH --signal=TERM@120
    srun python launch.py ... resume=auto || { [ $? -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"; }

torchrun has an exit code of its own, so that scripts/train/slurm.sh goes by the signal that it was sent itself.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

# A terminal and torchrun both pass on the one signal that was meant, so that it comes twice.
SAME_REQUEST_S = 1.0
# What a stop at once leaves behind: the end of the line that is printed.
FILES = "; the files that it wrote are complete"
NOTHING = " before its first step: there is nothing new to save"
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


class Wishes(NamedTuple):
    """What signals ask of a training: to save, or to save and stop."""

    save: bool = False
    stop: bool = False

    def __or__(self, other: "Wishes") -> "Wishes":
        return Wishes(self.save or other.save, self.stop or other.stop)


class Stopped(BaseException):
    """The program is told to stop; the text says what that leaves behind. `stoppable` turns it into a line."""


class Interruption:
    """What this process was told by signals. They belong to the whole process, so there is one: `interruption`."""

    def __init__(self) -> None:
        self.remains = FILES
        """What a stop at once leaves behind, now."""
        self.signal_children: Callable[[int], None] = lambda number: None
        """Passes a signal on to the processes that this one has started."""
        self.signal: signal.Signals | None = None
        """The one to stop for."""
        self._first_time = 0.0
        self._save = self._held = self._over = False
        self._agreed = Wishes()

    def install(self) -> None:
        """Handle the three signals from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_save)

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and time.monotonic() - self._first_time < SAME_REQUEST_S:
            return
        second, self.signal = self.signal is not None, self.signal or signal.Signals(number)
        if second or self._over:
            self.signal_children(signal.SIGKILL)
            _say(f"stopped at once by {signal.Signals(number).name}")
            os._exit(self.exit_code)
        self._first_time = time.monotonic()
        if self._held:
            _say(f"{self.signal.name}: finishing the update under way; a second signal stops at once")
            return
        self.signal_children(number)
        raise Stopped(self.remains)

    @property
    def exit_code(self) -> int:
        """Of a process that stops."""
        return 128 + (self.signal or signal.SIGTERM) if _is_first() else 0

    @property
    def cause(self) -> str:
        """The name of the signal."""
        return self.signal.name if self.signal is not None else "a signal to another process"

    # What a training asks

    def hold(self) -> None:
        """From now on a signal only notes the wish to stop: there are updates that would be lost."""
        self._held = True

    def release(self) -> None:
        """The end of `hold`."""
        self._held = False

    def check(self) -> None:
        """Stop now if a signal has asked for it.

        Raises:
            Stopped: it has.
        """
        if self.signal is not None:
            raise Stopped(self.remains)

    def take_wishes(self) -> Wishes:
        """What this process was told; a save is asked for once."""
        wishes, self._save = Wishes(self._save, self.signal is not None), False
        return wishes

    def agree(self, wishes: Wishes) -> None:
        """Note the wishes of all processes after an update that they made together."""
        self._agreed |= wishes

    def take_agreed(self) -> Wishes:
        """What all processes have agreed on since the last call."""
        agreed, self._agreed = self._agreed, Wishes()
        return agreed

    def end(self) -> None:
        """Nothing is left to do or to lose: a signal ends the process."""
        self._over = True


interruption = Interruption()


@contextmanager
def stoppable() -> Iterator[None]:
    """The whole of a program, imports included; what is inside ends in one line when a signal stops it.

    The handlers stay, as interpreters take a while to end, too. A signal whose exception is lost, in a destructor for
    example, stops nothing; the second one does not depend on exceptions.
    """
    interruption.install()
    try:
        try:
            yield
        finally:
            interruption.end()
    except BaseException as error:
        stopped = _stop_behind(error)
        if stopped is None:
            raise
        _say(f"stopped by {interruption.cause}{stopped}")
        raise SystemExit(interruption.exit_code) from None


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes started in here do not see the SIGINT that a terminal sends to all: who started them ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """The `Stopped` that `error` is or was made of: compiled modules turn what ends their import into ImportError."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__
    return error


def _is_first() -> bool:
    """Whether this is the only process of a program, or the first of them."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def _say(text: str) -> None:
    """One line on stderr by the first process, past Python's buffers: a handler may have come in between of a write."""
    if _is_first():
        os.write(2, f"{Path(sys.argv[0]).name}: {text}\n".encode())
