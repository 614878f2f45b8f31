"""What is a mask among picture files: two values, soft edges cut at half; label maps and pictures are refused."""

import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from adaptor_hf.data.boxes import same_shape
from adaptor_hf.data.mask_values import MaskValues, array_values
from adaptor_hf.data.masks import RadiographMask, box_mask, file_mask, read_mask, rle_mask, shape_mask

SIDE = 96


def disc(scale=1, side=SIDE):
    """A disc of the same place in a square, drawn at `scale` times its size."""
    picture = Image.new("L", (side * scale, side * scale))
    ImageDraw.Draw(picture).ellipse(
        [side * scale * 0.2, side * scale * 0.3, side * scale * 0.7, side * scale * 0.8], 255
    )
    return picture


def truth(side=SIDE):
    """Pixels of the disc by their centre."""
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side
    return ((x - 0.45) / 0.25) ** 2 + ((y - 0.55) / 0.25) ** 2 <= 1


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def saved(path, picture, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return str(path)


@pytest.fixture
def image(tmp_path):
    return saved(tmp_path / "image.png", np.full((SIDE, SIDE), 90, np.uint8))


def read(path, image, notes=None, **how):
    return np.asarray(read_mask(file_mask([path], image, **how), notes)) > 0


@pytest.mark.parametrize("filter_name", ["BOX", "BILINEAR", "BICUBIC", "LANCZOS"])
@pytest.mark.parametrize("bits", [8, 16])
def test_soft_edges_are_cut_at_half(tmp_path, image, filter_name, bits):
    """Any value above 0 would make the disc a ring larger on all sides."""
    soft = np.asarray(disc(4).resize((SIDE, SIDE), Image.Resampling[filter_name]))
    assert len(np.unique(soft)) > 2
    assert dice(soft > 0, truth()) < 0.98
    notes = Counter()
    path = saved(tmp_path / "m.png", soft if bits == 8 else soft.astype(np.uint16) * 257)
    assert dice(read(path, image, notes), truth()) > 0.99
    assert notes == {"grey": 1}


@given(st.integers(20, 90), st.integers(20, 90), st.integers(5, 30))
@settings(deadline=None, max_examples=20)
def test_a_half_covered_pixel_decides(width, height, inset):
    """Against a second way: the mask of the pixels whose share that is covered is more than half."""
    fine = np.zeros((height * 4, width * 4), np.uint8)
    fine[inset : height * 4 - inset, inset + 1 : width * 4 - inset - 2] = 255
    covered = fine.reshape(height, 4, width, 4).mean((1, 3))
    inside, _ = array_values(np.rint(covered).astype(np.uint8)).inside()
    np.testing.assert_array_equal(inside, covered >= 127.5)


def label_map(values):
    array = np.zeros((SIDE, SIDE), np.uint8)
    for place, value in enumerate(values):
        array[20:70, 10 + 25 * place : 30 + 25 * place] = value
    return array


@pytest.mark.parametrize("values", [(1, 2), (1, 2, 3), (127, 255), (85, 170, 255), (10, 20, 30), (100, 200)])
def test_label_maps_are_asked_about(tmp_path, image, values):
    path = saved(tmp_path / "m.png", label_map(values))
    with pytest.raises(ValueError, match=r"m\.png: not a mask of two values.*label map.*--mask_values nonzero.*half"):
        read(path, image)
    np.testing.assert_array_equal(read(path, image, values="nonzero"), label_map(values) > 0)
    np.testing.assert_array_equal(read(path, image, values="half"), label_map(values) > max(values) / 2)


def test_colours_of_structures_are_a_label_map(tmp_path, image):
    array = np.zeros((SIDE, SIDE, 3), np.uint8)
    array[20:70, 10:40], array[20:70, 50:80] = (255, 0, 0), (0, 255, 0)
    with pytest.raises(ValueError, match="label map"):
        read(saved(tmp_path / "m.png", array), image)
    array[20:70, 50:80] = (255, 0, 0)
    np.testing.assert_array_equal(read(saved(tmp_path / "m.png", array), image), array.any(2))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_radiograph_is_no_mask(tmp_path, image, suffix):
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    picture = (110 + 80 * np.sin(x / 9) * np.cos(y / 11) + np.random.default_rng(0).normal(0, 6, x.shape)).clip(0, 255)
    path = saved(tmp_path / f"m.{suffix}", picture.astype(np.uint8))
    with pytest.raises(ValueError, match=rf"m\.{suffix}: not a mask.*grey"):
        read(path, image)


def test_a_map_of_probabilities_is_asked_about(tmp_path, image):
    y, x = (np.mgrid[0:SIDE, 0:SIDE] - SIDE / 2) / SIDE
    path = saved(tmp_path / "m.png", (255 * np.exp(-12 * (x**2 + y**2))).astype(np.uint8))
    with pytest.raises(ValueError, match="map of probabilities"):
        read(path, image)
    assert read(path, image, values="half").any()


def test_a_jpeg_of_0_and_1_is_refused(tmp_path, image):
    path = saved(tmp_path / "m.jpg", truth().astype(np.uint8) * 3, quality=95)
    with pytest.raises(ValueError, match=r"brightest value is .* of 255.*PNG"):
        read(path, image)


def test_a_mask_without_background_is_refused_and_a_full_one_is_not(tmp_path, image):
    with pytest.raises(ValueError, match="none is 0"):
        read(saved(tmp_path / "m.png", np.where(truth(), 2, 1).astype(np.uint8)), image)
    assert read(saved(tmp_path / "full.png", np.full((SIDE, SIDE), 255, np.uint8)), image).all()
    assert not read(saved(tmp_path / "empty.png", np.zeros((SIDE, SIDE), np.uint8)), image).any()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 0, 0)])
