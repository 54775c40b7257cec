"""Pictures of a trace, each compared with the frames of the trace."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from tiny_models import peaked_llada

from llada import Replay, Trace
from llada.generation.listeners.trace import TraceEvent
from llada.generation.views.animation import animated_svg
from llada.generation.views.colours import ink_on, order_colour
from llada.generation.views.heat_map import confidence_table
from llada.generation.views.replay_page import replay_page
from llada.generation.views.story import END_OF_TEXT


MASK, END = 300, 299
SVG = "{http://www.w3.org/2000/svg}"


def letters(text: str) -> list[int]:
    """Ids of printable ASCII in the tiny tokenizer, whose alphabet starts at `!`."""
    return [ord(char) - 33 for char in text]


def story() -> Trace:
    """Five masks: a token is written, revised, masked again and written; two masks are inserted; the text ends."""
    start = [*letters("<a"), *[MASK] * 5]
    events = [
        TraceEvent(0, 0, [3], letters("c"), [0.5], alternatives=[[(letters("c")[0], 0.5), (letters("d")[0], 0.25)]]),
        TraceEvent(1, 0, [3, 2], letters("eb"), [0.6, 0.75], alternatives=[[], []]),
        TraceEvent(2, 0, [3], [MASK], [0.1], inserted=[4, 4], alternatives=[[]]),
        TraceEvent(4, 1, [3, 4, 5], letters("<&>"), [0.9, 0.8, 0.7], alternatives=[[], [], []]),
        TraceEvent(5, 1, [6], [END], [0.95], end=7, fill=END, alternatives=[[]]),
    ]
    return Trace(start, [*letters("<ab<&>"), END], MASK, events, {"max_new_tokens": 5})


@pytest.fixture
def replay(tiny_tokenizer) -> Replay:
    return Replay(story(), tiny_tokenizer)


@pytest.fixture
def frames(tiny_tokenizer) -> list[str]:
    """The text after each step, masks as `_`, up to the end of the text."""
    texts = []
    for number, frame in enumerate(story().frames()):
        text = "".join(
            "_" if token == MASK else END_OF_TEXT if token == END else tiny_tokenizer.decode([token])
            for token in frame
        )
        texts.append(text[:7] if number == 5 else text)
    return texts


def test_cells_are_what_the_frames_show(replay, frames):
    assert (replay.num_steps, replay.num_revisions, replay.text) == (5, 2, "<ab<&>")
    for step, frame in enumerate(frames):
        shown = ""
        for cell in replay.cells:
            if cell.born > step or (cell.gone is not None and cell.gone <= step):
                continue
            text = cell.given
            if text is None:
                text = ([""] + [write.text for write in cell.writes if write.step <= step])[-1] or "_"
            shown += text
        assert shown == frame
    # steps are counted among those of the row
    assert [write.step for write in replay.cells[3].writes] == [1, 2, 3, 4]
    assert replay.cells[3].writes[0].alternatives == [("c", 0.5), ("d", 0.25)]


def test_without_a_tokenizer_tokens_are_numbers():
    replay = Replay(story())
    assert replay.cells[0].given == f" {letters('<')[0]}"
    assert replay.cells[6].writes[0].name == str(END)


def test_control_tokens_of_the_prompt_are_hidden(tiny_tokenizer):
    trace = Trace(
        [295, *letters("a"), MASK], [295, *letters("ab")], MASK, [TraceEvent(0, 0, [2], letters("b"), [1.0])]
    )
    assert [cell.given for cell in Replay(trace, tiny_tokenizer).cells] == ["", "a", None]


def test_a_token_keeps_its_space_and_loses_what_a_screen_would_obey(tiny_tokenizer):
    replay = Replay(story(), tiny_tokenizer)
    space, escape = tiny_tokenizer(" \x1b", add_special_tokens=False)["input_ids"]
    assert replay.text_of(space) == " "
    assert replay.text_of(escape) == " "
    # a byte that is no character alone is called by its name
    byte = tiny_tokenizer("\u00e9", add_special_tokens=False)["input_ids"][0]
    assert replay.text_of(byte) == tiny_tokenizer.convert_ids_to_tokens(byte)


def test_the_page_holds_its_data_and_asks_for_nothing(replay):
    page = replay_page(replay)
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert "<" not in data
    assert [cell["given"] for cell in json.loads(data)["cells"][:3]] == ["<", "a", None]
    assert json.loads(data)["cells"][3]["writes"][0]["alternatives"] == [["c", 0.5], ["d", 0.25]]
    assert not re.search(r"https?:|src=|@import|url\(", page.replace(data, ""))
    assert "default-src 'none'" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_plays_in_a_browser(replay, frames, tmp_path):
    replay.save(tmp_path / "page.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=6000", "--dump-dom"]
    dom = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=60)

    (canvas,) = re.findall(r'<div id="canvas".*?</div>', dom.stdout, re.DOTALL)
    shown = re.findall(r"<span(?![^>]*hidden)[^>]*>(.*?)</span>", canvas, re.DOTALL)
    assert "".join(shown).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == frames[-1]
    assert "step 5 of 5" in dom.stdout and "2 revised" in dom.stdout


def test_the_animation_shows_every_frame(replay, frames):
    picture = animated_svg(replay, columns=4, seconds_per_step=1.0)
    root = ElementTree.fromstring(picture)
    style = root.find(f"{SVG}style").text
    seconds = float(re.search(r"--t:([\d.]+)s", style)[1])
    visible = {}
    for name, body in re.findall(r"@keyframes (\S+?)\{((?:[^{}]*\{[^{}]*\})*)\}", style):
        stops = [
            (float(at) / 100 * seconds, float(value)) for at, value in re.findall(r"([\d.]+)%\{opacity:(\d)", body)
        ]
        visible[name] = [[value for at, value in stops if at <= step + 0.5][-1] for step in range(len(frames))]
    for step, frame in enumerate(frames):
        shown = {}
        for group in [root, *root.findall(f"{SVG}g")]:
            animation = re.search(r"animation:(\S+)", group.get("style", ""))
            if animation and not visible[animation[1]][step]:
                continue
            for shape in group:
                if shape.tag == f"{SVG}text":
                    shown[float(shape.get("y")), float(shape.get("x"))] = shape.text
                elif shape.tag == f"{SVG}rect" and shape.get("fill") == "#d0d7de":
                    shown[float(shape.get("y")) + 18, float(shape.get("x")) - 0.5] = "_"
        assert "".join(text for _, text in sorted(shown.items())) == frame
    # where motion is not wanted, the finished text is seen
    still = [group.get("class") for group in root.findall(f"{SVG}g") if group.find(f"{SVG}text") is not None]
    assert still.count(None) == 5


def test_colours_run_from_light_to_dark_and_text_can_be_read():
    colours = [order_colour(share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert colours[0] == "#deebf7" and colours[-1] == "#08306b"
    assert ink_on(colours[0]) == "#000000" and ink_on(colours[-1]) == "#ffffff"


def test_the_heat_map_is_of_what_stands_there(replay):
    nan = np.nan
    values, written = confidence_table(replay)
    # columns: the five cells that were written; rows: steps
    expected = [
        [nan, 0.5, nan, nan, nan],
        [0.75, 0.6, nan, nan, nan],
        [0.75, nan, nan, nan, nan],
        [0.75, 0.9, 0.8, 0.7, nan],
        [0.75, 0.9, 0.8, 0.7, 0.95],
    ]
    np.testing.assert_array_equal(values, expected)
    assert written.tolist() == [
        [False, True, False, False, False],
        [True, True, False, False, False],
        [False, False, False, False, False],
        [False, True, True, True, False],
        [False, False, False, False, True],
    ]


def test_every_format_is_written(replay, tmp_path):
    pytest.importorskip("matplotlib")
    for name, start in (("a.html", b"<!DOCTYPE"), ("a.svg", b"<svg"), ("a.PNG", b"\x89PNG"), ("a.pdf", b"%PDF")):
        replay.save(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    replay.save(tmp_path / "a.json")
    assert Trace.load(tmp_path / "a.json") == replay.trace
    assert replay._repr_html_().startswith('<img alt="confidence at each position after each step: &lt;ab')
    with pytest.raises(ValueError, match=r"'a.gif' is none of them; write a.html"):
        replay.save(tmp_path / "a.gif")


def test_a_trace_keeps_the_likeliest_tokens(tiny_tokenizer):
    model = peaked_llada(3)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    output = model.generate(ids, max_new_tokens=4, block_length=4, output_trace=True, trace_top_k=3)
    for row, trace in enumerate(output.trace):
        frames = list(trace.frames())
        for frame, event in zip(frames, trace.events, strict=False):
            logits = model(torch.tensor([frame])).logits[0].detach()
            for position, token, confidence, likely in zip(
                event.positions, event.tokens, event.confidence, event.alternatives, strict=True
            ):
                shares = logits[position].softmax(0)
                tokens = shares.topk(3).indices.tolist()
                assert [other for other, _ in likely] == tokens
                torch.testing.assert_close(torch.tensor([share for _, share in likely]), shares[tokens])
                # the mask, which is never written, may be among them
                assert token in tokens[:2] and confidence == pytest.approx(float(shares[token]), abs=1e-5)
        assert trace.start[:3] == ids[row].tolist()
    plain = model.generate(ids, max_new_tokens=4, block_length=4, output_trace=True)
    assert torch.equal(plain.sequences, output.sequences)
    assert all(event.alternatives == [] for trace in plain.trace for event in trace.events)
