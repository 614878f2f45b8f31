"""Towers with random weights, `random:NAME|CONFIG`: to be trained from scratch, or frozen as a control.

The weights are drawn anew from `init_seed` wherever the tower is loaded; the spec carries the whole architecture, so
that neither presets nor files are needed for it. This file is flat on purpose: it is copied beside a checkpoint as
remote code.
"""

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .image_processing_adaptor import translate_image_processor
from .random_specs_adaptor import PREFIX
from .regular_files_adaptor import read_json
from .tower_sources_adaptor import (
    check_architecture,
    has_optional_pooler,
    import_timm,
    is_timm_config,
    load_hub_image_processor,
    timm_image_processor_fields,
)
from .xrv_towers_adaptor import xrv_encoder

# Of a config.json, what says nothing of the network.
_NOT_OF_NETWORK = ("_name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map", "dtype",
                   "torch_dtype", "id2label", "label2id", "num_labels")  # fmt: skip
# Of timm's arguments, those that would read weights or other code.
_READS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "file", "url")
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_MAX_WIDTH, _MAX_LAYERS, _MAX_PARAMETERS = 1 << 20, 1000, 10_000_000_000
_CHECKED = 8


def random_fields(kind: str, name: str, presets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """
    What a spec says of `random:NAME|CONFIG`, its weights apart.

    Args:
        kind: "vision" or "text".
        name: `random:` and a preset, `timm:NAME`, a folder with a config.json, or a .json file.
        presets: facts by name, as of `TOWER_PRESETS`.

    Raises:
        OSError: there is no such preset, folder or file.
        ValueError: timm does not know the name, or the configuration is none of a network.
    """
    rest = name.removeprefix(PREFIX)
    fields: dict[str, Any] = {"pretraining_data": [], "init_seed": 0}
    if rest in presets:
        return fields | _of_preset(rest, presets[rest]) | {"name_or_path": name}
    if rest.startswith("timm:"):
        return fields | _of_timm(rest.removeprefix("timm:")) | {"name_or_path": name}
    place = os.path.abspath(os.path.expanduser(rest))
    file = os.path.join(place, "config.json") if os.path.isdir(place) else place
    if not os.path.isfile(file) or not file.endswith(".json"):
        known = ", ".join(sorted(key for key, value in presets.items() if value["kind"] == kind))
        raise OSError(
            f"tower {name!r}: after {PREFIX} comes a preset ({known}), timm:NAME, a folder with a config.json, or such "
            "a file; this is none that is here."
        )
    # The place of a folder is nobody's business, and the spec carries what is read there.
    shown = os.path.basename(place.removesuffix("/config.json")).removesuffix(".json")
    return fields | _of_config(kind, file, read_json(file)) | {"name_or_path": f"{PREFIX}{shown}"}


def _of_preset(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    kept = ("kind", "library", "image_processor", "max_length")
    fields = {key: copy.deepcopy(facts[key]) for key in kept if facts.get(key) is not None}
    fields["init_config"] = copy.deepcopy(facts.get("random_architecture") or facts["architecture"] or {})
    if facts["kind"] == "text" and not facts["name_or_path"].startswith(PREFIX):
        fields |= {"tokenizer": facts["name_or_path"], "revision": facts["revision"]}
    if facts["kind"] == "text" and facts["pooling"] in ("mean", "cls"):
        fields["pooling"] = facts["pooling"]
    return fields


def _of_timm(name: str) -> dict[str, Any]:
    timm = import_timm()
    base = name.split(".")[0]
    if not timm.is_model(base):
        raise ValueError(f"timm has no model {name!r}.")
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"timm has no weights {name!r}, by which its images would be processed: {error}") from error
    processing = timm_image_processor_fields({} if pretrained is None else pretrained.to_dict())
    architecture = {"model_type": "timm_wrapper", "architecture": base}
    return {"kind": "vision", "library": "timm", "init_config": architecture, "image_processor": processing}


def _of_config(kind: str, file: str, config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no configuration of a network: it holds no JSON object.")
    folder = os.path.dirname(file)
    if is_timm_config(config):
        arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
        architecture = {"model_type": "timm_wrapper", "architecture": config["architecture"]}
        fields = {"kind": "vision", "library": "timm", "init_config": architecture | {"model_args": arguments or None}}
        pretrained = config.get("pretrained_cfg") or {}
        if pretrained.get("input_size"):
            fields["image_processor"] = timm_image_processor_fields(pretrained)
        else:
            fields["image_processor"] = _square(arguments.get("img_size", 224))
        return fields
    if config.get("model_type") == "cxr-bert":
        config = config | {"model_type": "bert"}
    if config.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(f"{file}: its model_type is {config.get('model_type')!r}, which transformers does not know.")
    if f"{kind}_config" in config:
        # transformers knows what the halves of a pair are called.
        config = getattr(AutoConfig.for_model(**config), f"{kind}_config").to_dict()
    architecture = {key: value for key, value in config.items() if key not in _NOT_OF_NETWORK}
    fields = {"kind": kind, "library": "transformers", "init_config": architecture}
    if kind == "text":
        has_words = any(name.startswith(("tokenizer", "vocab")) for name in os.listdir(folder or "."))
        return fields | ({"tokenizer": os.path.abspath(folder)} if has_words else {})
    if os.path.isfile(os.path.join(folder, "preprocessor_config.json")):
        own = load_hub_image_processor(folder, None, {"local_files_only": True}, False)
        return fields | {"image_processor": translate_image_processor(own)}
    size = getattr(AutoConfig.for_model(**architecture), "image_size", None) or 224
    return fields | {"image_processor": _square(size if isinstance(size, int) else size[0])}


def _square(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "resample": 3, **_IMAGENET}


def random_network(spec: dict[str, Any]) -> nn.Module:
    """
    The network of a spec with weights drawn from its `init_seed`, on the CPU in float32, whatever the state of the
    global generator, which stays as it was. Fills `init_check` of the spec, or compares it.

    The rules are those of timm and of transformers; of CLIP's text model OpenAI's, as in SLIP. Two versions of torch,
    timm or transformers may draw other weights from the same seed: then the tower is another one.

    Raises:
        ValueError: the architecture is none that can be built, or the weights are not those that the spec was made of.
    """
    if spec["library"] not in ("timm", "transformers", "torchxrayvision"):
        raise ValueError(f"tower {spec['name_or_path']!r}: its library {spec['library']!r} has no networks.")
    seed = spec["init_seed"]
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"init_seed must be a whole number of 0 or more, got {seed!r}.")
    if spec["library"] == "torchxrayvision":
        with _seeded(seed):
            model = xrv_encoder()
    else:
        model = _timm(spec, seed) if spec["library"] == "timm" else _transformers(spec, seed)
    _compare(spec, model)
    return model.eval()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU's generator at this seed, and float32 on the CPU as the place of new tensors; put back afterwards."""
    dtype = torch.get_default_dtype()
    # Without devices: those of a GPU are neither read nor seeded.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _timm(spec: dict[str, Any], seed: int) -> nn.Module:
    from transformers import TimmWrapperConfig, TimmWrapperModel

    timm, architecture = import_timm(), spec["init_config"]
    name, arguments = architecture.get("architecture"), dict(architecture.get("model_args") or {})
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(f"tower {spec['name_or_path']!r}: timm has no model {name!r}.")
    if reading := sorted(set(arguments) & set(_READS)):
        raise ValueError(f"tower {spec['name_or_path']!r}: model_args has {', '.join(reading)}, and nothing is read.")
    _check_sizes(spec["name_or_path"], arguments)
    with _seeded(seed):
        network = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
        # transformers' wrapper draws weights by a rule of its own; timm's are put over them.
        model = TimmWrapperModel(TimmWrapperConfig(architecture=name, model_args=arguments or None))
    model.timm_model.load_state_dict(network.state_dict())
    return model


def _transformers(spec: dict[str, Any], seed: int) -> nn.Module:
    name, architecture = spec["name_or_path"], spec["init_config"]
    if architecture.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(f"tower {name!r}: transformers has no model_type {architecture.get('model_type')!r}.")
    _check_sizes(name, architecture)
    config = AutoConfig.for_model(**architecture)
    check_architecture(spec["kind"], name, config)
    # A pooler that was never trained only mixes the first token.
    optional = has_optional_pooler(MODEL_MAPPING[type(config)])
    arguments = {"add_pooling_layer": False} if optional else {}
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModel.from_config(config, **arguments).parameters())
    if size > _MAX_PARAMETERS:
        raise ValueError(f"tower {name!r} would have {size:,} parameters, over {_MAX_PARAMETERS:,}.")
    with _seeded(seed):
        model = AutoModel.from_config(config, dtype=torch.float32, **arguments)
        if config.model_type == "clip_text_model":
            _draw_as_openai(model)
    return model


