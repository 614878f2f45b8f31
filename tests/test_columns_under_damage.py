"""Each kind of column that a cache can store, under kills, flipped bits, cut files, full disks and several ranks."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from fixtures.cache_files import snapshot

from adaptor_hf.data.tables import load_pairs
from adaptor_hf.embeddings import build_cache, open_cache, repair_cache, verify_cache
from adaptor_hf.phantom import write_phantoms

ROWS = 12
CASES = {
    "image_tokens": {"image_tokens": "all"},
    "image_tokens of a grid": {"image_tokens": 2},
    "regions": {"regions": (2, 2)},
    "shallow": {"shallow": (1, 2)},
    "image_attention": {"image_attention": True},
    "views": {"views": 2, "view_seed": 3},
    "views and image_tokens": {"views": 2, "image_tokens": 2},
    "text_tokens": {"text_tokens": True},
    "text_attention": {"text_attention": True},
    "words": {"words": True},
    "sentences": {"sentences": True},
    "int8 of images": {"dtype": "int8", "image_tokens": 2, "regions": (2, 1), "views": 2},
    "int8 of texts": {"dtype": "int8", "text_tokens": True, "words": True},
}
FORK = multiprocessing.get_context("fork")
# What changes files, of Python's audit events.
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


class Case:
    """A small data set, a tower, what is stored, and what an undisturbed build of it gives."""

    def __init__(self, asked: dict, dataset: datasets.Dataset, vision: str, text: str, folder: Path) -> None:
        self.asked = asked
        self.of_images = not asked.keys() & {"text_tokens", "text_attention", "words", "sentences"}
        self.dataset = dataset.remove_columns("text" if self.of_images else "image")
        self.towers = (vision, None) if self.of_images else (None, text)
        self.changes = self.forked(folder)
        self.folder, self.files = folder, snapshot(folder)
        self.values = values_of(folder)

    def build(self, folder: Path):
        return build_cache(
            self.dataset, *self.towers, folder, batch_size=2, num_workers=0, piece_rows=4, shard_rows=8, **self.asked
        )

    def forked(self, folder: Path, first: Callable | None = None, die_before: int | None = None) -> int | str | None:
        """Build in a fork: how often it changed a file; None if it was killed; the message of its OSError."""
        mine, its = FORK.Pipe()
        process = FORK.Process(target=self._run, args=(folder, first, die_before, its))
        process.start()
        its.close()
        found = None
        try:
            found = mine.recv()
        except EOFError:
            process.join()
            assert process.exitcode == -signal.SIGKILL
        process.join()
        return found

    def _run(self, folder: Path, first: Callable | None, die_before: int | None, pipe) -> None:
        changes = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal changes
            if event not in CHANGES or not os.fsdecode(arguments[0]).startswith(str(folder)):
                return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            changes += 1
            if changes == die_before:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        if first:
            first()
        try:
            self.build(folder)
        except OSError as error:
            pipe.send(f"{error.errno} {error}")
        else:
            pipe.send(changes)


def values_of(folder: Path) -> dict[str, torch.Tensor]:
    """All that a batch of the whole cache has, columns too."""
    cache = open_cache(folder)
    cache = cache.with_columns(*cache.stored_columns)
    batch = cache[: len(cache)]
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor) and "row" not in name}


def assert_same(values: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture(scope="module")
def cases(tmp_path_factory, tiny_dinov2, tiny_bert) -> Callable[[str], Case]:
    table = write_phantoms(tmp_path_factory.mktemp("phantoms") / "set", ROWS, image_size=64)
    dataset = load_pairs(table).select_columns(["image", "text"])
    made: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in made:
            place = tmp_path_factory.mktemp("whole")
            made[name] = Case(CASES[name], dataset, str(tiny_dinov2), str(tiny_bert), place)
        return made[name]

    return case


@pytest.fixture(params=CASES)
def case(request, cases) -> Case:
    return cases(request.param)


def column_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-*/*.arrow")) + sorted(folder.glob("*-*/cache.json"))


def test_what_is_asked_for_is_stored_and_no_more(case):
    names = {name for name in case.asked if name not in ("dtype", "view_seed", "views")}
    if "views" in case.asked:
        names |= {"view_embeds", "view_boxes"} | ({"view_tokens"} if "image_tokens" in case.asked else set())
    assert set(open_cache(case.folder).stored_columns) == names
    assert names <= case.values.keys()
    for name in names - {"words", "sentences"}:
        # Numbers that differ from row to row, or a walk over damage would walk over nothing.
        assert len(torch.unique(case.values[name].flatten(1), dim=0)) > 4, name


@pytest.mark.parametrize(
    "share", [0.6, pytest.param(0.3, marks=pytest.mark.slow), pytest.param(0.85, marks=pytest.mark.slow)]
)
def test_a_killed_build_goes_on_to_the_same_bytes(case, share, tmp_path):
    assert case.forked(tmp_path, die_before=round(share * case.changes)) is None
    case.build(tmp_path)
    assert snapshot(tmp_path) == case.files
    assert not [path for path in tmp_path.rglob("*") if "building" in path.name or path.suffix == ".partial"]


def test_two_ranks_write_the_bytes_of_one(case, tmp_path):
    def run(rank: int) -> None:
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=rank, world_size=2)
        case.build(tmp_path / "cache")
        torch.distributed.destroy_process_group()

    ranks = [FORK.Process(target=run, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
        assert rank.exitcode == 0
    assert snapshot(tmp_path / "cache") == case.files


def rewrite(path: Path, data: bytes) -> None:
    """Other content under the same size and time, as a disk would."""
    state = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def damaged(data: bytes, generator: random.Random) -> list[bytes]:
    """A file with flipped bits, and cut in several places."""
    flips = []
    for bit in generator.sample(range(8 * len(data)), 3):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        flips.append(bytes(changed))
    return [*flips, *(data[:length] for length in (0, len(data) // 2, len(data) - 8, len(data) - 2))]


def test_damage_to_each_file_is_found_and_the_file_is_named(case):
    generator = random.Random(0)
    for path in column_files(case.folder):
        whole = path.read_bytes()
        for content in damaged(whole, generator):
            rewrite(path, content)
            for read in (values_of, verify_cache):
                with pytest.raises((ValueError, OSError), match=rf"{path.name}|{path.parent.name}"):
                    read(case.folder)
        rewrite(path, whole)
    assert_same(values_of(case.folder), case.values)


def test_what_is_given_up_by_a_repair_is_embedded_again(case, tmp_path):
    case.build(tmp_path)
    # Of the pooled vectors others see to it.
    paths = [path for path in tmp_path.glob("*-*/*-00000.arrow") if not path.name.startswith("data")]
    path = max(paths, key=lambda path: path.stat().st_size)
    rewrite(path, damaged(path.read_bytes(), random.Random(0))[0])
    assert f"{path.parent.name}/{path.name}" in repair_cache(tmp_path)
    case.build(tmp_path)
    assert_same(values_of(tmp_path), case.values)
    verify_cache(tmp_path)
    assert repair_cache(tmp_path) == {}


def test_a_file_over_the_limit_of_the_system_leaves_nothing_half_written(case, tmp_path):
    largest = max(path.stat().st_size for path in column_files(case.folder))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 3, largest // 3))

    said = case.forked(tmp_path, first=limit)
    assert str(said).startswith(f"{errno.EFBIG} "), said
    assert_nothing_half_written(tmp_path, said)
    case.build(tmp_path)
    assert snapshot(tmp_path) == case.files


def assert_nothing_half_written(folder: Path, said: str) -> None:
    assert "kept" in said or "stay" in said
    assert not [path for path in folder.rglob("*") if path.name.startswith("tmp") or path.suffix == ".partial"]
    for piece in folder.rglob("piece-*.arrow"):
        assert piece.with_suffix(".json").exists()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, which root may")
@pytest.mark.parametrize("name", ["views and image_tokens", "int8 of texts"])
@pytest.mark.parametrize("share", [0.5, 1.2])
def test_a_full_disk_leaves_nothing_half_written(name, share, cases, tmp_path):
    case = cases(name)
    disk = tmp_path / "disk"
    disk.mkdir()
    pages = sum(-(-path.stat().st_size // 4096) for path in case.folder.rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={round(share * pages) * 4096}", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("may not mount")
    try:
        said = case.forked(disk / "cache")
        assert str(said).startswith(f"{errno.ENOSPC} "), said
        assert_nothing_half_written(disk / "cache", said)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        case.build(disk / "cache")
        assert snapshot(disk / "cache") == case.files
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_masked_and_padded_rows_are_as_long_as_what_is_stored(cases):
    values = cases("text_tokens").values
    lengths = values["text_attention_mask"].sum(dim=1)
    assert len(set(lengths.tolist())) > 2
    for row, length in zip(values["text_tokens"], lengths, strict=True):
        assert np.all(row[length:].numpy() == 0)
        assert row[:length].abs().sum(dim=1).min() > 0
