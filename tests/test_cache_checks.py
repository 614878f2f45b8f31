"""Digests of a cache's files: what they are of, which files are compared when, and by which process."""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from test_cache_damage import flipped, rewrite

from adaptor_hf.audit.manifest import write_downstream_manifest
from adaptor_hf.embeddings import digests, import_embeddings, open_cache, verify_cache
from adaptor_hf.embeddings.contents import content_digests
from adaptor_hf.embeddings.digests import DigestedFile, FileChecks
from adaptor_hf.embeddings.files import write_batch
from adaptor_hf.embeddings.manifest import write_record
from adaptor_hf.embeddings.ranks import Ranks
from adaptor_hf.embeddings.reader import open_together
from adaptor_hf.embeddings.verify import written_digests

FIXTURE = Path(__file__).parent / "fixtures" / "version_0_1" / "cache"
ROWS, WIDTH = 48, 8
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of three shards a side."""
    monkeypatch.setattr("adaptor_hf.embeddings.importing.SHARD_ROWS", 16)
    generator = np.random.default_rng(0)
    embeds = (generator.normal(size=(ROWS, WIDTH)).astype(np.float32) for _ in range(2))
    return import_embeddings(*embeds, cache_dir=tmp_path / "cache")


def damage(path: Path) -> None:
    data = path.read_bytes()
    rewrite(path, flipped(data, 8 * (len(data) // 2)))


def folder_of(cache, modality: str) -> Path:
    return cache.path.parent / cache.manifest[modality]


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that are compared from now on."""
    names = []
    compare = digests._digest
    monkeypatch.setattr(digests, "_digest", lambda item: names.append(item[0].name) or compare(item))
    return names


def test_digests_in_the_manifests_are_those_of_the_files_by_other_code(cache):
    entries = 0
    for folder in (cache.path, folder_of(cache, "images"), folder_of(cache, "texts")):
        manifest = json.loads((folder / "cache.json").read_text())
        for entry in [*manifest["shards"], *manifest.get("files", [])]:
            data = (folder / entry["file"]).read_bytes()
            assert entry["bytes"] == len(data)
            assert entry["sha256"] == hashlib.sha256(data).hexdigest()
            assert entry["xxh3"] == xxhash.xxh3_128_hexdigest(data)
            entries += 1
        fields = "".join(json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).split(
            f'"digest":"{manifest["digest"]}",'
        ))  # fmt: skip
        assert manifest["digest"] == hashlib.sha256(fields.encode()).hexdigest()
    assert entries == 9
    for name, digest in cache.digests().items():
        assert digest == hashlib.sha256((cache.path.parent / name).read_bytes()).hexdigest()


def test_digests_are_of_what_was_written_not_of_what_the_disk_made_of_it(tmp_path, monkeypatch):
    class BadDisk(io.FileIO):
        def write(self, data):
            return super().write(flipped(bytes(data), 3))

    path = tmp_path / "good.arrow"
    batch = pa.RecordBatch.from_pydict({"row": list(range(1000))})
    entry = write_batch(path, batch)
    assert pa.ipc.open_stream(path).read_all().to_batches()[0].equals(batch)
    FileChecks().check(tmp_path, [entry], "")
    data = path.read_bytes()
    with BadDisk(tmp_path / "bad.arrow", "w") as disk:
        digested = DigestedFile(disk)
        digested.write(data)
    assert digested.entry() == {name: entry[name] for name in ("bytes", "sha256", "xxh3")}
    for algorithm in (None, "sha256"):
        with pytest.raises(ValueError, match=r"bad.arrow is damaged"):
            FileChecks().check(tmp_path, [entry | {"file": "bad.arrow"}], "", algorithm)


@pytest.fixture
def pairs_of_first_shard(cache) -> Path:
    """Pairs whose images lie in the first of three shards, as of one data set among several in a folder."""
    table = pa.ipc.open_stream(cache.path / "rows.arrow").read_all()
    numbers = {name: table[name].to_numpy() for name in table.column_names}
    numbers["image_row"] = numbers["image_row"] % 16
    manifest = json.loads((cache.path / "cache.json").read_text())
    (cache.path / "rows.arrow").unlink()  # it is mapped
    manifest["shards"][0] = write_batch(cache.path / "rows.arrow", pa.RecordBatch.from_pydict(numbers))
    write_record(cache.path / "cache.json", manifest)
    return cache.path


