"""Image processor of every vision tower: resize, crop, rescale, normalise.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs

EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
READING = ("image_mode", "voi_lut")  # in a vision tower's spec: how image files became pixels in training
READ_FIRST = "read it with adaptor_hf.data.images.read_image, which gives an 8-bit image"


class AdaptorImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beyond those of every image processor.

    do_grayscale (`bool`): give 1 channel (ITU-R 601 luma) in place of 3.
    do_pad_to_square (`bool`): pad the shorter side with zeros, image centred, before resizing.
    image_mode (`str`), voi_lut (`bool`): how images are read, see [`AdaptorImageProcessor`].
    """

    do_grayscale: bool | None
    do_pad_to_square: bool | None
    image_mode: str | None
    voi_lut: bool | None


class AdaptorImageProcessor(PilBackend):
    """Turns images into the `pixel_values` a vision tower was trained on.

    Order of the steps: channels, pad to square, resize, centre crop, rescale, normalise. Resizing is Pillow's, on
    8 bits for 8-bit images and on float32 for float images; the result is deterministic and the same on every machine
    with the same Pillow.

    Images may be PIL images of 8-bit modes, paths, or numpy arrays and torch tensors of shape (H, W), (H, W, C) or
    (C, H, W) with 1, 3 or 4 channels, one or a list or a batch. Integer values are
    0..255. Float values are 0..255 when `do_rescale` is on and 0..1 when it is off.

    Args:
        size (`dict`): `{"shortest_edge": n}` keeps the aspect ratio; `{"height": h, "width": w}` does not.
        crop_size (`dict`): `{"height": h, "width": w}`; an image smaller than that is padded with zeros.
        resample (`int`): a Pillow filter; 3 is bicubic, 2 is bilinear.
        rescale_factor (`float`), image_mean, image_std: `(value * rescale_factor - mean) / std`. The range
            [-1024, 1024] of torchxrayvision is mean 0.5 and standard deviation 0.5 / 1024.
        do_grayscale (`bool`): give 1 channel in place of 3.
        do_pad_to_square (`bool`): pad the shorter side with zeros first.
        image_mode (`str`, *optional*): how the images of the model's training were read, "L" or "RGB", which all images
            then are, alpha laid on black; paths are read as in training, DICOM included. None (a tower's own processor,
            checkpoints of version 0.1): as they are given, an alpha channel dropped.
        voi_lut (`bool`): with `image_mode`, paths of DICOM files are read as displayed.

    Called with `segmentation_maps`, one a image and of its size, it also gives `labels` (B, H, W) of integers, put
    through the same steps without interpolation. Grey images are masks of 0 and 255 (or 0 and 1) and become 0 and 1;
    integer arrays (H, W) are class numbers and stay as they are. What cropping adds is 0.

    Returns:
        `BatchFeature` with `pixel_values`: float32 (B, C, H, W) with `return_tensors="pt"` or `"np"`, else a list of
        (C, H, W) arrays.

    Raises:
        ValueError: for 16-bit or other deep images, for values outside the range above, for NaN or infinity, and for
            options that this processor does not have.
    """

    valid_kwargs = AdaptorImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_resize = True
    size = {"shortest_edge": 224}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 224, "width": 224}
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_convert_rgb = True
    do_grayscale = False
    do_pad_to_square = False
    image_mode = None
    voi_lut = False

    def _validate_preprocess_kwargs(self, size=None, do_resize=None, do_pad=None, do_convert_rgb=None, **kwargs):
        super()._validate_preprocess_kwargs(size=size, do_resize=do_resize, **kwargs)
        if do_pad:
            raise ValueError("AdaptorImageProcessor has no do_pad; use do_pad_to_square=True to pad before resizing.")
        if do_convert_rgb is False:
            raise ValueError(
                "AdaptorImageProcessor gives 3 channels always, or 1 with do_grayscale=True; leave do_convert_rgb out."
            )
        if do_resize and set(dict(size)) not in ({"shortest_edge"}, {"height", "width"}):
            raise ValueError(
                f"size must have the key 'shortest_edge' or the keys 'height' and 'width', got {dict(size)}."
            )
        if kwargs.get("image_mode") not in (None, "L", "RGB"):
            raise ValueError(f'image_mode must be "L", "RGB" or None, got {kwargs["image_mode"]!r}.')
        channels = 1 if kwargs.get("do_grayscale") else 3
        for name in ("image_mean", "image_std"):
            value = kwargs.get(name)
            if kwargs.get("do_normalize") and isinstance(value, tuple | list) and len(value) not in (1, channels):
                raise ValueError(f"{name} has {len(value)} values but images have {channels} channels: {value}.")

    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """See the class."""
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        planes = self._prepare_image_like_inputs(images, **kwargs)
        features = self._preprocess(planes, **kwargs)
        if segmentation_maps is not None:
            maps = segmentation_maps if isinstance(segmentation_maps, list | tuple) else [segmentation_maps]
            geometry = {name: kwargs[name] for name in GEOMETRY}
            labels = [_label_map(item, number) for number, item in enumerate(maps)]
            _check_sizes([item[0].size for item in planes], labels)
            labels = [np.asarray(_place(Image.fromarray(item), geometry, 0), dtype=np.int64) for item in labels]
            features.update(BatchFeature({"labels": labels}, tensor_type=kwargs.get("return_tensors")))
        return features

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None, threshold: float = 0.5
    ) -> list[torch.Tensor]:
        """Logits to maps of class numbers, put back to where they belong in the original images.

        Args:
            outputs: has `logits` of shape (B, C, h, w). C = 1: sigmoid and `threshold`, giving 0 and 1; else argmax.
            target_sizes: (height, width) of each original image; None leaves the size of the logits. Resizing, cropping
                and padding of this processor are undone: what it cropped away is 0.

        Returns:
            One integer tensor (height, width) a image.
        """
        logits = outputs.logits
        if target_sizes is None:
            return [_class_map(item, threshold) for item in logits]
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"got {len(target_sizes)} target sizes for {len(logits)} images; give one (height, width) each."
            )
        geometry = {name: getattr(self, name) for name in GEOMETRY}
        return [
            _original_map(item, (int(size[0]), int(size[1])), geometry, threshold)
            for item, size in zip(logits, target_sizes, strict=True)
        ]

    def fetch_images(self, image_url_or_urls):
        # The base class converts every file to RGB, which clips 16-bit files silently; here they are refused.
        if isinstance(image_url_or_urls, str) and not image_url_or_urls.startswith(("http://", "https://", "data:")):
            if self.image_mode is not None and find_spec("adaptor_hf"):  # this file may be there without the package
                read_image = import_module("adaptor_hf.data.images").read_image
                return read_image(image_url_or_urls, mode=self.image_mode, voi_lut=bool(self.voi_lut))
            with Image.open(image_url_or_urls) as image:
                image.load()
                return image
        return super().fetch_images(image_url_or_urls)

    def _prepare_images_structure(self, images, expected_ndims=3):
        # The base class takes a 2-D array for a broken image; here it is a grey one.
        return super()._prepare_images_structure(_with_channel_axis(images), expected_ndims=expected_ndims)

    def process_image(
        self, image, do_rescale=None, do_normalize=None, input_data_format=None, image_mode=None, **kwargs
    ):
        """Checks one image and gives it as a list of Pillow planes: one "L" or "RGB" image, or "F" planes."""
        planes = self._planes(image, do_rescale, do_normalize, input_data_format, image_mode is not None)
        return _to_gray(planes) if image_mode == "L" else planes

    def _planes(self, image, do_rescale, do_normalize, input_data_format, on_black):
        if isinstance(image, Image.Image):
            return [_eight_bit_image(_on_black(image) if on_black else image)]
        if isinstance(image, torch.Tensor):
            image = image.detach().to("cpu")
            image = (image.float() if image.is_floating_point() else image).numpy()
        pixels = _channels_last(np.asarray(image), input_data_format)
        alpha, pixels = pixels[..., 3:], pixels[..., :3]
        _check_values(pixels, do_rescale, do_normalize)
        if np.issubdtype(pixels.dtype, np.integer) and do_rescale:
            pixels = pixels.astype(np.uint8)
            if on_black and alpha.shape[-1]:
                return [_on_black(Image.fromarray(np.concatenate([pixels, alpha.astype(np.uint8)], axis=2)))]
            return [Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)]
        if on_black and alpha.shape[-1]:
            pixels = pixels * (alpha / (255 if do_rescale else 1))
        return [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, -1, 0).astype(np.float32)]

    def _preprocess(
        self,
        images,
        do_resize,
        size,
        resample,
        do_center_crop,
        crop_size,
        do_rescale,
        rescale_factor,
        do_normalize,
        image_mean,
        image_std,
        do_grayscale,
        do_pad_to_square,
        return_tensors,
        **kwargs,
    ) -> BatchFeature:
        pixel_values = []
        for planes in images:
            if do_grayscale:
                planes = _to_gray(planes)
            geometry = dict(zip(GEOMETRY, (do_pad_to_square, do_resize, size, do_center_crop, crop_size), strict=True))
            planes = [_place(plane, geometry, _pillow_filter(resample)) for plane in planes]
            pixels = np.stack([np.asarray(plane, dtype=np.float32) for plane in planes])
            if pixels.ndim == 4:
                pixels = np.moveaxis(pixels[0], -1, 0)
            if do_rescale or do_normalize:
                # Bicubic resizing overshoots at edges; 8-bit images are clipped by Pillow, float ones here.
                pixels = np.clip(pixels, 0, 255 if do_rescale else 1)
            if do_rescale:
                pixels = pixels * np.float32(rescale_factor)
            channels = 1 if do_grayscale else 3
            if do_normalize:
                pixels = (pixels - _per_channel(image_mean, channels)) / _per_channel(image_std, channels)
            pixel_values.append(np.ascontiguousarray(np.broadcast_to(pixels, (channels, *pixels.shape[1:]))))
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


