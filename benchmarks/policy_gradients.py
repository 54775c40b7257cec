"""
The gradients of surrogates of log π and the exact policy gradient, by enumeration of answers, orders and noise.

A sampler gives an answer `y` with a probability `p(y)`, a function of the logits in every state that the answer goes
through, and the policy gradient is that of the sum over answers of `p(y) R(y)`. An estimator puts the gradient of a
surrogate in the place of that of `log p(y)`. On a model of a few words and short answers all of this is a finite sum.
The surrogates are those of `llada.trainers.policy_estimates`: in place of the model they are given a [`LogitTable`],
which knows the gradient of every logit.
"""

from dataclasses import dataclass
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any, Literal

import torch


# rows that gradients are computed of at a time
PART = 8


class LogitTable:
    """
    A model whose logits are looked up, each with its gradient.

    Args:
        model ([`~llada.LLaDAModelLM`]):
            The model, in evaluation mode, best in float64.
    """

    def __init__(self, model: Any):
        self.model, self.config = model, model.config
        # what logits are a function of, the position and the tokens that it sees -> their number
        self.places: dict[tuple[int, ...], int] = {}
        self.logits: list[torch.Tensor] = []
        self.jacobians: list[torch.Tensor] = []
        # logits, their numbers and rows, and the number of rows, of the last call
        self.call: tuple[torch.Tensor, torch.Tensor, torch.Tensor, int] | None = None

    def __call__(
        self,
        input_ids: torch.Tensor,
        logits_to_keep: torch.Tensor,
        labels: torch.Tensor | None = None,
        token_losses: bool = False,
        **inputs: Any,
    ) -> Any:
        """As the model's `forward`, for a boolean `logits_to_keep`."""
        rows, columns = logits_to_keep.nonzero(as_tuple=True)
        logits, places = self.look_up(input_ids, rows, columns, **inputs)
        self.call = logits, places, rows, len(input_ids)
        if not token_losses:
            return SimpleNamespace(logits=logits)
        assert labels is not None, "losses of tokens need them"
        losses = torch.nn.functional.cross_entropy(logits, labels[rows, columns], reduction="none")
        losses = losses.new_zeros(logits_to_keep.shape).masked_scatter(logits_to_keep, losses)
        return SimpleNamespace(token_losses=losses, correct=None)

    def look_up(
        self, input_ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Logits of some positions, of shape `(positions, vocab_size)`, as if they were parameters, and their numbers.
        """
        seen, visible = input_ids[rows], inputs.get("attention_mask")
        if visible is not None:
            seen = seen.masked_fill(~visible.expand(len(input_ids), -1, -1, -1)[rows, 0, columns], -1)
        keys = [tuple(key) for key in torch.cat([columns.unsqueeze(1), seen], dim=1).tolist()]
        new = {key: number for number, key in enumerate(keys) if key not in self.places}
        numbers = [*new.values()]
        for start in range(0, len(numbers), PART):
            part = torch.tensor(numbers[start : start + PART])
            chosen = rows[part]
            own = {
                name: value[chosen] if isinstance(value, torch.Tensor) and len(value) == len(input_ids) > 1 else value
                for name, value in inputs.items()
            }
            logits = self.model(input_ids[chosen], **own).logits[torch.arange(len(part)), columns[part]]
            # one gradient for each number
            cells = torch.eye(logits.numel(), dtype=logits.dtype).view(-1, *logits.shape)
            slopes = torch.autograd.grad(logits, list(self.model.parameters()), cells, is_grads_batched=True)
            jacobians = torch.cat([slope.flatten(1) for slope in slopes], dim=1)
            self.jacobians.extend(jacobians.view(*logits.shape, -1))
            self.logits.extend(logits.detach())
            for number in part.tolist():
                self.places[keys[number]] = len(self.places)
        places = torch.tensor([self.places[key] for key in keys], dtype=torch.long)
        return torch.stack(self.logits)[places].requires_grad_(), places

    def gradients(self, values: torch.Tensor) -> torch.Tensor:
        """
        The gradient of each of some values with respect to all parameters of the model.

        Args:
            values (`torch.Tensor` of shape `(batch,)`):
                What was computed from the last call, in which each of them had as many rows, one after the other.

        Returns:
            `torch.DoubleTensor` of shape `(batch, parameters)`.
        """
        assert self.call is not None, "nothing was called"
        logits, places, rows, number = self.call
        (slopes,) = torch.autograd.grad(values.sum(), logits, retain_graph=True)
        cells = places.unsqueeze(1) * logits.shape[1] + torch.arange(logits.shape[1])
        owners = (rows // (number // len(values))).unsqueeze(1).expand_as(cells)
        weights = torch.zeros(len(values), len(self.logits) * logits.shape[1], dtype=torch.double)
        weights.index_put_((owners, cells), slopes.double(), accumulate=True)
        used = weights.any(dim=0)
        return weights[:, used] @ torch.cat(self.jacobians)[used]


@dataclass(frozen=True)
class Sampler:
    """
    One that draws a token for every mask of a block, and keeps some of them.

    Args:
        order (`"left"`, `"chance"`, `"entropy"` or `"confidence"`):
            What is kept: what is furthest to the left, what chance says, where the distribution has the least entropy,
            or the surest of what was drawn. Only the last one looks at the tokens that were drawn.
        per_step (`int`, *optional*, defaults to 1):
            How many tokens a step keeps.
        block_length (`int`, *optional*, defaults to 0):
            Length of the blocks, counted from the first token of the prompt, that a block-causal model writes one
            after the other. All is one block if it is 0.
    """

    order: Literal["left", "chance", "entropy", "confidence"]
    per_step: int = 1
    block_length: int = 0

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model is given besides tokens."""
        return {"block_length": self.block_length} if self.block_length else {}


@dataclass(frozen=True)
class Paths:
    """
    All ways in which a sampler writes.

    Args:
        answers, step_of (`torch.LongTensor` of shape `(paths, length)`):
            What was written, and in which step.
        probabilities (`torch.DoubleTensor` of shape `(paths,)`):
            Their probabilities.
        slopes (`torch.DoubleTensor` of shape `(paths, parameters)`):
            The gradients of these.
    """

    answers: torch.Tensor
    step_of: torch.Tensor
    probabilities: torch.Tensor
    slopes: torch.Tensor

    def by_answer(self) -> "Paths":
        """One path for every answer, as if it had been written in one step."""
        answers, group = self.answers.unique(dim=0, return_inverse=True)
        none = self.probabilities.new_zeros(len(answers))
        return Paths(
            answers,
            torch.zeros_like(answers),
            none.index_add(0, group, self.probabilities),
            none.unsqueeze(1).repeat(1, self.slopes.shape[1]).index_add(0, group, self.slopes),
        )


class PathEnumeration:
    """
    What may happen in every state of a sampler.

    Args:
        table ([`LogitTable`]):
            The model.
        prompt (`torch.LongTensor` of shape `(prompt_length,)`):
            The prompt.
        length (`int`):
            Length of the answer.
        sampler ([`Sampler`]):
            The sampler.
    """

    def __init__(self, table: LogitTable, prompt: torch.Tensor, length: int, sampler: Sampler):
        self.table, self.prompt, self.sampler = table, prompt, sampler
        self.mask = table.config.mask_token_id
        self.words = [token for token in range(table.config.vocab_size) if token != self.mask]
        width = sampler.block_length or len(prompt) + length
        self.blocks = [(len(prompt) + place) // width for place in range(length)]
        # of every step that may be taken
        self.chances: list[torch.Tensor] = []
        self.slopes: list[torch.Tensor] = []
        self.known: dict[tuple[int, ...], list[tuple[tuple[int, ...], int]]] = {}

    def paths(self) -> Paths:
        """All of them."""
        length = len(self.blocks)
        found: list[tuple[tuple[int, ...], ...]] = [((self.mask,) * length, (0,) * length, ())]
        while any(self.mask in canvas for canvas, _, _ in found):
            found = [
                (
                    after,
                    tuple(step + (token == self.mask) for step, token in zip(step_of, after, strict=True)),
                    (*steps, number),
                )
                for canvas, step_of, steps in found
                for after, number in self.steps_from(canvas)
            ]
        steps = torch.tensor([path[2] for path in found])
        chances = torch.stack(self.chances)[steps]
        # of a product
        shares = torch.zeros(len(found), len(self.chances), dtype=torch.double)
        shares.scatter_add_(1, steps, chances.prod(dim=1, keepdim=True) / chances)
        return Paths(
            torch.tensor([path[0] for path in found]),
            torch.tensor([path[1] for path in found]),
            chances.prod(dim=1),
            shares @ torch.stack(self.slopes),
        )

    def steps_from(self, canvas: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
        """What may come after a canvas, and the number of that step."""
        if canvas not in self.known:
            left = [place for place, token in enumerate(canvas) if token == self.mask]
            left = [place for place in left if self.blocks[place] == self.blocks[left[0]]]
            columns = torch.tensor(left) + len(self.prompt)
            text = torch.cat([self.prompt, torch.tensor(canvas)]).unsqueeze(0)
            logits, places = self.table.look_up(text, torch.zeros_like(columns), columns, **self.sampler.inputs)
            self.known[canvas] = []
            for kept, chance in self._outcomes(logits):
                if chance == 0:
                    continue
                (slope,) = torch.autograd.grad(chance, logits, retain_graph=True)
                jacobian = torch.stack([self.table.jacobians[place] for place in places.tolist()])
                after = list(canvas)
                for place, token in kept:
                    after[left[place]] = token
                self.known[canvas].append((tuple(after), len(self.chances)))
                self.chances.append(chance.detach())
                self.slopes.append(torch.einsum("pv,pvn->n", slope, jacobian))
        return self.known[canvas]

    def _outcomes(self, logits: torch.Tensor) -> list[tuple[list[tuple[int, int]], torch.Tensor]]:
        """Places of a block and the tokens that they get, with the probability of that."""
        number = min(self.sampler.per_step, len(logits))
        # the mask is not drawn, and is among the tokens that orders are made with
        drawn = logits[:, self.words].softmax(dim=1)
        shares = logits.detach().softmax(dim=1)
        tokens = torch.tensor(list(product(range(len(self.words)), repeat=len(logits))))
        chances = drawn.gather(1, tokens.T).prod(dim=0)
        if self.sampler.order == "confidence":
            scores = shares[:, self.words].gather(1, tokens.T).T
        elif self.sampler.order == "entropy":
            scores = torch.special.entr(shares).sum(dim=1).neg().expand(tokens.shape)
        else:
            scores = -torch.arange(len(logits)).double().expand(tokens.shape)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :number].sort(dim=1).values
        sets = list(combinations(range(len(logits)), number))
        outcomes = []
        for chosen in sets:
            share = (best == torch.tensor(chosen)).all(dim=1).double()
            if self.sampler.order == "chance":
                share = torch.full_like(share, 1 / len(sets))
            for kept in product(range(len(self.words)), repeat=number):
                agrees = (tokens[:, list(chosen)] == torch.tensor(kept)).all(dim=1)
                written = [(place, self.words[word]) for place, word in zip(chosen, kept, strict=True)]
                outcomes.append((written, (chances * share * agrees).sum()))
        return outcomes


__all__ = ["LogitTable", "PathEnumeration", "Paths", "Sampler"]
