"""Augmented views: their geometry against warped coordinates, their seeds, and what a tower gets of them."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import v2

from adaptor_hf.data.__main__ import main as data_command
from adaptor_hf.data.content_keys import digest
from adaptor_hf.data.view_recipes import REFERENCE_SIDE
from adaptor_hf.data.views import (
    RECIPES,
    Recipe,
    ViewGeometry,
    make_view,
    view_pixels,
    view_recipe,
    view_seed_of,
    view_size,
)
from adaptor_hf.image_processing_adaptor import AdaptorImageProcessor

DISTINCT = ("crop", "mgca", "convirt", "slip", "byol", "pixelpro", "medclip")  # the others are these by another name
SIZES = [(401, 300), (300, 401), (260, 260)]


def picture(size: tuple[int, int] = (401, 300), mode: str = "L", seed: int = 0) -> Image.Image:
    """Smooth and without symmetry."""
    shape = (9, 7) if mode == "L" else (9, 7, 3)
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def grey_values_alone(recipe: Recipe) -> Recipe:
    return replace(recipe, jitter=0.0, grey=0.0, blur=0.0)


def seen(geometry: ViewGeometry, height: int, width: int) -> np.ndarray:
    """(2, H, W): x and y in the image of the centre of each pixel of a view, as shares."""
    rows, columns = np.mgrid[0:height, 0:width]
    points = np.stack([(columns + 0.5) / width, (rows + 0.5) / height, np.ones((height, width))])
    return np.einsum("ij,jhw->ihw", geometry.matrix, points)


def within(known: np.ndarray) -> np.ndarray:
    """Without the edges of (H, W) known pixels, where resizing and turning mix in what is outside."""
    known[:2], known[-2:], known[:, :2], known[:, -2:] = False, False, False, False
    inside = np.asarray(Image.fromarray(known.astype(np.uint8)).filter(ImageFilter.MinFilter(9))) > 0
    assert inside.sum() > 1000
    return inside


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DISTINCT)
def test_geometry_is_where_torchvision_takes_the_coordinates(name, size):
    # The same draws by the functions of torchvision's first version, on an image of float coordinates.
    recipe, (width, height), side = RECIPES[name], size, 96
    x, y = torch.meshgrid((torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height, indexing="xy")
    coordinates = torch.stack([x, y, torch.ones(height, width)])
    if recipe.pad_to_square:
        left, top = ((max(size) - length) // 2 for length in size)
        left, top = max(size) - width - left, max(size) - height - top
        margins = (left, top, max(size) - width - left, max(size) - height - top)
        coordinates = v2.functional.pad(coordinates, margins)
    for seed in range(8):
        _, geometry = make_view(picture(size), recipe, seed, side)
        torch.manual_seed(seed)
        drawn_on = torch.empty(3, max(size), max(size)) if recipe.stretch_to_square else coordinates
        crop = transforms.RandomResizedCrop.get_params(drawn_on, recipe.scale, recipe.ratio)
        if recipe.stretch_to_square:
            # Of the stretched image, in whole pixels of the image itself.
            (top, left, down, across), (x_share, y_share) = crop, np.divide(size, max(size))
            ends = round((left + across) * x_share), round((top + down) * y_share)
            left, top = round(left * x_share), round(top * y_share)
            crop = (top, left, ends[1] - top, ends[0] - left)
        if recipe.turn_first:
            # The whole becomes as large as the crop's side says.
            full, (top, left, down, across) = coordinates.shape[-1], crop
            large = round(full * side / across)
            expected = v2.functional.resize(coordinates, [large, large], antialias=False)
        else:
            large = side
            expected = v2.functional.resized_crop(coordinates, *crop, (side, side), antialias=False)
        if torch.rand(()) < recipe.flip:
            expected = v2.functional.horizontal_flip(expected)
        if recipe.turns:
            moved = transforms.RandomAffine.get_params(
                (-recipe.degrees, recipe.degrees), (recipe.translate,) * 2, recipe.zoom, None, [large, large]
            )
            bilinear = v2.InterpolationMode.BILINEAR
            expected = v2.functional.affine(expected, *moved, interpolation=bilinear)
        if recipe.turn_first:
            corner = [min(round(place * large / full), large - side) for place in (top, left)]
            expected = v2.functional.crop(expected, *corner, side, side)
        found = seen(geometry, side, side)
        inside = within(expected[2].numpy() > 1 - 1e-6)
        np.testing.assert_allclose(found[:, inside], expected[:2].numpy()[:, inside], atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DISTINCT)
def test_geometry_is_where_the_pixels_are_from(name, size):
    width, height = size
    ramps = [np.tile(255 * (np.arange(width) + 0.5) / width, (height, 1))]
    ramps.append(np.tile(255 * (np.arange(height) + 0.5) / height, (width, 1)).T)
    for seed in range(4):
        for axis, ramp in enumerate(ramps):
            image = Image.fromarray(np.rint(ramp).astype(np.uint8))
            view, geometry = make_view(image, grey_values_alone(RECIPES[name]), seed, 96)
            # Colours are drawn last, so that they do not change what is seen.
            assert (make_view(image, name, seed, 96)[1].matrix == geometry.matrix).all()
            white, _ = make_view(Image.new("L", size, 255), grey_values_alone(RECIPES[name]), seed, 96)
            inside = within(np.asarray(white) == 255)
            error = 255 * (np.asarray(view) / 255 - seen(geometry, 96, 96)[axis])[inside]
            # Rounding; turning cuts off what is below a grey level.
            assert abs(error.mean() + (0.5 if RECIPES[name].turns else 0)) < 0.2
            assert error.std() < 0.6


@pytest.mark.parametrize("name", DISTINCT)
def test_box_of_a_view_is_its_crop(name):
    image, flips = picture(), []
    for seed in range(12):
        _, geometry = make_view(image, name, seed)
        top, left, height, width, flipped = geometry.box
        assert geometry.box.dtype == np.float32
        flips.append(flipped)
        corners = geometry.matrix @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
        np.testing.assert_allclose(corners.min(axis=1), [left, top], atol=1e-6)
        np.testing.assert_allclose(corners.max(axis=1), [left + width, top + height], atol=1e-6)
        if not RECIPES[name].turns:
            pixels = np.array([top * 300, left * 401, height * 300, width * 401])
            np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
            crop = image.crop((pixels[[1, 0, 1, 0]] + [0, 0, pixels[3], pixels[2]]).round().astype(int).tolist())
            plain = crop.resize((224, 224), Image.Resampling.BICUBIC)
            view, _ = make_view(image, grey_values_alone(RECIPES[name]), seed)
            plain = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else plain
            assert view.tobytes() == plain.tobytes()
    assert set(flips) == ({0, 1} if RECIPES[name].flip else {0})


def test_mgca_crops_224_of_256_of_the_padded_square():
    for seed in range(5):
        top, left, height, width, _ = make_view(picture((400, 200)), "mgca", seed)[1].box
        assert (height * 200, width * 400) == (350, 350)
        assert -0.5 <= top <= 1.5 - height
        assert 0 <= left <= 1 - width


def test_crop_leaves_grey_values_and_sides_alone():
    # The heart would be on the right, and the report still say left.
    recipe = view_recipe(None)
    assert recipe is RECIPES["crop"]
    assert (recipe.flip, recipe.jitter, recipe.grey, recipe.blur, recipe.turns) == (0, 0, 0, 0, False)
    areas = [float(np.prod(make_view(picture(), None, seed)[1].box[2:4])) for seed in range(200)]
    assert min(areas) >= 0.49
    assert max(areas) <= 1
    assert 0.6 < np.mean(areas) < 0.8


def test_flips_and_colours_come_as_often_as_the_recipe_says():
    image, counts = picture((64, 64), "RGB"), np.zeros(3)
    for seed in range(300):
        view, geometry = make_view(image, "slip", seed, 32)
        plain, _ = make_view(image, grey_values_alone(RECIPES["slip"]), seed, 32)
        values = np.asarray(view).astype(int)
        grey = np.ptp(values, axis=2).max() == 0
        counts += [geometry.box[4], grey, (values == np.asarray(plain)).all()]
    # Neither jittered, made grey, nor blurred: 0.2 * 0.8 * 0.5.
    assert counts / 300 == pytest.approx([0.5, 0.2, 0.08], abs=0.08)


def test_a_view_depends_on_its_seed_alone():
    image, state = picture(), torch.get_rng_state()
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()
    first = make_view(image, "lovt", 7)
    assert (torch.get_rng_state() == state).all()
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state
    torch.manual_seed(123)
    torch.rand(10)
    make_view(image, "slip", 8)
    again = make_view(image.copy(), "lovt", 7)
    assert first[0].tobytes() == again[0].tobytes()
    assert (first[1].matrix == again[1].matrix).all()
    assert make_view(image, "lovt", 8)[0].tobytes() != first[0].tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", ["convirt", "slip"])
def test_colours_are_those_of_torchvision(name, mode):
    recipe, image, changed = RECIPES[name], picture((80, 60), mode), 0
    ranges = recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue
    steps = [v2.RandomApply([v2.ColorJitter(*ranges)], recipe.jitter), v2.RandomGrayscale(recipe.grey)]
    for seed in range(40):
        view, _ = make_view(image, replace(recipe, blur=0.0), seed, 48)
        plain, _ = make_view(image, grey_values_alone(recipe), seed, 48)
        torch.manual_seed(seed)
        transforms.RandomResizedCrop.get_params(image, recipe.scale, recipe.ratio)
        torch.rand(1)
        if recipe.turns:
            v2.RandomAffine(recipe.degrees, (recipe.translate,) * 2, recipe.zoom).make_params([plain])
        assert view.tobytes() == v2.Compose(steps)(plain).tobytes()
        changed += view.tobytes() != plain.tobytes()
    assert changed > 25


def test_crops_of_long_images_are_those_of_torchvision():
    for size in [(900, 60), (50, 700), (300, 140)]:
        for seed in range(20):
            _, geometry = make_view(picture(size), "crop", seed, 16)
            torch.manual_seed(seed)
            top, left, height, width = transforms.RandomResizedCrop.get_params(
                picture(size), (0.5, 1.0), (3 / 4, 4 / 3)
            )
            expected = [top / size[1], left / size[0], height / size[1], width / size[0], 0]
            np.testing.assert_allclose(geometry.box, expected, atol=1e-6)


def test_views_made_in_threads_are_the_same_and_leave_other_draws_alone():
    image, seeds = picture((60, 80), "RGB"), range(60)
    expected = [make_view(image, "slip", seed, 32)[0].tobytes() for seed in seeds]
    torch.manual_seed(1)
    alone = [torch.rand(3).tolist() for _ in range(400)]
    torch.manual_seed(1)
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda seed: make_view(image, "slip", seed, 32)[0].tobytes(), seeds)
        beside = [torch.rand(3).tolist() for _ in range(400)]
        assert list(made) == expected
    assert beside == alone


def test_seeds_are_of_seed_number_and_content():
    contents = [digest(bytes([number])) for number in range(20)]
    seeds = {view_seed_of(seed, number, content) for seed in range(12) for number in range(12) for content in contents}
    assert len(seeds) == 12 * 12 * 20
    assert min(seeds) >= 0
    assert max(seeds) < 1 << 63
    assert view_seed_of(1, 11, contents[0]) != view_seed_of(11, 1, contents[0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("grey", [True, False])
def test_a_view_that_shows_what_the_processor_crops_has_its_pixels(mode, grey):
    # A crop of the whole image by another way: resize to 256 and crop 224 is a crop of 7/8 resized to 224.
    image = picture((512, 512), mode)
    values = {"image_mean": 0.5, "image_std": 0.25}
    processor = AdaptorImageProcessor(size={"shortest_edge": 256}, do_grayscale=grey, **values)
    plain = processor(images=[image], return_tensors="pt")["pixel_values"][0]
    inner = image.crop((32, 32, 480, 480))
    pixels, (geometry,) = view_pixels(inner, processor, Recipe(scale=(1, 1), ratio=(1, 1)), [3])
    np.testing.assert_array_equal(geometry.box, [0, 0, 1, 1, 0])
    assert pixels.shape == (1, 1 if grey else 3, 224, 224)
    assert pixels.dtype == torch.float32
    assert (pixels[0] - plain).abs()[:, 2:-2, 2:-2].max() < 2.5 / 255 / 0.25


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 224, "width": 224}, "do_center_crop": False},
        {"size": {"shortest_edge": 224}, "do_pad_to_square": True},
        {"size": {"shortest_edge": 224}, "do_center_crop": False},
        {"size": {"height": 128, "width": 96}, "do_center_crop": False, "resample": 2},
    ],
)
def test_a_view_of_the_whole_image_is_the_plain_image(options):
    processor = AdaptorImageProcessor(**options)
    image = picture((300, 300))
    plain = processor(images=[image], return_tensors="pt")["pixel_values"]
    whole, _ = view_pixels(image, processor, Recipe(scale=(1, 1), ratio=(1, 1)), [3])
    assert torch.equal(whole, plain)


def test_a_view_is_cropped_and_resized_once():
    processor = AdaptorImageProcessor(size={"shortest_edge": 256}, do_pad_to_square=True)
    pixels, geometries = view_pixels(picture(), processor, "crop", [1, 2])
    assert len(pixels) == len(geometries) == 2
    for seed, found in zip([1, 2], pixels, strict=True):
        view = np.asarray(make_view(picture(), "crop", seed)[0], dtype=np.float32) / np.float32(255)
        mean, std = (np.float32(value)[:, None, None] for value in (processor.image_mean, processor.image_std))
        np.testing.assert_allclose(found.numpy(), (view - mean) / std, atol=1e-6)


def test_view_size_is_what_the_processor_makes_of_a_square_image():
    for options in (
        {"size": {"shortest_edge": 256}},
        {"size": {"shortest_edge": 256}, "do_center_crop": False},
        {"size": {"height": 40, "width": 30}, "do_center_crop": False},
        {"crop_size": {"height": 48, "width": 36}},
    ):
        processor = AdaptorImageProcessor(**options)
        pixels = processor(images=[picture((300, 300))], return_tensors="pt")["pixel_values"]
        assert view_size(processor) == pixels.shape[2:]
    with pytest.raises(ValueError, match="images of any size"):
        view_size(AdaptorImageProcessor(do_resize=False, do_center_crop=False))


def test_blur_grows_with_the_side_of_a_view():
    recipe = Recipe(scale=(1, 1), ratio=(1, 1), blur=1.0, blur_sigma=(3.0, 3.0))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 448), dtype=np.uint8))
    small = make_view(image.resize((REFERENCE_SIDE,) * 2, Image.Resampling.BOX), recipe, 1)[0]
    large = make_view(image, recipe, 1, 2 * REFERENCE_SIDE)[0].resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(large).astype(int)).mean() < 1.5


def test_recipes_of_one_kind_have_one_key_and_others_have_others():
    assert RECIPES["mgca"].key == RECIPES["gloria"].key
    assert RECIPES["lovt"].key == RECIPES["convirt"].key
    assert all(any(recipe == RECIPES[name] for name in DISTINCT) for recipe in RECIPES.values())
    assert len({str(recipe.key) for recipe in RECIPES.values()}) == len(DISTINCT)
    assert replace(RECIPES["crop"], scale=(0.4, 1.0)).key != RECIPES["crop"].key


# Of OBJECTIVES of the reference code, [C]: 2.1 MGCA, 3.4 and 3.5 LoVT and its baselines, 4 SLIP, 5 MedCLIP, 6 GLoRIA.
# Where it states no number: ConVIRT's are those that LoVT names as ConVIRT's; the crop of RandomResizedCrop without
# arguments; sigmas, the stretched squares, and zoom and move of MedCLIP from LoVT's `prepare_transform` and MedCLIP's
# script. Crops are shares of a side where the code crops a fixed square, of the area elsewhere.
PUBLISHED = """
recipe   square  crop       ratio   flip turn move  zoom     whole bright contrast satur. hue jit grey blur sigma
crop     -       .5-1       3/4-4/3 0    0    0     1-1      no    1-1    1-1      1-1    0   0   0    0    -
mgca     pad     side:.875  1-1     0    0    0     1-1      no    1-1    1-1      1-1    0   0   0    0    -
gloria   pad     side:.875  1-1     0    0    0     1-1      no    1-1    1-1      1-1    0   0   0    0    -
convirt  -       .6-1       3/4-4/3 .5   20   .1    .95-1.05 no    .6-1.4 .6-1.4   1-1    0   1   0    1    .1-3
lovt     -       .6-1       3/4-4/3 .5   20   .1    .95-1.05 no    .6-1.4 .6-1.4   1-1    0   1   0    1    .1-3
slip     -       .08-1      3/4-4/3 .5   0    0     1-1      no    .6-1.4 .6-1.4   .6-1.4 .1  .8  .2   .5   .1-2
simclr   -       .08-1      3/4-4/3 .5   0    0     1-1      no    .6-1.4 .6-1.4   .6-1.4 .1  .8  .2   .5   .1-2
byol     stretch .08-1      3/4-4/3 .5   0    0     1-1      no    .2-1.8 .2-1.8   1-1    0   .8  0    .5   .1-2
pixelpro stretch side:.6-.8 1-1     .25  0    0     1-1      no    .2-1.8 .2-1.8   1-1    0   .8  0    .5   .1-2
medclip  pad     side:.875  1-1     .5   10   .0625 .8-1.1   yes   .8-1.2 .8-1.2   1-1    0   1   0    0    -
"""


@pytest.mark.parametrize("line", PUBLISHED.splitlines()[2:], ids=lambda line: line.split()[0])
def test_recipes_have_the_published_values(line):
    def numbers(cell: str) -> list[float]:
        values = [float(Fraction(value)) for value in cell.removeprefix("side:").split("-")]
        return [value**2 for value in values] if cell.startswith("side:") else values

    name, square, crop, ratio, *cells, sigma = line.split()
    recipe = RECIPES[name]
    assert (recipe.pad_to_square, recipe.stretch_to_square) == (square == "pad", square == "stretch")
    assert recipe.scale == pytest.approx(numbers(crop) if "-" in crop else numbers(crop) * 2)
    assert recipe.ratio == pytest.approx(numbers(ratio))
    turned = ["degrees", "translate", "zoom", "turn_first"]
    fields = ["flip", *turned, "brightness", "contrast", "saturation", "hue", "jitter", "grey", "blur"]
    for field, cell in zip(fields, cells, strict=True):
        value = getattr(recipe, field)
        if isinstance(value, bool):
            assert value == (cell == "yes")
        else:
            assert value == pytest.approx(numbers(cell) if "-" in cell else float(cell)), field
    assert (recipe.blur == 0) == (sigma == "-")
    assert sigma == "-" or recipe.blur_sigma == pytest.approx(numbers(sigma))


def test_every_recipe_is_in_the_published_table():
    assert [line.split()[0] for line in PUBLISHED.splitlines()[2:]] == list(RECIPES)


def test_crops_of_a_stretched_square_have_its_ratio():
    # 0.6 to 0.8 of the width and the same share of the height, whatever the shape of the image.
    for seed in range(20):
        _, _, height, width, _ = make_view(picture((400, 200)), "pixelpro", seed)[1].box
        assert 0.595 <= width <= 0.805
        assert height == pytest.approx(width, abs=0.006)


def test_what_is_turned_first_has_black_only_from_outside_of_the_image():
    # Of a square image 22 % of such views reach beyond it; turned after the crop, all would have black corners.
    image, black = Image.new("L", (256, 256), 255), 0
    upright = replace(RECIPES["medclip"], zoom=(1.0, 1.0), translate=0.0, jitter=0.0)
    for seed in range(25):
        view, geometry = make_view(image, upright, seed, 112)
        reached = seen(geometry, 112, 112)
        inside = ((reached > 0) & (reached < 1)).all(axis=0)
        known = np.asarray(view) > 0
        assert (known == inside).mean() > 0.99
        black += not inside.all()
    after = replace(upright, turn_first=False)
    turned = sum((np.asarray(make_view(image, after, seed, 112)[0]) == 0).any() for seed in range(25))
    assert turned >= 24
    assert black < turned


def test_what_is_no_recipe_is_refused():
    with pytest.raises(ValueError, match="view_recipe must be one of crop, mgca"):
        view_recipe("crops")
    for name, value in {"flip": 1.5, "scale": (0.0, 1.0), "zoom": (2.0, 1.0), "hue": 0.6, "degrees": -1}.items():
        with pytest.raises(ValueError, match=name):
            Recipe(**{name: value})
    with pytest.raises(ValueError, match="turn_first of a view recipe needs degrees"):
        Recipe(turn_first=True)
    with pytest.raises(ValueError, match="not both"):
        Recipe(pad_to_square=True, stretch_to_square=True)
    with pytest.raises(ValueError, match='mode "L" or "RGB", got \'F\''):
        make_view(picture().convert("F"), "crop", 1)


def test_sheet_shows_the_views_of_a_cache_and_where_they_are_from(tmp_path, capsys):
    paths = [tmp_path / "tall.png", tmp_path / "wide.png"]
    for path, size in zip(paths, [(100, 150), (180, 90)], strict=True):
        picture(size, "RGB").save(path)
    words = ["views", *map(str, paths), "--views", "2", "--view_recipe", "slip", "--view_seed", "4"]
    assert data_command([*words, "--to", str(tmp_path / "sheet.png")]) == 0
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (3 * 232, 2 * 232)
    for row, path in enumerate(paths):
        for number in range(2):
            seed = view_seed_of(4, number, digest(path.read_bytes()))
            view, geometry = make_view(Image.open(path), "slip", seed)
            left, top = 4 + 232 * (number + 1), 4 + 232 * row
            shown = np.asarray(sheet.crop((left, top, left + 224, top + 224)))
            # Inside of the second frame, which flipped ones have.
            np.testing.assert_array_equal(shown[8:-8, 8:-8], np.asarray(view)[8:-8, 8:-8])
            # The image takes 0.8 of a panel; the corners of the crop have the frame's colour there.
            size = np.array(Image.open(path).size) * 0.8 * 224 / max(Image.open(path).size)
            y, x = geometry.box[:2] * size[::-1] + (224 - size[::-1]) / 2 + 4
            near = np.asarray(
                sheet.crop((round(x) - 2, 232 * row + round(y) - 2, round(x) + 3, 232 * row + round(y) + 3))
            )
            frame = sheet.getpixel((left - 3, top - 3))
            # What is drawn later may lie over it.
            assert number == 0 or (near == frame).all(axis=2).any()
    assert data_command(["views", str(tmp_path / "none.png"), "--to", str(tmp_path / "other.png")]) == 2
    assert "none.png: no such image file" in capsys.readouterr().err
    assert not (tmp_path / "other.png").exists()
    assert data_command([*words[:2], "--views", "0", "--to", str(tmp_path / "other.png")]) == 2
    assert "views must be at least 1, got 0" in capsys.readouterr().err
