"""Headers of DICOM objects: read on where the first read ends amid one, and a reason that is right for each fault."""

import copy
import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from adaptor_hf.data import dicom_headers, index_dicom
from adaptor_hf.data.dicom import has_decoder, is_deflated
from adaptor_hf.data.dicom_headers import FAULTS, HeaderError, header_facts
from adaptor_hf.data.dicom_values import pixel_bytes
from adaptor_hf.data.images import read_image
from adaptor_hf.data.pacs.rules import left_out_by
from adaptor_hf.phantom.generate import plan
from adaptor_hf.phantom.layout_pacs import dicom_object

SIDE = 64
BORDER = 1 << 15
DR = "1.2.840.10008.5.1.4.1.1.1.1"
SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "jpeg": JPEGBaseline8Bit,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Values that no writer should write are what is tested."""
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def an_object(**tags):
    """A radiograph of the phantom with tags set; None takes one out."""
    planned = next(plan(1, SIDE, 5))
    dataset = dicom_object(planned, planned.record(SIDE, 5), 5)
    for keyword, value in tags.items():
        if value is None:
            if keyword in dataset:
                delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def saved(dataset, syntax="explicit"):
    """Bytes of a file of that transfer syntax."""
    dataset = copy.deepcopy(dataset)
    dataset.file_meta.TransferSyntaxUID = SYNTAXES.get(syntax, syntax)
    if syntax == "big" and "PixelData" in dataset and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    if syntax == "jpeg":
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(4000) + b"\xff\xd9"])
        dataset["PixelData"].VR = "OB"
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def facts_of(data):
    return header_facts(data, len(data), "AccessionNumber")


def fault_of(data):
    with pytest.raises(HeaderError) as caught:
        facts_of(data)
    assert caught.value.fault.kind in FAULTS
    assert str(caught.value) == caught.value.fault.kind
    return caught.value.fault


def nested(undefined, depth=3, size=40):
    """A sequence in a sequence, with text, bytes and a private element in each item."""
    item = pydicom.Dataset()
    item.CodeValue, item.CodeMeaning = "R-10214", "postero-anterior"
    block = item.private_block(0x0029, "MAKER", create=True)
    block.add_new(1, "OB", b"\x01\x02" * size)
    block.add_new(2, "UN", b"\xfe\xff\x00\xe0" * 5)
    if depth > 1:
        item.ViewModifierCodeSequence = [nested(undefined, depth - 1, size), nested(undefined, 1, 4)]
        item["ViewModifierCodeSequence"].is_undefined_length = undefined
    item.is_undefined_length_sequence_item = undefined
    return item


def pixels_tag(syntax):
    return struct.pack("<HH" if syntax != "big" else ">HH", 0x7FE0, 0x0010)


def with_sequences(undefined, syntax, size=40):
    dataset = an_object(ViewCodeSequence=[nested(undefined, 3, size)])
    dataset["ViewCodeSequence"].is_undefined_length = undefined
    # Sequences that are not asked for are passed over in another way than those that are.
    dataset.AcquisitionContextSequence = [nested(undefined, 2, size), nested(undefined, 1, size)]
    dataset["AcquisitionContextSequence"].is_undefined_length = undefined
    icon = pydicom.Dataset()
    # Its pixels are not those of the picture; compressed ones have no length.
    icon.add_new("PixelData", "OB", pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(range(100))]))
    icon["PixelData"].is_undefined_length = syntax == "jpeg"
    dataset.IconImageSequence = [icon]
    dataset["IconImageSequence"].is_undefined_length = undefined
    block = dataset.private_block(0x0019, "MAKER", create=True)
    block.add_new(1, "SQ", [nested(undefined, 2, size)])
    block.add_new(2, "UN", b"\x07" * 300)
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_wherever_the_first_read_ends_the_facts_are_the_same(monkeypatch, syntax, undefined):
    data = saved(with_sequences(undefined, syntax), syntax)
    whole = facts_of(data)
    assert (whole["view"], whole["pixels"]) == ("PA", True)
    for first in range(400, data.rindex(pixels_tag(syntax), 0, len(data) - 4000) + 20, 7):
        monkeypatch.setattr(dicom_headers, "_READS", (first, 1 << 20, 1 << 26))
        assert facts_of(data) == whole, first


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("ends", [-100, -8, -4, 0, 1, 8, 12, 100, 3000, BORDER, 5 * BORDER])
def test_a_sequence_that_ends_around_the_border_of_the_first_read(tmp_path, syntax, undefined, ends):
    dataset = an_object(ViewPosition=None, AcquisitionContextSequence=[nested(undefined, 2)])
    dataset["AcquisitionContextSequence"].is_undefined_length = undefined
    short = saved(dataset, syntax)
    after = pixels_tag(syntax)
    missing = BORDER + ends - short.index(after)
    item = dataset.AcquisitionContextSequence[0]
    item.add_new(0x00420011, "OB", bytes(2 + missing // 2 * 2))
    data = saved(dataset, syntax)
    assert abs(data.index(after) - BORDER - ends) < 64
    path = tmp_path / "object"
    path.write_bytes(data)
    assert header_facts(str(path), len(data), "AccessionNumber") == facts_of(short)


@pytest.mark.parametrize("length", [100, BORDER - 900, BORDER, 3 << 20])
def test_a_long_private_element_is_read_over(length):
    dataset = an_object()
    plain = facts_of(saved(dataset))
    dataset.private_block(0x0009, "MAKER", create=True).add_new(1, "OB", bytes(length))
    assert facts_of(saved(dataset)) == plain


def values_of(data):
    """Start of each value and its tag, by another way to read the file."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    elements = list(map(dataset.get_item, dataset.keys()))
    return sorted((getattr(element, "value_tell", None) or element.file_tell, element.tag) for element in elements)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_a_file_cut_anywhere_is_a_fault_that_names_the_element(syntax, undefined):
    data = saved(with_sequences(undefined, syntax), syntax)
    values = values_of(data)
    kinds = set()
    for end in [*range(136, data.rindex(pixels_tag(syntax), 0, len(data) - 4000) + 40, 5), len(data) - 1]:
        fault = fault_of(data[:end])
        kinds.add(fault.kind)
        last = [tag for start, tag in values if start <= end][-1:]
        if not last:
            assert fault == ("truncated", "no element after the file's meta header"), end
        elif fault.kind == "no_pixels":
            assert fault.found == "no (7FE0,0010) PixelData"
        else:
            tag = last[0]
            assert fault.kind == "truncated", (end, fault)
            assert (f"group {tag.group:04X}" if tag.is_private else f"({tag.group:04X},{tag.elem:04X})") in fault.found
    assert kinds == {"truncated", "no_pixels"}


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big"])
def test_a_report_that_is_cut_is_truncated_and_a_whole_one_is_no_image(syntax):
    report = an_object(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", PixelData=None)
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    report.ContentSequence = [nested(True, 2), nested(True, 1)]
    report["ContentSequence"].is_undefined_length = True
    data = saved(report, syntax)
    for padding in (b"", b"\0", bytes(512)):
        assert left_out_by(facts_of(data + padding), ["SR"]) == "non_image"
    for missing in (1, 5, 7, 9, 20, 60):
        assert fault_of(data[:-missing])[0] == "truncated"


def test_the_reasons_are_read_off_what_was_found():
    """Each is wrong in one way; of what was found the message has the element, what it has and what was expected."""
    pixels = SIDE * SIDE * 2
    cases = [
        (an_object(PixelData=bytes(pixels - 2)), "truncated", "(7FE0,0010) PixelData has 8,190 bytes, expected 8,192"),
        (an_object(PixelData=b""), "truncated", "(7FE0,0010) PixelData has 0 bytes, expected 8,192"),
        (an_object(Rows=None), "broken", "(0028,0010) Rows is missing, expected a number over 0"),
        (an_object(Columns=0), "broken", "(0028,0011) Columns is no number over 0, expected a number over 0"),
        (an_object(BitsStored=None), "broken", "(0028,0101) BitsStored is missing, expected a number over 0"),
        (an_object(PixelData=None), "no_pixels", "no (7FE0,0010) PixelData"),
        (an_object(NumberOfFrames=2), "truncated", "(7FE0,0010) PixelData has 8,192 bytes, expected 16,384"),
        (an_object(Rows=60_000, Columns=60_000), "too_large", "60,000 x 60,000 pixels"),
    ]
    for dataset, kind, found in cases:
        fault = fault_of(saved(dataset))
        assert fault.kind == kind
        assert fault.found.startswith(found), fault
    emptied = an_object(Rows=None, BitsAllocated=None)
    emptied.add_new("BitsAllocated", "US", None)
    emptied.Rows = SIDE
    assert fault_of(saved(emptied)) == ("broken", "(0028,0100) BitsAllocated is empty, expected a number over 0")


def test_damage_says_no_value_of_the_header():
    data = saved(an_object(PatientName="Secret^Name", PatientID="9753124680"))
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data[: len(data) - 7000])
        place = int(generator.integers(300, 1200))
        del damaged[place : place + int(generator.integers(1, 9))]
        try:
            facts_of(bytes(damaged))
        except HeaderError as error:
            assert not any(word in error.fault.found for word in ("Secret", "Name^", "9753", "5312"))


