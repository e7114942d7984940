"""Canvases from pieces of token ids: the spans, the open text at the end, the twin without the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unigrpo.types import Canvas, Span, SpanKind

if TYPE_CHECKING:
    from unigrpo.models.base import Vocabulary
    from unigrpo.settings.tasks import SamplingSettings

Piece = tuple[Sequence[int], SpanKind | None]
"""Token ids and the kind of their span; None is prompt text."""


def given_spans(pieces: Sequence[Piece]) -> tuple[list[int], list[Span]]:
    """Return the ids of the pieces one after another, and a span for each that is not empty."""
    ids: list[int] = []
    spans: list[Span] = []
    for piece, kind in pieces:
        if len(piece):
            spans.append(Span(kind=kind or "prompt", start=len(ids), stop=len(ids) + len(piece)))
            ids.extend(piece)
    return ids, spans


def open_span(
    kind: SpanKind, start: int, length: int, sampling: SamplingSettings, vocabulary_range: tuple[int, int] | None
) -> Span:
    """Return the span that the sampler fills, with the task's settings."""
    return Span(
        kind=kind,
        start=start,
        stop=start + length,
        is_open=True,
        vocabulary_range=vocabulary_range,
        num_denoising_steps=sampling.num_denoising_steps,
        block_length=sampling.block_length,
        schedule=sampling.schedule,
    )


def text_canvas(
    pieces: Sequence[Piece],
    sampling: SamplingSettings,
    vocabulary: Vocabulary,
    template_ids: Sequence[int] | None = None,
) -> Canvas:
    """Return given pieces followed by one open text span.

    The twin for guidance has the mask token at every given position, as the reference's text samplers do; it exists
    only when guidance is asked for.
    ``template_ids`` are the text's own, with the mask token at the gaps; None is all gaps, completion_length of them.
    """
    mask = vocabulary.mask_token_id
    given, spans = given_spans(pieces)
    filling = [mask] * sampling.completion_length if template_ids is None else list(template_ids)
    text_range = vocabulary.text_range if sampling.restrict_vocabulary else None
    token_ids = np.array(given + filling, dtype=np.int64)
    return Canvas(
        token_ids=token_ids,
        spans=(*spans, open_span("text", len(given), len(filling), sampling, text_range)),
        unconditional_ids=np.full_like(token_ids, mask) if sampling.guidance_scale > 0 else None,
    )
