"""Phantoms in the trees of public data sets, as `adaptor_hf.data.load_public_dataset` and other code read them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..progress import counted
from . import layout_covidx, layout_dicom, layout_mimic_cxr, layout_pacs
from .generate import Plan, empty_folder, plan


@dataclass(frozen=True)
class Layout:
    """How a data set's tree is written."""

    write_image: Callable[[Path, Plan, dict, int], dict]
    """Saves the files of one image, from root, plan, record (see `generate_phantoms`) and seed; gives what the tables
    need of it."""
    write_tables: Callable[[Path, list[dict]], None]
    """Writes the tables from what `write_image` gave, in the order of the images."""


LAYOUTS = {
    "covidx": Layout(layout_covidx.write_image, layout_covidx.write_tables),
    "mimic_cxr": Layout(layout_mimic_cxr.write_image, layout_mimic_cxr.write_tables),
    "pacs": Layout(layout_pacs.write_image, layout_pacs.write_tables),
    "rsna": Layout(layout_dicom.write_rsna_image, layout_dicom.write_rsna_tables),
    "siim": Layout(layout_dicom.write_siim_image, layout_dicom.write_siim_tables),
}


def write_layout(
    output_dir: str | Path,
    n: int,
    layout: str,
    *,
    image_size: int = 256,
    seed: int = 0,
    language: str = "en",
    num_workers: int = 1,
) -> Path:
    """Writes phantoms in the tree of a public data set, which `load_public_dataset(layout, output_dir)` loads; or as a
    hospital exports them, which `index_dicom(output_dir + "/export", output_dir + "/ris.csv")` reads.

    * mimic_cxr: mimic-cxr-jpg/2.0.0 with JPEG files and tables of metadata, split and labels (CheXpert and NegBio, both
      what the text says: 1, 0, -1 or nothing), and mimic-cxr/2.0.0 with the reports.
    * rsna: JPEG-compressed DICOM of 1024 x 1024 pixels. Target and boxes are those of consolidation. The table of NIH
      originals (option nih_match) names the patients.
    * siim: the same kind of DICOM, stage 2, run lengths of pneumothorax.
    * pacs: export/ with DICOM files without endings in folders named after patients, in a zip and on a disc with its
      DICOMDIR, between objects of other kinds (`adaptor_hf.phantom.pacs_trouble.TROUBLE`); ris.csv with reports in
      the column Report, and names, numbers and dates of nobody.
    * covidx: label files 9A. Consolidation of both lungs stands for COVID-19, of one for pneumonia, none for normal.

    Args:
        output_dir: a folder that does not exist or is empty. It appears only when everything is written.
        n, image_size, seed, language, num_workers: as for `write_phantoms`. For rsna and siim the side must divide
            1024: the drawing is enlarged to that size, to which the tables of these data sets refer. mimic_cxr is in
            English.
        layout: a key of LAYOUTS.

    Returns:
        `output_dir`.

    Raises:
        FileExistsError: `output_dir` has something in it.
        ValueError: an argument is out of range.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}. Choose one of: {', '.join(LAYOUTS)}.")
    if layout in ("rsna", "siim") and (image_size < 64 or layout_dicom.SIZE % image_size):
        raise ValueError(f"image_size must divide {layout_dicom.SIZE} for the layout {layout!r}, got {image_size}.")
    if layout == "mimic_cxr" and language != "en":
        raise ValueError(f"The reports of the layout 'mimic_cxr' are in English, got language={language!r}.")
    plans = list(plan(n, image_size, seed, language))
    how = LAYOUTS[layout]

    with empty_folder(output_dir) as root, ThreadPoolExecutor(max(num_workers, 1)) as pool:

        def write_image(planned: Plan) -> dict:
            return how.write_image(root, planned, planned.record(image_size, seed), seed)

        rows = list(counted(pool.map(write_image, plans), n, "Phantoms", "images"))
        how.write_tables(root, rows)
    return Path(output_dir)


__all__ = ["LAYOUTS", "Layout", "write_layout"]
