"""What DICOM files say of text in their pictures is counted, and no value of a header is shown."""

import logging
import tracemalloc

import numpy as np
import pydicom
import pytest
from datasets import Dataset, Features
from fixtures.dicom import write_dicom
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from adaptor_hf.data.burned_in import count_flags, describe_flags
from adaptor_hf.data.features import RadiographImage
from adaptor_hf.data.private_rows import private_rows
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.privacy import mode as private_mode

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.fixture
def table(tmp_path):
    """Five DICOM files (YES, NO, silent with an overlay, no extension, damaged) and a PNG."""
    write_dicom(tmp_path / "a.dcm", PIXELS, BurnedInAnnotation="YES")
    write_dicom(tmp_path / "b.dcm", PIXELS, BurnedInAnnotation="NO")
    overlay = write_dicom(tmp_path / "c.dcm", PIXELS)
    dataset = pydicom.dcmread(overlay)
    dataset.add_new(0x60020010, "US", 8)
    dataset.add_new(0x60023000, "OW", b"\0" * 8)
    dataset.save_as(overlay)
    write_dicom(tmp_path / "IM0001", PIXELS, BurnedInAnnotation="yes ")
    (tmp_path / "e.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    Image.fromarray(PIXELS.astype(np.uint8)).save(tmp_path / "f.png")
    names = ["a.dcm", "b.dcm", "c.dcm", "IM0001", "e.dcm", "f.png"]
    (tmp_path / "pairs.csv").write_text("image,text\n" + "\n".join(f"{name},clear" for name in names))
    return load_pairs(tmp_path / "pairs.csv")


def test_flags_are_counted_by_what_the_headers_say(table):
    counts = count_flags(table)
    assert counts["files"] == 4  # the damaged one is not among them
    assert (counts["burned_in"], counts["not_burned_in"], counts["overlays"]) == (2, 1, 1)
    assert count_flags(table, [1, 5]) == {"files": 1, "burned_in": 0, "not_burned_in": 1, "overlays": 0}


def test_pictures_that_are_no_dicom_say_nothing(table):
    assert describe_flags(count_flags(table, [5])) is None


def test_a_private_run_says_the_counts_and_nothing_of_the_header(table, caplog):
    with caplog.at_level(logging.WARNING), private_mode.private_mode(b"k" * 32):
        private_rows(table)
    assert "2 say that text is burned into the picture, 1 that none is" in caplog.text
    assert "1 have overlays" in caplog.text
    assert not any(word in caplog.text for word in ("Canary", "canary-id", "a.dcm"))


def test_files_made_to_harm_take_no_more_memory_than_they_hold(tmp_path):
    """A length that asks for 512 MiB, and 64 MiB of zeros packed into 64 kB; also as bytes in the table."""
    long = write_dicom(tmp_path / "long.dcm", PIXELS, BurnedInAnnotation="YES")
    content, mark = long.read_bytes(), b"\2\0\1\0OB\0\0"
    assert content.count(mark) == 1
    place = content.index(mark) + len(mark)
    long.write_bytes(content[:place] + (512 << 20).to_bytes(4, "little") + content[place + 4 :])
    packed = write_dicom(tmp_path / "packed.dcm", PIXELS, BurnedInAnnotation="YES")
    dataset = pydicom.dcmread(packed)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = bytes(64 << 20)
    dataset.save_as(packed)
    assert packed.stat().st_size < 1 << 20
    fine = write_dicom(tmp_path / "fine.dcm", PIXELS, BurnedInAnnotation="YES")
    files = [long, packed, fine]
    cells = [{"path": str(path), "bytes": data} for path in files for data in (None, path.read_bytes())]
    rows = Dataset.from_dict({"image": cells}, Features({"image": RadiographImage()}))
    count_flags(rows, [4])  # what is imported on the way does not count
    tracemalloc.start()
    try:
        counts = count_flags(rows)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (counts["files"], counts["burned_in"]) == (4, 4)


def test_the_check_of_a_data_set_has_the_counts(tmp_path):
    from fixtures.phantom_trees import copy_tree

    from adaptor_hf.data.check import check_dataset, format_check

    root = copy_tree("rsna", tmp_path / "rsna")
    result = check_dataset("rsna", root, "classification", split_scheme="patient", cache_dir=tmp_path / "check")
    assert result["dicom"]["files"] == result["rows_read"]
    assert "say that text is burned into the picture" in format_check(result)
