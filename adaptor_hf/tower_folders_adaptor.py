"""Folders of trained towers: `RUN/vision_tower` and `RUN/text_tower`, as transformers, timm and peft read them.

A folder holds the network as its library saves it, the image processor or tokenizer, and `tower.json`: the tower's spec
without places of this machine. Low-rank weights (LoRA) that are not merged stand as peft writes them; the network that
they are on is then the one that `tower.json` names, or stands beside them where it has no name that others know.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import contextlib
import copy
import json
import os
import shutil
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitImageProcessor, PreTrainedModel
from transformers.utils import logging

from .carried_rows_adaptor import TOWER_FILE
from .configuration_adaptor import OWN, is_trained, portable_spec
from .image_processing_adaptor import AdaptorImageProcessor
from .regular_files_adaptor import check_regular, read_json
from .tower_bundles_adaptor import give_weights_the_mode_of_config
from .tower_layers_adaptor import CUT, tower_name
from .tower_training_adaptor import has_lora, inject_lora, merged_state, without_lora

FORMAT = "adaptor_hf tower 1"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
# What peft puts before the names of a network's parts.
_PEFT = "base_model.model."


def save_tower(
    tower: nn.Module, folder: str | os.PathLike, *, merge: bool = False, state_dict: dict | None = None
) -> None:
    """
    Write a trained tower as a folder, in place of one that is there. It is written aside first.

    Args:
        tower (`VisionTower` or `TextTower`): One that trained (`set_trainable`), or came from such a folder.
        folder (`str`): The tower's folder, such as `RUN/vision_tower`.
        merge (`bool`): Add low-rank weights (LoRA) to those that they are on, and write a plain network.
        state_dict (`dict`, *optional*): The tower's weights, by default those that it has.

    Raises:
        ValueError: the tower has not been trained: its spec names where it came from.
        OSError: the folder cannot be written.
    """
    if not is_trained(tower.spec):
        raise ValueError(
            f"tower {tower_name(tower.spec)!r} has not been trained here, and is named by where it came from. Call "
            "set_trainable before it trains."
        )
    folder = os.path.abspath(folder)
    state = tower.state_dict() if state_dict is None else state_dict
    state = {name.removeprefix("model."): value for name, value in _plain_names(state).items()}
    with _written_aside(folder) as aside:
        _save_network(tower, aside, state, merge)
        if tower.spec["kind"] == "vision":
            plain_image_processor(tower.spec["image_processor"]).save_pretrained(aside)
        else:
            tower.processor.save_pretrained(aside)
        with open(os.path.join(aside, TOWER_FILE), "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "spec": portable_spec(tower.spec)}, file, indent=2, sort_keys=True)
            file.write("\n")
        give_weights_the_mode_of_config(aside)


def load_tower_weights(tower: nn.Module, folder: str | os.PathLike) -> None:
    """
    Put the weights of a folder into the tower that wrote it, in place; what trains stays as it is.

    Raises:
        OSError: the folder lacks the weights, or they are damaged.
        ValueError: they are of another network.
    """
    read_tower_file(folder)
    network = network_of(tower)
    if has_lora(tower):
        set_lora(network, folder)
        return
    state = read_weights(os.path.join(folder, WEIGHTS))
    network = getattr(network, "timm_model", network)
    # What a library calls a weight in a file may not be what the module calls it: as the library loads it.
    if isinstance(network, PreTrainedModel) and set(state) != set(network.state_dict()):
        state = _as_loaded(network, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {os.path.basename(folder)} are not of this tower: {error}") from error


def _as_loaded(network: PreTrainedModel, state: dict) -> dict:
    with quiet():
        loaded, report = type(network).from_pretrained(
            None, config=network.config, state_dict=state, dtype=network.dtype, output_loading_info=True
        )
    kept, missing = set(network.state_dict()), set(report["missing_keys"])
    return {name: value for name, value in loaded.state_dict().items() if name in kept and name not in missing}


def set_lora(network: nn.Module, folder: str | os.PathLike) -> None:
    """Put low-rank weights of a folder on a network, in place of those that it has. Raises as `load_tower_weights`."""
    try:
        from peft import LoraConfig, set_peft_model_state_dict
    except ImportError as error:
        raise ImportError("this tower has low-rank weights (LoRA), which need peft: pip install peft") from error

    state = read_weights(os.path.join(folder, ADAPTER_WEIGHTS))
    state = {name.removeprefix(_PEFT): value for name, value in state.items()}
    if not has_lora(network):
        inject_lora(network, LoraConfig.from_pretrained(os.fspath(folder)))
    own = {name.replace(".default.", ".") for name in network.state_dict() if ".lora_" in name}
    if own != set(state):
        raise ValueError(
            f"{ADAPTER_WEIGHTS} in {os.path.basename(folder)} holds {len(state)} low-rank weights, and the tower has "
            f"{len(own)}, of which {len(own & set(state))} are the same. It is of another tower."
        )
    shapes = {name.replace(".default.", "."): value.shape for name, value in network.state_dict().items()}
    if other := [name for name, value in state.items() if value.shape != shapes[name]]:
        raise ValueError(
            f"{ADAPTER_WEIGHTS} in {os.path.basename(folder)} holds low-rank weights of another rank or width: "
            f"{other[0]} is {tuple(state[other[0]].shape)}, the tower's {tuple(shapes[other[0]])}."
        )
    set_peft_model_state_dict(network, state)


def network_of(tower: nn.Module) -> nn.Module:
    """The library's network, also of a compiled tower."""
    return getattr(tower.model, "_orig_mod", tower.model)


