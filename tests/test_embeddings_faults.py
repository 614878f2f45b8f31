"""A full disk and a read-only folder, on a real small file system where mounting is allowed; progress in log files."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from adaptor_hf import progress
from adaptor_hf.embeddings import build_cache, open_cache

ROWS = 3000
# Runs in a mount namespace of its own, so the file system is gone with the process.
SCRIPT = """
import os, subprocess, sys
import datasets
from adaptor_hf.embeddings import build_cache, open_cache, verify_cache

tower, other, disk = sys.argv[1:]
table = datasets.Dataset.from_dict({{"text": [f"clear lungs {{row}}" for row in range({rows})]}})

def mount(*options):
    subprocess.run(["mount", *options, disk], check=True)

def build(text_tower=tower, folder=disk + "/cache"):
    return build_cache(table, None, text_tower, folder, batch_size=64, piece_rows=256)

def refused(*arguments):
    try:
        build(*arguments)
    except OSError as error:
        return str(error)
    raise SystemExit("the build should have failed")

mount("-t", "tmpfs", "-o", "size=200k", "tmpfs")
print("full:", refused())
try:
    open_cache(disk + "/cache")
except FileNotFoundError as error:
    print("open:", error)
pieces = [name for _, _, names in os.walk(disk) for name in names if name.startswith("piece-")]
partial = [name for _, _, names in os.walk(disk) for name in names if name.endswith(".partial")]
print("left:", len(pieces) > 0, partial)
mount("-o", "remount,size=20m")
cache = build()
print("space again:", len(cache), sorted(verify_cache(disk + "/cache").values()))
mount("-o", "remount,ro")
print("reused:", build().fingerprint == cache.fingerprint)
print("read-only:", refused(other))
print("read-only, new:", refused(tower, disk + "/new"))
"""


@functools.cache
def can_mount() -> bool:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def test_a_full_disk_and_a_read_only_one_are_named_and_the_build_goes_on_after(tiny_bert, tmp_path):
    if not can_mount():
        pytest.skip("needs a user namespace that may mount a tmpfs; the test below injects the error")
    from transformers import BertModel

    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_bert.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    model = BertModel.from_pretrained(tiny_bert)
    model.embeddings.word_embeddings.weight.data += 0.01
    model.save_pretrained(other)
    disk = tmp_path / "disk"
    disk.mkdir()
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", SCRIPT.format(rows=ROWS), str(tiny_bert), str(other), str(disk)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert result.returncode == 0, result.stderr
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    # 3000 rows of 32 float16 and 36 bytes of keys and length, three times at most.
    assert f"the disk of {disk}/cache is full" in said["full"]
    assert "MB are free" in said["full"]
    assert "needs about 0.9 MB" in said["full"]
    assert "no finished embedding cache" in said["open"]
    assert said["left"] == "True []"
    assert said["space again"] == f"{ROWS} [{ROWS}, {ROWS}]"
    assert said["reused"] == "True"
    assert f"{disk}/cache cannot be written" in said["read-only"]
    assert f"{disk}/new" in said["read-only, new"]


@pytest.mark.parametrize("failing", ["piece-000002", "data-00000", "cache.json", "rows.arrow", "pairs.arrow"])
def test_a_disk_that_fills_up_at_any_write_leaves_nothing_that_reads_as_whole(
    tiny_bert, tmp_path, monkeypatch, failing
):
    table = datasets.Dataset.from_dict({"text": [f"clear {row}" for row in range(64)]})

    def build():
        return build_cache(table, None, str(tiny_bert), tmp_path / "cache", batch_size=8, piece_rows=16)

    replace = os.replace

    def full(source, target):
        if failing in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left on device") as raised:
            build()
    assert str(tmp_path / "cache") in str(raised.value)
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(FileNotFoundError, match="no finished embedding cache"):
        open_cache(tmp_path / "cache")
    assert len(build()) == 64


def test_progress_is_a_few_whole_lines_where_stderr_is_no_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress(1000, "images", shown=True) as lines:
        for _ in range(100):
            now[0] += 1.0
            lines.update(5)
    shown = capsys.readouterr().err
    assert shown.splitlines() == [
        "images: 50 of 1000 rows, 5.0 rows/s, 0:03:10 left",
        "images: 350 of 1000 rows, 5.0 rows/s, 0:02:10 left",
        "images: 500 of 1000 rows, 5.0 rows/s, 0:01:40 left",
    ]
    assert "\r" not in shown


def test_other_ranks_show_no_progress_and_a_terminal_shows_a_bar(capsys, monkeypatch):
    with progress.progress(10, "images", shown=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress(10, "images", shown=True) as bar:
        bar.update(10)
    shown = capsys.readouterr().err
    assert "images: 100%" in shown
    assert "rows/s" in shown
