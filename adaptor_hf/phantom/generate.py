"""Records, files and contact sheets of phantoms."""

import json
import textwrap
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..files import folder_written_aside, write_csv
from ..progress import counted
from .anatomy import VIEWS, Patient, Pose, sample_patient, sample_pose
from .findings import FINDINGS, Finding, describe, evolve_findings, sample_findings
from .render import Rendering, render
from .reports import Report, Study
from .targets import MASKS, boxes_of, masks_of
from .translated_reports import LANGUAGES, write_report_in

_STREAMS = {"patient": 1, "study": 2, "image": 3, "report": 4, "split": 5}
# Of every ten patients in a row, so that each prefix of a set is split alike.
_SPLIT_OF_TEN = ("train",) * 7 + ("validation",) + ("test",) * 2


@dataclass(frozen=True)
class Plan:
    """An image before it is drawn; all but the pixels."""

    patient_index: int
    study_index: int
    image_index: int
    split: str
    patient: Patient
    pose: Pose
    findings: tuple[Finding, ...]
    inspiration: float
    report: Report
    language: str = "en"
    """Of the report."""

    @property
    def study_id(self) -> str:
        return f"p{self.patient_index:06d}-s{self.study_index + 1}"

    def row(self) -> dict:
        image_id = f"{self.study_id}-i{self.image_index + 1}"
        return {
            "image": f"images/{image_id}.png",
            "image_id": image_id,
            "patient_id": f"p{self.patient_index:06d}",
            "study_id": self.study_id,
            "view": self.pose.view,
            "text": self.report.text,
            "split": self.split,
            "sex": self.patient.sex,
            "age": self.patient.age,
            **describe(self.findings),
        }

    def draw(self, image_size: int, seed: int) -> Rendering:
        rng = _stream("image", seed, self.patient_index, self.study_index, self.image_index)
        return render(self.patient, self.pose, self.findings, rng, image_size=image_size, inspiration=self.inspiration)

    def record(self, image_size: int, seed: int) -> dict:
        """`row` with the picture, masks and boxes."""
        drawn = self.draw(image_size, seed)
        boxes, names = boxes_of(drawn, self.findings)
        masks = {name: _mask_image(mask) for name, mask in masks_of(drawn, self.findings).items()}
        picture = Image.fromarray(drawn.picture)
        return {**self.row(), "image": picture, "boxes": boxes, "box_labels": names, "masks": masks}


def _stream(purpose: str, seed: int, patient: int, study: int = 0, image: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, patient, study, image, _STREAMS[purpose]))