def is_tower_folder(folder: str | os.PathLike) -> bool:
    """Whether `save_tower` wrote this folder."""
    return os.path.isfile(os.path.join(folder, TOWER_FILE))


def has_adapter(folder: str | os.PathLike) -> bool:
    """Whether a tower's folder holds low-rank weights that are not merged."""
    return os.path.isfile(os.path.join(folder, ADAPTER_CONFIG))


def read_tower_file(folder: str | os.PathLike) -> dict[str, Any]:
    """
    The spec in `tower.json`, with the folder as its place.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged or of another format.
    """
    file = os.path.join(folder, TOWER_FILE)
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"{folder} is no folder of a trained tower: it has no {TOWER_FILE}. Copy the whole checkpoint again."
        )
    try:
        content = read_json(file)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT!r}")
        spec = content["spec"]
        if spec["kind"] not in ("vision", "text") or not spec["trained"] or not spec["base_tower"]["name_or_path"]:
            raise ValueError("kind, trained or base_tower say nothing")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged or of another version ({error}). Copy the folder again.") from error
    return spec | {"name_or_path": os.path.abspath(folder)}


def folder_of_spec(spec: dict[str, Any], hub: dict[str, Any] | None = None) -> str:
    """
    The folder on this machine that a spec with `subfolder` means; a hub's is downloaded.

    Raises:
        ValueError: the spec names its checkpoint by ".", or a place outside of it.
        OSError: there is no such folder.
    """
    name, sub = spec["name_or_path"], spec["subfolder"]
    if name == OWN:
        raise ValueError(
            f'the tower is a folder of its checkpoint ({{"name_or_path": "{OWN}", "subfolder": "{sub}"}}), and which '
            "checkpoint that is is not known. Load its configuration with AdaptorConfig.from_pretrained(FOLDER or ID)."
        )
    if os.path.isabs(sub) or ".." in sub.replace("\\", "/").split("/"):
        raise ValueError(f"the subfolder of a tower must lie in its checkpoint, got {sub!r}.")
    if os.path.isabs(name) or os.path.isdir(name):
        place = name
    else:
        known = {key: hub[key] for key in ("local_files_only", "cache_dir", "token") if hub and hub.get(key)}
        try:
            place = snapshot_download(name, revision=spec.get("revision"), allow_patterns=[f"{sub}/*"], **known)
        except (OSError, ValueError) as error:
            raise OSError(
                f"tower {sub!r} of {name!r} (revision {spec.get('revision') or 'not pinned'}) could not be loaded: "
                f"{str(error).strip().splitlines()[0]}\nWithout network: hf download {name} --local-dir FOLDER where "
                "there is one, and load the model from that folder."
            ) from error
    folder = os.path.join(place, sub)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"the checkpoint {name} names its own tower in the folder {sub!r}, which is not there. Copy the whole "
            "checkpoint, with its folders, or load the model with load_towers=False for cached embeddings."
        )
    return folder


def network_of_spec(spec: dict[str, Any], hub: dict[str, Any] | None = None) -> tuple[dict[str, Any], str | None]:
    """
    Where the network of a tower is loaded from, and the low-rank weights that then go on it.

    Returns:
        The spec of the network, which is the tower's own of one that has not been trained, and the folder of its
        low-rank weights or None.

    Raises:
        OSError, ValueError: as `folder_of_spec` and `read_tower_file`.
    """
    if not is_trained(spec):
        return spec, None
    folder = folder_of_spec(spec, hub) if spec.get("subfolder") else spec["name_or_path"]
    read_tower_file(folder)
    network = spec | {"trained": None, "subfolder": None}
    if os.path.isfile(os.path.join(folder, "config.json")) or not has_adapter(folder):
        network |= {"name_or_path": folder, "revision": None}
    else:
        network |= spec["base_tower"]
    return network, folder if has_adapter(folder) else None


