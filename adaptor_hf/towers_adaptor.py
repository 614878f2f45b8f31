"""Loads frozen towers with their pretrained weights, by name, folder or spec.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .frozen_towers_adaptor import TextTower, VisionFeatures, VisionTower, sizes_in_spec
from .image_processing_adaptor import AdaptorImageProcessor, image_processor_fields, translate_image_processor
from .random_towers_adaptor import fit_words, is_random, random_network
from .tower_bundles_adaptor import find_bundled
from .tower_folders_adaptor import network_of_spec, set_lora
from .tower_layers_adaptor import LAYER_KEYS, complete_layers, layer_fields, truncate
from .tower_sources_adaptor import (
    has_optional_pooler,
    has_trained_pooler,
    load_hub_image_processor,
    load_lite0,
    load_timm,
    load_transformers,
    sentence_transformers_pooling,
    timm_image_processor_fields,
)
from .tower_specs_adaptor import (
    POOLINGS,
    SPEC_KEYS,
    TOWER_PRESETS,
    load_text_processor,
    location_of,
    partial_spec,
    resolve_library,
)
from .xrv_towers_adaptor import is_classifier, load_xrv_classifier, load_xrv_encoder, xrv_encoder, xrv_image_processor

XRV_IMAGE_PROCESSOR = xrv_image_processor(224)


def load_vision_tower(
    name_or_spec: str | dict[str, Any],
    *,
    revision: str | None = None,
    pooling: str | None = None,
    layers: Sequence[int] | None = None,
    layers_merge: str | None = None,
    layers_norm: bool | None = None,
    truncate_layers: int | None = None,
    init_seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    local_files_only: bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    towers_dir: str | os.PathLike | None = None,
) -> VisionTower:
    """Loads a frozen vision tower with its pretrained weights, in float32 unless `dtype` says otherwise.

    Args:
        name_or_spec: a preset (`adaptor_hf.towers.list_towers()`), a hub id, a folder, `timm:NAME`, `xrv:NAME`,
            `random:` and a preset, `timm:NAME` or folder, or a tower spec.
        revision: branch, tag or commit on the hub; stored in the spec as the commit that was loaded.
        pooling: "pooler" (the network's own), "cls" (first token), "mean" (average of the spatial tokens) or "cls+mean"
            (both, one after the other: an embedding of twice the width). By default the trained pooler if the
            checkpoint has one, else "cls"; "mean" for networks without a class token.
        layers: numbers of a transformer's layers from 1, such as [6, 9, 12], whose outputs are joined for each token
            before the pooling; of a convolutional network of its stages, where the embedding stays that of the last
            one. By default the network's own output, after its last layer and norm. () also takes that, of a spec that
            says otherwise.
        layers_merge: "concat" (default: the tokens are as many times as wide) or "mean".
        layers_norm: whether the network's final norm goes over the output of each of these layers. By default True
            where the network has one; BERT and its like have not, as each of their layers ends with a norm.
        truncate_layers: cut the network after so many layers, or stages of a ResNet.
        init_seed: of `random:`, from which the weights are drawn; 0 by default.
        trust_remote_code: run code from the checkpoint's repository; off unless you trust it.
        towers_dir: a folder that `python -m adaptor_hf.towers bundle` has written; towers are looked for there first,
            by preset or hub id, and the spec still names that id. By default the one that ADAPTOR_TOWERS_DIR names.

    Raises:
        OSError: the tower is not on this machine and cannot be fetched, or its checkpoint lacks weights. The message
            says how to put it in place offline. Weights are never random unless `random:` asks for it.
        ValueError: the model is no vision tower, or does not have the pooling asked for, or its image processor has
            steps that `AdaptorImageProcessor` cannot express.
    """
    hub = _hub_arguments(local_files_only, cache_dir, token)
    asked = (pooling, layers, layers_merge, layers_norm, truncate_layers, init_seed)
    spec = partial_spec("vision", name_or_spec, revision, *asked)
    network, adapter = network_of_spec(spec, hub)
    if is_random(network):
        model = random_network(network)
    else:
        model = _load_vision_model(network, hub, trust_remote_code, towers_dir)
    truncate(model, network)
    if adapter is not None:
        set_lora(model, adapter)
    complete_layers(model, spec)
    # Stored in full, so that another version's defaults change nothing.
    spec["image_processor"] = image_processor_fields(AdaptorImageProcessor(**spec["image_processor"]))
    tower = VisionTower(model, spec)
    if spec["hidden_size"] is None or spec["grid_shape"] is None or spec["pooling"] is None:
        tower._complete_spec()
    return tower.to(device=device, dtype=dtype)


def load_text_tower(
    name_or_spec: str | dict[str, Any],
    *,
    revision: str | None = None,
    pooling: str | None = None,
    layers: Sequence[int] | None = None,
    layers_merge: str | None = None,
    layers_norm: bool | None = None,
    truncate_layers: int | None = None,
    init_seed: int | None = None,
    tokenizer: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    local_files_only: bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    towers_dir: str | os.PathLike | None = None,
) -> TextTower:
    """Loads a frozen text tower with its pretrained weights, in float32 unless `dtype` says otherwise.

    Args and errors are those of `load_vision_tower`. "mean" averages over the positions of the attention mask. By
    default the pooling is the one a sentence-transformers checkpoint names, else the trained pooler, else "cls".
    `tokenizer`, of `random:` alone, names the folder or Hub id of the one to use.
    """
    hub = _hub_arguments(local_files_only, cache_dir, token)
    asked = (pooling, layers, layers_merge, layers_norm, truncate_layers, init_seed, tokenizer)
    spec = partial_spec("text", name_or_spec, revision, *asked)
    network, adapter = network_of_spec(spec, hub)
    processor = None
    if is_random(network):
        network["library"] = "transformers"
        processor = load_text_processor(network, hub, trust_remote_code, towers_dir)
        fit_words(network, processor)
        model = random_network(network)
        location = network["name_or_path"]
    else:
        location = location_of(network, towers_dir, hub)
        resolve_library(network, location, hub)
        if spec["pooling"] is None:
            spec["pooling"] = sentence_transformers_pooling(location, spec["revision"], hub)
        if spec["pooling"] is None and spec.get("layers"):
            spec["pooling"] = "cls"
        model = load_transformers("text", location, network["revision"], spec["pooling"], hub, trust_remote_code)
    truncate(model, network)
    if adapter is not None:
        set_lora(model, adapter)
    if spec["pooling"] is None:
        spec["pooling"] = "pooler" if has_trained_pooler(model) else "cls"
    if spec["pooling"] == "pooler" and not has_trained_pooler(model):
        raise ValueError(f'tower {location!r} has no pooler; pass pooling="cls" or pooling="mean".')
    if model.config.model_type == "clip_text_model" and spec["pooling"] != "pooler":
        raise ValueError(f'tower {location!r} is CLIP\'s causal text model; its only pooling is "pooler".')
    complete_layers(model, spec)
    width = model.config.hidden_size
    if spec.get("layers_merge") == "concat":
        width *= len(spec["layers"])
    spec |= sizes_in_spec(2 * width if spec["pooling"] == "cls+mean" else width, width)
    processor = processor or load_text_processor(spec, hub, trust_remote_code, towers_dir)
    limits = [spec["max_length"], processor.model_max_length, position_limit(model.config)]
    spec["max_length"] = min(limit for limit in limits if limit is not None)
    processor.model_max_length = spec["max_length"]
    return TextTower(model, spec, processor).to(device=device, dtype=dtype)


def tower_from_config(
    spec: dict[str, Any], config: PreTrainedConfig | dict[str, Any] | None
) -> VisionTower | TextTower:
    """Builds a tower's network without its weights, for a checkpoint that carries them itself.

    Safe under `torch.device("meta")`. The caller must load every weight afterwards.

    Args:
        spec: a complete tower spec.
        config: the library's configuration (`tower.config`) or its `to_dict()`; None for torchxrayvision.

    Raises:
        ValueError: the spec asks for layers that the network does not have.
    """
    if spec["library"] == "torchxrayvision":
        model = xrv_encoder()
    else:
        if isinstance(config, dict):
            config = AutoConfig.for_model(**config)
        arguments = {}
        if type(config) in MODEL_MAPPING and has_optional_pooler(MODEL_MAPPING[type(config)]):
            arguments["add_pooling_layer"] = spec["pooling"] == "pooler"
        model = AutoModel.from_config(config, **arguments)
    spec = dict(spec)
    spec |= layer_fields(*(spec.pop(key, None) for key in LAYER_KEYS))
    truncate(model, spec)
    complete_layers(model, spec)
    tower = (VisionTower if spec["kind"] == "vision" else TextTower)(model, spec)
    tower.loaded_weights = None
    return tower


def tower_digest(tower: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of the state dict, sorted by name; the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hub_arguments(local_files_only, cache_dir, token) -> dict[str, Any]:
    return {"local_files_only": bool(local_files_only), "cache_dir": cache_dir, "token": token}


def _load_vision_model(
    spec: dict[str, Any], hub: dict[str, Any], trust_remote_code: bool, towers_dir: str | os.PathLike | None
) -> nn.Module:
    """The network of a vision tower; fills library, revision and image_processor of the spec."""
    bundled = find_bundled(spec, towers_dir)
    if spec["library"] == "torchxrayvision":
        spec["image_processor"] = spec["image_processor"] or dict(XRV_IMAGE_PROCESSOR)
        is_folder = bundled is not None or spec.get("subfolder")
        return load_xrv_encoder(location_of(spec, towers_dir, hub) if is_folder else spec["name_or_path"], hub)
    location = location_of(spec, towers_dir, hub)
    if spec["name_or_path"].startswith("package:") and bundled is None:
        model, pretrained = load_lite0()
        spec["library"] = "timm"
    elif is_classifier(spec["name_or_path"]) and bundled is None:
        model, pretrained = load_xrv_classifier(spec["name_or_path"], hub)
    else:
        resolve_library(spec, location, hub)
        if spec["library"] == "timm":
            model, pretrained = load_timm(location, spec["revision"], hub)
            spec["license"] = spec["license"] or pretrained.get("license")
        else:
            arguments = (location, spec["revision"])
            # With layers the pooler is of no use, and its weights would be part of the tower's digest.
            pooling = spec["pooling"] or ("cls" if spec.get("layers") else None)
            model = load_transformers("vision", *arguments, pooling, hub, trust_remote_code)
            if spec["image_processor"] is None:
                own = load_hub_image_processor(*arguments, hub, trust_remote_code)
                spec["image_processor"] = translate_image_processor(own)
            return model
    spec["image_processor"] = spec["image_processor"] or timm_image_processor_fields(pretrained)
    return model


def position_limit(config: PreTrainedConfig) -> int | None:
    """Longest sequence the position embeddings allow; RoBERTa and its like start counting after the padding index."""
    positions = getattr(config, "max_position_embeddings", None)
    offset_types = ("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm", "data2vec-text")
    if positions is not None and config.model_type in offset_types:
        return positions - 1 - (config.pad_token_id if config.pad_token_id is not None else 1)
    return positions


__all__ = [
    "POOLINGS",
    "SPEC_KEYS",
    "TOWER_PRESETS",
    "XRV_IMAGE_PROCESSOR",
    "TextTower",
    "VisionFeatures",
    "VisionTower",
    "load_text_processor",
    "load_text_tower",
    "load_vision_tower",
    "tower_digest",
    "tower_from_config",
]
