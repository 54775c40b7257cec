"""What trainers measure of masked tokens, as sums on the device that are read when something is logged."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..modeling_llada.masked_diffusion import reduce_loss


# tokens are counted separately
KINDS = ("content", "eos")


def split_kinds(values: torch.Tensor, eos: torch.Tensor) -> torch.Tensor:
    """
    Sums over the tokens of each row, separately for content and end of text.

    Args:
        values (`torch.Tensor` of shape `(num_values, batch, length)`):
            What is summed.
        eos (`torch.BoolTensor` of shape `(batch, length)`):
            Which tokens are end of text.

    Returns:
        `torch.Tensor` of shape `(batch, 2, num_values)`.
    """
    of_eos = (values * eos).sum(dim=2)
    return torch.stack([values.sum(dim=2) - of_eos, of_eos]).permute(2, 0, 1)


def score_rows(losses: torch.Tensor, correct: torch.Tensor, masked: torch.Tensor, eos: torch.Tensor) -> torch.Tensor:
    """
    Cross entropy, right answers and number of the masked tokens of each row.

    Args:
        losses, correct, masked, eos (of shape `(batch, length)`):
            Cross entropy and whether the answer is right, 0 where nothing is masked; what is; and end of text.

    Returns:
        `torch.FloatTensor` of shape `(batch, 2, 3)`: for content and for end of text.
    """
    return split_kinds(torch.stack([losses, correct.to(losses.dtype), masked.to(losses.dtype)]), eos)


@dataclass
class TrainingSums:
    """
    Sums over training batches.

    Args:
        kinds (`torch.Tensor` of shape `(2, 3)`):
            Cross entropy, right answers and number of masked tokens, of content and of end of text.
        quartiles (`torch.Tensor` of shape `(4, 3)`):
            The same by quartile of the mask ratio.
        trainable, visible (`torch.Tensor`):
            Tokens that may be masked, and all that are not padding. Scalars.
        aux_losses (`torch.Tensor` of shape `(2,)`):
            Sum and number of the losses of routers.
        edits (`torch.Tensor` of shape `(2, 3)`):
            As `kinds`, of visible tokens that are scored: of wrong and of right ones.
        entropies (`torch.Tensor` of shape `(2,)`):
            Sum and number of the entropies that the confidence loss is made of.
    """

    kinds: torch.Tensor
    quartiles: torch.Tensor
    trainable: torch.Tensor
    visible: torch.Tensor
    aux_losses: torch.Tensor
    edits: torch.Tensor
    entropies: torch.Tensor

    @classmethod
    def of_batch(
        cls,
        rows: torch.Tensor,
        ratio: torch.Tensor,
        trainable: torch.Tensor,
        visible: torch.Tensor,
        aux_loss: torch.Tensor | None = None,
    ) -> "TrainingSums":
        """
        Args:
            rows (`torch.Tensor` of shape `(batch, 2, 3)`):
                See [`score_rows`].
            ratio (`torch.Tensor` of shape `(batch,)`):
                Mask ratio.
            trainable, visible (`torch.Tensor` of shape `(batch, length)`):
                Which tokens may be masked, and which are not padding.
            aux_loss (`torch.Tensor`, *optional*):
                Loss of the routers.
        """
        aux_losses = rows.new_zeros(2)
        if aux_loss is not None:
            aux_losses = torch.stack([aux_loss.detach(), aux_loss.new_ones(())]).to(rows.dtype)
        return cls(
            kinds=rows.sum(dim=0),
            quartiles=rows.new_zeros(4, 3).index_add_(0, (ratio * 4).long().clamp(max=3), rows.sum(dim=1)),
            trainable=trainable.sum().to(rows.dtype),
            visible=visible.sum().to(rows.dtype),
            aux_losses=aux_losses,
            edits=rows.new_zeros(2, 3),
            entropies=rows.new_zeros(2),
        )

    def add_edits(self, losses: torch.Tensor, correct: torch.Tensor, wrong: torch.Tensor, right: torch.Tensor) -> None:
        """Adds visible tokens. All arguments are of shape `(batch, length)`; the last two say which they are."""
        for row, scored in enumerate((wrong, right)):
            sums = torch.stack([losses, correct.to(losses.dtype), torch.ones_like(losses)]) * scored
            self.edits[row] += sums.sum(dim=(1, 2))

    def add_entropies(self, entropies: torch.Tensor, counted: torch.Tensor) -> None:
        """Adds the entropies of some tokens, both of shape `(batch, length)`."""
        self.entropies += torch.stack([entropies * counted, counted.to(entropies.dtype)]).sum(dim=(1, 2))

    def __add__(self, other: "TrainingSums") -> "TrainingSums":
        return TrainingSums(*map(torch.add, vars(self).values(), vars(other).values()))

    def gather(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> "TrainingSums":
        """The sums over all processes, on the CPU in float64: one call of `reduce` and one wait for the device."""
        parts = list(vars(self).values())
        flat = reduce(torch.cat([part.flatten() for part in parts])).double().cpu()
        pieces = flat.split([part.numel() for part in parts])
        return TrainingSums(*(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)))

    def logs(self) -> dict[str, float]:
        """What is logged of them: means over the masked tokens, where there are any."""
        logs = {}
        for name, (loss, correct, count) in zip(KINDS, self.kinds.tolist(), strict=True):
            if count:
                logs[f"{name}_ce"] = loss / count
                logs[f"{name}_accuracy"] = correct / count
        for number, (loss, _, count) in enumerate(self.quartiles.tolist(), start=1):
            if count:
                logs[f"ce_q{number}"] = loss / count
        for name, (loss, correct, count) in zip(("edit", "keep"), self.edits.tolist(), strict=True):
            if count:
                logs[f"{name}_ce"] = loss / count
                logs[f"{name}_accuracy"] = correct / count
        for name, (total, count) in (("aux_loss", self.aux_losses.tolist()), ("entropy", self.entropies.tolist())):
            if count:
                logs[name] = total / count
        logs["mask_ratio"] = self.kinds[:, 2].sum().item() / max(self.trainable.item(), 1)
        return logs


def bound_metrics(rows: torch.Tensor, normalization: str) -> dict[str, float]:
    """
    The metrics of an evaluation.

    Args:
        rows (`torch.Tensor` of shape `(rows, 2, 4)`):
            Of content and end of text: bound in nats, tokens, right answers, masked tokens.
        normalization (`str`):
            As in [`reduce_loss`].
    """
    row_bounds, lengths = rows[:, :, 0].sum(dim=1), rows[:, :, 1].sum(dim=1)
    per_token = (row_bounds.sum() / lengths.sum()).item()
    metrics = {
        # that of the base is a mean over batches
        "loss": reduce_loss(row_bounds, lengths, normalization).item(),
        "nll_bound": per_token,
        "ppl_bound": math.exp(per_token) if per_token < 700 else math.inf,
    }
    for name, (bound, tokens, correct, masked) in zip(KINDS, rows.sum(dim=0).tolist(), strict=True):
        if tokens:
            metrics[f"{name}_nll_bound"] = bound / tokens
        if masked:
            metrics[f"{name}_accuracy"] = correct / masked
    return metrics


__all__ = ["KINDS", "TrainingSums", "bound_metrics", "score_rows", "split_kinds"]
