"""Damage and forgery of finished runs, for tests."""

import json
import os

from adaptor_hf import file_records
from adaptor_hf.file_records import MANIFEST_FILE, content_sha256
from adaptor_hf.files import file_sha256

OF_THE_CACHE = {
    "cache.json": "grows with the cache: `verify` compares its settings; the rest is the cache's own to check",
    "checked.json": "what was checked when; deleting it costs time",
    "latest.json": "which pairs were built last; a run names its own",
    "excluded.csv": "which rows were left out, for people",
}


def flip(path, place=None):
    """Flip one bit and give size and time back; returns a function that undoes it."""
    state, data = path.stat(), path.read_bytes()
    place = len(data) // 2 if place is None else place
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def undo():
        path.write_bytes(data)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    return undo


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def seal(run):
    change_json(run / MANIFEST_FILE, lambda manifest: manifest.update(sha256=content_sha256(manifest)))


def reseal(run, *names):
    """Forge the manifest for changed files, consistently."""
    digests = {name: file_sha256(run / name) for name in names}
    change_json(run / MANIFEST_FILE, lambda manifest: manifest["files"].update(digests))
    seal(run)


def forget():
    """As in the next process: within one, a file of the same size and time is read once."""
    file_records._checked.clear()


def path_name(name):
    return name.rpartition("/")[2]
