"""
`training_rows.safetensors`: which images and patients shaped a model, as digests, so that no test may contain them.

Images are named by a digest of their file's content. Patients are named by an HMAC of (namespace, canonical id) under a
key that lies beside the file, or in private mode under the key of the ids: ids are short, so that without a key all of
them could be tried. A namespace says whose ids they are: patient 12 of two hospitals is two patients.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..carried_rows_adaptor import KEY_FILE, TOWER_FILE, TRAINING_ROWS_FILE, place_of_rows
from ..files import check_regular, file_sha256, parse_json, write_aside, written_aside
from ..privacy.keys import load_key
from ..privacy.mode import key_name, keyed_digests, private_key
from .catalog import dataset_names, get_dataset
from .ids import canonical_id, canonical_ids

DIGEST = np.dtype("S16")
# One entry: safetensors writes several in no fixed order.
_METADATA = "training_rows"
_VERSION = 1


@dataclass(frozen=True)
class Seen:
    """
    How many rows of a test part shaped a model.

    Args:
        patients, images (`int`, *optional*): Test patients and test images that were in its pre-training; None where
            that cannot be told.
        of_patients, of_images (`int`): How many there are.
        reason (`str`): Why something cannot be told, and what would help.
    """

    patients: int | None
    images: int | None
    of_patients: int = 0
    of_images: int = 0
    reason: str = ""

    @property
    def status(self) -> str:
        """`found`, `none`, or `unknown` where nothing was found and not everything could be compared."""
        if self.patients or self.images:
            return "found"
        return "unknown" if None in (self.patients, self.images) else "none"

    def fields(self) -> dict[str, Any]:
        """For a result line."""
        return {"pretraining_overlap": self.status, "seen_patients": self.patients, "seen_images": self.images}


@dataclass(frozen=True)
class TrainingRows:
    """
    Digests of the training and validation rows of a pre-training.

    Args:
        images (`np.ndarray` of shape `(n,)` and dtype `S16`, *optional*): Of the files' content, sorted; None where the
            embeddings were made elsewhere.
        patients (`np.ndarray` of shape `(m,)` and dtype `S16`, *optional*): HMACs in each namespace, sorted; None where
            the ids were not at hand.
        namespaces (`tuple[str, ...]`): What the ids belong to.
        ids (`str`): `canonical` or `exact`.
        private_key (`str`, *optional*): Name of the key of private mode.
        key (`bytes`, *optional*): Of the HMACs; None where it is not at hand.
        complete (`bool`): Whether these are all rows: of what a model started from some may not be known.
    """

    images: np.ndarray | None
    patients: np.ndarray | None
    namespaces: tuple[str, ...] = ()
    ids: str = "canonical"
    private_key: str | None = None
    key: bytes | None = field(default=None, repr=False)
    complete: bool = True

    def compare(
        self,
        patient_ids: Sequence[str | None],
        images: np.ndarray | None,
        namespaces: Collection[str],
        *,
        disjoint: bool = False,
    ) -> Seen:
        """
        How many of these rows were in the pre-training.

        Args:
            patient_ids: Of each test row, as the table has them, never hashed; None where unknown.
            images (`np.ndarray` of dtype `S16`, *optional*): Digests of their files, as of `content_digests`; keyed in
                private mode.
            namespaces: What the ids belong to. Where none is that of the pre-training, ids say nothing.
            disjoint: The two data sets have no patient in common, by their origin.
        """
        found_images, why = self._seen_images(images)
        known = [patient for patient in patient_ids if patient is not None]
        distinct = set(canonical_ids(known) if self.ids == "canonical" else known)
        shared = sorted(set(self.namespaces) & set(namespaces))
        found_patients = None
        if disjoint:
            found_patients = 0
        elif self.patients is None or not known:
            why.append("rows without patient id cannot be compared")
        elif not shared:
            why.append(
                "the patient ids are of another data set as far as is known (where they are not, the same "
                "--id_namespace in pre-training and here lets them be compared)"
            )
        elif self.key is None:
            why.append(f"the key of the patients' digests ({KEY_FILE}, or the same --key_file) is not at hand")
        else:
            mine = set(self.patients.tolist())
            found_patients = sum(any(_hmac(self.key, name, patient) in mine for name in shared) for patient in distinct)
            # What is found stays found; of rows without id no more can be said.
            if not found_patients and len(known) < len(patient_ids):
                found_patients = None
                why.append("rows without patient id cannot be compared")
        if not self.complete:
            # What is found stays found.
            found_patients, found_images = found_patients or None, found_images or None
            why.append("not all rows are known that shaped what it started from")
        of_images = 0 if images is None else len(images)
        return Seen(found_patients, found_images, len(distinct), of_images, "; ".join(why))

    def _seen_images(self, images: np.ndarray | None) -> tuple[int | None, list[str]]:
        if self.images is None or images is None:
            return None, ["the images' content is not known"]
        mine = self.images
        if self.private_key != key_name():
            if self.private_key is not None:
                return None, ["the digests are of private mode with another key"]
            mine = keyed_digests(mine)
        return int(np.isin(images, mine).sum()), []


def id_namespaces(name: str | None, table: Any = None) -> tuple[str, ...]:
    """
    What the patient ids of a data set belong to: its name, and the digest of its table, for one table is one set of ids
    whatever it is called.

    Args:
        name: Of the data set, or what was said with `--id_namespace`.
        table: Where the rows come from: a file, a folder, or a hub id.
    """
    owner = get_dataset(name).patients_of if name in dataset_names() else None
    found = [] if name is None else [owner or canonical_id(name)]
    if isinstance(table, str | os.PathLike):
        path = Path(table)
        files = [path] if path.is_file() else sorted(path.glob("**/metadata.*")) + sorted(path.glob("**/state.json"))
        digest = hashlib.sha256()
        for file in files:
            digest.update(bytes.fromhex(file_sha256(file)))
        if files:
            found.append(f"sha256:{digest.hexdigest()}")
        elif not path.exists():
            found.append(f"hub:{table}")
    return tuple(found)


def write_training_rows(
    folder: str | os.PathLike,
    images: np.ndarray | None,
    patient_ids: Iterable[str | None] | None,
    namespaces: Sequence[str],
    *,
    ids: str = "canonical",
    more: Sequence[tuple[Iterable[str | None], Sequence[str]]] = (),
    earlier: Sequence[str | os.PathLike] = (),
) -> Path:
    """
    Write `training_rows.safetensors` and, outside private mode, the key of its HMACs (readable by its owner only).

    Args:
        folder: Of the run.
        images (`np.ndarray` of dtype `S16`, *optional*): Content digests of the training and validation images.
        patient_ids: Their patients as the table has them, never hashed; None where they are not at hand.
        namespaces: What the ids belong to, most specific first.
        ids: `canonical` or `exact`, as the split rule has it.
        more: Of several sources, patients and namespaces of all but the first: ids are of their own namespaces alone.
        earlier: Folders or hub ids of the models and trained towers that this one started from: their rows are its own
            too. Where they are not known, or have another key, the file says that it is not complete.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = [find_training_rows(place) for place in earlier]
    known = [rows for rows in before if rows is not None]
    key = private_key() or next((rows.key for rows in known if rows.key is not None and rows.private_key is None), None)
    if private_key() is None and key is not None:
        # One file has one key: new ids are digested with that of the earlier ones.
        with written_aside(folder / KEY_FILE, mode=0o600) as aside:
            aside.write_text(f"{key.hex()}\n", encoding="ascii")
    images_before = [_images_here(rows) for rows in known]
    patients_before = [_patients_here(rows, key, ids) for rows in known]
    complete = all(rows is not None and rows.complete for rows in before)
    complete = complete and all(values is not None for values in (*images_before, *patients_before))
    every = [name for names in (namespaces, *(names for _, names in more)) for name in names]
    every += [name for rows in known for name in rows.namespaces]
    metadata = {"version": _VERSION, "namespaces": list(dict.fromkeys(every)), "ids": ids, "private_key": key_name()}
    metadata |= {} if complete else {"complete": False}
    tensors = {}
    if images is not None:
        parts = [np.asarray(images, DIGEST), *(one for one in images_before if one is not None)]
        tensors["images"] = _bytes_of(np.concatenate(parts))
    if patient_ids is not None:
        key = key or load_key(folder / KEY_FILE, create=True)
        made = [digest for one in patients_before if one is not None for digest in one.tolist()]
        for given, names in ((patient_ids, namespaces), *more):
            known = [patient for patient in given if patient is not None]
            distinct = set(canonical_ids(known) if ids == "canonical" else known)
            made += [_hmac(key, name, patient) for name in names for patient in distinct]
        tensors["patients"] = _bytes_of(np.array(made, DIGEST))
    path = folder / TRAINING_ROWS_FILE
    write_aside(path, save(tensors, {_METADATA: json.dumps(metadata, sort_keys=True)}))
    return path


