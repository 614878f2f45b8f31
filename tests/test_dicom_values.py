"""Elements of a DICOM header: empty ones are as absent, faulty ones are named, and none is read as another number."""

import io
import logging
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fixtures.dicom import write_dicom, write_jpeg_dicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGExtended12Bit

from adaptor_hf.data import dicom_values
from adaptor_hf.data.images import image_size, read_image

RAMP = (np.add.outer(np.arange(40) * 4, np.arange(30) * 3) * 10 + 500).astype(np.uint16)  # 500..2930
FULL = np.rint((RAMP - 500.0) / 2430 * 255)


@pytest.fixture
def write(tmp_path):
    def run(array=RAMP, name="a.dcm", drop=(), **tags):
        path = write_dicom(tmp_path / name, array, **tags)
        if drop:
            dataset = pydicom.dcmread(path)
            for keyword in drop:
                delattr(dataset, keyword)
            dataset.save_as(path)
        return path

    return run


def pixels(path, **options):
    return np.asarray(read_image(path, **options)).astype(int)


def with_vr(path, keyword, vr, value):
    """The element written in another VR, whatever the pixels' sign."""
    dataset = pydicom.dcmread(path)
    dataset.add_new(pydicom.datadict.tag_for_keyword(keyword), vr, value)
    data = io.BytesIO()
    pydicom.dcmwrite(data, dataset)
    path.write_bytes(data.getvalue())
    return path


class TestPadding:
    SIGNED = RAMP.astype(np.int16) - 1500  # -1000..1430

    def padded(self, value):
        array = self.SIGNED.copy()
        array[:, :7] = value
        return array

    def check(self, path):
        inside = self.SIGNED[:, 7:].astype(float)
        wanted = np.rint((inside - inside.min()) / (inside.max() - inside.min()) * 255)
        found = pixels(path)
        assert (found[:, :7] == 0).all()
        np.testing.assert_array_equal(found[:, 7:], wanted)

    @pytest.mark.parametrize(("stored", "written", "bits"), [
        (-2000, -2000, 16), (-2000, 63536, 16), (-2000, 63536, 12), (-2000, 2096, 12), (-32768, 32768, 16),
    ])  # fmt: skip
    def test_of_signed_pixels_is_found_however_it_is_written(self, write, stored, written, bits):
        path = write(self.padded(stored), BitsStored=bits)
        self.check(with_vr(path, "PixelPaddingValue", "SS" if written < 0 else "US", written))

    def test_a_range_written_unsigned_is_one_range(self, write):
        array = self.padded(-2000)
        array[:, :3] = -1900
        path = with_vr(write(array), "PixelPaddingValue", "US", 65536 - 2000)
        self.check(with_vr(path, "PixelPaddingRangeLimit", "US", 65536 - 1900))

    @pytest.mark.parametrize(("value", "limit"), [(500, 900), (900, 500)])
    def test_a_range_is_one_whichever_end_comes_first(self, write, value, limit):
        found = pixels(write(PixelPaddingValue=value, PixelPaddingRangeLimit=limit))
        outside = RAMP <= 900
        inside = RAMP[~outside].astype(float)
        assert (found[outside] == 0).all()
        wanted = (inside - inside.min()) / (inside.max() - inside.min()) * 255
        np.testing.assert_array_equal(found[~outside], np.rint(wanted))

    def test_of_unsigned_pixels_written_signed(self, write):
        array = RAMP.copy()
        array[:, :7] = 65535
        found = pixels(with_vr(write(array), "PixelPaddingValue", "SS", -1))
        assert (found[:, :7] == 0).all()
        assert found[:, 7:].max() == 255

    def test_a_value_that_is_no_wrapped_one_hides_no_pixels(self, write):
        # -32768 does not fit into 12 bits, and must not become the 0 that its lower 12 bits are.
        plain = write(self.SIGNED, BitsStored=12)
        before = pixels(plain)
        np.testing.assert_array_equal(pixels(with_vr(plain, "PixelPaddingValue", "SS", -32768)), before)

    def test_smeared_padding_is_said(self, tmp_path, caplog, monkeypatch):
        """12 bits that were compressed with loss and unpacked again: 0 became 0 to 300 along its edge."""
        monkeypatch.setattr(dicom_values, "_counts", type(dicom_values._counts)())
        array = RAMP // 4 + 2000
        array[:, :4] = 0
        smeared = array.copy()
        smeared[:, 4] = 300
        lossy = {"BitsStored": 12, "PixelPaddingValue": 0, "LossyImageCompression": "01"}
        plain = {"BitsStored": 12, "PixelPaddingValue": 0}
        for pixel, tags in ((array, lossy), (smeared, plain), (smeared, {"BitsStored": 12})):
            read_image(write_dicom(tmp_path / "a.dcm", pixel, **tags))
        assert not caplog.records
        near = np.where(array == 0, np.arange(30) % 3 + 1, array).astype(np.uint16)  # no pixel is 0 any more
        for pixel in (smeared, near):
            monkeypatch.setattr(dicom_values, "_counts", type(dicom_values._counts)())
            caplog.clear()
            read_image(write_dicom(tmp_path / "a.dcm", pixel, **lossy))
            assert "1 DICOM files so far have padding (PixelPaddingValue (0028,0120))" in caplog.text
            assert "a.dcm" not in caplog.text

    def test_empty_is_none(self, write):
        np.testing.assert_array_equal(pixels(write(PixelPaddingValue=None, PixelPaddingRangeLimit=None)), FULL)


