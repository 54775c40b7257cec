"""lm-evaluation-harness, the real one, on the small trained checkpoint."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_checkpoint import DEMO_FOLDER, load_demo
from harness_parallel_run import answer_tasks
from installed_wheel import ROOT
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import tiny_llada, tiny_llada2_moe
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from llada import LLaDAModelLM
from llada.evaluation import choose_label, is_greedy, log_likelihood
from llada.evaluation.harness_model import LLaDALM
from llada.evaluation.harness_tasks import TASKS_FOLDER, load_facts
from llada.evaluation.harness_writing import cut
from llada.evaluation.likelihood import are_greedy


DEMO = str(DEMO_FOLDER)
MODEL, TOKENIZER, FACTS = load_demo()
TASKS = ["llada_facts_forward", "llada_facts_reverse", "llada_facts_choice", "llada_facts_text"]
ROWS = load_facts(DEMO)["test"]


@pytest.fixture(scope="module")
def harness() -> LLaDALM:
    """By path, as users have it."""
    return LLaDALM(DEMO, num_draws=8, batch_size=8)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def write(harness: LLaDALM, prompts: list[str], **settings: Any) -> list[str]:
    return harness.generate_until(requests("generate_until", *((prompt, settings) for prompt in prompts)), True)


def score(harness: LLaDALM, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return harness.loglikelihood(requests("loglikelihood", *pairs), True)


def evaluate(model: Any, tasks: list[str] = TASKS, **kwargs: Any) -> dict[str, Any]:
    model_args = {"pretrained": DEMO}
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, metadata=model_args)
    if model == "llada":
        kwargs["model_args"] = model_args | kwargs.pop("model_args", {})
    with pytest.MonkeyPatch.context() as patch:
        # asks many programs about this machine, which takes seconds
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        return simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **kwargs)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """The four tasks, by the name of the model."""
    return evaluate("llada", model_args={"num_draws": 8, "steps": 4}, batch_size=32)


def test_text_is_what_the_model_writes(results) -> None:
    for name, answer in (("forward", "description"), ("reverse", "name")):
        batch = TOKENIZER(list(ROWS[name]), return_tensors="pt", padding=True)
        written = MODEL.generate(**batch, steps=4)[:, batch["input_ids"].shape[1] :]
        right = sum(TOKENIZER.decode(row, True) == text for row, text in zip(written, ROWS[answer], strict=True))
        assert results["results"][f"llada_facts_{name}"]["exact_match,none"] == pytest.approx(right / len(ROWS))
        assert right > 15


def test_choices_are_scored(results) -> None:
    pairs = [(row["reverse"], choice) for row in ROWS for choice in row["choices"]]
    scores = log_likelihood(MODEL, TOKENIZER, *zip(*pairs, strict=True), num_draws=8, batch_size=64).log_likelihood
    right = int((scores.view(-1, 4).argmax(dim=1) == torch.tensor(list(ROWS["answer"]))).sum())
    assert results["results"]["llada_facts_choice"]["acc,none"] == pytest.approx(right / len(ROWS))
    assert right > 25


def test_documents_are_scored(results) -> None:
    sentences = ROWS["sentence"]
    scores = MODEL.log_likelihood(
        [[TOKENIZER.bos_token_id]] * len(sentences),
        [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in sentences],
        num_draws=8,
    )
    bits = -float(scores.log_likelihood.sum()) / math.log(2) / sum(len(text.encode()) for text in sentences)
    assert results["results"]["llada_facts_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)


def test_results_say_what_they_were_made_with(results) -> None:
    info = results["config"]["llada"]
    assert info["pretrained"] == DEMO and info["dtype"] == "float32"
    assert info["scoring"] == {
        "estimator": "monte_carlo", "num_draws": 8, "cfg_scale": 0.0, "seed": 0, "check_greedy": True
    }  # fmt: skip
    assert (info["sampling"]["steps"], info["sampling"]["remasking"]) == (4, "low_confidence")
    json.dumps(info)


def test_pairs_of_unequal_lengths_come_back_in_order(harness) -> None:
    pairs = [(row["reverse"], choice) for row in ROWS.select(range(3)) for choice in row["choices"]]
    pairs += [(ROWS[0]["sentence"][:-7] + " ", "dancer"), (ROWS[1]["forward"], ROWS[1]["description"])]
    found = score(harness, *pairs)
    expected = log_likelihood(MODEL, TOKENIZER, *zip(*pairs, strict=True), num_draws=8)
    assert [value for value, _ in found] == pytest.approx(expected.log_likelihood.tolist(), abs=1e-4)
    assert [greedy for _, greedy in found] == [
        is_greedy(MODEL, torch.tensor(prompt), torch.tensor(answer))
        for prompt, answer in (harness._encode_pair(*pair) for pair in pairs)
    ]
    assert len({greedy for _, greedy in found}) == 2
    assert score(LLaDALM(MODEL, tokenizer=TOKENIZER, num_draws=8, batch_size=3), *pairs) == [
        (pytest.approx(value, abs=1e-4), greedy) for value, greedy in found
    ]


def test_answers_of_one_token_need_one_row_for_a_prompt(harness, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, labels = ["Who is Gustav", "Gustav", "Ada"], [" Gray", " Green", " Moss"]
    labels = [label for label in labels if TOKENIZER.unk_token_id not in TOKENIZER(label)["input_ids"]]
    rows = []
    monkeypatch.setattr(harness.core, "forward", record_rows(harness.core.forward, rows))
    found = score(harness, *((prompt, label) for prompt in prompts for label in labels))
    assert rows == [3]
    expected = choose_label(MODEL, TOKENIZER, prompts, labels)
    assert [value for value, _ in found] == pytest.approx(expected.flatten().tolist(), abs=1e-5)


def record_rows(forward: Any, rows: list[int]) -> Any:
    def recording(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(input_ids))
        return forward(input_ids, *args, **kwargs)

    return recording


def test_guidance_is_that_of_scores_and_of_text() -> None:
    guided = LLaDALM(MODEL, tokenizer=TOKENIZER, estimator="exact", cfg_scale=0.5, check_greedy=False)
    pair = (ROWS[0]["reverse"], ROWS[0]["name"])
    expected = log_likelihood(MODEL, TOKENIZER, *pair, estimator="exact", cfg_scale=0.5)
    assert score(guided, pair) == [(pytest.approx(float(expected.log_likelihood), abs=1e-4), False)]
    assert guided.settings()["sampling"]["cfg_scale"] == 0.5


def test_a_document_longer_than_the_model_is_scored_whole(harness) -> None:
    text = " ".join(ROWS["sentence"][:12])
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2 * 32
    # windows of all but one token, each given the token before it
    starts = range(0, len(ids), 31)
    prompts = [[TOKENIZER.bos_token_id] if not start else ids[start - 1 : start] for start in starts]
    answers = [ids[start : start + 31] for start in starts]
    # the harness gives the last window all the context that fits
    prompts[-1] = ids[len(ids) - 32 : starts[-1]]
    expected = MODEL.log_likelihood(prompts, answers, num_draws=8)
    (found,) = harness.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), True)
    assert found == pytest.approx(float(expected.log_likelihood.sum()), rel=1e-5)


def test_prompts_that_are_too_long_are_cut_and_answers_refused(harness, caplog) -> None:
    long = " ".join(ROWS["sentence"][:8])
    (found,) = score(harness, (long, " is"))
    assert "1 of 1 prompts are too long" in caplog.text
    ids = TOKENIZER(long)["input_ids"]
    expected = MODEL.log_likelihood(ids[-31:], TOKENIZER(" is", add_special_tokens=False)["input_ids"])
    assert found[0] == pytest.approx(float(expected.log_likelihood), abs=1e-4)
    with pytest.raises(ValueError, match="The answer .* has .* tokens, more than 32; leave its task out."):
        score(harness, ("Who", f" {long}"))
    with pytest.raises(ValueError, match="The answer ' ', after 'Who', has no token"):
        score(harness, ("Who", " "))


def test_stop_strings_end_an_answer(harness) -> None:
    row = ROWS[0]
    place, adjective, trade = row["description"].split()
    (whole,) = write(harness, [row["forward"]], max_gen_toks=4)
    assert whole == row["description"]
    assert write(harness, [row["forward"]], max_gen_toks=4, until=[trade]) == [f"{place} {adjective} "]
    assert write(harness, [row["forward"]], max_gen_toks=4, until=["?", trade, f" {adjective}"]) == [place]
    # the prompt is no answer
    assert write(harness, [row["forward"]], max_gen_toks=4, until="Who") == [whole]
    assert cut("abcb", ["c", "b"]) == "a" and cut("abc", []) == "abc" and cut("abc", ["x"]) == "abc"


def test_special_tokens_end_an_answer(harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not in the text that is decoded, neither is what follows an end of text on the whole canvas."""
    bos, eos = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    words = TOKENIZER("Ada is Moss", add_special_tokens=False)["input_ids"]
    for special, until in ((eos, []), (bos, [TOKENIZER.bos_token])):
        answer = torch.tensor([[words[0], special, words[1], words[2]]])
        monkeypatch.setattr(
            harness.core, "generate", lambda ids, answer=answer, **kwargs: torch.cat([ids, answer], dim=1)
        )
        assert write(harness, ["Who"], max_gen_toks=4, until=until) == ["Ada"]


