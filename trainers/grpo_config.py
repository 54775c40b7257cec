"""Arguments of policy optimisation with rollouts."""

import json
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from ..generation.configuration_diffusion import DiffusionGenerationConfig
from ..generation.validity import switched_on
from .diffusion_arguments import DiffusionArguments
from .policy_noise import BY_SEQUENCE, BY_STEPS, ESTIMATORS


# losses of `policy_losses.py`; the others are TRL's
OWN_LOSSES = ("wd1", "spg", "bgpo", "gdsd")
_TRL_LOSSES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
# settings of rollouts that have a field of their own -> its name
_FIELDS = {"max_new_tokens": "max_completion_length"} | {
    name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
}
# settings that change what is drawn, which the estimators by steps do not know of
_CHANGES_DRAWS: tuple[str, ...] = (
    "cfg_scale",
    "guidance_scale",
    "suppress_eos",
    "credit_weight",
    "typical_p",
    "top_h",
)
_CHANGES_DRAWS += ("epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens")
_CHANGES_DRAWS += ("min_new_tokens", "min_length", "sequence_bias", "rng_compat")


@dataclass
class LLaDAGRPOConfig(DiffusionArguments, GRPOConfig):
    r"""
    Arguments of [`LLaDAGRPOTrainer`]: those of [`~trl.GRPOConfig`] and [`DiffusionArguments`], and the following.

    Parameters:
        estimator (`str`, *optional*, defaults to `"diffu_grpo"`):
            What stands in the place of log π, see `policy_estimates.py`.

            - `"diffu_grpo"`: every token given the prompt alone, some of whose tokens are masked (d1).
            - `"coupled"`: masks only, a mask and its complement (DiffuCoder).
            - `"elbo"`: the bound on the likelihood, of an answer (ESPO).
            - `"blocks"`: the bound on the likelihood of an answer that is written block by block, for models with
              block-causal attention (EBPO).
            - `"bounds"`: a lower and an upper bound, for `loss_type="spg"` (SPG).
            - `"trajectory"`: every token where the sampler drew it, under its temperature, top-k and top-p (AGRPO,
              CJ-GRPO).
            - `"left_to_right"`: every token given those to its left; rollouts write one after the other (JustGRPO).
        num_draws (`int`, *optional*):
            Masks per answer of `"elbo"`, `"blocks"` and `"bounds"`, 2 if not given. Of `"trajectory"` and
            `"left_to_right"`: steps of each answer that are looked at, drawn anew in every iteration, and weighted by
            the inverse of their probability. All if not given, which takes a forward pass of each answer for every
            step.
        prompt_mask_ratio (`float`, *optional*, defaults to 0.15):
            Probability with which `"diffu_grpo"` masks a token of the prompt, as in the runs of d1.
        loss_type (`str`, *optional*, defaults to `"grpo"`):
            A loss of TRL: `"grpo"`, `"dr_grpo"`, `"dapo"`, `"cispo"`, `"sapo"`, `"luspo"` or `"vespo"`; or `"wd1"`,
            `"spg"`, `"bgpo"` or `"gdsd"`, see `policy_losses.py`. An estimate of a whole answer counts for each of its
            tokens with its share.
        kl (`str`, *optional*, defaults to `"k2"`):
            How `"elbo"` and `"blocks"` estimate the divergence from the reference that `beta` weights, see
            [`~llada.trainers.policy_losses.approximate_kl`]: of the bound itself, divided by the length afterwards.
            Estimators by token have TRL's, k3.
        spg_beta (`float`, *optional*, defaults to 1.5):
            Exponent of the upper bound of `"bounds"`.
        spg_mix (`float`, *optional*, defaults to 0.5):
            Share of the upper bound in the loss of answers that are no better than their group.
        gdsd_psi (`float`, *optional*, defaults to 1.0):
            Scale of the advantages in `loss_type="gdsd"`, whose published `epsilon` is 4e-4.
        generation_kwargs (`dict` or `str`, *optional*):
            How rollouts are sampled: any field of [`DiffusionGenerationConfig`] that has none of its own here, as
            `dict` or in JSON, e.g. `{"block_length": 32, "steps": 128}`. What is not set comes from the generation
            config of the model.

    > [!NOTE]
    > These parameters have default values different from [`~trl.GRPOConfig`]:
    > - `loss_type`: `"grpo"`.
    > - `disable_dropout`: `True`. Old and new policy are compared under the same noise.
    > - `bf16`: `True` on accelerators that support it.
    """

    disable_dropout: bool = field(default=True, metadata={"help": "Whether to switch off dropout."})
    loss_type: str = field(
        default="grpo",
        metadata={"help": "What is done with the estimates.", "choices": [*_TRL_LOSSES, *OWN_LOSSES]},
    )
    estimator: str = field(
        default="diffu_grpo",
        metadata={"help": "What stands in the place of log π.", "choices": [*ESTIMATORS]},
    )
    num_draws: int | None = field(
        default=None,
        metadata={
            "help": "Masks per answer, of `elbo`, `blocks` and `bounds` (2 if not given), or steps of each answer "
            "that `trajectory` and `left_to_right` look at (all if not given)."
        },
    )
    prompt_mask_ratio: float = field(
        default=0.15, metadata={"help": "Probability with which `diffu_grpo` masks a token of the prompt."}
    )
    kl: str = field(
        default="k2",
        metadata={
            "help": "Estimate of the divergence, for `elbo` and `blocks` with `beta`.",
            "choices": ["k1", "k2", "k3"],
        },
    )
    spg_beta: float = field(default=1.5, metadata={"help": "Exponent of the upper bound of `bounds`."})
    spg_mix: float = field(default=0.5, metadata={"help": "Share of the upper bound in the loss `spg`."})
    gdsd_psi: float = field(default=1.0, metadata={"help": "Scale of the advantages in the loss `gdsd`."})

    def __post_init__(self):
        self._refuse_unsupported()
        self._check_estimator()
        self._check_rollouts()
        if self.sample_steps is not None and not self.sample_prompts:
            raise ValueError("`sample_steps` shows what the model writes after prompts; write `sample_prompts`, too.")
        super().__post_init__()

    def _refuse_unsupported(self) -> None:
        engines = "rollouts come from the sampler of this package, which fills many masks in a step"
        no_entropy = "the entropy of all tokens of an answer is not known"
        refused = {
            "use_vllm": (False, engines),
            "use_transformers_continuous_batching": (False, engines),
            "use_transformers_paged": (False, engines),
            "cache_implementation": (None, "write `generation_kwargs={'kv_cache': ...}`"),
            "top_entropy_quantile": (1.0, no_entropy),
            "entropy_coef": (0.0, no_entropy),
            "use_adaptive_entropy": (False, no_entropy),
            "off_policy_mask_threshold": (None, "it compares with the log-probabilities of an inference engine"),
            "cast_lm_head_to_fp32": (False, "softmax is computed in float32 without it"),
            "router_aux_loss_coef": (None, "the routers of a model with experts are not balanced here"),
        }
        for name, (neutral, reason) in refused.items():
            value = getattr(self, name)
            if value != neutral and not (name == "router_aux_loss_coef" and value == 0):
                raise ValueError(f"`{name}={value!r}` is not supported: {reason}. Write `{name}={neutral!r}`.")
        if self.loss_type == "bnpo":
            raise ValueError(
                "`loss_type='bnpo'` is not supported: it divides by the tokens of a micro-batch, so that its size "
                "changes the gradient. Write `loss_type='dapo'`, which divides by those of the whole batch."
            )
        if self.loss_type not in (*_TRL_LOSSES, *OWN_LOSSES):
            raise ValueError(f"`loss_type={self.loss_type!r}` is unknown; write one of {(*_TRL_LOSSES, *OWN_LOSSES)}.")

    def _check_estimator(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"`estimator={self.estimator!r}` is unknown; write one of {tuple(ESTIMATORS)}.")
        if (self.estimator == "bounds") != (self.loss_type == "spg"):
            raise ValueError(
                f"`estimator={self.estimator!r}` with `loss_type={self.loss_type!r}` is not supported: SPG takes two "
                "bounds, and no other loss does. Write `estimator='bounds'` together with `loss_type='spg'`."
            )
        if self.num_draws is not None:
            if self.estimator in ("diffu_grpo", "coupled"):
                raise ValueError(
                    f"`num_draws={self.num_draws}` has no meaning for `estimator={self.estimator!r}`, which looks at "
                    "an answer in a fixed number of ways. Leave it out."
                )
            if self.num_draws < 1:
                raise ValueError(f"`num_draws={self.num_draws}` gives no estimate; write at least 1.")
        if not 0 <= self.prompt_mask_ratio < 1:
            raise ValueError(
                f"`prompt_mask_ratio={self.prompt_mask_ratio}` is no share of the prompt; write 0 to less than 1."
            )
        if self.spg_beta < 1:
            raise ValueError(f"`spg_beta={self.spg_beta}` gives no upper bound; write 1 or more, such as 1.5.")
        if not 0 <= self.spg_mix <= 1:
            raise ValueError(f"`spg_mix={self.spg_mix}` is no share; write 0 to 1.")
        if self.kl not in ("k1", "k2", "k3"):
            raise ValueError(f"`kl={self.kl!r}` is unknown; write 'k1', 'k2' or 'k3'.")
        if self.beta and self.loss_type in OWN_LOSSES:
            raise ValueError(
                f"`beta={self.beta}` with `loss_type={self.loss_type!r}` is not supported: this loss has no "
                "reference. Write `beta=0.0`, or `loss_type='grpo'`."
            )
        if self.beta and self.estimator in BY_SEQUENCE and self.loss_type != "grpo":
            raise ValueError(
                f"`beta={self.beta}` with `estimator={self.estimator!r}` and `loss_type={self.loss_type!r}` is not "
                "supported: TRL takes the divergence of tokens, and the estimate is one of answers. Write "
                "`loss_type='grpo'`."
            )
        if self.delta is not None and (self.estimator in BY_SEQUENCE or self.loss_type in OWN_LOSSES):
            raise ValueError(
                f"`delta={self.delta}` is not supported with `estimator={self.estimator!r}` and "
                f"`loss_type={self.loss_type!r}`. Write `delta=None`, or an estimator of tokens with a loss of TRL."
            )

    def _check_rollouts(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"`temperature={self.temperature}` writes the same answer again: all of a group would get the same "
                "reward, and nothing is learned. Write a temperature above 0, such as 1.0."
            )
        if isinstance(self.generation_kwargs, str):
            try:
                self.generation_kwargs = json.loads(self.generation_kwargs)
            except json.JSONDecodeError:
                pass
        if self.generation_kwargs is not None and not isinstance(self.generation_kwargs, dict):
            raise ValueError(
                f"`generation_kwargs={self.generation_kwargs!r}` is no JSON object. Write one, such as "
                '\'{"block_length": 32, "steps": 128}\'.'
            )
        given = dict(self.generation_kwargs or {})
        for name, own in _FIELDS.items():
            if name in given:
                raise ValueError(
                    f"`generation_kwargs` has `{name}`, which estimators have to know, too. Write "
                    f"`{own}={given[name]!r}` among the arguments."
                )
        reasons = {
            "do_sample": (True, "all answers of a group would be the same"),
            "num_return_sequences": (1, "write `num_generations`, the answers of each prompt"),
            "rng_compat": (
                None,
                "rollouts have random numbers of their own in every row, so that they can be repeated",
            ),
            "max_time": (None, "rollouts that end by the clock cannot be repeated"),
            "return_dict_in_generate": (None, "nobody reads the output"),
            "output_trace": (None, "what an estimator needs is kept anyway"),
        }
        for name, (neutral, reason) in reasons.items():
            if given.get(name, neutral) != neutral:
                raise ValueError(f"`generation_kwargs` has `{name}={given[name]!r}`: {reason}. Leave it out.")
        if self.estimator == "left_to_right":
            if given.get("block_length", 1) != 1:
                raise ValueError(
                    f"`estimator='left_to_right'` looks at tokens one after the other, and `generation_kwargs` has "
                    f"`block_length={given['block_length']}`. Leave it out: rollouts are written in blocks of 1."
                )
            self.generation_kwargs = given | {"block_length": 1}
        self.check_rollouts(self.rollout_config())

    def check_rollouts(self, config: DiffusionGenerationConfig) -> None:
        """
        Whether the estimator knows what is drawn: those by steps know of temperature, top-k and top-p, and of tokens
        that are written once.

        Args:
            config ([`DiffusionGenerationConfig`]):
                How rollouts are sampled.

        Raises:
            ValueError: With the setting that it does not know of.
        """
        if self.estimator not in BY_STEPS:
            return
        for name, neutral in (("min_p", None), ("repetition_penalty", 1.0)):
            if getattr(self, name) not in (neutral, None):
                raise ValueError(self._unknown_draw(name, getattr(self, name)))
        for name in _CHANGES_DRAWS:
            if getattr(config, name):
                raise ValueError(self._unknown_draw(name, getattr(config, name)))
        for rule, name in switched_on(config).items():
            if rule.traits & {"reopens", "moves_text"}:
                raise ValueError(
                    f"`estimator={self.estimator!r}` takes tokens that are written once, and `generation_kwargs` has "
                    f"`{name}={getattr(config, name)!r}`, which changes or moves them. Leave it out, or write another "
                    "estimator, such as 'elbo'."
                )

    def _unknown_draw(self, name: str, value: Any) -> str:
        return (
            f"`{name}={value!r}` is not supported with `estimator={self.estimator!r}`: it knows the distribution of a "
            "draw by `temperature`, `top_k` and `top_p`. Leave it out, or write another estimator, such as 'elbo'."
        )

    def rollout_config(self, **tokens: Any) -> DiffusionGenerationConfig:
        """
        How rollouts are sampled.

        Args:
            tokens (*optional*):
                Special tokens, `eos_token_id` and `pad_token_id`.

        Raises:
            ValueError: If a setting is unknown or cannot work.
        """
        assert not isinstance(self.generation_kwargs, str), "read from JSON when it was given"
        settings: dict[str, Any] = {
            "max_new_tokens": self.max_completion_length,
            "temperature": self.temperature,
            "do_sample": True,
        }
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
        settings |= {name: getattr(self, name) for name, value in neutral.items() if getattr(self, name) != value}
        # `None` switches off what the model has of its own
        return DiffusionGenerationConfig(**dict.fromkeys(neutral) | settings | (self.generation_kwargs or {}) | tokens)


__all__ = ["OWN_LOSSES", "LLaDAGRPOConfig"]
