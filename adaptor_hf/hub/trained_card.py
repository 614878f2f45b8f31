"""Cards of towers that were trained here, and of classifiers with one: licence, origin, data, terms, and how."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.catalog import dataset_names, get_dataset
from ..data.training_rows import TOWER_FILE, TRAINING_ROWS_FILE, copy_training_rows
from ..evaluation.aligners import describe_aligner
from ..file_records import TOWER_FOLDERS
from ..files import read_json, written_aside
from ..markdown import one_line, plain, sentence, table_row
from ..tower_folders_adaptor import has_adapter, read_tower_file
from ..tower_layers_adaptor import CUT
from ..towers import TOWER_PRESETS
from ..towers.terms import terms_of
from ..towers.words import describe_layers, describe_training
from .model_card import describe_pretraining, is_hub_id, license_of, revision_of

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

RESEARCH = "**For research only. Not a medical device: not for diagnosis, triage or any decision about a patient.**"
PLACE = "path/to/this/folder"
TOWER = """\
# {title}

A {kind} encoder that was trained with `adaptor_hf`: {how}. It started as `{base}` (revision {revision}).

{research}

## Use

```python
from adaptor_hf.towers import load_{kind}_tower

tower = load_{kind}_tower("path/to/this/folder")
```

{library}

## Licence and terms

Licence of what it started from: {license}. {terms}

{data_terms}

## Data

Trained or pre-trained on: {data}. A test on any of these data sets is no test: which of their rows this training saw
is in `training_rows.safetensors` of the run, as digests.
{arguments}
"""
CLASSIFIER = """\
# {title}

{aligner} with a head for {count} {classes}, and the vision tower that trained with them on {dataset}: {how}. The tower
is the folder `vision_tower`, with a card of its own; it started as `{base}`.

{research}

## Use

```python
from transformers import pipeline

classify = pipeline("image-classification", model="path/to/this/folder", trust_remote_code=True)
```

With the `adaptor_hf` package installed, `import adaptor_hf` before this replaces `trust_remote_code=True`.

## Licence and terms

Licence of what the tower started from: {license}. {terms}

{data_terms}

## Evaluation