def test_a_stop_string_saves_the_blocks_after_it(harness, monkeypatch: pytest.MonkeyPatch) -> None:
    row, rows = ROWS[0], []
    monkeypatch.setattr(harness.core, "forward", record_rows(harness.core.forward, rows))
    settings = {"max_gen_toks": 4, "block_length": 1, "eos_early_stop": False}
    (whole,) = write(harness, [row["forward"]], **settings)
    assert len(rows) == 4
    rows.clear()
    first, *_ = whole.split()
    assert write(harness, [row["forward"]], until=[first], **settings) == [""]
    assert len(rows) == 1


def test_rows_of_a_batch_are_answered_as_alone(harness) -> None:
    prompts = [row[name] for row in ROWS.select(range(3)) for name in ("forward", "reverse")]
    settings = {"max_gen_toks": 4, "temperature": 1.0, "steps": 4}
    drawn = write(harness, [*prompts, prompts[0]], **settings)
    alone = LLaDALM(MODEL, tokenizer=TOKENIZER, batch_size=1)
    assert write(alone, prompts, **settings) == drawn[:-1]
    # the same request once more is another draw, and so is another seed
    again = [write(LLaDALM(MODEL, tokenizer=TOKENIZER, seed=seed), prompts, **settings) for seed in (0, 1)]
    assert again[0] == drawn[:-1] != again[1]
    repeated = write(harness, [prompts[0]] * 4, **settings)
    assert repeated[0] == drawn[0] and len(set(repeated)) > 1


