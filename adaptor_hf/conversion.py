"""Convert checkpoints of the reference code (holajoa/Adaptor-VL-SSL) to AdaptorModel, and as a command."""

import argparse
import re
import zipfile
from pathlib import Path

import torch

from .configuration_adaptor import AdaptorConfig
from .files import check_regular
from .modeling_adaptor import AdaptorModel
from .privacy.gate import guarded, knows
from .privacy.mode import error_text

ANCHOR = "projection.visual_projection.weight"
LAYER = re.compile(r"adaptor_module\.encoder\.(\d+)\.(.+)")
LAYER_NAMES = {
    "attn.out_proj.weight": "self_attn.out_proj.weight",
    "attn.out_proj.bias": "self_attn.out_proj.bias",
    "linear1.weight": "mlp.fc1.weight",
    "linear1.bias": "mlp.fc1.bias",
    "linear2.weight": "mlp.fc2.weight",
    "linear2.bias": "mlp.fc2.bias",
    "norm1.weight": "layer_norm1.weight",
    "norm1.bias": "layer_norm1.bias",
    "norm2.weight": "layer_norm2.weight",
    "norm2.bias": "layer_norm2.bias",
}
TOP_NAMES = {
    "logit_scale": "logit_scale",
    "projection.visual_projection.weight": "visual_projection.weight",
    "projection.text_projection.weight": "text_projection.weight",
}


def convert_reference_state_dict(
    state_dict: dict[str, torch.Tensor], config: AdaptorConfig | None = None
) -> tuple[AdaptorConfig, dict[str, torch.Tensor]]:
    """
    Map the reference's parameter names (commit 2414548c, `models/adaptor.py`) to those of [`AdaptorModel`].

    Args:
        state_dict (`dict[str, torch.Tensor]`): The reference module's, or the `state_dict` entry of a Lightning
            checkpoint of it. A common prefix (`adaptor.`, of its fine-tuning module) is removed, and what lies outside
            that prefix is left.
        config (`AdaptorConfig`, *optional*): Must fit the tensors. By default widths and layers are read off their
            shapes and the number of heads is the reference's 12.

    Returns:
        `tuple[AdaptorConfig, dict[str, torch.Tensor]]`: For `model.load_state_dict(converted)`, which is strict.

    Raises:
        ValueError: if tensors are missing, unknown, or of a shape that contradicts `config`.
    """
    anchors = [name for name in state_dict if name.endswith(ANCHOR)]
    if len(anchors) != 1:
        raise ValueError(
            f"This is no state dict of the reference Adaptor: expected one name that ends in {ANCHOR!r}, found "
            f"{len(anchors)} among {len(state_dict)} names."
        )
    prefix = anchors[0].removesuffix(ANCHOR)
    converted: dict[str, torch.Tensor] = {}
    for full_name, tensor in state_dict.items():
        if not full_name.startswith(prefix):
            continue
        name = full_name.removeprefix(prefix)
        layer = LAYER.fullmatch(name)
        if name in TOP_NAMES:
            converted[TOP_NAMES[name]] = tensor
        elif layer and layer[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = layer[2].removeprefix("attn.in_proj_")
            for projection, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"shared_encoder.layers.{layer[1]}.self_attn.{projection}_proj.{kind}"] = part.clone()
        elif layer and layer[2] in LAYER_NAMES:
            converted[f"shared_encoder.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}"] = tensor
        else:
            raise ValueError(f"Unknown tensor {full_name!r} in a state dict of the reference Adaptor.")

    config = read_config(converted) if config is None else config
    with torch.device("meta"):
        expected = AdaptorModel(config).state_dict()
    if missing := sorted(expected.keys() - converted.keys()):
        raise ValueError(f"The state dict lacks {len(missing)} tensors, for one {missing[0]!r} (in our names).")
    if extra := sorted(converted.keys() - expected.keys()):
        raise ValueError(f"The state dict has {len(extra)} tensors too many for this config, for one {extra[0]!r}.")
    for name, tensor in converted.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, the config asks for {tuple(expected[name].shape)}."
            )
    return config, converted


def read_config(converted: dict[str, torch.Tensor]) -> AdaptorConfig:
    """Widths and number of layers from the shapes of converted tensors; 12 heads, as the reference has them."""
    hidden_size, vision_hidden_size = converted["visual_projection.weight"].shape
    layers = {int(name.split(".")[2]) for name in converted if name.startswith("shared_encoder.layers.")}
    fc1 = converted.get("shared_encoder.layers.0.mlp.fc1.weight")
    return AdaptorConfig(
        hidden_size=hidden_size,
        vision_hidden_size=vision_hidden_size,
        text_hidden_size=converted["text_projection.weight"].shape[1],
        num_hidden_layers=len(layers),
        intermediate_size=2048 if fc1 is None else fc1.shape[0],
    )


def load_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """
    Read a `.ckpt`, `.pt`, `.pth`, `.bin` or `.safetensors` file without running any code in it.

    Raises:
        ValueError: if the file needs other classes than tensors, NumPy numbers and arrays, and builtins; the message
            names them.
    """
    path = Path(check_regular(path))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        with torch.serialization.safe_globals(numpy_values()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if zipfile.is_zipfile(path):
            with torch.serialization.safe_globals(numpy_values()):
                unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        else:
            unsafe = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not unsafe:
            # torch's own text advises to read the file unsafely.
            refused = str(error).startswith("Weights only load failed")
            reason = "it holds other things than tensors, numbers and builtin types" if refused else error
            raise ValueError(f"{path} is no readable PyTorch checkpoint: {reason}") from error
        raise ValueError(
            f"{path} needs classes that loading would have to run: {', '.join(sorted(unsafe))}. It was not opened. In "
            "a place where you trust the file, and with those packages installed, extract the weights: "
            "torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pt'); then convert weights.pt."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} holds neither a state dict nor a checkpoint with one under 'state_dict'.")
    return content


def numpy_values() -> list:
    """
    What pickled numbers and arrays of NumPy name, for `torch.serialization.safe_globals`: Lightning keeps such numbers
    beside the weights. They only hold values.
    """
    import numpy as np
    from numpy._core.multiarray import _reconstruct, scalar

    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name not in ("ObjectDType", "StringDType")]
    # Files of NumPy 1 have the older module's name.
    named = [(value, f"numpy.{core}.multiarray.{value.__name__}") for value in (_reconstruct, scalar)
             for core in ("core", "_core")]  # fmt: skip
    return [np.dtype, np.ndarray, *dtypes, *named]


@guarded(knows("places; weights hold no rows of a table"))
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m adaptor_hf.conversion",
        description="Convert a checkpoint of the reference code to a folder that AutoModel loads.",
    )
    parser.add_argument("checkpoint", type=Path, help="a .ckpt, .pt, .pth, .bin or .safetensors file")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num_attention_heads", type=int, default=12)
    options = parser.parse_args(arguments)
    try:
        config, state_dict = convert_reference_state_dict(load_checkpoint(options.checkpoint))
        if options.num_attention_heads != config.num_attention_heads:
            config = AdaptorConfig(**{**config.to_dict(), "num_attention_heads": options.num_attention_heads})
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error_text(error)}") from error
    model = AdaptorModel(config)
    model.load_state_dict(state_dict)
    model.save_pretrained(options.output_dir)
    print(
        f"Wrote {options.output_dir}: {model.num_parameters():,} parameters. It names no towers: it takes embeddings."
    )


if __name__ == "__main__":
    main()
