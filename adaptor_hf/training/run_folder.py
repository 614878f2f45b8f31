"""The output folder of a run while it is written: one run at a time, no leftovers, and a file that asks to go on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..embeddings.ranks import Ranks
from ..files import write_aside
from ..folder_lock import FolderLock
from .checkpoints import remove_unfinished
from .interruption import asks_to_be_requeued

REQUEUE = "requeue"
"""In the output folder: the run has saved what it had and goes on when the same command comes again."""


@contextmanager
def run_folder(output_dir: str | os.PathLike, take_over: bool = False) -> Iterator[None]:
    """
    Be the only run in a folder within the block. All processes of a launch enter it; the first one holds the lock.

    At its start what a killed run left half-written is deleted, and the file `requeue` of an earlier start. This file
    is written when a signal ends the block (exit status 75): launchers of several processes return another status.

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
        (folder / REQUEUE).unlink(missing_ok=True)
        remove_unfinished(folder)

    ranks.on_main(enter)
    try:
        yield
    except BaseException as error:
        if ranks.is_main and asks_to_be_requeued(error):
            write_aside(folder / REQUEUE, "The same command goes on.\n", sync=True)
        raise
    finally:
        if ranks.is_main:
            lock.release()


__all__ = ["REQUEUE", "run_folder"]