def test_a_drawing_on_a_transparent_ground_is_its_opacity(tmp_path, image, colour):
    array = np.zeros((SIDE, SIDE, 4), np.uint8)
    array[truth()] = (*colour, 255)
    np.testing.assert_array_equal(read(saved(tmp_path / "m.png", array), image), truth())
    opaque = np.full((SIDE, SIDE, 4), 255, np.uint8)
    opaque[~truth(), :3] = 0
    np.testing.assert_array_equal(read(saved(tmp_path / "o.png", opaque), image), truth())


def test_an_inverted_mask_is_counted(tmp_path, image):
    notes = Counter()
    read(saved(tmp_path / "m.png", (~truth()).astype(np.uint8) * 255), image, notes)
    read(saved(tmp_path / "n.png", truth().astype(np.uint8) * 255), image, notes)
    read(saved(tmp_path / "full.png", np.full((SIDE, SIDE), 255, np.uint8)), image, notes)
    assert notes == {"inverted": 1}


class TestSizes:
    @pytest.mark.parametrize("size", [(48, 48), (192, 192), (95, 96), (97, 96), (33, 32)])
    def test_scaled_copies_are_taken(self, tmp_path, image, size):
        notes = Counter()
        path = saved(tmp_path / "m.png", disc().resize(size, Image.Resampling.NEAREST))
        assert dice(read(path, image, notes), truth()) > 0.93
        assert notes["resized"] == 1

    @pytest.mark.parametrize("size", [(96, 80), (48, 40), (128, 96)])
    def test_another_shape_is_refused_unless_asked(self, tmp_path, image, size):
        path = saved(tmp_path / "m.png", disc().resize(size, Image.Resampling.NEAREST))
        with pytest.raises(ValueError, match=rf"image\.png: the mask has {size[0]} x {size[1]} .*--mask_size stretch"):
            read(path, image)
        assert dice(read(path, image, size="stretch"), truth()) > 0.93

    def test_exchanged_sides_are_named(self, tmp_path):
        image = saved(tmp_path / "image.png", np.zeros((60, 80), np.uint8))
        path = saved(tmp_path / "m.png", np.ones((80, 60), bool))
        with pytest.raises(ValueError, match=r"sides are exchanged.*EXIF"):
            read(path, image)

    def test_a_mask_stored_on_its_side_is_turned_upright(self, tmp_path):
        image = saved(tmp_path / "image.png", np.zeros((60, 80), np.uint8))
        upright = np.zeros((60, 80), bool)
        upright[5:20, 50:75] = True
        exif = Image.Exif()
        exif[0x0112] = 6
        path = saved(tmp_path / "m.png", np.rot90(upright).astype(np.uint8) * 255, exif=exif)
        np.testing.assert_array_equal(read(path, image), upright)

    def test_run_lengths_of_another_frame(self, tmp_path):
        image = saved(tmp_path / "image.png", np.zeros((60, 80), np.uint8))
        with pytest.raises(ValueError, match="the mask was made for 64 x 64 pixels, the image 80 x 60"):
            read_mask(rle_mask(["3 5"], image, (64, 64)))

    @given(st.integers(20, 3000), st.integers(20, 3000), st.floats(0.05, 1))
    @settings(deadline=None)
    def test_every_rounded_copy_has_the_same_shape(self, width, height, scale):
        copy = tuple(max(1, round(side * scale)) for side in (width, height))
        assert same_shape((width, height), copy)
        assert same_shape(copy, (width, height))
        larger = (4 * width, 5 * height)
        assert not same_shape((width, height), larger)


class TestShapes:
    @pytest.mark.parametrize(
        ("box", "message"),
        [
            ((70, 10, 30, 40), "corners are exchanged.*width and height"),
            ((10, 10, 10, 40), "no area"),
            ((100, 10, 120, 40), "lies outside the image of 96 x 96"),
            ((-30, -30, -5, -5), "lies outside"),
            ((np.nan, 1, 2, 3), "not finite|a shape is"),
        ],
    )
    @pytest.mark.parametrize("kind", ["rectangle", "ellipse"])
    def test_boxes_that_are_none_are_refused(self, image, kind, box, message):
        text = " ".join([kind, *map(str, box)])
        with pytest.raises(ValueError, match=rf"image\.png: .*({message})"):
            read_mask(shape_mask([text], image))

    def test_what_leaves_the_image_is_cut_and_counted(self, image):
        notes = Counter()
        read_mask(box_mask(np.array([[80, 80, 120, 130]]), image), notes)
        read_mask(box_mask(np.array([[80, 80, 96.5, 96]]), image), notes)
        assert notes == {"cut": 1}


