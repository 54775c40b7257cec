"""
The distribution over answers that a rule samples from, by enumerating every draw of a model small enough for it.

The parts of the sampling loop are the real ones. Only chance is replaced: wherever the loop would draw a token, an
order or which masks are revealed, its rows are split into one row for every outcome, each with its probability. Rows
that agree in the canvas and in all that the parts remember are one row again.
"""

import math
from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

import torch
from transformers import LogitsProcessorList

from llada.generation import DiffusionGenerationConfig
from llada.generation.assembly import make_forward, make_proposer, make_revision, make_selector
from llada.generation.canvas import Canvas, Delta
from llada.generation.chance import Chance
from llada.generation.listeners.stopping import EndOfTextStopper
from llada.generation.positional import PositionalProcessors
from llada.generation.regions import Block, Region
from llada.generation.rule import Setup
from llada.generation.rules.dream import BernoulliSelector, DrawnOrder
from llada.generation.rules.editing import TokenEditing
from llada.generation.scores import Random
from llada.generation.validity import switched_on


# rows without probability fill the batch up to this: no other dimension of a part is as large, so that a first
# dimension which is a multiple of the batch counts rows
LEAST_ROWS = 64


def rows_of(part: Any, rows: torch.Tensor, batch: int) -> Iterator[torch.Tensor]:
    """
    Replaces all that an object and the objects in it remember of each row by what they remember of the rows `rows`,
    and gives it.
    """
    seen: set[int] = set()

    def visit(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.ndim == 0 or not len(value) or len(value) % batch:
                return value
            many = len(value) // batch
            places = (rows.unsqueeze(1) * many + torch.arange(many)).flatten()
            found.append(value[places])
            return found[-1]
        if isinstance(value, list | dict) or type(value).__module__.startswith("llada.generation."):
            if id(value) in seen:
                return value
            seen.add(id(value))
        if isinstance(value, list):
            value[:] = [visit(one) for one in value]
            if len(value) == batch:
                value[:] = [value[row] for row in numbers]
        elif isinstance(value, dict):
            value.update({name: visit(one) for name, one in value.items()})
        elif type(value).__module__.startswith("llada.generation."):
            for name, one in vars(value).items():
                vars(value)[name] = visit(one)
        return value

    found: list[torch.Tensor] = []
    numbers = rows.tolist()
    visit(part)
    yield from found


class Script(Chance):
    """Takes the place of chance: every draw of a step has the outcome that is written here."""

    # tokens of the positions that were asked about, and their probabilities under the model
    tokens: torch.Tensor
    log_probability: torch.Tensor
    # which place each of these positions has in the order, from 0; and which masks are not revealed
    ranks: torch.Tensor
    hidden: torch.Tensor

    def choose(self, logits: torch.Tensor, canvas: Canvas, index: torch.Tensor) -> torch.Tensor:
        """In place of `Proposer.choose`."""
        log_probability = logits.double().log_softmax(1)
        self.log_probability = log_probability.gather(1, self.tokens.unsqueeze(1)).squeeze(1)
        return self.tokens

    def at(self, index: torch.Tensor, dtype: torch.dtype = torch.float32, width: int | None = None) -> torch.Tensor:
        # Gumbel noise so far apart that it alone decides
        return torch.exp(-torch.exp(3.0 - 8.0 * (4 - self.ranks.double())))

    def everywhere(self, like: torch.Tensor) -> torch.Tensor:
        return self.hidden.float()


class Enumeration:
    """
    All that can happen in a call of `generate` with a prompt of one row.

    Args:
        model ([`~llada.LLaDAModelLM`]):
            The model, best in float64.
        prompt (`torch.LongTensor` of shape `(1, prompt_length)`):
            The prompt.
        settings (`dict[str, Any]`):
            The settings, `max_new_tokens` among them. Tokens are drawn at temperature 1.
        extra (`dict[str, Any]`, *optional*):
            What `generate` is given besides settings.

    Attributes:
        probabilities (`torch.DoubleTensor` of shape `(words ** length,)`):
            Of the answers, in the order of [`answers`].
        forwards (`float`):
            Expected number of forward passes.
    """

    def __init__(self, model: Any, prompt: torch.Tensor, settings: dict[str, Any], **extra: Any):
        config = DiffusionGenerationConfig(do_sample=True, **settings).with_defaults(model.config)
        self.length, self.mask = config.max_new_tokens, config.mask_token_id
        self.words = torch.tensor([token for token in range(model.config.vocab_size) if token != self.mask])
        canvas = Canvas.after_prompt(prompt.expand(LEAST_ROWS, -1), self.length, self.mask)
        region = Region(canvas, config.block_length)
        setup = Setup(config, model, canvas, region, False, model.config.vocab_size, switched_on(config), extra)
        self.propose = make_proposer(setup, PositionalProcessors(canvas, lambda length: LogitsProcessorList()))
        self.selector, self.revision = make_selector(setup), make_revision(setup)
        self.forward = make_forward(setup, self.selector)
        self.script = canvas.chance = Script()
        self.propose.choose = self.script.choose
        self.draws_order = isinstance(self.propose.score, Random | DrawnOrder)
        eos, fill = config.eos_token_ids, config.pad_token_id
        self.stopper = EndOfTextStopper(eos, fill, prompt.device, self.revision.revises)

        self.canvas, self.weights = canvas, torch.zeros(LEAST_ROWS, dtype=torch.double)
        self.weights[0] = 1.0
        self.blocks = list(region)
        self.block = self.blocks[0]
        self.probabilities = torch.zeros(len(self.words) ** self.length, dtype=torch.double)
        self.forwards = 0.0
        with torch.no_grad():
            for block in self.blocks:
                self._run(block)
        self._settle(self.weights > 0)

    def _run(self, block: Block) -> None:
        self.block = self._resized(block)
        for part in (self.propose, self.selector, self.revision, self.forward):
            # caches do not let go of rows: those without probability stay
            part.keeps_shapes = part is self.forward and hasattr(part, "cache")
            part.begin(self.canvas, self.block)
        self._merge()
        while True:
            if isinstance(self.selector, BernoulliSelector):
                self._split_reveals()
            eligible = self.selector.eligible(self.canvas, self.block)
            if eligible is None:
                break
            observed = self.selector.observed(self.canvas, self.block, eligible)
            wanted = eligible | observed | self.revision.watched(self.canvas, self.block)
            counts = self.forward.count(self.canvas, wanted.sum(1))
            if not any(counts):
                if not self.selector.keeps_idle_steps:
                    break
                continue
            self._step(eligible, wanted, counts)
            self._merge()
        self._change(self.stopper.on_block_end(self.canvas, self.block))

    def _step(self, eligible: torch.Tensor, wanted: torch.Tensor, counts: list[int]) -> None:
        self.forwards += float(self.weights[torch.tensor(counts) > 0].sum())
        index, logits = self.forward.index(self.canvas, wanted, counts), self.forward(self.canvas, wanted, counts)
        # what is not written is not drawn: rules read its logits
        drawn = wanted if isinstance(self.revision, TokenEditing) else eligible
        rows, tokens, ranks = self._outcomes(drawn.sum(1))
        # some plans give logits in another order
        spread = logits.new_zeros(wanted.numel(), logits.shape[1]).index_copy(0, index, logits)
        spread = spread.view(*wanted.shape, -1)
        self._take(rows)
        eligible, wanted, drawn, logits = eligible[rows], wanted[rows], drawn[rows], spread[rows][wanted[rows]]
        everywhere = torch.zeros_like(self.canvas.tokens)
        self.script.tokens = everywhere.masked_scatter(drawn, tokens)[wanted]
        self.script.ranks = everywhere.masked_scatter(drawn, ranks)[wanted]
        index = wanted.flatten().nonzero().squeeze(1)
        proposal = self.propose(logits, self.canvas, index, eligible)
        chances = torch.zeros(wanted.shape, dtype=torch.double).masked_scatter(wanted, self.script.log_probability)
        self.weights = self.weights * chances.masked_fill(~drawn, 0.0).sum(1).exp()
        if self.draws_order:
            self.weights = self.weights * self._order_probability(proposal, eligible)
        committed = self.selector.select(proposal, self.canvas, self.block)
        positions, tokens = self.revision.revise(proposal, committed, self.canvas, self.block)
        delta = Delta(0, self.block.index, positions, tokens, torch.zeros_like(self.canvas.confidence))
        self.canvas.apply(delta)
        self._change(self.stopper.on_step(self.canvas, delta))

    def _outcomes(self, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        For every outcome of so many draws in each row: which row it is one of, and the tokens and ranks of its draws.
        """
        rows, tokens, ranks = [], [], []
        for count in sorted(set(counts.tolist())):
            members = (counts == count).nonzero().squeeze(1)
            drawn = torch.tensor(list(product(self.words.tolist(), repeat=count)), dtype=torch.long)
            orders = torch.tensor(list(permutations(range(count))) if self.draws_order else [range(count)])
            drawn, orders = (
                drawn.repeat_interleave(len(orders), dim=0),
                orders.long().repeat(len(drawn), 1),
            )
            rows.append(members.repeat_interleave(len(drawn)))
            tokens.append(drawn.repeat(len(members), 1).flatten())
            ranks.append(orders.repeat(len(members), 1).flatten())
        return torch.cat(rows), torch.cat(tokens), torch.cat(ranks)

    def _order_probability(self, proposal: Any, eligible: torch.Tensor) -> torch.Tensor:
        """Of every row: that positions are drawn without replacement in the order of its ranks."""
        score, logits = self.propose.score, torch.zeros(len(proposal.index), dtype=torch.double)
        if isinstance(score, DrawnOrder):
            logits = score.score(proposal, self.canvas).double() / score.temperature
            if float(logits.max() - logits.min()) > 7.0:
                raise ValueError(f"`remasking_temperature={score.temperature}` is too low to enumerate orders.")
        weights = proposal.spread(logits.exp(), 0.0).masked_fill(~eligible, 0.0)
        ranks = proposal.spread(self.script.ranks, 0)
        left = (weights.unsqueeze(1) * (ranks.unsqueeze(1) >= ranks.unsqueeze(2))).sum(2)
        return torch.where(eligible, weights / left, 1.0).prod(1)

    def _split_reveals(self) -> None:
        """One row for every set of masks that may be revealed in the coming step."""
        step = self.selector.step + 1
        if step >= self.selector.probabilities.shape[1]:
            return
        probability = float(self.selector.probabilities[0, step])
        masked = self.canvas.masked & self.block.reached
        rows, hidden = [], []
        for count in sorted(set(masked.sum(1).tolist())):
            members = (masked.sum(1) == count).nonzero().squeeze(1)
            choices = torch.tensor(list(product([False, True], repeat=count)), dtype=torch.bool)
            rows.append(members.repeat_interleave(len(choices)))
            hidden.append(choices.repeat(len(members), 1).flatten())
        places = torch.cat(rows)
        self._take(places)
        masked = masked[places]
        self.script.hidden = torch.zeros_like(masked).masked_scatter(masked, torch.cat(hidden))
        number = self.script.hidden.sum(1)
        number, shown = number.double(), (masked.sum(1) - number).double()
        self.weights = self.weights * probability**shown * (1 - probability) ** number

    def _change(self, delta: Delta | None) -> None:
        if delta is not None:
            self.canvas.apply(delta)

    def _settle(self, rows: torch.Tensor) -> None:
        """Notes the answers of rows that are done, and takes their probability from them."""
        answers = torch.searchsorted(self.words, self.canvas.tokens[rows, -self.length :].contiguous())
        codes = answers @ len(self.words) ** torch.arange(self.length).flip(0)
        self.probabilities.index_add_(0, codes, self.weights[rows])
        self.weights = self.weights.masked_fill(rows, 0.0)

    def _merge(self) -> None:
        """Rows that agree become one, and rows that are done leave."""
        if not self.revision.revises:
            self._settle(~self.canvas.masked.any(1) & (self.weights > 0))
        everything = torch.arange(len(self.weights))
        self.canvas.step_of, self.canvas.confidence = (
            torch.zeros_like(values) for values in (self.canvas.step_of, self.canvas.confidence)
        )
        state = [values for part in self._parts() for values in rows_of(part, everything, len(everything))]
        flat = [(values.double() * 1e7).round().nan_to_num(7.0, 8.0, 9.0).long() for values in state]
        key = torch.cat([values.reshape(len(everything), -1) for values in flat], dim=1)
        multipliers = torch.randint(-(2**62), 2**62, (key.shape[1],), generator=torch.Generator().manual_seed(0))
        _, group = (key * multipliers).sum(1).masked_fill(self.weights == 0, 0).unique(return_inverse=True)
        first = torch.full((int(group.max()) + 1,), len(everything)).scatter_reduce(0, group, everything, "amin")
        weights = torch.zeros(len(first), dtype=torch.double).index_add(0, group, self.weights)
        kept = weights > 0
        self._take(first[kept])
        self.weights[: int(kept.sum())] = weights[kept]

    def _parts(self) -> list[Any]:
        # the canvas and the block are not among what the parts hold
        return [[self.canvas, self.block, self.propose, self.selector, self.revision, self.forward]]

    def _take(self, rows: torch.Tensor) -> None:
        """Goes on with these rows, and with rows without probability up to the least number."""
        missing = max(LEAST_ROWS - len(rows), 0)
        chosen = torch.cat([rows, rows.new_zeros(missing)])
        for part in self._parts():
            list(rows_of(part, chosen, len(self.weights)))
        self.weights = self.weights[chosen]
        if missing:
            self.weights[-missing:] = 0.0
            self.canvas.masked[-missing:] = False
            self.block.inside[-missing:] = False
        for plan in (self.forward, getattr(self.forward, "plan", None)):
            if hasattr(plan, "rows"):
                plan.rows = list(range(len(chosen)))

    def _resized(self, block: Block) -> Block:
        """A block for the present number of rows."""
        rows = len(self.weights)
        inside = block.inside[:1] & (self.weights > 0).unsqueeze(1)
        reached = block.reached[:1].expand(rows, -1).clone()
        return Block(block.index, inside, reached, block.num_masked[:1] * rows, block.start, block.end)


def answers(words: int, length: int) -> torch.Tensor:
    """All answers of so many different tokens, `torch.LongTensor` of shape `(words ** length, length)`."""
    return torch.cartesian_prod(*[torch.arange(words)] * length).view(-1, length)


def total_variation(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference of the probabilities of any set of answers."""
    return float((first - second).abs().sum()) / 2


def divergence(first: torch.Tensor, second: torch.Tensor) -> float:
    """The Kullback-Leibler divergence of the second distribution from the first, in nats."""
    possible = first > 0
    return float((first[possible] * (first[possible].log() - second[possible].log())).sum())


def any_order_likelihood(model: Any, prompt: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """
    The mean over all orders of the log-likelihood of writing a text one token after the other in that order (arXiv
    2502.09992, Eq. 14, without sampling). A text ends with its first end of text; what follows is not written.

    Args:
        model ([`~llada.LLaDAModelLM`]):
            The model.
        prompt (`torch.LongTensor` of shape `(batch, prompt_length)`):
            The prompts.
        texts (`torch.LongTensor` of shape `(batch, length)`):
            What was written after them.

    Returns:
        `torch.DoubleTensor` of shape `(batch,)`.
    """
    batch, length = texts.shape
    mask = model.config.mask_token_id
    sets = torch.tensor(list(product([False, True], repeat=length)))  # written so far
    canvases = texts.unsqueeze(1).masked_fill(~sets, mask)  # [batch, sets, length]
    before = prompt.unsqueeze(1).expand(-1, len(sets), -1)
    with torch.no_grad():
        logits = model(torch.cat([before, canvases], dim=2).flatten(0, 1)).logits[:, prompt.shape[1] :].double()
    logits[..., mask] = -math.inf
    log_probability = logits.log_softmax(-1).view(batch, len(sets), length, -1)
    found = log_probability.gather(3, texts.view(batch, 1, length, 1).expand(-1, len(sets), -1, 1)).squeeze(3)
    is_end = texts == model.config.eos_token_id
    written = is_end.cumsum(1) - is_end.long() == 0
    # from the last set to the first: what is still to be written, in a random order
    total = torch.zeros(batch, len(sets), dtype=torch.double)
    for number in reversed(range(len(sets))):
        left = written & ~sets[number]
        after = number + 2 ** (length - 1 - torch.arange(length))
        gain = found[:, number] + total[:, after.clamp(max=len(sets) - 1)]
        total[:, number] = gain.masked_fill(~left, 0.0).sum(1) / left.sum(1).clamp(min=1)
    return total[:, 0]


__all__ = ["Enumeration", "answers", "any_order_likelihood", "divergence", "total_variation"]
