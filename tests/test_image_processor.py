"""AdaptorImageProcessor: the library's numbers, every kind of input, and refusal of what would be silently wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    BitImageProcessorPil,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    ConvNextImageProcessorPil,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    SegformerImageProcessor,
    SiglipImageProcessor,
    SiglipImageProcessorPil,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from adaptor_hf.image_processing_adaptor import (
    AdaptorImageProcessor,
    image_processor_fields,
    translate_image_processor,
)
from adaptor_hf.tower_sources_adaptor import timm_image_processor_fields

XRV = {"do_grayscale": True, "image_mean": [0.5], "image_std": [0.5 / 1024], "resample": 2}


def photo(height=90, width=70, channels=3, seed=0):
    """Smooth colours with some noise, uint8 (H, W, C)."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 2, columns * 3, rows + columns][:channels]
    noise = np.random.default_rng(seed).integers(0, 30, (height, width, channels))
    return ((np.stack(planes, -1) + noise) % 256).astype(np.uint8)


def process(image, **fields):
    return AdaptorImageProcessor(**fields)(image, return_tensors="pt").pixel_values


@pytest.mark.parametrize(
    "processor",
    [
        BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 33, "width": 32}),
        ViTImageProcessorPil(size={"height": 40, "width": 24}, resample=2),
        SiglipImageProcessorPil(size={"height": 31, "width": 31}),
        ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=0.875),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    ],
)
@pytest.mark.parametrize("shape", [(90, 70), (45, 71), (64, 64)])
def test_a_translated_processor_gives_the_library_numbers(processor, shape):
    image = Image.fromarray(photo(*shape))
    expected = processor(image, return_tensors="pt").pixel_values
    fields = json.loads(json.dumps(translate_image_processor(processor)))
    got = process(image, **fields)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("processor_class", [BitImageProcessor, ViTImageProcessor, CLIPImageProcessor])
def test_the_torchvision_variant_differs_by_rounding_only(processor_class):
    processor = processor_class()
    image = Image.fromarray(photo(300, 280))
    difference = (
        process(image, **translate_image_processor(processor)) - processor(image, return_tensors="pt").pixel_values
    )
    assert difference.abs().max() < 3 / 255 / min(processor.image_std)


@pytest.mark.parametrize("processor", [DeiTImageProcessor(), SiglipImageProcessor(), ConvNextImageProcessor()])
def test_common_processors_translate(processor):
    fields = translate_image_processor(processor)
    assert image_processor_fields(AdaptorImageProcessor(**fields)) == fields


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (EfficientNetImageProcessor(), "rescale|_preprocess"),
        (SegformerImageProcessor(), "_preprocess|preprocess"),
        (CLIPImageProcessor(do_pad=True, pad_size={"height": 256, "width": 256}), "do_pad"),
        (CLIPImageProcessor(size={"longest_edge": 224}), "longest_edge"),
    ],
)
def test_a_processor_with_other_steps_is_refused(processor, message):
    with pytest.raises(ValueError, match=message):
        translate_image_processor(processor)


def test_timm_transform_is_reproduced():
    timm = pytest.importorskip("timm")
    # Sizes whose margins are even, for torchvision's crop rounds odd ones to even and transformers' rounds down.
    for architecture, height in (
        ("resnet10t", 260),
        ("swin_tiny_patch4_window7_224", 300),
        ("vit_base_patch14_dinov2", 260),
    ):
        pretrained = timm.get_pretrained_cfg(architecture).to_dict()
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=pretrained))
        image = Image.fromarray(photo(height, 260))
        assert torch.allclose(process(image, **timm_image_processor_fields(pretrained))[0], transform(image), atol=1e-5)
    squash = {**pretrained, "crop_mode": "squash"}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=squash))
    assert torch.allclose(process(image, **timm_image_processor_fields(squash))[0], transform(image), atol=1e-5)
    with pytest.raises(ValueError, match="border"):
        timm_image_processor_fields({**pretrained, "crop_mode": "border"})


def test_xrv_range_is_that_of_torchxrayvision():
    gray = photo(64, 64, 1)[..., 0]
    got = process(gray, do_resize=False, do_center_crop=False, **XRV)
    assert got.shape == (1, 1, 64, 64)
    # torchxrayvision.utils.normalize(image, 255), written out
    expected = (2 * (gray.astype(np.float32) / 255) - 1.0) * 1024
    assert np.allclose(got[0, 0].numpy(), expected, atol=1e-2)


def test_every_kind_of_input_gives_the_same_pixels(tmp_path):
    pixels = photo()
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    first = torch.from_numpy(pixels)
    reference = process(image)
    assert reference.dtype == torch.float32
    for same in (
        pixels,
        first,
        first.permute(2, 0, 1),
        first.to(torch.int64),
        str(tmp_path / "image.png"),
        image.convert("RGBA"),
        np.dstack([pixels, np.full((90, 70), 255, np.uint8)]),
    ):
        assert torch.equal(process(same), reference)
    batch = AdaptorImageProcessor()([image, pixels], return_tensors="pt").pixel_values
    assert torch.equal(batch, reference.repeat(2, 1, 1, 1))
    assert torch.equal(process(first.permute(2, 0, 1)[None].repeat(2, 1, 1, 1)), batch)
    listed = AdaptorImageProcessor()(image)["pixel_values"]
    assert isinstance(listed, list)
    assert np.array_equal(listed[0], reference[0].numpy())
    # Floats are resized without rounding to 8 bits, so they agree within a few grey levels at hard edges.
    for values in (pixels.astype(np.float32), first.double()):
        assert (process(values) - reference).abs().max() < 4 / 255 / 0.224
    assert (process(pixels / 255.0, do_rescale=False) - reference).abs().max() < 4 / 255 / 0.224


