"""Options of `adaptor-predict`; without torch and transformers, so that `--help` and wrong options are quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..options.fields import HIDDEN, NAME_OR_PATH, OPEN, PATH, option

ESSENTIAL, OUTPUT, ZERO_SHOT, MACHINE = "essential", "what is predicted", "zero-shot", "this machine"
SOURCES = ("table", "image_folder", "dataset_dir")
TABLE_OPTIONS = (
    "image_column", "id_column", "image_root", "filter", "delimiter", "encoding", "image_mode", "voi_lut",
    "range_percentile",
)  # fmt: skip
PRIVACY_OPTIONS = ("private", "key_file", "allow_identifying_columns")
"""Of the scripts' options, those that this command has too."""
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(kw_only=True)
class PredictionArguments:
    """A saved model, images, and where the predictions go."""

    model: str = option(
        help="A saved model: its folder or hub id.", group=ESSENTIAL, privacy=NAME_OR_PATH, metavar="FOLDER"
    )
    table: str | None = option(
        None, "CSV, TSV, JSON-lines, Parquet or Excel table of image paths.", group=ESSENTIAL, privacy=PATH,
        metavar="FILE",
    )  # fmt: skip
    image_folder: str | None = option(
        None, "Folder of images, DICOM too, at any depth; with a metadata file in it, the images that this names.",
        group=ESSENTIAL, privacy=PATH, metavar="FOLDER",
    )  # fmt: skip
    dataset_dir: str | None = option(
        None, "Folder that datasets' save_to_disk wrote.", group=ESSENTIAL, privacy=PATH, metavar="FOLDER"
    )
    output_dir: str = option(help="A new folder, or that of the same command, which then goes on.", group=ESSENTIAL,
                             privacy=PATH, metavar="FOLDER")  # fmt: skip
    overwrite: bool = option(False, "Delete the predictions of another command in --output_dir.", group=ESSENTIAL)
    threshold: float | None = option(
        None, "Masks and boxes: from which probability on (default 0.5). Scores of classes: adds a column of 0 and 1 "
        "for each.", group=OUTPUT, metavar="X",
    )  # fmt: skip
    classes: list[str] = option(
        [], "Classes by name, for a model of images and texts; with --prompts a choice of its classes.",
        group=ZERO_SHOT, privacy=HIDDEN, metavar="NAME",
    )  # fmt: skip
    template: str | None = option(
        None, "What --classes are put into, such as 'a radiograph of {}'.", group=ZERO_SHOT, privacy=HIDDEN,
        metavar="TEXT",
    )  # fmt: skip
    prompts: str | None = option(
        None, "Prompt set or JSON file, as of train_downstream.py --task zero_shot.", group=ZERO_SHOT,
        privacy=NAME_OR_PATH, metavar="NAME",
    )  # fmt: skip
    batch_size: int | None = option(None, "Images a forward pass. Default: 64 on a GPU, 4 on the CPU.", group=MACHINE)
    device: str | None = option(
        None, "cpu, cuda, cuda:1; default: CUDA when there is one, with several ranks one each.", group=MACHINE,
        privacy=OPEN, metavar="DEVICE",
    )  # fmt: skip
    dtype: str = option("float32", "Precision of the model.", group=MACHINE, choices=list(DTYPES))
    num_workers: int | None = option(None, "Processes that read images.", group=MACHINE)

    def __post_init__(self):
        given = [f"--{name}" for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "got none"
            raise ValueError(f"Give one source of images: --table, --image_folder or --dataset_dir; {found}.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"--threshold must be a number, got {self.threshold}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch_size must be at least 1, got {self.batch_size}.")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"--num_workers must be at least 0, got {self.num_workers}.")
        if self.template is not None and (not self.classes or self.prompts is not None):
            raise ValueError("--template is for --classes without --prompts.")
        if self.template is not None and self.template.count("{}") != 1:
            raise ValueError(f"--template needs one {{}}, where the class stands, got {self.template!r}.")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("--classes names a class twice.")

    @property
    def place(self) -> str:
        """Of the images."""
        return next(getattr(self, name) for name in SOURCES if getattr(self, name) is not None)


__all__ = ["DTYPES", "PRIVACY_OPTIONS", "SOURCES", "TABLE_OPTIONS", "PredictionArguments"]
