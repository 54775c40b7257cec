"""Rewards from the command line, and the demo that they are tried on."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer
from trl.rewards import think_format_reward

import llada_cli
from llada.evaluation.digit_orders import draw_digits
from llada.trainers.rewards import exact_match
from llada_cli import main
from llada_cli.digits_demo import answer_shares
from llada_cli.grpo import RewardArguments, find_reward


RECIPES = Path(llada_cli.__file__).parent / "recipes"

pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo writes, after a few steps."""
    folder = tmp_path_factory.mktemp("demo") / "digits"
    assert main(["demo", "--task", "digits", "--output-dir", str(folder), "--steps", "3"]) == 0
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_questions_have_three_answers() -> None:
    (row,) = draw_digits(1, seed=4)
    digits = row["prompt"].removesuffix(" =").split()
    assert row["reversed"].split() == digits[::-1] and row["sorted"].split() == sorted(digits)
    assert row["copied"].split() == digits


def test_the_demo_writes_a_model_and_what_to_teach_it(digits: Path, capsys) -> None:
    tokenizer = AutoTokenizer.from_pretrained(digits)
    shares = answer_shares(AutoModelForMaskedLM.from_pretrained(digits), tokenizer, number=4)
    assert shares.keys() == {"reversed", "sorted", "copied"}
    prompts, pairs = rows_of(digits / "prompts.jsonl"), rows_of(digits / "pairs.jsonl")
    for prompt, pair in zip(prompts, pairs, strict=True):
        assert prompt["prompt"] == pair["prompt"] and pair["chosen"].strip() == prompt["answer"] != pair["rejected"]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_run(recipe: Path, digits: Path, tmp_path: Path) -> None:
    command = "dpo" if "dpo" in recipe.stem else "grpo"
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data = digits / Path(settings["dataset_name"]).name
    given = ["--model_name_or_path", str(digits), "--dataset_name", str(data), "--output_dir", str(tmp_path / "tuned")]
    given += ["--max_steps", "1", "--per_device_train_batch_size", "8", "--logging_steps", "1"]
    assert main([command, "--config", str(recipe), *given]) == 0
    card = (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert f"| trainer | LLaDA{command.upper()}Trainer |" in card
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "tuned").config.mask_token_id is not None


def test_rewards_are_found_by_name(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_rewards.py").write_text("def longest(completions, **kwargs):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    assert find_reward("exact_match") is exact_match and find_reward("think_format_reward") is think_format_reward
    assert find_reward("my_rewards.longest")([""]) == [1.0]
    with pytest.raises(ValueError, match="There is no reward 'longest'. Write one of exact_match, accuracy_reward"):
        find_reward("longest")
    with pytest.raises(ValueError, match="The reward 'my_rewards.shortest' cannot be imported"):
        find_reward("my_rewards.shortest")
    with pytest.raises(ValueError, match="The reward 'no_rewards.longest' cannot be imported"):
        find_reward("no_rewards.longest")


def test_settings_of_a_task_are_json() -> None:
    assert RewardArguments(reasoning_gym_kwargs='{"size": 3}').reasoning_gym_kwargs == {"size": 3}
    with pytest.raises(ValueError, match=r"`reasoning_gym_kwargs='\[1\]'` is no JSON object"):
        RewardArguments(reasoning_gym_kwargs="[1]")


def test_what_is_missing_is_named(digits: Path, capsys) -> None:
    assert main(["grpo", "--output_dir", "x", "--use_cpu", "--bf16", "false"]) == 1
    assert "What is trained? Write `--model_name_or_path`" in capsys.readouterr().err
    named = ["--model_name_or_path", str(digits), "--dataset_name", str(digits / "prompts.jsonl")]
    assert main(["grpo", "--output_dir", "x", "--use_cpu", "--bf16", "false", *named]) == 1
    assert "What are answers rewarded for? Write `--reward_funcs`" in capsys.readouterr().err


def test_a_task_of_reasoning_gym_is_trained_on(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra `rl`")
    recipe = RECIPES / "digits-grpo-elbo.yaml"
    given = ["--model_name_or_path", str(digits), "--output_dir", str(tmp_path / "tuned"), "--max_steps", "1"]
    given += ["--reasoning_gym", "chain_sum", "--reasoning_gym_kwargs", '{"size": 8, "as_messages": false}']
    given += ["--per_device_train_batch_size", "8"]
    assert main(["grpo", "--config", str(recipe), *given, "--logging_steps", "1"]) == 0
    (state,) = (tmp_path / "tuned").glob("README.md")
    assert "LLaDAGRPOTrainer" in state.read_text(encoding="utf-8")