class TestEmptyAndFaulty:
    @pytest.mark.parametrize("voi_lut", [False, True])
    @pytest.mark.parametrize(
        "keywords",
        [
            ("RescaleSlope",), ("RescaleIntercept",), ("RescaleSlope", "RescaleIntercept"), ("ModalityLUTSequence",),
            ("VOILUTSequence",), ("WindowCenter", "WindowWidth"), ("VOILUTFunction",), ("NumberOfFrames",),
        ],
    )  # fmt: skip
    def test_an_empty_element_is_as_absent(self, write, keywords, voi_lut):
        given = {"RescaleSlope": "2", "RescaleIntercept": "-7"} if "Rescale" in keywords[0] else {}
        path = write(**given | dict.fromkeys(keywords))
        np.testing.assert_array_equal(pixels(path, voi_lut=voi_lut), FULL)
        np.testing.assert_array_equal(read_image(path, return_raw=True), RAMP)

    @pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
    @pytest.mark.parametrize("empty", ["LUTDescriptor", "LUTData", None])
    def test_an_empty_lut_is_none_and_the_window_holds(self, write, keyword, empty):
        item = pydicom.Dataset()
        for name, vr, value in (("LUTDescriptor", "US", [256, 0, 8]), ("LUTData", "OW", bytes(512))):
            if empty is not None:
                item.add_new(name, vr, None if name == empty else value)
        path = write(WindowCenter="1500", WindowWidth="1001", **{keyword: [item]})
        np.testing.assert_array_equal(pixels(path), FULL)
        windowed = np.rint(np.clip((RAMP - 999.5) / 1000, 0, 1) * 255)
        np.testing.assert_array_equal(pixels(path, voi_lut=True), windowed)

    def test_a_slope_of_0_is_refused_by_name(self, write):
        with pytest.raises(ValueError, match=r"a\.dcm: RescaleSlope \(0028,1053\) is 0, .*Expected another"):
            read_image(write(RescaleSlope="0", RescaleIntercept="5"))

    @pytest.mark.parametrize(("keyword", "tag", "read"), [
        ("RescaleSlope", "0028,1053", read_image), ("WindowCenter", "0028,1050", read_image),
        ("NumberOfFrames", "0028,0008", image_size),
    ])  # fmt: skip
    def test_what_is_no_number_is_named_and_not_quoted(self, write, keyword, tag, read):
        path = write(RescaleIntercept="0", WindowWidth="9", **{keyword: "9999"})
        path.write_bytes(path.read_bytes().replace(b"9999", b"ca x"))
        with pytest.raises(ValueError, match=rf"{keyword} \({tag}\) holds no number") as caught:
            read(path, **({"voi_lut": True} if read is read_image else {}))
        assert "ca x" not in str(caught.value)

    def test_no_bits_stored_is_named(self, write):
        with pytest.raises(ValueError, match=r"no BitsStored \(0028,0101\)"):
            read_image(write(drop=["BitsStored"]))

    def test_a_window_of_width_0_is_as_none_and_is_counted(self, write, caplog, monkeypatch):
        monkeypatch.setattr(dicom_values, "_counts", type(dicom_values._counts)())
        path = write(WindowCenter="100", WindowWidth="0")
        for _ in range(12):
            np.testing.assert_array_equal(pixels(path, voi_lut=True), FULL)
        assert [re.match(r"\d+", record.getMessage())[0] for record in caplog.records] == ["1", "10"]
        assert "WindowWidth (0028,1051)" in caplog.text
        assert "a.dcm" not in caplog.text
        caplog.clear()
        pixels(path)
        assert not caplog.records


