"""The colours of steps, light early and dark late, as in the figures of the paper (arXiv 2502.09992)."""

# from light to dark blue
_EARLY, _LATE = (222, 235, 247), (8, 48, 107)


def order_colour(share: float) -> str:
    """
    The colour of a step.

    Args:
        share (`float`):
            Which step it is: 0 is the first, 1 the last.

    Returns:
        `str`: The colour as HTML writes it.
    """
    red, green, blue = (round(early + share * (late - early)) for early, late in zip(_EARLY, _LATE, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour (contrast by WCAG 2.2)."""
    luminance = _luminance(colour)
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


__all__ = ["ink_on", "order_colour"]
