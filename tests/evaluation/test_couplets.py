"""Couplets: the files they are read from, and how they are asked about."""

import json
from pathlib import Path

import pytest

from llada.evaluation import Fact, ReversalFacts, build_reversal_tokenizer, draw_facts
from llada.evaluation.couplets import Couplet, read_couplets, split_line
from llada.evaluation.reversal_facts import hold_out, read_facts


# as in fortunes-zh: a coloured title, an author, one couplet per line
POEMS = """\
\033[32m《静夜思》\033[m
\033[33m作者：李白\033[m
床前明月光，疑是地上霜。
举头望明月，低头思故乡。
%
\033[32m《蜀相》\033[m
\033[33m作者：杜甫\033[m
丞相祠堂何处寻？锦官城外柏森森。
三顾频烦天下计，两朝开济老臣心。
君不见，黄河之水天上来。
%
"""
FIRST = Couplet("床前明月光", "疑是地上霜")


def test_poems_are_read(tmp_path: Path) -> None:
    (tmp_path / "tang").write_text(POEMS, encoding="utf-8")
    couplets = read_couplets(tmp_path / "tang")

    # halves of unequal length are none
    assert [couplet.first for couplet in couplets] == ["床前明月光", "举头望明月", "丞相祠堂何处寻", "三顾频烦天下计"]
    assert couplets[0] == FIRST
    assert read_facts(tmp_path / "tang") == couplets


@pytest.mark.parametrize("as_lines", [False, True], ids=["list", "lines"])
def test_pairs_are_read(tmp_path: Path, as_lines: bool) -> None:
    rows = [{"first": f"一{part}", "second": f"二{part}"} for part in "甲乙"]
    text = "\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows)
    (tmp_path / "pairs").write_text(text, encoding="utf-8")

    assert read_facts(tmp_path / "pairs") == [Couplet("一甲", "二甲"), Couplet("一乙", "二乙")]


def test_a_line_with_two_answers_is_left_out(tmp_path: Path) -> None:
    rows = [("甲", "乙"), ("甲", "丙"), ("丁", "戊"), ("丁", "戊")]
    (tmp_path / "pairs").write_text(json.dumps([{"first": a, "second": b} for a, b in rows]), encoding="utf-8")

    assert read_couplets(tmp_path / "pairs") == [Couplet("丁", "戊")]


def test_facts_are_read(tmp_path: Path) -> None:
    (tmp_path / "facts").write_text('[{"name": "Ada  Moss", "description": "a shy baker"}]', encoding="utf-8")

    assert read_facts(tmp_path / "facts") == [Fact("Ada Moss", "a shy baker")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no couplet", "holds no couplet; write"),
        ("[]", "holds no couplet"),
        ('{"first": "甲"', "neither JSON nor JSON lines"),
        ('[{"first": "甲"}]', "Row 0 is no couplet"),
        ('[{"name": "Ada", "description": "shy"}, {"name": "Ivo"}]', "Row 1 of .* is no fact"),
        ('[{"name": "Ada", "description": "a"}, {"name": "Ada", "description": "b"}]', "two facts of the name 'Ada'"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file").write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match=message):
        read_facts(tmp_path / "file")


def test_lines_are_cut_as_they_are_read() -> None:
    assert split_line("床前明月光", "metre") == ["床前", "明月光"]
    assert split_line("丞相祠堂何处寻", "metre") == ["丞相", "祠堂", "何处寻"]
    assert split_line("君不见", "metre") == ["君", "不", "见"]
    assert split_line("床前", "character") == ["床", "前"]
    with pytest.raises(ValueError, match="write one of"):
        split_line("床前", "syllable")


def test_questions_are_those_of_the_paper() -> None:
    assert FIRST.questions == {
        "forward": ("床前明月光的下一句是什么？ 直接输出句子即可。", "疑是地上霜"),
        "reverse": ("疑是地上霜的上一句是什么？ 直接输出句子即可。", "床前明月光"),
    }


def test_couplets_are_learned_as_facts_are(tmp_path: Path) -> None:
    couplets = [Couplet(f"{a}前明月光", f"{a}是地上霜").split() for a in "甲乙丙丁"]
    facts = hold_out(couplets, 4)
    (held_out,) = facts.held_out
    rows = facts.training_rows()
    assert len(rows) == 4 + 2 * 3
    assert [row for row in rows if held_out.first in row["prompt"] + row["completion"]] == [
        {"prompt": "", "completion": f"{held_out.first} ， {held_out.second}"}
    ]

    tokenizer = build_reversal_tokenizer(facts)
    for row in rows:
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        assert tokenizer.unk_token_id not in ids and max(ids) < len(tokenizer)
    assert tokenizer.decode(tokenizer(held_out.sentence)["input_ids"], skip_special_tokens=True) == held_out.sentence

    facts.save(tmp_path / "facts.json")
    assert ReversalFacts.load(tmp_path / "facts.json") == read_facts(tmp_path / "facts.json") == facts


def test_a_tokenizer_of_given_facts_has_their_words_only() -> None:
    facts = draw_facts(8)
    given, every = build_reversal_tokenizer(facts), build_reversal_tokenizer()

    assert len(given) < len(every)
    assert given("Who is nobody?")["input_ids"].count(given.unk_token_id) == 1


def test_a_quarter_is_held_out() -> None:
    couplets = [Couplet(f"甲{number}", f"乙{number}") for number in range(20)]
    facts = hold_out(couplets, 9, seed=1)

    assert (len(facts.demonstrated), len(facts.held_out)) == (7, 2)
    assert {*facts.demonstrated, *facts.held_out} < {*couplets}
    assert hold_out(couplets, 9, seed=1) == facts != hold_out(couplets, 9, seed=2)
    with pytest.raises(ValueError, match="write 4 at least"):
        hold_out(couplets, 3)
