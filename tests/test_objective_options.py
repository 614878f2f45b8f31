"""Options of an objective: from the signature of its class and its docstring, with checks that name the field."""

from __future__ import annotations

import inspect
import json
from dataclasses import MISSING, fields
from typing import Literal, get_type_hints

import pytest
import torch

from adaptor_hf import AdaptorConfig
from adaptor_hf.objectives import Objective, known_objectives
from adaptor_hf.options.choices import build_fields
from adaptor_hf.options.declared import declared_options, docstring_arguments
from adaptor_hf.training.objective_fields import OBJECTIVES
from adaptor_hf.training.script_arguments import parse_arguments


class Many(Objective):
    """
    All kinds of options.

    Args:
        margin (`float`, defaults to 0.3): Least distance
            of `negatives`, in cosines (0.5: half).
        kind (`str`): What to do.
        first, second (`int`): Of two.
        layers (`list[int]`, defaults to `(1, 2)`): Widths.

    Returns:
        nothing (`int`): Not an argument.
    """

    config_fields = {"max_logit_scale": 100.0, "hidden_dropout_prob": 0}

    def __init__(
        self,
        kind: Literal["hard", "soft"],
        margin: float | int = 0.3,
        first: int = 1,
        second: int | None = None,
        *,
        layers: tuple[int, ...] = (1, 2),
        names: list[str] | None = None,
        weights: Literal["a", None] = None,
        normal=True,
        unknown=None,
        head: torch.nn.Module | None = None,
        **more,
    ):
        super().__init__()
        self.given = {"kind": kind, "margin": margin, "first": first, "second": second, "layers": layers}


MANY = declared_options(Many)


def built(**given):
    return build_fields(MANY, given, "The objective Many", "objective")


def test_fields_are_those_of_the_signature_and_of_the_config():
    hints = get_type_hints(MANY)
    found = {item.name: (hints[item.name], item.metadata.get("choices")) for item in fields(MANY)}
    assert found == {
        "kind": (str, ("hard", "soft")),
        "margin": (float, None),
        "first": (int, None),
        "second": (int | None, None),
        "layers": (list[int], None),
        "names": (list[str] | None, None),
        "weights": (str | None, ("a", None)),
        "normal": (bool, None),
        "max_logit_scale": (float | None, None),
        "hidden_dropout_prob": (float, None),
    }
    one, other = built(kind="hard"), built(kind="hard")
    assert (one.layers, one.first, one.second, one.normal) == ([1, 2], 1, None, True)
    one.layers.append(3)
    assert other.layers == [1, 2]
    assert one.config() == {"max_logit_scale": 100.0, "hidden_dropout_prob": 0}
    assert one.arguments().keys() == found.keys() - one.config().keys()
    assert Many(**one.arguments()).given["layers"] == [1, 2, 3]


def test_help_is_that_of_the_docstring_and_of_the_config():
    texts = {item.name: item.metadata["help"] for item in fields(MANY)}
    assert texts["margin"] == "Least distance of negatives, in cosines (0.5: half)."
    assert texts["first"] == texts["second"] == "Of two."
    assert texts["max_logit_scale"].startswith("Upper bound of the scale exp(logit_scale).")
    assert texts["normal"] == ""
    assert "nothing" not in docstring_arguments(Many.__doc__)
    assert docstring_arguments(None) == docstring_arguments("No arguments.") == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "The objective Many needs kind, which is not given. Its fields: kind, margin, "),
        ({"kind": "soft", "margn": 1}, "The objective Many has no field 'margn'. Did you mean margin\\?"),
        ({"kind": "soft", "head": None}, "has no field 'head'"),
        ({"kind": "mild"}, "objective: kind must be one of hard, soft, got 'mild'"),
        ({"kind": "soft", "margin": "1"}, r"margin must be float, got '1' \(str\). Write it without quotes"),
        ({"kind": "soft", "margin": True}, r"margin must be float, got True \(bool\)"),
        ({"kind": "soft", "first": None}, "first must be int, got None"),
        ({"kind": "soft", "first": 1.0}, "first must be int, got 1.0"),
        ({"kind": "soft", "normal": 1}, "normal must be bool, got 1"),
        ({"kind": "soft", "layers": 3}, r"layers must be a list of int, got 3 \(int\)"),
        ({"kind": "soft", "layers": [1, "2"]}, "layers must be int, got '2'"),
        ({"kind": "soft", "names": [1]}, "names must be text, got 1"),
        ({"kind": "soft", "weights": "b"}, "weights must be one of a, None, got 'b'"),
    ],
)
def test_wrong_values_are_refused_by_the_name_of_the_field(given, message):
    with pytest.raises(ValueError, match=message):
        built(**given)


