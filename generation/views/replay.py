"""Pictures of a trace."""

import os
from pathlib import Path

from .animation import animated_svg
from .heat_map import heat_map, heat_map_image
from .replay_page import replay_page
from .story import Story


FORMATS = (".html", ".svg", ".png", ".pdf", ".json")


class Replay(Story):
    """
    The pictures of a [`~llada.Trace`].

    Args:
        trace ([`~llada.Trace`]):
            What happened.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Turns tokens into text. Without one, they are shown as numbers.

    Example:

    ```python
    >>> output = model.generate(**inputs, output_trace=True, trace_top_k=5)
    >>> replay = Replay(output.trace[0], tokenizer)
    >>> replay.save("denoising.html")  # a page to step through; .svg is an animation, .png and .pdf a heat map
    ```

    In a notebook, an expression with a replay shows the heat map.
    """

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes a picture.

        Args:
            path (`str` or `os.PathLike`):
                The file. `.html` is a page on which the steps can be played, `.svg` an animation, `.png` and `.pdf` a
                heat map (which needs matplotlib), `.json` the trace itself, which [`~llada.Trace.load`] reads.

        Raises:
            ValueError: If the name ends otherwise.
        """
        path = Path(path)
        kind = check_format(path)
        if kind == ".html":
            path.write_text(replay_page(self), encoding="utf-8")
        elif kind == ".svg":
            path.write_text(animated_svg(self), encoding="utf-8")
        elif kind in (".png", ".pdf"):
            heat_map(self).savefig(path, bbox_inches="tight", dpi=150)
        else:
            self.trace.save(path)

    def _repr_html_(self) -> str:
        return heat_map_image(self)


def check_format(path: Path) -> str:
    """
    The format that the name of a file asks for.

    Args:
        path (`Path`):
            The file.

    Returns:
        `str`: The end of the name, in small letters.

    Raises:
        ValueError: If it is none that a replay is saved as.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(
            f"A replay is saved as {', '.join(FORMATS)}, and {path.name!r} is none of them; write "
            f"{path.stem or 'replay'}.html."
        )
    return kind


__all__ = ["FORMATS", "Replay", "check_format"]
