"""Rows of a batch packed into fewer: everything is as it is without, but the padding."""

import pytest
import torch
from datasets import Dataset
from tiny_models import tiny_llada2_moe
from training_probes import parameters_of, record_inputs

from llada.modeling_llada.packed_documents import best_fit, pack_rows


EOS, MASK = 299, 300


@pytest.fixture
def rows():
    """Eight prompts of 1 to 4 tokens with answers of 1 to 9."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 290, (2 + n % 4 + n,), generator=generator).tolist() + [EOS] for n in range(8)]
    return Dataset.from_dict(
        {"input_ids": ids, "labels": [[-100] * (1 + n % 4) + row[1 + n % 4 :] for n, row in enumerate(ids)]}
    )


@pytest.fixture
def make_family(make_model):
    def make(family):
        torch.manual_seed(0)
        if family == "llada2":
            model = tiny_llada2_moe(
                vocab_size=320, mask_token_id=MASK, bos_token_id=295, eos_token_id=EOS, pad_token_id=EOS,
                output_router_logits=True,
            )  # fmt: skip
            model.generation_config.block_length = 4
            return model
        settings = {"right_shift_logits": True} if family == "shifted" else {}
        return make_model("llada" if family == "llada" else "illada", initializer_range=0.2, **settings)

    return make


def test_documents_fill_rows_and_do_not_overlap():
    lengths = [3, 7, 1, 4, 4, 2, 10, 9]
    found, starts = best_fit(lengths, 10)
    assert max(found) + 1 == 4
    for row in range(4):
        parts = sorted((starts[n], starts[n] + lengths[n]) for n in range(8) if found[n] == row)
        assert parts[0][0] == 0 and parts[-1][1] <= 10
        assert all(before[1] == after[0] for before, after in zip(parts, parts[1:], strict=False))
    # the fullest row that has room, not the first
    assert best_fit([6, 7, 3, 4], 10) == ([1, 0, 0, 1], [0, 0, 7, 6])


@pytest.mark.parametrize("pads_left", [False, True], ids=["right", "left"])
def test_what_is_packed_is_unpacked(pads_left):
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    mask = mask.flip(1) if pads_left else mask
    packed = pack_rows(mask.long())
    values = torch.arange(15).view(3, 5) + 1
    assert packed.pack(values, 0).tolist() == [
        values[0].tolist(),
        [*values[2][mask[2]].tolist(), *values[1][mask[1]].tolist()],
    ]
    assert torch.equal(packed.unpack(packed.pack(values, 0)), values * mask)
    assert pack_rows(torch.tensor([[1, 1, 1], [1, 1, 0]])) is None


@pytest.mark.parametrize("family", ["llada", "shifted", "llada2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"mask_sampling": "exact"},
        {"recipe": "llada2", "eos_fill": "none", "confidence_weight": 0.5, "edit_ratio": 0.2},
    ],
    ids=["paper", "llada2"],
)
def test_loss_gradient_and_logs_are_those_of_padded_rows(make_family, make_trainer, rows, family, settings):
    found = []
    for packing in (False, True):
        model = make_family(family)
        trainer = make_trainer(
            model, rows, eval_dataset=rows, max_steps=2, per_device_train_batch_size=8, per_device_eval_batch_size=8,
            packing=packing, num_eval_draws=2, **({"eos_fill": "none"} | settings),
        )  # fmt: skip
        seen = record_inputs(trainer.model)
        trainer.train()
        evaluation = trainer.evaluate()
        found.append((parameters_of(trainer.model), trainer.state.log_history, evaluation, seen))
    (weights, logs, evaluation, seen), (packed_weights, packed_logs, packed_evaluation, packed_seen) = found
    assert len(seen) == len(packed_seen) == 4
    for before, after in zip(seen, packed_seen, strict=True):
        assert after["input_ids"].shape[1] == before["input_ids"].shape[1]
        assert len(after["input_ids"]) < 0.8 * len(before["input_ids"])
        assert int(after["logits_to_keep"].sum()) == int(before["logits_to_keep"].sum()) > 0
    for name, value in weights.items():
        torch.testing.assert_close(packed_weights[name], value, atol=2e-5, rtol=1e-4, msg=name)
    for before, after in zip([*logs[:2], evaluation], [*packed_logs[:2], packed_evaluation], strict=True):
        compared = {name for name in before if "runtime" not in name and "per_second" not in name}
        assert len(compared & after.keys()) == len(compared) > 3
        for name in compared - {"eval_model_preparation_time"}:
            assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-5), name


def test_evaluations_alone_may_be_packed(make_family, make_trainer, rows):
    trainer = make_trainer(make_family("llada"), rows, eval_packing=True)
    assert not trainer._packs_rows(training=True) and trainer._packs_rows(training=False)
    # what was asked for is what the arguments say
    trainer = make_trainer(make_family("llada"), rows, packing=True, eval_packing=False, eos_fill="none")
    assert trainer.args.packing and trainer._packs_rows(training=True) and not trainer._packs_rows(training=False)


def test_documents_of_a_row_stay_apart(make_family, make_trainer, rows):
    """A collator of one's own may have told them apart already."""
    trainer = make_trainer(make_family("llada"), rows, packing=True, eos_fill="none")
    batch = trainer.data_collator([rows[n] for n in range(4)])
    batch["document_ids"] = (torch.arange(batch["labels"].shape[1]) > 2).long().expand_as(batch["labels"])
    losses = []
    for packing in (False, True):
        trainer.args.packing = packing
        trainer._micro_step = 0
        losses.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": True}, "nothing to pack where every row is filled to the longest. Write `eos_fill='multiple'`"),
        (
            {"packing": True, "eos_fill": "none", "packing_strategy": "wrapped"},
            "`packing_strategy='wrapped'` cuts rows.*Write `packing_strategy='bfd'`",
        ),
        ({"padding_free": True}, "`padding_free=True`.*Write `padding_free=False`, and `packing=True`"),
    ],
    ids=["longest", "wrapped", "padding-free"],
)
def test_what_cannot_be_packed_is_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(**settings)
