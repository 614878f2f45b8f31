"""How far a long step is: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

FIRST_SECONDS, EVERY_SECONDS = 10.0, 60.0
Item = TypeVar("Item")


def progress(total: int, title: str, shown: bool = True, unit: str = "rows", initial: int = 0) -> Any:
    """
    Context manager with `update(n)`: a tqdm bar where stderr is a terminal, else `ProgressLines`.

    Args:
        total (`int`): How many there are.
        title (`str`): What is done.
        shown (`bool`, defaults to `True`): Whether anything is shown.
        unit (`str`, defaults to `"rows"`): What is counted, in the plural.
        initial (`int`, defaults to 0): Those that were done before.
    """
    from tqdm import tqdm

    if shown and not sys.stderr.isatty():
        return ProgressLines(total, title, unit, initial)
    return tqdm(total=total, initial=initial, unit=f" {unit}", desc=title, disable=not shown, mininterval=1)


def counted(items: Iterable[Item], total: int, title: str, unit: str = "rows") -> Iterator[Item]:
    """The same items, with their progress shown."""
    with progress(total, title, unit=unit) as bar:
        for item in items:
            yield item
            bar.update(1)


def no_bars_in_a_log() -> None:
    """
    Where stderr is no terminal, switch off the bars of datasets, of the Hub's client and of transformers: one that
    cannot overwrite itself fills a log with its copies.
    """
    if sys.stderr.isatty():
        return
    # For those that are not loaded yet.
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    for name, call in (
        ("datasets", "disable_progress_bars"),
        ("huggingface_hub.utils", "disable_progress_bars"),
        ("transformers.utils.logging", "disable_progress_bar"),
    ):
        if name in sys.modules:
            getattr(sys.modules[name], call)()


class ProgressLines:
    """
    Whole lines on stderr: one after 10 seconds, then one a minute, and one at the end.

    Args:
        total (`int`), title (`str`), unit (`str`), initial (`int`): As of [`progress`].
    """

    def __init__(self, total: int, title: str, unit: str = "rows", initial: int = 0) -> None:
        self.total, self.title, self.unit, self.initial, self.done = total, title, unit, initial, initial
        self.start = time.monotonic()
        self.next = self.start + FIRST_SECONDS

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *error: object) -> None:
        self._print(time.monotonic())

    def update(self, count: int) -> None:
        """Count what is finished."""
        self.done += count
        now = time.monotonic()
        if now >= self.next:
            self.next = now + EVERY_SECONDS
            self._print(now)

    def _print(self, now: float) -> None:
        rate = (self.done - self.initial) / max(now - self.start, 1e-9)
        line = f"{self.title}: {self.done} of {self.total} {self.unit}, {rate:.1f} {self.unit}/s"
        if self.done < self.total and rate:
            line += f", {timedelta(seconds=round((self.total - self.done) / rate))} left"
        print(line, file=sys.stderr, flush=True)


__all__ = ["ProgressLines", "counted", "no_bars_in_a_log", "progress"]
