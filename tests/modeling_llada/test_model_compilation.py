"""One graph for the whole forward pass, compiled once for a shape, and exported."""

from functools import partial

import pytest
import torch
from tiny_models import tiny_illada, tiny_llada, tiny_llada2_moe, tiny_llada_moe

from llada import LLaDAModelLM


TINY = {
    "llada": tiny_llada,
    "illada": tiny_illada,
    "llada_moe": tiny_llada_moe,
    "llada2_moe": partial(tiny_llada2_moe, first_k_dense_replace=0),
    "llada2.2": partial(tiny_llada2_moe, first_k_dense_replace=0, expert_capacity=4, block_size=4),
}
LENGTH = 10


@pytest.fixture(params=["llada-sdpa"])
def model(request) -> LLaDAModelLM:
    torch.compiler.reset()
    name, _, backend = request.param.partition("-")
    model = TINY[name](num_hidden_layers=1)
    model.set_attn_implementation(backend)
    return model


def ids() -> torch.Tensor:
    return torch.randint(0, 40, (2, LENGTH))


def padding() -> torch.Tensor:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, : int(torch.randint(1, 5, ()))] = 0
    return mask


def draw(form: str) -> dict[str, torch.Tensor]:
    """Arguments of one form, with other content at every call."""
    every = {
        "ids": lambda: {},
        "padding": lambda: {"attention_mask": padding()},
        "pairs": lambda: {"attention_mask": torch.rand(2, 1, LENGTH, LENGTH) < 0.7},
        "additive": lambda: {"attention_mask": torch.randn(2, 1, LENGTH, LENGTH)},
        "positions": lambda: {"position_ids": torch.randperm(LENGTH)[None]},
        "labels": lambda: {"labels": torch.randint(0, 48, (2, LENGTH))},
        "last positions": lambda: {"logits_to_keep": 3},
        "some positions": lambda: {"logits_to_keep": torch.randperm(LENGTH)[:4]},
        "some positions per row": lambda: {"logits_to_keep": torch.randint(0, LENGTH, (2, 4))},
    }
    return {"input_ids": ids(), **every[form]()}


FORMS = (
    "ids",
    "padding",
    "pairs",
    "additive",
    "positions",
    "labels",
    "last positions",
    "some positions",
    "some positions per row",
)


@pytest.mark.parametrize(
    ("model", "form"),
    [
        *(("llada-sdpa", form) for form in FORMS),
        ("llada-eager", "padding"),
        ("llada-eager", "pairs"),
        ("illada-sdpa", "padding"),
        *(
            (f"{name}-sdpa", form)
            for name in ("llada_moe", "llada2_moe", "llada2.2")
            for form in ("padding", "labels")
        ),
    ],
    indirect=["model"],
)
def test_the_forward_pass_is_one_graph(model, form):
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=count)
    for _ in range(3):
        arguments = draw(form)
        got, expected = compiled(**arguments), model(**arguments)
        torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-5)
        if form == "labels":
            torch.testing.assert_close(got.loss, expected.loss)
    # once, whatever the content
    assert len(graphs) == 1


def test_no_padding_needs_no_other_graph(model):
    graphs = []
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for mask in (padding(), torch.ones(2, LENGTH, dtype=torch.long)):
        arguments = {"input_ids": ids(), "attention_mask": mask}
        torch.testing.assert_close(compiled(**arguments).logits, model(**arguments).logits, rtol=0, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "model", ["llada-sdpa", "llada_moe-sdpa", "llada2_moe-sdpa", "llada2.2-sdpa"], indirect=["model"]
)
def test_a_training_step_compiles(model):
    model.train()
    arguments = draw("labels") | {"attention_mask": padding()}
    model(**arguments).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(**arguments).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-6, msg=name)


def test_any_length_is_exported(model):
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(
        model,
        (),
        {"input_ids": ids(), "attention_mask": padding()},
        dynamic_shapes={"input_ids": {1: length}, "attention_mask": {1: length}},
    ).module()
    for size in (LENGTH, 17):
        rows, mask = torch.randint(0, 40, (2, size)), torch.ones(2, size, dtype=torch.long)
        mask[0, :3] = 0
        got = exported(input_ids=rows, attention_mask=mask).logits
        torch.testing.assert_close(got, model(rows, attention_mask=mask).logits, rtol=0, atol=1e-5)
