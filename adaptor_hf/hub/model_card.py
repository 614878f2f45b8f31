"""The model card: what was trained, on which towers, how it was measured, and what it is not for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.reading import Reading
from ..evaluation.aligners import describe_aligner
from ..evaluation.baselines import LEGEND, MARK
from ..files import written_aside
from ..markdown import one_line, plain, sentence, table_row, table_rule
from ..objectives.loading import describe_objective
from ..random_specs_adaptor import describe_random, is_random
from ..towers.terms import terms_of
from ..towers.words import describe_layers, describe_training

if TYPE_CHECKING:
    from ..training.controls import RetrievalResult

TEMPLATE = Path(__file__).with_name("model_card_template.md")
EVALUATION = """\
Retrieval on the `{split}` split, one seed. Copies of a text count as one candidate and all its images as
positives; ties count against the model; intervals are 95 % intervals over {unit}; n is the number of queries. Chance
is what a random order of the same images and texts scores, exactly.

| metric | value | 95 % interval | chance | n |
|---|---|---|---|---|
{rows}

{legend}"""
READING = {
    "RGB": (" Images were read in colour.", 'mode="RGB"'),
    "voi_lut": (" DICOM files were read as displayed, with their VOI LUT or window.", "voi_lut=True"),
    "range_percentile": (" Deep files were scaled from a percentile of their pixels to 100 minus it.", None),
}
# From the least to the most restrictive; a licence that is not here cannot be ranked, and the card then names none.
LICENSES = (
    "cc0-1.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "apache-2.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "gpl-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
)


def strictest_license(towers: list[dict[str, Any]]) -> str | None:
    """
    The most restrictive licence among the towers, or `None` if one of them is unknown: a card never guesses.

    Args:
        towers (`list[dict]`): Tower references; `license` is an identifier of the Hub, in any case, or `None`.
    """
    # Random weights are nobody's.
    names = [(tower.get("license") or "").lower() for tower in towers if not is_random(origin_of(tower))]
    if not names or any(name not in LICENSES for name in names):
        return None
    return max(names, key=LICENSES.index)


def describe_tower(kind: str, tower: dict[str, Any] | None) -> str:
    """One line of the card's table of towers."""
    if tower is None:
        return table_row([kind, "ready-made embeddings", "", "", ""])
    origin, how = origin_of(tower), tower.get("trained")
    name = origin.get("name_or_path") or "unknown"
    # A folder's place on this machine is nobody's business.
    name = Path(name).name if Path(name).is_absolute() or Path(name).exists() else name
    label = f"{origin['preset']} ({name})" if origin.get("preset") else name
    label = ", ".join(
        part for part in (label, describe_layers(tower), how is not None and describe_training(how)) if part
    )
    data = describe_random(tower) if is_random(tower) else describe_pretraining(tower)
    return table_row([kind, label, revision_of(tower), license_of(tower), data])


def revision_of(tower: dict[str, Any]) -> str:
    """What pins the weights that a tower has, or started from: a commit, or the seed of random ones."""
    origin = origin_of(tower)
    return f"seed {origin['init_seed']}" if is_random(origin) else origin.get("revision") or "not pinned"


def license_of(tower: dict[str, Any]) -> str:
    """Licence of the weights that a tower has, or started from; of random ones there is none."""
    return "none: random weights" if is_random(origin_of(tower)) else tower.get("license") or "unknown"


def describe_pretraining(tower: dict[str, Any]) -> str:
    """The data that a tower saw; that it saw none is known where the list is empty, and unknown where there is none."""
    data = tower.get("pretraining_data")
    return "unknown" if data is None else ", ".join(data) or "nothing"


def origin_of(tower: dict[str, Any]) -> dict[str, Any]:
    """Of a tower that was trained the one that it started from, else itself."""
    return tower.get("base_tower") or tower if tower.get("trained") is not None else tower


def describe_towers(towers: dict[str, dict[str, Any] | None]) -> tuple[str, str]:
    """Which towers the embeddings are of, for the first sentence of a card, and a sentence on where they are."""
    trained = [kind for kind, tower in towers.items() if (tower or {}).get("trained") is not None]
    named = " and ".join(f"a {'trained' if kind in trained else 'frozen'} {kind} tower" for kind in towers)
    if not trained:
        return named, "They are frozen and not part of this checkpoint unless its config says so."
    folders = " and ".join(f"`{kind}_tower`" for kind in trained)
    kept = f"What was trained on these pairs is part of this checkpoint: {folders}."
    if frozen := [kind for kind in towers if kind not in trained]:
        kept += f" The {frozen[0]} tower is frozen and not part of it."
    return named, kept


