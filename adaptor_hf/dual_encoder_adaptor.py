"""Models of two towers that others made, as towers and projections: VisionTextDualEncoder's arguments and folders.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import inspect
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel

from .configuration_adaptor import AdaptorConfig, fields_of_dual_encoder
from .frozen_towers_adaptor import TextTower, VisionTower, sizes_in_spec
from .image_processing_adaptor import AdaptorImageProcessor, image_processor_fields, translate_image_processor
from .regular_files_adaptor import check_model_folder, read_json
from .tower_sources_adaptor import (
    check_architecture,
    has_trained_pooler,
    load_hub_image_processor,
    load_tokenizer,
    quiet,
)
from .tower_specs_adaptor import SPEC_KEYS, partial_spec
from .towers_adaptor import load_text_tower, load_vision_tower, position_limit

READ_TYPES = ("vision-text-dual-encoder", "clip")
LOCAL = {"local_files_only": True}


class DualEncoderMixin:
    """What [`AdaptorModel`] has for users of VisionTextDualEncoder."""

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model_name_or_path: str | None = None,
        text_model_name_or_path: str | None = None,
        *model_args,
        **kwargs,
    ) -> Self:
        """
        As [`AdaptorModel.from_towers`], by the arguments of `VisionTextDualEncoderModel.from_vision_text_pretrained`.

        Args:
            vision_model_name_or_path, text_model_name_or_path (`str`, *optional*): As for `load_vision_tower` and
                `load_text_tower`.
            kwargs: `vision_...` and `text_...` go to the loading of that tower: `vision_revision`, `text_pooling`.
                `vision_model` and `text_model` are loaded models, in place of a name; the weights of a plain
                transformers model go into the checkpoint, and `vision_processor` (image processor) and
                `text_processor` (tokenizer) say how its inputs are made, by default those of where it was loaded from.
                Others are fields of [`AdaptorConfig`]; `projection_dim` stands for `hidden_size`.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a tower without name and model, or with both.
            OSError: as `from_towers`.
        """
        if model_args:
            raise TypeError(
                f"from_vision_text_pretrained takes two names by position, got {2 + len(model_args)} arguments. Give "
                "others by name."
            )
        names = {"vision": vision_model_name_or_path, "text": text_model_name_or_path}
        towers, fields = towers_of_arguments(names, kwargs)
        return cls.from_towers(towers["vision"], towers["text"], **fields)

    @classmethod
    def from_dual_encoder(cls, folder: str | os.PathLike) -> Self:
        """
        A trained `VisionTextDualEncoderModel` or `CLIPModel` as an Adaptor of two linear projections: the same
        embeddings, scores and loss. Its towers are frozen and saved with it; `AdaptorProcessor(
        model.vision_model.processor, model.text_model.processor)` is its processor.

        Args:
            folder (`str`): What `save_pretrained` of the model and of its processor wrote; nothing is downloaded.

        Raises:
            OSError: there is no such folder, it has no safetensors weights or lacks some, or it has no processor.
            ValueError: it holds another type of model, or towers that cannot serve as such here.
        """
        found = read_dual_encoder(folder)
        model = cls.from_towers(found.vision_tower, found.text_tower, towers_in_checkpoint=True, **found.fields)
        with torch.no_grad():
            for name, value in found.weights.items():
                model.get_parameter(name).copy_(value)
        return model.eval()


class DualEncoder(NamedTuple):
    """Frozen towers, fields of an [`AdaptorConfig`], and projections and scale by their names in an Adaptor."""

    vision_tower: VisionTower
    text_tower: TextTower
    fields: dict[str, Any]
    weights: dict[str, torch.Tensor]


def read_dual_encoder(folder: str | os.PathLike) -> DualEncoder:
    """
    A folder that `save_pretrained` of `VisionTextDualEncoderModel` or `CLIPModel` wrote, with its processor in it.

    Args:
        folder (`str`): A folder of this machine; nothing is downloaded. Weights are read from safetensors only.

    Raises:
        OSError: there is no such folder, it has no safetensors weights or lacks some, or it has no processor.
        ValueError: it holds another type of model, or towers that cannot serve as such here.
    """
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"{folder} is no folder of this machine. from_dual_encoder downloads nothing: run "
            "`hf download OWNER/NAME --local-dir FOLDER` and pass FOLDER."
        )
    check_model_folder(folder)
    model_type = _model_type(folder)
    if model_type not in READ_TYPES:
        raise ValueError(
            f"{folder} holds a model of type {model_type!r}; from_dual_encoder reads {' and '.join(READ_TYPES)}. "
            "AdaptorModel.from_towers loads towers alone, AdaptorModel.from_pretrained an Adaptor."
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **LOCAL)
    fields = {
        "hidden_size": config.projection_dim,
        "aligner": "linear",
        "logit_scale_init_value": config.logit_scale_init_value,
        # Theirs weighs both directions of the loss alike.
        "image_to_text_weight": 0.5,
    }
    # Sizes that no model has are refused before anything is built of them.
    try:
        AdaptorConfig.from_vision_text_configs(config.vision_config, config.text_config, **fields)
    except StrictDataclassError as error:
        raise ValueError(f"the configuration in {folder} is refused: {error.__cause__ or error}") from error
    for kind in ("vision", "text"):
        check_architecture(kind, folder, getattr(config, f"{kind}_config"))
    image_processor = translate_image_processor(load_hub_image_processor(folder, None, LOCAL, False))
    tokenizer = load_tokenizer(folder, None, LOCAL)
    model = _load_with_every_weight(folder, config)
    if not has_trained_pooler(model.text_model):
        raise ValueError(f"{folder}: its text model has no pooler, whose output a dual encoder compares.")
    specs = {kind: partial_spec(kind, folder, None, "pooler") for kind in ("vision", "text")}
    return DualEncoder(
        _tower_of("vision", model.vision_model, specs["vision"], image_processor),
        _tower_of("text", model.text_model, specs["text"], tokenizer),
        fields_of_dual_encoder(fields),
        {
            "visual_projection.weight": model.visual_projection.weight.detach(),
            "text_projection.weight": model.text_projection.weight.detach(),
            "logit_scale": model.logit_scale.detach(),
        },
    )


def _model_type(folder: str) -> str | None:
    file = os.path.join(folder, "config.json")
    if not os.path.isfile(file):
        raise FileNotFoundError(f"{folder} has no config.json: it is no folder that save_pretrained wrote.")
    try:
        return read_json(file)["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no configuration of a model ({error!r}). Copy the model again.") from error


def _load_with_every_weight(folder: str, config) -> PreTrainedModel:
    """The model in float32, every weight read from safetensors."""
    from transformers import CLIPModel, VisionTextDualEncoderModel

    names = {path.name for path in Path(folder).iterdir()}
    if not names & {"model.safetensors", "model.safetensors.index.json"}:
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".bin.index.json")))
        kind = "CLIPModel" if config.model_type == "clip" else "VisionTextDualEncoderModel"
        raise FileNotFoundError(
            f"{folder} has its weights as {pickled[0]}, which is not read: a pickle may run code. Where you trust it, "
            f"write safetensors: {kind}.from_pretrained(folder).save_pretrained(new_folder), and save the processor "
            "there too."
            if pickled
            else f"{folder} has no weights: expected model.safetensors beside config.json. Copy the model again."
        )
    model_class = CLIPModel if config.model_type == "clip" else VisionTextDualEncoderModel
    with quiet():
        model, report = model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **LOCAL
        )
    if missing := sorted(report["missing_keys"]):
        raise OSError(
            f"{folder} lacks {len(missing)} weights of its {model_class.__name__}, {missing[0]} is one, and a random "
            "one is never used. Save or copy the model again."
        )
    return model


def _tower_of(kind: str, network: PreTrainedModel, spec: dict[str, Any], processor) -> VisionTower | TextTower:
    """A tower of a network in memory, whose weights are in no checkpoint of their own."""
    spec["library"] = "transformers"
    if kind == "vision":
        # Stored in full, so that another version's defaults change nothing.
        spec["image_processor"] = image_processor_fields(AdaptorImageProcessor(**processor))
        tower = VisionTower(network, spec)
        tower._complete_spec()
    else:
        width = network.config.hidden_size
        spec["pooling"] = spec["pooling"] or ("pooler" if has_trained_pooler(network) else "cls")
        spec |= sizes_in_spec(2 * width if spec["pooling"] == "cls+mean" else width, width)
        limits = [processor.model_max_length, position_limit(network.config)]
        processor.model_max_length = spec["max_length"] = min(limit for limit in limits if limit is not None)
        tower = TextTower(network, spec, processor)
    # A save without towers cannot know them by their source.
    tower.loaded_weights = None
    return tower


def towers_of_arguments(
    names: dict[str, str | None], arguments: dict[str, Any]
) -> tuple[dict[str, VisionTower | TextTower], dict[str, Any]]:
    """
    VisionTextDualEncoder's way to name two towers.

    Args:
        names (`dict`): Of `"vision"` and `"text"` the name or folder, or None.
        arguments (`dict`): Keyword arguments. `vision_...` and `text_...` belong to a tower, others to the config.

    Returns:
        Towers by `"vision"` and `"text"`, and fields of an [`AdaptorConfig`].

    Raises:
        TypeError: for an argument that nobody knows.
        ValueError: for a tower without name and without model, or with both.
    """
    own = {kind: {} for kind in names}
    for name in list(arguments):
        kind, _, rest = name.partition("_")
        if kind in own and rest:
            own[kind][rest] = arguments.pop(name)
    fields = fields_of_dual_encoder(arguments)
    towers: dict[str, VisionTower | TextTower] = {}
    for kind, name in names.items():
        _refuse_unknown(kind, own[kind])
        model = own[kind].pop("model", None)
        if (model is None) == (name is None):
            raise ValueError(
                f"from_vision_text_pretrained takes one of {kind}_model_name_or_path (a folder, hub id or preset) and "
                f"{kind}_model (a loaded one); got {'neither' if name is None else 'both'}."
            )
        if model is None:
            if "processor" in own[kind]:
                raise ValueError(f"{kind}_processor goes with {kind}_model; with a name it is the checkpoint's own.")
            towers[kind] = (load_vision_tower if kind == "vision" else load_text_tower)(name, **own[kind])
        elif isinstance(model, VisionTower | TextTower):
            if own[kind]:
                raise ValueError(f"{kind}_model is a tower with its options: leave out {kind}_{min(own[kind])}.")
            towers[kind] = model
        else:
            towers[kind] = _tower_of_model(kind, model, **own[kind])
            fields.setdefault("towers_in_checkpoint", True)
    return towers, fields


def _refuse_unknown(kind: str, given: dict[str, Any]) -> None:
    loader = load_vision_tower if kind == "vision" else load_text_tower
    known = ["model", "processor", *list(inspect.signature(loader).parameters)[1:]]
    for name in given:
        if name not in known:
            raise TypeError(
                f"from_vision_text_pretrained() got an unexpected keyword argument {kind}_{name}. A frozen tower is "
                f"as its checkpoint has it; {kind}_ goes before {', '.join(known)}."
            )


def _tower_of_model(kind: str, model: PreTrainedModel, processor=None, pooling: str | None = None, **options):
    """A tower of a model that is in memory; its processor is `processor`, else that of where it was loaded from."""
    if options:
        raise ValueError(
            f"{kind}_{min(options)} is an option of loading, and {kind}_model is loaded. With {kind}_model go "
            f"{kind}_processor and {kind}_pooling."
        )
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"{kind}_model must be a model of transformers or a tower of load_{kind}_tower, got {type(model).__name__}."
        )
    source = model.name_or_path
    check_architecture(kind, source, model.config)
    if processor is None and not source:
        what = "an image processor" if kind == "vision" else "a tokenizer"
        raise ValueError(f"{kind}_model was loaded from nowhere: pass {what} as {kind}_processor.")
    if kind == "text":
        processor = load_tokenizer(source, None, {}) if processor is None else processor
    else:
        processor = load_hub_image_processor(source, None, {}, False) if processor is None else processor
        processor = translate_image_processor(processor)
    place = source or type(model).__name__
    spec = dict.fromkeys(SPEC_KEYS) | {"kind": kind, "name_or_path": place, "pooling": pooling}
    return _tower_of(kind, model, spec, processor)


__all__ = ["READ_TYPES", "DualEncoder", "DualEncoderMixin", "read_dual_encoder", "towers_of_arguments"]