def test_model_arguments_go_before_the_task_and_a_preset_behind(harness) -> None:
    model = LLaDALM(MODEL, tokenizer=TOKENIZER, preset="fast-dllm", max_new_tokens=3, temperature=0.5)
    task = {"max_gen_toks": 20, "temperature": 0.0, "do_sample": False, "until": [], "block_length": 2}
    config = model.writer.plan(task).config
    assert (config.max_new_tokens, config.do_sample, config.temperature) == (3, True, 0.5)
    assert (config.block_length, config.threshold, config.kv_cache) == (2, 0.9, "prefix")
    config = LLaDALM(MODEL, tokenizer=TOKENIZER, preset="left-to-right").writer.plan({}).config
    assert (config.do_sample, config.temperature, config.max_new_tokens) == (True, 1.0, 256)
    config = harness.writer.plan({"max_tokens": 5, "temperature": 0.7}).config
    assert (config.max_new_tokens, config.do_sample, config.block_length) == (5, True, 4)
    assert harness.writer.plan({}).config.max_new_tokens == 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gen_length": 4}, r"Unknown generation setting: `gen_length` \(write `max_new_tokens`\)"),
        ({"block_lenght": 4}, r"`block_lenght` \(write `block_length`\)"),
        ({"num_beams": 3}, "`num_beams=3` is not supported"),
        ({"max_length": 30}, "`max_length=30` counts the prompt"),
        ({"num_return_sequences": 2, "temperature": 1.0}, "a request has one answer"),
        ({"max_gen_toks": 32}, "An answer of 32 tokens leaves no room for a prompt in 32"),
    ],
)
def test_settings_that_are_wrong(harness, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        write(harness, ["Who"], **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mc_num": 4}, r"Unknown model argument: `mc_num` \(write `num_draws`\)"),
        ({"gen_length": 4}, r"`gen_length` \(write `max_new_tokens`\)"),
        ({"frobnicate": 4}, "Unknown model argument: .*frobnicate"),
        ({"softmax_dtype": "float32"}, r"\['softmax_dtype'\] do nothing here"),
        ({"estimator": "elbo"}, "`estimator='elbo'` is unknown"),
        ({"estimator": "exact", "num_draws": 3}, "draws nothing"),
        ({"preset": "fastest"}, "There is no preset 'fastest'"),
        ({"threshold": 3.0}, "threshold"),
        ({"max_length": 64}, "`max_length=64` is longer than the 32 tokens"),
    ],
)
def test_model_arguments_that_are_wrong(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        LLaDALM(DEMO, **arguments)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_other_models_are_refused(kind, tmp_path: Path) -> None:
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=8))
    else:
        model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=8))
    model.save_pretrained(tmp_path)
    for given in (str(tmp_path), model):
        with pytest.raises(ValueError, match=f"is a `{kind}` model, not a masked diffusion model; write `--model hf`"):
            LLaDALM(given, tokenizer=TOKENIZER)