class TestFrames:
    def test_two_frames_without_their_number_are_several(self):
        one = an_object()
        assert facts_of(saved(one))["frames"] == 1
        for given in (None, "", 1):
            two = an_object(PixelData=one.PixelData * 2, NumberOfFrames=given)
            facts = facts_of(saved(two))
            assert facts["frames"] == 2
            assert left_out_by(facts, [facts["modality"]]) == "multi_frame"

    def test_bytes_after_one_frame_are_no_frame(self):
        one = an_object()
        size = len(one.PixelData)
        for more, frames in ((2, 1), (100, 1), (size - 2, 1), (size, 2), (size + 100, 2), (2 * size, 3)):
            assert facts_of(saved(an_object(PixelData=one.PixelData + bytes(more))))["frames"] == frames

    def test_an_odd_frame_is_made_even(self):
        odd = an_object(Rows=1, Columns=1, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=b"\1\0")
        assert facts_of(saved(odd))["frames"] == 1

    @pytest.mark.parametrize("frames", [1, 2, 5])
    def test_compressed_frames_are_counted_by_their_table(self, frames):
        from pydicom.encaps import encapsulate

        dataset = an_object()
        for has_table in (True, False):
            dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(100)] * frames, has_bot=has_table)
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
            assert facts_of(saved(dataset, JPEG2000))["frames"] == (frames if has_table else 1)


