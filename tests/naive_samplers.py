"""Published samplers with a state of their own, one row at a time in plain loops."""

import math
import statistics

import torch

from llada.generation.forwards.canvas_cache import CanvasCache


__all__ = ["NaiveSampler"]


class NaiveSampler:
    """
    Decodes one prompt. Every method is a sampler and returns the canvas; `forwards` counts its forward passes and
    `positions` the positions they computed.
    """

    def __init__(self, model, prompt: list[int], length: int, block_length: int):
        self.model = model
        self.mask = model.config.mask_token_id
        self.canvas = [*prompt, *[self.mask] * length]
        self.starts = range(len(prompt), len(self.canvas), block_length)
        self.block_length = block_length
        self.forwards = self.positions = 0

    def blocks(self):
        for start in self.starts:
            yield start, min(start + self.block_length, len(self.canvas))

    def masked(self, start: int, end: int) -> list[int]:
        return [i for i in range(start, end) if self.canvas[i] == self.mask]

    @torch.no_grad()
    def logits(self, canvas: list[int] | None = None, **inputs) -> torch.Tensor:
        tokens = self.canvas if canvas is None else canvas
        self.forwards += 1
        self.positions += len(tokens)
        return self.model(torch.tensor([tokens]), **inputs).logits[0].double()

    def propose(self, logits: torch.Tensor) -> tuple[list[int], list[float]]:
        probabilities = logits.softmax(-1)
        allowed = logits.clone()
        allowed[:, self.mask] = -torch.inf
        tokens = allowed.argmax(-1)
        return tokens.tolist(), probabilities.gather(1, tokens[:, None])[:, 0].tolist()

    def klass(self, tau: float, epsilon: float, history: int = 2) -> list[int]:
        length = len(self.canvas)
        before, divergences = None, []
        for start, end in self.blocks():
            step = 0
            while masked := self.masked(start, end):
                logits = self.logits()
                now = logits.softmax(-1)
                if before is None:
                    before = torch.zeros_like(now)
                divergences.append((now * ((now + 1e-12).log() - (before + 1e-12).log())).sum(-1).tolist())
                before = now
                tokens, confidence = self.propose(logits)
                recent = divergences[-history:]
                ready = [
                    i
                    for i in masked
                    if step >= history - 1
                    and len(recent) == history
                    and all(values[i] < epsilon for values in recent)
                    and confidence[i] > tau
                ]
                for i in ready or sorted(masked, key=lambda i: -confidence[i])[:1]:
                    self.canvas[i] = tokens[i]
                step += 1
        assert len(self.canvas) == length
        return self.canvas

    def hierarchical(self, tau: float, low: float) -> list[int]:
        for start, end in self.blocks():
            while masked := self.masked(start, end):
                tokens, confidence = self.propose(self.logits())
                chosen = {i for i in masked if confidence[i] > tau} | {max(masked, key=lambda i: confidence[i])}
                run = []
                for i in [*masked, None]:
                    if run and i != run[-1] + 1:
                        first = max(run, key=lambda i: confidence[i])
                        chosen |= {first} if confidence[first] > low else set()
                        run = []
                    run.append(i)
                for i in chosen:
                    self.canvas[i] = tokens[i]
        return self.canvas

    def streaming(self, tau: float, alpha: float, window: int) -> list[int]:
        for start, end in self.blocks():
            step = 0
            while masked := self.masked(start, end):
                last = len(self.canvas) - 1
                places = list(range(min(end + window, last))) + [last]
                view = [self.canvas[i] for i in places]
                part = self.logits(view, position_ids=torch.tensor([places]))
                logits = torch.zeros(len(self.canvas), part.shape[1], dtype=part.dtype)
                logits[places] = part
                suffix = [i for i in places if i >= start]
                share = sum(self.canvas[i] == self.mask for i in suffix) / len(suffix)
                bar = tau if step == 0 else tau * (1 - alpha * (1 - share))
                tokens, confidence = self.propose(logits)
                sure = [i for i in masked if confidence[i] >= bar]
                for i in sure or sorted(masked, key=lambda i: -confidence[i])[:1]:
                    self.canvas[i] = tokens[i]
                step += 1
        return self.canvas

    def credit(self, tau: float, alpha: float, gamma: float, beta: float) -> list[int]:
        for start, end in self.blocks():
            credit = {}
            while masked := self.masked(start, end):
                logits = self.logits()
                for key in credit:
                    credit[key] *= beta
                for i in masked:
                    top, token = logits[i].softmax(-1).max(-1)
                    credit[i, token.item()] = credit.get((i, token.item()), 0.0) + top.item() ** gamma
                for (i, token), value in credit.items():
                    if i in masked:
                        logits[i, token] += alpha * math.log1p(value)
                tokens, confidence = self.propose(logits)
                sure = [i for i in masked if confidence[i] >= tau]
                for i in sure or sorted(masked, key=lambda i: -confidence[i])[:1]:
                    self.canvas[i] = tokens[i]
        return self.canvas

    def wino(self, tau: float, tau_back: float) -> list[int]:
        length = len(self.canvas)
        for start, end in self.blocks():
            size, limit = end - start, 30
            places = [*range(length), *range(start, end)]
            visible = torch.ones(length + size, length + size, dtype=torch.bool)
            visible[:length, length:] = False
            for k in range(size):
                visible[length + k, start + k] = False
            while masked := self.masked(start, end):
                longer = [*self.canvas, *[self.mask] * size]
                logits = self.logits(longer, attention_mask=visible[None, None], position_ids=torch.tensor([places]))
                tokens, confidence = self.propose(logits[:length])
                cap = min(max(int(len(masked) * 0.7), 5), 20)
                order = sorted(masked, key=lambda i: -confidence[i])
                accepted = [i for i in order if confidence[i] > tau][:cap] or order[:1]
                committed = [i for i in range(start, end) if i not in masked]
                back = logits[length:].softmax(-1)
                support = {i: back[i - start, self.canvas[i]].item() for i in committed}
                for i in accepted:
                    self.canvas[i] = tokens[i]
                if len(accepted) > 1:
                    weak = sorted((i for i in committed if support[i] < tau_back), key=lambda i: support[i])
                    for i in weak if len(weak) < limit else weak[: limit - 1]:
                        self.canvas[i] = self.mask
                limit = len(accepted)
        return self.canvas

    def remask(self, tau: float, below: float) -> list[int]:
        for start, end in self.blocks():
            while masked := self.masked(start, end):
                logits = self.logits()
                tokens, confidence = self.propose(logits)
                now = {i: logits[i].softmax(-1)[self.canvas[i]].item() for i in range(start, end) if i not in masked}
                sure = [i for i in masked if confidence[i] >= tau]
                chosen = sure or sorted(masked, key=lambda i: -confidence[i])[:1]
                weak = sorted((i for i in now if now[i] < below), key=lambda i: now[i])
                for i in chosen:
                    self.canvas[i] = tokens[i]
                for i in weak[: len(chosen) - 1]:
                    self.canvas[i] = self.mask
        return self.canvas

    def slow_fast(
        self, tau: float, steps: int, tau_min: float, window: int, deviation: float, stops_early: bool = False
    ) -> list[int]:
        for start, end in self.blocks():
            last, size = 0, end - start
            while self.masked(start, end):
                estimates, current, determined = [], None, False
                for _ in range(steps):
                    if not self.masked(start + last, end):
                        break
                    tokens, confidence = self.propose(self.logits())
                    masked = self.masked(start + last, end)
                    if not determined:
                        clear = [i - start - last for i in masked if confidence[i] >= tau_min]
                        estimate = min(max(last + clear[-1] + 1 if clear else last + 1, 1), size)
                        estimates = [*estimates, estimate][-window:]
                        current = math.floor(sum(estimates) / len(estimates))
                        if len(estimates) == window and statistics.pstdev(estimates) < deviation:
                            current, determined = estimate, True
                    self.fill(masked, tokens, confidence, tau)
                    if determined and stops_early:
                        break
                is_first = True
                while masked := self.masked(start + last, start + current):
                    seen = self.canvas if is_first else self.canvas[: start + current]
                    tokens, confidence = self.propose(self.logits(seen))
                    self.fill(masked, tokens, confidence, tau)
                    is_first = False
                last = current
        return self.canvas

    def fill(self, masked: list[int], tokens: list[int], confidence: list[float], tau: float) -> None:
        sure = [i for i in masked if confidence[i] >= tau]
        for i in sure if len(sure) > 1 else sorted(masked, key=lambda i: -confidence[i])[:1]:
            self.canvas[i] = tokens[i]

    def prophet(self, gaps: list[float]) -> list[int]:
        for start, end in self.blocks():
            size = len(self.masked(start, end))
            while masked := self.masked(start, end):
                logits = self.logits()
                tokens, confidence = self.propose(logits)
                distances = [(logits[i].topk(2).values[0] - logits[i].topk(2).values[1]).item() for i in masked]
                filled = (size - len(masked)) / size
                bound = gaps[0] if filled < 1 / 3 else gaps[1] if filled < 2 / 3 else gaps[2]
                sure = sum(distances) / len(distances) > bound
                for i in masked if sure else sorted(masked, key=lambda i: -confidence[i])[:1]:
                    self.canvas[i] = tokens[i]
        return self.canvas

    def stable(self, steps: int, bound: float) -> list[int]:
        for start, end in self.blocks():
            history: list[dict[int, int]] = []
            while masked := self.masked(start, end):
                logits = self.logits()
                tokens, confidence = self.propose(logits)
                history.append({i: logits[i].argmax().item() for i in masked})
                last = history[-steps - 1 :]
                unchanged = len(last) == steps + 1 and all(
                    now[i] == before[i] for before, now in zip(last, last[1:], strict=False) for i in now
                )
                entropies = [-(logits[i].softmax(-1) * logits[i].log_softmax(-1)).sum().item() for i in masked]
                is_settled = unchanged and sum(entropies) / len(entropies) < bound
                for i in masked if is_settled else sorted(masked, key=lambda i: -confidence[i])[:1]:
                    self.canvas[i] = tokens[i]
        return self.canvas

    def cached(self, tau: float, computed) -> list[int]:
        """
        Keys and values of all positions; `computed(step, start, end, previous)` says which are computed in a step of a
        block, where `previous` are the positions that were masked in the step before.
        """
        length = len(self.canvas)
        cache = CanvasCache(torch.arange(length)[None])
        previous = self.masked(0, length)
        for start, end in self.blocks():
            step = 0
            while masked := self.masked(start, end):
                places = sorted(computed(step, start, end, previous))
                previous = self.masked(0, length)
                part = self.logits(
                    [self.canvas[i] for i in places], past_key_values=cache, cache_position=torch.tensor(places)
                )
                logits = torch.zeros(length, part.shape[1], dtype=part.dtype)
                logits[places] = part
                tokens, confidence = self.propose(logits)
                sure = [i for i in masked if confidence[i] >= tau]
                for i in sure or sorted(masked, key=lambda i: -confidence[i])[:1]:
                    self.canvas[i] = tokens[i]
                step += 1
        return self.canvas