{evaluation}
"""


def write_tower_card(folder: str | os.PathLike, arguments: Mapping[str, Any] | None = None) -> Path:
    """
    Write `README.md` of a trained tower's folder, from its `tower.json`.

    Args:
        folder (`str` or `PathLike`): Such as `RUN/vision_tower`.
        arguments (`Mapping`, *optional*): How it was trained: objective, epochs, learning rate; no path and no id.

    Raises:
        OSError, ValueError: as of `read_tower_file`.
    """
    folder = Path(folder)
    spec = read_tower_file(folder)
    base, adapter = spec["base_tower"], has_adapter(folder)
    library = "peft" if adapter else spec["library"]
    tags = ["adaptor", "medical-imaging", f"{spec['kind']}-encoder"]
    tags += [spec["library"]] if adapter else []
    rows = [table_row(item) for item in (arguments or {}).items()]
    text = TOWER.format(
        title=plain(f"{base['name_or_path']}, {_how(spec)}"),
        kind=spec["kind"],
        how=_how(spec),
        base=one_line(base["name_or_path"]),
        revision=revision_of(spec),
        research=RESEARCH,
        library=_use(spec, folder),
        **_terms(spec),
        data=plain(describe_pretraining(spec)),
        arguments="\n".join(["", "## Training", "", "| argument | value |", "|---|---|", *rows]) if rows else "",
    )
    return _write(folder, _metadata(spec, library_name=library, tags=tags), text)


def write_classifier_card(
    folder: str | os.PathLike, config: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], *, dataset: str
) -> Path:
    """
    Write `README.md` of a classifier with a tower of its own.

    Args:
        folder (`str` or `PathLike`): Of the model.
        config (`Mapping`): Its config as a dictionary.
        lines (`Iterable[Mapping]`): Result lines of it, for the metadata and a table.
        dataset (`str`): What it was trained on, as results call it.
    """
    from ..evaluation.tables import aggregate
    from .results_card import card_results

    spec, results = config["vision_tower"], card_results(aggregate(lines))
    rows = [[result.dataset_name, result.metric_type, *_value(result)] for result in results]
    head = ["test set", "metric", "value", "95 % interval", "trivial baseline", "n"]
    table = [table_row(head), "|" + "---|" * len(head), *map(table_row, rows)]
    names = list((config.get("id2label") or {}).values())
    text = CLASSIFIER.format(
        title=plain(f"Classifier on {dataset}, {_how(spec)}"),
        aligner=describe_aligner(config),
        count=len(names),
        classes="class" if len(names) == 1 else "classes",
        dataset=plain(one_line(dataset)),
        how=_how(spec),
        base=one_line(spec["base_tower"]["name_or_path"]),
        research=RESEARCH,
        **_terms({**spec, "data_terms": config.get("data_terms") or spec.get("data_terms")}),
        evaluation="\n".join(table) if rows else "Not evaluated.",
    )
    data = _metadata(
        spec, library_name="transformers", tags=["adaptor", "medical-imaging", "custom_code"],
        pipeline_tag="image-classification", model_name=one_line(Path(folder).absolute().name), eval_results=results,
    )  # fmt: skip
    return _write(Path(folder), data, text)


def complete_towers(folder: str | os.PathLike, arguments: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """
    Write into the folders of trained towers in a saved model's folder what they need to stand alone: the digests of the
    training rows, and a card.

    Args:
        folder (`str` or `PathLike`): Of the model.
        arguments (`Mapping`, *optional*): By kind, `"vision"` or `"text"`, as of `write_tower_card`.
    """
    folder = Path(folder)
    for tower in (folder / name for name in TOWER_FOLDERS if (folder / name / TOWER_FILE).is_file()):
        if (folder / TRAINING_ROWS_FILE).is_file():
            copy_training_rows(folder, tower)
        own = (arguments or {}).get(tower.name.removesuffix("_tower"))
        # One that came with a card, and did not train since, has that of its own training.
        if own is not None or not (tower / "README.md").is_file():
            write_tower_card(tower, own)


def _use(spec: Mapping[str, Any], folder: Path) -> str:
    """How other libraries read the folder, as lines that run, or that none does."""
    adapter, base, cut = has_adapter(folder), spec["base_tower"], spec.get("truncate_layers") is not None
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    said, lines = "Or, without that package:", []
    if adapter:
        said = (
            "Or, without that package, by transformers and peft; the folder holds low-rank weights as peft writes them"
        )
        said += f", {'which go onto the encoder that it started from' if config is None else 'and what they go onto'}:"
    if config is None and cut:
        return (
            "No other library reads it: its low-rank weights go onto a part of the encoder that it started from. "
            "`adaptor_hf.tower_folders_adaptor.save_tower(tower, folder, merge=True)` writes one plain network."
        )
    if config is None:
        revision = f", revision={json.dumps(base['revision'])}" if base.get("revision") else ""
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModel",
            "",
            f"base = AutoModel.from_pretrained({json.dumps(one_line(base['name_or_path']))}{revision})",
            f'network = PeftModel.from_pretrained(base, "{PLACE}")',
        ]
    elif CUT in (config.get("model_args") or {}):
        return f"No other library reads it: it is a ResNet, {describe_layers(spec)}. timm and transformers refuse it."
    elif adapter or spec["library"] == "transformers":
        lines = ["from transformers import AutoModel", "", f'network = AutoModel.from_pretrained("{PLACE}")']
    elif spec["library"] == "timm":
        lines = ["import timm", "", f'network = timm.create_model("local-dir:{PLACE}", pretrained=True)']
    else:
        return "No other library reads it."
    return "\n".join([said, "", "```python", *lines, "```"])


def _terms(spec: Mapping[str, Any]) -> dict[str, str]:
    terms = terms_of(dict(spec))
    said, source = terms["data_terms"], terms["commercial_source"] or "nothing is recorded"
    return {
        "license": plain(license_of(dict(spec))),
        "terms": f"Commercial use: {terms['commercial']} ({plain(source)}).",
        "data_terms": (
            f"**Terms of the data.** {sentence(plain(said))}" if said else
            "Terms of the data: none are recorded here that restrict sharing. Check your own."
        ),
    }  # fmt: skip


def _metadata(spec: Mapping[str, Any], **fields: Any) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base = spec["base_tower"]["name_or_path"]
    related = {"base_model": [base], "base_model_relation": "adapter" if spec["trained"] == "lora" else "finetune"}
    known = [name for name in spec.get("pretraining_data") or () if name in _public_names()]
    return ModelCardData(
        license=(spec.get("license") or "").lower() or None,
        datasets=known or None,
        **(related if is_hub_id(spec["base_tower"]) else {}),
        **fields,
    )


def _public_names() -> set[str]:
    """Names of public data sets, as metadata list them: of the catalogue, and of what presets were trained on."""
    declared = [get_dataset(name) for name in dataset_names()]
    names = {one.pretraining_name for one in declared} | set(dataset_names())
    known = {name for facts in TOWER_PRESETS.values() for name in facts["pretraining_data"] or ()}
    # "1 billion sentence pairs of the web" describes, and names none.
    return names | {name for name in known if not name[0].isdigit()}


def _how(spec: Mapping[str, Any]) -> str:
    return ", ".join(part for part in (describe_layers(spec), describe_training(spec["trained"])) if part)


def _value(result: Any) -> list[Any]:
    details = result.metric_args or {}
    interval = details.get("interval_95")
    shown = "n/a" if interval is None else "[{:.3f}, {:.3f}]".format(*interval)
    trivial = details.get("trivial_baseline")
    return [f"{result.metric_value:.3f}", shown, "" if trivial is None else f"{trivial:.3f}", details.get("n", "")]


def _write(folder: Path, data: ModelCardData, text: str) -> Path:
    path = folder / "README.md"
    with written_aside(path) as aside:
        aside.write_text(f"---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n", encoding="utf-8")
    return path


__all__ = ["complete_towers", "write_classifier_card", "write_tower_card"]