GEOMETRY = ("do_pad_to_square", "do_resize", "size", "do_center_crop", "crop_size")
FIELDS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_grayscale",
    "do_pad_to_square",
)


def image_processor_fields(processor: AdaptorImageProcessor) -> dict[str, Any]:
    """The fields that determine the numbers, as plain JSON types; `AdaptorImageProcessor(**fields)` is its inverse."""
    fields = {name: getattr(processor, name) for name in FIELDS}
    for name in ("size", "crop_size"):
        fields[name] = {key: int(value) for key, value in dict(fields[name]).items()}
    for name in ("image_mean", "image_std"):
        value = fields[name]
        fields[name] = [float(item) for item in value] if isinstance(value, list | tuple) else float(value)
    fields["resample"] = int(fields["resample"])
    fields["rescale_factor"] = float(fields["rescale_factor"])
    return fields


def processor_of_tower(spec: dict[str, Any]) -> AdaptorImageProcessor:
    """The image processor of a vision tower's spec: what the tower does, and the reading if the spec states one."""
    reading = {name: spec[name] for name in READING if spec.get(name) is not None}
    return AdaptorImageProcessor(**spec["image_processor"], **reading)


def translate_image_processor(processor) -> dict[str, Any]:
    """Writes a transformers image processor as fields of `AdaptorImageProcessor`.

    Accepted: processors whose steps are the library's standard ones (CLIP, ViT, Bit, DeiT, SigLIP and their like), and
    ConvNeXT's and DINOv3's. The library's torchvision variant may differ from Pillow by about one grey level.

    Raises:
        ValueError: the processor has a step that cannot be expressed, named in the message.
    """
    if isinstance(processor, AdaptorImageProcessor):
        return image_processor_fields(processor)
    name = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    get = {key: value for key, value in processor.to_dict().items() if value is not None}.get
    size = {key: value for key, value in dict(get("size", {})).items() if value is not None}
    fields = {
        "do_resize": get("do_resize", False),
        "size": size,
        "resample": int(get("resample", PILImageResampling.BICUBIC)),
        "do_center_crop": get("do_center_crop", False),
        "crop_size": dict(get("crop_size", {})),
        "do_rescale": get("do_rescale", False),
        "rescale_factor": get("rescale_factor", 1 / 255),
        "do_normalize": get("do_normalize", False),
        "image_mean": get("image_mean", [0.0]),
        "image_std": get("image_std", [1.0]),
    }
    if name == "ConvNextImageProcessor":
        fields |= _convnext_resize(size["shortest_edge"], get("crop_pct", 224 / 256))
    elif name != "DINOv3ViTImageProcessor":
        _refuse_own_steps(processor, name)
    if get("do_pad"):
        raise ValueError(f"{name} pads images (do_pad=True), which AdaptorImageProcessor cannot express.")
    if fields["do_resize"] and set(fields["size"]) not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"{name} resizes to {size}, which AdaptorImageProcessor cannot express.")
    empty = {key for key in ("size", "crop_size") if not fields[key]}
    return image_processor_fields(AdaptorImageProcessor(**{k: v for k, v in fields.items() if k not in empty}))


