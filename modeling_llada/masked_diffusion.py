"""
The forward process of masked diffusion and its loss, in plain torch (arXiv 2502.09992, §2 and appendix A).

A mask ratio `p` is drawn for every sequence, every token that may be masked is replaced by the mask token with
probability `p`, and the cross entropy of the masked tokens, weighted by `1 / p`, bounds the negative log-likelihood:

    -log p(x) <= E_p [ 1/p * sum over masked i of CE_i ]                               (1)
              =  E_k [ L/k * sum over masked i of CE_i ],  k uniform on 1 ... L          (2)

In (1) tokens are masked independently, in (2) exactly `k` of the `L` tokens are; the second has less variance. A ratio
that is not uniform, with density `f(p)`, gives the same expectation with the weight `1 / (p * f(p))`.

Nothing draws from torch's global generator: noise comes from a generator that is a pure function of its key, so that a
resumed run sees the noise of an uninterrupted one.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch


NORMALIZATIONS = ("sequence", "token", "masked", "batch")


def noise_generator(*key: int | str | bytes) -> torch.Generator:
    """
    A CPU generator as a pure function of its key.

    Args:
        key (`int`, `str` or `bytes`):
            What the noise depends on, e.g. `(seed, "train", step, micro_step, rank)`. Keys that differ in one part
            give unrelated noise.

    Returns:
        `torch.Generator` on the CPU, whatever the device of the model: the same key gives the same noise everywhere.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class MaskSchedule:
    """
    The distribution of the mask ratio, as the image `p = ratio(t)` of a uniform `t` in `[0, 1]`.

    Args:
        ratio (`Callable`): Mask ratio `p` at time `t`, increasing from 0 to 1.
        time (`Callable`): Its inverse, which is the distribution function of `p`.
        density (`Callable`): Density `f(p)`, the derivative of `time`.
    """

    ratio: Callable[[torch.Tensor], torch.Tensor]
    time: Callable[[torch.Tensor], torch.Tensor]
    density: Callable[[torch.Tensor], torch.Tensor]


MASK_SCHEDULES = {
    "linear": MaskSchedule(ratio=lambda t: t, time=lambda p: p, density=torch.ones_like),
    "cosine": MaskSchedule(
        ratio=lambda t: torch.cos(math.pi / 2 * (1 - t)),
        time=lambda p: 1 - 2 / math.pi * torch.arccos(p.clamp(0, 1)),
        density=lambda p: 2 / math.pi / (1 - p * p).clamp(min=0).sqrt(),
    ),
}


def sample_times(
    num_rows: int,
    sampling: Literal["iid", "stratified", "low_discrepancy"],
    generator: torch.Generator,
    shared_generator: torch.Generator | None = None,
    offset: int = 0,
    total: int | None = None,
) -> torch.Tensor:
    """
    Draws one uniform time in `[0, 1)` per row.

    The rows may be a part of a batch that is spread over micro-batches and processes. The parts then share the strata:
    every row still has a uniform time, and together they cover `[0, 1)` evenly.

    Args:
        num_rows (`int`):
            Rows of this part.
        sampling (`"iid"`, `"stratified"` or `"low_discrepancy"`):
            Independent draws; one draw in each of `total` equal intervals, dealt out at random; or a regular grid with
            one common random offset.
        generator (`torch.Generator`):
            Noise of this part.
        shared_generator (`torch.Generator`, *optional*, defaults to `generator`):
            Noise that all parts of the batch have in common, in the same state for each.
        offset (`int`, *optional*, defaults to 0):
            Rows of the batch before this part.
        total (`int`, *optional*, defaults to `num_rows`):
            Rows of the whole batch.

    Returns:
        `torch.FloatTensor` of shape `(num_rows,)`.

    Raises:
        ValueError: If `sampling` is unknown.
    """
    total = num_rows if total is None else total
    shared_generator = generator if shared_generator is None else shared_generator
    rows = (torch.arange(num_rows) + offset) % max(total, 1)
    if sampling == "iid":
        times = torch.rand(num_rows, generator=generator)
    elif sampling == "stratified":
        # without the permutation, the first row of an unshuffled batch would always be the least masked one
        strata = torch.randperm(total, generator=shared_generator)[rows]
        times = (strata + torch.rand(num_rows, generator=generator)) / total
    elif sampling == "low_discrepancy":
        times = (rows / total + torch.rand(1, generator=shared_generator)) % 1
    else:
        raise ValueError(f"`sampling={sampling!r}` is unknown; write 'iid', 'stratified' or 'low_discrepancy'.")
    # the division can round up to 1
    return times.clamp(max=1 - 2**-24)


