"""One writer at a time in a folder: a lock that the system releases at a kill, and a record of who holds it."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from .files import read_json, remove_dead_partials, write_aside
from .privacy.mode import is_private, private_name

logger = logging.getLogger(__name__)

# What flock says where the file system has no locks: NFS without its lock service, Lustre mounted without `flock`.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Locks of this process, so that a script and the trainer that it calls share one.
_held: dict[Path, FolderLock] = {}


@dataclass(frozen=True)
class Holder:
    """
    Who writes in a folder.

    Args:
        host (`str`): Name of its machine; in private mode its keyed hash.
        pid (`int`): Its process, and `started` (`float`) when that began: numbers of processes come again.
        since (`str`): When it began to write, ISO 8601 in UTC.
        job (`str`, *optional*): Its SLURM job, and `restarts` (`int`) how often that was put back into the queue.
    """

    host: str
    pid: int
    started: float
    since: str
    job: str | None = None
    restarts: int = 0

    @classmethod
    def of_this_process(cls) -> Holder:
        restarts = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            host=private_name(platform.node()),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            job=os.environ.get("SLURM_JOB_ID"),
            restarts=int(restarts) if restarts.isdigit() else 0,
        )

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """The record of a file; None where there is none, or none that can be read."""
        try:
            found = cls(**read_json(path))
        except (OSError, ValueError, TypeError):
            return None
        kinds = {"host": str, "pid": int, "started": float | int, "since": str, "job": str | None, "restarts": int}
        return found if all(isinstance(getattr(found, name), kind) for name, kind in kinds.items()) else None

    def is_alive(self) -> bool:
        """Whether its process runs, asked on its machine."""
        with suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        return False

    def is_earlier_start_of(self, other: Holder) -> bool:
        """Whether it is the same SLURM job before that was put back into the queue: SLURM has ended it."""
        return self.job is not None and self.job == other.job and self.restarts < other.restarts

    def describe(self, here: str) -> str:
        """In words; `here` is the host that asks."""
        place = "this machine" if self.host == here else "another machine" if is_private() else self.host
        return f"(on {place}, process {self.pid}, since {self.since})"


class FolderLock:
    """
    The right to write in a folder, for one process at a time on all machines whose file system shares its locks.

    The lock is `.NAME.lock`, which the system releases when the process ends, however it ends; `.NAME.holder` beside it
    says whose it is. Both are gone after `release`. Within one process a folder can be locked again.

    Args:
        folder (`str` or `PathLike`): Made if it is missing.
        name (`str`): Of the two files: locks of different names in one folder do not know of each other.
        what (`str`): What writes, for messages, and `option` (`str`) which argument names the folder.
        take_over (`bool`): What a record of another machine names has ended: the user says so.
        strict (`bool`): A record of another machine stops, although the lock is free: some file systems lock within one
            machine only. Otherwise the lock alone decides: for what two writers at once would at worst do twice.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        name: str = "run",
        *,
        what: str = "run",
        option: str = "--output_dir",
        take_over: bool = False,
        strict: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.what, self.option, self.take_over, self.strict = what, option, take_over, strict
        self.path, self.record = self.folder / f".{name}.lock", self.folder / f".{name}.holder"
        self.holds = 0
        self._file, self._made, self._said = None, False, False

    def acquire(self, timeout: float = 0) -> None:
        """
        Take the lock.

        Args:
            timeout (`float`): Seconds to wait for another holder, which the log says once.

        Raises:
            BlockingIOError: another run writes here, or may do so. The message says who, since when, and what to do.
            OSError: the folder cannot be written.
        """
        if (own := _held.get(self._key())) is not None:
            own.holds += 1
            return
        deadline = time.monotonic() + timeout
        while (why := self._attempt()) is not None:
            if time.monotonic() >= deadline:
                raise BlockingIOError(why)
            if not self._said:
                logger.warning("%s. Waiting for it.", why.partition(". ")[0])
                self._said = True
            time.sleep(0.2)
        self.holds = 1
        _held[self._key()] = self

    def release(self) -> None:
        """Give the lock back, once for each `acquire`."""
        own = _held.get(self._key())
        if own is None:
            return
        own.holds -= 1
        if own.holds:
            return
        del _held[self._key()]
        with suppress(OSError):
            own.record.unlink(missing_ok=True)
            # Before the lock is free: who has opened this file meanwhile sees that it is gone, and opens the next one.
            own.path.unlink(missing_ok=True)
        own._file.release()
        if own._made:
            with suppress(OSError):
                own.folder.rmdir()  # nothing came into it

    def _key(self) -> Path:
        return self.path.parent.resolve() / self.path.name

    def _attempt(self) -> str | None:
        """One try; None once it is ours, else why it is worth another one."""
        self._open()
        held = self._lock()
        me, before = Holder.of_this_process(), Holder.read(self.record)
        elsewhere = before is not None and before.host != me.host
        ended = elsewhere and (self.take_over or before.is_earlier_start_of(me))
        if held is False and ended:
            # A file server may keep the lock of a machine that is gone. The lock of a new file is free.
            self.path.unlink(missing_ok=True)
            held = self._lock()
        who = f" {before.describe(me.host)}" if before is not None else ""
        if held is False or (held is None and before is not None and not elsewhere and before.is_alive()):
            return (
                f"Another {self.what}{who} writes to {self.folder}. Wait until it has ended, or choose another "
                f"{self.option}."
            )
        if elsewhere and not ended and self.strict:
            self._file.release()
            raise BlockingIOError(
                f"A {self.what}{who} wrote to {self.folder} and did not say that it ended, and locks of this file "
                f"system may not reach other machines. If it has ended, add --take_over (in Python: delete "
                f"{self.record.name} in the folder). Otherwise wait for it, or choose another {self.option}."
            )
        if held is None:
            logger.warning(
                "The file system of %s has no locks: start no second %s there from another machine.",
                self.folder, self.what,
            )  # fmt: skip
        remove_dead_partials(self.folder, before.pid if ended else None)
        write_aside(self.record, json.dumps(asdict(me)) + "\n")
        return None

    def _open(self) -> None:
        from filelock import FileLock

        self._made |= not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Its own way out where there are no locks would outlast a kill.
        self._file = self._file or FileLock(self.path, fallback_to_soft=False)

    def _lock(self) -> bool | None:
        """Whether the lock is ours now; None where the file system has none."""
        from filelock import Timeout

        try:
            # A file that its holder has just deleted takes a second look.
            self._file.acquire(timeout=0.2, poll_interval=0.05)
        except (Timeout, FileNotFoundError):  # or its holder has just deleted the folder, which was empty
            return False
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise OSError(
                error.errno,
                f"{self.folder} cannot be written ({error.strerror or error}). Allow writing to it, or choose another "
                f"{self.option}",
            ) from error
        return True


@contextmanager
def only_writer(folder: str | os.PathLike, name: str = "run", *, timeout: float = 0, **kwargs) -> Iterator[None]:
    """Hold a [`FolderLock`] within the block; `kwargs` as for it, `timeout` as for its `acquire`."""
    lock = FolderLock(folder, name, **kwargs)
    lock.acquire(timeout)
    try:
        yield
    finally:
        lock.release()


__all__ = ["FolderLock", "Holder", "only_writer"]