def test_gray_modes_give_three_equal_channels_or_one():
    gray = photo(channels=1)[..., 0]
    image = Image.fromarray(gray)
    fields = {"image_mean": [0.5], "image_std": [0.5]}
    reference = process(image, **fields)
    assert reference.shape == (1, 3, 224, 224)
    assert torch.equal(reference[:, 0], reference[:, 2])
    for same in (image.convert("LA"), image.convert("RGB"), image.convert("P"), gray, gray[..., None], gray[None]):
        assert torch.equal(process(same, **fields), reference)
    one = process(image, do_grayscale=True, **fields)
    assert torch.equal(one, reference[:, :1])
    assert torch.equal(process(image.convert("RGB"), do_grayscale=True, **fields), one)
    colour = photo()
    luma = process(colour, do_grayscale=True, do_resize=False, do_center_crop=False, do_normalize=False)
    weighted = (colour @ np.array([0.299, 0.587, 0.114])) / 255
    assert np.allclose(luma[0, 0], weighted, atol=1 / 255)
    assert np.allclose(
        process(
            colour.astype(np.float32), do_grayscale=True, do_resize=False, do_center_crop=False, do_normalize=False
        )[0, 0],
        *(weighted,),
        atol=1e-5,
    )


def test_padding_to_a_square_keeps_the_aspect_ratio():
    image = Image.new("L", (40, 80), 255)
    fields = {"do_normalize": False, "do_pad_to_square": True, "do_resize": False, "do_center_crop": False}
    padded = process(image, **fields)
    assert padded.shape == (1, 3, 80, 80)
    assert padded[..., :20].max() == 0
    assert padded[..., 60:].max() == 0
    assert padded[..., 20:60].min() == 1
    assert process(image, size={"shortest_edge": 32}, do_pad_to_square=True, do_center_crop=False).shape[-2:] == (
        32,
        32,
    )


def sixteen_bit(mode):
    values = np.linspace(0, 60000, 64 * 64).reshape(64, 64)
    if mode == "I;16":
        return Image.fromarray(values.astype(np.uint16))
    return Image.fromarray(values.astype({"I": np.int32, "F": np.float32}[mode]))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_pil_images_are_refused(mode):
    with pytest.raises(ValueError, match=r"pass its path, or adaptor_hf\.data\.images\.read_image"):
        process(sixteen_bit(mode))


@pytest.mark.parametrize(
    ("image", "fields", "message"),
    [
        (np.zeros((8, 8), np.uint16), {}, "uint16"),
        (np.full((8, 8), 300), {}, "0..255"),
        (np.full((8, 8), -1.0), {}, "0..255"),
        (np.full((8, 8), 0.5), {}, "do_rescale=False"),
        (np.full((8, 8), 7.0), {"do_rescale": False}, "0..1"),
        (photo(), {"do_rescale": False}, "0..1"),
        (np.full((8, 8), np.nan), {}, "NaN"),
        (torch.full((8, 8), float("inf")), {}, "NaN"),
        (np.zeros((8, 8), bool), {}, "bool"),
        (photo(), {"do_pad": True}, "do_pad_to_square"),
        (photo(), {"do_convert_rgb": False}, "do_grayscale"),
        (photo(), {"size": {"longest_edge": 10}}, "shortest_edge"),
        (photo(), {"do_grayscale": True}, "image_mean"),
        (photo(), {"image_std": [1.0, 1.0]}, "image_std"),
    ],
)
def test_input_that_would_be_silently_wrong_is_refused(image, fields, message):
    with pytest.raises(ValueError, match=message):
        process(image, **fields)


def test_saving_and_loading_keeps_every_field(tmp_path):
    processor = AdaptorImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 48, "width": 40}, **XRV)
    processor.save_pretrained(tmp_path)
    image = photo()
    expected = processor(image, return_tensors="pt").pixel_values
    assert expected.shape == (1, 1, 48, 40)
    for loaded in (
        AdaptorImageProcessor.from_pretrained(tmp_path),
        AdaptorImageProcessor(**image_processor_fields(processor)),
    ):
        assert image_processor_fields(loaded) == image_processor_fields(processor)
        assert torch.equal(loaded(image, return_tensors="pt").pixel_values, expected)
    changed = AdaptorImageProcessor.from_pretrained(tmp_path, crop_size={"height": 20, "width": 20})
    assert changed(image, return_tensors="pt").pixel_values.shape == (1, 1, 20, 20)
    assert processor(image, return_tensors="pt", do_center_crop=False).pixel_values.shape == (1, 1, 77, 60)


def test_auto_image_processor_finds_it(tmp_path):
    import adaptor_hf  # registers the class

    config = adaptor_hf.AdaptorConfig(vision_hidden_size=32, text_hidden_size=32, hidden_size=32, num_attention_heads=2)
    config.save_pretrained(tmp_path)
    AdaptorImageProcessor(**XRV).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AdaptorImageProcessor
    assert loaded.do_grayscale


def test_real_radiographs_of_any_mode_are_accepted(realbench):
    processor = AdaptorImageProcessor()
    files = sorted((realbench / "images").rglob("*.*"))[::40]
    assert files
    for file in files:
        with Image.open(file) as image:
            if image.mode in ("I", "F", "I;16"):
                continue
            pixels = processor(image, return_tensors="pt").pixel_values
        assert pixels.shape == (1, 3, 224, 224)
        assert pixels.std() > 0.1