def test_right_values_are_taken():
    found = built(kind="soft", margin=1, second=None, layers=[], names=["x"], weights=None, max_logit_scale=None)
    assert (found.margin, type(found.margin), found.layers, found.names) == (1.0, float, [], ["x"])
    assert found.max_logit_scale is None


@pytest.mark.parametrize(
    ("parameters", "config", "message"),
    [
        ("head: torch.nn.Module", {}, "the argument head of its __init__ has no default and cannot be an option"),
        ("pairs: dict[str, int]", {}, "the argument pairs of its __init__ has no default"),
        ("name: str = 'x'", {}, "the argument name of its __init__ is called as what chooses the class"),
        ("hidden_size: int = 3", {"hidden_size": 4}, "the argument hidden_size .* as one of its config_fields"),
        ("", {"hiden_size": 4}, "config_fields: 'hiden_size' is no field of AdaptorConfig"),
        ("x: 'Nowhere' = 1", {}, "annotations of its __init__ name what is not there"),
    ],
)
def test_a_class_whose_options_cannot_be_said_is_refused(parameters, config, message):
    space = {"Objective": Objective, "torch": torch}
    exec(f"class One(Objective):\n    def __init__(self, {parameters}):\n        super().__init__()", space)
    space["One"].config_fields = config
    with pytest.raises(ValueError, match=message):
        declared_options(space["One"])


def test_a_class_without_init_has_no_options_of_its_own():
    class Bare(Objective):
        pass

    assert fields(declared_options(Bare)) == ()


def test_every_objective_of_the_package_is_a_choice_with_help_for_each_field():
    assert list(OBJECTIVES.known) == list(known_objectives())
    assert OBJECTIVES.default == "adaptor"
    config = {item.name for item in fields(AdaptorConfig)}
    for name, made in known_objectives().items():
        declared = OBJECTIVES.known[name]
        signature = inspect.signature(made).parameters
        assert {item.name for item in fields(declared)} == signature.keys() | made.config_fields.keys()
        assert made.config_fields.keys() <= config
        for item in fields(declared):
            assert item.metadata["help"], (name, item.name)
            assert item.default is not MISSING
        assert made.forward is not Objective.forward


def parsed(*words: str):
    return parse_arguments(["--train_file", "x.csv", "--output_dir", "o", "--use_cpu", "True", *words])


def test_the_adaptors_fields_and_values_are_those_of_before():
    _, model, _, training = parsed()
    assert {item.name: item.default for item in fields(OBJECTIVES.known["adaptor"])} == {
        "positives": "text",
        "image_to_text_weight": 0.75,
        "logit_scale_init_value": 2.6592,
        "max_logit_scale": None,
    }
    assert training.positives == model.make_objective().positives == "text"
    _, model, _, training = parsed("--objective", '{"positives": "pair", "max_logit_scale": 100}')
    assert training.positives == model.make_objective().positives == "pair"
    assert model.config().max_logit_scale == 100.0
    assert model.objective_record() == {
        "name": "adaptor",
        "sha256": None,
        "options": {
            "positives": "pair",
            "image_to_text_weight": 0.75,
            "logit_scale_init_value": 2.6592,
            "max_logit_scale": 100.0,
        },
    }
    # Of training arguments the record is elsewhere.
    assert "positives" not in model.to_dict()


def test_options_of_an_objective_are_not_taken_for_the_models_shape(tmp_path):
    # One may have a projector of its own, and call its width as the model calls its own.
    (tmp_path / "own.py").write_text(
        "from adaptor_hf.objectives import Objective\n"
        "class Own(Objective):\n"
        "    config_fields = {'hidden_dropout_prob': 0.5}\n"
        "    def __init__(self, hidden_size: int = 7):\n"
        "        super().__init__()\n"
        "        self.hidden_size = hidden_size\n"
        "    def forward(self, encoded, rows, gather):\n"
        "        return {'loss': encoded.image.pooled.sum()}\n",
        encoding="utf-8",
    )
    name = f"{tmp_path / 'own.py'}:Own"
    for given, width, dropout in (({}, 7, 0.5), ({"hidden_size": 9, "hidden_dropout_prob": 0.25}, 9, 0.25)):
        _, model, _, training = parsed("--objective", json.dumps({"name": name, **given}))
        assert (model.make_objective().hidden_size, model.config().hidden_size) == (width, 768)
        assert model.config().hidden_dropout_prob == model.to_dict()["hidden_dropout_prob"] == dropout
        assert model.to_dict()["hidden_size"] == 768
        assert model.objective_record()["options"] == {"hidden_size": width, "hidden_dropout_prob": dropout}
        assert training.positives == "text"
