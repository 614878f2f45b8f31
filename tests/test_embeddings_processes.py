"""The cache under kills, several ranks, and two builders at once; every test really starts and kills processes."""

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from fixtures.cache_files import snapshot
from PIL import Image

from adaptor_hf import frozen_towers_adaptor
from adaptor_hf.embeddings import build_cache, open_cache
from adaptor_hf.embeddings.__main__ import main as embeddings_command
from adaptor_hf.embeddings.shards import Build
from adaptor_hf.folder_lock import _held, only_writer
from adaptor_hf.training.interruption import EXIT_REQUEUE
from adaptor_hf.training.run_folder import REQUEUE

ROWS = 96
PIECES = 12 + 11  # 96 images and 85 distinct texts, eight a piece
# Forked, so that a process starts without importing everything again.
FORK = multiprocessing.get_context("fork")


class Setting:
    """A data set with tiny towers, and the files that an undisturbed build of it gives."""

    def __init__(self, folder: Path, vision: Path, text: Path) -> None:
        generator = np.random.default_rng(0)
        for row in range(ROWS):
            Image.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / f"{row}.png")
        texts = ["clear lungs " * (1 + row % 7) + str(row) for row in range(ROWS)]
        images = [str(folder / f"{row}.png") for row in range(ROWS)]
        texts = [None if row % 9 == 4 else text for row, text in enumerate(texts)]
        self.dataset = datasets.Dataset.from_dict({"image": images, "text": texts})
        self.towers = str(vision), str(text)

    def build(self, cache_dir: Path, delay: float = 0.0):
        """Build with small pieces and shards; note each piece and wait `delay` seconds at each forward pass."""
        write, forward = Build.write_piece, frozen_towers_adaptor.BaseModelOutputWithPooling

        def noted(build, *args):
            write(build, *args)
            with open(cache_dir / "pieces.txt", "a") as file:
                file.write(f"{os.getpid()}\n")

        def slow(*args, **kwargs):
            time.sleep(delay)
            return forward(*args, **kwargs)

        Build.write_piece, frozen_towers_adaptor.BaseModelOutputWithPooling = noted, slow
        try:
            return build_cache(
                self.dataset, *self.towers, cache_dir, batch_size=4, num_workers=1, piece_rows=8, shard_rows=40
            )
        finally:
            Build.write_piece, frozen_towers_adaptor.BaseModelOutputWithPooling = write, forward

    def start(self, *args, **kwargs):
        process = FORK.Process(target=self.build, args=args, kwargs=kwargs)
        process.start()
        return process


@pytest.fixture(scope="module")
def setting(tmp_path_factory, tiny_dinov2, tiny_bert) -> Setting:
    setting = Setting(tmp_path_factory.mktemp("processes"), tiny_dinov2, tiny_bert)
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    finish(setting.start(undisturbed))
    setting.expected = snapshot(undisturbed)
    assert pieces(undisturbed) == PIECES
    return setting


def pieces(cache_dir: Path) -> int:
    """Pieces computed since the last call."""
    notes = cache_dir / "pieces.txt"
    count = len(notes.read_text().splitlines()) if notes.exists() else 0
    notes.unlink(missing_ok=True)
    return count


def finish(*processes) -> None:
    for process in processes:
        process.join(timeout=600)
        assert process.exitcode == 0


def kill_and_resume(setting: Setting, cache_dir: Path, seed: int) -> None:
    process = setting.start(cache_dir, delay=0.05)  # 24 + 22 forward passes: more than 2.3 seconds
    time.sleep(random.Random(seed).uniform(0.2, 2.2))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(FileNotFoundError, match="no finished embedding cache"):
        open_cache(cache_dir)
    finished = pieces(cache_dir)
    finish(setting.start(cache_dir))
    assert snapshot(cache_dir) == setting.expected
    assert PIECES - 1 <= finished + pieces(cache_dir) <= PIECES + 1
    assert not list(cache_dir.rglob("*.partial"))
    assert not list(cache_dir.rglob("building-*"))


@pytest.mark.parametrize("seed", range(3))
def test_a_build_killed_at_a_random_moment_continues_to_the_same_bytes(setting, tmp_path, seed):
    kill_and_resume(setting, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 23))
def test_a_build_killed_at_many_random_moments_continues_to_the_same_bytes(setting, tmp_path, seed):
    kill_and_resume(setting, tmp_path, seed)


