"""Finds keys among keys, fast and in little memory: half a million rows are looked up several times in a build."""

import numpy as np

BLOCK_ROWS = 16_384


def first_rows(keys: np.ndarray) -> np.ndarray:
    """(n,) row of the first equal key."""
    order, starts = _runs(keys)
    rows = np.empty_like(order)
    place = np.zeros(1, dtype=order.dtype)
    for start in range(0, len(keys), BLOCK_ROWS):  # in blocks: whole vectors in between would take four times as much
        part = order[start : start + BLOCK_ROWS]
        numbers = np.arange(start, start + len(part))
        # Where in the order the run of each row starts; the first ones may go on with a run of the block before.
        place = np.maximum.accumulate(np.where(starts[start : start + BLOCK_ROWS], numbers, place[-1]))
        rows[part] = order[place]
    return rows


def distinct_rows(keys: np.ndarray) -> np.ndarray:
    """(m,) rows at which a key stands for the first time, ascending."""
    order, starts = _runs(keys)
    order = order[starts]
    order.sort()
    return order


def _runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) order that sorts the keys, and (n,) bool where a run of equal ones starts; its first row is the smallest."""
    order = np.argsort(keys, kind="stable")
    starts = np.ones(len(keys), dtype=bool)
    for start in range(1, len(keys), BLOCK_ROWS):  # in blocks: a sorted copy of all keys would be in memory too
        part = keys[order[start - 1 : start + BLOCK_ROWS]]
        starts[start : start + BLOCK_ROWS] = part[1:] != part[:-1]
    return order, starts


def find_keys(known: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(n,) positions of 16-byte `keys` in `known`, -1 where absent; the first position if a key is there twice."""
    if not len(known):
        return np.full(len(keys), -1, dtype=np.int64)
    # Half of a digest as a number is compared three times as fast as its bytes.
    halves = _halves(known)
    order = np.argsort(halves, kind="stable")
    ordered = halves[order]
    rows = np.empty(len(keys), dtype=np.int64)
    for start in range(0, len(keys), BLOCK_ROWS):
        block = keys[start : start + BLOCK_ROWS]
        wanted = _halves(block)
        found = order[np.searchsorted(ordered, wanted).clip(max=len(known) - 1)]
        same = known[found] == block
        if (halves[found[~same]] == wanted[~same]).any():
            # Other keys with an equal half do not happen by chance, and must not go wrong.
            exact = np.argsort(known, kind="stable")
            found = exact[np.searchsorted(known, block, sorter=exact).clip(max=len(known) - 1)]
            same = known[found] == block
        rows[start : start + BLOCK_ROWS] = np.where(same, found, -1)
    return rows


def _halves(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view(np.uint64)[::2]