def copy_tower(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Copy a tower's folder to another place, in place of what is there."""
    read_tower_file(source)
    if os.path.realpath(source) == os.path.realpath(folder):
        return
    with _written_aside(os.path.abspath(folder)) as aside:
        for name in os.listdir(source):
            # See `carry_training_rows`, which has rules of their own.
            if not name.startswith("training_rows."):
                shutil.copy2(check_regular(os.path.join(source, name)), aside)


def _save_network(tower: nn.Module, folder: str, state: dict, merge: bool) -> None:
    network = network_of(tower)
    if not has_lora(tower):
        _save_plain(tower, network, folder, state)
        return
    if merge:
        _save_plain(tower, network, folder, merged_state(network, state))
        return
    config = copy.copy(network.peft_config["default"])
    base, name = tower.spec["base_tower"], tower.named_base
    config.base_model_name_or_path, config.revision = (name, base.get("revision")) if name else (None, None)
    config.inference_mode = True
    config.save_pretrained(folder)
    lora = {
        _PEFT + key.replace(".default.", "."): value.contiguous().cpu()
        for key, value in state.items()
        if ".lora_" in key
    }
    save_file(lora, os.path.join(folder, ADAPTER_WEIGHTS), metadata={"format": "pt"})
    if not name:
        _save_plain(tower, network, folder, without_lora(state))


def _save_plain(tower: nn.Module, network: nn.Module, folder: str, state: dict) -> None:
    is_timm = hasattr(network, "timm_model")
    if isinstance(network, PreTrainedModel) and not is_timm:
        with quiet():
            network.save_pretrained(folder, state_dict=state, max_shard_size="1000GB")
        return
    if is_timm:
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(_timm_config(tower, network), file, indent=2, sort_keys=True)
    state = {name.removeprefix("timm_model."): value.contiguous().cpu() for name, value in state.items()}
    save_file(state, os.path.join(folder, WEIGHTS), metadata={"format": "pt"})


def _timm_config(tower: nn.Module, network: nn.Module) -> dict[str, Any]:
    """config.json as timm writes it, which transformers reads too, with the images as the tower takes them."""
    fields, arguments = tower.spec["image_processor"], dict(network.config.model_args or {})
    if any(isinstance(getattr(network.timm_model, f"layer{number}", None), nn.Identity) for number in range(1, 5)):
        arguments[CUT] = tower.spec["truncate_layers"]
    size, mode = fields["size"], "center" if "shortest_edge" in fields["size"] else "squash"
    crop = fields["crop_size"] if fields["do_center_crop"] or mode == "center" else size
    interpolations = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    known = {key: network.timm_model.pretrained_cfg.get(key) for key in ("first_conv", "classifier", "pool_size")}
    known |= {
        "input_size": [1 if fields["do_grayscale"] else 3, crop["height"], crop["width"]],
        "num_classes": 0,
        "mean": fields["image_mean"],
        "std": fields["image_std"],
        "interpolation": interpolations.get(fields["resample"], "bicubic"),
        "crop_pct": crop["height"] / (size.get("shortest_edge") or size["height"]),
        "crop_mode": mode,
    }
    config = {
        "architecture": network.config.architecture,
        "num_classes": 0,
        "num_features": network.timm_model.num_features,
        "pretrained_cfg": {key: value for key, value in known.items() if value is not None},
    }
    return config | ({"model_args": arguments} if arguments else {})


def read_weights(file: str) -> dict:
    try:
        return load_file(check_regular(file))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{os.path.basename(file)} is missing in a tower's folder ({os.path.basename(os.path.dirname(file))}): "
            "copy the whole checkpoint."
        ) from None
    except SafetensorError as error:
        raise OSError(
            f"{os.path.basename(file)} of a tower is truncated or damaged ({error}). Copy it again."
        ) from error


def plain_image_processor(fields: dict[str, Any]):
    """A transformers image processor for fields of `AdaptorImageProcessor`; that class itself where none can do it."""
    if fields.get("do_pad_to_square") or fields.get("do_grayscale"):
        return AdaptorImageProcessor(**fields)
    names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
             "do_normalize", "image_mean", "image_std")  # fmt: skip
    return BitImageProcessor(**{name: fields[name] for name in names if name in fields}, do_convert_rgb=True)


@contextlib.contextmanager
def _written_aside(folder: str):
    """A new folder beside `folder`, which takes its place when the block ends without an error."""
    aside, older = f"{folder}.partial", f"{folder}.older"
    if os.path.isdir(older) and not os.path.isdir(folder):
        # A kill came between the two renames.
        os.rename(older, folder)
    for leftover in (aside, older):
        shutil.rmtree(leftover, ignore_errors=True)
    os.makedirs(aside)
    try:
        yield aside
        if os.path.isdir(folder):
            os.rename(folder, older)
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if os.path.isdir(older) and not os.path.isdir(folder):
            os.rename(older, folder)
        raise
    shutil.rmtree(older, ignore_errors=True)


@contextlib.contextmanager
def quiet():
    """Silences the library's load report: unused weights are expected here, and missing ones raise."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _plain_names(state: dict) -> dict:
    return {name.replace("_orig_mod.", ""): value for name, value in state.items()}


__all__ = [
    "TOWER_FILE",
    "WEIGHTS",
    "copy_tower",
    "folder_of_spec",
    "has_adapter",
    "is_tower_folder",
    "load_tower_weights",
    "network_of",
    "network_of_spec",
    "quiet",
    "read_tower_file",
    "read_weights",
    "save_tower",
    "set_lora",
]
