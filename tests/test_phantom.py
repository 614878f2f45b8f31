"""The phantom: deterministic, learnable, and its text speaks of what is drawn."""

import csv
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adaptor_hf.phantom import (
    FINDINGS,
    ZERO_SHOT_PROMPTS,
    Finding,
    contact_sheet,
    generate_phantoms,
    write_phantoms,
)
from adaptor_hf.phantom.__main__ import main
from adaptor_hf.phantom.findings import (
    DEVICES,
    SIDES,
    SIZES,
    WITH_SIDE,
    WITH_SIZE,
    WITH_ZONE,
    ZONES,
    nodule_diameter,
    tube_height,
)
from adaptor_hf.phantom.generate import plan
from adaptor_hf.phantom.reports import Study, write_report
from adaptor_hf.phantom.targets import BOXED, MASKS, masks_of

MENTION = {
    "consolidation": r"consolidation|airspace (opacity|disease)|infiltrate|parenchymal opacity",
    "effusion": r"effusion|pleural fluid collection|costophrenic angle is blunted",
    "pneumothorax": r"pneumothorax|visceral pleural line",
    "cardiomegaly": r"cardiomegaly|cardiac enlargement|enlargement of the cardiac|exceeds half",
    "nodule": r"nodule",
    "atelectasis": r"atelecta|volume loss",
    "edema": r"edema|congestion|perihilar haze|engorged|indistinct",
    "device": r"tube|catheter|central line|pacemaker|device",
}
DENIAL = re.compile(
    r"^(no|neither|negative|there is no|both lungs are well|the lungs are clear|lungs are free|pleural spaces are free|"
    r"the pleural spaces are clear|the prior|interval resolution|the cardiac silhouette is not|the heart is not)\b"
    r"|costophrenic (angle is|angles are) sharp|is clear\.$|are clear\.$|has been removed\.$|vasculature is normal",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def plans():
    return list(plan(1500, 256, 0))


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
    for planned in plans:
        present = {f.name for f in planned.findings}
        found = affirmed(planned.report.text)
        said = {name for name in FINDINGS for s in found if re.search(MENTION[name], s, re.IGNORECASE)}
        assert said == present, planned.report.text


def test_text_names_the_true_side_and_zone(plans):
    checked = Counter()
    for planned in plans:
        for name in WITH_SIDE:
            found = [f for f in planned.findings if f.name == name]
            said = [s.lower() for s in affirmed(planned.report.text) if re.search(MENTION[name], s, re.IGNORECASE)]
            for sentence in said:
                # An unfinished comparison or a second finding must not lend its side to this one.
                sides = {side for side in SIDES if re.search(rf"\b{side}\b", sentence)}
                both = bool(re.search(r"bilateral|\bboth\b", sentence)) or len(sides) == 2
                assert both == (len(found) == 2), planned.report.text
                if not both:
                    assert sides == {found[0].side}, planned.report.text
                checked[name] += 1
                if name in WITH_ZONE and not re.search(r"hemidiaphragm|volume loss|follow-up", sentence):
                    zone = found[0].zone
                    words = {"upper": r"upper|apex", "mid": r"\bmid|midlung", "lower": r"lower|bas(e|al)"}
                    assert [z for z in ZONES if re.search(words[z], sentence)] == [zone], planned.report.text
    assert min(checked.values()) > 100


def test_text_is_well_formed(plans):
    for planned in plans:
        text = planned.report.text
        assert not re.search(r"[{}_]|\s{2}|\.\.|\ba [aeiou]|\ban [^aeiou]| ,|There is bilateral|None", text), text
        assert text.endswith(".")


def test_few_studies_share_a_text(plans):
    texts = list({planned.study_id: planned.report.text for planned in plans}.values())
    counts = Counter(texts)
    assert sum(counts[t] > 1 for t in texts) / len(texts) < 0.30
    normal = [p.report.text for p in plans if not p.findings]
    assert Counter(normal).most_common(1)[0][1] >= 3


def test_swapping_the_side_changes_only_the_side_in_the_text(plans):
    planned = next(p for p in plans if not p.findings)
    texts = []
    for side in SIDES:
        study = Study(planned.patient, (planned.pose,), (Finding("effusion", side, None, "moderate", 0.5),), None, 1.0)
        texts.append(write_report(study, np.random.default_rng(3)).text)
    assert texts[0] != texts[1]
    swapped = re.sub(r"\b(right|left)\b", lambda m: SIDES[m[0] == "right"], texts[0])
    assert swapped == texts[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WITH_SIZE)
def test_a_finding_shows_where_the_record_says(plans, name, size):
    healthy = [p for p in plans if not p.findings][:6]
    for index, planned in enumerate(healthy):
        side = SIDES[index % 2] if name in WITH_SIDE else None
        zones = ZONES[1:] if name == "atelectasis" else ZONES
        zone = zones[index // 2 % len(zones)] if name in WITH_ZONE else None
        finding = Finding(name, side, zone, size, 0.1, shape_seed=index)
        without = planned.draw(128, 0).picture
        drawn = replace(planned, findings=(finding,)).draw(128, 0)
        covered = masks_of(drawn, (finding,))[name] if name in BOXED else drawn.covers[0] > 0.5
        change = drawn.picture.astype(float) - without
        contrast = np.median(change[covered]) - np.median(change[~covered])
        sign = -1 if name == "pneumothorax" else 1
        if name == "cardiomegaly":
            # Most of the heart was white before; its rim is what changes.
            rim = covered & (without < np.percentile(without[covered], 25))
            assert change[rim].mean() > 15
            continue
        assert covered.sum() > {"nodule": 3, "atelectasis": 15}.get(name, 40)
        assert sign * contrast > 8
        rows, columns = np.nonzero(covered)
        if side:
            assert (columns.mean() < 64) == (side == "right")
        if zone:
            lowest = {"upper": 0.10, "mid": 0.30, "lower": 0.44}[zone]
            highest = {"upper": 0.42, "mid": 0.60, "lower": 0.86}[zone]
            assert lowest < rows.mean() / 128 < highest


@pytest.mark.parametrize("kind", DEVICES)
def test_a_device_shows_where_the_record_says(plans, kind):
    for index, planned in enumerate([p for p in plans if not p.findings][:4]):
        side = SIDES[index % 2] if kind in ("central venous catheter", "pacemaker") else None
        device = Finding("device", side, None, None, 0.5, index, kind)
        drawn = replace(planned, findings=(device,)).draw(256, 0)
        change = drawn.picture.astype(float) - planned.draw(256, 0).picture
        covered = drawn.covers[0] > 0.5
        # Over the spine, and over a neck that is white already, it shows less.
        assert np.percentile(change[covered], 75) - np.median(change[~covered]) > 8
        if kind == "pacemaker":
            can = drawn.covers[0] > 0.99
            assert (np.nonzero(can)[1].mean() < 128) == (side == "right")


def test_a_tube_ends_as_far_above_the_carina_as_the_text_says(plans):
    said = 0
    for planned in plans:
        heights = re.findall(r"(\d\.\d) cm above the carina", planned.report.text)
        expected = [f"{tube_height(f):.1f}" for f in planned.findings if f.kind == "endotracheal tube"]
        assert set(heights) <= set(expected)
        said += len(heights)
    assert said > 20
    planned = next(p for p in plans if not p.findings)
    tips = {}
    for extent in (0.0, 0.9):
        tube = Finding("device", None, None, None, extent, 0, "endotracheal tube")
        drawn = replace(planned, findings=(tube,)).draw(512, 0)
        tips[extent] = np.nonzero(drawn.covers[0] > 0.5)[0].max() * planned.pose.field_of_view / 512
    assert tips[0.0] - tips[0.9] == pytest.approx(0.9 * 3, abs=0.25)


def test_a_nodule_is_as_wide_as_the_text_says(plans):
    said = 0
    for planned in plans:
        sizes = re.findall(r"(\d\.\d) cm (?:\w+ )?nodule", planned.report.text)
        nodule = next((f for f in planned.findings if f.name == "nodule"), None)
        assert set(sizes) <= ({f"{nodule_diameter(nodule):.1f}"} if nodule else set())
        said += len(sizes)
    assert said > 20
    planned = next(p for p in plans if not p.findings)
    for size in SIZES:
        nodule = Finding("nodule", "right", "mid", size, 0.5, 1)
        cover = replace(planned, findings=(nodule,)).draw(512, 0).covers[0]
        area = cover.sum() * (planned.pose.field_of_view / 512) ** 2
        assert 2 * np.sqrt(area / np.pi) == pytest.approx(nodule_diameter(nodule), rel=0.1)


def test_the_mentions_of_a_report_follow_its_findings(plans):
    for planned in plans:
        present = {f.name for f in planned.findings}
        for name, value in planned.report.mentions.items():
            assert (value == 0) == (name not in present)
        assert present <= planned.report.mentions.keys()
        denied = {name for name, value in planned.report.mentions.items() if value == 0}
        refused = [s for s in sentences(planned.report.text) if DENIAL.search(s)]
        for name in denied - {"consolidation", "effusion", "pneumothorax", "cardiomegaly", "device"}:
            assert any(re.search(MENTION[name] + "|pulmonary vasculature", s, re.IGNORECASE) for s in refused)
    values = Counter(value for p in plans for value in p.report.mentions.values())
    assert min(values[v] for v in (0.0, 1.0, -1.0)) > 15


def test_masks_and_boxes_are_those_of_the_findings(pictures):
    seen = Counter()
    for record in pictures[:300]:
        assert list(record["masks"]) == list(MASKS)
        masks = {name: np.asarray(mask) for name, mask in record["masks"].items()}
        assert record["boxes"].shape == (len(record["box_labels"]), 4)
        assert record["boxes"].dtype == np.float32
        assert set(np.unique(masks["lungs"])) == {0, 255}
        for name in BOXED:
            boxes = record["boxes"][[label == name for label in record["box_labels"]]]
            assert bool(masks[name].any()) == bool(len(boxes)) == bool(record[name])
            covered = np.zeros_like(masks[name], dtype=bool)
            for x1, y1, x2, y2 in boxes.astype(int):
                assert 0 <= x1 < x2 <= 64
                assert 0 <= y1 < y2 <= 64
                covered[y1:y2, x1:x2] = True
                # As small as it can be: each edge has a pixel of the mask.
                part = masks[name][y1:y2, x1:x2]
                assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            assert not (masks[name].astype(bool) & ~covered).any()
            seen[name] += len(boxes)
    assert min(seen[name] for name in BOXED) > 15


@pytest.mark.parametrize("name", ["consolidation", "effusion", "pneumothorax", "nodule", "atelectasis"])
def test_a_mask_lies_in_the_lungs(plans, name):
    """Of the lungs' mask of the same image, apart from their soft edge."""
    for planned in [p for p in plans if any(f.name == name for f in p.findings)][:12]:
        masks = {key: np.asarray(mask) > 0 for key, mask in planned.record(128, 0)["masks"].items()}
        assert (masks[name] & masks["lungs"]).sum() > 0.8 * masks[name].sum()
        assert 0.1 < masks["lungs"].mean() < 0.5


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
    ("name", "bound"),
    [
        ("consolidation", 0.55),
        ("effusion", 0.68),
        ("pneumothorax", 0.58),
        ("cardiomegaly", 0.85),
        ("edema", 0.6),
    ],
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
    for planned in plans:
        row = planned.row()
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
    for planned in plans:
        study = (planned.report, planned.findings)
        assert seen.setdefault(planned.study_id, study) == study


def test_fewer_images_are_a_prefix_of_more_and_seeds_differ():
    few = list(generate_phantoms(4, image_size=64, seed=2))
    more = list(generate_phantoms(7, image_size=64, seed=2))
    for a, b in zip(few, more, strict=False):
        assert a["image"].tobytes() == b["image"].tobytes()
        assert all(a["masks"][name].tobytes() == b["masks"][name].tobytes() for name in MASKS)
        assert a["boxes"].tolist() == b["boxes"].tolist()
        pictures = ("image", "masks", "boxes")
        assert {k: v for k, v in a.items() if k not in pictures} == {k: v for k, v in b.items() if k not in pictures}
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
    assert list(rows[0])[:9] == ["image", "image_id", "patient_id", "study_id", "view", "text", "split", "sex", "age"]
    for row, record in zip(rows, expected, strict=True):
        with Image.open(tables[0].parent / row["image"]) as image:
            assert image.mode == "L"
            assert image.tobytes() == record["image"].tobytes()
        for name in MASKS:
            file = row.pop(f"{name}_mask")
            assert bool(file) == bool(record["masks"][name].getbbox())
            if file:
                with Image.open(tables[0].parent / file) as mask:
                    assert mask.mode == "L"
                    assert mask.tobytes() == record["masks"][name].tobytes()
        assert json.loads(row.pop("boxes")) == record.pop("boxes").tolist()
        assert json.loads(row.pop("box_labels")) == record.pop("box_labels")
        record.pop("masks")
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


def test_sex_and_age_belong_to_the_patient(plans):
    people = {}
    for planned in plans:
        row = planned.row()
        assert people.setdefault(row["patient_id"], (row["sex"], row["age"])) == (row["sex"], row["age"])
    assert {sex for sex, _ in people.values()} == {"F", "M"}
    assert all(18 <= age <= 92 for _, age in people.values())


def test_the_command_writes_a_table(tmp_path, capsys):
    main([str(tmp_path / "p"), "--n", "2", "--image_size", "64"])
    assert capsys.readouterr().out.strip().endswith("metadata.csv")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "p"), "--n", "2", "--image_size", "64"])
    assert "has content" in capsys.readouterr().err
