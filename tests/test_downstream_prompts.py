"""Prompt sets: those of the package load, files mean what they say, draws depend on the seed."""

import json

import pytest

from adaptor_hf.tasks.prompts import list_prompt_sets, load_prompts


@pytest.mark.parametrize("name", list_prompt_sets())
def test_prompt_sets_of_the_package_load_and_no_text_is_in_two_classes(name):
    prompts = load_prompts(name)
    sides = [*prompts.positive.values(), *prompts.negative.values()]
    assert all(len(set(texts)) == len(texts) for texts in sides)
    assert not prompts.exclusive or not prompts.negative
    for label in prompts.negative:
        assert not set(prompts.positive[label]) & set(prompts.negative[label])


def test_every_public_set_that_was_asked_for_is_there():
    assert {"chexpert", "covidx", "phantom", "rsna", "siim"} <= set(list_prompt_sets())
    from adaptor_hf.data.labels import CHEXPERT_LABELS

    chexpert = load_prompts("chexpert").for_classes(CHEXPERT_LABELS, False)
    assert list(chexpert.positive) == list(CHEXPERT_LABELS)
    assert list(load_prompts("covidx").for_classes(["normal", "pneumonia", "COVID-19"], True).positive)[2] == "COVID-19"
    assert list(load_prompts("rsna").for_classes(["whatever it is called"], False).negative) == [
        "whatever it is called"
    ]


def test_templates_and_parts_are_filled_in(tmp_path):
    content = {"templates": ["a {}.", "b {}."], "classes": {"x": {"positive": {"parts": [["", "small"], ["x"]]},
                                                                  "negative": ["y"]}}}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(content))
    prompts = load_prompts(tmp_path / "p.json")
    assert prompts.positive == {"x": ("a x.", "a small x.", "b x.", "b small x.")}
    assert prompts.negative == {"x": ("a y.", "b y.")}


def test_files_of_slip(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"pets": ["cat", ["dog", "hound"]]}))
    (tmp_path / "templates.json").write_text(json.dumps({"pets": ["a photo of a {}.", "art of the {}."]}))
    source = f"{tmp_path}/labels.json:{tmp_path}/templates.json:pets"
    prompts = load_prompts(source)
    assert prompts.exclusive
    assert prompts.positive["cat"] == ("a photo of a cat.", "art of the cat.")
    assert prompts.positive["dog"] == (
        "a photo of a dog.", "a photo of a hound.", "art of the dog.", "art of the hound.",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no data set 'birds'"):
        load_prompts(source.replace(":pets", ":birds"))


def test_a_draw_depends_on_the_seed_alone():
    prompts = load_prompts("chexpert_5x200")
    one, again, other = prompts.draw(3, 0), prompts.draw(3, 0), prompts.draw(3, 1)
    assert one == again
    assert one.digest != other.digest
    assert all(len(texts) == 3 and set(texts) <= set(prompts.positive[name]) for name, texts in one.positive.items())
    assert prompts.draw(None, 0) is prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"x": ["y"]}', "expected"),
        ('{"classes": {"x": {"positive": ["y"]}}}', 'needs "negative"'),
        ('{"classes": {"x": {"positive": [], "negative": ["y"]}}}', "at least one"),
        ('{"classes": {"x": {"positive": "y", "negative": ["y"]}}}', "list of texts"),
        ('{"templates": ["no place"], "classes": {"x": {"positive": ["y"], "negative": ["z"]}}}', "has one {}"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_a_class_without_prompts_and_the_wrong_kind_of_task_are_refused():
    with pytest.raises(ValueError, match=r"no class nodulus; they have"):
        load_prompts("chexpert").for_classes(["nodulus"], False)
    with pytest.raises(ValueError, match="exclude each other"):
        load_prompts("chexpert").for_classes(["Edema"], True)
    with pytest.raises(FileNotFoundError, match="chexpert"):
        load_prompts("nothing")