SHARDS = [f"data-0000{index}.arrow" for index in range(3)]


@pytest.mark.parametrize(
    ("check", "images", "now", "later"),
    [
        ("touched", SHARDS[:1], [], [*SHARDS[1:], "excluded.csv"]),
        ("full", SHARDS, ["excluded.csv"], []),
        ("off", None, [], []),
    ],
)
def test_what_is_compared_at_opening_and_what_when_it_is_first_read(
    pairs_of_first_shard, cache, read, check, images, now, later
):
    opened = open_cache(pairs_of_first_shard, check=check)
    expected = [] if images is None else ["rows.arrow", "pairs.arrow", *images, *SHARDS, *now]
    assert sorted(read) == sorted(expected)
    read.clear()
    for _ in range(2):
        opened._store.vectors["images"].take(np.array([17, 40]))
        _ = opened.excluded
    assert sorted(read) == sorted(later)


def test_a_shard_that_no_row_needs_may_be_damaged_until_it_is_read(pairs_of_first_shard, cache):
    damage(folder_of(cache, "images") / SHARDS[2])
    opened = open_cache(pairs_of_first_shard)
    with pytest.raises(ValueError, match=SHARDS[2]):
        opened._store.vectors["images"].take(np.array([40]))
    with pytest.raises(ValueError, match=SHARDS[2]):
        open_cache(pairs_of_first_shard, check="full")


