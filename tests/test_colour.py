"""Pictures in colour: what `read_image` makes of special files, and which data sets are found to be in colour."""

import csv
import io
import logging
import struct
import zlib

import datasets
import numpy as np
import pydicom
import pytest
from fixtures.dicom import write_dicom
from PIL import Image, ImageCms, ImageOps
from pydicom.pixels import apply_color_lut, convert_color_space

from adaptor_hf.data.colour import FILE_SHARE, SAMPLE, choose_mode, count_colour, is_colour
from adaptor_hf.data.images import read_image

ROWS, COLUMNS = np.mgrid[0:64, 0:48]
GREY = np.clip(120 + 80 * np.sin(ROWS / 7) * np.cos(COLUMNS / 5) + (ROWS * 37 + COLUMNS * 91) % 17, 0, 255).astype(
    np.uint8
)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)
GREY_RGB = np.stack([GREY] * 3, axis=2)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(array):
    return Image.fromarray(array)


def with_alpha(array):
    alpha = np.where(COLUMNS < 24, 255, 100).astype(np.uint8)
    return picture(np.concatenate([array, alpha[..., None]], axis=2))


def dicom(folder, array, **tags):
    return write_dicom(folder / "file.dcm", array, **tags)


def palette_dicom(folder, entries=16):
    generator = np.random.default_rng(0)
    tags = {}
    for name in ("Red", "Green", "Blue"):
        table = generator.integers(0, 2**entries, 256).astype("<u2" if entries == 16 else np.uint8)
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, entries]
        tags[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    return dicom(folder, GREY, PhotometricInterpretation="PALETTE COLOR", **tags)


def deep_png(array):
    """A PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_tiff(array):
    """A TIFF of 16 bits a channel."""
    data = array.astype("<u2").tobytes()
    tags = {256: array.shape[1], 257: array.shape[0], 258: None, 259: 1, 262: 2, 273: None, 277: 3,
            278: array.shape[0], 279: len(data)}  # fmt: skip
    behind = 8 + 2 + 12 * len(tags) + 4
    tags |= {258: behind, 273: behind + 6}
    entries = b"".join(struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value)
                       for tag, value in tags.items())  # fmt: skip
    start = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return start + entries + struct.pack("<IHHH", 0, 16, 16, 16) + data


def as_float(path):
    return np.asarray(read_image(path, mode="RGB")).astype(float)


class TestFilesInColour:
    """Against Pillow and pydicom."""

    def test_plain_palette_and_cmyk_files(self):
        for data in (encoded(picture(COLOUR)), encoded(picture(COLOUR).quantize(64)), encoded(picture(COLOUR), "GIF"),
                     encoded(picture(COLOUR).convert("CMYK"), "TIFF"),
                     encoded(picture(COLOUR).convert("CMYK"), "JPEG"),
                     encoded(picture(COLOUR), "WEBP", lossless=True)):  # fmt: skip
            np.testing.assert_array_equal(read_image(data, mode="RGB"), Image.open(io.BytesIO(data)).convert("RGB"))

    def test_alpha_is_laid_on_black(self):
        alpha = np.asarray(with_alpha(COLOUR))[..., 3:] / 255
        found = as_float(encoded(with_alpha(COLOUR)))
        assert np.abs(found - COLOUR * alpha).max() <= 1
        transparent = encoded(picture(COLOUR).quantize(8), transparency=0)
        indices = np.asarray(Image.open(io.BytesIO(transparent)))
        assert (as_float(transparent)[indices == 0] == 0).all()
        assert (indices == 0).any()

    def test_orientation_is_applied_and_a_profile_is_not(self):
        turned = Image.Exif()
        turned[Image.ExifTags.Base.Orientation] = 6
        data = encoded(picture(COLOUR), "JPEG", exif=turned, quality=95)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(read_image(data, mode="RGB"), expected)
        assert expected.size == (64, 48)
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        np.testing.assert_array_equal(read_image(encoded(picture(COLOUR), icc_profile=profile), mode="RGB"), COLOUR)

    def test_sixteen_bits_a_channel(self, tmp_path):
        deep = COLOUR.astype(np.uint16) * 257
        np.testing.assert_array_equal(read_image(deep, mode="RGB"), COLOUR)
        np.testing.assert_array_equal(read_image(dicom(tmp_path, deep), mode="RGB"), COLOUR)

    @pytest.mark.parametrize("write", [deep_png, deep_tiff])
    def test_colour_files_of_sixteen_bits_are_scaled_from_the_bits_in_use(self, write):
        deep = COLOUR.astype(np.uint16) * 257
        np.testing.assert_array_equal(read_image(write(deep), mode="RGB"), COLOUR)
        for bits in (12, 14):
            # They once came out nearly black, then they were refused. Fewer bits round by a level at most.
            found = np.asarray(read_image(write(deep >> (16 - bits)), mode="RGB"), np.int16)
            assert np.abs(found - COLOUR).max() <= 1, bits

    def test_a_grey_file_has_three_equal_channels(self):
        grey = np.asarray(read_image(encoded(picture(GREY))))
        np.testing.assert_array_equal(read_image(encoded(picture(GREY)), mode="RGB"), np.stack([grey] * 3, axis=2))

    def test_an_animation_is_refused(self):
        data = encoded(picture(COLOUR), "GIF", save_all=True, append_images=[picture(COLOUR[::-1])])
        with pytest.raises(ValueError, match="2 frames"):
            read_image(data, mode="RGB")

    @pytest.mark.parametrize("planar", [0, 1])
    def test_dicom_of_rgb(self, planar, tmp_path):
        data = np.ascontiguousarray(COLOUR.transpose(2, 0, 1) if planar else COLOUR).tobytes()
        path = dicom(tmp_path, COLOUR, PlanarConfiguration=planar, PixelData=data)
        np.testing.assert_array_equal(read_image(path, mode="RGB"), COLOUR)

    def test_dicom_of_ybr(self, tmp_path):
        ybr = convert_color_space(COLOUR, "RGB", "YBR_FULL")
        path = dicom(tmp_path, ybr, PhotometricInterpretation="YBR_FULL")
        # ITU-R 601 as PS3.3 C.7.6.3.1.2 gives it.
        y, blue, red = (ybr[..., channel].astype(float) - (0, 128, 128)[channel] for channel in range(3))
        expected = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=2)
        assert np.abs(as_float(path) - np.clip(expected, 0, 255)).max() <= 1
        assert np.abs(as_float(path) - COLOUR).max() <= 3

    @pytest.mark.parametrize("entries", [8, 16])
    def test_dicom_of_a_palette(self, entries, tmp_path):
        path = palette_dicom(tmp_path, entries)
        values = apply_color_lut(GREY, pydicom.dcmread(path)).astype(float)
        expected = values * 255 / (2**entries - 1)
        assert np.abs(as_float(path) - expected).max() <= 0.5
        luma = expected @ [0.299, 0.587, 0.114]
        assert np.abs(np.asarray(read_image(path)).astype(float) - luma).max() <= 1.5


def test_what_counts_as_colour_is_in_the_pixels_not_the_format(tmp_path):
    generator = np.random.default_rng(1)
    noisy = np.clip(GREY + generator.normal(0, 12, GREY.shape), 0, 255).astype(np.uint8)
    marked = GREY_RGB.copy()
    marked[:5, :5] = (255, 0, 0)
    tinted = np.clip(GREY_RGB * 0.9 + np.array([10, 3, 0]), 0, 255).astype(np.uint8)
    grey = {
        "L": encoded(picture(GREY)),
        "RGB": encoded(picture(GREY_RGB)),
        "JPEG as RGB": encoded(picture(np.stack([noisy] * 3, axis=2)), "JPEG", quality=60),
        "palette": encoded(picture(GREY).quantize(64)),
        "RGBA": encoded(with_alpha(GREY_RGB)),
        "CMYK": encoded(picture(GREY_RGB).convert("CMYK"), "TIFF"),
        "16 bit": encoded(picture(GREY.astype(np.uint16) * 200)),
        "a small mark": encoded(picture(marked)),
        "a cast of the film": encoded(picture(tinted)),
    }
    colour = {
        "RGB": encoded(picture(COLOUR)),
        "JPEG": encoded(picture(COLOUR), "JPEG", quality=40),
        "palette": encoded(picture(COLOUR).quantize(64)),
        "RGBA": encoded(with_alpha(COLOUR)),
        "CMYK": encoded(picture(COLOUR).convert("CMYK"), "JPEG"),
        "array": COLOUR,
        "PIL": picture(COLOUR),
    }
    assert {name: is_colour(source) for name, source in grey.items()} == dict.fromkeys(grey, False)
    assert {name: is_colour(source) for name, source in colour.items()} == dict.fromkeys(colour, True)
    assert not is_colour(dicom(tmp_path, GREY))
    assert not is_colour(dicom(tmp_path, GREY_RGB))
    assert is_colour(dicom(tmp_path, COLOUR))
    assert is_colour(palette_dicom(tmp_path))
    ybr = convert_color_space(COLOUR, "RGB", "YBR_FULL")
    assert is_colour(dicom(tmp_path, ybr, PhotometricInterpretation="YBR_FULL"))


def test_pixels_of_a_file_of_one_channel_are_not_decoded(tmp_path):
    whole = encoded(picture(GREY))
    assert not is_colour(whole[: len(whole) // 2])
    header = write_dicom(tmp_path / "a.dcm", GREY).read_bytes()
    assert not is_colour(header[:-1000])
    cut = encoded(picture(COLOUR))
    with pytest.raises(ValueError, match="truncated or damaged"):
        is_colour(cut[: len(cut) // 2])


def column(sources):
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in sources]},
        features=datasets.Features({"image": datasets.Image()}),
    )


@pytest.mark.parametrize(
    ("colour", "grey", "mode", "level"),
    [
        (0, 30, "L", logging.INFO),
        (30, 0, "RGB", logging.INFO),
        (1, 29, "L", logging.WARNING),
        (2, 28, "RGB", logging.WARNING),
    ],
)
def test_the_choice_is_said_with_counts_and_a_mixed_set_with_the_rule(colour, grey, mode, level, caplog):
    rows = column([encoded(picture(COLOUR))] * colour + [encoded(picture(GREY_RGB))] * grey)
    with caplog.at_level(logging.INFO):
        assert choose_mode(rows) == mode
    (record,) = caplog.records
    assert record.levelno == level
    assert f"read as {mode}: {colour} of 30 files" in record.getMessage()
    assert ("5%" in record.getMessage()) == (level == logging.WARNING)
    assert (colour / 30 >= FILE_SHARE) == (mode == "RGB")


def test_a_sample_is_seeded_and_damaged_files_are_counted_apart(caplog):
    grey, colour = encoded(picture(GREY)), encoded(picture(COLOUR))
    generator = np.random.default_rng(3)
    rows = column([colour if value < 0.3 else grey for value in generator.random(3 * SAMPLE)])
    counts = count_colour(rows)
    assert counts.colour + counts.grey == SAMPLE
    assert 0.2 < counts.colour / SAMPLE < 0.4
    assert count_colour(rows) == counts
    assert count_colour(rows, seed=1) != counts
    damaged = count_colour(column([grey, b"no image", colour]))
    assert (damaged.colour, damaged.grey, damaged.unreadable) == (1, 1, 1)
    assert "1 more cannot be read" in str(damaged)
    # Where nothing can be read there is nothing to say.
    missing = datasets.Dataset.from_dict({"image": ["no/such/file.png"]})
    with caplog.at_level(logging.INFO):
        assert choose_mode(missing) == "L"
    assert not caplog.records


def test_photographs_are_in_colour(realpairs):
    with open(realpairs / "flickr8k" / "metadata.csv", encoding="utf-8") as file:
        names = sorted({row["image"] for row in csv.DictReader(file)})
    found = [is_colour(realpairs / "flickr8k" / name) for name in names[::60]]
    assert len(found) > 90
    # Some are black and white.
    assert np.mean(found) > 0.95


def test_radiographs_saved_as_rgb_jpeg_are_grey(realbench):
    with open(realbench / "metadata.csv", encoding="utf-8") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    for number, name in enumerate(names[::30]):
        image = Image.open(realbench / name).convert("L").convert("RGB")
        assert not is_colour(encoded(image, "JPEG", quality=(50, 75, 95)[number % 3]))
