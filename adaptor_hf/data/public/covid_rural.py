"""COVID Rural (opacity_segmentation_covid_chest_X_ray): opacity masks on radiographs of COVID-19-AR."""

from __future__ import annotations

from pathlib import Path

from ..catalog import LoadedRows, PublicDataset, Request
from ..files import list_files
from ..masks import file_mask
from ..reference_splits import SPLIT_FILES_HELP, follow_split, shipped_split

_IMAGES, _MASKS = "jpgs", "pngs_masks"


def read(request: Request) -> LoadedRows:
    """Rows of one image each, sorted by name."""
    import pandas as pd

    base = _annotated_folder(request.root)
    images, masks = (_by_stem(request.root, f"{base}{folder}") for folder in (_IMAGES, _MASKS))
    stems = sorted(images.keys() & masks.keys())
    rows = pd.DataFrame(
        {
            "image": [images[stem] for stem in stems],
            "image_id": stems,
            "patient_id": [stem.partition("_")[0] for stem in stems],
            "mask": [file_mask([masks[stem]], images[stem]) for stem in stems],
            "source": [images[stem] for stem in stems],
        },
        dtype=object,
    )
    dropped = {"image without a mask": len(images.keys() - masks.keys())}
    dropped["mask without an image"] = len(masks.keys() - images.keys())
    loaded = LoadedRows(rows, table_rows=len(images.keys() | masks.keys()))
    if request.split_scheme == "lovt":
        folder = request.options["split_files"] or base or None
        loaded.rows, unused = follow_split(rows, shipped_split(request.root, folder))
        dropped |= unused
    loaded.dropped = {rule: count for rule, count in dropped.items() if count}
    return loaded


def _annotated_folder(root: Path) -> str:
    """Prefix of the two folders: the root may be the repository, its folder covid_rural_annot, or what holds it."""
    for base in ("", "covid_rural_annot/", "opacity_segmentation_covid_chest_X_ray-master/covid_rural_annot/"):
        if (root / base / _IMAGES).is_dir() and (root / base / _MASKS).is_dir():
            return base
    there = ", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing"
    raise FileNotFoundError(
        f"No folders covid_rural_annot/{_IMAGES} and covid_rural_annot/{_MASKS} in {root}. Is this the right root? It "
        f"has: {there}."
    )


def _by_stem(root: Path, folder: str) -> dict[str, str]:
    return {stem: paths[0] for stem, paths in list_files(root, (folder,)).by_stem().items()}


DATASETS = (
    PublicDataset(
        name="covid_rural",
        title="COVID Rural",
        tasks=("segmentation",),
        expected_files="""covid_rural_annot/jpgs/<patient>_<MM-DD-YYYY>-XR.jpg
covid_rural_annot/pngs_masks/<patient>_<MM-DD-YYYY>-XR.png""",
        license="Images CC BY 4.0 (TCIA COVID-19-AR); the repository of the masks has no licence text.",
        homepage="https://github.com/haimingt/opacity_segmentation_covid_chest_X_ray",
        restricted=False,
        pretraining_name="COVID Rural",
        tested="fixture",
        read=read,
        split_schemes=("patient", "lovt"),
        options={"split_files": None},
        option_help={"split_files": SPLIT_FILES_HELP},
        split_notes={"lovt": "By patient, from its files: 133 / 44 / 44 images of 63 / 23 / 18 patients."},
        traps=(
            "Masks have the values 0 and 1 and look black in a viewer: dividing them by 255 empties them.",
            "Images are stored as RGB, though grey.",
            "Images without a mask are left out: they are not annotated, not negative.",
        ),
    ),
)
