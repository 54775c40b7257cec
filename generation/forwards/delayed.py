"""Keys and values of tokens are kept from the second step after they were committed: dKV-Cache (arXiv 2505.15781)."""

from collections.abc import Callable

import torch

from ..canvas import Canvas, true_first
from ..regions import Block
from ..rule import Setup, Table, setting
from .cached import Cache, CachedForward


class DelayedForward(CachedForward):
    """
    Computes masks, and tokens in the step after they were committed; keeps the keys and values of all others
    (dKV-Cache, arXiv 2505.15781, decoding variant). For one row: others would compute other positions.

    Args:
        model, canvas, guidance:
            As in [`~llada.generation.forwards.cached.CachedForward`].
        warmup (`int`):
            How many steps at the beginning of a block compute the whole canvas.
        refresh_interval (`int`):
            After how many steps the whole canvas is computed again.
    """

    same_shapes = False

    def __init__(self, model: Callable, canvas: Canvas, guidance: float, warmup: int, refresh_interval: int):
        super().__init__(model, canvas, guidance)
        self.warmup = warmup
        self.refresh_interval = refresh_interval
        self.masked_before = canvas.masked

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.step = -1

    def count(self, canvas: Canvas, numbers: torch.Tensor) -> list[int]:
        # what is masked now was masked before: masks, and what the last step committed
        self.unsettled = self.masked_before
        self.masked_before = canvas.masked
        counts, (self.num_unsettled,) = torch.stack([numbers, self.unsettled.sum(1)]).tolist()
        return counts

    def __call__(self, canvas: Canvas, wanted: torch.Tensor, counts: list[int]) -> torch.Tensor:
        self.step += 1
        length, device = canvas.tokens.shape[1], canvas.tokens.device
        places = torch.arange(length, device=device)
        if self.step >= self.warmup and self.step % self.refresh_interval:
            places = true_first(self.unsettled[0], self.num_unsettled)
        extra = {"past_key_values": self.cache, "cache_position": places}
        return self._run(canvas, wanted, counts, self.rows, places, slice(0, length), extra)


class DelayedCache(Cache):
    """Committed tokens are kept, a step later."""

    value = "delayed"
    traits = frozenset(
        {
            "aligns_rows",
            "computes_a_part",
            "keeps_committed",
            "needs_full_attention",
            "needs_the_suffix",
            "takes_one_row",
        }
    )
    table = Table(
        "plan",
        "delayed",
        "dKV-Cache, [2505.15781](https://arxiv.org/abs/2505.15781)",
        "2L + Σ masks, L again every `refresh_interval`",
        "one row, long prompts; the most faithful cache for one long block",
    )

    class Settings(Cache.Settings):
        cache_warmup: int | None = setting(int, "As with the vicinity cache.", default=2, least=1)
        refresh_interval: int | None = setting(int, "As with the vicinity cache.", default=8, least=1)

    @classmethod
    def forward(cls, setup: Setup, selector) -> DelayedForward:
        config = setup.config
        finer = (cls.get(config, name) for name in ("cache_warmup", "refresh_interval"))
        return DelayedForward(setup.model, setup.canvas, config.guidance, *finer)


__all__ = ["DelayedCache", "DelayedForward"]
