"""The region of a picture that is filled in, as given on the command line."""

from __future__ import annotations

from unigrpo.errors import UserError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the picture."""


def parse_box(text: str) -> Box:
    """Return left, top, right, bottom as fractions of the picture.

    Raises:
        UserError: if they are not four numbers in order between 0 and 1.
    """
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--box {text!r}: wanted LEFT,TOP,RIGHT,BOTTOM, such as 0.25,0.25,0.75,0.75") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(f"--box {text!r}: wanted fractions with 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    return left, top, right, bottom
