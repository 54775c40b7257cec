"""Asking models in both directions, those that are named and those that are trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from demo_checkpoint import DEMO_FOLDER, load_demo
from transformers import AutoModelForCausalLM, AutoTokenizer

from llada.evaluation import ReversalFacts, build_causal_twin
from llada.evaluation.couplets import Couplet
from llada.evaluation.reversal_questions import Asked, count_right, format_directions
from llada_cli import main
from llada_cli.progress import LossBar


MODEL, TOKENIZER, FACTS = load_demo()
DEMO = str(DEMO_FOLDER)

pytestmark = pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A causal model that has learned nothing."""
    folder = tmp_path_factory.mktemp("causal")
    build_causal_twin(MODEL.config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def couplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("poems") / "pairs.json"
    rows = [{"first": f"{sign}前明月光", "second": f"{sign}是地上霜"} for sign in "甲乙丙丁戊己庚辛"]
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_named_models_are_asked_in_both_directions(causal: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--data", str(DEMO_FOLDER / "facts.json"), "--max-new-tokens", "4", "--output-dir", str(tmp_path)]
    command = ["reversal", DEMO, causal, *options]
    assert main([*command, "--num-pairs", "6"]) == 0
    printed = capsys.readouterr().out

    asked = [Asked(**row) for row in answers(tmp_path)]
    assert len(asked) == 2 * 2 * 6
    names = {fact.name: fact for fact in FACTS.held_out}
    for item in asked:
        # about those that no question was seen about
        fact = names[item.right if item.direction == "reverse" else item.question.removeprefix("Who is ")[:-1]]
        assert (item.question, item.right) == fact.questions[item.direction]
    # the demo answers most of them
    assert count_right(asked, DEMO, "reverse")[0] >= 0.5 > count_right(asked, causal, "reverse")[0]
    assert format_directions(asked) in printed
    assert (tmp_path / "report.md").read_text(encoding="utf-8") in printed
    assert "<svg" in (tmp_path / "reversal.svg").read_text(encoding="utf-8")

    assert main(command) == 1
    assert "`num_pairs` was 6 and is None" in capsys.readouterr().err


def test_what_was_answered_is_not_asked_again(causal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--data", str(DEMO_FOLDER / "facts.json"), "--max-new-tokens", "4", "--output-dir", str(tmp_path)]
    command = ["reversal", DEMO, causal, *options, "--num-pairs", "4", "--batch-size", "2"]
    assert main(command) == 0
    file = tmp_path / "answers.jsonl"
    whole = answers(tmp_path)

    # killed in the middle of a line
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    file.write_text("".join(lines[:11]) + lines[11][:20], encoding="utf-8")
    loaded = []
    from_pretrained = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda name, **kwargs: loaded.append(name) or from_pretrained(name, **kwargs),
    )
    assert main(command) == 0
    assert answers(tmp_path) == whole
    assert loaded == [causal]


def test_couplets_are_asked_as_in_the_paper(couplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = []
    generate = type(MODEL).generate

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        settings.append({name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask")})
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(MODEL), "generate", record)
    options = ["--num-pairs", "2", "--max-new-tokens", "8", "--output-dir", str(tmp_path)]
    assert main(["reversal", DEMO, "--data", str(couplets), *options]) == 0

    paper = {"max_new_tokens": 8, "block_length": 8, "max_denoising_steps": 8, "do_sample": False}
    assert settings == [{**paper, "suppress_eos": "logits"}] * 2
    first = Couplet(**json.loads(couplets.read_text(encoding="utf-8"))[0])
    assert first.questions["reverse"][0].endswith("的上一句是什么？ 直接输出句子即可。")
    assert "LLaDA-8B-Instruct 51.8, 45.6" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_pair_is_trained_on_couplets(couplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--steps", "6", "--causal-steps", "40"]
    command = ["reversal", "--data", str(couplets), "--output-dir", str(tmp_path), *sizes]
    on_step_end = LossBar.on_step_end
    steps = []

    def interrupt(self: LossBar, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_step_end(self, args, state, control, **kwargs)
        steps.append(state.global_step)
        if len(steps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(LossBar, "on_step_end", interrupt)
    assert main(command) == 130
    assert main(command) == 0
    # from the checkpoint of the third step
    assert steps[:7] == [1, 2, 3, 4, 4, 5, 6]

    assert {path.name for path in tmp_path.iterdir()} == {
        "causal", "llada", "report.md", "results.json", "reversal.svg", "settings.json",
    }  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["LLaDA"].keys() ^ results["causal"].keys() == {"infill", "ranking"}
    # it has learned its eight sentences by heart
    assert results["causal"]["declaration"] == 1.0
    facts = ReversalFacts.load(tmp_path / "llada" / "facts.json")
    assert (len(facts.demonstrated), len(facts.held_out)) == (6, 2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llada")
    assert tokenizer.tokenize(facts.held_out[0].first) == facts.held_out[0].first.split()
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| line before B?" in page and "it took 6 steps, the causal model 40" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([DEMO], "What are these models asked about? Write `--data`"),
        (["--data", "nowhere.json"], "Debian's package fortunes-zh has poems"),
        (["--steps", "0"], "`--steps 0` is too small"),
        (["no-such-folder", "--data", "README.md"], "There is no folder 'no-such-folder'"),
        (["--data", str(DEMO_FOLDER / "facts.json"), "--num-pairs", "8"], "leave out `--num-pairs`"),
        (["--data", str(DEMO_FOLDER / "README.md")], "holds no couplet"),
    ],
)
def test_wrong_options_are_explained(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["reversal", "--output-dir", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err


def test_shares_have_errors() -> None:
    asked = [Asked("a", way, n, "?", "x", "yx" if n else "y") for way in ("forward", "reverse") for n in range(4)]

    assert count_right(asked, "a", "forward") == (0.75, pytest.approx((0.75 * 0.25 / 4) ** 0.5))
    assert format_directions(asked).splitlines()[2] == "| a | 4 | 75.0 ± 21.7 | 75.0 ± 21.7 | +0.0 |"