def test_pictures_and_arrays_by_the_same_rule():
    feature = RadiographMask()
    palette = Image.fromarray(np.where(truth(), 0, 1).astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    soft = disc(4).resize((SIDE, SIDE), Image.Resampling.BOX)
    for given_mask in (palette, soft, np.asarray(soft), truth(), truth().astype(float)):
        assert dice(np.asarray(feature.decode_example(feature.encode_example(given_mask))) > 0, truth()) > 0.99
    with pytest.raises(ValueError, match="label map"):
        feature.encode_example(label_map((1, 2)))
    with pytest.raises(ValueError, match="NaN"):
        feature.encode_example(np.where(truth(), np.nan, 0))


def test_bytes_and_paths_are_read_alike(tmp_path):
    stream = io.BytesIO()
    disc().save(stream, "PNG")
    path = saved(tmp_path / "m.png", disc())
    assert (MaskValues.read(path).inside()[0] == MaskValues.read(stream.getvalue()).inside()[0]).all()


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="--mask_values is one of binary, half, nonzero, got 'any'"):
        file_mask(["m.png"], None, values="any")
    with pytest.raises(ValueError, match="--mask_size is one of scaled, stretch"):
        file_mask(["m.png"], None, size="resize")


def test_a_table_says_how_its_masks_are_read(tmp_path, image):
    from adaptor_hf.tasks.arguments import DownstreamArguments, table_options
    from adaptor_hf.tasks.data import load_table

    saved(tmp_path / "map.png", label_map((1, 2)))
    saved(tmp_path / "wide.png", np.pad(truth(), ((0, 0), (0, 32))).astype(np.uint8) * 255)
    (tmp_path / "t.csv").write_text("image,lungs\nimage.png,map.png\nimage.png,NA\nimage.png,\nimage.png,wide.png\n")
    table = load_table(tmp_path / "t.csv", mask_column="lungs", image_mode="L")
    assert [table[row]["mask"] for row in (1, 2)] == [None, None]
    for row, message in ((0, "--mask_values nonzero"), (3, "--mask_size stretch")):
        with pytest.raises(ValueError, match=message):
            table[row]["mask"]
    arguments = DownstreamArguments(task="segmentation", model="m", table="t.csv", mask_column="lungs",
                                    mask_values="nonzero", mask_size="stretch")  # fmt: skip
    options = {name: table_options(arguments)[name] for name in ("mask_column", "mask_values", "mask_size")}
    asked = load_table(tmp_path / "t.csv", image_mode="L", **options)
    np.testing.assert_array_equal(np.asarray(asked[0]["mask"]) > 0, label_map((1, 2)) > 0)
    assert asked[3]["mask"].size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("../m.png", r'a mask path has "\.\." in data row 1'),
        ("https://x.org/m.png", "a mask path is a URL in data row 1"),
        ("/elsewhere/m.png", "a mask path is absolute and not under the image root in data row 1"),
        ("m.nii.gz", "a mask path names a file that is not read, in data row 1 .*NIfTI"),
    ],
)
def test_mask_paths_are_read_as_image_paths_are(tmp_path, image, cell, said):
    from adaptor_hf.tasks.data import load_table

    (tmp_path / "masks").mkdir()
    saved(tmp_path / "masks" / "m.png", truth().astype(np.uint8) * 255)
    options = {"mask_column": "mask", "image_mode": "L", "image_root": tmp_path}
    (tmp_path / "t.csv").write_text("image,mask\nimage.png,./masks\\m.png\nimage.png," + cell + "\n")
    with pytest.raises(ValueError, match=said):
        load_table(tmp_path / "t.csv", **options)
    (tmp_path / "t.csv").write_text("image,mask\nimage.png,./masks\\m.png\n")
    table = load_table(tmp_path / "t.csv", **options)
    np.testing.assert_array_equal(np.asarray(table[0]["mask"]) > 0, truth())


def test_masks_of_a_saved_data_set_are_a_mask_column(tmp_path, image):
    from datasets import Dataset, Features

    from adaptor_hf.data.features import RadiographImage
    from adaptor_hf.tasks.data import load_table

    runs = box_mask(np.array([[10, 20, 50, 40]]), image)
    columns = {"image": [image, image], "mask": [runs, None]}
    dataset = Dataset.from_dict(columns, features=Features({"image": RadiographImage(), "mask": RadiographMask()}))
    dataset.save_to_disk(tmp_path / "saved")
    loaded = load_table(tmp_path / "saved", mask_column="mask", image_mode="L")
    assert np.argwhere(np.asarray(loaded[0]["mask"])).min(0).tolist() == [20, 10]
    assert loaded[1]["mask"] is None