def describe_reading(tower: dict[str, Any] | None) -> str:
    """How images were read in training, where not as grey and without a window, and how to read one's own so."""
    label = Reading.of_spec(tower).label
    parts = [(READING[name.partition("=")[0]], name) for name in label.split(", ")] if label else []
    said = "".join(sentence for (sentence, _), _ in parts)
    call = ", ".join(argument or name for (_, argument), name in parts)
    return f"{said} Read yours so, with `adaptor_hf.data.images.read_image(path, {call})`." if parts else ""


def describe_terms(kind: str, tower: dict[str, Any]) -> str:
    """What is recorded of a tower's commercial use, with source and date."""
    terms = terms_of(tower)
    date = f", recorded {terms['checked']}" if terms["checked"] else ""
    data = f" Its pretraining data: {terms['data_terms']}." if terms["data_terms"] else ""
    return f"* {kind} tower: {terms['commercial']} ({terms['commercial_source']}{date}).{data}"


def describe_data_terms(terms: dict[str, str] | None) -> str:
    if not terms:
        return "Terms of the training data: none are recorded here that restrict sharing. Check your own."
    listed = "; ".join(f"{plain(name)}: {sentence(text)}" for name, text in terms.items())
    return f"**The terms of the training data restrict what may be shared.** {listed}."


def write_model_card(
    path: str | Path,
    *,
    model_name: str,
    config: dict[str, Any],
    num_parameters: int,
    pairs: dict[str, int],
    split_hash: str,
    arguments: dict[str, Any],
    result: "RetrievalResult | None",
    evaluated_on: str | None,
    dataset_name: str | None = None,
    controls: str | None = None,
    versions: dict[str, str] | None = None,
    sources: list[dict[str, Any]] | None = None,
    objective: str = "adaptor",
) -> Path:
    """
    Write `README.md` of a model folder with the Hub's metadata.

    The card holds numbers and names of towers; no report text, path or id of a patient.

    Args:
        path (`str` or `Path`): The model folder.
        model_name (`str`): Title.
        config (`dict`): The model's config as a dictionary.
        num_parameters (`int`): Trainable parameters.
        pairs (`dict[str, int]`): Pairs a split.
        split_hash (`str`): Names the split, from `data.splits.split_hash`.
        arguments (`dict`): Training arguments to list.
        result (`RetrievalResult`, *optional*): Retrieval with intervals; `None` if nothing was held out.
        evaluated_on (`str`, *optional*): The split of `result`.
        dataset_name (`str`, *optional*): As the user calls the data; never a path.
        controls (`str`, *optional*): Table of the controls.
        versions (`dict[str, str]`, *optional*): Versions of packages.
        sources (`list[dict]`, *optional*): Of several sources each: `name`, `pairs` a split, `patients`, `share` of an
            epoch, `mean_recall` with its `interval`, and `terms`.
        objective (`str`, defaults to `"adaptor"`): What was minimised, by its name.

    Returns:
        `Path`: The card.
    """
    towers = [config.get("vision_tower"), config.get("text_tower")]
    known = [tower for tower in towers if tower is not None]
    named, kept = describe_towers(dict(zip(("vision", "text"), towers, strict=True)))
    license_name = strictest_license(known)
    # Metadata and text alike: what a folder or a data set is called may hold line ends.
    model_name, dataset = one_line(model_name), one_line(dataset_name or "unnamed image-report pairs")
    metrics = [] if result is None else list_metrics(result, pairs[evaluated_on])
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license=license_name,
        base_model=[tower["name_or_path"] for tower in map(origin_of, known) if is_hub_id(tower)] or None,
        tags=["adaptor", "medical-imaging", "image-text-retrieval", "custom_code"],
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type="image-text-retrieval",
                dataset_type=dataset.lower().replace(" ", "-"),
                dataset_name=dataset,
                dataset_split=evaluated_on,
                dataset_args={"split_hash": split_hash},
                metric_type=name,
                metric_value=round(value, 4),
                metric_args={"n": count} | _interval(result, name) | _beside_chance(result, name),
            )
            for name, value, count in metrics
        ]
        or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=plain(model_name),
        aligner=describe_aligner(config),
        trained_on=describe_trained_on(config),
        towers_named=named,
        towers_kept=kept,
        num_parameters=f"{num_parameters:,}",
        towers="\n".join(describe_tower(kind, tower) for kind, tower in zip(("vision", "text"), towers, strict=True)),
        terms="\n".join(
            describe_terms(kind, tower) for kind, tower in zip(("vision", "text"), towers, strict=True) if tower
        )
        or "* Nothing: the embeddings were made elsewhere.",
        data_terms=describe_data_terms(config.get("data_terms")),
        license_note=(
            f"`{license_name}`, the strictest of the towers' licences."
            if license_name
            else "Not stated: the licence of a tower is unknown or cannot be ranked. Check the towers before any use."
        ),
        dataset=plain(dataset),
        pairs=", ".join(f"{count:,} {plain(name)}" for name, count in pairs.items()),
        sources=describe_sources(sources),
        split_hash=split_hash,
        split_rule=describe_rule(config.get("split_rule")),
        reading=describe_reading(config.get("vision_tower")),
        probabilities="softmax(-1)" if config.get("logit_bias_init_value") is None else "sigmoid()",
        evaluation=describe_evaluation(result, metrics, evaluated_on),
        controls=controls or "Not run. `train_pretrain.py --controls` trains them.",
        objective=describe_objective(objective),
        arguments="\n".join(map(table_row, arguments.items())),
        versions=", ".join(f"{name} {version}" for name, version in (versions or {}).items()),
    )
    path = Path(path) / "README.md"
    with written_aside(path) as aside:
        card.save(aside)
    return path


