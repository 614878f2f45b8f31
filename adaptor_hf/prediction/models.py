"""Saved models by what they predict, each with the image processor that goes with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
)

from ..auto_classes import AdaptorForSemanticSegmentation, AdaptorModel
from ..data.reading import Reading
from ..data.table_arguments import TableArguments
from ..evaluation.zero_shot import BATCH_TEXTS
from ..image_processing_adaptor import READING, AdaptorImageProcessor, processor_of_tower
from ..privacy.class_names import names_written
from ..tasks.prompts import load_prompts
from .arguments import PredictionArguments

CLASSIFICATION, ZERO_SHOT, SEGMENTATION, DETECTION = "classification", "zero-shot", "segmentation", "detection"


@dataclass
class Loaded:
    """
    A model that predicts.

    Args:
        kind (`str`): What it predicts, one of the four above.
        model (`PreTrainedModel`): In evaluation mode, on its device.
        processor: Its image processor.
        reading (`dict`): How image files become pictures: `image_mode` ("L", "RGB" or None), `voi_lut`,
            `range_percentile`, as of `open_images`.
        names (`dict[int, str]`): Of the classes, by their numbers.
        class_embeds (`torch.Tensor` of shape `(hidden_size, C)`, *optional*): Of zero-shot classes.
        scale (`str`): What scores are: "softmax", "sigmoid" or "cosine".
        texts (`tuple`): Of zero-shot classes, those that stand for them.
        digest (`str`): 32 hex digits over all that decides what it computes.
    """

    kind: str
    model: PreTrainedModel
    processor: Any
    reading: dict[str, Any]
    names: dict[int, str]
    class_embeds: torch.Tensor | None = None
    scale: str = "softmax"
    texts: tuple = ()
    digest: str = field(default="", init=False)

    @property
    def written_names(self) -> list[str]:
        """Names of the classes as they are written: in private mode words of the field, others hashed."""
        written = names_written(self.names.values())
        return [written[name] for name in self.names.values()]


def load_model(arguments: PredictionArguments, table: TableArguments, device: str) -> Loaded:
    """
    The model of `--model`, ready to predict.

    Raises:
        FileNotFoundError: no such folder, or no model in it.
        ValueError: a model that predicts nothing, options of another kind of model, or a class without prompts.
    """
    config = _config(arguments.model)
    kind = _kind(arguments, config)
    if kind != ZERO_SHOT and (arguments.classes or arguments.prompts):
        raise ValueError(
            f"--classes and --prompts are for models of images and texts (AdaptorModel); {arguments.model} has classes "
            f"of its own, {len(config.id2label)}."
        )
    model, loading = _CLASSES[kind].from_pretrained(arguments.model, output_loading_info=True)
    model.eval()
    if missing := [*loading["missing_keys"], *loading["mismatched_keys"]]:
        raise ValueError(
            f"--model {arguments.model}: {len(missing)} of its weights are missing or of another shape, such as "
            f"{missing[0]}. They would be random numbers. Save the model again with save_pretrained."
        )
    processor = _processor(arguments.model, config)
    names = _class_names(arguments.model, config, kind)
    found = Loaded(kind, model, processor, _reading(processor, table), names)
    if kind == CLASSIFICATION:
        found.scale = _scale_of(config)
    elif kind == SEGMENTATION and not isinstance(processor, AdaptorImageProcessor):
        raise ValueError(f"{arguments.model}: its image processor is no AdaptorImageProcessor, which undoes resizing.")
    elif kind == DETECTION and not hasattr(processor, "post_process_object_detection"):
        raise ValueError(f"{arguments.model}: its image processor gives no boxes (post_process_object_detection).")
    model.to(device)
    if kind == ZERO_SHOT:
        # Once, in full precision, whatever the images are computed in.
        _add_classes(found, arguments, model)
    found.digest = _digest(found)
    model.to(getattr(torch, arguments.dtype))
    return found


_CLASSES = {
    CLASSIFICATION: AutoModelForImageClassification,
    ZERO_SHOT: AdaptorModel,
    SEGMENTATION: AdaptorForSemanticSegmentation,
    DETECTION: AutoModelForObjectDetection,
}


def _config(place: str) -> PretrainedConfig:
    folder = Path(place)
    if folder.exists() and not (folder / "config.json").is_file():
        inner = [name for name in ("model", "best") if (folder / name / "config.json").is_file()]
        hint = f" Its folder {inner[0]!r} is one: pass --model {folder / inner[0]}." if inner else ""
        raise FileNotFoundError(
            f"--model {place} is no model: it has no config.json. Expected a folder that save_pretrained or a script "
            f"wrote.{hint}"
        )
    return AutoConfig.from_pretrained(place)


def _kind(arguments: PredictionArguments, config: PretrainedConfig) -> str:
    name = next(iter(config.architectures or ()), "")
    known = {"AdaptorForImageClassification": CLASSIFICATION, "AdaptorForSemanticSegmentation": SEGMENTATION}
    known |= dict.fromkeys(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values(), CLASSIFICATION)
    known |= dict.fromkeys(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values(), DETECTION)
    if name == "AdaptorModel":
        if not arguments.classes and not arguments.prompts:
            raise ValueError(
                f"--model {arguments.model} is a pre-trained AdaptorModel: it has no classes. Name them for zero-shot "
                "prediction, with --classes NAME ... or --prompts NAME; or train a head first: train_downstream.py "
                "--task classification --save_model True, and pass its folder `model`."
            )
        return ZERO_SHOT
    if name not in known:
        raise ValueError(
            f"--model {arguments.model} is a {name or config.model_type!r}, which predicts no classes, masks or boxes. "
            "Expected AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel (zero-shot), or a "
            "model of transformers for image classification or object detection."
        )
    return known[name]


def _class_names(place: str, config: PretrainedConfig, kind: str) -> dict[int, str]:
    """By number and in its order, which is that of the scores: a file may list them in another, as "10" before "2"."""
    names = {int(number): str(name) for number, name in config.id2label.items()}
    # Detectors skip numbers.
    if kind in (CLASSIFICATION, SEGMENTATION) and set(names) != set(range(len(names))):
        raise ValueError(
            f"--model {place}: id2label of its config.json numbers {len(names)} classes, and not from 0 to "
            f"{len(names) - 1}: which score is whose is not known. Number them anew."
        )
    return dict(sorted(names.items()))


def _processor(place: str, config: PretrainedConfig) -> Any:
    folder, tower = Path(place), getattr(config, "vision_tower", None)
    written = any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    if folder.is_dir() and not written and tower is not None:
        return processor_of_tower(tower)
    return AutoImageProcessor.from_pretrained(place)


def _reading(processor: Any, table: TableArguments) -> dict[str, Any]:
    """As the model's processor states it; options come before. Models of transformers have seen pictures in colour."""
    if isinstance(processor, AdaptorImageProcessor):
        found = {name: getattr(processor, name) for name in READING}
    else:
        found = {"image_mode": "RGB", "voi_lut": False, "range_percentile": 0.0}
    if table.image_mode != "auto":
        found["image_mode"] = table.image_mode
    if table.voi_lut:
        found["voi_lut"] = True
    if table.range_percentile is not None:
        found["range_percentile"] = table.range_percentile
    Reading(found["image_mode"] or "L", bool(found["voi_lut"]), found["range_percentile"] or 0.0)
    if isinstance(processor, AdaptorImageProcessor):
        for name, value in found.items():
            setattr(processor, name, value)
    return found


