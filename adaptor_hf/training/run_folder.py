"""The output folder of a run while it is written: one run at a time, no leftovers, and a file that asks to go on."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..embeddings.ranks import Ranks
from ..files import write_aside
from ..folder_lock import FolderLock
from .checkpoints import UNFINISHED_MODEL, remove_unfinished
from .interruption import asks_to_be_requeued

REQUEUE = "requeue"
"""In the output folder: a signal ended the run, which has kept what it had, and the same command goes on."""


@contextmanager
def run_folder(output_dir: str | os.PathLike, take_over: bool = False) -> Iterator[None]:
    """
    Be the only run in a folder within the block. All processes of a launch enter it; the first one holds the lock.

    At its start what a killed run left half-written is deleted. The file `requeue` is as of [`requeue_file`].

    Args:
        output_dir (`str` or `PathLike`): Of the run.
        take_over (`bool`): As for [`~adaptor_hf.folder_lock.FolderLock`].

    Raises:
        BlockingIOError: on all processes: another run writes there. The message says who, and what to do.
    """
    folder, ranks = Path(output_dir), Ranks()
    lock = FolderLock(folder, take_over=take_over)

    def enter() -> None:
        lock.acquire()
        remove_unfinished(folder)
        shutil.rmtree(folder / UNFINISHED_MODEL, ignore_errors=True)

    ranks.on_main(enter)
    try:
        with requeue_file(folder) if ranks.is_main else nullcontext():
            yield
    finally:
        if ranks.is_main:
            lock.release()


@contextmanager
def requeue_file(folder: str | os.PathLike) -> Iterator[None]:
    """
    Write the file `requeue` into a folder when a signal ends the block, beside the exit status 75: launchers of several
    processes return another one. At its start one of an earlier run goes.
    """
    path = Path(folder) / REQUEUE
    path.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        if asks_to_be_requeued(error):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, "The same command goes on.\n", sync=True)
        raise


__all__ = ["REQUEUE", "requeue_file", "run_folder"]