def _images_here(rows: TrainingRows) -> np.ndarray | None:
    """Digests of earlier images as this mode writes them; None where they are not known, or keyed otherwise."""
    if rows.images is None or rows.private_key == key_name():
        return rows.images
    return keyed_digests(rows.images) if rows.private_key is None else None


def _patients_here(rows: TrainingRows, key: bytes | None, ids: str) -> np.ndarray | None:
    """Digests of earlier patients, where they are under this key and of ids that are written alike."""
    return rows.patients if rows.key is not None and rows.key == key and rows.ids == ids else None


def place_of_tower(spec: Mapping[str, Any] | None) -> str | None:
    """Folder or hub place of a trained tower, by its spec; None of one that was not trained."""
    if (spec or {}).get("trained") is None:
        return None
    return os.path.join(spec["name_or_path"], spec.get("subfolder") or "")


def copy_training_rows(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Copy the training rows of a model, and their key, into the folder of a tower that was trained with it."""
    for name in (TRAINING_ROWS_FILE, KEY_FILE):
        (Path(folder) / name).unlink(missing_ok=True)
        if (Path(source) / name).is_file():
            shutil.copy2(check_regular(Path(source) / name), Path(folder) / name)


def find_training_rows(model: str | os.PathLike) -> TrainingRows | None:
    """
    The training rows of a checkpoint or of a trained tower: in its folder, or in that of the run whose checkpoint,
    control or tower it is. None for a hub id, and for a model of which nothing is known.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    found = place_of_rows(model)
    return None if found is None else read_training_rows(found)


def read_training_rows(folder: str | os.PathLike) -> TrainingRows:
    """
    Raises:
        ValueError: the file is damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / TRAINING_ROWS_FILE
    try:
        with safe_open(check_regular(path), framework="numpy") as file:
            metadata = parse_json((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version, namespaces = int(metadata["version"]), tuple(metadata["namespaces"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}), so that no test can be told from the training rows. Copy it "
            "again from its run, or delete it: results then say that the overlap is unknown."
        ) from error
    if version != _VERSION:
        raise ValueError(f"{path} is of version {version}, this package reads version {_VERSION}. Update adaptor_hf.")
    private = metadata.get("private_key")
    key = None
    if private is not None:
        key = private_key() if private == key_name() else None
    elif (Path(folder) / KEY_FILE).is_file():
        key = load_key(Path(folder) / KEY_FILE)
    complete = metadata.get("complete", True) is True
    digests = {name: np.ascontiguousarray(values).view(DIGEST).reshape(-1) for name, values in tensors.items()}
    return TrainingRows(
        digests.get("images"), digests.get("patients"), namespaces, metadata.get("ids", "canonical"), private, key,
        complete,
    )  # fmt: skip


def _hmac(key: bytes, namespace: str, patient: str) -> bytes:
    # NUL cannot stand in either: ("a", "bc") and ("ab", "c") are not one message.
    message = f"training_rows\0{namespace}\0{patient}".encode()
    digest = hmac.new(key, message, hashlib.sha256).digest()[: DIGEST.itemsize]
    # NumPy takes trailing NULs of bytes off.
    return digest if digest[-1:] != b"\0" else digest[:-1] + b"\1"


def _bytes_of(digests: np.ndarray) -> np.ndarray:
    """`(n, 16)` uint8 of distinct digests, sorted: the order of the rows is nobody's business."""
    return np.unique(np.asarray(digests, DIGEST)).view(np.uint8).reshape(-1, DIGEST.itemsize)


__all__ = [
    "KEY_FILE",
    "TOWER_FILE",
    "TRAINING_ROWS_FILE",
    "Seen",
    "TrainingRows",
    "copy_training_rows",
    "find_training_rows",
    "id_namespaces",
    "place_of_tower",
    "read_training_rows",
    "write_training_rows",
]