def test_off_compares_sizes_and_nothing_else(cache):
    damage(folder_of(cache, "images") / "data-00000.arrow")
    manifest = json.loads((cache.path / "cache.json").read_text())
    (cache.path / "cache.json").write_text(json.dumps(manifest | {"excluded": 7}))
    assert open_cache(cache.path, check="off").manifest["excluded"] == 7
    with pytest.raises(ValueError, match=r"cache.json is damaged or was edited"):
        open_cache(cache.path)
    path = folder_of(cache, "texts") / "data-00001.arrow"
    rewrite(path, path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data-00001.arrow has \d+ bytes"):
        open_cache(cache.path, check="off")
    with pytest.raises(ValueError, match="touched, full, off"):
        open_cache(cache.path, check="some")


def test_every_opening_compares_again_and_a_worker_does_not(cache, read):
    open_cache(cache.path)
    assert len(read) == 8
    again = open_cache(cache.path)
    assert len(read) == 16
    copy = pickle.loads(pickle.dumps(again.split("train")))
    assert torch.equal(copy.image_embeddings(), again.split("train").image_embeddings())
    assert len(read) == 16
    assert copy._store.checks.mode == "touched"


def run_rank(cache_dir: Path, rank: int, node: int, results) -> None:
    os.environ["LOCAL_RANK"] = str(node)
    torch.distributed.init_process_group("gloo", f"file://{cache_dir.parent}/store", rank=rank, world_size=2)
    compared, compare = [], digests._digest
    digests._digest = lambda item: compared.append(item[0].name) or compare(item)
    try:
        said = len(open_together(cache_dir, FileChecks(), Ranks()))
    except (ValueError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    results.put((rank, len(compared), said))
    torch.distributed.destroy_process_group()


def run_ranks(cache_dir: Path, nodes: tuple[int, int]) -> list:
    (cache_dir.parent / "store").unlink(missing_ok=True)
    results = FORK.SimpleQueue()
    processes = [FORK.Process(target=run_rank, args=(cache_dir, *item, results)) for item in enumerate(nodes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return sorted(results.get() for _ in processes)


def test_ranks_of_one_machine_share_one_comparison_and_its_result(cache):
    folder = cache.path.parent
    assert run_ranks(folder, (0, 1)) == [(0, 8, ROWS), (1, 0, ROWS)]
    assert run_ranks(folder, (0, 0)) == [(0, 8, ROWS), (1, 8, ROWS)]  # two machines, of one process each
    damage(folder_of(cache, "images") / "data-00001.arrow")
    first, second = run_ranks(folder, (0, 1))
    assert first[2].startswith("ValueError")
    assert second[2].startswith("RuntimeError: rank 0 failed at the cache of embeddings")
    assert "data-00001.arrow is damaged" in first[2]
    assert "data-00001.arrow is damaged" in second[2]


def test_a_run_names_its_cache_by_what_was_written_not_by_the_damage(cache, tmp_path):
    folder, written = cache.path.parent, cache.digests()
    damage(folder_of(cache, "images") / "data-00001.arrow")
    found = written_digests(folder)
    assert found == {name: digest for name, digest in written.items() if not name.endswith("cache.json")}
    path = write_downstream_manifest(tmp_path, [], folder, check="full")
    recorded = json.loads(path.read_text())["inputs"]["cache"]
    assert recorded["files"] == found
    assert recorded["check"] == "full"
    with pytest.raises(ValueError, match="data-00001"):
        verify_cache(folder)


def test_a_damaged_cache_of_another_tower_is_named_and_image_files_are_read(images_in_cache, caplog):
    dataset, cache_dir = images_in_cache
    expected = content_digests(dataset)
    assert (content_digests(dataset, cache_dir) == expected).all()
    damage(next(cache_dir.glob("images-*/data-00000.arrow")))
    assert (content_digests(dataset, cache_dir) == expected).all()
    assert "data-00000.arrow is damaged" in caplog.text


@pytest.fixture
def images_in_cache(radiographs, tiny_dinov2, tmp_path):
    from adaptor_hf.embeddings import build_cache

    dataset = datasets.Dataset.from_dict({"image": sorted(map(str, radiographs.glob("*.jpg")))})
    build_cache(dataset, str(tiny_dinov2), None, tmp_path / "images", num_workers=0)
    return dataset, tmp_path / "images"


class TestVersion01:
    """Its manifests have a SHA-256 of every file, and no digest of their own fields."""

    @pytest.fixture
    def old(self, tmp_path):
        return shutil.copytree(FIXTURE, tmp_path / "cache")

    def test_it_opens_is_checked_by_sha256_and_says_so(self, old, caplog, read):
        caplog.set_level(logging.INFO)
        for pairs in sorted(old.glob("pairs-*")):
            before = {path: path.read_bytes() for path in old.rglob("*.*") if path.is_file()}
            for name, digest in open_cache(pairs, check="full").digests().items():
                assert digest == hashlib.sha256((old / name).read_bytes()).hexdigest()
            assert "is of version 0.1" in caplog.text
            assert {path: path.read_bytes() for path in old.rglob("*.*") if path.is_file()} == before
        assert read
        assert verify_cache(old)

    def test_a_flipped_bit_in_a_file_is_found(self, old):
        for path in sorted(old.rglob("*.arrow")):
            whole = path.read_bytes()
            damage(path)
            found = []
            for pairs in sorted(old.glob("pairs-*")):
                try:
                    open_cache(pairs, check="full")
                except ValueError as error:
                    found.append(str(error))
            assert found
            assert all(f"{path} is damaged: its SHA-256" in said for said in found)
            rewrite(path, whole)

    @pytest.mark.parametrize("place", ["pairs", "images"])
    @pytest.mark.parametrize("field", ["image_mean", "pooling", "hidden_size"])
    def test_of_the_metadata_what_the_key_covers_is_checked(self, old, place, field):
        pairs = next(old.glob("pairs-*"))
        manifest = json.loads((pairs / "cache.json").read_text())
        path = (pairs if place == "pairs" else old / manifest["images"]) / "cache.json"
        manifest = json.loads(path.read_text())
        spec = manifest["image_tower" if place == "pairs" else "tower"]
        if field == "image_mean":
            spec["image_processor"]["image_mean"][1] += 0.01
        else:
            spec[field] = {"pooling": "mean", "hidden_size": 64}[field]
        path.write_text(json.dumps(manifest))
        named = "image_processor" if field == "image_mean" else field
        with pytest.raises(ValueError, match=rf"{named} of its tower is not what the embeddings were made with"):
            open_cache(pairs)
