"""A mask predictor whose logits are written down, to see what sampling makes of them."""

from collections.abc import Callable

import torch
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_utils import slice_logits_to_keep

from llada import LLaDAConfig, LLaDAModelLM


__all__ = ["EOS", "EOT", "MASK", "ScriptedModel"]

EOS, EOT, MASK = 29, 28, 30


class ScriptedModel(LLaDAModelLM):
    """
    Args:
        script (`Callable`):
            Takes the canvas, shape `(batch, length)`, and returns logits, shape `(batch, length, 32)`.
    """

    def __init__(self, script: Callable[[torch.Tensor], torch.Tensor]):
        config = LLaDAConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            vocab_size=32,
            max_position_embeddings=64,
            mask_token_id=MASK,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        super().__init__(config)
        self.script = script
        # batch size, and number of logit rows, of every forward pass
        self.calls: list[tuple[int, int]] = []

    def forward(self, input_ids, attention_mask=None, logits_to_keep=0, num_logits_to_keep=None, **blocks):
        logits = slice_logits_to_keep(self.script(input_ids), logits_to_keep)
        self.calls.append((len(input_ids), len(logits)))
        return MaskedLMOutput(logits=logits)

    @classmethod
    def writing(cls, tokens: list[int], confidence: list[float] | None = None, prompt_length: int = 2):
        """A model that is sure of one text after the prompt, with the given logits (5 if not given)."""
        values = confidence or [5.0] * len(tokens)

        def script(canvas):
            logits = torch.zeros(*canvas.shape, 32)
            for position, (token, value) in enumerate(zip(tokens, values, strict=True), prompt_length):
                if position < canvas.shape[1]:
                    logits[:, position, token] = value
            return logits

        return cls(script)