def test_an_adapter_has_its_part(harness, tmp_path: Path) -> None:
    base = LLaDAModelLM.from_pretrained(DEMO).eval()
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora")
    model = LLaDALM(DEMO, peft=str(tmp_path / "lora"), num_draws=8)
    pair = (ROWS[0]["reverse"], ROWS[0]["name"])
    expected = log_likelihood(adapted.get_base_model(), TOKENIZER, *pair, num_draws=8)
    ((found, _),) = score(model, pair)
    assert found == pytest.approx(float(expected.log_likelihood), abs=1e-4)
    assert found != pytest.approx(score(harness, pair)[0][0], abs=1e-2)
    ids = TOKENIZER(ROWS[0]["forward"], return_tensors="pt")
    written = adapted.get_base_model().generate(**ids, max_new_tokens=4)[0, ids["input_ids"].shape[1] :]
    assert write(model, [ROWS[0]["forward"]], max_gen_toks=4) == [TOKENIZER.decode(written, skip_special_tokens=True)]
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    virtual.save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match="PROMPT_TUNING, which puts virtual tokens before the text"):
        LLaDALM(DEMO, peft=str(tmp_path / "prompt"))


def test_a_conversation_is_answered() -> None:
    model = LLaDALM(MODEL, tokenizer=TOKENIZER, num_draws=8, batch_size=32, check_greedy=False)
    results = evaluate(model, ["llada_facts_reverse", "llada_facts_choice"], apply_chat_template=True, limit=10)
    # the questions of this model are the same in a conversation, whose start token the tokenizer writes once
    assert results["results"]["llada_facts_reverse"]["exact_match,none"] >= 0.8
    assert results["results"]["llada_facts_choice"]["acc,none"] >= 0.8
    ((prompt, _),) = results["samples"]["llada_facts_reverse"][0]["arguments"]
    assert prompt.startswith(TOKENIZER.bos_token)
    assert model.tok_encode(prompt).count(TOKENIZER.bos_token_id) == 1


def test_a_conversation_ends_where_the_answer_begins(tiny_tokenizer) -> None:
    special = {"mask_token_id": 300, "bos_token_id": 295, "eos_token_id": 299, "pad_token_id": 299}
    model = LLaDALM(tiny_llada(vocab_size=320, **special), tokenizer=tiny_tokenizer, estimator="exact")
    assert model.turn_header == "<|start_header_id|>assistant<|end_header_id|>\n\n"
    prompt = model.apply_chat_template([{"role": "user", "content": "2+2"}])
    ((found, _),) = score(model, (prompt, "4!"))
    expected = log_likelihood(model.core, tiny_tokenizer, "2+2", "4!", apply_chat_template=True, estimator="exact")
    assert found == pytest.approx(float(expected.log_likelihood), abs=1e-4)
    # elsewhere the space before an answer is its own, as everywhere in the harness
    assert model._encode_pair("2+2= ", "4") == (tiny_tokenizer("2+2=")["input_ids"], tiny_tokenizer(" 4")["input_ids"])


def test_several_draws_are_not_cached_as_one(tmp_path: Path) -> None:
    model = LLaDALM(MODEL, tokenizer=TOKENIZER, temperature=1.0)
    request = Instance("generate_until", {}, ("Who", {"max_gen_toks": 4}), 0, metadata=("a_task", 0, 2))
    cached = CachingLM(model, str(tmp_path / "answers.db"))
    with pytest.raises(ValueError, match="a_task wants 2 draws of an answer, and the request cache keeps one of each"):
        cached.generate_until([request, request])
    drawn = Instance("generate_until", {}, ("Who", {"max_gen_toks": 4, "do_sample": True}), 0, ("a_task", 0, 2))
    assert len(cached.generate_until([drawn, drawn])) == 2


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[Path]:
    """A request cache of a run that was stopped in the middle."""
    model = LLaDALM(MODEL, tokenizer=TOKENIZER, num_draws=8, batch_size=4)
    score_four, calls = model._score, []

    def stop_in_the_second_batch(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score_four(*args)

    model._score = stop_in_the_second_batch
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, ["llada_facts_choice"], use_cache=str(tmp_path / "answers"), limit=6)
    yield tmp_path / "answers"