def _check_sizes(name: str, sizes: dict[str, Any]) -> None:
    """A spec may come from anyone: what no network has is refused before it takes all memory."""
    for key, value in sizes.items():
        limit = _MAX_LAYERS if key in ("num_hidden_layers", "n_layers", "depth") else _MAX_WIDTH
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > limit:
                raise ValueError(f"tower {name!r}: {key} must be at most {limit}, got {number}.")


@torch.no_grad()
def _draw_as_openai(model: nn.Module) -> None:
    """CLIP's own rule, which SLIP has too; transformers' takes the deviations of input and output projection the other
    way round. Biases of the feed-forward layers are torch's, all others zero."""
    config = model.config
    width, fitted = config.hidden_size**-0.5, (2 * config.num_hidden_layers) ** -0.5
    deviations = {"q_proj": width, "k_proj": width, "v_proj": width, "out_proj": width * fitted,
                  "fc1": (2 * config.hidden_size) ** -0.5, "fc2": width * fitted, "token_embedding": 0.02,
                  "position_embedding": 0.01}  # fmt: skip
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last not in deviations:
            continue
        if last in ("fc1", "fc2"):
            module.reset_parameters()
        elif getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        nn.init.normal_(module.weight, std=deviations[last])


def _compare(spec: dict[str, Any], model: nn.Module) -> None:
    """Rounded first weights of some tensors: whether another version of the libraries draws the same ones."""
    matrices = [p for _, p in sorted(model.named_parameters()) if p.ndim > 1]
    chosen = matrices[:: max(1, len(matrices) // _CHECKED)][:_CHECKED]
    found = [round(float(p.detach().flatten()[0]), 6) for p in chosen]
    known = spec.get("init_check")
    if known is None:
        spec["init_check"] = found
    elif len(known) != len(found) or any(abs(a - b) > 1e-4 for a, b in zip(known, found, strict=True)):
        raise ValueError(
            f"tower {spec['name_or_path']!r}: this torch ({torch.__version__}), timm or transformers draws other "
            f"weights from init_seed={spec['init_seed']} than the version that made the model. Load it with that "
            "version; to move on, save it there with towers_in_checkpoint=True."
        )


def fit_words(spec: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Compare a tokenizer with the vocabulary that a random text tower is to have, before it is built. Of CLIP's text
    model, which pools at the end token, that token is put into the architecture.

    Raises:
        ValueError: it has more tokens, or does not end a text with an end token.
    """
    name, architecture = spec["name_or_path"], spec["init_config"]
    size = AutoConfig.for_model(**architecture).vocab_size
    needed = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if needed > size:
        raise ValueError(
            f"tower {name!r} has a vocabulary of {size:,} tokens, and its tokenizer needs {needed:,}: take another "
            "tokenizer, or a config.json with that vocab_size."
        )
    if architecture.get("model_type") != "clip_text_model":
        return
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    whole, cut = (tokenizer(text, truncation=True, max_length=8)["input_ids"] for text in ("a", "a " * 20))
    if end is None or any(end not in ids or ids.index(end) != len(ids) - 1 for ids in (whole, cut)):
        raise ValueError(
            f"tower {name!r} pools at the token that ends a text, also of one that is cut, and its tokenizer puts none "
            f"there ({'it has no end token' if end is None else f'its end token is {end}'}). Take one that does, as "
            "CLIP's."
        )
    if end == 2:
        raise ValueError(
            f"tower {name!r} pools at the token that ends a text, which of this tokenizer is number 2: transformers' "
            "CLIP takes that as a sign of old weights, and would pool at the largest number. Give it another one."
        )
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    architecture |= {"eos_token_id": end, "bos_token_id": first, "pad_token_id": tokenizer.pad_token_id}


__all__ = ["fit_words", "random_fields", "random_network"]
