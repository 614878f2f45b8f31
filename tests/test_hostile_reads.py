"""Names that lead to no regular file end in an error in seconds, wherever a file is read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 200  # for some hundred reads and the imports: only one that hangs takes so long
FOUND = (
    "not a file but|no table in this folder|Too many levels of symbolic links|[Nn]o file|[Nn]o such|neither|"
    "No predictions"
)


@pytest.mark.skipif(sys.platform != "linux", reason="named pipes and /proc of Linux")
def test_no_read_of_what_is_no_file_hangs_or_eats_memory(tmp_path):
    command = [sys.executable, str(ROOT / "tests/hostile_reads.py"), str(tmp_path)]
    with open(tmp_path / "out", "wb") as out:
        try:
            subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=SECONDS,
                           check=True)  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.fail(f"this read hangs: {(tmp_path / 'out').read_text(errors='replace').splitlines()[-1]}")
        except subprocess.CalledProcessError:
            pytest.fail((tmp_path / "out").read_text(errors="replace")[-3000:])
    lines = [line for line in (tmp_path / "out").read_text(errors="replace").splitlines() if ": " in line]
    files = [line for line in lines if re.match(r"[^:]+ of a (pipe|link|device|stdin|proc|socket|folder|loop)", line)]
    folders = [line for line in lines if line.startswith("folder: ")]
    assert len(files) > 250
    assert len(folders) == 60
    assert [line for line in lines if "wrong error" in line or "MemoryError" in line] == []
    assert [line for line in files if not re.search(FOUND, line)] == []
