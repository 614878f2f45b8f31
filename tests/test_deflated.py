"""Files of the deflated transfer syntax are read as their plain ones, and unpacked within a bound."""

import io
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from fixtures.dicom import write_dicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from adaptor_hf.data import deflated, index_dicom
from adaptor_hf.data.colour import is_colour
from adaptor_hf.data.dicom_headers import HeaderError, header_facts
from adaptor_hf.data.images import image_size, read_image

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 4096, (90, 70), np.uint16)
COLOUR = RANDOM.integers(0, 256, (90, 70, 3), np.uint8)


def packed(path):
    """A deflated copy beside the file, written by pydicom."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    target = path.with_name(f"packed-{path.name}")
    dataset.save_as(target)
    assert zlib.decompress(target.read_bytes()[_start(target) :], -zlib.MAX_WBITS)
    return target


def _start(path):
    with path.open("rb") as file:
        pydicom.filereader.read_preamble(file, False)
        pydicom.filereader._read_file_meta_info(file)
        return file.tell()


def facts(path, data=None):
    data = path.read_bytes() if data is None else data
    return header_facts(data, len(data), "AccessionNumber")


@pytest.mark.parametrize("tags", [
    {}, {"WindowCenter": 900, "WindowWidth": 300}, {"PhotometricInterpretation": "MONOCHROME1"},
    {"RescaleSlope": 2, "RescaleIntercept": -5}, {"ImageComments": "x" * 3_000_000},
])  # fmt: skip
def test_a_picture_and_its_facts_are_those_of_the_plain_file(tmp_path, tags):
    plain = write_dicom(tmp_path / "a.dcm", GREY, BitsStored=12, **tags)
    path = packed(plain)
    for voi_lut in (False, True):
        assert read_image(path, voi_lut=voi_lut) == read_image(plain, voi_lut=voi_lut)
        assert read_image(path.read_bytes(), voi_lut=voi_lut) == read_image(plain, voi_lut=voi_lut)
    assert image_size(path) == (70, 90)
    assert facts(path) == facts(plain)
    assert header_facts(str(path), path.stat().st_size, "AccessionNumber") == facts(plain)


def test_colour_is_found_and_read(tmp_path):
    path = packed(write_dicom(tmp_path / "a.dcm", COLOUR))
    assert is_colour(path)
    np.testing.assert_array_equal(np.asarray(read_image(path, mode="RGB")), COLOUR)
    assert not is_colour(packed(write_dicom(tmp_path / "b.dcm", GREY)))


@pytest.mark.parametrize("side", [8, 63, 500, 1500])
@pytest.mark.parametrize("value", [None, 0, 7])
def test_nothing_of_the_end_is_lost_however_well_it_packs(tmp_path, side, value):
    array = np.full((side, side), value or 0, np.uint16)
    array[-1, -1] = 4095
    if value is None:
        array = RANDOM.integers(0, 65536, (side, side), np.uint16)
    path = packed(write_dicom(tmp_path / "a.dcm", array))
    np.testing.assert_array_equal(read_image(path, return_raw=True), array)
    with path.open("rb") as file:
        data, size = deflated.unpacked(file)
        assert len(data) == size
        assert deflated.unpacked(file, 300) == (data[:300], size)
    np.testing.assert_array_equal(pydicom.dcmread(io.BytesIO(data)).pixel_array, array)


def test_whatever_is_left_when_the_packed_bytes_end_is_kept(tmp_path):
    """A run of one value is few packed bytes: all may be taken in before all that they stand for is given out."""
    path = packed(write_dicom(tmp_path / "a.dcm", GREY))
    meta = path.read_bytes()[: _start(path)]
    sizes = set()
    for length in (*range(65_400, 65_900), *range(131_000, 131_400)):
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        stream = io.BytesIO(meta + packer.compress(bytes(length)) + packer.flush())
        data, size = deflated.unpacked(stream)
        assert len(data) == size
        sizes.add(size - length)
    assert len(sizes) == 1


def test_one_that_unpacks_to_too_much_is_refused_by_name_and_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(deflated, "MAX_UNPACKED_BYTES", 32 << 20)
    plain = write_dicom(tmp_path / "a.dcm", GREY)
    dataset = pydicom.dcmread(plain)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = bytes(deflated.MAX_UNPACKED_BYTES)
    path = tmp_path / "large.dcm"
    dataset.save_as(path)
    del dataset
    assert path.stat().st_size < 1 << 20
    plain.unlink()
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError) as caught:
            facts(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.fault == ("deflated", "over 33,554,432 bytes when unpacked")
    with pytest.raises(ValueError, match="Left out: deflated 1"):
        index_dicom(tmp_path, num_proc=1)
    with pytest.raises(ValueError, match=r"large.dcm: of the deflated .* over 33,554,432 bytes.*`dcmconv \+te IN OUT`"):
        read_image(path)


def test_one_that_is_cut_off_or_damaged_is_said_to_be(tmp_path):
    path = packed(write_dicom(tmp_path / "a.dcm", GREY))
    data = path.read_bytes()
    for keep, kind in ((_start(path) + 50, "truncated"), (len(data) // 2, "truncated"), (len(data) - 100, "truncated")):
        with pytest.raises(HeaderError) as caught:
            facts(path, data[:keep])
        assert caught.value.fault.kind == kind
        with pytest.raises(ValueError, match=r"truncated|damaged|not a DICOM picture"):
            read_image(data[:keep])
    start = _start(path)
    damaged = data[:start] + b"\xff" * 40 + data[start + 40 :]
    with pytest.raises(HeaderError) as caught:
        facts(path, damaged)
    assert caught.value.fault == ("broken", "packed data that cannot be unpacked")
    with pytest.raises(ValueError, match=r"packed data that cannot be unpacked\. Copy or"):
        read_image(damaged)
