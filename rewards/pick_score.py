"""PickScore: which of two pictures of a prompt would people pick? (Kirstain et al., arXiv 2305.01569).

A ViT-H/14 CLIP trained further on the choices of an application's users, in transformers' CLIPModel layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unigrpo.rewards.vision.captions import captions_of
from unigrpo.rewards.vision.clip_body import PromptAlignment, shared_body
from unigrpo.rewards.vision.open_clip_towers import LOCAL_PREFIX
from unigrpo.rewards.vision.published_weights import HUB_PREFIX, WeightsError, open_published, require_reachable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"


class PickScore(PromptAlignment):
    """The model's own scale (about 100) times the cosine of picture and prompt, 0 where it is negative.

    Range: 0 to ``scale``; pictures of today's generators have 17 to 24 on the model's own scale. Peers differ: the
        card's 100 times the cosine, a 26th of that, or the cosine alone, so weights do not carry over.
    Needs: generated pictures with prompts; no column.
    Source: Kirstain et al., arXiv 2305.01569; weights yuvalkirstain/PickScore_v1, processor of laion's ViT-H/14.
    Cost: ViT-H/14 has 0.99 billion weights, 4 GB in single precision; one pass a picture.
    Hacked by: contrast and detail beyond what was asked, and pictures that grow alike. Hold one scorer out and log the
        diversity within groups.
    Recipe:
        pick_score: {use: "unigrpo.rewards.pick_score:PickScore", arguments: {device: cuda}, tasks: [imagine]}
    """

    name = "pick_score"
    is_deterministic = True

    def __init__(
        self,
        model: str = "hf-hub:yuvalkirstain/PickScore_v1",
        *,
        processor: str | None = None,
        scale: float | None = None,
        device: str = "cpu",
    ) -> None:
        """Load the model.

        Args:
            model: ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER`` with config.json and model.safetensors; with
                ``@SHA256`` behind it, the weights must have that hash.
            processor: the same, with the tokenizer and preprocessor_config.json; None is laion's ViT-H/14 for a model
                of the hub, and the model's own folder for a local one.
            scale: the value of a cosine of 1; None is the model's own.
            device: cpu, cuda or cuda:N.

        Raises:
            ValueError: for a scale that is not above 0, or weights that are not what they should be.
            FileNotFoundError: if the weights are neither here nor to be had.
        """
        if scale is not None and not scale > 0:
            raise ValueError(f"scale {scale}; give the value of a cosine of 1, above 0, or none for the model's own")
        name, _, sha256 = model.partition("@")
        if processor is None:
            is_local = name.startswith(LOCAL_PREFIX)
            processor = name if is_local else f"{HUB_PREFIX}laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        source = _checked(name, sha256)
        self._body = shared_body(
            ("transformers", name, processor), device, lambda: _TransformersTowers(source, processor, device)
        )
        self._scale = self._body.towers.logit_scale if scale is None else scale
        self.range = (0.0, self._scale)


class _TransformersTowers:
    """A CLIPModel of transformers 5 with its tokenizer and Pillow preprocessing, in single precision."""

    def __init__(self, source: str, processor: str, device: str) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        origin = _source(processor, "preprocessor_config.json")
        outcome: Any = CLIPModel.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        loaded, report = outcome
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if wrong:
            raise WeightsError(f"{source} lacks {len(wrong)} tensors of a CLIPModel, such as {wrong[0]}")
        self._model = loaded.to(device).eval().requires_grad_(False)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(origin)
        self._processor: Any = CLIPImageProcessorPil.from_pretrained(origin)
        self.context_length = int(loaded.config.text_config.max_position_embeddings)
        self.logit_scale = float(loaded.logit_scale.exp())
        self._captions = captions_of(self._tokenizer, self.context_length)

    def num_tokens(self, text: str) -> int:
        """Return how many tokens a text has, uncut, start and end included."""
        return len(self._tokenizer(self._captions.plain(text), verbose=False).input_ids)

    def text_input(self, text: str) -> Tensor:
        """Return [L] int64, cut and padded to the context; what follows the end token does not reach it."""
        tokens: Tensor = self._tokenizer(
            self._captions.plain(text),
            truncation=True,
            max_length=self.context_length,
            padding="max_length",
            return_tensors="pt",
        ).input_ids[0]
        return tokens

    def picture_input(self, picture: Image.Image) -> Tensor:
        """Return [3, H, W] float32 of an RGB picture."""
        pixels: Tensor = self._processor(images=picture, return_tensors="pt").pixel_values[0]
        return pixels

    def embed_texts(self, batch: Tensor) -> Tensor:
        """Return [N, D] of [N, L]."""
        vectors: Tensor = self._model.get_text_features(batch).pooler_output
        return vectors

    def embed_pictures(self, batch: Tensor) -> Tensor:
        """Return [N, D] of [N, 3, H, W]."""
        vectors: Tensor = self._model.get_image_features(batch).pooler_output
        return vectors


def _checked(name: str, sha256: str) -> str:
    """Return what transformers calls a model, once its weights are here and have the wanted hash."""
    source = _source(name, "config.json")
    file = f"{name}/{WEIGHTS_FILE}" if name.startswith(HUB_PREFIX) else str(Path(source) / WEIGHTS_FILE)
    open_published(f"{file}@{sha256}" if sha256 else file)
    return source


def _source(name: str, file: str) -> str:
    """Return the folder or repository that a name means, which holds ``file`` or can be had."""
    if name.startswith(LOCAL_PREFIX):
        folder = Path(name.removeprefix(LOCAL_PREFIX))
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} is no folder of a CLIPModel: it holds no {file}")
        return str(folder)
    if not name.startswith(HUB_PREFIX):
        raise ValueError(f"{name!r} is not known; give {HUB_PREFIX}OWNER/NAME or {LOCAL_PREFIX}FOLDER")
    require_reachable(name, name.removeprefix(HUB_PREFIX), [file])
    return name.removeprefix(HUB_PREFIX)
