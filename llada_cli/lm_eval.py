"""Run lm-evaluation-harness, with its own options, on a masked diffusion model.

  llada lm-eval --tasks arc_challenge --model_args pretrained=GSAI-ML/LLaDA-8B-Base,cfg_scale=0.5 --batch_size 8
  llada lm-eval --tasks gsm8k --model_args pretrained=FOLDER,max_new_tokens=256,block_length=32,preset=fast-dllm
  llada lm-eval ls tasks

Model arguments are those of HFLM, the settings of `generate`, which go before what a task says, and `estimator`,
`num_draws`, `check_greedy` and `seed`. `run --help` lists the options of the harness; `--model` is `llada` if not
given. The tasks llada_facts_forward, _reverse, _choice and _text ask a checkpoint of `llada demo`, without a network.
On several devices: `accelerate launch -m llada lm-eval ...`. With `--use_cache FILE` what is interrupted goes on.
`llada eval` runs published settings and shows published figures beside what it measures.
"""

import argparse
import sys
from importlib import import_module
from typing import Any


_CAUSAL = ("hf", "hf-auto", "huggingface")


def add_parser(parser: argparse.ArgumentParser) -> None:
    """The options are those of the harness, which reads them itself."""


def run(args: argparse.Namespace) -> None:
    if args.rest in ([], ["-h"], ["--help"]):
        print(f"usage: llada lm-eval [run | ls | validate] [OPTIONS]\n\n{__doc__}", end="")
        raise SystemExit(0)
    harness = import_harness()

    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    cli = HarnessCLI()
    given, sys.argv = sys.argv, ["llada lm-eval", *args.rest]
    try:
        options = cli.parse_args()
    finally:
        sys.argv = given
    # those of `ls` and `validate` are others
    if hasattr(options, "model_args") and options.config is None:
        options.model = options.model or "llada"
        if options.model in _CAUSAL:
            _refuse_masked_diffusion(options.model_args or {})
        if options.include_path is None:
            options.include_path = str(harness.TASKS_FOLDER)
    cli.execute(options)


def import_harness() -> Any:
    """
    Registers the model `llada`, and returns the module with the tasks.

    Raises:
        ImportError: If the harness is not installed.
    """
    try:
        import_module("llada.evaluation.harness_model")
        return import_module("llada.evaluation.harness_tasks")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("accelerate", "datasets", "lm_eval", "peft"):
            raise ImportError(f"lm-evaluation-harness needs {error.name}: pip install 'llada-hf[eval]'") from error
        raise


def _refuse_masked_diffusion(model_args: dict[str, Any]) -> None:
    """`hf` would run on such a model, and score what it does not hide."""
    from transformers import AutoConfig

    from llada.modeling_llada.configuration_base import MaskedDiffusionConfig

    name = model_args.get("pretrained")
    if name is not None and isinstance(AutoConfig.from_pretrained(name), MaskedDiffusionConfig):
        raise ValueError(
            f"{name} is a masked diffusion model, which `--model hf` scores wrongly; write `--model llada`."
        )


__all__ = ["add_parser", "import_harness", "run"]
