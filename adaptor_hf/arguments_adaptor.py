"""Unknown keyword arguments of `forward` are refused, but for those that transformers and peft hand to every model.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

PASSED_ON = frozenset(
    {
        # Trainer, pipelines and peft give these to models that have no use for them.
        *("labels", "num_items_in_batch", "return_dict", "output_attentions", "output_hidden_states", "use_cache"),
        # Tokenizers and image processors of towers may give these.
        *("token_type_ids", "special_tokens_mask", "position_ids", "interpolate_pos_encoding"),
    }
)


def refuse_unknown(function: Callable, given: dict[str, Any]) -> None:
    """
    Args:
        function (`Callable`): The method that was called; its parameters are known.
        given (`dict`): What its `**kwargs` caught.

    Raises:
        TypeError: for an argument that has a value and is known to nobody, with the closest name.
    """
    unknown = [name for name, value in given.items() if value is not None and name not in PASSED_ON]
    if not unknown:
        return
    known = [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]
    close = difflib.get_close_matches(unknown[0], [*known, *PASSED_ON], n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"It takes {', '.join(known)}."
    raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument {unknown[0]!r}. {hint}")


__all__ = ["PASSED_ON", "refuse_unknown"]
