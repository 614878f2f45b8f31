"""Declaring the controls: the Adaptor and what stands in its place in a comparison, each once."""

from __future__ import annotations

from dataclasses import dataclass

MADE = ("checkpoint", "built", "pretrained", "frozen", "fine-tuned", "published")


@dataclass(frozen=True)
class Control:
    """
    One row of a comparison: a control, or the Adaptor itself.

    Args:
        key (`str`): Of options and of folders of saved models, and the field `module` of result lines.
        name (`str`): What tables call it, and the field `system` of result lines.
        made (`str`): `checkpoint` is the Adaptor that is asked about; `built` needs no training of its own;
            `pretrained` is trained on the same pairs as the Adaptor, at the end of its pre-training; `frozen` too, of a
            run whose towers train: on the towers as they were before; `fine-tuned` is the Adaptor with a tower that
            trains on the task; `published` is another one's whole model, used as it is.
        simplicity (`int`, *optional*): Of what the test rows cannot tell apart, the one with the lowest is recommended;
            None: it is never recommended, it only shows what the others learned.
        aligner (`str`, *optional*): Of one that is pre-trained, instead of the Adaptor's, with the same width.
        shuffled (`bool`): Of one that is pre-trained: images and texts are matched at random.
        new_weights (`bool`): Of one that is built: the Adaptor's shape with weights that nothing has trained.
        matched_head (`bool`): Of one that is built: a head on the raw tower with as many parameters as the Adaptor.
        by_default (`bool`): Of one that is built: whether `--controls` has it where it is not given.
        learning_rate (`float`, *optional*): Of one that is fine-tuned, where none is given.
        low_rank (`bool`): Of one that is fine-tuned: LoRA's weights alone train in the tower.
    """

    key: str
    name: str
    made: str
    simplicity: int | None = None
    aligner: str | None = None
    shuffled: bool = False
    new_weights: bool = False
    matched_head: bool = False
    by_default: bool = False
    learning_rate: float | None = None
    low_rank: bool = False

    def __post_init__(self) -> None:
        if self.made not in MADE:
            raise ValueError(f"Control {self.key}: made is one of {', '.join(MADE)}, got {self.made!r}.")


CONTROLS = {
    control.key: control
    for control in (
        Control("adaptor", "Adaptor", "checkpoint", simplicity=3),
        Control("tower", "raw tower", "built", simplicity=0, by_default=True),
        Control("untrained", "Adaptor, untrained", "built", new_weights=True, by_default=True),
        Control("mlp", "parameter-matched MLP", "built", simplicity=2, matched_head=True),
        Control("projections", "two linear projections", "pretrained", simplicity=1, aligner="linear"),
        Control("shuffled", "Adaptor, shuffled pairs", "pretrained", shuffled=True),
        Control("frozen_towers", "Adaptor, frozen towers", "frozen"),
        Control("finetune", "Adaptor, fine-tuned end to end", "fine-tuned", simplicity=6, learning_rate=2e-5),
        Control("lora", "Adaptor, LoRA in the tower", "fine-tuned", simplicity=4, learning_rate=2e-4, low_rank=True),
        Control("blocks", "Adaptor, last blocks trained", "fine-tuned", simplicity=5, learning_rate=2e-5),
        Control("supervised", "supervised classifier", "published"),
    )
}
"""By key."""


def controls_made(made: str) -> tuple[str, ...]:
    """Keys of the controls that are made in one way, such as `built`."""
    return tuple(key for key, control in CONTROLS.items() if control.made == made)


def saw_pairs(key: str | None) -> bool:
    """Whether image-report pairs have shaped it, so that overlap of test rows with pre-training matters: all but what
    is built, and what others published. What a tower saw is `tower_saw_dataset`."""
    return key not in (*controls_made("built"), *controls_made("published"))


def may_be_recommended(key: str) -> bool:
    """False of controls that only show what others learned; what is not declared may be recommended, as the last."""
    return key not in CONTROLS or CONTROLS[key].simplicity is not None


def simplicity_of(key: str) -> int:
    """Place among what may be recommended, the simplest first; what is not declared comes last."""
    found = CONTROLS[key].simplicity if key in CONTROLS else None
    return len(CONTROLS) if found is None else found


__all__ = ["CONTROLS", "Control", "controls_made", "may_be_recommended", "saw_pairs", "simplicity_of"]
