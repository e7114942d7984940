"""Policies in the released checkpoints' layouts. Importing this package imports no torch; calling it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unigrpo.models.loading import load_policy
    from unigrpo.models.pictures.magvit import load_image_tokenizer

__all__ = ["load_image_tokenizer", "load_policy"]


def __getattr__(name: str) -> Any:
    """Import a loader when it is first asked for."""
    if name == "load_policy":
        from unigrpo.models.loading import load_policy

        return load_policy
    if name == "load_image_tokenizer":
        from unigrpo.models.pictures.magvit import load_image_tokenizer

        return load_image_tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
