"""The commands that load a checkpoint, as a user types them."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from demo_checkpoint import DEMO_FOLDER, load_demo
from installed_wheel import ROOT
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import llada
from llada import Trace
from llada.generation import DiffusionGenerateOutput
from llada.generation.configuration_diffusion import SETTINGS
from llada_cli import COMMANDS, main


DEMO = str(DEMO_FOLDER)
MODEL, TOKENIZER, FACTS = load_demo()
FACT, OTHER = FACTS.held_out[0], FACTS.held_out[2]


class TerminalOutput(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Holds a conversation; returns the exit status and the lines printed."""

    def talk(*lines: str, options: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["chat", DEMO, *options])
        return status, capsys.readouterr().out.splitlines()

    return talk


def test_generate_continues_a_text(capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", DEMO, f"{FACT.name} is"]) == 0
    assert capsys.readouterr().out == f"{FACT.description}\n"


def test_generate_answers_a_question(capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", DEMO, "--chat", FACT.reverse[0]]) == 0
    assert capsys.readouterr().out == f"{FACT.name}\n"


@pytest.mark.parametrize("gaps", ["___2", "___ ___", "______2", "<|mdm_mask|>___"])
def test_infill_fills_gaps(capsys: pytest.CaptureFixture, gaps: str) -> None:
    assert main(["infill", DEMO, f"{gaps} is {FACT.description}"]) == 0
    assert capsys.readouterr().out == f"{FACT.sentence}\n"


def test_infill_fills_gaps_anywhere(capsys: pytest.CaptureFixture) -> None:
    town, rest = OTHER.description.split(" ", 1)
    assert main(["infill", DEMO, f"___2 is ___ {rest}"]) == 0
    assert capsys.readouterr().out == f"{OTHER.sentence}\n"


@pytest.mark.parametrize(
    "text", ["___99999999999", "___0000000000000000000099999999999", "___4 ___999", "___" + "9" * 5000]
)
def test_gaps_are_counted_before_they_are_written_out(capsys: pytest.CaptureFixture, text: str) -> None:
    assert main(["infill", DEMO, text]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "The gaps take" in error and "a gap of four" in error or "integer string" in error


def test_infill_of_an_unfinished_text_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []

    def infill(self, input_ids, **kwargs):
        ends.append(input_ids[0, -1].item() == TOKENIZER.eos_token_id)
        return DiffusionGenerateOutput(sequences=input_ids)

    monkeypatch.setattr(type(MODEL), "infill", infill)
    main(["infill", DEMO, "___2 is"])
    main(["infill", DEMO, "--unfinished", "___2 is"])

    assert ends == [True, False]


def test_text_grows_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ["infill", DEMO, f"___2 is {FACT.description}"]
    for options, streams in (([], True), (["--no-stream"], False)):
        monkeypatch.setattr(sys, "stdout", TerminalOutput())
        assert main([*text, *options]) == 0
        written = sys.stdout.getvalue()
        assert FACT.sentence in written
        # what stands before the first gap is drawn, too: here nothing, and both gaps
        assert ("░" in written and "\033[K" in written) == streams


def test_settings_reach_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def generate(self, input_ids, attention_mask, return_dict_in_generate, **kwargs):
        given.append(kwargs)
        return DiffusionGenerateOutput(sequences=input_ids)

    monkeypatch.setattr(type(MODEL), "generate", generate)
    options = ["--max-new-tokens", "8", "--block-length", "4", "--temperature", "0.5"]
    main(["generate", DEMO, "Who", *options, "--set", "remasking=random", "--set", "top_k=5"])
    main(["generate", DEMO, "Who", "--preset", "llada", "--steps", "8", "--max-new-tokens", "16"])

    assert given[0] == {
        "max_new_tokens": 8,
        "block_length": 4,
        "temperature": 0.5,
        "remasking": "random",
        "top_k": 5,
    }
    preset = given[1]["generation_config"]
    assert (preset.rng_compat, preset.steps, preset.max_new_tokens) == ("llada", 8, 16)


def test_seed_fixes_what_is_drawn(capsys: pytest.CaptureFixture) -> None:
    draw = ["generate", DEMO, "Who", "--temperature", "3", "--set", "eos_early_stop=false", "--max-new-tokens", "16"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*draw, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)

    assert texts[0] == texts[1] != texts[2]


def test_chat(chat) -> None:
    questions = [fact.reverse[0] for fact in (FACT, OTHER)]
    assert chat(*questions) == (0, [FACT.name, OTHER.name])
    # a blank line is nothing to answer
    assert chat(questions[0], "", questions[1]) == (0, [FACT.name, OTHER.name])
    assert chat(questions[0], "/new", questions[1]) == (0, [FACT.name, OTHER.name])
    assert chat() == (0, [])


def test_chat_remembers(chat, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def remember(self, messages, **kwargs):
        seen.append([message["content"] for message in messages])
        return TOKENIZER(messages[-1]["content"] + "\n", return_tensors="pt")

    monkeypatch.setattr(type(TOKENIZER), "apply_chat_template", remember)
    first, second = FACT.reverse, OTHER.reverse
    chat(first[0], second[0], "/new", second[0])

    assert seen == [[first[0]], [first[0], first[1], second[0]], [second[0]]]


def test_chat_survives_a_question_that_is_too_long(chat, capsys: pytest.CaptureFixture) -> None:
    status, answers = chat("Who is " * 20, FACT.reverse[0])

    assert (status, answers) == (0, [FACT.name])


def test_too_long_a_question_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who is " * 20 + "\n"))
    main(["chat", DEMO])

    assert "llada chat: The canvas has" in capsys.readouterr().err


def test_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(MODEL), "generate", interrupt)
    assert main(["generate", DEMO, "Who"]) == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", DEMO, "Who", "--block-length", "0"], "llada generate: `block_length` must be a positive"),
        (["generate", DEMO, "Who", "--preset", "fastest"], "There is no preset 'fastest'"),
        (["generate", DEMO, "Who", "--set", "num_beams=2"], "beam search"),
        (["generate", DEMO, "Who", "--set", "steps"], "write `--set NAME=VALUE`"),
        (["generate", DEMO, "Who", "--set", "gen_length=4"], "write `max_new_tokens`"),
        (["generate", "no-such-model", "Who"], "llada generate: There is no folder 'no-such-model'. Name a folder"),
        (["infill", DEMO, "no gap"], "write ___ where a token is wanted"),
        (["sft"], "What is trained? Write `--model_name_or_path`"),
        (["sft", "--model_name_or_path", DEMO], "What is trained on? Write `--dataset_name`"),
        (["distill"], "What is distilled? Write `--model_name_or_path`"),
        (["distill", "--generation_kwargs", "fast"], "`generation_kwargs='fast'` is no JSON object"),
        (["pretrain"], "a new one, for which there lacks `--hidden_size`, `--num_hidden_layers`"),
        (
            ["pretrain", "--model_name_or_path", DEMO, "--hidden_size", "8"],
            "`--hidden_size` describe a new model, and `--model_name_or_path` names one that exists",
        ),
        (["sft", "--packing", "--bf16", "false"], "`packing=True` has nothing to pack where every row is filled"),
        (["sft", "--config", "no-such-file.yaml"], "no-such-file.yaml"),
        (["demo", "--num-facts", "2"], "llada demo: 2 facts with 0 of them held out"),
    ],
    ids=lambda value: "-".join(value[-3:]).replace(DEMO, "demo") if isinstance(value, list) else "",
)
def test_mistakes_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["generate", DEMO, "Who", "--blocklength", "4"], "unrecognized arguments: --blocklength 4"),
        (["generate", DEMO], "required: prompt"),
        (["sft", "--learning_rat", "x"], "--learning-rate: invalid float value: 'x'"),
    ],
    ids=["unknown-command", "unknown-option", "no-prompt", "bad-value"],
)
def test_wrong_usage_is_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_other_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(TOKENIZER), **sizes)).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)

    assert main(["generate", str(tmp_path), "Who"]) == 1
    assert "is a `bert` model, not a masked diffusion model" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_missing_chat_template_is_explained(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    MODEL.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who\n"))

    assert main([command, str(tmp_path), *(["Who", "--chat"] if command == "generate" else [])]) == 1
    assert "The tokenizer has no chat template" in capsys.readouterr().err


def test_a_tokenizer_need_not_name_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    # that of LLaDA-8B does not
    MODEL.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)

    assert main(["infill", str(tmp_path), f"___2 is {FACT.description}"]) == 0
    assert capsys.readouterr().out == f"{FACT.sentence}\n"


