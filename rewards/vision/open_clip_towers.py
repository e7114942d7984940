"""Open_clip models as towers: found without waiting for a network, with the GELU they were trained with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.assets import PREFIX, asset_folder
from unigrpo.rewards.vision.captions import captions_of
from unigrpo.rewards.vision.clip_body import ClipBody, shared_body
from unigrpo.rewards.vision.published_weights import HUB_PREFIX, PICKLED_SUFFIXES, open_published, require_reachable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

LOCAL_PREFIX = "local-dir:"
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def open_clip_body(model: str, pretrained: str | None, device: str) -> ClipBody:
    """Return this process's body of an open_clip model.

    Args:
        model: ``asset:tiny_clip``, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME`` in open_clip's layout, or one of
            open_clip's own names, such as ``ViT-L-14``.
        pretrained: with one of open_clip's names, its tag (``openai``) or a file of weights.
        device: cpu, cuda or cuda:N.

    Raises:
        ValueError: for a model or tag that does not exist.
        FileNotFoundError: if the weights are neither here nor to be had.
    """
    name, weights, is_quick = resolve(model, pretrained)
    key = ("open_clip", name.removesuffix("-quickgelu") if is_quick else name, weights, is_quick)
    return shared_body(key, device, lambda: OpenClipTowers(name, weights, device=device, is_quick=is_quick))


class OpenClipTowers:
    """A loaded open_clip model with its tokenizer and its own preprocessing."""

    def __init__(self, name: str, weights: str | None, *, device: str, is_quick: bool = False) -> None:
        """Load a model.

        Args:
            name: what open_clip calls it.
            weights: tag or file; None where ``name`` is a repository or folder.
            device: cpu, cuda or cuda:N.
            is_quick: whether the weights were trained with QuickGELU.
        """
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="QuickGELU mismatch")
                self.model = open_clip.create_model(
                    name, weights, device=device, force_quick_gelu=is_quick, require_pretrained=True
                ).eval()
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"CLIP {name!r} with pretrained={weights!r} did not load ({error}); without network, give "
                "local-dir:FOLDER with open_clip_config.json and open_clip_model.safetensors"
            ) from error
        self.model.requires_grad_(False)
        self._tokenizer: Any = open_clip.get_tokenizer(name)
        self._preprocess: Any = image_transform_v2(PreprocessCfg(**self.model.visual.preprocess_cfg), is_train=False)
        self.context_length = int(self._tokenizer.context_length)
        captions = captions_of(getattr(self._tokenizer, "tokenizer", self._tokenizer), self.context_length)
        clean = self._tokenizer.clean_fn  # Entities (`&lt;`) and case become what they stand for here.
        self._tokenizer.clean_fn = lambda text: captions.plain(clean(text))
        self.logit_scale = float(self.model.logit_scale.exp())

    def num_tokens(self, text: str) -> int:
        """Return how many tokens a text has, uncut, start and end included."""
        if hasattr(self._tokenizer, "encode"):
            return len(self._tokenizer.encode(text)) + 2
        return len(self._tokenizer.tokenizer(self._tokenizer.clean_fn(text)).input_ids)

    def text_input(self, text: str) -> Tensor:
        """Return [L] int64, cut to the context."""
        tokens: Tensor = self._tokenizer([text])[0]
        return tokens

    def picture_input(self, picture: Image.Image) -> Tensor:
        """Return [3, H, W] float32 of an RGB picture."""
        pixels: Tensor = self._preprocess(picture)
        return pixels

    def embed_texts(self, batch: Tensor) -> Tensor:
        """Return [N, D] of [N, L]."""
        vectors: Tensor = self.model.encode_text(batch)
        return vectors

    def embed_pictures(self, batch: Tensor) -> Tensor:
        """Return [N, D] of [N, 3, H, W]."""
        vectors: Tensor = self.model.encode_image(batch)
        return vectors


def resolve(model: str, pretrained: str | None) -> tuple[str, str | None, bool]:
    """Return what open_clip is asked for: name, weights, and whether the weights were trained with QuickGELU.

    Raises:
        ValueError: for a model or tag that does not exist.
        FileNotFoundError: if the weights are neither here nor to be had.
    """
    if model.startswith(PREFIX):
        return _local(asset_folder(model)), None, False
    if model.startswith(LOCAL_PREFIX):
        return _local(Path(model.removeprefix(LOCAL_PREFIX))), None, False
    if model.startswith(HUB_PREFIX):
        repository = model.removeprefix(HUB_PREFIX)
        require_reachable(f"CLIP {model}", repository, ["open_clip_config.json"])
        return model, None, False
    return _named(model, pretrained)


def _local(folder: Path) -> str:
    missing = [] if (folder / "open_clip_config.json").is_file() else ["open_clip_config.json"]
    missing += [] if any(folder.glob("*.safetensors")) else ["open_clip_model.safetensors"]
    if missing:
        raise FileNotFoundError(f"{folder} is no open_clip folder: it holds no {' and no '.join(missing)}")
    return f"{LOCAL_PREFIX}{folder}"


def _named(model: str, pretrained: str | None) -> tuple[str, str | None, bool]:
    import open_clip

    if open_clip.get_model_config(model) is None:
        raise ValueError(
            f"CLIP model {model!r} is none of open_clip's names, such as ViT-L-14; or give asset:tiny_clip, "
            "local-dir:FOLDER or hf-hub:OWNER/NAME"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is not None and Path(pretrained).is_file():
        is_pickled = Path(pretrained).suffix in PICKLED_SUFFIXES
        return model, str(open_published(pretrained)) if is_pickled else pretrained, False
    entry = open_clip.get_pretrained_cfg(model, pretrained) if pretrained is not None else None
    if not entry:
        raise ValueError(
            f"pretrained={pretrained!r} for CLIP {model}; give a file of weights or one of {', '.join(tags)}"
        )
    is_quick = bool(entry.get("quick_gelu", False))
    repository, file = entry.get("hf_hub", "").rsplit("/", 1) if entry.get("hf_hub") else ("", "")
    if repository:
        require_reachable(f"CLIP {model} {pretrained}", repository, [file] if file else list(HUB_FILES))
    return model, pretrained, is_quick
