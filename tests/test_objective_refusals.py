"""What is no objective, no loss or no embedding is refused by name."""

import pytest
import torch
from objective_trainers import Teacher, make_trainer

from adaptor_hf.objectives import AdaptorObjective, Encoded, Objective, SigLIPObjective
from adaptor_hf.training.checkpoints import refuse_broken_weights
from adaptor_hf.training.terms import smaller_steps


class Giving(Objective):
    """Gives what it is told to."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, encoded, rows, gather):
        return self.give(encoded.image.pooled.sum())


@pytest.mark.parametrize(
    ("give", "error", "says"),
    [
        (lambda loss: {"loss": loss, "grad_norm": loss}, ValueError, "named 'grad_norm'.*Rename it"),
        (lambda loss: {"loss": loss, "eval_loss": loss}, ValueError, "named 'eval_loss'"),
        (lambda loss: {"contrast": loss}, ValueError, 'forward of Giving must return "loss".*gave contrast'),
        (lambda loss: loss, TypeError, "dictionary of scalar tensors, got Tensor"),
        (lambda loss: {"loss": loss, "share": 0.5}, TypeError, r"'share' \(float\)"),
        (lambda loss: {"loss": loss.expand(3)}, ValueError, r"'loss' of Giving is of shape \(3,\)"),
    ],
)
def test_what_is_no_loss_is_refused(give, error, says, views, tmp_path):
    with pytest.raises(error, match=says):
        make_trainer(tmp_path, views, Giving(give), max_steps=1).train()


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (Teacher, r"is the class Teacher: give an instance, Teacher\(\.\.\.\)"),
        (None, "got None. The default is 'adaptor'"),
        (torch.nn.Linear(2, 2), "name of adaptor, siglip, or file.py:Class; got Linear"),
    ],
)
def test_what_is_no_objective_is_refused(objective, says, views, tmp_path):
    with pytest.raises(TypeError, match=says):
        make_trainer(tmp_path, views, objective)


def test_an_objective_that_has_not_begun_as_a_module_is_refused(views, tmp_path):
    class Bare(Objective):
        def __init__(self):
            self.__dict__["margin"] = 1

    with pytest.raises(TypeError, match=r"Bare .* must begin with super\(\).__init__\(\)"):
        make_trainer(tmp_path, views, Bare())


@pytest.mark.parametrize(
    ("encode", "says"),
    [
        (lambda model, batch: model(image_embeds=batch["image_embeds"]), "must return .*Encoded, got AdaptorOutput"),
        (
            lambda model, batch: Encoded(batch["image_embeds"]),
            "encode of Giving gave Tensor for 'image': expected .*Side",
        ),
    ],
)
def test_what_is_not_encoded_is_refused(encode, says, views, tmp_path):
    objective = Giving(lambda loss: {"loss": loss})
    objective.encode = encode
    with pytest.raises(TypeError, match=says):
        make_trainer(tmp_path, views, objective, max_steps=1).train()


@pytest.mark.parametrize("where", ["forward", "encode"])
def test_a_column_that_a_batch_lacks_is_named_with_those_that_it_has(where, views, tmp_path):
    objective, method = Giving(lambda loss: {"loss": loss}), getattr(Objective, where)

    def reads(*args):
        columns = args[1]
        try:
            columns["mine"]
        except KeyError:
            assert "mine" not in columns
            assert columns.get("mine") is None
        return columns["wanted"] if where == "forward" else method(objective, *args) and columns["wanted"]

    setattr(objective, where, reads)
    with pytest.raises(KeyError, match=r"no column 'wanted' here; it has .*'text_row'"):
        make_trainer(tmp_path, views, objective, max_steps=1).train()


def test_advice_after_a_loss_of_nan_names_what_the_objective_has(views, tmp_path):
    giving = Giving(lambda loss: {"loss": loss * float("nan")})
    with pytest.raises(FloatingPointError, match="in float32, or with a forward of Giving") as caught:
        make_trainer(tmp_path, views, giving, max_steps=1).train()
    assert "max_logit_scale" not in str(caught.value)
    giving.weight = torch.nn.Parameter(torch.tensor(float("nan")))
    with pytest.raises(FloatingPointError, match="with a forward of Giving"):
        refuse_broken_weights((torch.nn.Linear(2, 2), giving), 3)
    assert "'{\"max_logit_scale\": 100}'" in smaller_steps(AdaptorObjective())
    assert "max_logit_scale 100 among the fields" in smaller_steps(SigLIPObjective())


def test_an_objective_that_keeps_the_model_is_refused(views, tmp_path):
    class Keeps(Teacher):
        def setup(self, model, args):
            self.model = model

    with pytest.raises(ValueError, match=r"Keeps keeps the model.*copy\.deepcopy"):
        make_trainer(tmp_path, views, Keeps())
