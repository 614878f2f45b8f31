"""Masks: drawn right, read right from every kind of file, of the size of their image, and they survive storage."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from adaptor_hf.data import masks
from adaptor_hf.data.images import image_size
from adaptor_hf.data.mask_drawing import decode_rle, draw_shape, encode_rle, parse_shape, shape_box
from adaptor_hf.data.masks import (
    RadiographMask,
    box_mask,
    file_mask,
    format_shape,
    mask_paths,
    read_mask,
    rle_mask,
    roi_mask,
    shape_mask,
    with_root,
)

BLOB = np.zeros((60, 80), dtype=bool)
BLOB[10:30, 40:70] = True


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


@pytest.fixture
def image(tmp_path):
    """An image of 80 x 60 pixels."""
    return save(tmp_path / "image.png", np.full((60, 80), 90, np.uint8))


def decoded(value, notes=None):
    picture = read_mask(value, notes)
    array = np.asarray(picture)
    assert picture.mode == "L"
    assert set(np.unique(array)) <= {0, 255}
    return array > 0


def siim_reference(rle, height, width):
    """The decoder that the format's description quotes."""
    mask = np.zeros(height * width, np.uint8)
    position = 0
    numbers = np.array(rle.split(), int)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += start
        mask[position : position + length] = 1
        position += length
    return mask.reshape(width, height).T


class TestRunLengths:
    @given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 9))))
    @settings(deadline=None)
    def test_decoding_is_the_inverse_of_encoding_and_agrees_with_the_reference(self, mask):
        height, width = mask.shape
        runs = encode_rle(mask)
        np.testing.assert_array_equal(decode_rle(runs, width, height), mask)
        if runs != "-1":
            np.testing.assert_array_equal(siim_reference(runs, height, width), mask)

    def test_starts_are_relative_and_columns_come_first(self):
        # Two runs: rows 1-2 of column 0, then 3 pixels on, row 1 of column 1 (height 5).
        expected = np.zeros((5, 3), bool)
        expected[1:3, 0] = expected[1, 1] = True
        np.testing.assert_array_equal(decode_rle("1 2 3 1", width=3, height=5), expected)

    def test_a_real_row_is_one_region(self):
        from scipy.ndimage import label

        # The beginning of the first positive row of the published file.
        mask = decode_rle("557374 2 1015 8 1009 14 1002 20 997 26", 1024, 1024)
        assert mask.sum() == 2 + 8 + 14 + 20 + 26
        assert label(mask)[1] == 1

    @pytest.mark.parametrize("sentinel", ["-1", " -1", "", " "])
    def test_both_sentinels_are_an_empty_mask(self, sentinel):
        assert not decode_rle(sentinel, 7, 5).any()

    @pytest.mark.parametrize(
        ("runs", "message"),
        [
            ("1 2 3", "pairs of start and length"),
            ("3 -2", "none negative"),
            ("1 x", "whole numbers, found '1 x'"),
            ("1.5 2", "whole numbers"),
            ("30 6", "end at pixel 36, but an image of 7 x 5 has 35"),
            ("99999999999999999999 1", "whole numbers"),
        ],
    )
    def test_malformed_runs_are_refused(self, runs, message):
        with pytest.raises(ValueError, match=message):
            decode_rle(runs, 7, 5)


