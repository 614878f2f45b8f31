"""Other people's checkpoints become tower folders, read without running any code in them."""

import argparse
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..conversion import load_checkpoint
from ..files import file_sha256, folder_written_aside
from ..moved import warn_of
from ..tower_bundles_adaptor import give_weights_the_mode_of_config
from ..tower_sources_adaptor import quiet
from ..towers_adaptor import load_text_tower, load_vision_tower
from .bundle import list_files, write_manifest

logger = logging.getLogger(__name__)

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
MEDCLIP = ([0.5862785803043838] * 3, [0.27950088968644304] * 3)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
RESNETS = {("basic", 2, 2, 2, 2): "resnet18", ("basic", 3, 4, 6, 3): "resnet34", ("bottleneck", 3, 4, 6, 3): "resnet50",
           ("bottleneck", 3, 4, 23, 3): "resnet101", ("bottleneck", 3, 8, 36, 3): "resnet152"}  # fmt: skip
# Of SLIP and MoCo v3: their small ViT has 12 heads of 32, unlike timm's; the others have heads of 64, huge one of 80.
VIT_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}


class Format(NamedTuple):
    """Where a format keeps its encoders: key prefixes by kind, and the normalisation its images were trained with."""

    vision: tuple[str, ...]
    text: tuple[str, ...]
    normalisation: tuple[list[float], list[float]]


FORMATS = {
    "mgca": Format(("img_encoder_q.model.",), ("text_encoder_q.model.",), HALF),
    "slip": Format(("module.visual.", "visual."), (), IMAGENET),
    "moco": Format(
        ("module.base_encoder.", "module.encoder_q.", "base_encoder.", "encoder_q."),
        (),
        IMAGENET,
    ),
    "lovt": Format((*(f"model_{branch}.encoder.feature_extractor.backbone_layers." for branch in "ab"), ""), (), HALF),
    "torchvision": Format(("module.", ""), (), IMAGENET),
    "medclip": Format(("vision_model.model.", "model."), ("text_model.model.",), MEDCLIP),
    "open_clip": Format(("module.visual.trunk.", "visual.trunk.", "module.visual.", "visual."), (), CLIP),
}


class Network(NamedTuple):
    """A network that the weights fit, its weights by its own names, and keys of heads that a tower leaves out."""

    model: torch.nn.Module
    weights: dict[str, torch.Tensor]
    heads: list[str]


def convert_tower(
    file: str | os.PathLike,
    format: str,
    folder: str | os.PathLike,
    *,
    kind: str = "vision",
    tokenizer: str | os.PathLike | None = None,
    num_attention_heads: int | None = None,
    quick_gelu: bool = False,
    license: str | None = None,
    pretraining_data: list[str] | None = None,
    side: str | None = None,
) -> dict[str, Any]:
    """
    Writes a tower folder (config, safetensors, processor, manifest) from a checkpoint of MGCA, SLIP, MoCo (v2, v3),
    LoVT, torchvision (ResNet), MedCLIP or open_clip.

    The file is read with weights_only=True. The network's kind and sizes are read off the tensors; every tensor of the
    encoder must be there and fit. What is not the encoder's (heads, other towers, momentum copies) is reported.

    Args:
        file: .ckpt, .pt, .pth, .bin or .safetensors.
        format: a key of `FORMATS`.
        folder: is made; must not exist or be empty.
        kind: "vision", or "text" (MGCA and MedCLIP: a BERT).
        tokenizer: for text: a folder or Hub id; Bio_ClinicalBERT's for published MGCA and MedCLIP weights.
        num_attention_heads: where the widths do not tell (not the published sizes).
        quick_gelu: open_clip only: the checkpoint was trained with QuickGELU, as OpenAI's were.
        license, pretraining_data: what you know of the weights; kept in the manifest.
        side: the old name of `kind`, for one release.

    Returns:
        `prefix`, `heads` (keys left out beside the encoder), `outside` (keys of other parts), `architecture`.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: the file needs other classes than tensors, has no such encoder, or its tensors fit no network known
            here; missing and unexpected keys are listed.
    """
    if side is not None:
        warn_of("convert_tower(side=...)", "kind")
        kind = side
    folder, layout = Path(folder), FORMATS[format]
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name a new folder.")
    prefixes = layout.vision if kind == "vision" else layout.text
    if not prefixes:
        raise ValueError(f"{format} checkpoints have no {kind} encoder that is a tower here.")
    if kind == "text" and tokenizer is None:
        raise ValueError("A text tower needs its tokenizer: --tokenizer, a folder or a Hub id.")
    # SLIP keeps its command line beside the weights; a namespace only holds values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = load_checkpoint(file)
    prefix, weights = select(state, prefixes, file)
    weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    network = build(format, kind, weights, num_attention_heads, quick_gelu, file)
    with folder_written_aside(folder) as tower:
        if kind == "text":
            _write_text(network, tower, tokenizer)
        else:
            # MGCA's ResNet enlarges its input of 224 to 299 pixels; here the image is resized to that at once.
            size = 299 if format == "mgca" and "layer1.0.conv1.weight" in weights else None
            _write_vision(network, tower, layout.normalisation, size)
        _write_manifest(tower, network, format, kind, file, license, pretraining_data)
        load = load_vision_tower if kind == "vision" else load_text_tower
        load(str(tower), local_files_only=True)
    outside = sorted(key for key in state if not key.startswith(prefix))
    architecture = type(network.model).__name__
    return {"prefix": prefix, "heads": network.heads, "outside": outside, "architecture": architecture}