def describe_trained_on(config: dict[str, Any]) -> str:
    """For a paragraph of its own: which token sequences it was trained on, and who reads none."""
    if not (tokens := config.get("trained_on")):
        return ""
    said = f"\n\nTrained on token sequences ({', '.join(tokens)}), on which the retrieval below is measured."
    if config.get("attention_pooling_heads") is not None:
        return said
    return f"{said} `model(**inputs)` and downstream tasks read pooled embeddings, for which it was not trained."


def describe_sources(sources: list[dict[str, Any]] | None) -> str:
    """A table of several sources, with the terms of each."""
    if not sources:
        return ""
    parts = list(sources[0]["pairs"])
    head = ["source", *(f"{part} pairs" for part in parts), "known patients", "share of an epoch", "mean recall",
            "terms"]  # fmt: skip
    rows = []
    for one in sources:
        recall = "n/a" if one["mean_recall"] is None else f"{one['mean_recall']:.3f}"
        if one["interval"] is not None:
            recall += " [{:.3f}, {:.3f}]".format(*one["interval"])
        counts = [f"{one['pairs'][part]:,}" for part in parts]
        rows.append([one["name"], *counts, f"{one['patients']:,}", f"{one['share']:.1%}", recall, one["terms"]])
    lines = [table_row(head), table_rule(len(head)), *map(table_row, rows)]
    return (
        "\n\nSeveral sources, each split by its own patients; the mean recall of each is among its own images and "
        "texts. All their terms hold; the most restrictive decides what may be shared.\n\n" + "\n".join(lines)
    )


def list_metrics(result: "RetrievalResult", num_pairs: int) -> list[tuple[str, float, int]]:
    """Name, value and number of queries of each metric."""
    counts = {
        name: next((count for way, count in result.num_queries.items() if name.startswith(way)), num_pairs)
        for name in result.metrics
    }
    return [(name, value, counts[name]) for name, value in result.metrics.items()]


def _interval(result: "RetrievalResult", name: str) -> dict[str, list[float]]:
    return {"interval_95": [round(end, 4) for end in result.intervals[name]]} if name in result.intervals else {}


def _beside_chance(result: "RetrievalResult", name: str) -> dict[str, Any]:
    if name not in result.chance:
        return {}
    return {"chance": round(result.chance[name], 4), "above_chance": result.above_chance(name)}


def describe_evaluation(result: "RetrievalResult | None", metrics: list[tuple], evaluated_on: str | None) -> str:
    if not metrics:
        return "Not evaluated: no pairs were held out. Nothing is known about how well it works."
    rows = []
    for name, value, count in metrics:
        interval = "[{:.3f}, {:.3f}]".format(*result.intervals[name]) if name in result.intervals else "n/a"
        shown = f"{value:.3f}" if result.above_chance(name) else f"{value:.3f} {MARK}"
        chance = f"{result.chance[name]:.3f}" if name in result.chance else ""
        rows.append(table_row([name, shown, interval, chance, count]))
    return EVALUATION.format(split=evaluated_on, unit=result.interval_over, rows="\n".join(rows), legend=LEGEND)


def describe_rule(rule: dict[str, Any] | None) -> str:
    """How the data was split, for a sentence."""
    if rule is None:
        return "split by patient where patients were known"
    if rule["scheme"] == "given":
        return "the split of the table"
    shares = f"{100 * rule['validation_fraction']:g} % validation, {100 * rule['test_fraction']:g} % test"
    scheme = "by patient where patients were known" if rule["scheme"] == "patient" else f"scheme {rule['scheme']}"
    if rule.get("sources"):
        scheme = "; ".join(f"{plain(name)}: {plain(one)}" for name, one in rule["sources"])
    return f"split rule `{rule['hash']}` ({scheme}, {shares}, seed {rule['seed']})"


def is_hub_id(tower: dict[str, Any]) -> bool:
    """Whether a tower can be named as a base model: an owner/name on the Hub, no folder."""
    name = tower.get("name_or_path") or ""
    if is_random(tower):
        return False
    return tower.get("library") in ("transformers", "timm") and name.count("/") == 1 and not Path(name).exists()


__all__ = ["strictest_license", "write_model_card"]
