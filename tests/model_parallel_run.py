"""Models spread over processes, started by `modeling_llada/test_model_parallel.py`: writes logits and checkpoints."""

import sys
from pathlib import Path

import torch
from golden import load_golden
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from llada import ILLaDAForCausalLM, LLaDA2MoeModelLM, LLaDAModelLM, LLaDAMoEModelLM


RUNS = {
    "llada-tensors": (LLaDAModelLM, {}),
    "illada-tensors": (ILLaDAForCausalLM, {}),
    "llada_moe-tensors": (LLaDAMoEModelLM, {}),
    "llada2_moe-tensors": (LLaDA2MoeModelLM, {}),
    "llada_moe-experts": (LLaDAMoEModelLM, {"ep_size": 2}),
    "llada2_moe-experts": (LLaDA2MoeModelLM, {"ep_size": 2}),
}


def run(folder: Path) -> None:
    """Loads every family under every plan that it has; the first process writes logits and checkpoints."""
    for name, (model_class, plan) in RUNS.items():
        golden = load_golden(name.split("-")[0])
        config = DistributedConfig(tp_size=2, tp_plan="auto", **plan)
        model = model_class.from_pretrained(golden.folder, distributed_config=config)
        logits = model(golden.expected["logits.input_ids"]).logits
        logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
        spread = [key for key, tensor in model.named_parameters() if isinstance(tensor, DTensor)]
        target = folder / name
        model.save_pretrained(target)
        if torch.distributed.get_rank() == 0:
            save_file({"logits": logits.detach().contiguous()}, target / "logits.safetensors")
            (target / "spread.txt").write_text("\n".join(spread), encoding="utf-8")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