class TestPixelBytes:
    @pytest.mark.parametrize("bits", [1, 8, 16, 32])
    @pytest.mark.parametrize("photometric", ["MONOCHROME2", "RGB", "YBR_FULL_422", "YBR_FULL"])
    def test_as_pydicom_expects(self, bits, photometric):
        dataset = pydicom.Dataset()
        dataset.PhotometricInterpretation, dataset.BitsAllocated = photometric, bits
        dataset.SamplesPerPixel = samples = 1 if photometric == "MONOCHROME2" else 3
        for rows, columns, frames in ((1, 1, 1), (3, 5, 1), (4, 6, 2), (7, 10, 3), (64, 64, 1)):
            dataset.Rows, dataset.Columns, dataset.NumberOfFrames = rows, columns, frames
            if photometric == "YBR_FULL_422" and (columns % 2 or bits == 1):
                continue  # The standard has no such picture.
            expected = get_expected_length(dataset)
            assert pixel_bytes(rows, columns, samples, frames, bits, photometric) == expected

    def test_an_uncompressed_picture_of_half_the_colour_is_whole(self):
        with open(get_testdata_file("SC_ybr_full_422_uncompressed.dcm"), "rb") as file:
            data = file.read()
        facts = facts_of(data)
        assert (facts["photometric"], facts["frames"]) == ("YBR_FULL_422", 1)
        assert left_out_by(facts, ["OT"]) == "secondary_capture"
        assert fault_of(data[:-130]).kind == "truncated"

    @pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
    def test_pixels_that_are_floats_have_no_stored_bits(self, keyword, kind):
        bits = 8 * np.dtype(kind).itemsize
        dataset = an_object(PixelData=None, BitsStored=None, HighBit=None, BitsAllocated=bits)
        setattr(dataset, keyword, np.linspace(0, 1, SIDE * SIDE).astype(kind).tobytes())
        facts = facts_of(saved(dataset))
        assert (facts["pixels"], facts["bits"], left_out_by(facts, [facts["modality"]])) == (True, bits, None)
        dataset.BitsAllocated = 16  # the element itself says how wide its numbers are
        assert facts_of(saved(dataset))["frames"] == 1
        setattr(dataset, keyword, bytes(100))
        assert keyword in fault_of(saved(dataset)).found


def test_empty_elements_are_as_none():
    plain = an_object(NumberOfFrames=None)
    expected = facts_of(saved(plain))
    emptied = an_object(NumberOfFrames="", WindowWidth="", WindowCenter="", RescaleSlope="", SeriesDescription="")
    emptied.VOILUTSequence = []
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", None)
    emptied.ModalityLUTSequence = [item]
    assert facts_of(saved(emptied)) == expected


