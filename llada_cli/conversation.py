"""A conversation with a model, and the commands that steer it."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .infill import mask_gaps
from .sampling import chat_inputs, check_picture, read_setting, sample, show


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llada import Trace

# what a trace takes is little beside a forward pass
_TRACED = {"output_trace": True, "trace_top_k": 5}
HELP = """\
/new               forget the conversation
/system TEXT       what the model is told before it, nothing without TEXT
/steps N           number of denoising steps of an answer
/set NAME=VALUE    any other setting, see DiffusionGenerationConfig; all that are set without NAME
/infill TEXT       the text with its gaps filled, ___ for one token, ___4 for four; no part of the conversation
/trace FILE        how the last answer came about: .html to step through, .svg to watch, .png or .json
/save FILE         add the conversation to a .jsonl file, which `llada sft` trains on
/load FILE         go on with the last conversation in such a file
/help              this list
/exit              end, as Ctrl-D does
Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer.
A text that begins with a slash is sent with a space before it."""


class Conversation:
    """
    The turns so far, and the settings of the next one.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, with a chat template.
        settings (`dict[str, Any]`): Keyword arguments for `generate`.
        args (`argparse.Namespace`): The arguments of the command.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        settings: dict[str, Any],
        args: argparse.Namespace,
    ):
        self.model, self.tokenizer, self.settings, self.args = model, tokenizer, settings, args
        self.system = ""
        self.turns: list[dict[str, str]] = []
        self.trace: Trace | None = None
        self.commands = {
            "/exit": None,
            "/help": self._help,
            "/infill": self._infill,
            "/load": self._load,
            "/new": self._new,
            "/save": self._save,
            "/set": self._set,
            "/steps": self._steps,
            "/system": self._system,
            "/trace": self._trace,
        }

    @property
    def messages(self) -> list[dict[str, str]]:
        """All of it, as a chat template takes it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def ask(self, question: str) -> None:
        """Shows the answer to a question. Both are kept once the answer is there."""
        asked = {"role": "user", "content": question}
        inputs = chat_inputs(self.tokenizer, [*self.messages, asked])
        output = sample(self.model.generate, inputs, self.tokenizer, self.settings | _TRACED, self.args)
        self.trace = next(iter(output.trace or ()), None)
        answer, *_ = show(output.sequences[:, inputs["input_ids"].shape[1] :], self.tokenizer, self.settings)
        self.turns += [asked, {"role": "assistant", "content": answer}]

    def obey(self, line: str) -> bool:
        """
        Runs a command such as `/steps 8`.

        Returns:
            `bool`: Whether the conversation goes on.

        Raises:
            ValueError: If there is no such command, or what follows it makes no sense.
        """
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise ValueError(
                f"There is no command {name.splitlines()[0]}; /help lists them. To send a text that begins with a "
                "slash, put a space before it."
            )
        command = self.commands[name]
        if command is None:
            return False
        command(rest.strip())
        return True

    def _help(self, _: str) -> None:
        print(HELP)

    def _new(self, _: str) -> None:
        self.turns = []

    def _system(self, text: str) -> None:
        self.system = text

    def _steps(self, number: str) -> None:
        self._set(f"steps={number}")

    def _set(self, item: str) -> None:
        from llada.generation.configuration_diffusion import DiffusionGenerationConfig, refuse_unknown

        if not item:
            given = {name: value for name, value in self.settings.items() if name != "streamer"}
            if "generation_config" in given:
                given = {"preset": self.args.preset, **given}
                del given["generation_config"]
            print(" ".join(f"{name}={json.dumps(value)}" for name, value in given.items()) or "Nothing is set.")
            return
        name, value = read_setting(item)
        refuse_unknown({name: value})
        # one field alone: what it may not stand beside is seen when it is used
        DiffusionGenerationConfig(**{name: value}).validate()
        self.settings[name] = value

    def _infill(self, text: str) -> None:
        inputs = self.tokenizer(mask_gaps(text, self.model, self.tokenizer), return_tensors="pt")
        settings = {name: value for name, value in self.settings.items() if name != "max_new_tokens"} | _TRACED
        # the text before the first gap belongs to what is shown
        settings.pop("streamer", None)
        output = sample(self.model.infill, inputs, self.tokenizer, settings, self.args)
        self.trace = next(iter(output.trace or ()), None)
        show(output.sequences, self.tokenizer, settings)

    def _trace(self, file: str) -> None:
        from llada import Replay

        if not file:
            raise ValueError("Where to? Write /trace FILE, with a name that ends in .html, .svg, .png or .json.")
        if self.trace is None:
            raise ValueError("There is no answer yet.")
        path = Path(file).expanduser()
        check_picture(path)
        Replay(self.trace, self.tokenizer).save(path)
        print(f"Written to {shlex.quote(str(path))}.")

    def _load(self, file: str) -> None:
        if not file:
            raise ValueError("From where? Write /load FILE.")
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        try:
            messages = json.loads(lines[-1])["messages"]
            turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages]
        except (IndexError, KeyError, TypeError, json.JSONDecodeError):
            raise ValueError(
                f"{file} holds no conversation in its last line; /save FILE writes such a file."
            ) from None
        self.system = "".join(turn["content"] for turn in turns if turn["role"] == "system")
        self.turns = [turn for turn in turns if turn["role"] != "system"]
        print(f"{len(self.turns)} turns.")

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("Where to? Write /save FILE.")
        if not self.turns:
            raise ValueError("There is nothing to save yet.")
        path = Path(file).expanduser()
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        print(f"Added to {shlex.quote(str(path))}.")


__all__ = ["HELP", "Conversation"]
