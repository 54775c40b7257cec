"""The experts of a layer, as 3-D parameters that transformers' back-ends for experts multiply all at once."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation

from .configuration_base import MixtureOfExpertsConfig


@use_experts_implementation
class LLaDAExperts(nn.Module):
    """
    SwiGLU experts. `from_pretrained(..., experts_implementation=...)` and `model.set_experts_implementation(...)` say
    how they are computed: `"grouped_mm"` (the default), `"batched_mm"` (for few tokens: it copies the weights of every
    token's experts) or `"eager"`, the loop below.

    The loop adds up the outputs as the published code of the family does, bit for bit: LLaDA-MoE by the number of the
    expert and in the dtype of the model, LLaDA2 by score and in float32. The other two add by score, in the dtype of
    the weights, float32 in LLaDA2.

    Args:
        config ([`MixtureOfExpertsConfig`]):
            The configuration.
    """

    def __init__(self, config: MixtureOfExpertsConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.accumulates_by_expert = config.accumulates_by_expert
        width = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * width, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, width))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """
        Sums up what the chosen experts make of every token.

        Args:
            hidden_states (`torch.Tensor` of shape `(tokens, hidden_size)`):
                The tokens.
            top_k_index, top_k_weights (`torch.Tensor` of shape `(tokens, top_k)`):
                The experts of every token, and their weights.

        Returns:
            `torch.Tensor` of shape `(tokens, hidden_size)`.
        """
        outputs = hidden_states.new_zeros(*top_k_index.shape, hidden_states.shape[-1])  # [tokens, top_k, hidden]
        counts = torch.bincount(top_k_index.flatten(), minlength=self.num_experts)
        # ids from `num_experts` on stand for experts of other devices
        for expert in counts[: self.num_experts].nonzero().flatten().tolist():
            token, slot = torch.where(top_k_index == expert)
            gate, up = nn.functional.linear(hidden_states[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            output = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            outputs[token, slot] = output.to(outputs.dtype)

        weighted = outputs * top_k_weights.unsqueeze(-1)
        if not self.accumulates_by_expert:
            return weighted.sum(dim=1).to(hidden_states.dtype)
        by_expert = top_k_index.argsort(dim=-1).unsqueeze(-1).expand_as(weighted)
        total, *others = weighted.gather(1, by_expert).unbind(dim=1)
        for output in others:
            total = total + output
        return total.to(hidden_states.dtype)


__all__ = ["LLaDAExperts"]