def _refuse_own_steps(processor, name: str) -> None:
    """Raises when the class changes a step of the library's standard pipeline."""
    steps = ("preprocess", "_preprocess", "process_image", "resize", "center_crop", "rescale", "normalize", "pad")
    for step in steps:
        standard = [getattr(backend, step) for backend in (TorchvisionBackend, PilBackend)]
        # Comparing the qualified name sees through thin overrides that only call the base class for its docstring.
        if getattr(type(processor), step, None) not in standard and not _only_calls_base(type(processor), step):
            raise ValueError(
                f"{name} has its own {step} step, which AdaptorImageProcessor cannot express. "
                "Write the tower spec's image_processor by hand if you know what the step does."
            )


def _only_calls_base(cls: type, step: str) -> bool:
    """True when an overriding `preprocess` does nothing but forward to the base class."""
    code = getattr(getattr(cls, step), "__code__", None)
    return step == "preprocess" and code is not None and set(code.co_names) <= {"super", "preprocess"}


def _convnext_resize(edge: int, crop_pct: float) -> dict[str, Any]:
    """ConvNeXT's rule: below 384 px resize to edge / crop_pct and crop, otherwise squash to the square."""
    square = {"height": edge, "width": edge}
    if edge >= 384:
        return {"size": square, "do_center_crop": False}
    return {"size": {"shortest_edge": int(edge / crop_pct)}, "do_center_crop": True, "crop_size": square}