class TestDeflated:
    def test_a_deflated_file_is_one_wherever_it_ends(self):
        data = saved(an_object(), DeflatedExplicitVRLittleEndian)
        assert facts_of(data) == facts_of(saved(an_object()))
        assert is_deflated(data[:600])

    @pytest.mark.parametrize("syntax", SYNTAXES)
    def test_one_that_names_the_syntax_elsewhere_is_none(self, syntax):
        item = pydicom.Dataset()
        item.ReferencedSOPClassUID = DeflatedExplicitVRLittleEndian
        dataset = an_object(ReferencedImageSequence=[item])
        data = saved(dataset, syntax)
        assert DeflatedExplicitVRLittleEndian.encode() in data
        assert not is_deflated(data)
        assert facts_of(data) == facts_of(saved(an_object(), syntax))


class TestDecoders:
    @pytest.mark.parametrize("bits", [8, 12])
    def test_what_cannot_be_decoded_is_left_out_by_name_unless_kept(self, tmp_path, bits):
        dataset = an_object(
            BitsAllocated=8 if bits == 8 else 16, BitsStored=bits, HighBit=bits - 1, SOPInstanceUID="1.2"
        )
        dataset.PixelData = pydicom.encaps.encapsulate([bytes(100)])
        dataset["PixelData"].VR = "OB"
        (tmp_path / "a").write_bytes(saved(dataset, JPEGExtended12Bit))
        (tmp_path / "b").write_bytes(saved(an_object(SOPInstanceUID="1.3")))
        found = index_dicom(tmp_path)
        decoded = has_decoder(JPEGExtended12Bit, bits)
        name = "JPEG Extended (Process 2 and 4)"
        assert found.excluded == ([] if decoded else [("a", "no_decoder")])
        assert found.found == ([] if decoded else [f"{name}, {bits} bits"])
        assert found.report["without_decoder"] == ({} if decoded else {name: 1})
        kept = index_dicom(tmp_path, keep=["no_decoder"])
        assert (len(kept.table), kept.report["without_decoder"]) == (2, found.report["without_decoder"])

    def test_a_private_syntax_is_one_that_cannot_be_decoded(self, tmp_path):
        dataset = an_object()
        (tmp_path / "a.dcm").write_bytes(saved(dataset).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0"))
        facts = facts_of((tmp_path / "a.dcm").read_bytes())
        assert facts["syntax"] == "private"
        assert left_out_by(facts, [facts["modality"]]) == "no_decoder"
        with pytest.raises((ValueError, ImportError)):
            read_image(tmp_path / "a.dcm")


# Of the files that come with pydicom those with a reason of their own: the rule or fault, and what is said to be found.
REASONS = {
    "MR_truncated.dcm": ("truncated", "(7FE0,0010) PixelData has 8,130 bytes, expected 8,192"),
    "rtplan_truncated.dcm": ("truncated", "(300A,00B0) BeamSequence has 711 bytes, expected 976"),
    "nested_priv_SQ.dcm": ("broken", "(0028,0010) Rows is missing, expected a number over 0"),
    "meta_missing_tsyntax.dcm": ("broken", "(0028,0010) Rows is missing, expected a number over 0"),
    "image_dfl.dcm": (None, ""),
    "zipMR.gz": ("unread_archive", ""),
    "waveform_ecg.dcm": ("non_image", ""),
    "rtplan.dcm": ("non_image", ""),
    "badVR.dcm": ("multi_frame", ""),
    "rtdose.dcm": ("multi_frame", ""),
    "SC_ybr_full_422_uncompressed.dcm": (None, ""),
    "examples_palette.dcm": (None, ""),
    "ExplVR_BigEndNoMeta.dcm": ("non_image", ""),
    "no_meta.dcm": ("not_dicom", ""),
    "DICOMDIR": ("dicomdir", ""),
}
# Their streams are damaged, which no header tells.
DAMAGED = {"GDCMJ2K_TextGBR.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"}


def test_of_all_files_of_pydicom_those_that_are_kept_are_read_and_the_others_have_their_reason():
    keep = ("localizer", "secondary_capture", "for_processing")
    seen, counts = {}, {"kept": 0, "out": 0}
    for path in sorted(path for path in map(Path, get_testdata_files()) if path.is_file()):
        data = path.read_bytes()
        name = path.name
        try:
            facts = facts_of(data)
            reason, found = left_out_by(facts, [facts["modality"]], keep), ""
            if reason == "no_uid":
                reason = None
        except HeaderError as error:
            reason, found = error.fault
        if name in REASONS:
            seen[name] = (reason, found)
        if reason is None:
            counts["kept"] += 1
            if name not in DAMAGED:
                read_image(path)
        else:
            counts["out"] += 1
            with pytest.raises((ValueError, ImportError)):
                read_image(path)
    assert seen == {name: REASONS[name] for name in seen}
    if len(seen) == len(REASONS):
        assert counts["kept"] > 60