def _scale_of(config: PretrainedConfig) -> str:
    """
    As transformers' pipeline chooses.

    Raises:
        ValueError: a model that predicts numbers and no classes.
    """
    if config.problem_type == "regression":
        raise ValueError('--model predicts numbers (problem_type "regression"), and no classes. Use its pipeline.')
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _add_classes(loaded: Loaded, arguments: PredictionArguments, model: AdaptorModel) -> None:
    """Names of zero-shot classes, their embeddings side by side, and what scores are."""
    if model.text_model is None or model.vision_model is None:
        raise ValueError(f"--model {arguments.model}: its config names no vision or no text tower.")
    if arguments.prompts is None:
        template = arguments.template or "{}"
        loaded.texts = tuple(template.format(name) for name in arguments.classes)
        loaded.class_embeds = _text_features(model, loaded.texts).T.contiguous()
        loaded.names = dict(enumerate(arguments.classes))
        loaded.scale = "softmax" if model.config.logit_bias_init_value is None else "sigmoid"
        return
    prompts = load_prompts(arguments.prompts)
    if arguments.classes:
        prompts = prompts.for_classes(arguments.classes, prompts.exclusive)
    loaded.texts = tuple((texts, prompts.negative.get(name)) for name, texts in prompts.positive.items())
    columns = []
    for named, denied in loaded.texts:
        column = torch.nn.functional.normalize(_text_features(model, named).mean(0), dim=0)
        if denied is not None:
            column = column - torch.nn.functional.normalize(_text_features(model, denied).mean(0), dim=0)
        columns.append(column)
    loaded.names, loaded.scale = dict(enumerate(prompts.positive)), "cosine"
    loaded.class_embeds = torch.stack(columns, dim=1)