def _eight_bit_image(image: Image.Image) -> Image.Image:
    if image.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"an image of mode {image.mode!r} has more than 8 bits a channel; {READ_FIRST}.")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _on_black(image: Image.Image) -> Image.Image:
    """Alpha and transparent palette entries laid on black, as `adaptor_hf.data.images.read_image` does."""
    if image.mode not in EIGHT_BIT_MODES or not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def _with_channel_axis(images):
    if isinstance(images, list | tuple):
        return [_with_channel_axis(image) for image in images]
    return images[None] if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2 else images


def _channels_last(pixels: np.ndarray, input_data_format) -> np.ndarray:
    """Gives (H, W, C) with 1, 3 or 4 channels."""
    if input_data_format is None:
        input_data_format = infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
    if ChannelDimension(input_data_format) == ChannelDimension.FIRST:
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels


def _check_values(pixels: np.ndarray, do_rescale: bool, do_normalize: bool) -> None:
    """Refuses values that rescaling and normalising would turn into plausible nonsense."""
    is_integer = np.issubdtype(pixels.dtype, np.integer)
    if pixels.dtype == np.uint16 or not (is_integer or np.issubdtype(pixels.dtype, np.floating)):
        raise ValueError(f"an image of type {pixels.dtype} is not 8-bit; {READ_FIRST}.")
    if pixels.size == 0:
        raise ValueError(f"an image has no pixels: shape {pixels.shape}.")
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("an image has NaN or infinite values.")
    if do_rescale and (low < 0 or high > 255):
        raise ValueError(f"image values must be 0..255, got {low}..{high}; {READ_FIRST}.")
    if do_rescale and not is_integer and 0 < high <= 1:
        raise ValueError(
            f"a float image has values {low:.3g}..{high:.3g}: it seems to be rescaled already. "
            "Pass do_rescale=False, or values of 0..255."
        )
    if not do_rescale and do_normalize and (low < 0 or high > 1):
        raise ValueError(f"with do_rescale=False image values must be 0..1, got {low}..{high}.")


def _to_gray(planes: list[Image.Image]) -> list[Image.Image]:
    if len(planes) == 1:
        return [planes[0].convert("L")] if planes[0].mode == "RGB" else planes
    red, green, blue = (np.asarray(plane) for plane in planes)
    return [Image.fromarray((0.299 * red + 0.587 * green + 0.114 * blue).astype(np.float32))]


