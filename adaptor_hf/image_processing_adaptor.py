"""Image processor of every vision tower: resize, crop, rescale, normalise.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .image_geometry_adaptor import GEOMETRY, check_sizes, class_map, label_map, original_map, pillow_filter, place
from .image_values_adaptor import open_images, per_channel, planes_of, to_gray, warn_of_clipping, with_channel_axis
from .regular_files_adaptor import check_model_folder

# In a vision tower's spec: how image files became pixels in training.
READING = ("image_mode", "voi_lut", "range_percentile")
MAX_SIDE = 1 << 14
"""Largest side in pixels that a processor makes of an image."""


class AdaptorImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beyond those of every image processor.

    do_grayscale (`bool`): give 1 channel (ITU-R 601 luma) in place of 3.
    do_pad_to_square (`bool`): pad the shorter side with zeros, image centred, before resizing.
    image_mode (`str`), voi_lut (`bool`), range_percentile (`float`): how images are read, see
        [`AdaptorImageProcessor`].
    """

    do_grayscale: bool | None
    do_pad_to_square: bool | None
    image_mode: str | None
    voi_lut: bool | None
    range_percentile: float | None


class AdaptorImageProcessor(PilBackend):
    """Turns images into the `pixel_values` a vision tower was trained on.

    Order of the steps: channels, pad to square, resize, centre crop, rescale, normalise. Resizing is Pillow's, on
    8 bits for 8-bit images and on float32 for float images; the result is deterministic and the same on every machine
    with the same Pillow.

    Images may be PIL images of 8-bit modes, paths, URLs, or numpy arrays and torch tensors of shape (H, W), (H, W, C)
    or (C, H, W) with 1, 3 or 4 channels, one or a list or a batch. Integer values are 0..255. Float values are 0..255
    when `do_rescale` is on and 0..1 when it is off.

    Args:
        size (`dict`): `{"shortest_edge": n}` keeps the aspect ratio; `{"height": h, "width": w}` does not.
        crop_size (`dict`): `{"height": h, "width": w}`; an image smaller than that is padded with zeros.
        resample (`int`): a Pillow filter; 3 is bicubic, 2 is bilinear.
        rescale_factor (`float`), image_mean, image_std: `(value * rescale_factor - mean) / std`. The range
            [-1024, 1024] of torchxrayvision is mean 0.5 and standard deviation 0.5 / 1024.
        do_grayscale (`bool`): give 1 channel in place of 3.
        do_pad_to_square (`bool`): pad the shorter side with zeros first.
        image_mode (`str`, *optional*): how the images of the model's training were read, "L" or "RGB", which all images
            then are, upright and alpha laid on black; paths are read as in training, 16-bit files and DICOM included.
            None (a tower's own processor, checkpoints of version 0.1): as they are given, an alpha channel dropped;
            paths of 16-bit files and DICOM are read by `adaptor_hf.data.images.read_image`, where it is installed.
        voi_lut (`bool`): with `image_mode`, paths of DICOM files are read as displayed.
        range_percentile (`float`): with `image_mode`, paths of deep files are scaled from this percentile of their
            pixels to 100 minus it; 0 takes minimum and maximum.

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
    range_percentile = 0.0

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
        crop_size = kwargs.get("crop_size") if kwargs.get("do_center_crop") else None
        for name, sides in {"size": size if do_resize else None, "crop_size": crop_size}.items():
            if sides and not all(1 <= side <= MAX_SIDE for side in dict(sides).values()):
                raise ValueError(f"{name} must be of 1 to {MAX_SIDE} pixels a side, got {dict(sides)}.")
        for name in ("image_mean", "image_std", "rescale_factor"):
            value = kwargs.get(name)
            numbers = value if isinstance(value, tuple | list) else [] if value is None else [value]
            if not all(math.isfinite(number) for number in numbers) or (name == "image_std" and 0 in numbers):
                raise ValueError(f"{name} must be finite, and image_std not 0, got {value}.")
        if kwargs.get("image_mode") not in (None, "L", "RGB"):
            raise ValueError(f'image_mode must be "L", "RGB" or None, got {kwargs["image_mode"]!r}.')
        channels = 1 if kwargs.get("do_grayscale") else 3
        for name in ("image_mean", "image_std"):
            value = kwargs.get(name)
            if kwargs.get("do_normalize") and isinstance(value, tuple | list) and len(value) not in (1, channels):
                raise ValueError(f"{name} has {len(value)} values but images have {channels} channels: {value}.")

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As the base class; refuses a folder with pipes or devices in it."""
        check_model_folder(pretrained_model_name_or_path)
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    def preprocess(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        """See the class."""
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(self, images, segmentation_maps=None, **kwargs) -> BatchFeature:
        if kwargs.get("image_mode") is not None:
            warn_of_clipping(images)
        images = open_images(images, **{name: kwargs.get(name) for name in READING})
        planes = self._prepare_image_like_inputs(images, **kwargs)
        features = self._preprocess(planes, **kwargs)
        if segmentation_maps is not None:
            maps = segmentation_maps if isinstance(segmentation_maps, list | tuple) else [segmentation_maps]
            geometry = {name: kwargs[name] for name in GEOMETRY}
            labels = [label_map(item, number) for number, item in enumerate(maps)]
            check_sizes([item[0].size for item in planes], labels)
            labels = [np.asarray(place(Image.fromarray(item), geometry, 0), dtype=np.int64) for item in labels]
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
            return [class_map(item, threshold) for item in logits]
        if len(target_sizes) != len(logits):
            raise ValueError(
                f"got {len(target_sizes)} target sizes for {len(logits)} images; give one (height, width) each."
            )
        geometry = {name: getattr(self, name) for name in GEOMETRY}
        return [
            original_map(item, (int(size[0]), int(size[1])), geometry, threshold)
            for item, size in zip(logits, target_sizes, strict=True)
        ]

    def fetch_images(self, image_url_or_urls):
        # The base class converts every file to RGB, which clips 16-bit files silently.
        reading = {name: getattr(self, name) for name in READING}
        return super().fetch_images(open_images(image_url_or_urls, **reading))

    def _prepare_images_structure(self, images, expected_ndims=3):
        # The base class takes a 2-D array for a broken image; here it is a grey one.
        return super()._prepare_images_structure(with_channel_axis(images), expected_ndims=expected_ndims)

    def process_image(
        self, image, do_rescale=None, do_normalize=None, input_data_format=None, image_mode=None, **kwargs
    ):
        """Checks one image and gives it as a list of Pillow planes: one "L" or "RGB" image, or "F" planes."""
        planes = planes_of(image, do_rescale, do_normalize, input_data_format, black_below=image_mode is not None)
        return to_gray(planes) if image_mode == "L" else planes

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
                planes = to_gray(planes)
            geometry = dict(zip(GEOMETRY, (do_pad_to_square, do_resize, size, do_center_crop, crop_size), strict=True))
            planes = [place(plane, geometry, pillow_filter(resample)) for plane in planes]
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
                pixels = (pixels - per_channel(image_mean, channels)) / per_channel(image_std, channels)
            pixel_values.append(np.ascontiguousarray(np.broadcast_to(pixels, (channels, *pixels.shape[1:]))))
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


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