@torch.inference_mode()
def _text_features(model: AdaptorModel, texts: Sequence[str]) -> torch.Tensor:
    """`(n, hidden_size)`, L2-normalised, by the whole model: one that pools tokens itself needs them."""
    parts = []
    for start in range(0, len(texts), BATCH_TEXTS):
        chosen = list(texts[start : start + BATCH_TEXTS])
        inputs = model.text_model.processor(chosen, return_tensors="pt", padding=True, truncation=True)
        parts.append(model.get_text_features(**inputs.to(model.device)).pooler_output)
    return torch.cat(parts)


def _digest(loaded: Loaded) -> str:
    """Over weights and configurations, towers among them, processing, and names and texts of the classes."""
    found = xxhash.xxh3_128()
    found.update(json.dumps(_configuration(loaded), sort_keys=True, default=str).encode())
    for name, value in sorted(loaded.model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    processing = {name: value for name, value in loaded.processor.to_dict().items() if "path" not in name}
    rest = [processing, loaded.reading, sorted(loaded.names.items()), loaded.scale, loaded.texts]
    found.update(json.dumps(rest, sort_keys=True, default=str).encode())
    return found.hexdigest()


def _configuration(loaded: Loaded) -> list[Any]:
    """What is no weight and decides what they compute, without places, which a model may change."""
    model, found = loaded.model.base_model, [_without_places(loaded.model.config.to_dict())]
    for tower in filter(None, (getattr(model, "vision_model", None), getattr(model, "text_model", None))):
        spec = getattr(tower, "spec", None)
        if spec is None:
            continue
        found += [_without_places(spec), _without_places(tower.config.to_dict()) if tower.config is not None else None]
        if loaded.kind == ZERO_SHOT and spec["kind"] == "text":
            backend = getattr(tower.processor, "backend_tokenizer", None)
            found.append(tower.processor.get_vocab() if backend is None else backend.to_str())
    return found


def _without_places(fields: dict[str, Any]) -> dict[str, Any]:
    kept = {str(name): value for name, value in fields.items()}
    kept = {name: value for name, value in kept.items() if name not in _NOT_COMPUTED and not name.startswith("_")}
    return {name: _without_places(value) if isinstance(value, dict) else value for name, value in kept.items()}


_NOT_COMPUTED = ("name_or_path", "revision", "subfolder", "tokenizer", "transformers_version", "auto_map", "dtype",
                 "torch_dtype", "tested", "preset", "split_rule", "data_terms", "license")  # fmt: skip


__all__ = ["CLASSIFICATION", "DETECTION", "SEGMENTATION", "ZERO_SHOT", "Loaded", "load_model"]
