"""Networks of torchxrayvision: its autoencoder's encoder, and its classifiers, whose published files are pickles.

A classifier's file is read once without running anything in it (`pickled_modules_adaptor.py`), and its weights are kept
as safetensors beside it. Its network is timm's of the same architecture: tensors have the same names, and the features
are equal bit for bit. Nothing of torchxrayvision's own class is there, which resizes and warns on the way.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import difflib
import logging
import os
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .pickled_modules_adaptor import read_pickled_weights
from .regular_files_adaptor import check_regular
from .tower_sources_adaptor import import_timm

logger = logging.getLogger(__name__)

PREFIX = "xrv:"
XRV_ENCODER = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
RELEASE = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
NUM_CLASSES = 18
_D121 = "densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"


class XrvClassifier(NamedTuple):
    """Its architecture in timm, the side of its images in pixels, and the name of its published file."""

    architecture: str
    size: int
    file: str


XRV_CLASSIFIERS = {
    "densenet121-res224-all": XrvClassifier("densenet121", 224, f"nih-pc-chex-mimic_ch-google-openi-kaggle-{_D121}"),
    "densenet121-res224-nih": XrvClassifier("densenet121", 224, f"nih-{_D121}"),
    "densenet121-res224-pc": XrvClassifier("densenet121", 224, f"pc-{_D121}"),
    "densenet121-res224-chex": XrvClassifier("densenet121", 224, f"chex-{_D121}"),
    "densenet121-res224-rsna": XrvClassifier("densenet121", 224, f"kaggle-{_D121}"),
    "densenet121-res224-mimic_nb": XrvClassifier("densenet121", 224, f"mimic_nb-{_D121}"),
    "densenet121-res224-mimic_ch": XrvClassifier("densenet121", 224, f"mimic_ch-{_D121}"),
    "resnet50-res512-all": XrvClassifier("resnet50", 512, "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt"),
}
"""By the names that torchxrayvision gives its weights (1.5.7)."""


def xrv_image_processor(size: int) -> dict[str, Any]:
    """Fields of `AdaptorImageProcessor` for torchxrayvision: a centre crop of one channel in [-1024, 1024]."""
    return {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 2,
        "image_mean": [0.5],
        "image_std": [0.5 / 1024],
        "do_grayscale": True,
    }


def is_classifier(name: str) -> bool:
    """Whether a tower's name is that of one of torchxrayvision's classifiers, `xrv:` in front of it."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) in XRV_CLASSIFIERS


def check_xrv_name(name: str) -> None:
    """Raises ValueError with the closest names where torchxrayvision has no such weights that are a tower here."""
    known = [*XRV_CLASSIFIERS, *_autoencoders().model_urls]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known
        raise ValueError(
            f"torchxrayvision has no weights {name!r} that are a tower here. Did you mean "
            f"{' or '.join(PREFIX + one for one in close)}?"
        )