class TestShapes:
    def draw(self, text, height=60, width=80):
        mask = np.zeros((height, width), bool)
        draw_shape(mask, text)
        return mask

    @given(*[st.integers(-5, 70)] * 2, *[st.integers(0, 90)] * 2)
    @settings(deadline=None)
    def test_a_box_of_whole_numbers_is_the_slice(self, x, y, width, height):
        expected = np.zeros((60, 80), bool)
        expected[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
        found = self.draw(f"rectangle {x} {y} {x + width} {y + height}")
        np.testing.assert_array_equal(found, expected)

    def test_a_box_with_fractions_takes_the_pixels_whose_centre_is_inside(self):
        found = self.draw("rectangle 2.4 3.6 5.5 6.5")
        assert np.argwhere(found).min(axis=0).tolist() == [4, 2]
        assert np.argwhere(found).max(axis=0).tolist() == [5, 4]

    @given(*[st.integers(0, 40)] * 2, *[st.integers(1, 40)] * 2)
    @settings(deadline=None)
    def test_a_polygon_that_is_a_rectangle_is_the_rectangle(self, x, y, width, height):
        right, bottom = x + width, y + height
        polygon = self.draw(f"polygon {x} {y} {right} {y} {right} {bottom} {x} {bottom}")
        np.testing.assert_array_equal(polygon, self.draw(f"rectangle {x} {y} {right} {bottom}"))

    @given(hnp.arrays(np.int64, (6, 2), elements=st.integers(-10, 90)))
    @settings(deadline=None, max_examples=30)
    def test_a_polygon_has_the_pixels_whose_centre_is_inside(self, points):
        from skimage.measure import points_in_poly

        # Shifted by a bit, no centre lies on an edge, where either answer is right.
        points = np.add(points, [0.013, 0.0071])
        rows, columns = np.mgrid[0:60, 0:80]
        centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
        expected = points_in_poly(centres, points).reshape(60, 80)
        np.testing.assert_array_equal(self.draw(format_shape("polygon", points.ravel())), expected)

    def test_x_comes_before_y(self):
        """LoVT draws the polygons of object-CXR with the two exchanged."""
        found = self.draw("polygon 60 2 75 2 75 9 60 9")
        np.testing.assert_array_equal(found[2:9, 60:75], True)
        assert found.sum() == 7 * 15

    def test_an_ellipse_has_its_area_and_leaves_the_corners(self):
        """LoVT fills ellipses as rectangles."""
        found = self.draw("ellipse 10 10 60 40")
        assert found.sum() == pytest.approx(np.pi * 25 * 15, rel=0.01)
        assert not found[10, 10]
        assert found[25, 10:60].all()

    @given(hnp.arrays(np.float64, (5, 2), elements=st.floats(-20, 90)))
    @settings(deadline=None)
    def test_a_polygon_stays_in_its_bounding_box(self, points):
        text = format_shape("polygon", points.ravel())
        np.testing.assert_array_equal(parse_shape(text)[1], points)
        box = self.draw(format_shape("rectangle", shape_box(points)))
        assert not (self.draw(text) & ~box).any()

    @pytest.mark.parametrize("text", ["", "circle 1 2 3 4", "rectangle 1 2 3", "polygon 1 2 3 4", "ellipse 1 2 3 nan"])
    def test_what_is_no_shape_is_refused(self, text):
        with pytest.raises(ValueError, match="a shape is 'rectangle"):
            self.draw(text)


class TestDecoding:
    def test_overlapping_masks_are_joined_with_or(self, image):
        other = np.zeros_like(BLOB)
        other[20:50, 60:75] = True
        value = rle_mask([encode_rle(BLOB), encode_rle(other)], image, (80, 60))
        np.testing.assert_array_equal(decoded(value), BLOB | other)
        assert (BLOB & other).any()

    def test_empty_masks_have_the_size_of_the_image(self, image):
        for value in (rle_mask([], image, (80, 60)), box_mask(np.zeros((0, 4)), image)):
            mask = decoded(value)
            assert mask.shape == (60, 80)
            assert not mask.any()

    def test_a_frame_other_than_the_image_is_resized_and_counted(self, image):
        notes = Counter()
        mask = decoded(box_mask(np.array([[512, 0, 1024, 384]]), image, (1024, 768)), notes)
        expected = np.zeros((60, 80), bool)
        expected[:30, 40:] = True
        np.testing.assert_array_equal(mask, expected)
        assert notes == {"resized": 1}

    def test_the_resize_is_said_in_the_log_without_a_path(self, image, caplog, monkeypatch):
        monkeypatch.setattr(masks, "_warned", set())
        for _ in range(2):
            decoded(box_mask(np.array([[1, 1, 9, 9]]), image, (1024, 768)))
        assert [record.message for record in caplog.records] == [
            "A mask of 1024 x 768 pixels was brought to the 80 x 60 of its image (nearest neighbour). Said once."
        ]

    def test_a_dicom_image_gives_the_size(self, tmp_path):
        from fixtures.dicom import write_dicom

        path = write_dicom(tmp_path / "a.dcm", np.zeros((40, 70), np.uint16))
        assert image_size(path) == (70, 40)
        assert decoded(shape_mask([], str(path))).shape == (40, 70)

    def test_an_image_on_its_side_gives_the_upright_size(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / "a.jpg"
        Image.new("L", (80, 60)).save(path, exif=exif)
        assert image_size(path) == (60, 80)

    def test_malformed_runs_name_the_image(self, image):
        with pytest.raises(ValueError, match=r"mask of .*image.png: run lengths"):
            read_mask(rle_mask(["1 2 3"], image, (80, 60)))


class TestFiles:
    @pytest.mark.parametrize("inside", [1, 255])
    def test_png_of_0_and_1_or_255(self, tmp_path, image, inside):
        path = save(tmp_path / "m.png", BLOB.astype(np.uint8) * inside)
        np.testing.assert_array_equal(decoded(file_mask([path], image)), BLOB)

    @pytest.mark.parametrize("kind", ["mixed", "empty", "full"])
    def test_gif_palettes_of_lovt(self, tmp_path, image, kind):
        """A full GIF mask has palette index 0 everywhere, as an empty one has."""
        array = {"mixed": BLOB, "empty": BLOB & False, "full": BLOB | True}[kind]
        # Pillow writes a palette of the values that occur, so index 0 of the full mask is 255.
        path = save(tmp_path / "m.gif", array.astype(np.uint8) * 255)
        assert Image.open(path).mode in ("P", "L")
        np.testing.assert_array_equal(decoded(file_mask([path], image)), array)

    def test_a_palette_index_is_not_a_value(self, tmp_path, image):
        picture = Image.fromarray(np.where(BLOB, 0, 1).astype(np.uint8), "P")
        picture.putpalette([255, 255, 255, 0, 0, 0])
        picture.save(tmp_path / "m.gif")
        np.testing.assert_array_equal(decoded(file_mask([str(tmp_path / "m.gif")], image)), BLOB)

    def test_jpeg_is_cut_at_half(self, tmp_path, image):
        path = save(tmp_path / "m.jpg", BLOB.astype(np.uint8) * 255, quality=30)
        assert ((np.asarray(Image.open(path)) > 0) != BLOB).any()
        np.testing.assert_array_equal(decoded(file_mask([path], image)), BLOB)

    def test_one_bit_and_16_bit_files(self, tmp_path, image):
        one = save(tmp_path / "1.png", BLOB)
        deep = save(tmp_path / "16.png", BLOB.astype(np.uint16) * 65535)
        for path in (one, deep):
            np.testing.assert_array_equal(decoded(file_mask([path], image)), BLOB)

    def test_left_and_right_are_joined(self, tmp_path, image):
        left, right = BLOB.copy(), BLOB.copy()
        left[:, 50:], right[:, :50] = False, False
        paths = [save(tmp_path / f"{name}.png", array) for name, array in (("left", left), ("right", right))]
        np.testing.assert_array_equal(decoded(file_mask(paths, image)), BLOB)

    def test_files_that_overlap_are_joined_with_or(self, tmp_path, image):
        other = np.roll(BLOB, 10, axis=1)
        paths = [save(tmp_path / f"{name}.png", array) for name, array in (("a", BLOB), ("b", other))]
        np.testing.assert_array_equal(decoded(file_mask(paths, image)), BLOB | other)

    def test_a_smaller_mask_is_brought_to_the_image(self, tmp_path, image):
        path = save(tmp_path / "m.png", BLOB[::2, ::2])
        notes = Counter()
        np.testing.assert_array_equal(decoded(file_mask([path], image), notes), BLOB)
        assert notes["resized"] == 1

    def test_a_damaged_or_missing_mask_names_itself(self, tmp_path, image):
        path = Path(save(tmp_path / "m.png", np.random.default_rng(0).random((60, 80)) > 0.5))
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(ValueError, match=r"m\.png: .*truncated"):
            read_mask(file_mask([str(path)], image))
        with pytest.raises(FileNotFoundError, match=r"gone\.png"):
            read_mask(file_mask([str(tmp_path / "gone.png")], image))

    def test_no_file_is_refused(self, image):
        with pytest.raises(ValueError, match="no mask file"):
            read_mask(file_mask([], image))


class TestRoi:
    """CBIS-DDSM does not say which of two files is the mask and which the crop: their content does."""

    @pytest.fixture
    def crop(self, tmp_path):
        return save(tmp_path / "1-1.png", np.random.default_rng(0).integers(0, 4000, (20, 30)).astype(np.uint16))

    @pytest.mark.parametrize("crop_first", [True, False])
    def test_the_mask_is_the_one_with_two_values(self, tmp_path, image, crop, crop_first):
        mask = save(tmp_path / "1-2.png", BLOB.astype(np.uint8) * 255)
        candidates = [crop, mask] if crop_first else [mask, crop]
        np.testing.assert_array_equal(decoded(roi_mask([candidates], image)), BLOB)

    def test_jpeg_too(self, tmp_path, image):
        smooth = np.add.outer(np.arange(60) * 2, np.arange(80)).astype(np.uint8)
        crop = save(tmp_path / "crop.jpg", smooth, quality=90)
        mask = save(tmp_path / "mask.jpg", BLOB.astype(np.uint8) * 255, quality=90)
        np.testing.assert_array_equal(decoded(roi_mask([[crop, mask]], image)), BLOB)

    def test_of_two_masks_the_one_of_the_images_size(self, tmp_path, image):
        small = save(tmp_path / "a.png", ~BLOB[::2, ::2])
        mask = save(tmp_path / "b.png", BLOB)
        np.testing.assert_array_equal(decoded(roi_mask([[small, mask]], image)), BLOB)

    def test_several_abnormalities_are_joined(self, tmp_path, image, crop):
        other = np.roll(BLOB, 25, axis=0)
        masks = [save(tmp_path / f"{name}.png", array) for name, array in (("a", BLOB), ("b", other))]
        np.testing.assert_array_equal(decoded(roi_mask([[crop, masks[0]], [masks[1]]], image)), BLOB | other)

    def test_a_crop_alone_is_no_mask(self, image, crop):
        with pytest.raises(ValueError, match=r"1-1\.png: not a mask. Expected a picture of two values"):
            read_mask(roi_mask([[crop]], image))


class TestFeature:
    @pytest.fixture
    def dataset(self, tmp_path, image):
        path = save(tmp_path / "m.gif", BLOB.astype(np.uint8) * 255)
        values = [
            rle_mask([encode_rle(BLOB)], image, (80, 60)),
            box_mask(np.array([[40, 10, 70, 30]]), image),
            file_mask([path], image),
            roi_mask([[image, path]], image),
            shape_mask([], image),
            None,
        ]
        features = Features({"row": Value("int64"), "mask": RadiographMask()})
        return Dataset.from_dict({"row": list(range(6)), "mask": values}, features=features)

    def check(self, dataset, rows):
        for position, row in enumerate(rows):
            mask = dataset[position]["mask"]
            assert dataset[position]["row"] == row
            if row == 5:
                assert mask is None
            else:
                np.testing.assert_array_equal(np.asarray(mask) > 0, BLOB if row < 4 else BLOB & False)

    def test_rows_decode(self, dataset):
        self.check(dataset, range(6))

    def test_select_and_filter(self, dataset):
        self.check(dataset.select([4, 2, 0]), [4, 2, 0])
        self.check(dataset.filter(lambda row: row > 2, input_columns="row"), [3, 4, 5])

    def test_map_keeps_the_column_and_may_write_one(self, dataset):
        kept = dataset.map(lambda row: {"double": row["row"] * 2})
        assert kept.features["mask"] == RadiographMask()
        self.check(kept, range(6))
        written = dataset.select(range(5)).map(
            lambda row: {"flipped": Image.fromarray(np.asarray(row["mask"])[::-1])},
            features=Features(dataset.features | {"flipped": RadiographMask()}),
        )
        np.testing.assert_array_equal(np.asarray(written[0]["flipped"]) > 0, BLOB[::-1])

    def test_saved_masks_do_not_need_the_files(self, dataset, tmp_path, image):
        dataset.save_to_disk(tmp_path / "saved")
        for name in ("image.png", "m.gif"):
            (tmp_path / name).unlink()
        loaded = load_from_disk(str(tmp_path / "saved"))
        assert loaded.features["mask"] == RadiographMask()
        self.check(loaded, range(6))
        stored = loaded.cast_column("mask", RadiographMask(decode=False))[2]["mask"]
        assert str(tmp_path) not in repr(stored)

    def test_stored_values_are_there_without_decoding(self, dataset):
        stored = dataset.cast_column("mask", RadiographMask(decode=False))
        assert stored[0]["mask"]["kind"] == "rle"
        assert stored[5]["mask"] is None

    def test_arrays_and_numpy_format(self, tmp_path):
        features = Features({"mask": RadiographMask()})
        dataset = Dataset.from_dict({"mask": [BLOB, BLOB.astype(np.uint8)]}, features=features)
        np.testing.assert_array_equal(dataset.with_format("numpy")[1]["mask"] > 0, BLOB)

    def test_paths_are_found_and_rooted(self, tmp_path):
        value = with_root(roi_mask([["a/1.png", "a/2.png"]], "x.png"), tmp_path)
        assert mask_paths(value) == [str(tmp_path / "a/1.png"), str(tmp_path / "a/2.png")]
        assert value["image"] == str(tmp_path / "x.png")
        assert with_root(None, tmp_path) is None
        assert mask_paths(shape_mask([], "x.png")) == []

    def test_embedding_leaves_a_png(self, dataset):
        storage = RadiographMask().embed_storage(dataset.data["mask"].chunk(0)).to_pylist()
        picture = Image.open(io.BytesIO(storage[0]["files"][0]["bytes"]))
        assert picture.mode == "1"
        assert storage[0]["image"] is None


def test_grey_edges_are_counted_and_plain_masks_are_not(tmp_path):
    inside = np.zeros((64, 64), np.uint8)
    inside[20:44, 10:50] = 255
    soft = np.array(Image.fromarray(inside).resize((48, 48), Image.Resampling.BILINEAR))
    pictures = {"mask.png": inside, "faint.png": inside // 255, "small.jpg": inside, "soft.png": soft}
    found = {}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / name)
        notes = Counter()
        read_mask(file_mask([str(tmp_path / name)], None), notes)
        found[name] = notes["grey"]
    assert found == {"mask.png": 0, "faint.png": 0, "small.jpg": 0, "soft.png": 1}


def test_grey_edges_are_said_once_where_nobody_counts(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(masks, "_warned", set())
    edge = BLOB.astype(np.uint8) * 255
    edge[9, 40:70] = 100
    Image.fromarray(edge).save(tmp_path / "soft.png")
    for _ in range(2):
        read_mask(file_mask([str(tmp_path / "soft.png")], None))
    assert caplog.text.count("are cut at half of its maximum") == 1
    assert str(tmp_path) not in caplog.text
