"""DAEDAL (arXiv 2508.00819) once more, both stages for one row in plain loops, to compare the package's against."""

import torch


__all__ = ["naive_daedal"]


@torch.no_grad()
def naive_daedal(
    model,
    prompt: list[int],
    max_new_tokens: int,
    initial_length: int,
    length_step: int,
    length_threshold: float,
    length_window: int,
    expand_threshold: float,
    expand_factor: int,
    expand_end_threshold: float,
    block_length: int,
    threshold: float,
    cfg_scale: float = 0.0,
    **of_batches: int,
) -> tuple[list[int], int, list[tuple[int, int]]]:
    """
    Returns:
        `tuple`: The sequence up to its end of text, the number of forward passes, and for every insertion its position
        and the number of masks added.
    """
    mask, eos, start = model.config.mask_token_id, model.config.eos_token_id, len(prompt)
    forwards = 0

    def distributions(canvas: list[int], scale: float) -> torch.Tensor:
        logits = model(torch.tensor([canvas])).logits[0].double()
        if scale:
            blank = model(torch.tensor([[mask] * start + canvas[start:]])).logits[0].double()
            logits = blank + (scale + 1) * (logits - blank)
        return logits.softmax(-1)

    def certainty_of_the_end(canvas: list[int], probabilities: torch.Tensor) -> float:
        found: list[float] = []
        for position in reversed(range(start, len(canvas))):
            if len(found) == length_window:
                break
            if canvas[position] == eos:
                found.append(1.0)
            elif canvas[position] == mask and probabilities[position].argmax() == eos:
                found.append(probabilities[position, eos].item())
        return sum(found) / length_window

    length = initial_length
    while length < max_new_tokens:
        canvas = [*prompt, *[mask] * length]
        forwards += 1
        if certainty_of_the_end(canvas, distributions(canvas, cfg_scale)) >= length_threshold:
            break
        length = min(length + length_step, max_new_tokens)
    canvas = [*prompt, *[mask] * length]
    canvas += [eos] * min(length_window // 2, max_new_tokens - length)

    longest, insertions, pointer = start + max_new_tokens, [], start
    while pointer < len(canvas):
        block = [position for position in range(pointer, min(pointer + block_length, len(canvas)))]
        masked = [position for position in block if canvas[position] == mask]
        if not masked:
            pointer += block_length
            continue
        probabilities = distributions(canvas, cfg_scale)
        forwards += 1
        tokens, sure = {}, {}
        for position in masked:
            allowed = probabilities[position].clone()
            allowed[mask] = -1
            tokens[position] = int(allowed.argmax())
            sure[position] = allowed.max().item()
        filled = [position for position in masked if sure[position] >= threshold]
        filled = filled or [max(masked, key=lambda position: sure[position])]
        ends = certainty_of_the_end(canvas, probabilities)
        for position in filled:
            canvas[position] = tokens[position]
        left = [position for position in masked if position not in filled]
        if left and ends < expand_end_threshold and len(canvas) < longest:
            worst = min(left, key=lambda position: sure[position])
            if sure[worst] < expand_threshold:
                added = min(expand_factor - 1, longest - len(canvas))
                canvas[worst:worst] = [mask] * added
                insertions.append((worst, added))
        text = canvas[start:]
        if eos in text and mask not in text[: text.index(eos)]:
            end = start + text.index(eos) + 1
            canvas = canvas[:end]
            break
    return canvas, forwards, insertions
