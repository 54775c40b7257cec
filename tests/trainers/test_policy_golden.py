"""Nine published losses of policy optimisation: log-probabilities, loss and gradient from the same noise."""

import json

import pytest
import torch
from golden import FIXTURES
from safetensors.torch import load_file

from llada import LLaDAModelLM
from llada.trainers.policy_estimates import coupled_logps, diffu_grpo_logps, elbo, evidence_bounds
from llada.trainers.policy_losses import grpo_loss, spg_loss, wd1_loss


VALUES = load_file(FIXTURES / "llada" / "rl.safetensors")
CASES = json.loads((FIXTURES / "llada" / "rl_cases.json").read_text(encoding="utf-8"))
COMPLETION, MASK, ADVANTAGES = (VALUES[name] for name in ("completion_ids", "completion_mask", "advantages"))


@pytest.fixture(scope="module")
def model() -> LLaDAModelLM:
    return LLaDAModelLM.from_pretrained(FIXTURES / "llada").eval()


def estimate(model, case: str) -> tuple[torch.Tensor, ...]:
    """The surrogates of a case: what is compared, and, for bounds, both of them."""
    if case.startswith("coupled"):
        return (coupled_logps(model, VALUES[f"{case}.views"], COMPLETION, CASES[case]["mask_ratio"]),)
    if case.startswith("espo"):
        # all twelve positions are scored, also those after the end of text, which published code did
        return (elbo(model, VALUES["espo.noisy_ids"], COMPLETION, VALUES["espo.mask_ratio"]),)
    if case.startswith("spg"):
        lower, upper = evidence_bounds(model, VALUES["spg.noisy_ids"], COMPLETION, MASK, CASES[case]["eubo_beta"])
        mix = spg_mix(case)
        return torch.where(ADVANTAGES > 0, lower, mix * upper + (1 - mix) * lower), lower, upper
    noise = CASES[case].get("noise", case)
    return (diffu_grpo_logps(model, VALUES[f"{noise}.noisy_ids"], COMPLETION),)


def spg_mix(case: str) -> float:
    return {"spg_eubo": 1.0, "spg_elbo": 0.0}.get(case, CASES[case].get("mix_weight"))


def loss_of(case: str, logps: torch.Tensor, bounds: list[torch.Tensor]) -> torch.Tensor:
    settings = CASES[case]
    if case.startswith("wd1"):
        return wd1_loss(logps, ADVANTAGES, MASK)
    if case.startswith("spg"):
        return spg_loss(*bounds, ADVANTAGES, MASK.sum(dim=1), mix=spg_mix(case))
    kind = "elbo" if case == "espo" else "logps"
    return grpo_loss(
        logps,
        VALUES[f"{case}.old_{kind}"],
        ADVANTAGES,
        mask=None if case == "espo" else MASK,
        epsilon_low=settings.get("epsilon_low", settings.get("epsilon")),
        epsilon_high=settings.get("epsilon_high", settings.get("epsilon")),
        ref_logps=VALUES[f"{case}.ref_{kind}"],
        beta=settings["beta"],
        kl=settings["kl"],
        lengths=12 if case == "espo" else None,
    )


@pytest.mark.parametrize("case", list(CASES))
def test_published_trainers_agree(model, case) -> None:
    model.zero_grad()
    logps, *bounds = estimate(model, case)
    expected = VALUES[f"{CASES[case].get('noise', case)}.{'elbo' if case == 'espo' else 'logps'}"]
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-4)

    loss = loss_of(case, logps, bounds)
    assert loss.item() == pytest.approx(CASES[case]["loss"], rel=1e-5)
    loss.backward()
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters()}
    assert torch.stack(list(norms.values())).norm().item() == pytest.approx(CASES[case]["grad_norm"], rel=1e-3)
    assert norms["lm_head.weight"].item() == pytest.approx(CASES[case]["grad_norm_head"], rel=1e-3)
