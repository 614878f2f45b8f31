"""A classifier whose tower trained too, as a folder that loads alone: Adaptor, head, its own tower, card and rows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..data.terms import restricted_terms
from ..folder_lock import only_writer
from ..heads_adaptor import AdaptorForImageClassification
from ..hub.trained_card import complete_towers, write_classifier_card
from ..image_processing_adaptor import processor_of_tower
from ..towers.terms import note_training_data
from .data import LabelledData


def save_finetuned(
    classifier: AdaptorForImageClassification,
    data: LabelledData,
    folder: str | os.PathLike,
    lines: Iterable[Mapping[str, Any]] = (),
    record_rows: Callable[[str | os.PathLike], Any] | None = None,
) -> AdaptorForImageClassification:
    """
    Save a classifier with the tower that trained with it, for `pipeline("image-classification")`.

    Args:
        classifier ([`AdaptorForImageClassification`]): After training.
        data ([`LabelledData`]): That it was trained on; its class names and terms go with it.
        folder (`str` or `PathLike`): Of the model.
        lines (`Iterable[Mapping]`): Result lines, for the card.
        record_rows (`Callable`, *optional*): Writes `training_rows.safetensors` into the folder.
    """
    folder, adaptor = Path(folder), classifier.adaptor.cpu()
    tower, terms = adaptor.vision_model, restricted_terms(data.name)
    note_training_data(tower.spec, [data.name], terms)
    saved = AdaptorForImageClassification.from_adaptor(
        adaptor,
        id2label=dict(enumerate(data.class_names)),
        problem_type=classifier.config.problem_type,
        classifier_hidden_size=classifier.config.classifier_hidden_size,
        classifier_dropout=classifier.config.classifier_dropout,
    )
    saved.classifier.load_state_dict(classifier.classifier.state_dict())
    saved.config.data_terms = (adaptor.config.data_terms or {}) | (terms or {}) or None
    with only_writer(folder.parent, folder.name, what="process", strict=False, timeout=math.inf):
        processor_of_tower(tower.spec).save_pretrained(folder)
        saved.eval().save_pretrained(folder)
        if record_rows is not None:
            record_rows(folder)
        complete_towers(folder)
        write_classifier_card(folder, saved.config.to_dict(), lines, dataset=data.name)
    return saved


__all__ = ["save_finetuned"]