@pytest.mark.parametrize("before", ["rename", "removal", "removal of the last"])
def test_a_build_killed_while_committing_adds_no_row_twice(setting, tmp_path, before):
    """Killed after the manifest was written and before the pieces were removed."""

    def build_and_die():
        import shutil

        remove, rename = shutil.rmtree, Path.rename

        def die(path, *args, **kwargs):
            last = before != "removal of the last" or path.parent.name.startswith("texts-")
            if Path(path).name.startswith(".building-") and last:
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path, *args, **kwargs)

        def die_at_rename(path, target):
            if path.name.startswith("building-") and before == "rename":
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        shutil.rmtree, Path.rename = die, die_at_rename
        setting.build(tmp_path)

    process = FORK.Process(target=build_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob("images-*/cache.json"))
    assert list(tmp_path.glob("*-*/*building-*"))
    finish(setting.start(tmp_path))
    assert not list(tmp_path.glob("*-*/.*"))
    assert not list(tmp_path.glob("*-*/building-*"))
    assert snapshot(tmp_path) == setting.expected
    assert pieces(tmp_path) == PIECES


def test_finished_pieces_count_when_the_data_set_changed_after_the_kill(setting, tmp_path):
    process = setting.start(tmp_path, delay=0.1)
    while pieces(tmp_path) == 0 or not list(tmp_path.rglob("piece-*.arrow")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = len(list(tmp_path.rglob("piece-*.arrow")))
    pieces(tmp_path)
    changed = Setting.__new__(Setting)
    changed.dataset, changed.towers = setting.dataset.select(range(ROWS - 1)), setting.towers
    finish(changed.start(tmp_path))
    assert pieces(tmp_path) <= PIECES - done
    assert len(open_cache(tmp_path)) == ROWS - 1


def run_rank(setting: Setting, cache_dir: Path, rank: int, world: int, fail: bool, results) -> None:
    torch.distributed.init_process_group("gloo", f"file://{cache_dir}/store", rank=rank, world_size=world)
    if fail and rank == 1:
        Build.write_piece = lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    try:
        cache = setting.build(cache_dir)
        results.put((rank, torch.distributed.get_world_size(), len(cache)))
    except (OSError, RuntimeError) as error:
        results.put((rank, torch.distributed.get_world_size(), str(error)))
    torch.distributed.destroy_process_group()


def run_ranks(setting: Setting, cache_dir: Path, world: int, fail: bool = False) -> list:
    results = FORK.SimpleQueue()
    processes = [
        FORK.Process(target=run_rank, args=(setting, cache_dir, rank, world, fail, results)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    finish(*processes)
    return sorted(results.get() for _ in processes)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_work_and_change_no_byte(setting, tmp_path, world):
    assert run_ranks(setting, tmp_path, world) == [(rank, world, ROWS) for rank in range(world)]
    by_rank = (tmp_path / "pieces.txt").read_text().splitlines()
    shares = [by_rank.count(process) for process in set(by_rank)]
    assert len(shares) == world
    assert sum(shares) == PIECES
    assert max(shares) - min(shares) <= 2
    assert snapshot(tmp_path) == setting.expected


def test_a_rank_that_fails_ends_all_ranks_with_its_reason(setting, tmp_path):
    first, second = run_ranks(setting, tmp_path, 2, fail=True)
    assert "rank 1 failed at the cache of embeddings: OSError" in first[2]
    assert "No space left on device" in second[2]
    (tmp_path / "store").unlink(missing_ok=True)
    finish(setting.start(tmp_path))
    assert snapshot(tmp_path) == setting.expected


@pytest.mark.slow
def test_the_command_line_builds_under_torchrun(setting, tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "image,text\n" + "".join(f"{setting.dataset[row]['image']},clear lungs {row}\n" for row in range(8))
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command = ["-m", "adaptor_hf.embeddings", "build", str(tmp_path / "pairs.csv"), "--cache_dir", str(tmp_path / "c")]
    command += ["--vision_tower", setting.towers[0], "--text_tower", setting.towers[1], "--num_workers", "0"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*launch, *command], capture_output=True, text=True, timeout=900, env=os.environ | {"PYTHONPATH": paths}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"fingerprint":') == 1
    assert '"rows": 8' in result.stdout
    assert "images, rank 0 of 2" in result.stderr


def test_a_second_builder_waits_and_uses_what_the_first_one_made(setting, tmp_path):
    finish(setting.start(tmp_path, delay=0.02), setting.start(tmp_path, delay=0.02))
    assert len(set((tmp_path / "pieces.txt").read_text().split())) <= 2
    assert pieces(tmp_path) == PIECES
    assert snapshot(tmp_path) == setting.expected


def test_pairs_that_another_builder_finished_meanwhile_are_left_alone(setting, tmp_path, monkeypatch):
    """The other one starts and ends between this one's look at the folder and its writing."""
    from adaptor_hf.embeddings import pairs

    look, written = pairs._is_current, []

    def look_and_wait(folder, *args):
        found = look(folder, *args)
        if not written:
            assert not found
            written.append(None)
            finish(setting.start(tmp_path))
            written[0] = (folder / "cache.json").stat()
        return found

    monkeypatch.setattr(pairs, "_is_current", look_and_wait)
    assert len(setting.build(tmp_path)) == len(open_cache(tmp_path))
    manifest = next(tmp_path.glob("pairs-*/cache.json")).stat()
    assert (manifest.st_ino, manifest.st_mtime_ns) == (written[0].st_ino, written[0].st_mtime_ns)
    assert not list(tmp_path.glob(".*"))


def test_a_complete_cache_is_opened_while_another_build_runs_in_its_folder(setting, tmp_path):
    """What that one has not committed yet looks like what a kill has left."""
    finish(setting.start(tmp_path))
    (folder,) = tmp_path.glob("images-*")
    (folder / "building-of-another" / "000000").mkdir(parents=True)
    with only_writer(tmp_path, "build", what="build", option="cache_dir", strict=False):
        ours = FORK.Process(target=lambda: (_held.clear(), setting.build(tmp_path)))
        ours.start()
        ours.join(timeout=60)
        ended = ours.exitcode
        ours.kill()
    assert ended == 0
    assert (folder / "building-of-another").exists()
    # Of a build that was killed it goes.
    assert pieces(tmp_path) == PIECES
    finish(setting.start(tmp_path))
    assert not list(folder.glob("*building-*"))


def test_interrupting_ends_soon_and_says_how_to_go_on(setting, tmp_path):
    def build():
        logging.basicConfig(filename=tmp_path / "log.txt", force=True)
        setting.build(tmp_path, delay=0.1)

    process = FORK.Process(target=build)
    process.start()
    while pieces(tmp_path) == 0:
        time.sleep(0.02)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=30)
    assert time.monotonic() - began < 5
    assert process.exitcode == 1
    assert "the same call goes on from there" in (tmp_path / "log.txt").read_text()
    finish(setting.start(tmp_path))
    assert snapshot(tmp_path) == setting.expected


def test_a_signal_ends_the_command_with_75_and_the_same_command_goes_on(setting, tmp_path, monkeypatch):
    rows = "".join(f"{setting.dataset[row]['image']},clear lungs {row}\n" for row in range(8))
    (tmp_path / "pairs.csv").write_text("image,text\n" + rows)
    words = ["build", str(tmp_path / "pairs.csv"), "--cache_dir", str(tmp_path / "cache"), "--num_workers", "0"]
    words += ["--vision_tower", setting.towers[0], "--text_tower", setting.towers[1]]
    write = Build.write_piece

    def write_and_be_warned(build, *args):
        write(build, *args)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Build, "write_piece", write_and_be_warned)
    assert in_a_fork(embeddings_command, words) == EXIT_REQUEUE
    assert (tmp_path / "cache" / REQUEUE).is_file()
    assert len(list((tmp_path / "cache").rglob("piece-*.arrow"))) == 1
    monkeypatch.setattr(Build, "write_piece", write)
    assert in_a_fork(embeddings_command, words) == 0
    assert not (tmp_path / "cache" / REQUEUE).exists()
    assert not list((tmp_path / "cache").glob(".*"))


def in_a_fork(function, *arguments):
    with FORK.Pool(1) as pool:
        return pool.apply(function, arguments)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_rows(setting, tmp_path):
    """Anonymous memory at the end of a build of texts, 2,000 against 30,000 rows."""

    def build(rows: int, results) -> None:
        dataset = datasets.load_from_disk(str(tmp_path / f"rows-{rows}"))
        before = anonymous_megabytes()
        build_cache(dataset, None, setting.towers[1], tmp_path / f"cache-{rows}", batch_size=64)
        results.put(anonymous_megabytes() - before)

    grown = {}
    for rows in (2_000, 30_000):
        texts = {"text": [f"clear {row}" for row in range(rows)], "image_id": [f"id {row}" for row in range(rows)]}
        datasets.Dataset.from_dict(texts).save_to_disk(str(tmp_path / f"rows-{rows}"))
        results = FORK.SimpleQueue()
        process = FORK.Process(target=build, args=(rows, results))
        process.start()
        finish(process)
        grown[rows] = results.get()
    assert grown[30_000] - grown[2_000] < 15


def anonymous_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
