"""One writer a folder: a lock that ends with its process, whatever ends that.

Between processes of one kernel the kernel decides (flock). Other hosts that share the disk may not see that lock, so
its file also names who holds it and is renewed every 30 seconds: after five minutes of silence it can be taken over.
"""

import errno
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from triplaneturbo.errors import WriteError
from triplaneturbo.storage import explaining, make_folder

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module or, here, none

log = logging.getLogger(__name__)

FILE = "writer.lock"
BEAT_S, SILENCE_S, _MOMENT_S = 30.0, 300.0, 1.0
# What a disk answers that has no locks, as some network disks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """Who has a lock, as its file says.

    kernel: names the running kernel, which containers of one host share. token: no other holding has it.
    """

    host: str
    process: int
    since: str
    kernel: str
    token: str

    @classmethod
    def this_process(cls) -> "Holder":
        """A new holding of this process."""
        return cls(socket.gethostname(), os.getpid(), _now(), _kernel(), uuid.uuid4().hex)

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """The holder that the text of a lock file names; None if it names nobody."""
        try:
            return cls(**{name: value for name, value in json.loads(text).items() if name != "heartbeat"})
        except (ValueError, TypeError, AttributeError):
            return None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


class FolderLock:
    """A context in which this process is the only one that writes into `folder`, which is made if it is not there.

    Entering raises WriteError, with who it is, if another process is doing so. Where there are no locks, on Windows
    and on some network disks, a warning says so and nothing is locked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE
        self._holder: Holder | None = None  # this process, if it has locked anything
        self._descriptor = -1
        self._released = threading.Event()

    def __enter__(self) -> "FolderLock":
        make_folder(self.folder)
        with explaining(self.path, self.path):
            opened = None if fcntl is None else _open_locked(self.path)
        if opened is None:
            log.warning("%s: there are no file locks here; see that no second run writes into this folder", self.folder)
            return self
        self._descriptor, free = opened
        try:
            self._refuse_or_pass(free)
            with explaining(self.path, self.path):
                self._take(free)
        except BaseException:
            _close(self._descriptor)
            raise
        threading.Thread(target=self._keep_alive, name="lock", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._released.set()
        if self._descriptor not in _held:  # nothing is locked, or this is a fork of the process that holds it
            return
        if self._is_mine():
            self.path.unlink(missing_ok=True)
        _close(self._descriptor)
        with suppress(OSError):  # as a rule it is not empty
            self.folder.rmdir()

    def check(self) -> None:
        """See that the lock is still this process's, before anything more is written.

        Raises:
            WriteError: another process has taken it over, or its file was removed.
        """
        with explaining(self.path, self.path):
            if self._holder is None or self._is_mine():
                return
            other = Holder.read(self.path.read_text()) if self.path.exists() else None
        reason = f"{other} has taken it over" if other else f"{self.path} was removed"
        raise WriteError(
            f"this run no longer has the folder {self.folder} for itself: {reason}, as may be done after "
            f"{SILENCE_S:.0f} s without a sign of life. It stops here and writes nothing more"
        )

    def _refuse_or_pass(self, free: bool) -> None:
        """Raises WriteError if the open file is that of a living process. free: the kernel knows of none."""
        text = os.pread(self._descriptor, 4096, 0).decode(errors="replace")
        other = Holder.read(text)
        elsewhere = "or give this run a folder of its own with tag=NAME"
        if not text or (other and other.kernel == _kernel()):
            if not free:
                raise WriteError(
                    f"{self.folder} is being written by {other or 'another process'}, which is still running: stop it "
                    f"or let it end, {elsewhere}"
                )
        elif (silence := self._silence()) > SILENCE_S:
            log.warning("%s: taken over from %s, silent for %.0f s", self.folder, other or "an unknown run", silence)
        else:
            raise WriteError(
                f"{self.folder} is being written by {other or 'an unknown run'}, whose last sign of life is "
                f"{silence:.0f} s old: let it end, wait until it has been silent for {SILENCE_S:.0f} s, {elsewhere}. "
                f"If it has certainly ended, remove {self.path}"
            )

    def _silence(self) -> float:
        """Seconds since the open file was renewed, by the clock of its disk: those of two hosts may differ."""
        with tempfile.TemporaryFile(dir=self.folder) as probe:
            return os.fstat(probe.fileno()).st_mtime - os.fstat(self._descriptor).st_mtime

    def _take(self, free: bool) -> None:
        if not free:  # a lock that a kernel keeps for a silent host stays with the old file
            aside, old = self.path.with_name(f".{FILE}.{os.getpid()}.tmp"), self._descriptor
            self._descriptor = _open(aside)
            _close(old)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(aside, self.path)
        self._holder = Holder.this_process()
        self._renew()

    def _is_mine(self) -> bool:
        try:
            holder = Holder.read(self.path.read_text())
        except FileNotFoundError:
            return False
        return holder is not None and holder == self._holder

    def _renew(self) -> None:
        assert self._holder is not None  # only what was taken is renewed
        text = (json.dumps({**asdict(self._holder), "heartbeat": _now()}) + "\n").encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def _keep_alive(self) -> None:
        """Renew the file until the lock is released, or lost, which `check` will find."""
        while not self._released.wait(BEAT_S):
            try:
                if not self._is_mine():
                    return
                self._renew()
            except OSError as error:
                log.warning("cannot renew %s: %s; after %.0f s another host may take over", self.path, error, SILENCE_S)


# Files that are open here with a lock. A fork, such as a data loader's worker, would keep them locked when the process
# that locked them has been killed.
_held: set[int] = set()


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _close_in_fork() -> None:
    while _held:
        os.close(_held.pop())


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_in_fork)


def _open_locked(path: Path) -> tuple[int, bool] | None:
    """The file of that name, opened, and whether it could be locked; None on a disk without locks.

    A process that was killed while it forked leaves the lock to its child for the moment that this takes to let go.
    """
    deadline = time.monotonic() + _MOMENT_S
    while True:
        descriptor, free = _open(path), True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                _close(descriptor)
                time.sleep(0.05)
                continue
            free = False
        except OSError as error:
            _close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink()
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, free
        _close(descriptor)  # meanwhile its holder has removed it


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()
