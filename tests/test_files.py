"""Files and folders that are whole or absent, and the one place that makes them so."""

import ast
import hashlib
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import adaptor_hf
from adaptor_hf.files import file_sha256, folder_written_aside, write_aside, written_aside

PACKAGE = Path(adaptor_hf.__file__).parent
# Where a file is renamed or digested, and why not by `adaptor_hf/files.py`.
ALLOWED = {
    ("files.py", "os.replace"): "it is the one",
    ("embeddings/pieces.py", "Path.rename"): "pieces that were committed, before they are deleted",
    ("files.py", "os.rename"): "it is the one",
    ("tower_folders_adaptor.py", "os.rename"): "a tower's whole folder; flat files travel alone",
    ("tower_bundles_adaptor.py", "hashlib.file_digest"): "its digest is this one; flat files travel alone",
    ("data/content_keys.py", "hashlib.file_digest"): "keys of images are BLAKE2, 128 bits",
    ("embeddings/digests.py", "hashlib.file_digest"): "caches have an XXH3-128 too, one function for both",
    ("data/public_cache.py", "os.replace"): "a whole folder takes the place of one that others may have open",
    ("privacy/keys.py", "os.link"): "the first of two writers wins",
    ("tasks/frozen_heads.py", "os.replace"): "a result file of an earlier probe gets another name",
    ("tasks/runs.py", "os.replace"): "a damaged result file gets another name",
    (
        "training/checkpoints.py",
        "os.replace",
    ): "a checkpoint's folder after its manifest, a model's files when all are whole",
    ("xrv_towers_adaptor.py", "os.replace"): "safetensors beside a download; flat files travel alone",
}


def calls_of(path: Path) -> set[str]:
    """Names of the calls in a file that rename a file or digest a whole one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "hashlib"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = name.rpartition(".")[2]
        if name in ("os.replace", "os.rename", "os.link", "shutil.move", "hashlib.file_digest"):
            found.add(name)
        # Path.rename and Path.replace take one argument; a string's replace two, a table's rename names.
        elif method in ("rename", "replace") and len(node.args) == 1 and not node.keywords:
            if not any(isinstance(part, ast.Dict) for part in ast.walk(node.args[0])):
                found.add(f"Path.{method}")
        elif name.startswith("hashlib.") and any("read_bytes" in ast.unparse(argument) for argument in node.args):
            found.add("hashlib of read_bytes")
    return found & {
        "os.replace", "os.rename", "os.link", "shutil.move", "hashlib.file_digest", "Path.rename", "Path.replace",
        "hashlib of read_bytes",
    }  # fmt: skip


def test_files_are_renamed_and_digested_in_one_place():
    found = {(path.relative_to(PACKAGE).as_posix(), call) for path in PACKAGE.rglob("*.py") for call in calls_of(path)}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("os.replace(aside, path)", "os.replace"),
        ("from os import replace", "os.replace"),
        ("aside.replace(path)", "Path.replace"),
        ("tower.rename(folder / entry['folder'])", "Path.rename"),
        ("shutil.move(aside, path)", "shutil.move"),
        ("hashlib.file_digest(file, 'sha256')", "hashlib.file_digest"),
        ("hashlib.sha256(Path(name).read_bytes())", "hashlib of read_bytes"),
    ],
)
def test_every_way_to_rename_or_digest_is_seen(tmp_path, line, call):
    (tmp_path / "a.py").write_text(f"def planted():\n    {line}\n", encoding="utf-8")
    assert calls_of(tmp_path / "a.py") == {call}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_digest_is_that_of_the_content(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert file_sha256(str(tmp_path / "a")) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("sync", [False, True])
def test_text_and_bytes_are_written_as_they_are(tmp_path, sync):
    write_aside(tmp_path / "text", "größer\r\n≥ 2\n", sync=sync)
    write_aside(str(tmp_path / "bytes"), b"\x00\xff\r\n", sync=sync)
    assert (tmp_path / "text").read_bytes() == "größer\r\n≥ 2\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff\r\n"
    assert names_in(tmp_path) == ["bytes", "text"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("older", [None, "older"])
def test_a_failing_block_leaves_the_older_file_or_none(tmp_path, error, older):
    path = tmp_path / "a"
    if older is not None:
        path.write_text(older)

    def write() -> None:
        with written_aside(path, mode=0o600) as aside:
            aside.write_text("half")
            assert not path.exists() or path.read_text() == older
            raise error("stop")

    with pytest.raises(error):
        write()
    assert names_in(tmp_path) == ([] if older is None else ["a"])
    assert older is None or path.read_text() == older


def test_a_block_that_writes_nothing_is_an_error_and_no_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError), written_aside(tmp_path / "a"):
        pass
    assert names_in(tmp_path) == []


def test_a_killed_process_leaves_the_older_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("older")
    code = """
import os, sys
from adaptor_hf.files import written_aside
with written_aside(sys.argv[1]) as aside:
    aside.write_text("half")
    os._exit(9)
"""
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode == 9
    assert path.read_text() == "older"
    (left,) = [name for name in names_in(tmp_path) if name != "a"]
    assert left.startswith(".a.")
    assert left.endswith(".partial")


def test_of_several_writers_one_file_stays_and_is_whole(tmp_path):
    path = tmp_path / "a"
    contents = [str(writer) * 200_000 for writer in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_aside(path, content) for _ in range(5)], contents))
    assert path.read_text() in contents
    assert names_in(tmp_path) == ["a"]


def test_two_open_blocks_of_one_process_do_not_share_a_place(tmp_path):
    with written_aside(tmp_path / "a") as first, written_aside(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_of_any_new_file_or_those_asked_for(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_aside(tmp_path / "a", "text")
        (tmp_path / "other").write_text("text")
        with written_aside(tmp_path / "secret", mode=0o600) as aside:
            assert stat.S_IMODE(aside.stat().st_mode) == 0o600
            aside.write_text("secret")
        with folder_written_aside(tmp_path / "folder"):
            pass
        (tmp_path / "other_folder").mkdir()
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names_in(tmp_path)}
    assert modes["a"] == modes["other"] == 0o666 & ~umask
    assert modes["secret"] == 0o600
    assert modes["folder"] == modes["other_folder"]


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_text("of others")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    write_aside(tmp_path / "a", "mine")
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text() == "mine"
    assert (tmp_path / "target").read_text() == "of others"


def test_sync_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("replace") or replace(*names))
    write_aside(tmp_path / "a", "text")
    assert order == ["replace"]
    order.clear()
    write_aside(tmp_path / "a", "text", sync=True)
    assert order == ["fsync", "replace"]


def test_a_folder_appears_whole_under_its_own_name(tmp_path):
    with folder_written_aside(tmp_path / "new" / "folder") as aside:
        assert aside.name == "folder"
        (aside / "inside").mkdir()
        (aside / "inside" / "a").write_text("text")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "inside" / "a").read_text() == "text"
    assert names_in(tmp_path / "new") == ["folder"]


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with folder_written_aside(tmp_path / "empty") as aside:
        (aside / "a").write_text("text")
    assert names_in(tmp_path / "empty") == ["a"]
    with pytest.raises(OSError, match="empty"), folder_written_aside(tmp_path / "empty") as aside:
        (aside / "b").write_text("text")
    assert names_in(tmp_path / "empty") == ["a"]
    assert names_in(tmp_path) == ["empty"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_folder_is_gone(tmp_path, error):
    def write() -> None:
        with folder_written_aside(tmp_path / "folder") as aside:
            (aside / "a").write_text("half")
            raise error("stop")

    with pytest.raises(error):
        write()
    assert names_in(tmp_path) == []
