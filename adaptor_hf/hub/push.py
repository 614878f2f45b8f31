"""Push a fixed list of files: weights, code, processor and card. Nothing else of a run ever leaves the machine."""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.terms import check_consent
from ..data.training_rows import TOWER_FILE, TRAINING_ROWS_FILE
from ..file_records import TOWER_FOLDERS
from ..files import parse_json, read_json, read_regular
from ..privacy.nearly_data import nearly_data
from ..tower_folders_adaptor import OWN
from .saved_code import CODE_FILES, check_code

PUSHED_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    *CODE_FILES,
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
TOWER_FILES = (
    *(name for name in PUSHED_FILES if name not in CODE_FILES),
    TOWER_FILE,
    "adapter_config.json",
    "adapter_model.safetensors",
)
"""Of the folder of a trained tower, in a model's or alone."""
# Not a lone "/" or "~", which a tokenizer may have as a token.
ABSOLUTE_PATH = re.compile(r"^(~[^\\/]*[\\/]|[\\/]+|[A-Za-z]:[\\/]|file:[\\/]*)[^\\/]")


def files_to_push(folder: str | Path, training_rows: bool = False) -> dict[str, bytes]:
    """
    What `push_folder` sends: the files of the fixed list that exist, with local paths cut to their last part, those of
    trained towers in folders of their own among them; of a tower's folder alone the files of the tower. With
    `training_rows` also the digests of the training images and patients, without their key.

    Raises:
        FileNotFoundError: if there is no model in the folder, or not the code or the tower that others need to load it.
        ValueError: if the model names a tower by a folder of this machine and does not contain it: nobody else could
            load it; or if an embedding cache in the folder holds what nearly is an image or a text.
    """
    folder = Path(folder)
    check_no_near_data(folder)
    rows = (TRAINING_ROWS_FILE,) if training_rows else ()
    if (folder / TOWER_FILE).is_file():
        return _contents(folder, (*TOWER_FILES, *rows))
    for needed in ("config.json", "model.safetensors"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder} has no {needed}: save the model there first.")
    config = read_json(folder / "config.json")
    files = {}
    for kind in TOWER_FOLDERS:
        spec = config.get(kind) or {}
        if spec.get("name_or_path") == OWN:
            if not (folder / kind / TOWER_FILE).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {kind}/{TOWER_FILE}, and its config names that folder as its own tower: nobody "
                    "could load the model. Copy the whole folder of the run."
                )
            inside = _contents(folder / kind, (*TOWER_FILES, *rows))
            files |= {f"{kind}/{name}": content for name, content in inside.items()}
        elif not config.get("towers_in_checkpoint"):
            _check_place(kind.replace("_", " "), spec)
    check_code(folder, _named_classes(folder))
    return _contents(folder, (*PUSHED_FILES, *rows)) | files


def _check_place(tower: str, spec: dict[str, Any]) -> None:
    """Raise ValueError where a spec names a place of this machine."""
    name, words = spec.get("name_or_path", ""), spec.get("tokenizer") or ""
    if ABSOLUTE_PATH.match(words) or (words and Path(words).is_dir()):
        raise ValueError(
            "The model names the tokenizer of its text tower by a folder of this machine, which nobody else "
            "has. Push the tokenizer first and name it by its hub id, or save with towers_in_checkpoint=True."
        )
    if ABSOLUTE_PATH.match(name) or (name and Path(name).is_dir()):
        raise ValueError(
            f"The model names its {tower} by a folder of this machine, which nobody else has. "
            "Push the tower first and name it by its hub id, or save with towers_in_checkpoint=True."
        )


def _contents(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    files = {}
    for name in names:
        path = folder / name
        if path.is_file():
            files[name] = read_regular(path, 1 << 40)
            if path.suffix == ".json" and name not in ("tokenizer.json", "vocab.json"):
                cleaned = without_local_paths(parse_json(files[name]))
                files[name] = (json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def data_terms(files: dict[str, bytes]) -> dict[str, str]:
    """Terms of the training data that files of `files_to_push` state: of the model, and of its towers."""
    found = {}
    for name, content in files.items():
        stated = parse_json(content) if name.rpartition("/")[2] in ("config.json", TOWER_FILE) else {}
        found |= (stated["spec"] if name.endswith(TOWER_FILE) else stated).get("data_terms") or {}
    return found


def check_no_near_data(folder: str | Path) -> None:
    """
    Refuse a folder to be pushed that has, anywhere in it, an embedding cache with tokens or the like. No push of this
    package would send it: the list is fixed. But a folder that is about to be shared is no place for it, and other
    programs send whole folders.

    Raises:
        ValueError: saying what is there and what to do.
    """
    found = set()
    for path in Path(folder).rglob("*.arrow"):
        # An unfinished build has all columns in one file.
        unfinished = any(parent.name.startswith("building-") for parent in path.parents)
        found |= {"an unfinished build"} if unfinished else set(nearly_data([path.name.rpartition("-")[0]]))
    if found:
        raise ValueError(
            f"Nothing was pushed: an embedding cache in the model's folder holds {', '.join(sorted(found))}, which "
            "nearly is the images or reports themselves. Move the cache out of this folder, and push again; the next "
            "time build it elsewhere with --cache_dir."
        )


def _named_classes(folder: Path) -> set[str]:
    """Classes of remote code, `file.Class`, of the model and of its processor."""
    found: set[str] = set()
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            config = read_json(folder / name)
            # A tower's own configuration, deeper in config.json, may name code of its repository.
            for part in (config, config.get("image_processor")):
                found |= set(((part or {}).get("auto_map") or {}).values())
    return found


def without_local_paths(value: Any) -> Any:
    """Replace every string that is an absolute path by its last part, at any depth."""
    if isinstance(value, dict):
        return {name: without_local_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str) and ABSOLUTE_PATH.match(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = True,
    commit_message: str = "Upload Adaptor",
    accept_data_terms: bool = False,
    training_rows: bool = False,
) -> str:
    """
    Push a saved model to the Hub: the files of `files_to_push`, to a private repository unless asked otherwise.

    Args:
        accept_data_terms: The terms of the training data, which the model's config and its towers name, allow this
            push.
        training_rows: Send the digests of the training rows too, see `files_to_push`.

    Returns:
        `str`: Address of the commit.

    Raises:
        PermissionError: if the repository exists and is public while a private one was asked for, or the training
            data's terms restrict sharing and were not accepted.
    """
    from huggingface_hub import HfApi

    files = files_to_push(folder, training_rows)
    check_consent(data_terms(files), accept_data_terms)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # Of a repository that exists already, create_repo leaves the visibility as it is.
    if private and not api.repo_info(repo_id).private:
        raise PermissionError(
            f"{repo_id} is public, and nothing was pushed. Make it private, or ask for a public push (private=False, "
            "--hub_private_repo False)."
        )
    with tempfile.TemporaryDirectory() as staging:
        for name, content in files.items():
            (Path(staging) / name).parent.mkdir(exist_ok=True)
            (Path(staging) / name).write_bytes(content)
        return str(api.upload_folder(repo_id=repo_id, folder_path=staging, commit_message=commit_message))


__all__ = ["PUSHED_FILES", "TOWER_FILES", "check_no_near_data", "files_to_push", "push_folder"]
