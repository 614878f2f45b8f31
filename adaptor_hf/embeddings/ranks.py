"""What a build needs of several processes: one that decides, all that compute, errors that reach every rank."""

import os
from collections.abc import Callable
from typing import Any

from ..privacy.mode import error_text


class Ranks:
    """This process among those of `accelerate launch` or `torchrun`; one process of one without them.

    Attributes:
        index: rank of this process, 0 decides and writes the manifests.
        world: number of ranks.
        first_of_node: of the ranks on one machine, one; the machines do not share memory, and perhaps no disk.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        if not dist.is_available():
            self.index, self.world, self.first_of_node = 0, 1, True
            return
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            PartialState()
        self.index, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        # A launcher says which process of this machine this is; without one each stands for itself.
        self.first_of_node = self.world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def close(self) -> None:
        """Leave the process group, at the end of a program."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Run on rank 0 only; every rank gets the result, or raises what rank 0 raised."""
        if self.world == 1:
            return function()
        import torch.distributed as dist

        answer: list = [None, None]
        if self.is_main:
            try:
                answer[0] = function()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def together(self, function: Callable[[], None], what: str = "the cache of embeddings") -> None:
        """Run on every rank, then wait for all; when one rank fails, all raise instead of waiting for ever, and say at
        what."""
        if self.world == 1:
            function()
            return
        import torch.distributed as dist

        error: Exception | None = None
        try:
            function()
        except Exception as raised:
            error = raised
        reasons: list = [None] * self.world
        dist.all_gather_object(reasons, None if error is None else f"{type(error).__name__}: {error_text(error)}")
        if error is not None:
            raise error
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise RuntimeError(f"rank {rank} failed at {what}: {reason}")

    def once_a_node(self, function: Callable[[], None]) -> bool:
        """Run on the first rank of each node while the others wait, with errors as `together`; whether it ran here."""
        self.together(function if self.first_of_node else lambda: None)
        return self.first_of_node
