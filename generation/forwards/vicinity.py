"""Keys and values of what is far from the block are kept: the vicinity refresh of dInfer (arXiv 2510.08666)."""

from collections.abc import Callable

from ..canvas import Canvas
from ..regions import Block
from ..rule import Setup, Table, setting
from .cached import Cache, CachedForward


class VicinityForward(CachedForward):
    """
    Keeps the keys and values of what is far from the current block (vicinity refresh of dInfer, arXiv 2510.08666).

    Args:
        model, canvas, guidance:
            As in [`~llada.generation.forwards.cached.CachedForward`].
        vicinity (`int`):
            How many positions before and after the block are computed with it.
        warmup (`int`):
            How many steps at the beginning of a block compute the whole canvas.
        refresh_interval (`int`, *optional*):
            After how many steps the whole canvas is computed again. Never within a block if not given.
    """

    same_shapes = False

    def __init__(
        self,
        model: Callable,
        canvas: Canvas,
        guidance: float,
        vicinity: int,
        warmup: int,
        refresh_interval: int | None = None,
    ):
        super().__init__(model, canvas, guidance)
        self.vicinity = vicinity
        self.warmup = warmup
        self.refresh_interval = refresh_interval

    def begin(self, canvas: Canvas, block: Block) -> None:
        super().begin(canvas, block)
        self.step = -1

    def window(self, block: Block, length: int) -> tuple[int, int]:
        self.step += 1
        if self.step < self.warmup or (self.refresh_interval and self.step % self.refresh_interval == 0):
            return 0, length
        return max(block.start - self.vicinity, 0), min(block.end + self.vicinity, length)


class VicinityCache(Cache):
    """What is far from the block is kept."""

    value = "vicinity"
    traits = frozenset({"aligns_rows", "computes_a_part", "needs_full_attention"})
    table = Table(
        "plan",
        "vicinity",
        "dInfer",
        "L + (s−1)(b + 2·vicinity)",
        "dual, where the block needs fresh neighbours. dInfer counts its warm-up over the answer, which would make a "
        "row depend on its batch; here it is per block",
    )

    class Settings(Cache.Settings):
        vicinity: int | None = setting(
            int,
            'Positions on either side of the block that `kv_cache="vicinity"` computes in every step.',
            default=16,
            least=0,
        )
        cache_warmup: int | None = setting(
            int,
            'Steps at the beginning of a block that compute the whole canvas, with `kv_cache="vicinity"` (1 by '
            'default) and `"delayed"` (2).',
            default=1,
            least=1,
        )
        refresh_interval: int | None = setting(
            int,
            "Steps of a block after which these two compute the whole canvas again: never and 8 by default.",
            least=1,
        )

    @classmethod
    def forward(cls, setup: Setup, selector) -> VicinityForward:
        config = setup.config
        finer = (cls.get(config, name) for name in ("vicinity", "cache_warmup", "refresh_interval"))
        return VicinityForward(setup.model, setup.canvas, config.guidance, *finer)


__all__ = ["VicinityCache", "VicinityForward"]
