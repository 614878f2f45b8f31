"""A full disk is named, whatever library meets it, and leaves nothing half-written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WRITERS = {
    "text": "aside.write_text('x' * 3_000_000)",
    "bytes": "aside.write_bytes(b'x' * 3_000_000)",
    "csv": "write_csv(aside, ['a'], [['x' * 1000]] * 3000)",
    "parquet": "pq.write_table(pa.table({'a': noise}), aside)",
    "arrow": "with pa.OSFile(str(aside), 'wb') as sink, pa.ipc.new_stream(sink, table.schema) as writer:\n"
             "                writer.write_table(table)",
    "safetensors": "save_file({'a': torch.tensor(noise)}, aside)",
    "torch": "torch.save({'a': torch.tensor(noise)}, aside)",
    "numpy": "np.save(open(aside, 'wb'), noise)",
    "picture": "Image.fromarray(noise.view(np.uint8).reshape(2000, -1)).save(aside, 'PNG')",
}  # fmt: skip
CODE = """
import signal, sys, resource
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, torch
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file
from adaptor_hf.files import folder_written_aside, write_csv, written_aside
noise = np.random.default_rng(0).random(400_000)
table = pa.table({'a': noise})
def written():
    for name in NAMES:
        path = Path(sys.argv[1]) / name
        try:
            run(name, path)
            print(name, 'was written')
        except OSError as error:
            print(name, error.errno, str(error).replace(chr(10), ' '))
        except Exception as error:
            print(name, 'wrong error', type(error).__name__, error)
def run(name, path):
    with (folder_written_aside(path) if name == 'folder' else written_aside(path)) as aside:
        if name == 'folder':
            aside = aside / 'in it'
            name = 'bytes'
        WRITES
"""


def outcomes(folder: Path, limit: str) -> list[str]:
    """Lines of a process that writes in all ways to a place that is full."""
    writes = "\n        ".join(f"if name == {name!r}:\n            {line}" for name, line in WRITERS.items())
    code = CODE.replace("WRITES", writes).replace("NAMES", repr([*WRITERS, "folder"])) + limit + "\nwritten()\n"
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=200,
                         check=False, cwd=ROOT)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.splitlines()


def check(lines: list[str], folder: Path, code: int, unsaid: tuple[str, ...] = ()) -> None:
    assert len(lines) == len(WRITERS) + 1
    for line in lines:
        name = line.split()[0]
        if name not in unsaid:
            assert line.startswith(f"{name} {code} "), line
            assert f"{folder / name} cannot be written" in line
            assert "Nothing half-written is kept" in line
    assert sorted(path.name for path in folder.iterdir()) == ["older"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_file_over_the_limit_of_the_system(tmp_path):
    (tmp_path / "older").write_text("older")
    limit = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    )
    # torch and NumPy do not say why a write failed, and the disk has room.
    check(outcomes(tmp_path, limit), tmp_path, errno.EFBIG, unsaid=("torch", "numpy"))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, which root may")
def test_a_disk_that_is_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("may not mount")
    try:
        (disk / "older").write_text("older")
        check(outcomes(disk, ""), disk, errno.ENOSPC)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
