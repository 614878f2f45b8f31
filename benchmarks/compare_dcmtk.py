"""
Pictures of `read_image` beside those of dcmtk, an independent reader: how many levels of 255 they differ by.

    python benchmarks/compare_dcmtk.py
    python benchmarks/compare_dcmtk.py FOLDER... --list

Needs `dcm2pnm`, `dcmj2pnm` and `dcml2pnm` of dcmtk (3.6.7 was used), which nothing else here does. Without folders it
takes the files that come with pydicom. Each file with one frame is read as `read_image` does it by default (minimum to
maximum, or 8-bit values kept) and, where it has a window or VOI LUT, with `voi_lut=True`.
"""

import argparse
import collections
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from measure import print_table
from PIL import Image

from adaptor_hf.data.dicom import quiet_pydicom
from adaptor_hf.data.dicom_values import lut_item, modality, padding
from adaptor_hf.data.images import read_image

TOOLS = ("dcm2pnm", "dcmj2pnm", "dcml2pnm")
WITHIN = 2


def of_dcmtk(path: Path, options: list[str]) -> np.ndarray | None:
    """The picture that dcmtk makes, (H, W) or (H, W, 3); None where no tool of it reads the file."""
    with tempfile.TemporaryDirectory() as folder:
        for tool in TOOLS:
            target = Path(folder) / f"{tool}.pnm"
            command = [tool, "-q", "-O", *options, str(path), str(target)]
            done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
            if done.returncode == 0 and target.exists() and target.stat().st_size:
                return np.asarray(Image.open(target)).astype(int)
    return None


def readings(dataset, name: str) -> dict[str, list[str]]:
    """What is compared for a file: a name, and the options of dcmtk that mean the same."""
    if dataset.get("SamplesPerPixel", 1) > 1 or dataset.PhotometricInterpretation == "PALETTE COLOR":
        return {"colour": []}
    plain = dataset.get("BitsStored") == 8 and not dataset.get("PixelRepresentation") and "RescaleSlope" not in dataset
    kinds = {"values kept": ["-W"]} if plain else {"minimum to maximum": ["+Wm", "+Wfl"]}
    outside = _padding(dataset, name)
    if outside is not None and not plain:
        # dcmtk knows no padding, but shows a range that it is given.
        inside = modality(dataset, dataset.pixel_array, name)[~outside]
        low, high = float(inside.min()), float(inside.max())
        kinds = {"minimum to maximum, padding aside": ["+Ww", str((low + high + 1) / 2), str(high - low + 1), "+Wfl"]}
    if lut_item(dataset, "VOILUTSequence") is not None:
        kinds["VOI LUT"] = ["+Wl", "1"]
    elif dataset.get("WindowWidth") and dataset.get("WindowCenter"):
        kinds["window"] = ["+Wi", "1"]
    return kinds


def compare(path: Path, kind: str, options: list[str], outside: np.ndarray | None = None) -> tuple[str, int, str]:
    """Verdict, largest difference in levels (-1 where there is none), and what is wrong; pixels of padding aside."""
    theirs = of_dcmtk(path, options)
    mode = "RGB" if kind == "colour" else "L"
    try:
        ours = np.asarray(read_image(path, mode=mode, voi_lut=kind in ("VOI LUT", "window"))).astype(int)
    except (ValueError, ImportError) as error:
        return "read by dcmtk alone" if theirs is not None else "read by neither", -1, str(error).partition(": ")[2]
    if theirs is None:
        return "read by us alone", -1, ""
    if theirs.ndim == 2 and ours.ndim == 3:
        theirs = np.repeat(theirs[:, :, None], 3, axis=2)
    if ours.shape != theirs.shape:
        return "differ", -1, f"shapes {ours.shape} and {theirs.shape}"
    off = np.abs(ours - theirs)
    off = off if outside is None else off[~outside]
    found = f"{(off > WITHIN).mean():.2%} of the pixels by over {WITHIN}, mean {off.mean():.2f}"
    return ("agree" if off.max() <= WITHIN else "differ"), int(off.max()), found


def compared(path: Path) -> Iterator[tuple[str, str, int, str]]:
    """Each reading of a file with one frame, and what `compare` says; nothing of what is no picture."""
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, force=True)
            if not (dataset.get("Rows") and dataset.get("Columns")) or int(dataset.get("NumberOfFrames") or 1) > 1:
                return
            try:
                kinds, outside = readings(dataset, path.name), _padding(dataset, path.name)
            except Exception:
                # Its pixels cannot be decoded: both sides say so.
                kinds, outside = {"minimum to maximum": ["+Wm"]}, None
    except Exception:
        # No DICOM file.
        return
    for kind, options in kinds.items():
        yield kind, *compare(path, kind, options, outside)


def _padding(dataset, name: str) -> np.ndarray | None:
    if "PixelPaddingValue" not in dataset or "PixelData" not in dataset:
        return None
    return padding(dataset, dataset.pixel_array, "PixelData", name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--list", action="store_true", help="name each file that does not agree")
    arguments = parser.parse_args()
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        print(f"not installed: {', '.join(missing)} (apt install dcmtk)", file=sys.stderr)
        return 1
    folders = arguments.folders or [Path(pydicom.__file__).parent / "data" / "test_files"]
    counts: collections.Counter = collections.Counter()
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        for kind, verdict, worst, why in compared(path):
            counts[kind, verdict] += 1
            if arguments.list and verdict != "agree":
                print(f"{path.name}: {kind}: {verdict} {'' if worst < 0 else worst} {why}")
    print_table(["reading", "verdict", "files"], [[kind, verdict, n] for (kind, verdict), n in sorted(counts.items())])
    return 0


if __name__ == "__main__":
    sys.exit(main())