class TestTables:
    @pytest.mark.parametrize(("first", "bits", "signed"), [(0, 12, False), (400, 16, False), (-900, 16, True)])
    @pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
    def test_agree_with_pydicom(self, write, keyword, first, bits, signed):
        array = RAMP.astype(np.int16) - 1500 if signed else RAMP
        item = pydicom.Dataset()
        table = (np.arange(3000) ** 2 % 2**bits).astype("<u2")
        item.add_new("LUTDescriptor", "SS" if signed else "US", [3000, first, bits])
        item.add_new("LUTData", "OW", table.tobytes())
        if keyword == "ModalityLUTSequence" and bits == 12:
            bits = item.LUTDescriptor[2] = 16  # pydicom reads no other
        path = write(array, BitsStored=16, **{keyword: [item]})
        dataset = pydicom.dcmread(path)
        if keyword == "ModalityLUTSequence":
            wanted = apply_modality_lut(array, dataset)
            np.testing.assert_array_equal(read_image(path, return_raw=True), wanted)
        else:
            wanted = np.rint(apply_voi(array, dataset) / (2**bits - 1) * 255)
            np.testing.assert_array_equal(pixels(path, voi_lut=True), wanted)

    @staticmethod
    def table(first, entries, written=None):
        """A table of 12 bits that halves and mirrors, and its item."""
        values = (2048 - np.arange(entries) // 2 % 2048).astype("<u2")
        item = pydicom.Dataset()
        item.add_new("LUTDescriptor", "US", [entries if written is None else written, first, 12])
        item.add_new("LUTData", "OW", values.tobytes())
        return values.astype(int), item

    def test_a_first_value_written_unsigned_for_signed_pixels(self, write):
        signed = RAMP.astype(np.int16) - 1500
        values, item = self.table(65536 - 1000, 2431)
        wanted = np.rint(values[signed.astype(int) + 1000] / 4095 * 255)
        np.testing.assert_array_equal(pixels(write(signed, VOILUTSequence=[item]), voi_lut=True), wanted)

    def test_0_entries_are_65536(self, write):
        values, item = self.table(0, 65536, written=0)
        wanted = np.rint(values[RAMP] / 4095 * 255)
        np.testing.assert_array_equal(pixels(write(VOILUTSequence=[item]), voi_lut=True), wanted)

    def test_of_a_big_endian_file(self, write):
        values, item = self.table(0, 4096)
        wanted = np.rint(values[RAMP] / 4095 * 255)
        path = write(VOILUTSequence=[item])
        np.testing.assert_array_equal(pixels(path, voi_lut=True), wanted)
        item.LUTData = values.astype(">u2").tobytes()
        dataset = pydicom.Dataset()
        for element in pydicom.dcmread(path):
            dataset.add_new(element.tag, element.VR, element.value)
        dataset.VOILUTSequence = [item]
        dataset.PixelData = RAMP.astype(">u2").tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.save_as(path, enforce_file_format=True)
        np.testing.assert_array_equal(pixels(path, voi_lut=True), wanted)

    def test_a_table_of_8_bits_with_over_256_entries_does_not_wrap(self, write):
        item = pydicom.Dataset()
        item.LUTDescriptor = [4096, 0, 8]
        item.add_new("LUTData", "OW", (np.arange(4096) // 16).astype("<u2").tobytes())
        np.testing.assert_array_equal(pixels(write(VOILUTSequence=[item]), voi_lut=True), RAMP // 16)
        item.add_new("LUTData", "OW", (np.arange(4096) // 16).astype(np.uint8).tobytes())
        np.testing.assert_array_equal(pixels(write(VOILUTSequence=[item]), voi_lut=True), RAMP // 16)

    def test_a_table_that_is_too_short_is_named(self, write):
        item = pydicom.Dataset()
        item.LUTDescriptor = [4096, 0, 12]
        item.add_new("LUTData", "OW", bytes(200))
        with pytest.raises(ValueError, match=r"LUTData \(0028,3006\) has 200 entries, but LUTDescriptor .* says 4096"):
            read_image(write(VOILUTSequence=[item]), voi_lut=True)


class TestPixels:
    @pytest.mark.parametrize("frames", [{}, {"NumberOfFrames": 1}, {"NumberOfFrames": None}])
    def test_two_pictures_that_no_number_tells_of_are_refused(self, write, frames):
        path = write(PixelData=RAMP.tobytes() * 2, **frames)
        wanted = r"has 4,800 bytes, 2 times the 2,400 for 30 x 40 pixels with 1 of 16 bits, but NumberOfFrames"
        with pytest.raises(ValueError, match=wanted):
            read_image(path)

    def test_a_byte_that_makes_the_length_even_is_no_second_picture(self, write):
        assert pixels(write(np.array([[7]], np.uint8), PixelData=b"\x07\0")).tolist() == [[7]]
        np.testing.assert_array_equal(pixels(write(PixelData=RAMP.tobytes() + bytes(50))), FULL)

    def test_too_few_bytes_are_counted(self, write):
        with pytest.raises(ValueError, match=r"PixelData \(7FE0,0010\) has 100 bytes, expected 2,400.*truncated"):
            read_image(write(PixelData=RAMP.tobytes()[:100]))

    def test_two_compressed_pictures_are_refused_and_one_in_pieces_is_read(self, tmp_path):
        grey = (RAMP // 16).astype(np.uint8)
        path = write_jpeg_dicom(tmp_path / "a.dcm", grey)
        whole = pixels(path)
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, "JPEG", quality=90)
        dataset = pydicom.dcmread(path)
        for has_bot in (False, True):
            dataset.PixelData = encapsulate([stream.getvalue()] * 2, has_bot=has_bot)
            dataset.save_as(path)
            with pytest.raises(ValueError, match="holds 2 compressed pictures, but NumberOfFrames"):
                read_image(path)
        dataset.PixelData = encapsulate([stream.getvalue()], fragments_per_frame=3)
        dataset.save_as(path)
        np.testing.assert_array_equal(pixels(path), whole)

    def test_two_compressed_pictures_whose_start_is_not_known_are_told_by_the_offsets(self, tmp_path):
        dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12))
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        picture = io.BytesIO()
        Image.fromarray(RAMP).save(picture, "JPEG2000")  # in a file of its own (JP2), whose first bytes are others
        dataset.PixelData = encapsulate([picture.getvalue()] * 2, has_bot=True)
        dataset["PixelData"].VR = "OB"
        dataset.save_as(tmp_path / "a.dcm")
        with pytest.raises(ValueError, match="holds 2 compressed pictures, but NumberOfFrames"):
            read_image(tmp_path / "a.dcm")

    def test_jpeg_extended_of_8_bits_is_read_by_pillow_and_of_12_is_not(self, tmp_path):
        grey = (RAMP // 16).astype(np.uint8)
        path = write_jpeg_dicom(tmp_path / "a.dcm", grey)
        wanted = pixels(path)
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
        dataset.save_as(path)
        np.testing.assert_array_equal(pixels(path), wanted)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.save_as(path)
        with pytest.raises((ImportError, ValueError), match=r"`dcmdjpeg IN OUT`|cannot be decoded"):
            read_image(path)

    def test_ybr_full_422_without_compression(self, write):
        luma = (RAMP // 16).astype(np.uint8)
        stored = np.full((40, 15, 4), 128, np.uint8)  # of two pixels: Y Y Cb Cr
        stored[..., :2] = luma.reshape(40, 15, 2)
        stored[:, 5:, 3] = 160
        path = write(
            np.zeros((40, 30, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422", PixelData=stored.tobytes()
        )
        found = pixels(path, mode="RGB")
        assert np.abs(found[:, :10] - luma[:, :10, None]).max() <= 1
        # R = Y + 1.402 (Cr - 128), G = Y - 0.714 (Cr - 128), B = Y
        wanted = luma[:, 10:, None] + np.array([1.402, -0.714, 0]) * 32
        assert np.abs(found[:, 10:] - wanted.clip(0, 255)).max() <= 1
        with pytest.raises(ValueError, match=r"has 2,000 bytes, expected 2,400"):
            read_image(write(np.zeros((40, 30, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422",
                             PixelData=stored.tobytes()[:2000]))  # fmt: skip

    @pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
    def test_float_pixels_are_read(self, write, keyword, dtype):
        array = (RAMP / 7 - 100).astype(dtype)
        array[:, :4] = -9999
        path = write(drop=["PixelData", "BitsStored", "HighBit", "PixelRepresentation"])
        dataset = pydicom.dcmread(path)
        dataset.BitsAllocated = array.dtype.itemsize * 8
        setattr(dataset, keyword, array.tobytes())
        setattr(dataset, f"{keyword.removesuffix('Data')}PaddingValue", -9999.0)
        dataset.save_as(path)
        found = pixels(path)
        inside = RAMP[:, 4:].astype(float)
        assert (found[:, :4] == 0).all()
        wanted = (inside - inside.min()) / (inside.max() - inside.min()) * 255
        assert np.abs(found[:, 4:] - wanted).max() <= 0.51
        np.testing.assert_allclose(read_image(path, return_raw=True), array.astype(np.float32))
        setattr(dataset, keyword, array.tobytes()[:-80])
        dataset.save_as(path)
        with pytest.raises(ValueError, match=rf"{keyword} .*expected {array.nbytes:,}"):
            read_image(path)

    def test_colour_of_12_bits_in_a_file_that_says_16(self, write):
        array = np.stack([RAMP, RAMP[::-1], RAMP // 2], axis=2)
        wanted = np.rint(array / 4095 * 255)
        np.testing.assert_array_equal(pixels(write(array), mode="RGB"), wanted)
        np.testing.assert_array_equal(pixels(write(array, BitsStored=12), mode="RGB"), wanted)


def test_files_of_pydicom_are_read_or_refused_for_what_they_are(caplog):
    """The files that pydicom's tests are made of: a picture of the right size, or why there is none."""
    caplog.set_level(logging.ERROR)
    reasons = {
        "not a DICOM picture": lambda d: not all(d.get(k) for k in ("Rows", "Columns", "BitsAllocated")),
        r"has \d+ frames": lambda d: d.get("NumberOfFrames", 1) > 1,
        "no decoder for it is installed": lambda d: d.file_meta.TransferSyntaxUID.is_compressed,
        "no installed decoder reads it": lambda d: d.file_meta.TransferSyntaxUID.is_compressed,
        r"NumberOfFrames \(0028,0008\) holds no number": lambda d: "badVR" in d.filename,
        r"PixelData \(7FE0,0010\) has [\d,]+ bytes, expected": lambda d: "truncated" in d.filename,
    }
    read = 0
    # `get_testdata_files` would look for more of them on the network.
    paths = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm"))
    for path in paths:
        dataset = pydicom.dcmread(path, force=True)
        try:
            image = read_image(path)
        except (ValueError, ImportError) as error:
            fitting = [check for reason, check in reasons.items() if re.search(reason, str(error))]
            assert len(fitting) == 1, error
            assert fitting[0](dataset), error
        else:
            read += 1
            assert image.size == (dataset.Columns, dataset.Rows)
            assert np.ptp(np.asarray(image)) > 0
    assert read >= 40
