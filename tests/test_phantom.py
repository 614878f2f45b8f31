"""The phantom: deterministic, learnable, and its text speaks of what is drawn."""

import csv
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adaptor_hf.data.phantom import (
    FINDINGS,
    ZERO_SHOT_PROMPTS,
    Finding,
    contact_sheet,
    generate_phantoms,
    write_phantoms,
)
from adaptor_hf.data.phantom.findings import SIDES, SIZES, ZONES
from adaptor_hf.data.phantom.generate import _plan
from adaptor_hf.data.phantom.reports import Study, write_report

MENTION = {
    "consolidation": r"consolidation|airspace (opacity|disease)|infiltrate|parenchymal opacity",
    "effusion": r"effusion|pleural fluid collection|costophrenic angle is blunted",
    "pneumothorax": r"pneumothorax|visceral pleural line",
    "cardiomegaly": r"cardiomegaly|cardiac enlargement|enlargement of the cardiac|exceeds half",
}
DENIAL = re.compile(
    r"^(no|neither|negative|there is no|both lungs are well|the lungs are clear|lungs are free|pleural spaces are free|"
    r"the pleural spaces are clear|the prior|interval resolution|the cardiac silhouette is not|the heart is not)\b"
    r"|costophrenic (angle is|angles are) sharp|is clear\.$|are clear\.$",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def plans():
    return list(_plan(1500, 256, 0))


@pytest.fixture(scope="module")
def pictures():
    return list(generate_phantoms(600, image_size=64, seed=5))


def sentences(text):
    text = re.sub(r"(FINDINGS|IMPRESSION): |\b\d\. ", "", text)
    return [s if s.endswith(".") else s + "." for s in re.split(r"(?<=\.)\s+", text) if s]


def affirmed(text):
    """The sentences that speak of something present."""
    return [s for s in sentences(text) if not DENIAL.search(s)]


def test_text_mentions_exactly_the_findings_that_are_drawn(plans):
    for plan in plans:
        present = {f.name for f in plan.findings}
        said = {name for name in FINDINGS for s in affirmed(plan.text) if re.search(MENTION[name], s, re.IGNORECASE)}
        assert said == present, plan.text


def test_text_names_the_true_side_and_zone(plans):
    checked = Counter()
    for plan in plans:
        for name in ("consolidation", "effusion", "pneumothorax"):
            found = [f for f in plan.findings if f.name == name]
            said = [s.lower() for s in affirmed(plan.text) if re.search(MENTION[name], s, re.IGNORECASE)]
            for sentence in said:
                # An unfinished comparison or a second finding must not lend its side to this one.
                sides = {side for side in SIDES if re.search(rf"\b{side}\b", sentence)}
                both = bool(re.search(r"bilateral|\bboth\b", sentence)) or len(sides) == 2
                assert both == (len(found) == 2), plan.text
                if not both:
                    assert sides == {found[0].side}, plan.text
                checked[name] += 1
                if name == "consolidation":
                    zone = found[0].zone
                    words = {"upper": r"upper|apex", "mid": r"\bmid|midlung", "lower": r"lower|bas(e|al)"}
                    assert [z for z in ZONES if re.search(words[z], sentence)] == [zone], plan.text
    assert min(checked.values()) > 100


def test_text_is_well_formed(plans):
    for plan in plans:
        assert not re.search(r"[{}_]|\s{2}|\.\.|\ba [aeiou]|\ban [^aeiou]| ,|There is bilateral", plan.text), plan.text
        assert plan.text.endswith(".")


def test_few_studies_share_a_text(plans):
    texts = list({plan.study_id: plan.text for plan in plans}.values())
    counts = Counter(texts)
    assert sum(counts[t] > 1 for t in texts) / len(texts) < 0.30
    normal = [p.text for p in plans if not p.findings]
    assert Counter(normal).most_common(1)[0][1] >= 3


def test_swapping_the_side_changes_only_the_side_in_the_text(plans):
    plan = next(p for p in plans if not p.findings)
    texts = []
    for side in SIDES:
        study = Study(plan.patient, (plan.pose,), (Finding("effusion", side, None, "moderate", 0.5),), None, 1.0)
        texts.append(write_report(study, np.random.default_rng(3)))
    assert texts[0] != texts[1]
    swapped = re.sub(r"\b(right|left)\b", lambda m: SIDES[m[0] == "right"], texts[0])
    assert swapped == texts[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_shows_where_the_record_says(plans, name, size):
    healthy = [p for p in plans if not p.findings][:6]
    for index, plan in enumerate(healthy):
        side = SIDES[index % 2]
        zone = ZONES[index // 2] if name == "consolidation" else None
        finding = Finding(name, None if name == "cardiomegaly" else side, zone, size, 0.1, shape_seed=index)
        without, _ = plan.draw(128, 0)
        picture, extents = replace(plan, findings=(finding,)).draw(128, 0)
        covered = extents[name] > 0.5
        change = picture.astype(float) - without
        contrast = np.median(change[covered]) - np.median(change[~covered])
        sign = -1 if name == "pneumothorax" else 1
        assert covered.sum() > 40
        if name == "cardiomegaly":
            # Most of the heart was white before; its rim is what changes.
            rim = covered & (without < np.percentile(without[covered], 25))
            assert change[rim].mean() > 15
            continue
        assert sign * contrast > 8
        rows, columns = np.nonzero(covered)
        assert (columns.mean() < 64) == (side == "right")
        if zone:
            assert (
                {"upper": 0.10, "mid": 0.30, "lower": 0.48}[zone]
                < rows.mean() / 128
                < {
                    "upper": 0.42,
                    "mid": 0.60,
                    "lower": 0.80,
                }[zone]
            )


def ridge_auroc(pictures, target, among=None):
    """A linear read-out of 16 x 16 pixels, fitted on train patients, scored on all others."""
    among = np.ones(len(pictures), bool) if among is None else among
    x = np.stack([np.asarray(r["image"].resize((16, 16)), dtype=float).ravel() for r in pictures])
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    train = np.array([r["split"] == "train" for r in pictures])
    fit, held = train & among, ~train & among
    mean = x[fit].mean(0)
    a, b, y = x[fit] - mean, x[held] - mean, target[fit] - target[fit].mean()
    score = b @ (a.T @ np.linalg.solve(a @ a.T + 300 * np.eye(len(a)), y))
    positive, negative = score[target[held]], score[~target[held]]
    return (positive[:, None] > negative).mean()


@pytest.mark.parametrize(
    ("name", "bound"), [("consolidation", 0.55), ("effusion", 0.68), ("pneumothorax", 0.65), ("cardiomegaly", 0.85)]
)
def test_coarse_pixels_tell_a_finding_from_none(pictures, name, bound):
    assert ridge_auroc(pictures, np.array([r[name] == 1 for r in pictures])) > bound


@pytest.mark.parametrize("name", ["consolidation", "effusion", "pneumothorax"])
def test_coarse_pixels_tell_the_side(pictures, name):
    sides = np.array([r[f"{name}_side"] for r in pictures])
    assert ridge_auroc(pictures, sides == "right", among=np.isin(sides, SIDES)) > 0.7


def test_labels_do_not_follow_the_view(plans):
    portable = np.array([p.pose.view == "AP" for p in plans])
    for name in FINDINGS:
        label = np.array([p.row()[name] for p in plans], dtype=float)
        assert label.mean() > 0.08
        assert abs(label[portable].mean() - label[~portable].mean()) < 0.1


def test_patients_have_several_studies_and_one_split(plans):
    split, images, studies = {}, Counter(), {}
    for plan in plans:
        row = plan.row()
        assert split.setdefault(row["patient_id"], row["split"]) == row["split"]
        images[row["study_id"]] += 1
        studies.setdefault(row["patient_id"], set()).add(row["study_id"])
    assert set(images.values()) == {1, 2}
    assert max(map(len, studies.values())) == 3
    share = Counter(split.values())
    assert 0.66 < share["train"] / len(split) < 0.74
    assert set(share) == {"train", "validation", "test"}


def test_images_of_one_study_share_text_and_findings(plans):
    seen = {}
    for plan in plans:
        assert seen.setdefault(plan.study_id, (plan.text, plan.findings)) == (plan.text, plan.findings)


def test_fewer_images_are_a_prefix_of_more_and_seeds_differ():
    few = list(generate_phantoms(4, image_size=64, seed=2))
    more = list(generate_phantoms(7, image_size=64, seed=2))
    for a, b in zip(few, more, strict=False):
        assert a["image"].tobytes() == b["image"].tobytes()
        assert {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
    other = next(generate_phantoms(1, image_size=64, seed=3))
    assert other["image"].tobytes() != few[0]["image"].tobytes()


def test_written_files_are_the_same_for_any_number_of_workers(tmp_path):
    tables = [write_phantoms(tmp_path / str(w), 6, image_size=64, seed=1, num_workers=w) for w in (0, 3)]
    for file in sorted(tables[0].parent.rglob("*.*")):
        twin = tables[1].parent / file.relative_to(tables[0].parent)
        assert file.read_bytes() == twin.read_bytes()
    with open(tables[0], newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    expected = list(generate_phantoms(6, image_size=64, seed=1))
    assert list(rows[0])[:7] == ["image", "image_id", "patient_id", "study_id", "view", "text", "split"]
    for row, record in zip(rows, expected, strict=True):
        with Image.open(tables[0].parent / row["image"]) as image:
            assert image.mode == "L"
            assert image.tobytes() == record["image"].tobytes()
        assert {k: str(v) for k, v in record.items() if k != "image"} == {k: v for k, v in row.items() if k != "image"}


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="empty"):
        write_phantoms(tmp_path, 2, image_size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(tmp_path / "out", 2, image_size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 2.5}, {"n": 2, "image_size": 16}, {"n": 2, "seed": -1}])
def test_arguments_out_of_range_are_named_at_the_call(bad):
    with pytest.raises(ValueError, match=list(bad)[-1]):
        generate_phantoms(**bad)


def test_contact_sheet_holds_every_record():
    records = list(generate_phantoms(3, image_size=64, seed=0))
    sheet = contact_sheet(records, columns=2, tile=64)
    assert sheet.width == 128
    assert np.asarray(sheet)[:64, :64].tobytes() == np.asarray(records[0]["image"]).tobytes()
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_prompts_cover_every_finding():
    assert set(ZERO_SHOT_PROMPTS) == set(FINDINGS)
    for name, (positive, negative) in ZERO_SHOT_PROMPTS.items():
        assert positive, name
        assert negative, name
        assert not set(positive) & set(negative)


def test_the_command_writes_a_table(tmp_path):
    command = [sys.executable, "-m", "adaptor_hf.data.phantom", "--output_dir", str(tmp_path / "p"), "--n", "2"]
    done = subprocess.run([*command, "--image_size", "64"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("metadata.csv")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "has content" in again.stderr