def load_xrv_classifier(name: str, hub: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    The network of a classifier of torchxrayvision without its last layer, as a TimmWrapperModel: (B, 1, H, W) to tokens
    (B, C, h, w) after the last ReLU, whose mean are torchxrayvision's features.

    Args:
        name: `xrv:NAME`, a key of `XRV_CLASSIFIERS`.
        hub: `cache_dir` instead of torchxrayvision's `~/.torchxrayvision/models_data`, and `local_files_only`.

    Returns:
        The network, and what timm's configurations say of the input.

    Raises:
        OSError: the file is absent and cannot be downloaded.
        ValueError: the file names other things than the layers of a network, or has other weights.
    """
    from transformers import TimmWrapperConfig, TimmWrapperModel

    known = XRV_CLASSIFIERS[name.removeprefix(PREFIX)]
    weights = classifier_weights(name, hub)
    last = last_layer(known.architecture)
    model = TimmWrapperModel(TimmWrapperConfig(architecture=known.architecture, model_args={"in_chans": 1}))
    model.timm_model.load_state_dict({key: value for key, value in weights.items() if not key.startswith(f"{last}.")})
    return model, pretrained_cfg(known.size)


def pretrained_cfg(size: int) -> dict[str, Any]:
    """What a timm configuration says of the input of torchxrayvision's networks."""
    return {"input_size": [1, size, size], "mean": [0.5], "std": [0.5 / 1024], "interpolation": "bilinear",
            "crop_pct": 1.0, "crop_mode": "center"}  # fmt: skip


def last_layer(architecture: str) -> str:
    """Name of the layer that gives a network's scores."""
    return "classifier" if architecture.startswith("densenet") else "fc"


def classifier_weights(name: str, hub: dict[str, Any]) -> dict[str, torch.Tensor]:
    """
    All weights of a classifier, its last layer among them, by timm's names: of the safetensors beside the published
    file, which are written when it is first read. Raises as `load_xrv_classifier`.
    """
    from safetensors import SafetensorError, safe_open

    known, name = XRV_CLASSIFIERS[name.removeprefix(PREFIX)], name.removeprefix(PREFIX)
    published = _cache_folder(hub) / known.file
    converted = published.with_suffix(".safetensors")
    if converted.is_file():
        try:
            with safe_open(check_regular(converted), framework="pt") as file:
                # The published file may be gone; another one in its place is read anew.
                if not published.is_file() or (file.metadata() or {}).get("source") == _state_of(published):
                    return _fitted({key: file.get_tensor(key) for key in file.keys()}, known, converted.name)  # noqa: SIM118
        except SafetensorError:
            logger.warning("%s is damaged: it is made again.", converted.name)
    published = xrv_file(name, RELEASE + known.file, hub)
    state = _state_of(published)
    weights = _fitted(_without_wrapper(read_pickled_weights(published)), known, published.name)
    _keep(weights, converted, state)
    return weights


def _without_wrapper(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the prefix that torchxrayvision's ResNet has, and without its thresholds, which are no weights."""
    weights = {key: value for key, value in weights.items() if key != "op_threshs"}
    wrapped = all(key.startswith("model.") for key in weights)
    return {key.removeprefix("model."): value for key, value in weights.items()} if wrapped else weights


def _fitted(weights: dict[str, torch.Tensor], known: XrvClassifier, file: str) -> dict[str, torch.Tensor]:
    """The weights in float32, compared with what the network has."""
    with torch.device("meta"):
        expected = import_timm().create_model(known.architecture, in_chans=1, num_classes=NUM_CLASSES).state_dict()
    # Counters were not kept before torch 0.4.1; in evaluation mode nothing reads them.
    counters = {key: torch.zeros(()) for key in expected if key.endswith("num_batches_tracked")}
    weights = counters | weights
    faults = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [key for key in expected if key in weights and weights[key].shape != expected[key].shape],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in faults.items() if keys)
        raise ValueError(
            f"{file} does not have the weights of {known.architecture} with 1 channel and {NUM_CLASSES} classes: "
            f"{listed}. Download {RELEASE}{known.file} again."
        )
    return {key: weights[key].to(expected[key].dtype) for key in expected}


def _state_of(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _keep(weights: dict[str, torch.Tensor], converted: Path, state: str) -> None:
    """Writes the safetensors aside and renames them; a folder that cannot be written is no fault."""
    from safetensors.torch import save_file

    try:
        with tempfile.TemporaryDirectory(prefix=f".{converted.stem}.", dir=converted.parent) as folder:
            aside = Path(folder) / converted.name
            save_file(weights, aside, metadata={"format": "pt", "source": state})
            aside.chmod(0o644)
            os.replace(aside, converted)
    except OSError as error:
        logger.warning("%s was not written (%s): the pickle is read again next time.", converted.name, error.strerror)


def xrv_encoder() -> nn.Module:
    """The encoder of torchxrayvision's ResNetAE, weights not loaded: (B, 1, 224, 224) to (B, 512, 3, 3)."""
    network = _autoencoders().ResNetAE(weights=None)
    return nn.Sequential(OrderedDict((name, getattr(network, name)) for name in XRV_ENCODER))


def load_xrv_encoder(name: str, hub: dict[str, Any]) -> nn.Module:
    """The encoder of a torchxrayvision autoencoder, read with weights_only=True; or from a bundle's folder.

    Raises:
        ValueError: the name is not an autoencoder of torchxrayvision.
        OSError: the file is absent and cannot be downloaded.
    """
    if os.path.isdir(name):
        from safetensors.torch import load_file

        encoder = xrv_encoder()
        encoder.load_state_dict(load_file(check_regular(os.path.join(name, "model.safetensors"))))
        return encoder
    check_xrv_name(name)
    autoencoders = _autoencoders()
    if name not in autoencoders.model_urls:
        raise ValueError(f"a tower spec calls these weights of torchxrayvision {PREFIX}{name}, in the library timm.")
    file = xrv_file(name, autoencoders.model_urls[name]["weights_url"], hub)
    network = autoencoders.ResNetAE(weights=None)
    network.load_state_dict(torch.load(check_regular(file), map_location="cpu", weights_only=True))
    return nn.Sequential(OrderedDict((part, getattr(network, part)) for part in XRV_ENCODER))


def check_xrv_files(name: str, hub: dict[str, Any]) -> None:
    """Raises OSError where the weights are not on this machine, with the way to put them in place; loads nothing."""
    if name in XRV_CLASSIFIERS:
        if not files_of_classifier(name, hub):
            xrv_file(name, RELEASE + XRV_CLASSIFIERS[name].file, hub | {"local_files_only": True})
    else:
        xrv_file(name, _autoencoders().model_urls[name]["weights_url"], hub | {"local_files_only": True})


def files_of_classifier(name: str, hub: dict[str, Any] | None = None) -> list[Path]:
    """What of a classifier's weights lies on this machine: the published file, the safetensors made of it."""
    published = _cache_folder(hub or {}) / XRV_CLASSIFIERS[name.removeprefix(PREFIX)].file
    return [file for file in (published, published.with_suffix(".safetensors")) if file.is_file()]


def _autoencoders():
    try:
        from torchxrayvision import autoencoders
    except ImportError as error:
        raise ImportError("this tower needs torchxrayvision: pip install torchxrayvision") from error
    return autoencoders


def _cache_folder(hub: dict[str, Any]) -> Path:
    return Path(hub.get("cache_dir") or os.path.expanduser("~/.torchxrayvision/models_data"))


def xrv_file(name: str, url: str, hub: dict[str, Any]) -> Path:
    """The published file, downloaded unless offline; torch writes it aside and renames it."""
    from huggingface_hub import is_offline_mode

    folder = _cache_folder(hub)
    file = folder / url.rsplit("/", 1)[-1]
    if file.is_file():
        return file
    advice = (
        f"Without network: run `python -m adaptor_hf.towers bundle xrv:{name} --to towers` elsewhere and pass "
        f"--towers_dir towers, or download {url} there and copy it to {file}"
    )
    if hub.get("local_files_only") or is_offline_mode():
        raise OSError(f"tower 'xrv:{name}' (revision not pinned) is not on this machine. {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(file), progress=sys.stderr.isatty())
    except OSError as error:
        raise OSError(f"tower 'xrv:{name}' (revision not pinned) could not be downloaded: {error}. {advice}") from error
    return file


__all__ = [
    "NUM_CLASSES",
    "PREFIX",
    "XRV_CLASSIFIERS",
    "XrvClassifier",
    "check_xrv_files",
    "check_xrv_name",
    "classifier_weights",
    "files_of_classifier",
    "is_classifier",
    "last_layer",
    "load_xrv_classifier",
    "load_xrv_encoder",
    "pretrained_cfg",
    "xrv_encoder",
    "xrv_file",
    "xrv_image_processor",
]
