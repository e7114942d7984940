"""PP-OCR through the rapidocr package: its models are in the package, so nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

INSTALL = "pip install 'unigrpo[ocr]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A piece of text with its place in the picture."""

    text: str
    left: float
    top: float
    bottom: float


class RapidOcrRecognizer:
    """Lines of a picture, from top to bottom and left to right."""

    def __init__(self, *, min_score: float = 0.5, num_threads: int = 1) -> None:
        """Load the models.

        Args:
            min_score: certainty below which a line is not text.
            num_threads: of the inference engine.

        Raises:
            ImportError: if rapidocr or onnxruntime is missing.
        """
        missing = [name for name in ("rapidocr", "onnxruntime") if find_spec(name) is None]
        if missing:
            raise ImportError(f"reading text in pictures needs {' and '.join(missing)}: {INSTALL}")
        from rapidocr import RapidOCR

        logging.getLogger("RapidOCR").setLevel(logging.ERROR)  # It tells of every picture without text.
        settings = {
            "Global.text_score": min_score,
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": num_threads,
        }
        self._engine: Any = RapidOCR(params=settings)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[str]]:
        """Return the lines of each picture."""
        return [self._lines(picture) for picture in pictures]

    def _lines(self, picture: Image.Image) -> list[str]:
        found = self._engine(np.ascontiguousarray(np.asarray(picture)[..., ::-1]))  # It wants blue first.
        if not found.txts:
            return []
        pieces = [
            _Piece(text=text, left=float(box[:, 0].min()), top=float(box[:, 1].min()), bottom=float(box[:, 1].max()))
            for text, box in zip(found.txts, np.asarray(found.boxes), strict=True)
        ]
        return in_reading_order(pieces)


def in_reading_order(pieces: Sequence[_Piece]) -> list[str]:
    """Return the lines: pieces whose middle lies within the height of a line's first piece belong to that line."""
    lines: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda one: (one.top, one.left)):
        middle = (piece.top + piece.bottom) / 2
        if lines and middle < lines[-1][0].bottom:
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [" ".join(piece.text for piece in sorted(line, key=lambda one: one.left)) for line in lines]
