"""Many runs from one file: combinations of models, tasks and data sets, each as `train_downstream.py` makes it."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..data.folder_walk import walk_images
from ..data.metadata_folders import metadata_files
from ..files import file_sha256, read_json, write_aside
from ..folder_lock import only_writer
from ..options.parser import as_option
from .arguments import option_parser, pairs_of, parse_arguments

logger = logging.getLogger(__name__)

STATE_FILE = "sweep.json"


def sweep_jobs(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """
    Options of each job of a plan: {"common": {...}, "over": {"model": [...], "task": [...]}, "by_task": {TASK: {...}}}.

    `common` are options of every job; `over` are lists of values of which every combination is a job, or of mappings of
    options that go together; `by_task` adds options to the jobs of one task.

    Raises:
        ValueError: a plan of another form.
    """
    if not isinstance(plan, dict) or not isinstance(plan.get("over"), dict) or not plan["over"]:
        raise ValueError('A sweep is a mapping with "over", a mapping of options to lists of values.')
    if unknown := plan.keys() - {"common", "over", "by_task"}:
        raise ValueError(f"A sweep has common, over and by_task, got also {', '.join(sorted(unknown))}.")
    if wrong := [name for name, values in plan["over"].items() if not isinstance(values, list) or not values]:
        raise ValueError(f"over: {wrong[0]} needs a list of values.")
    for values in itertools.product(*plan["over"].values()):
        job = dict(plan.get("common") or {})
        for name, value in zip(plan["over"], values, strict=True):
            job |= value if isinstance(value, dict) else {name: value}
        yield job | (plan.get("by_task") or {}).get(job.get("task"), {})


def run_sweep(
    plan: dict[str, Any],
    output_dir: str | os.PathLike,
    start: Callable[[Any], str],
    *,
    dry_run: bool = False,
) -> dict[str, str]:
    """
    Make the jobs of a plan that are not done. Interrupted, the same call goes on: finished jobs are skipped, and of an
    unfinished job its finished runs. A job that fails is named, and the others go on. Two sweeps in one folder share
    their runs: each is made by one of them, and the other waits for it.

    Args:
        plan (`dict`): See [`sweep_jobs`].
        output_dir (`str` or `PathLike`): Of all jobs; their runs lie beside each other, and share their embeddings.
        start (`Callable`): Makes one job from its `DownstreamArguments` and gives what to print.
        dry_run (`bool`, defaults to `False`): Only say what is left.

    Returns:
        `dict[str, str]`: `done`, `left` or the error of each job, by its options.

    Raises:
        ValueError: a job whose options cannot be meant; before the first one starts.
    """
    folder = Path(output_dir)
    jobs, parser = {}, option_parser()
    for job in sweep_jobs(plan):
        job = parser.as_expected(job)
        words = [word for name, value in job.items() for word in as_option(name, value)]
        jobs[json.dumps(job, sort_keys=True)] = parse_arguments([*words, "--output_dir", str(folder)])
    contents = {name: _tables_digest(arguments) for name, arguments in jobs.items()}
    state = _read_state(folder / STATE_FILE)
    # Another table under the same name is another job: its runs say by their keys what of them is finished.
    done = {name: contents[name] for name in jobs if state.get(name) == contents[name]}
    print(f"{len(done)} of {len(jobs)} jobs are done, {len(jobs) - len(done)} are left:")
    for name in jobs:
        if name not in done:
            print(f"  {name}")
    status = dict.fromkeys(jobs, "left") | dict.fromkeys(done, "done")
    for name, arguments in jobs.items():
        if dry_run or name in done:
            continue
        try:
            print(f"\n{name}\n{start(arguments)}")
        except (ValueError, OSError, FloatingPointError) as error:
            status[name] = str(error)
            logger.warning("Failed: %s: %s", name, error)
            continue
        status[name] = "done"
        _note_done(folder / STATE_FILE, name, contents[name])
    failed = {name: why for name, why in status.items() if why not in ("done", "left")}
    for name, why in failed.items():
        print(f"Failed: {name}: {why}")
    return status


def _tables_digest(arguments: Any) -> str:
    """16 hex digits of the content of the tables, folders and prompts that a job names."""
    digest = hashlib.sha256()
    for name in [arguments.table, arguments.prompts, *pairs_of(arguments.external).values()]:
        if name and Path(name).is_dir():
            digest.update(_folder_digest(Path(name)))
        else:
            known = name and Path(name).is_file()
            digest.update(bytes.fromhex(file_sha256(name)) if known else hashlib.sha256(b"").digest())
    return digest.hexdigest()[:16]


def _folder_digest(folder: Path) -> bytes:
    """Of the names and sizes of its images, whose folders may be their labels, and of its metadata's content."""
    images = [[*image.parts, image.size] for image in walk_images(folder).images]
    tables = [[name, file_sha256(path)] for name, path in metadata_files(folder)]
    return hashlib.sha256(json.dumps([images, tables]).encode()).digest()


def _read_state(path: Path) -> dict[str, str]:
    """
    Finished jobs, each with its `_tables_digest`. A damaged file, or one of an earlier version, which had no digests,
    costs a look at each job's runs, and no result: those are in their own folders.
    """
    if not path.is_file():
        return {}
    try:
        done = read_json(path)["done"]
        return done if isinstance(done, dict) else {}
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged: every job is looked at again, its finished runs are kept.", path)
        return {}


def _note_done(path: Path, name: str, digest: str) -> None:
    """Add a finished job; those of other plans, and of a sweep that works in the same folder, stay."""
    with only_writer(path.parent, "sweep", what="sweep", strict=False, timeout=60):
        done = _read_state(path) | {name: digest}
        write_aside(path, json.dumps({"done": dict(sorted(done.items()))}, indent=1) + "\n")


__all__ = ["STATE_FILE", "run_sweep", "sweep_jobs"]
