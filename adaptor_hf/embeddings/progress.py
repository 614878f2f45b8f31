"""How far a build is: a bar in a terminal, a line now and then in a log file."""

import sys
import time
from datetime import timedelta
from typing import Any

FIRST_SECONDS, EVERY_SECONDS = 10.0, 60.0


def progress(total: int, title: str, shown: bool) -> Any:
    """Context manager with `update(rows)`: a tqdm bar where stderr is a terminal, else `ProgressLines`."""
    from tqdm import tqdm

    if shown and not sys.stderr.isatty():
        return ProgressLines(total, title)
    return tqdm(total=total, unit="rows", desc=title, disable=not shown, mininterval=1)


class ProgressLines:
    """Whole lines on stderr: one after 10 seconds, then one a minute, and one at the end.

    Args:
        total: rows to do.
        title: what is done.
    """

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title, self.done = total, title, 0
        self.start = time.monotonic()
        self.next = self.start + FIRST_SECONDS

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error: object) -> None:
        self._print(time.monotonic())

    def update(self, rows: int) -> None:
        """Count finished rows."""
        self.done += rows
        now = time.monotonic()
        if now >= self.next:
            self.next = now + EVERY_SECONDS
            self._print(now)

    def _print(self, now: float) -> None:
        rate = self.done / max(now - self.start, 1e-9)
        line = f"{self.title}: {self.done} of {self.total} rows, {rate:.1f} rows/s"
        if self.done < self.total and rate:
            line += f", {timedelta(seconds=round((self.total - self.done) / rate))} left"
        print(line, file=sys.stderr, flush=True)