def mask_independently(maskable: torch.Tensor, ratio: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """
    Masks every maskable token with the probability of its row. All arguments and the result are of shape
    `(batch, length)`, except `ratio`, `(batch,)`; `noise` is uniform on `[0, 1)`.
    """
    return (noise < ratio[:, None]) & maskable


def mask_exactly(maskable: torch.Tensor, counts: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """
    Masks the `counts` maskable tokens of each row that have the smallest noise: a uniform choice of that many.
    Shapes as in [`mask_independently`]. No count may exceed the number of maskable tokens of its row.
    """
    order = noise.masked_fill(~maskable, math.inf).argsort(dim=1)
    return order.argsort(dim=1) < counts[:, None]


@dataclass
class MaskedBatch:
    """
    What the forward process made of a batch.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, length)`): Tokens, with the mask token where masked.
        masked (`torch.BoolTensor` of shape `(batch, length)`): Which tokens are masked.
        weight (`torch.FloatTensor` of shape `(batch,)` or `(batch, length)`):
            Weight of the cross entropy of the masked tokens of each row, or of each token.
        ratio (`torch.FloatTensor` of shape `(batch,)` or `(batch, length)`):
            Mask probability, or the exact share that is masked.
        scored (`torch.BoolTensor` of shape `(batch, length)`, *optional*, defaults to `masked`):
            What is predicted: the masked tokens and, where editing is trained, the visible ones. The latter have the
            weight 1.
    """

    input_ids: torch.Tensor
    masked: torch.Tensor
    weight: torch.Tensor
    ratio: torch.Tensor
    scored: torch.Tensor = None  # type: ignore[assignment]

    def __post_init__(self):
        if self.scored is None:
            self.scored = self.masked

    def sum_losses(self, losses: torch.Tensor, num_rows: int) -> torch.Tensor:
        """
        The weighted losses of each row.

        Args:
            losses (`torch.FloatTensor` of shape `(batch, length)`):
                Cross entropy, 0 where nothing is scored.
            num_rows (`int`):
                Number of rows without their complements.

        Returns:
            `torch.FloatTensor` of shape `(num_rows,)`: Sums over tokens, averaged over a row and its complement.
        """
        weights = torch.where(self.masked, self.weight.view(len(self.weight), -1), 1)
        return (weights * losses).sum(dim=1).view(-1, num_rows).mean(dim=0)

    def count_scored(self, num_rows: int) -> torch.Tensor:
        """Number of scored tokens of each row, averaged over a row and its complement: what `"masked"` divides by."""
        return self.scored.sum(dim=1).view(-1, num_rows).float().mean(dim=0)


@dataclass(frozen=True)
class ForwardProcess:
    """
    The forward process with its settings. The defaults are those of LLaDA (arXiv 2502.09992, algorithms 1 and 2).

    Args:
        mask_token_id (`int`):
            Id of the mask token.
        mask_sampling (`"bernoulli"` or `"exact"`, *optional*, defaults to `"bernoulli"`):
            Whether tokens are masked independently (1) or a drawn number of them is (2). With `"exact"` at least one
            token is masked.
        ratio_sampling (`"iid"`, `"stratified"` or `"low_discrepancy"`, *optional*, defaults to `"iid"`):
            How the mask ratios of a batch are drawn, see [`sample_times`].
        mask_schedule (`"linear"`, `"cosine"` or [`MaskSchedule`], *optional*, defaults to `"linear"`):
            Distribution of the mask ratio.
        min_mask_ratio, max_mask_ratio (`float`, *optional*, default to 0 and 1):
            Band that the mask ratio is limited to: the time is uniform between those of its two ends. A narrower band
            trains a part of the bound, the integral of (1) over the band, divided by the share of the times that lie
            in it. `mask_eps` moves its ends, too, and `mask_sampling="exact"` rounds a ratio up to a number of tokens.
        mask_eps (`float`, *optional*, defaults to 1e-3):
            Smallest mask probability: `p = (1 - mask_eps) * t + mask_eps` of a ratio `t`, as published, which makes
            the bound larger by a share of at most `mask_eps`. With `complementary_masks`, whose complement has the
            probability `1 - p`, `t` is limited to `[mask_eps, 1 - mask_eps]`, which changes it by `mask_eps ** 2`. Has
            no effect with `mask_sampling="exact"`.
        complementary_masks (`bool`, *optional*, defaults to `False`):
            Whether to return every row twice, the second time with the other maskable tokens masked, so that each is
            predicted once. The two weighted losses of a row are to be averaged.
        loss_weighting (`"elbo"` or `"uniform"`, *optional*, defaults to `"elbo"`):
            Whether the weight makes the loss the likelihood bound, or is 1.
        edit_ratio (`float`, *optional*):
            If given, visible tokens that may be masked are scored, too, with the weight 1, which teaches a model to
            edit (LLaDA2.1, arXiv 2602.08676). This share of them is replaced by random other tokens; 0 replaces none,
            for rows that have wrong tokens already. Scoring those that are right as well is what teaches it to leave
            them: of a model that saw wrong ones only, every visible token would be wrong.
        vocab_size (`int`, *optional*):
            Number of tokens to replace with. Required by an `edit_ratio` above 0.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """

    mask_token_id: int
    mask_sampling: Literal["bernoulli", "exact"] = "bernoulli"
    ratio_sampling: Literal["iid", "stratified", "low_discrepancy"] = "iid"
    mask_schedule: Literal["linear", "cosine"] | MaskSchedule = "linear"
    min_mask_ratio: float = 0.0
    max_mask_ratio: float = 1.0
    mask_eps: float = 1e-3
    complementary_masks: bool = False
    loss_weighting: Literal["elbo", "uniform"] = "elbo"
    edit_ratio: float | None = None
    vocab_size: int | None = None

    def __post_init__(self):
        choices = {
            "mask_sampling": ("bernoulli", "exact"),
            "ratio_sampling": ("iid", "stratified", "low_discrepancy"),
            "loss_weighting": ("elbo", "uniform"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}={getattr(self, name)!r}` is unknown; write one of {allowed}.")
        if not isinstance(self.mask_schedule, MaskSchedule) and self.mask_schedule not in MASK_SCHEDULES:
            raise ValueError(
                f"`mask_schedule={self.mask_schedule!r}` is unknown; write one of {tuple(MASK_SCHEDULES)}."
            )
        if not 0 <= self.min_mask_ratio < self.max_mask_ratio <= 1:
            raise ValueError(
                f"The mask ratio is limited to [{self.min_mask_ratio}, {self.max_mask_ratio}]; write "
                "`0 <= min_mask_ratio < max_mask_ratio <= 1`."
            )
        if not 0 <= self.mask_eps < 0.5:
            raise ValueError(
                f"`mask_eps={self.mask_eps}` is no smallest mask probability; write `0 <= mask_eps < 0.5`."
            )
        if self.edit_ratio is not None and not 0 <= self.edit_ratio <= 1:
            raise ValueError(
                f"`edit_ratio={self.edit_ratio}` is no share of the visible tokens; write `0 <= edit_ratio <= 1`, or "
                "leave it out to train masked tokens only."
            )
        if self.edit_ratio and (self.vocab_size is None or self.vocab_size < 3):
            raise ValueError(
                f"`edit_ratio={self.edit_ratio}` replaces tokens by others, but `vocab_size={self.vocab_size}`; write "
                "the size of the vocabulary, 3 at least."
            )

    def __call__(
        self,
        input_ids: torch.Tensor,
        maskable: torch.Tensor,
        generator: torch.Generator,
        shared_generator: torch.Generator | None = None,
        offset: int = 0,
        total: int | None = None,
        labels: torch.Tensor | None = None,
    ) -> MaskedBatch:
        """
        Masks a batch.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Clean tokens.
            maskable (`torch.BoolTensor` of shape `(batch, length)`):
                Which of them may be masked: the response, not the prompt and not the padding.
            generator, shared_generator, offset, total (*optional*):
                As in [`sample_times`].
            labels (`torch.LongTensor` of shape `(batch, length)`, *optional*, defaults to `input_ids`):
                The right tokens, which none is replaced by.

        Returns:
            [`MaskedBatch`] of as many rows. With `complementary_masks` of twice as many: the rows, their complements.
        """
        times = sample_times(input_ids.shape[0], self.ratio_sampling, generator, shared_generator, offset, total)
        batch = self.mask(input_ids, maskable, times, torch.rand(input_ids.shape, generator=generator))
        if self.edit_ratio is not None:
            batch.scored = maskable.repeat(len(batch.masked) // len(maskable), 1)
        if self.edit_ratio:
            self._replace(batch, input_ids if labels is None else labels, generator)
        return batch

    def mask(
        self, input_ids: torch.Tensor, maskable: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> MaskedBatch:
        """
        What a call makes of its draws, and a function of them.

        Args:
            input_ids, maskable (of shape `(batch, length)`):
                As in a call.
            times (`torch.FloatTensor` of shape `(batch,)`):
                Uniform times.
            noise (`torch.FloatTensor` of shape `(batch, length)`):
                Uniform noise.

        Returns:
            [`MaskedBatch`] without replaced tokens.
        """
        noise = noise.to(input_ids.device)
        schedule = (
            self.mask_schedule if isinstance(self.mask_schedule, MaskSchedule) else MASK_SCHEDULES[self.mask_schedule]
        )
        low, high = schedule.time(torch.tensor([self.min_mask_ratio, self.max_mask_ratio], dtype=times.dtype))
        ratio = schedule.ratio(low + (high - low) * times).to(input_ids.device)
        if self.mask_sampling == "exact":
            masked, weights, ratio = self._mask_exactly(maskable, ratio, noise, schedule)
        else:
            # of the ratio that was drawn: beside a pole of the density, what `mask_eps` makes of it has quite another
            density = schedule.density(ratio)
            if self.complementary_masks:
                ratio = ratio.clamp(self.mask_eps, 1 - self.mask_eps)
            else:
                ratio = self.mask_eps + (1 - self.mask_eps) * ratio
            masked = mask_independently(maskable, ratio, noise)
            tiny = torch.finfo(ratio.dtype).tiny
            weights = [1 / (share.clamp(min=tiny) * density).clamp(min=tiny) for share in (ratio, 1 - ratio)]

        if self.complementary_masks:
            input_ids = torch.cat([input_ids, input_ids])
            masked = torch.cat([masked, maskable & ~masked])
            ratio = torch.cat([ratio, 1 - ratio])
            weight = torch.cat(weights)
        else:
            weight = weights[0]
        return MaskedBatch(
            input_ids=input_ids.masked_fill(masked, self.mask_token_id),
            masked=masked,
            weight=torch.ones_like(weight) if self.loss_weighting == "uniform" else weight,
            ratio=ratio,
        )

    def _replace(self, batch: MaskedBatch, labels: torch.Tensor, generator: torch.Generator) -> None:
        """Replaces visible tokens by others that are neither the right one nor the mask token."""
        assert self.vocab_size is not None and self.edit_ratio, "checked before"
        device, shape = labels.device, batch.masked.shape
        drawn = torch.rand(shape, generator=generator).to(device) < self.edit_ratio
        others = torch.randint(self.vocab_size - 2, shape, generator=generator).to(device)
        labels = labels.repeat(shape[0] // len(labels), 1)
        # the numbers from the lower of the two on are those of the next tokens
        others += others >= labels.clamp(max=self.mask_token_id)
        others += others >= labels.clamp(min=self.mask_token_id)
        batch.input_ids = torch.where(drawn & batch.scored & ~batch.masked, others, batch.input_ids)

    def _mask_exactly(
        self, maskable: torch.Tensor, ratio: torch.Tensor, noise: torch.Tensor, schedule: MaskSchedule
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        lengths = maskable.sum(dim=1)
        # a row and its complement share the counts 0 ... L; a row alone has at least one mask
        bins = lengths + 1 if self.complementary_masks else lengths.clamp(min=1)
        cell = torch.minimum((ratio * bins).floor().long(), bins - 1)
        counts = torch.minimum(cell if self.complementary_masks else cell + 1, lengths)
        # the difference of two distribution functions loses digits, which mps cannot spare
        exact = cell.to(torch.float32 if cell.device.type == "mps" else torch.float64)
        probability = (schedule.time((exact + 1) / bins) - schedule.time(exact / bins)).to(ratio.dtype)
        weights = [1 / (count.clamp(min=1) * probability) for count in (counts, lengths - counts)]
        return mask_exactly(maskable, counts, noise), weights, counts / lengths.clamp(min=1)


def masked_cross_entropy(
    model: Callable, input_ids: torch.Tensor, masked: torch.Tensor, targets: torch.Tensor, **model_inputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cross entropy of the masked tokens. The model computes logits for no other token.

    Args:
        model (`Callable`):
            Called as `model(input_ids=..., labels=targets, logits_to_keep=masked, token_losses=True, **model_inputs)`,
            see [`LLaDAModelLM.forward`]. It may be wrapped, e.g. by data parallelism.
        input_ids, masked (of shape `(batch, length)`):
            As in [`MaskedBatch`].
        targets (`torch.LongTensor` of shape `(batch, length)`):
            The clean tokens, read only where `masked`.
        model_inputs (*optional*):
            Further inputs of the model, e.g. `attention_mask`.

    Returns:
        `tuple`: Cross entropy in float32, or the wider type of the model, and whether the most likely token is the
        right one (`bool`), both of shape `(batch, length)` and 0 where nothing is masked. The first is differentiable,
        also if nothing is masked at all.
    """
    output = model(input_ids=input_ids, labels=targets, logits_to_keep=masked, token_losses=True, **model_inputs)
    return output.token_losses, output.correct


def reduce_loss(
    row_losses: torch.Tensor,
    lengths: torch.Tensor,
    normalization: str,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    Reduces weighted losses to a scalar.

    Args:
        row_losses (`torch.FloatTensor` of shape `(batch,)`):
            Weighted cross entropy, summed over the masked tokens of each row.
        lengths (`torch.LongTensor` of shape `(batch,)`):
            Number of maskable tokens of each row, masked or not; with `"masked"`, of scored ones.
        normalization (`"sequence"`, `"token"`, `"masked"` or `"batch"`):
            Mean over rows of the loss per maskable token (LLaDA's fine-tuning); mean over all maskable tokens
            (LLaDA's pre-training); mean over all scored tokens (LLaDA2's fine-tuning); mean over rows of the summed
            loss.
        num_items (`torch.Tensor` or `int`, *optional*):
            What to divide by instead of the rows, or the tokens, of this batch: those of the whole accumulated batch.

    Returns:
        `torch.FloatTensor`: A scalar, finite also for rows without a maskable token.

    Raises:
        ValueError: If `normalization` is unknown.
    """
    if normalization == "sequence":
        row_losses = row_losses / lengths.clamp(min=1)
    elif normalization not in NORMALIZATIONS:
        raise ValueError(f"`normalization={normalization!r}` is unknown; write one of {NORMALIZATIONS}.")
    if num_items is None:
        num_items = lengths.sum() if normalization in ("token", "masked") else len(row_losses)
    num_items = torch.as_tensor(num_items, device=row_losses.device)
    # not `clamp`: of a row and its complement, one scored token is half of one
    return row_losses.sum() / (num_items + (num_items == 0)).to(row_losses.dtype)


__all__ = [
    "MASK_SCHEDULES",
    "NORMALIZATIONS",
    "ForwardProcess",
    "MaskSchedule",
    "MaskedBatch",
    "mask_exactly",
    "mask_independently",
    "masked_cross_entropy",
    "noise_generator",
    "reduce_loss",
    "sample_times",
]
