"""A policy with its adapters, and one completion of one canvas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.export import adapter_folder
from unigrpo.models import load_policy
from unigrpo.rollouts import sample

if TYPE_CHECKING:
    from PIL.Image import Image

    from unigrpo.settings import SamplingSettings
    from unigrpo.types import Canvas


def load_with_adapters(model: str, adapters: Sequence[Path], **settings: Any) -> Any:
    """Return a policy with adapters merged into it, in order.

    Args:
        model: folder, hub id or asset.
        adapters: PEFT folders, or run directories (their last checkpoint's).
        settings: keywords of `load_policy`.

    Raises:
        FileNotFoundError: no such checkpoint, adapter or run.
        ValueError: files that do not fit.
    """
    from unigrpo.models.adapter import merge_adapter

    policy = load_policy(model, **settings)
    for adapter in adapters:
        merge_adapter(policy, adapter_folder(adapter))
    return policy


def complete(policy: Any, canvas: Canvas, sampling: SamplingSettings, seed: int) -> str | Image:
    """Fill a canvas; return the picture of its open image span, or the text of its open text spans.

    Args:
        policy: any policy.
        canvas: with at least one open span.
        sampling: how to fill it; lengths and steps are the canvas's own.
        seed: of the row.
    """
    out = sample(policy, [canvas], sampling, [seed])
    token_ids = out.token_ids[0].cpu().numpy()
    texts: list[str] = []
    for span in canvas.open_spans:
        if span.kind == "image_codes":
            return policy.decode_image(token_ids[span.start : span.stop], span)
        texts.append(policy.decode_text(token_ids[span.start : span.stop]))
    return "".join(texts)