def _write_manifest(folder: Path, network: Network, format: str, kind: str, file, license, pretraining_data) -> None:
    entry = {"kind": kind, "name_or_path": Path(file).name, "revision": None, "preset": None}
    entry["library"] = "timm" if hasattr(network.model, "pretrained_cfg") else "transformers"
    give_weights_the_mode_of_config(folder)
    entry |= {"license": license, "pretraining_data": pretraining_data, "folder": ".", "files": list_files(folder)}
    entry |= {"format": format, "source_sha256": file_sha256(Path(file))}
    write_manifest(folder, {folder.name: entry})


def select(state: dict[str, torch.Tensor], prefixes: tuple[str, ...], file) -> tuple[str, dict[str, torch.Tensor]]:
    """The first prefix that the state dict has, and the tensors under it."""
    for prefix in prefixes:
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if found:
            return prefix, found
    starts = sorted({key.split(".")[0] for key in state})[:8]
    raise ValueError(
        f"{file}: no tensor begins with {' or '.join(prefixes)}. Its names begin with {', '.join(starts)}."
    )


def build(
    format: str, kind: str, weights: dict[str, torch.Tensor], heads: int | None, quick_gelu: bool, file
) -> Network:
    """
    The network that fits the tensors, loaded strictly.

    Raises:
        ValueError: if none fits; missing and unexpected keys are listed.
    """
    builders: list[tuple[str, Callable[[], Network]]] = [
        ("embeddings.word_embeddings.weight", lambda: _bert(weights, heads)),
        ("embeddings.patch_embeddings.projection.weight", lambda: _swin(weights)),
        ("blocks.0.attn.qkv.weight", lambda: _vit(weights, heads)),
        ("transformer.resblocks.0.attn.in_proj_weight", lambda: _clip(weights, heads, quick_gelu)),
        ("layer1.0.conv1.weight", lambda: _resnet(weights)),
    ]
    allowed = {
        "mgca": "embeddings.word blocks layer1",
        "slip": "blocks",
        "moco": "blocks layer1",
        "lovt": "layer1",
        "torchvision": "layer1",
        "medclip": "embeddings layer1",
        "open_clip": "blocks transformer",
    }[format].split()
    for anchor, make in builders:
        fits = any(anchor.startswith(start) for start in allowed)
        if anchor in weights and fits and ("word_embeddings" in anchor) == (kind == "text"):
            try:
                network = make()
            except KeyError as error:
                raise ValueError(f"{file}: its {kind} encoder lacks {error}.") from None
            _load(network, file)
            return network
    raise ValueError(
        f"{file}: its {kind} encoder is no network that {format} is known to have here ({', '.join(allowed)}); it has "
        f"for example {', '.join(sorted(weights)[:4])}."
    )


def _load(network: Network, file) -> None:
    expected = network.model.state_dict()
    # Buffers such as BERT's position_ids are not in every version's state dict.
    buffers = {name for name, _ in network.model.named_buffers()}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - network.weights.keys() - counters)
    unexpected = sorted(network.weights.keys() - expected.keys() - buffers - {"embeddings.position_ids"})
    shapes = [
        f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in network.weights.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:5])}" for what, keys in faults.items() if keys)
        raise ValueError(f"{file}: the weights do not fit {type(network.model).__name__}: {listed}.")
    network.model.load_state_dict({**expected, **{k: v for k, v in network.weights.items() if k in expected}})
    network.model.eval()


