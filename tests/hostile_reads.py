"""Reads of names that lead to no regular file, in a process of its own: `python hostile_reads.py FOLDER`.

A read that blocks blocks this process, and one that eats memory meets its limit: the test that started it tells which,
for each read says its name before it begins.
"""

import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

KINDS = {
    "pipe": lambda path: os.mkfifo(path),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.fifo"), path.symlink_to(f"{path}.fifo")),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "stdin": lambda path: path.symlink_to("/dev/stdin"),
    "proc": lambda path: path.symlink_to("/proc/kmsg"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
}
# Beside the file that is none, in the folders of these reads.
OTHERS = {
    "config.json": {"model": b'{"model_type": "adaptor"}'},
    "state.json": {"saved data set": b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}'},
    "dataset_info.json": {"saved data set": b"{}"},
    "classes/b/1.png": {"class folders": b"no image", "walk": b"no image"},
}
MEMORY = 1 << 30  # beside what the imports have taken


def reads() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Of each read the suffix of its file, and the call."""
    from adaptor_hf import AdaptorImageProcessor
    from adaptor_hf.configs import find_recipe, read_recipe
    from adaptor_hf.conversion import load_checkpoint
    from adaptor_hf.data.archives import list_tar, list_zip, read_bytes
    from adaptor_hf.data.colour import is_colour
    from adaptor_hf.data.content_keys import content_key, file_key
    from adaptor_hf.data.convert import read_pickled
    from adaptor_hf.data.dicom_headers import read_head
    from adaptor_hf.data.images import image_size, read_image
    from adaptor_hf.data.json_files import load_json
    from adaptor_hf.data.mask_values import MaskValues
    from adaptor_hf.data.tables import load_pairs
    from adaptor_hf.embeddings.importing import _read_array
    from adaptor_hf.evaluation.predictions import load_predictions
    from adaptor_hf.files import file_sha256
    from adaptor_hf.privacy.keys import load_key
    from adaptor_hf.tasks.prompts import load_prompts

    processor = AdaptorImageProcessor()
    found = {
        "processor": (".png", lambda path: processor(str(path), return_tensors="pt")),
        "processor as trained": (".png", lambda path: processor(str(path), image_mode="L", return_tensors="pt")),
        "mask": (".png", MaskValues.read),
        "colour": (".png", lambda path: is_colour(str(path))),
        "size": (".png", image_size),
        "bytes": (".png", read_bytes),
        "content key": (".png", lambda path: content_key(str(path))),
        "file key": (".png", lambda path: file_key(str(path))),
        "head": (".dcm", lambda path: read_head(str(path), 100)),
        "digest": (".bin", file_sha256),
        "tar": (".tar", list_tar),
        "zip": (".zip", list_zip),
        "member of a tar": (".tar", lambda path: read_image(f"{path}::a.png@512+100")),
        "member of a zip": (".zip", lambda path: read_image(f"{path}::a.png@0+100")),
        "JSON": (".json", lambda path: load_json(path, "a.json", dict)),
        "recipe": (".yaml", lambda path: read_recipe(find_recipe(path))),
        "key": (".key", load_key),
        "new key": (".key", lambda path: load_key(path, create=True)),
        "prompts": (".json", load_prompts),
        "embeddings as safetensors": (".safetensors", lambda path: _read_array(path, "image")),
        "embeddings as an array": (".npy", lambda path: _read_array(path, "image")),
        "embeddings as Parquet": (".parquet", lambda path: _read_array(path, "image")),
        "checkpoint of others": (".ckpt", load_checkpoint),
        "predictions": (".parquet", load_predictions),
        "table with a separator": (".dat", lambda path: load_pairs(path, sep=",")),
        "pickle": (".pkl", read_pickled),
        "array": (".npy", read_pickled),
    }
    found |= {f"image{suffix}": (suffix, read_image) for suffix in (".png", ".dcm", ".tif", "")}
    for suffix in (".csv", ".tsv", ".csv.gz", ".csv.bz2", ".txt", ".jsonl", ".parquet", ".xlsx"):
        found[f"table{suffix}"] = (suffix, load_pairs)
    return found


def folder_reads() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Of each read of a folder the file in it that is none, and the call; what is whole lies beside it."""
    from adaptor_hf import AdaptorConfig, AdaptorImageProcessor, AdaptorModel
    from adaptor_hf.audit.manifest import changed_files
    from adaptor_hf.data.folder_walk import walk_images
    from adaptor_hf.data.pacs.walk import walk
    from adaptor_hf.data.tables import load_pairs
    from adaptor_hf.data.training_rows import TRAINING_ROWS_FILE, read_training_rows
    from adaptor_hf.embeddings import EmbeddingCache
    from adaptor_hf.evaluation.results import read_results
    from adaptor_hf.tower_bundles_adaptor import read_manifest
    from adaptor_hf.training.checkpoints import check_checkpoint
    from adaptor_hf.verify import verify

    return {
        "config": ("config.json", AdaptorConfig.from_pretrained),
        "model": ("model.safetensors", AdaptorModel.from_pretrained),
        "image processor": ("preprocessor_config.json", AdaptorImageProcessor.from_pretrained),
        "cache": ("cache.json", EmbeddingCache),
        "bundle of towers": ("manifest.json", read_manifest),
        "manifest of a run": ("manifest.json", verify),
        "digests of a run": ("weights.bin", lambda folder: changed_files(folder, {"weights.bin": "0" * 64})),
        "results": ("runs/a/results.jsonl", read_results),
        "checkpoint": ("checkpoint.json", check_checkpoint),
        "training rows": (TRAINING_ROWS_FILE, read_training_rows),
        "saved data set": ("data-00000-of-00001.arrow", load_pairs),
        "metadata": ("metadata.csv", load_pairs),
        "class folders": ("classes/a/1", load_pairs),
        "walk": ("classes/a/1", lambda folder: walk_images(folder)),
        "export": ("export/1", lambda folder: list(walk(folder))),
    }


def main(folder: Path) -> None:
    calls, folders = reads(), folder_reads()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    os.chdir(folder)
    for number, (kind, make) in enumerate(KINDS.items()):
        for suffix in sorted({suffix for suffix, _ in calls.values()}):
            make(folder / f"{number}{suffix}")
        for name, (suffix, read) in calls.items():
            attempt(f"{name} of a {kind}", read, folder / f"{number}{suffix}")
    for name, (file, read) in folders.items():
        for kind in ("pipe", "device", "proc", "loop"):
            place = folder / f"{name} {kind}"
            (place / file).parent.mkdir(parents=True)
            KINDS[kind](place / file)
            for other, content in OTHERS.items():
                if name in content:
                    (place / other).parent.mkdir(parents=True, exist_ok=True)
                    (place / other).write_bytes(content[name])
            attempt(f"folder: {name} with a {kind}", read, place)


def attempt(what: str, read: Callable[[Path], object], path: Path) -> None:
    print(what, end=": ", flush=True)
    try:
        read(path)
        print("was read", flush=True)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__} {error}".replace("\n", " "), flush=True)
    except Exception as error:
        print(f"wrong error {type(error).__name__} {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