def test_what_was_interrupted_goes_on(interrupted: Path) -> None:
    model, pairs = LLaDALM(MODEL, tokenizer=TOKENIZER, num_draws=8, batch_size=4), []
    scoring = model._loglikelihood_tokens
    model._loglikelihood_tokens = lambda requests, **kwargs: pairs.extend(requests) or scoring(requests, **kwargs)
    again = evaluate(model, ["llada_facts_choice"], use_cache=str(interrupted), limit=6)
    assert len(pairs) == 4 * 6 - 4
    fresh = evaluate(LLaDALM(MODEL, tokenizer=TOKENIZER, num_draws=8, batch_size=32), ["llada_facts_choice"], limit=6)
    answers = [[sample["resps"] for sample in run["samples"]["llada_facts_choice"]] for run in (again, fresh)]
    scores = [[one[0][0] for sample in run for one in sample] for run in answers]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_answers_of_other_settings_are_not_taken(interrupted: Path) -> None:
    with pytest.raises(ValueError, match="made with other settings: scoring.num_draws is 8 there and 4 here"):
        evaluate(LLaDALM(MODEL, tokenizer=TOKENIZER, num_draws=4), ["llada_facts_choice"], use_cache=str(interrupted))


def test_answers_of_another_model_are_not_taken(tmp_path: Path, harness) -> None:
    cache = CachingLM(get_model("dummy")(), str(tmp_path / "answers.db"))
    cache.loglikelihood(requests("loglikelihood", ("a", "b")))
    with pytest.raises(ValueError, match="holds answers of another model of the harness"):
        CachingLM(harness, str(tmp_path / "answers.db"))


def test_the_tasks_need_the_facts_of_a_demo(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Run it, and write `--model_args pretrained=` and that folder"):
        load_facts(pretrained=str(tmp_path))


def test_a_model_that_writes_block_by_block_is_scored_so(tiny_tokenizer) -> None:
    special = {"mask_token_id": 300, "bos_token_id": 295, "eos_token_id": 299, "pad_token_id": 299}
    model = tiny_llada2_moe(vocab_size=320, max_position_embeddings=64, **special)
    harness = LLaDALM(model, tokenizer=tiny_tokenizer, estimator="exact", block_length=4, cfg_scale=0.5, batch_size=3)
    pairs = [("2+2=", "4"), ("2+2=", "5"), ("3+1", "=4, so"), ("1", "+1=2")]
    found = score(harness, *pairs)
    expected = log_likelihood(
        model, tiny_tokenizer, *zip(*pairs, strict=True), estimator="exact", block_length=4, cfg_scale=0.5
    )
    assert [value for value, _ in found] == pytest.approx(expected.log_likelihood.tolist(), abs=1e-4)
    assert harness.settings()["scoring"]["block_length"] == 4
    # what it writes, the surest token of a block in every step, is what is greedy
    settings = {"threshold": None, "max_denoising_steps": 4, "eos_early_stop": False, "kv_cache": None}
    for prompt, length in (("2+2=", 8), ("3+1", 5)):
        ids = tiny_tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(ids, max_new_tokens=length, block_length=4, cfg_scale=0.5, **settings)
        other = written.clone()
        other[0, -1] = (other[0, -1] + 1) % 256
        texts = [(row[0], ids.shape[1]) for row in (written, other)]
        assert are_greedy(model, texts, cfg_scale=0.5, block_length=4) == [True, False]
        text = tiny_tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert write(harness, [prompt], max_gen_toks=length, **settings) == [text]


def test_the_batch_size_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = LLaDALM(MODEL, tokenizer=TOKENIZER, batch_size="auto", max_batch_size=4, num_draws=8)
    assert write(harness, [ROWS[0]["forward"]] * 2, max_gen_toks=4) == [ROWS[0]["description"]] * 2
    assert harness.rows == 4


def test_an_adapter_is_no_checkpoint(tmp_path: Path) -> None:
    LoraConfig(target_modules=["q_proj"], base_model_name_or_path=DEMO).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is an adapter; write `pretrained={DEMO},peft={tmp_path}`"):
        LLaDALM(str(tmp_path))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.run(
        [*command, str(ROOT / "tests" / "harness_parallel_run.py"), str(tmp_path / "two.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    two = json.loads((tmp_path / "two.json").read_text())
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", None)
    one = answer_tasks(batch_size=4)
    assert two.keys() == one.keys() and len(two) == 3 * 7
    for key, answers in two.items():
        for answer, expected in zip(answers, one[key], strict=True):
            assert answer == (expected if isinstance(expected, str) else pytest.approx(expected, abs=1e-4)), key
