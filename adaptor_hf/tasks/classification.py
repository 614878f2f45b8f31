"""Classification: heads on frozen features, and on request on a tower that trains too."""

from __future__ import annotations

import functools
from pathlib import Path

from ..data.private_rows import private_rows, refuse_identifying_columns
from ..data.table_files import read_unlabelled
from .arguments import DownstreamArguments, table_options
from .controls import systems_of
from .data import load_table
from .embedded import embed_labelled, load_embedded
from .final_heads import save_and_predict
from .finetune import run_finetune
from .frozen_heads import run_classification
from .loading import cache_dir_of, load_adaptor, load_external, load_tower, record_rows, vision_tower_of
from .protocols import get_protocol
from .provenance import tower_name
from .summary import summarize
from .supervised import supervised_runs

_OTHER_COLUMNS = ("patient_column", "study_column", "split_column", "id_column", "filters")


def run(arguments: DownstreamArguments, device: str) -> str:
    """The task of `--task classification`: embed, train and score heads, and give the text to print."""
    protocol = get_protocol(arguments.protocol, arguments.dataset, arguments.head)
    model = load_adaptor(arguments)
    embedded = load_embedded(arguments, model, device)
    options = {"batch_size": arguments.extraction_batch_size, "device": device, "check": arguments.check}
    tower = vision_tower_of(arguments, model)
    external = [embed_labelled(other, tower, cache_dir_of(arguments), **options) for other in load_external(arguments)]
    runs = run_classification(
        embedded,
        systems_of(arguments, model, device, embedded.data.num_logits),
        protocol,
        arguments.output_dir,
        fractions=arguments.fraction,
        seeds=arguments.seeds,
        external=external,
        text_tower=tower_name(model.config.text_tower),
        num_resamples=arguments.num_resamples,
        device=device,
    )
    runs.add(supervised_runs(arguments, embedded, device, external))
    for method in arguments.train_tower:
        more = run_finetune(
            embedded.data,
            model,
            load_tower(arguments, model, device),
            method,
            arguments.output_dir,
            hidden_size=protocol.hidden_size,
            fractions=arguments.fraction,
            seeds=arguments.seeds,
            epochs=arguments.epochs or 10,
            layer_decay=arguments.layer_decay,
            gradient_checkpointing=arguments.gradient_checkpointing,
            text_tower=tower_name(model.config.text_tower),
            num_resamples=arguments.num_resamples,
            device=device,
            save_to=Path(arguments.output_dir) / f"model-{method}" if arguments.save_model else None,
            record_rows=functools.partial(record_rows, arguments, embedded.data),
        )
        runs.add(more)
    said = summarize(runs)
    if arguments.save_model:
        saved = [Path(arguments.output_dir) / f"model-{method}" for method in arguments.train_tower]
        said += "".join(f"\n\nClassifier with its tower: {folder}" for folder in saved if folder.is_dir())
    if arguments.do_predict or arguments.save_model:
        unlabelled = None
        if arguments.do_predict:
            columns = table_options(arguments) | {"label_columns": (), "extra_columns": (), "mask_column": None}
            source = read_unlabelled(
                arguments.do_predict, arguments.image_column, arguments.delimiter, arguments.encoding
            )
            refuse_identifying_columns(source, arguments.image_column, arguments)
            if source.table.column_names == [arguments.image_column]:
                # Of images alone there is nothing else to name, whatever the training table has.
                columns |= dict.fromkeys(_OTHER_COLUMNS)
            unlabelled = private_rows(load_table(source, **columns))
        said += "\n\n" + save_and_predict(
            embedded,
            model,
            protocol,
            fraction=max(arguments.fraction),
            seeds=arguments.seeds,
            tower=tower,
            cache_dir=cache_dir_of(arguments),
            output_dir=arguments.output_dir,
            unlabelled=unlabelled,
            device=device,
            check=arguments.check,
        )
    return said


__all__ = ["run", "run_classification"]