def test_help_of_every_command(capsys: pytest.CaptureFixture) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert f"usage: llada {command}" in capsys.readouterr().out


def test_the_process_exits_with_the_status() -> None:
    command = [sys.executable, "-m", "llada", "generate", DEMO, "Who", "--preset", "fastest"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 1
    assert "There is no preset 'fastest'" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["generate", "--help"], ["chat", "--bad"]])
def test_torch_waits_until_a_command_runs(arguments: list[str]) -> None:
    code = f"""
import sys
from llada_cli import main
try:
    main({arguments})
finally:
    print({{"llada", "prompt_toolkit", "torch", "transformers"}} & set(sys.modules), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert "set()" in result.stderr
    assert "usage: llada" in (result.stderr if "--bad" in arguments else result.stdout) or arguments == ["--version"]


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"llada {llada.__version__} (transformers {transformers.__version__}, ")


def test_without_a_command_help_is_shown(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command} " in printed for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "text", "answer"),
    [
        (["generate", DEMO, "-"], f"{FACT.name} is\n", FACT.description),
        (["generate", DEMO, "--chat", "-"], FACT.reverse[0], FACT.name),
        (["infill", DEMO, "-"], f"___2 is {FACT.description}\n", FACT.sentence),
    ],
    ids=["generate", "chat", "infill"],
)
def test_text_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], text: str, answer: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{answer}\n"


def test_statistics_go_to_standard_error(capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", DEMO, f"{FACT.name} is", "--stats", "--steps", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{FACT.description}\n"
    assert re.search(r"^2 forward passes in \d+\.\d\d s, \d\.\d tokens each$", captured.err, re.MULTILINE)


def test_how_it_came_about_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "trace.json"
    assert main(["generate", DEMO, f"{FACT.name} is", "--trace", str(file)]) == 0
    trace = Trace.load(file)
    assert TOKENIZER.decode(trace.final, skip_special_tokens=True) == FACT.sentence
    assert all(len(likely) == 5 for event in trace.events for likely in event.alternatives)
    assert f"How it came about is in {file}." in capsys.readouterr().err

    picture = tmp_path / "gap.svg"
    assert main(["infill", DEMO, f"___2 is {FACT.description}", "--trace", str(picture)]) == 0
    assert f"<title>{FACT.sentence}</title>".replace("'", "&#x27;") in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trace", "a.gif"], "'a.gif' is none of them; write a.html"),
        (["--trace", "nowhere/a.html"], "There is no folder .*nowhere to write a.html to; make it first"),
        (
            ["--trace", "a.html", "--num-return-sequences", "2", "--temperature", "1"],
            "`--trace` shows how one text came about; leave out `--num-return-sequences`",
        ),
    ],
)
def test_a_trace_that_cannot_be_written_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", DEMO, "Who", *options]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--num-return-sequences", "3"], ["--set", "num_return_sequences=3"]])
def test_all_sequences_are_printed(monkeypatch: pytest.MonkeyPatch, option: list[str]) -> None:
    draw = ["--temperature", "3", "--seed", "1", "--set", "eos_early_stop=false"]
    monkeypatch.setattr(sys, "stdout", TerminalOutput())
    assert main(["generate", DEMO, "Who", *draw, *option]) == 0
    written = sys.stdout.getvalue()

    # a picture shows one text only
    assert "\033" not in written
    first, *texts = re.split(r"^--- (\d) of 3 ---\n", written, flags=re.MULTILINE)
    assert first == "" and texts[::2] == ["1", "2", "3"]
    assert len(set(texts[1::2])) > 1


def test_an_end_of_text_behind_the_gaps_gives_the_right_names() -> None:
    # the README and the command line put it there: the text is finished
    mask, right = TOKENIZER.mask_token, {"": 0, TOKENIZER.eos_token: 0}
    for fact in FACTS.held_out:
        for end in right:
            inputs = TOKENIZER(f"{mask * 2} is {fact.description}{end}", return_tensors="pt")
            filled = TOKENIZER.decode(MODEL.infill(**inputs)[0], skip_special_tokens=True)
            right[end] += filled == fact.sentence
    assert right[TOKENIZER.eos_token] == len(FACTS.held_out) > right[""]


def test_the_settings_are_listed(capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["generate", "--set", "help"])
    assert exit_status.value.code == 0
    listed = capsys.readouterr().out
    assert set(SETTINGS) == {line.split(":")[0] for line in listed.splitlines() if not line.startswith(" ")}
    assert "\nkl_history: an integer, at least 1, 2 by default\n    Number of these steps.\n" in listed
    assert "\nkv_cache: one of prefix, dual, vicinity, delayed, block\n" in listed