def _without(weights: dict[str, torch.Tensor], heads: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    dropped = sorted(key for key in weights if re.match(heads, key))
    return {key: value for key, value in weights.items() if key not in dropped}, dropped


def _depth(weights: dict[str, torch.Tensor], pattern: str) -> int:
    return len({found[1] for key in weights if (found := re.match(pattern, key))})


def _resnet(weights: dict[str, torch.Tensor]) -> Network:
    import timm

    weights, heads = _without(weights, r"fc\.")
    depths = [_depth(weights, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)]
    block = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    if (block, *depths) not in RESNETS:
        raise ValueError(f"a ResNet with {block} blocks {depths} is none of {', '.join(RESNETS.values())}.")
    channels = weights["conv1.weight"].shape[1]
    model = timm.create_model(RESNETS[block, *depths], num_classes=0, in_chans=channels)
    return Network(model, weights, heads)


def _vit(weights: dict[str, torch.Tensor], num_heads: int | None) -> Network:
    import timm

    weights, heads = _without(weights, r"(head|pre_logits|fc)\.")
    if "patch_embed.proj.weight" not in weights or "pos_embed" not in weights:
        raise ValueError("a ViT with another stem than one convolution, or without position embeddings, has no tower.")
    width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    num_heads = num_heads or VIT_HEADS.get(width)
    if num_heads is None or width % num_heads:
        raise ValueError(f"the number of heads of a ViT of width {width} is not known: --num_attention_heads.")
    grid = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    arguments = {
        "img_size": grid * patch, "patch_size": patch, "embed_dim": width, "num_heads": num_heads, "in_chans": channels,
        "depth": _depth(weights, r"blocks\.(\d+)\."),
        "mlp_ratio": weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }  # fmt: skip
    model = timm.create_model("vit_base_patch16_224", num_classes=0, **arguments)
    model.tower_arguments = arguments
    return Network(model, weights, heads)


def _clip(weights: dict[str, torch.Tensor], num_heads: int | None, quick_gelu: bool) -> Network:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    weights, heads = _without(weights, r"proj$")
    width, _, patch, _ = weights["conv1.weight"].shape
    hidden = weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=_depth(weights, r"transformer\.resblocks\.(\d+)\."),
        num_attention_heads=num_heads or width // 64,
        image_size=round((weights["positional_embedding"].shape[0] - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="quick_gelu" if quick_gelu else "gelu",
    )
    names = {
        "class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
    }  # fmt: skip
    parts = [("transformer.resblocks.", "encoder.layers."), ("ln_pre.", "pre_layrnorm."),
             ("ln_post.", "post_layernorm."), (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."),
             (".attn.", ".self_attn."), (".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2.")]  # fmt: skip
    renamed = {}
    for key, value in weights.items():
        name = names.get(key, key)
        for old, new in parts:
            name = name.replace(old, new)
        if ".in_proj_" in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{part}_proj.")] = third.clone()
        else:
            renamed[name] = value
    return Network(CLIPVisionModel(config), renamed, heads)


def _swin(weights: dict[str, torch.Tensor]) -> Network:
    from safetensors.torch import save_file
    from transformers import SwinConfig, SwinModel

    stages = _depth(weights, r"encoder\.layers\.(\d+)\.")
    width, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    table = "encoder.layers.{}.blocks.0.attention.self.relative_position_bias_table"
    config = SwinConfig(
        embed_dim=width,
        patch_size=patch,
        depths=[_depth(weights, rf"encoder\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        num_heads=[weights[table.format(stage)].shape[1] for stage in range(stages)],
        window_size=(round(weights[table.format(0)].shape[0] ** 0.5) + 1) // 2,
        image_size=224,
    )
    # Computed anew by the network. transformers renames the published keys while loading: so it loads them from a file.
    weights = {key: value.contiguous() for key, value in weights.items() if not key.endswith("relative_position_index")}
    with tempfile.TemporaryDirectory() as folder, quiet():
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        try:
            model, report = SwinModel.from_pretrained(folder, config=config, output_loading_info=True)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit SwinModel: {error}") from error
    for what in ("missing_keys", "unexpected_keys"):
        if keys := sorted(report[what]):
            raise ValueError(f"the weights do not fit SwinModel: {what.replace('_', ' ')} {', '.join(keys[:5])}.")
    return Network(model, model.state_dict(), [])


def _bert(weights: dict[str, torch.Tensor], num_heads: int | None) -> Network:
    from transformers import BertConfig, BertModel

    # MGCA's BERT has layers for a fusion with the image that its text encoder does not use.
    weights, heads = _without(weights, r"encoder\.layer\.\d+\.crossattention\.")
    weights = {key: value for key, value in weights.items() if key != "embeddings.position_ids"}
    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=_depth(weights, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=num_heads or width // 64,
        intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=weights["embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=weights["embeddings.token_type_embeddings.weight"].shape[0],
    )
    return Network(BertModel(config, add_pooling_layer="pooler.dense.weight" in weights), weights, heads)


def _write_vision(network: Network, folder: Path, normalisation, size: int | None) -> None:
    from safetensors.torch import save_file

    mean, std = normalisation
    model = network.model
    if not hasattr(model, "pretrained_cfg"):
        from transformers import BitImageProcessor

        size = model.config.image_size
        model.save_pretrained(folder)
        BitImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=mean, image_std=std
        ).save_pretrained(folder)
        return
    channels = next(model.parameters()).shape[1] if hasattr(model, "conv1") else model.patch_embed.proj.in_channels
    arguments = getattr(model, "tower_arguments", {"in_chans": channels})
    size = size or arguments.get("img_size", 224)
    pretrained = {"input_size": [channels, size, size], "interpolation": "bicubic", "crop_pct": 0.875}
    pretrained |= {"mean": mean[:channels], "std": std[:channels], "num_classes": 0}
    config = {"architecture": model.pretrained_cfg["architecture"], "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": pretrained}, indent=2) + "\n")
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_text(network: Network, folder: Path, tokenizer: str | os.PathLike) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer)
    if len(words) > network.model.config.vocab_size:
        raise ValueError(
            f"The tokenizer {tokenizer} has {len(words)} tokens, the weights {network.model.config.vocab_size}: it is "
            "another model's."
        )
    network.model.save_pretrained(folder)
    words.save_pretrained(folder)


__all__ = ["FORMATS", "convert_tower"]
