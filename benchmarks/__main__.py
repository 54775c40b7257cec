"""
Measures every preset, and the settings between them, against a plain loop.

    python -m benchmarks                    trains the models if need be, measures, writes RESULTS.md
    python -m benchmarks --only 8,192       the workloads whose name holds this
    python -m benchmarks --accelerator      also one step of an 8B model with random weights, on a GPU
    python -m benchmarks --distill          tokens per step before and after distillation, into RESULTS.md, too
    python -m benchmarks --training         a step of fine-tuning, in time and memory; on a GPU of an 8B model, too
    python -m benchmarks --policy           what each estimator of the policy gradient is worth: docs/alignment.md
    python -m benchmarks --exact            what each rule loses, exactly, on models small enough: docs/samplers.md
"""

import argparse
import os
import shlex
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedConfig
from transformers.utils import logging

from llada import LLaDAConfig

from .accelerator import draw_model, measure_steps
from .certificates import write_certificates
from .decoding import measure
from .distillation import measure_distillation
from .report import as_dict, hardware, read, table, write
from .roofline import H200, Device, forward_bound, probe
from .synthetic_text import draw_texts
from .trained_model import load
from .training_report import COLUMNS
from .workloads import TINY, WORKLOADS, Workload, settings_for


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="where the trained models run")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--training-steps", type=int, default=600, help="of each model, the first time")
    parser.add_argument("--hidden-size", type=int, help="width of the trained models, for a quick look")
    parser.add_argument("--num-layers", type=int, help="their depth")
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument(
        "--tiny", action="store_true", help="a model of a few weights, in seconds: figures mean nothing"
    )
    parser.add_argument("--accelerator", action="store_true", help="also time steps of an 8B model on the GPU")
    parser.add_argument("--distill", action="store_true", help="only distil the trained model and that of the demo")
    parser.add_argument("--exact", action="store_true", help="only enumerate what each rule samples from")
    parser.add_argument("--policy", action="store_true", help="only enumerate estimators of the policy gradient")
    parser.add_argument("--training", action="store_true", help="only measure steps of training")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--cache", type=Path, default=None, help="folder of trained models")
    options = parser.parse_args(arguments)
    workloads = [workload for workload in (TINY if options.tiny else WORKLOADS) if options.only in str(workload)]
    if not workloads and not options.accelerator:
        parser.error(f"no workload has {options.only!r} in its name")
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    if options.exact:
        write_certificates()
        return

    sizes = {"hidden_size": options.hidden_size, "num_layers": options.num_layers}
    if options.tiny:
        sizes = {"hidden_size": 64, "num_layers": 1}
    shape = {name: size for name, size in sizes.items() if size is not None}
    cache = {"cache": options.cache} if options.cache else {}
    device = torch.device(options.device)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    machine = hardware()
    results: dict[str, Any] = {
        "command": command,
        "hardware": machine,
        "repetitions": options.repetitions,
        "workloads": [],
        "steps": [],
    }
    former = read(options.output)
    if options.distill:
        tasks = measure_distillation(partial(load, options.training_steps, **cache, **shape), options.tiny)
        distilled = {"command": command, "hardware": machine, "tasks": tasks}
        for path in write({**results, **former, "distillation": distilled}, options.output):
            print(f"wrote {path}")
        return
    if options.policy:
        _measure_policies(command, machine, {**results, **former}, options.output)
        return
    if options.training:
        _measure_training(options, command, machine, {**results, **former})
        return
    limits = probe(device)
    results |= {"device": as_dict(limits)} | {
        name: former[name] for name in ("distillation", "policy", "training") if name in former
    }
    for workload in workloads:
        model = load(options.training_steps, workload.vocab_size, family=workload.model, **cache, **shape).to(device)
        prompt = draw_texts(
            workload.batch, workload.prompt_length, float(workload.stops), workload.prompt_length, seed=1
        ).to(device)
        rows = measure(model, workload, prompt, settings_for(workload), options.repetitions)
        results["workloads"].append(
            {
                "workload": str(workload),
                "shape": as_dict(workload),
                "rows": [as_dict(row) | {"roofline": _roofline(model.config, limits, workload, row)} for row in rows],
            }
        )
        print(f"\n{workload}\n\n{table(results['workloads'][-1]['rows'])}", flush=True)
        # a run takes long: keep what there is
        write(results, options.output)
    if options.accelerator:
        gpu = torch.device("cpu" if options.tiny else "cuda")
        config = LLaDAConfig(
            **({"hidden_size": 64, "n_layers": 1, "n_heads": 1, "mlp_hidden_size": 64} if options.tiny else {})
        )
        large = draw_model(config, gpu, torch.float32 if options.tiny else torch.bfloat16)
        length = {"length": 64, "repetitions": 1} if options.tiny else {}
        for compile_config in (None, CompileConfig(backend="eager") if options.tiny else CompileConfig()):
            steps = measure_steps(large, H200, compile_config=compile_config, **length)
            results["steps"] += [as_dict(step) for step in steps]
    for path in write(results, options.output):
        print(f"wrote {path}")


def _measure_policies(command: str, machine: dict[str, Any], results: dict[str, Any], folder: Path) -> None:
    # trl sends telemetry unless it runs in a CI
    os.environ.setdefault("CI", "1")
    from .policy_certificates import DOCUMENT, measure_policies, with_overview

    rows = measure_policies()
    for path in write({**results, "policy": {"command": command, "hardware": machine, "rows": rows}}, folder):
        print(f"wrote {path}")
    DOCUMENT.write_text(with_overview(DOCUMENT.read_text(encoding="utf-8"), rows), encoding="utf-8")
    print(f"wrote {DOCUMENT}")


def _measure_training(
    options: argparse.Namespace, command: str, machine: dict[str, Any], results: dict[str, Any]
) -> None:
    from .training import SHAPES, TINY_SHAPES, measure_large, measure_training

    # trl sends telemetry unless it runs in a CI
    os.environ.setdefault("CI", "1")
    training: dict[str, Any] = {"command": command, "hardware": machine, "repetitions": options.repetitions}
    training |= {"shapes": [], "large": None}
    results = {**results, "training": training}
    with tempfile.TemporaryDirectory() as folder:
        for shape in [shape for shape in (TINY_SHAPES if options.tiny else SHAPES) if options.only in str(shape)]:
            rows = measure_training(shape, options.repetitions, Path(folder))
            training["shapes"].append({"shape": str(shape), "rows": rows})
            print(f"\n{shape}\n\n{table(rows, COLUMNS)}", flush=True)
            # a run takes long: keep what there is
            write(results, options.output)
        if torch.cuda.is_available():
            training["large"] = measure_large(LLaDAConfig(), torch.device("cuda"), Path(folder))
        else:
            print("\nNo GPU is at hand: the step of an 8B model is not measured.")
    for path in write(results, options.output):
        print(f"wrote {path}")


def _roofline(config: PreTrainedConfig, limits: Device, workload: Workload, row) -> float:
    """Tokens per second if every forward pass took the least time that the device allows."""
    computed = row.positions / row.forwards / workload.batch
    new = workload.max_new_tokens
    bound = forward_bound(
        config,
        limits,
        workload.batch,
        round(computed),
        # block-causal attention does not see what comes after a block
        workload.prompt_length + (new // 2 if config.block_causal else new),
        round(row.logit_rows / row.forwards),
        width=4,
    )
    return row.tokens / row.forwards / bound.seconds


if __name__ == "__main__":
    main()
