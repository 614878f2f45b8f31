"""Grey levels beside those of dcmtk, an independent reader, where it is installed; the project does not need it."""

import subprocess
import sys
from pathlib import Path
from shutil import which

import numpy as np
import pydicom
import pytest
from fixtures.dicom import write_dicom

from adaptor_hf.data.images import read_image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from compare_dcmtk import TOOLS, WITHIN, compared

pytestmark = pytest.mark.skipif(
    not all(map(which, (*TOOLS, "dcmdjpeg"))), reason="dcmtk (dcm2pnm and its like) is not installed"
)

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
RAMP = (np.add.outer(np.arange(40) * 4, np.arange(30) * 3) * 10 + 500).astype(np.uint16)  # 500..2930
SIGNED = RAMP.astype(np.int16) - 1500


def lut(first, entries, bits):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [entries, first, bits])
    item.LUTData = np.rint(np.linspace(0, 2**bits - 1, entries) ** 2 / (2**bits - 1)).astype(int).tolist()
    item["LUTData"].VR = "US"
    item.LUTExplanation = "curve"
    return item


def test_files_of_pydicom_agree():
    """Of all that both read one differs, and not by us: dcmtk takes 32 bits of big-endian order as pairs of 16."""
    counts, differ = {}, set()
    for path in sorted(FILES.rglob("*.dcm")):
        for kind, verdict, _, _ in compared(path):
            counts[verdict] = counts.get(verdict, 0) + 1
            if verdict == "differ":
                differ.add((path.name, kind))
    assert differ == {("rtdose_expb_1frame.dcm", "minimum to maximum")}
    assert read_image(FILES / "rtdose_expb_1frame.dcm") == read_image(FILES / "rtdose_1frame.dcm")
    assert counts["agree"] >= 40


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("tags", [
    {}, {"BitsStored": 12}, {"RescaleSlope": 2.5, "RescaleIntercept": -1000},
    {"RescaleSlope": -1, "RescaleIntercept": 9},
    {"WindowCenter": 1500, "WindowWidth": 700}, {"WindowCenter": [900, 50], "WindowWidth": [300, 20]},
    {"WindowCenter": 1500, "WindowWidth": 700, "VOILUTFunction": "SIGMOID"},
    {"WindowCenter": 1500, "WindowWidth": 1}, {"VOILUTSequence": [lut(500, 2431, 12)]},
    {"VOILUTSequence": [lut(800, 900, 16)], "WindowCenter": 10, "WindowWidth": 10},
    {"ModalityLUTSequence": [lut(0, 4096, 16)], "WindowCenter": 9000, "WindowWidth": 8000},
    {"PixelPaddingValue": 500}, {"PixelPaddingValue": 500, "PixelPaddingRangeLimit": 900},
    {"PixelPaddingValue": 500, "WindowCenter": 1500, "WindowWidth": 700},
])  # fmt: skip
@pytest.mark.parametrize("array", [RAMP, SIGNED], ids=["unsigned", "signed"])
def test_made_files_agree(tmp_path, array, tags, photometric):
    if array is SIGNED and ("PixelPaddingValue" in tags or "ModalityLUTSequence" in tags):
        tags = {"PixelPaddingValue": -1000}
    path = write_dicom(tmp_path / "a.dcm", array, PhotometricInterpretation=photometric, **tags)
    found = list(compared(path))
    assert len(found) == 1 + ("WindowCenter" in tags or "VOILUTSequence" in tags)
    for kind, verdict, worst, why in found:
        assert (verdict, worst <= WITHIN) == ("agree", True), (kind, verdict, worst, why)


@pytest.mark.skipif(not (FILES / "JPEG-lossy.dcm").is_file(), reason="pydicom comes without its test files")
def test_the_command_that_a_refusal_names_makes_a_file_that_is_read(tmp_path):
    path = FILES / "JPEG-lossy.dcm"
    with pytest.raises((ValueError, ImportError), match="`dcmdjpeg IN OUT` of dcmtk"):
        read_image(path)
    plain = tmp_path / "plain.dcm"
    subprocess.run(["dcmdjpeg", path, plain], check=True, capture_output=True)
    (_, verdict, worst, _) = next(compared(plain))
    assert (verdict, worst <= WITHIN) == ("agree", True)
    assert np.ptp(np.asarray(read_image(plain))) == 255
