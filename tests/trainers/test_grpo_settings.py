"""Which arguments of policy optimisation are refused, and what the messages say."""

import re

import pytest

from llada import LLaDAGRPOConfig


def kwargs(**settings):
    return {"generation_kwargs": settings}


STEPS = {"estimator": "trajectory"}
REFUSED = [
    ({"use_vllm": True}, "`use_vllm=True` is not supported: rollouts come from the sampler of this package"),
    ({"use_transformers_continuous_batching": True}, "`use_transformers_continuous_batching=True` is not supported"),
    ({"use_transformers_paged": True}, "`use_transformers_paged=True` is not supported"),
    ({"cache_implementation": "static"}, "`cache_implementation='static'` is not supported: write `generation_kwargs"),
    ({"top_entropy_quantile": 0.2}, "`top_entropy_quantile=0.2` is not supported: the entropy of all tokens"),
    ({"entropy_coef": 0.1}, "`entropy_coef=0.1` is not supported: the entropy of all tokens"),
    ({"use_adaptive_entropy": True}, "`use_adaptive_entropy=True` is not supported: the entropy of all tokens"),
    ({"off_policy_mask_threshold": 0.5}, "`off_policy_mask_threshold=0.5` is not supported"),
    ({"cast_lm_head_to_fp32": True}, "`cast_lm_head_to_fp32=True` is not supported: softmax is computed in float32"),
    ({"router_aux_loss_coef": 0.1}, "`router_aux_loss_coef=0.1` is not supported: the routers"),
    ({"use_liger_kernel": True}, "`use_liger_kernel=True` is not supported"),
    ({"loss_type": "bnpo"}, "`loss_type='bnpo'` is not supported: it divides by the tokens of a micro-batch"),
    ({"loss_type": "ppo"}, "`loss_type='ppo'` is unknown"),
    ({"estimator": "exact"}, "`estimator='exact'` is unknown; write one of ('diffu_grpo', "),
    ({"estimator": "bounds"}, "Write `estimator='bounds'` together with `loss_type='spg'`"),
    ({"loss_type": "spg"}, "Write `estimator='bounds'` together with `loss_type='spg'`"),
    ({"num_draws": 2}, "`num_draws=2` has no meaning for `estimator='diffu_grpo'`"),
    ({"num_draws": 0, "estimator": "elbo"}, "`num_draws=0` gives no estimate"),
    ({"prompt_mask_ratio": 1.0}, "`prompt_mask_ratio=1.0` is no share of the prompt"),
    ({"spg_beta": 0.5}, "`spg_beta=0.5` gives no upper bound"),
    ({"spg_mix": 1.5}, "`spg_mix=1.5` is no share"),
    ({"kl": "k4"}, "`kl='k4'` is unknown"),
    ({"beta": 0.1, "loss_type": "wd1"}, "`beta=0.1` with `loss_type='wd1'` is not supported: this loss has no"),
    ({"beta": 0.1, "estimator": "elbo", "loss_type": "dapo"}, "TRL takes the divergence of tokens"),
    ({"delta": 4.0, "estimator": "elbo"}, "`delta=4.0` is not supported with `estimator='elbo'`"),
    ({"temperature": 0.0}, "`temperature=0.0` writes the same answer again"),
    (kwargs(do_sample=False), "`generation_kwargs` has `do_sample=False`: all answers of a group would be the same"),
    (kwargs(temperature=0.5), "Write `temperature=0.5` among the arguments"),
    (kwargs(max_new_tokens=5), "Write `max_completion_length=5` among the arguments"),
    (kwargs(num_return_sequences=2), "`generation_kwargs` has `num_return_sequences=2`: write `num_generations`"),
    (kwargs(rng_compat="llada"), "`generation_kwargs` has `rng_compat='llada'`: rollouts have random numbers"),
    (kwargs(max_time=3.0), "`generation_kwargs` has `max_time=3.0`: rollouts that end by the clock"),
    (kwargs(return_dict_in_generate=True), "`generation_kwargs` has `return_dict_in_generate=True`"),
    (kwargs(output_trace=True), "`generation_kwargs` has `output_trace=True`"),
    (kwargs(block_lenght=4), "Unknown generation setting: `block_lenght`"),
    ({"generation_kwargs": "[1]"}, "`generation_kwargs=[1]` is no JSON object"),
    ({"generation_kwargs": "{"}, "`generation_kwargs='{'` is no JSON object"),
    ({"estimator": "left_to_right", **kwargs(block_length=4)}, "`generation_kwargs` has `block_length=4`"),
    (STEPS | {"min_p": 0.1}, "`min_p=0.1` is not supported with `estimator='trajectory'`"),
    (STEPS | {"repetition_penalty": 1.2}, "`repetition_penalty=1.2` is not supported with `estimator='trajectory'`"),
    (STEPS | kwargs(cfg_scale=1.5), "`cfg_scale=1.5` is not supported with `estimator='trajectory'`"),
    (STEPS | kwargs(threshold=0.6, verify_threshold=0.9), "takes tokens that are written once"),
    ({"sample_steps": 1}, "write `sample_prompts`, too"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda value: str(value)[:60])
@pytest.mark.filterwarnings("ignore:`use_transformers_paged`:FutureWarning")
def test_settings_that_cannot_work_are_refused(make_args, settings, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_args(LLaDAGRPOConfig, **({"num_generations": 4} | settings))


def test_settings_of_rollouts_are_those_that_were_given(make_args) -> None:
    args = make_args(
        LLaDAGRPOConfig,
        num_generations=4,
        temperature=0.5,
        top_p=0.9,
        max_completion_length=8,
        generation_kwargs='{"block_length": 4, "steps": 8}',
    )
    config = args.rollout_config(eos_token_id=[1])
    assert (config.temperature, config.top_p, config.max_new_tokens, config.do_sample) == (0.5, 0.9, 8, True)
    assert (config.block_length, config.steps, config.eos_token_ids) == (4, 8, [1])
    config = make_args(LLaDAGRPOConfig, num_generations=4, estimator="left_to_right").rollout_config()
    assert config.block_length == 1 and config.top_k is None