def _crop_around_centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """Centre crop; where the image is smaller, Pillow fills with zeros."""
    # Rounding down is what the library's Pillow backend does, also where it pads.
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _target_size(size: tuple[int, int], target) -> tuple[int, int]:
    """(width, height) after resizing; the long side is truncated as in torchvision and transformers."""
    if not target.shortest_edge:
        return target.width, target.height
    width, height = size
    edge = target.shortest_edge
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def _pillow_filter(resample) -> int:
    # torchvision names its filters by strings; the values of Pillow's are integers.
    names = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
    value = getattr(resample, "value", resample)
    return names[value] if isinstance(value, str) else int(value)


def _per_channel(value: float | tuple[float, ...], channels: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, dtype=np.float32).reshape(-1, 1, 1), (channels, 1, 1))


def _place(plane: Image.Image, geometry: dict[str, Any], resample: int) -> Image.Image:
    """Pads to the square, resizes and crops, as `geometry` says."""
    if geometry["do_pad_to_square"]:
        plane = _crop_around_centre(plane, max(plane.size), max(plane.size))
    if geometry["do_resize"]:
        plane = plane.resize(_target_size(plane.size, geometry["size"]), resample=resample)
    if geometry["do_center_crop"]:
        plane = _crop_around_centre(plane, geometry["crop_size"].width, geometry["crop_size"].height)
    return plane


def _label_map(item, number: int) -> np.ndarray:
    """A mask or a map of class numbers as an int32 array (H, W)."""
    is_mask = isinstance(item, Image.Image) and item.mode in ("1", "L")
    values = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.integer) or values.dtype == bool):
        raise ValueError(
            f"segmentation map {number} is of shape {values.shape} and type {values.dtype}; expected (height, width) "
            "of integers, or a grey image of 0 and 255."
        )
    if is_mask and values.dtype != bool:
        found = np.unique(values)
        if not (np.isin(found, (0, 255)).all() or found.max() <= 1):
            raise ValueError(
                f"segmentation map {number} is a grey image with values {found[:5].tolist()}; a mask has 0 and 255. "
                "Pass class numbers as an integer array."
            )
        values = values > 0
    return values.astype(np.int32)


def _check_sizes(sizes: list[tuple[int, int]], labels: list[np.ndarray]) -> None:
    if len(sizes) != len(labels):
        raise ValueError(f"got {len(labels)} segmentation maps for {len(sizes)} images; give one each.")
    for number, ((width, height), label) in enumerate(zip(sizes, labels, strict=True)):
        if label.shape != (height, width):
            raise ValueError(
                f"segmentation map {number} is {label.shape[1]}x{label.shape[0]} pixels, its image {width}x{height}. "
                "Resize the map to its image first, without interpolation."
            )


def _class_map(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """(C, H, W) to class numbers (H, W)."""
    return (logits[0].float().sigmoid() > threshold).long() if len(logits) == 1 else logits.argmax(dim=0)


def _original_map(
    logits: torch.Tensor, size: tuple[int, int], geometry: dict[str, Any], threshold: float
) -> torch.Tensor:
    """Class numbers (height, width) of an original image from the logits (C, h, w) of what the model saw of it."""
    side = max(size)
    full = (side, side) if geometry["do_pad_to_square"] else size
    resized = _target_size(full[::-1], geometry["size"])[::-1] if geometry["do_resize"] else full
    crop = geometry["crop_size"]
    seen = (crop.height, crop.width) if geometry["do_center_crop"] else resized
    logits = _bilinear(logits[None].float(), seen)
    # As in _crop_around_centre; negative where the crop is larger than the image.
    top, left = ((a - b) // 2 for a, b in zip(resized, seen, strict=True))
    margins = (left, resized[1] - seen[1] - left, top, resized[0] - seen[0] - top)
    covered = nn.functional.pad(torch.ones_like(logits[:, :1]), margins)
    # Cutting first, and copying the border outwards, so that no resizing mixes in what was never seen.
    logits = nn.functional.pad(logits, [min(margin, 0) for margin in margins])
    logits = nn.functional.pad(logits, [max(margin, 0) for margin in margins], mode="replicate")
    labels = _class_map(_bilinear(logits, full)[0], threshold)
    labels = labels * (nn.functional.interpolate(covered, size=full, mode="nearest")[0, 0] > 0)
    top, left = (-((a - b) // 2) for a, b in zip(size, full, strict=True))
    return labels[top : top + size[0], left : left + size[1]]


def _bilinear(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return maps if maps.shape[-2:] == size else nn.functional.interpolate(maps, size=size, mode="bilinear")