def _plan_patient(seed: int, index: int, language: str) -> Iterator[Plan]:
    rng = _stream("patient", seed, index)
    patient = sample_patient(rng)
    split = _SPLIT_OF_TEN[_stream("split", seed, index // 10).permutation(10)[index % 10]]
    findings = None
    for study in range(rng.choice((1, 2, 3), p=(0.6, 0.27, 0.13))):
        rng = _stream("study", seed, index, study)
        previous = findings
        findings = sample_findings(rng) if previous is None else evolve_findings(rng, previous)
        inspiration = float(np.clip(rng.normal(0.97, 0.07), 0.76, 1.06))
        view = VIEWS[int(rng.random() < 0.35)]
        views = [view, VIEWS[rng.integers(2)]] if rng.random() < 0.15 else [view]
        poses = tuple(sample_pose(rng, patient, v) for v in views)
        read = Study(patient, poses, findings, previous, inspiration)
        report = write_report_in(language, read, _stream("report", seed, index, study))
        for image, pose in enumerate(poses):
            yield Plan(index, study, image, split, patient, pose, findings, inspiration, report, language)


def _mask_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def plan(n: int, image_size: int, seed: int, language: str = "en") -> Iterator[Plan]:
    """The first `n` images, not yet drawn. Raises ValueError where an argument is out of range."""
    for name, value, least in (("n", n, 1), ("image_size", image_size, 64), ("seed", seed, 0)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    if language not in LANGUAGES:
        raise ValueError(f"No reports in the language {language!r}. Choose one of: {', '.join(LANGUAGES)}.")

    def endless() -> Iterator[Plan]:
        index = 0
        while True:
            yield from _plan_patient(int(seed), index, language)
            index += 1

    return (planned for planned, _ in zip(endless(), range(n), strict=False))


def generate_phantoms(n: int, *, image_size: int = 256, seed: int = 0, language: str = "en") -> Iterator[dict]:
    """Chest-radiograph phantoms with reports, one image at a time.

    A drawing with the geometry and the contrast physics of a radiograph, not a simulation of patients: good for tests
    and demonstrations, and for nothing clinical. A record depends only on the seed and its patient, so the first 100 of
    1,000 are the same as 100. Some studies have two images, which share the report; some patients have several studies.

    Args:
        n: number of images, at least 1.
        image_size: side in pixels, at least 64. The anatomy is the same at every size.
        seed: not negative.
        language: of the reports, one of LANGUAGES. Pictures and labels do not depend on it.

    Yields:
        A dict with the columns of `write_phantoms`, without those of mask files. `image` is an 8-bit grey `PIL.Image`
        of side `image_size`; as on a radiograph, the patient's right lies on the left of the image. `boxes` is float32
        (n, 4), xyxy in pixels, each the smallest around what is seen of a lesion or device, `box_labels` its finding.
        `masks` has for "lungs", "consolidation", "effusion", "pneumothorax", "nodule", "atelectasis" and "device" an
        8-bit image of the same size, 255 inside: lesions of both sides together, all 0 where there is none.

    Raises:
        ValueError: at the call, where an argument is out of range.
    """
    plans = plan(n, image_size, seed, language)

    def records() -> Iterator[dict]:
        for planned in plans:
            yield planned.record(image_size, seed)

    return records()


def write_phantoms(
    output_dir: str | Path, n: int, *, image_size: int = 256, seed: int = 0, language: str = "en", num_workers: int = 1
) -> Path:
    """Writes phantoms as PNG files under `images/`, their masks under `masks/`, and a table, `metadata.csv`.

    Columns: image (path relative to `output_dir`), image_id, patient_id, study_id, view ("PA" or "AP"), text, split
    ("train", "validation" or "test"; of every ten patients 7, 1 and 2), sex ("F" or "M"), age (years), a 0/1 label for
    each of FINDINGS, then what the text speaks of: `<finding>_side` ("right", "left", "bilateral"), `<finding>_zone`
    ("upper", "mid", "lower"), `<finding>_size` ("small", "moderate", "large"; the larger one where both sides are
    affected) and device_kinds (joined by ", "), all "" where absent. Last, what is where: boxes (JSON, a list of
    [x1, y1, x2, y2] in pixels), box_labels (JSON, the finding of each), and for each of MASKS `<name>_mask`, the path
    of an 8-bit PNG, 255 inside, or "" where there is none of it.

    Args:
        output_dir: a folder that does not exist or is empty. It appears only when everything is written.
        n, image_size, seed, language: as for `generate_phantoms`. Equal values give equal bytes (same NumPy, Pillow).
        num_workers: threads that draw; 2 save up to a third of the time on idle cores. It does not change the result.

    Returns:
        The path of `metadata.csv`.

    Raises:
        FileExistsError: `output_dir` has something in it.
        ValueError: an argument is out of range.
    """
    output_dir = Path(output_dir)
    plans = list(plan(n, image_size, seed, language))
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}.")
    with empty_folder(output_dir) as aside:
        for folder in ("images", "masks"):
            (aside / folder).mkdir()

        def write_image(planned: Plan) -> dict:
            record = planned.record(image_size, seed)
            picture, masks, boxes = record.pop("image"), record.pop("masks"), record.pop("boxes")
            row = {**planned.row(), "boxes": json.dumps(boxes.tolist()), "box_labels": json.dumps(record["box_labels"])}
            picture.save(aside / row["image"], compress_level=3)
            for name in MASKS:
                row[f"{name}_mask"] = f"masks/{row['image_id']}-{name}.png" if masks[name].getbbox() else ""
                if row[f"{name}_mask"]:
                    masks[name].save(aside / row[f"{name}_mask"], compress_level=3)
            return row

        # Threads, not processes: NumPy and Pillow release the interpreter lock, and no start method has to be right.
        with ThreadPoolExecutor(max(num_workers, 1)) as pool:
            rows = list(counted(pool.map(write_image, plans), n, "Phantoms", "images"))
        write_csv(aside / "metadata.csv", rows[0], (row.values() for row in rows))
    return output_dir / "metadata.csv"


@contextmanager
def empty_folder(output_dir: str | Path) -> Iterator[Path]:
    """A new folder beside `output_dir` that takes its place at the end, or goes where an exception is raised.

    Raises:
        FileExistsError: `output_dir` has something in it.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"output_dir {str(output_dir)!r} already has content; give a new folder or empty this one."
        )
    with folder_written_aside(output_dir) as aside:
        yield aside


def contact_sheet(records: Iterable[dict], *, columns: int = 4, tile: int = 256) -> Image.Image:
    """One picture of many phantoms, in order, each with its view and positive findings below.

    Args:
        records: as `generate_phantoms` gives them; `image` may also be a path.
        columns: tiles in a row.
        tile: side of a tile in pixels.

    Returns:
        An 8-bit grey image.

    Raises:
        ValueError: no records.
    """
    records = list(records)
    if not records:
        raise ValueError("contact_sheet needs at least one record.")
    line = 40
    rows = -(-len(records) // columns)
    sheet = Image.new("L", (columns * tile, rows * (tile + line)))
    draw = ImageDraw.Draw(sheet)
    for index, record in enumerate(records):
        x, y = index % columns * tile, index // columns * (tile + line)
        picture = record["image"] if isinstance(record["image"], Image.Image) else Image.open(record["image"])
        sheet.paste(picture.convert("L").resize((tile, tile)), (x, y))
        draw.multiline_text((x + 4, y + tile), _caption(record, max(tile // 6, 8)), fill=220, spacing=1)
    return sheet


def _caption(record: dict, width: int) -> str:
    words = []
    for name in FINDINGS:
        if int(record[name]) and name != "device":
            side, zone = record.get(f"{name}_side", ""), record.get(f"{name}_zone", "")
            words.append(" ".join(w for w in (record[f"{name}_size"], side, zone, name) if w))
    words += filter(None, record["device_kinds"].split(", "))
    return "\n".join(textwrap.wrap(f"{record['view']}: {'; '.join(words) or 'no finding'}", width)[:3])
