"""Where random numbers come from: the global generator, or one for each row."""

import hashlib

import torch


class Chance:
    """The global generator of torch, as everywhere in transformers."""

    def at(self, index: torch.Tensor, dtype: torch.dtype = torch.float32, width: int | None = None) -> torch.Tensor:
        """
        Uniform noise in [0, 1) for some positions.

        Args:
            index (`torch.LongTensor` of shape `(positions,)`):
                The positions, those of a step.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
                The precision.
            width (`int`, *optional*):
                How many numbers for each.

        Returns:
            `torch.Tensor` of shape `(positions,)` or `(positions, width)`.
        """
        shape = (len(index),) if width is None else (len(index), width)
        return torch.rand(shape, dtype=dtype, device=index.device)

    def everywhere(self, like: torch.Tensor) -> torch.Tensor:
        """The same for every position of a canvas, in float32, of the shape `(batch, length)` of `like`."""
        return torch.rand(like.shape, device=like.device)

    def count(self, counts: list[int]) -> None:
        """Called before the draws of a step, with the number of its positions in each row."""


class RowChance(Chance):
    """
    A generator for each row, so that the draws of a row do not depend on the others.

    Args:
        generators (`list[torch.Generator]`):
            One for each row.
        places (`list[tuple[int, int]]`):
            Where the text of each row begins and ends: what stands outside takes no draw.
    """

    def __init__(self, generators: list[torch.Generator], places: list[tuple[int, int]]):
        self.generators = generators
        self.places = places

    @classmethod
    def of_rows(
        cls, generator: torch.Generator | list[torch.Generator], tokens: torch.Tensor, mask: torch.Tensor | None
    ) -> "RowChance":
        """
        Args:
            generator (`torch.Generator` or `list[torch.Generator]`):
                One for each row, or one that seeds them: from a number it draws, the text of the row, and how many
                rows with the same text come before.
            tokens (`torch.LongTensor` of shape `(batch, length)`):
                The canvas before the first step.
            mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
                1 for tokens, 0 for padding.

        Raises:
            ValueError: If the number of generators is not that of the rows, or they are on another device.
        """
        given = torch.ones_like(tokens) if mask is None else mask
        rows = [
            [token for token, seen in zip(row, seen, strict=True) if seen]
            for row, seen in zip(tokens.tolist(), given.tolist(), strict=True)
        ]
        starts = [seen.index(1) for seen in given.long().tolist()]
        places = [(start, start + len(row)) for start, row in zip(starts, rows, strict=True)]
        if isinstance(generator, torch.Generator):
            device = generator.device
            (base,) = torch.randint(2**62, (1,), generator=generator, device=device).tolist()
            generators = []
            for number, row in enumerate(rows):
                text = repr((base, row, rows[:number].count(row))).encode()
                seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2
                generators.append(torch.Generator(device=device).manual_seed(seed))
        else:
            generators = list(generator)
        if len(generators) != len(rows):
            raise ValueError(
                f"There are {len(generators)} generators and {len(rows)} rows; give one for each row, or a single one."
            )
        devices = {str(one.device.type) for one in generators} - {tokens.device.type}
        if devices:
            raise ValueError(
                f"`generator` is on {sorted(devices)} and the tokens on {tokens.device.type}; make it with "
                f'`torch.Generator(device="{tokens.device.type}")`.'
            )
        return cls(generators, places)

    def count(self, counts: list[int]) -> None:
        self.counts = counts

    def at(self, index: torch.Tensor, dtype: torch.dtype = torch.float32, width: int | None = None) -> torch.Tensor:
        more = () if width is None else (width,)
        draws = [
            torch.rand((count, *more), dtype=dtype, device=index.device, generator=generator)
            for generator, count in zip(self.generators, self.counts, strict=True)
            if count
        ]
        return torch.cat(draws)

    def everywhere(self, like: torch.Tensor) -> torch.Tensor:
        draws = torch.ones(like.shape, device=like.device)
        for row, (generator, (start, end)) in enumerate(zip(self.generators, self.places, strict=True)):
            draws[row, start:end] = torch.rand(end - start, device=like.device, generator=generator)
        return draws


__all__ = ["Chance", "RowChance"]
