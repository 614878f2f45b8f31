"""Every picture format comes out as the same 8-bit grey or RGB, and every bad file says what is wrong with it."""

import io
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
)

from adaptor_hf.data import images
from adaptor_hf.data.images import read_image, to_uint8

GREY = np.add.outer(np.arange(40) * 4, np.arange(30) * 3).astype(np.uint8)  # 0..243, not square
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source, **options):
    return np.asarray(read_image(source, **options)).astype(int)


def dicom(array, syntax=ExplicitVRLittleEndian, preamble=True, meta=True, **tags):
    """Bytes of a DICOM file written by pydicom."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Canary^Name", "canary-id", "CR"
    dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel = 1 if array.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if array.ndim == 2 else "RGB"
    if array.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = array.dtype.itemsize * 8
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1
    if syntax == ExplicitVRBigEndian:
        array = array.astype(array.dtype.newbyteorder(">"))
    dataset.PixelData = tags.get("PixelData", array.tobytes())
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    buffer = io.BytesIO()
    if meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(buffer, enforce_file_format=preamble)
    else:
        dataset.save_as(buffer, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return buffer.getvalue()


class TestPictures:
    @pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF", "PPM"])
    def test_8_bit_grey_keeps_its_values(self, format):
        np.testing.assert_array_equal(pixels(encoded(GREY, format)), GREY)

    def test_every_kind_of_source_gives_the_same_picture(self, tmp_path):
        data = encoded(GREY)
        path = tmp_path / "a.png"
        path.write_bytes(data)
        unseekable = type("Pipe", (), {"read": lambda self: data})()
        with open(path, "rb") as stream:
            stream.read(10)
            sources = [
                str(path),
                path,
                data,
                bytearray(data),
                io.BytesIO(data),
                stream,
                unseekable,
                GREY,
                GREY[:, :, None],
            ]
            for source in [*sources, Image.open(path)]:
                np.testing.assert_array_equal(pixels(source), GREY)
            assert not stream.closed

    def test_the_result_is_8_bit_pil_of_the_mode_asked_for(self):
        for source in (GREY, COLOUR, encoded(COLOUR), dicom(GREY), GREY.astype(np.uint16)):
            for mode in ("L", "RGB"):
                image = read_image(source, mode=mode)
                assert image.mode == mode
                assert image.size == (30, 40)

    def test_colour_and_grey_convert_into_each_other(self):
        np.testing.assert_array_equal(pixels(encoded(COLOUR), mode="RGB"), COLOUR)
        np.testing.assert_array_equal(pixels(encoded(GREY), mode="RGB"), np.stack([GREY] * 3, 2))
        luma = COLOUR @ [0.299, 0.587, 0.114]
        assert np.abs(pixels(encoded(COLOUR)) - luma).max() <= 1

    def test_palette_one_bit_and_cmyk(self):
        palette = Image.fromarray(COLOUR).quantize(16)
        np.testing.assert_array_equal(pixels(encoded(palette), mode="RGB"), np.asarray(palette.convert("RGB")))
        bit = Image.fromarray(GREY > 100)
        np.testing.assert_array_equal(pixels(encoded(bit)), (GREY > 100) * 255)
        np.testing.assert_array_equal(pixels(encoded(bit, "TIFF")), (GREY > 100) * 255)
        cmyk = Image.fromarray(COLOUR).convert("CMYK")
        assert np.abs(pixels(encoded(cmyk, "TIFF"), mode="RGB") - COLOUR).max() <= 1

    def test_palette_gif_mask_whose_index_0_is_white(self):
        mask = Image.new("P", (4, 4), 0)
        mask.putpalette([255, 255, 255])
        assert pixels(encoded(mask, "GIF")).min() == 255

    def test_alpha_is_composited_on_black(self):
        alpha = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype(np.uint8)
        expected = GREY * (alpha / 255.0)
        for picture in (np.dstack([GREY, alpha]), np.dstack([GREY, GREY, GREY, alpha])):
            assert np.abs(pixels(encoded(picture)) - expected).max() <= 1
        assert np.abs(pixels(np.dstack([GREY, GREY, GREY, alpha])) - expected).max() <= 1

    def test_transparent_palette_entry_is_black(self):
        image = Image.new("P", (2, 1))
        image.putpalette([250, 250, 250, 200, 200, 200])
        image.putpixel((1, 0), 1)
        assert pixels(encoded(image, transparency=0)).tolist() == [[0, 200]]

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("min_size", [None, 20])
    def test_exif_orientation_is_applied(self, orientation, min_size):
        exif = Image.Exif()
        exif[274] = orientation
        undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Image.Transpose that brings the stored pixels upright
        large = Image.fromarray(np.kron(GREY, np.ones((4, 4), dtype=np.uint8)))
        upright = large if orientation == 1 else large.transpose(Image.Transpose(undo[orientation]))
        result = read_image(encoded(large, "JPEG", quality=95, exif=exif), min_size=min_size)
        expected = np.asarray(upright.resize(result.size, Image.Resampling.BOX)).astype(int)
        assert np.abs(np.asarray(result) - expected).max() <= 12

    def test_a_pil_source_is_not_changed(self):
        image = Image.open(io.BytesIO(encoded(np.kron(GREY, np.ones((8, 8), np.uint8)), "JPEG")))
        read_image(image, min_size=30)
        assert image.size == (240, 320)


class TestDeepPictures:
    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_16_bit_is_scaled_to_the_same_picture_as_8_bit(self, format):
        np.testing.assert_array_equal(pixels(encoded(GREY.astype(np.uint16) * 257, format)), GREY)

    def test_12_bit_values_in_a_16_bit_file_are_not_black(self):
        twelve = (GREY.astype(np.uint16) * 16).clip(0, 4095)
        assert np.abs(pixels(encoded(twelve)) - GREY).max() <= 1

    def test_8_bit_values_in_a_16_bit_file_keep_their_values(self):
        np.testing.assert_array_equal(pixels(encoded(GREY.astype(np.uint16))), GREY)

    @pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
    def test_signed_and_float_use_their_own_range(self, dtype):
        array = (GREY.astype(dtype) - 100) * 3
        expected = np.rint(GREY / GREY.max() * 255)
        np.testing.assert_array_equal(pixels(array), expected)

    def test_float_tiff(self):
        assert pixels(encoded(GREY.astype(np.float32) / 7, "TIFF")).max() == 255

    def test_big_endian_and_white_is_zero_tiff(self):
        array = GREY.astype(np.uint16) * 257
        np.testing.assert_array_equal(pixels(array.astype(">u2")), GREY)
        white = encoded(65535 - array, "TIFF", tiffinfo={262: 0})
        np.testing.assert_array_equal(pixels(white), GREY)

    def test_bool_constant_and_nan(self):
        assert set(np.unique(pixels(GREY > 100))) == {0, 255}
        assert pixels(np.full((3, 3), 1000.0)).max() == 0
        with pytest.raises(ValueError, match="NaN"):
            read_image(np.array([[np.nan, 1.0]]))
        with pytest.raises(ValueError, match="NaN or infinite"):
            read_image(np.array([[np.inf, 1.0]]))

    def test_raw_gives_the_numbers_before_scaling(self):
        deep = GREY.astype(np.uint16) * 16
        for source in (deep, encoded(deep), dicom(deep)):
            raw = read_image(source, return_raw=True)
            assert raw.dtype == np.float32
            np.testing.assert_array_equal(raw, deep)
        assert read_image(encoded(deep), mode="RGB", return_raw=True).shape == (40, 30, 3)
        colour = read_image(COLOUR.astype(np.uint16), return_raw=True)
        np.testing.assert_allclose(colour, COLOUR @ [0.299, 0.587, 0.114], rtol=1e-5)

    def test_wide_integers_do_not_wrap(self):
        assert to_uint8(np.array([[-(2**31), 2**31 - 1]], dtype=np.int32)).tolist() == [[0, 255]]


class TestReducedJpeg:
    def marked(self, seed=0, size=(2544, 3056)):
        """A smooth radiograph-like field with hard-edged lead markers and noise."""
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0 : size[0], 0 : size[1]]
        field = 120 + 80 * np.sin(x / 300) * np.cos(y / 400) + rng.normal(0, 3, size)
        for _ in range(12):
            top, left = rng.integers(0, size[0] - 200), rng.integers(0, size[1] - 200)
            field[top : top + rng.integers(5, 150), left : left + rng.integers(5, 150)] = rng.choice([0, 255])
        return Image.fromarray(field.clip(0, 255).astype(np.uint8))

    @pytest.mark.parametrize("target", [224, 256])
    @pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
    @pytest.mark.parametrize("colour", [False, True])
    def test_within_2_grey_levels_of_full_decoding_once_resized(self, target, resample, colour):
        image = self.marked()
        data = encoded(image.convert("RGB") if colour else image, "JPEG", quality=95)
        size = (round(target * image.width / image.height), target)
        reduced = read_image(data, min_size=3 * target)
        assert reduced.height < image.height
        full = read_image(data)
        difference = np.asarray(reduced.resize(size, resample), int) - np.asarray(full.resize(size, resample), int)
        assert np.abs(difference).max() <= 2

    def test_the_shorter_side_keeps_min_size(self):
        data = encoded(Image.new("L", (1000, 1700)), "JPEG")
        for min_size in (100, 125, 126, 249, 251, 500, 999, 5000):
            short = min(read_image(data, min_size=min_size).size)
            assert short >= min(min_size, 1000)
        assert min(read_image(data, min_size=125).size) == 125

    def test_png_ignores_min_size(self):
        np.testing.assert_array_equal(pixels(encoded(GREY), min_size=5), GREY)
        with pytest.raises(ValueError, match="min_size"):
            read_image(GREY, min_size=0)


class TestDicom:
    TWELVE = (GREY.astype(np.uint16) * 10) + 500  # 500..2930
    FULL_RANGE = np.rint(GREY / GREY.max() * 255)

    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
    def test_uncompressed_syntaxes_scale_from_the_full_range(self, syntax):
        np.testing.assert_array_equal(pixels(dicom(self.TWELVE, syntax, BitsStored=12)), self.FULL_RANGE)

    def test_found_by_content_whatever_the_name(self, tmp_path):
        for name in ("IM0001", "picture.jpg", "a.dcm"):
            path = tmp_path / name
            path.write_bytes(dicom(self.TWELVE))
            np.testing.assert_array_equal(pixels(path), self.FULL_RANGE)
        path = tmp_path / "really_png.dcm"
        path.write_bytes(encoded(GREY))
        np.testing.assert_array_equal(pixels(path), GREY)

    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    def test_without_preamble_and_without_meta_header(self, syntax):
        np.testing.assert_array_equal(pixels(dicom(self.TWELVE, syntax, preamble=False)), self.FULL_RANGE)
        np.testing.assert_array_equal(pixels(dicom(self.TWELVE, syntax, meta=False)), self.FULL_RANGE)

    def test_8_bit_keeps_its_values_as_its_png_export_does(self):
        np.testing.assert_array_equal(pixels(dicom(GREY)), GREY)
        inverted = pixels(dicom(GREY, PhotometricInterpretation="MONOCHROME1"))
        np.testing.assert_array_equal(inverted, 255 - GREY.astype(int))

    def test_monochrome1_is_inverted_in_picture_and_raw(self):
        data = dicom(self.TWELVE, PhotometricInterpretation="MONOCHROME1", BitsStored=12)
        np.testing.assert_array_equal(pixels(data), 255 - self.FULL_RANGE)
        raw = read_image(data, return_raw=True)
        np.testing.assert_array_equal(raw, self.TWELVE.max() + self.TWELVE.min() - self.TWELVE.astype(int))

    def test_rescale_is_applied(self):
        data = dicom(self.TWELVE, RescaleSlope="2.5", RescaleIntercept="-1024")
        np.testing.assert_array_equal(read_image(data, return_raw=True), self.TWELVE * 2.5 - 1024)
        np.testing.assert_array_equal(pixels(data), self.FULL_RANGE)
        negative = dicom(GREY, RescaleSlope="-1", RescaleIntercept="255")
        assert pixels(negative)[0, 0] == 255
        assert pixels(negative)[-1, -1] == 0

    def test_signed_values(self):
        signed = self.TWELVE.astype(np.int16) - 1500
        np.testing.assert_array_equal(read_image(dicom(signed), return_raw=True), signed)
        np.testing.assert_array_equal(pixels(dicom(signed, BitsStored=12)), self.FULL_RANGE)

    def test_window_is_used_only_when_asked_for(self):
        tags = {"WindowCenter": "1500", "WindowWidth": "1001"}
        data = dicom(self.TWELVE, **tags)
        np.testing.assert_array_equal(pixels(data), self.FULL_RANGE)
        windowed = np.clip((self.TWELVE - 999.5) / 1000, 0, 1) * 255  # c-0.5 -+ (w-1)/2, PS3.3 C.11.2.1.2
        np.testing.assert_array_equal(pixels(data, voi_lut=True), np.rint(windowed))
        inverted = pixels(dicom(self.TWELVE, PhotometricInterpretation="MONOCHROME1", **tags), voi_lut=True)
        np.testing.assert_array_equal(inverted, 255 - np.rint(windowed))
        np.testing.assert_array_equal(read_image(data, voi_lut=True, return_raw=True), self.TWELVE)

    @pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
    def test_window_functions_agree_with_pydicom(self, function):
        tags = {"WindowCenter": ["1500", "20"], "WindowWidth": ["900", "40"], "VOILUTFunction": function}
        data = dicom(self.TWELVE, BitsStored=12, **tags)
        reference = pydicom.pixels.apply_windowing(self.TWELVE, pydicom.dcmread(io.BytesIO(data))) / 4095 * 255
        assert np.abs(pixels(data, voi_lut=True) - reference).max() <= 0.51

    def test_voi_lut_sequence_comes_before_the_window(self):
        item = pydicom.Dataset()
        item.LUTDescriptor = [4096, 0, 12]
        item.LUTData = (4095 * (np.arange(4096) / 4095) ** 2).astype("<u2").tobytes()
        data = dicom(self.TWELVE, BitsStored=12, VOILUTSequence=[item], WindowCenter="1", WindowWidth="2")
        expected = (self.TWELVE / 4095) ** 2 * 255
        assert np.abs(pixels(data, voi_lut=True) - expected).max() <= 1

    def test_voi_without_window_is_the_full_range(self):
        np.testing.assert_array_equal(pixels(dicom(self.TWELVE), voi_lut=True), self.FULL_RANGE)

    def test_padding_does_not_set_the_range_and_is_black(self):
        padded = self.TWELVE.copy()
        padded[:, :5] = 65535
        result = pixels(dicom(padded, PixelPaddingValue=65535))
        assert (result[:, :5] == 0).all()
        assert result[:, 5:].max() == 255
        inverted = pixels(dicom(padded, PixelPaddingValue=65535, PhotometricInterpretation="MONOCHROME1"))
        assert (inverted[:, :5] == 0).all()

    def test_overlay_bits_above_the_stored_bits_are_dropped(self):
        dirty = self.TWELVE.copy()
        dirty[3, 3] |= 0x8000
        np.testing.assert_array_equal(read_image(dicom(dirty, BitsStored=12), return_raw=True), self.TWELVE)

    def test_colour_secondary_capture(self):
        np.testing.assert_array_equal(pixels(dicom(COLOUR), mode="RGB"), COLOUR)
        assert pixels(dicom(COLOUR)).shape == (40, 30)

    def test_constant_image_is_black_not_nan(self):
        assert pixels(dicom(np.full((4, 4), 700, np.uint16))).max() == 0

    def test_jpeg_baseline_inside_dicom(self):
        jpeg = encoded(GREY, "JPEG", quality=100)
        data = dicom(GREY, JPEGBaseline8Bit, PixelData=pydicom.encaps.encapsulate([jpeg]))
        assert np.abs(pixels(data) - GREY).max() <= 2

    def test_missing_decoder_names_the_wheel(self, monkeypatch):
        from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

        monkeypatch.setattr(type(JPEGLosslessSV1Decoder), "is_available", property(lambda self: False))
        data = dicom(GREY, JPEGLosslessSV1, PixelData=pydicom.encaps.encapsulate([b"1234"]))
        with pytest.raises(ImportError, match="pip install pylibjpeg pylibjpeg-libjpeg"):
            read_image(data)

    def test_pillow_is_no_decoder_of_12_bit_jpeg(self, monkeypatch):
        from pydicom.pixels.decoders import JPEGExtended12BitDecoder
        from pydicom.uid import JPEGExtended12Bit

        monkeypatch.setattr(type(JPEGExtended12BitDecoder), "available_plugins", property(lambda self: ("pillow",)))
        deep = np.full((4, 4), 2000, np.uint16)
        data = dicom(deep, JPEGExtended12Bit, BitsStored=12, PixelData=pydicom.encaps.encapsulate([b"1234"]))
        with pytest.raises(ImportError, match=r"JPEG Extended .*pip install pylibjpeg pylibjpeg-libjpeg"):
            read_image(data)
        with pytest.raises(ValueError, match=r"no installed decoder reads it \(pillow: .*gdcmconv --raw.*damaged"):
            read_image(dicom(GREY, JPEGExtended12Bit, PixelData=pydicom.encaps.encapsulate([b"1234"])))

    @pytest.mark.parametrize(
        ("tags", "message"),
        [
            ({"NumberOfFrames": 2, "PixelData": GREY.tobytes() * 2}, "2 frames"),
            ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
            ({"Rows": None}, "no Rows"),
            ({"Rows": 60000, "Columns": 60000}, "60000 x 60000.*limit"),
            ({"PixelData": GREY.tobytes()[:100]}, "truncated or damaged"),
        ],
    )
    def test_what_is_not_one_picture_is_refused(self, tags, message):
        with pytest.raises(ValueError, match=message):
            read_image(dicom(GREY, **tags))

    def test_video_and_pixelless_objects_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="not a still picture"):
            read_image(dicom(GREY, MPEG2MPML, PixelData=pydicom.encaps.encapsulate([b"1234"])))
        path = tmp_path / "report.dcm"
        dataset = pydicom.dcmread(io.BytesIO(dicom(GREY)))
        del dataset.PixelData, dataset.Rows
        dataset.save_as(path)
        with pytest.raises(ValueError, match=r"report\.dcm: not a DICOM picture"):
            read_image(path)

    def test_header_values_appear_in_no_message_warning_or_log(self, recwarn, caplog):
        data = bytearray(dicom(GREY, StudyDate="20200101"))
        data = data.replace(b"20200101", b"canary!!")
        read_image(bytes(data))
        for broken in (data[:-300], data[:400]):
            with pytest.raises(ValueError, match="image bytes") as caught:
                read_image(bytes(broken))
            assert "canary" not in str(caught.value).lower()
        assert "canary" not in " ".join(str(w.message) for w in recwarn).lower() + caplog.text.lower()


class TestBadFiles:
    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"gone\.png: no such image file"):
            read_image(tmp_path / "gone.png")
        with pytest.raises(OSError, match="not a file"):
            read_image(tmp_path)

    @pytest.mark.parametrize("name", ["empty.jpg", "empty.dcm"])
    def test_zero_bytes(self, tmp_path, name):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=rf"{name}: the file is empty \(0 bytes\)"):
            read_image(tmp_path / name)

    @pytest.mark.parametrize(("format", "kept"), [("JPEG", 0.6), ("PNG", 0.6), ("TIFF", 0.6), ("JPEG", 0.95)])
    @pytest.mark.parametrize("min_size", [None, 40])
    def test_truncated(self, tmp_path, format, kept, min_size):
        noise = np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)
        data = encoded(noise, format)
        path = tmp_path / "cut.img"
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(ValueError, match=r"cut\.img: .*(truncated|damaged)"):
            read_image(path, min_size=min_size)

    @pytest.mark.parametrize("name", ["page.jpg", "page.dcm", "page"])
    def test_not_an_image(self, tmp_path, name):
        (tmp_path / name).write_text("<html>404: this is a web page, not a radiograph</html>" * 10)
        with pytest.raises(ValueError, match=rf"{name}: (not an image|not a DICOM|cannot be decoded)"):
            read_image(tmp_path / name)

    def test_bomb_is_refused_from_its_header(self, tmp_path, monkeypatch):
        path = tmp_path / "bomb.png"
        path.write_bytes(encoded(Image.new("1", (20000, 20000))))
        with pytest.raises(ValueError, match=r"bomb\.png: .*over the limit"):
            read_image(path)
        monkeypatch.setattr(images, "MAX_PIXELS", 100)
        for source in (GREY, Image.fromarray(GREY), encoded(GREY), dicom(GREY)):
            with pytest.raises(ValueError, match="over the limit"):
                read_image(source)

    def test_several_pages_or_frames(self):
        pages = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
        for format in ("TIFF", "GIF", "PNG"):
            data = encoded(pages[0], format, save_all=True, append_images=pages[1:])
            with pytest.raises(ValueError, match="2 frames or pages"):
                read_image(data)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="mode"):
            read_image(GREY, mode="CMYK")
        with pytest.raises(TypeError, match="NoneType"):
            read_image(None)
        for array in (np.zeros((2, 3, 5)), np.zeros((0, 4)), np.zeros(5), np.array([["a"]])):
            with pytest.raises(ValueError, match="image array"):
                read_image(array)

    def test_mutated_files_end_in_a_picture_or_a_named_error(self):
        rng, messages = np.random.default_rng(0), []
        for seed in (encoded(COLOUR, "JPEG"), encoded(COLOUR), dicom(GREY.astype(np.uint16)), encoded(GREY, "TIFF")):
            for _ in range(60):
                data = bytearray(seed)
                for position in rng.integers(0, len(data) if rng.random() < 0.3 else 600, 6):
                    data[position % len(data)] = rng.integers(0, 256)
                try:
                    read_image(bytes(data))
                except (ValueError, ImportError) as error:
                    messages.append(str(error))
        assert messages
        assert all(message.startswith("image bytes: ") for message in messages)


def test_reading_a_png_imports_neither_pydicom_nor_datasets():
    code = (
        "import sys, numpy, adaptor_hf.data.images as i; i.read_image(numpy.zeros((4, 4), numpy.uint8));"
        "print([m for m in ('pydicom', 'datasets', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_real_radiographs(realbench):
    files = sorted((realbench / "images" / "covidcxr").iterdir())[:20]
    assert files
    for path in files:
        image = read_image(path)
        assert min(image.size) == 256
        assert np.asarray(image).std() > 10
