"""CLIP alignment: the cosine of a picture and a text under an open_clip model.

A generated picture is compared with its prompt; a generated text, without its reasoning, with the prompt's pictures
(MMaDA, arXiv 2505.15809, section 5.2: text-to-image and captioning). The paper's numbers are 100 times the cosine.
"""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unigrpo.assets import PREFIX, asset_folder
from unigrpo.rewards.answers import after_thinking, completion_text, cut_at_eos
from unigrpo.rewards.pictures import as_rgb, is_picture

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

BATCH_SIZE = 64
"""Pictures, or texts, that go through the model together."""

HUB_TIMEOUT_S = 10.0
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


class ClipAlignment:
    """``scale`` times the cosine of picture and text, 0 where it is negative."""

    def __init__(self, model: str, pretrained: str | None = None, *, scale: float = 1.0, device: str = "cpu") -> None:
        """Load the model.

        Args:
            model: ``asset:tiny_clip``, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME`` in open_clip's layout, or one of
                open_clip's own names, such as ``ViT-L-14``.
            pretrained: with one of open_clip's names, its tag (``openai``) or a file of weights. Tags trained with
                QuickGELU get it under either name; for a file of OpenAI's the name must end in ``-quickgelu``.
            scale: the largest value; 100 is how papers report it.
            device: cpu, cuda or cuda:N.

        Raises:
            ValueError: for a model, tag or scale that does not exist.
            FileNotFoundError: if the weights are neither here nor to be had.
        """
        if not scale > 0:
            raise ValueError(f"scale {scale}; give the value of a cosine of 1, above 0")
        self.range = (0.0, scale)
        self._scale = scale
        self._device = device
        self._model, self._tokenizer, self._preprocess = _load(model, pretrained, device)
        self.num_truncated = 0
        """Texts, of all calls, that were longer than the model reads."""

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        images: Sequence[Sequence[Image.Image] | None] | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one value a completion; None for a text whose prompt has no picture. An empty text gets 0.

        Args:
            prompts: captions, for pictures.
            completions: PIL images, or texts.
            images: of each prompt, its pictures; with several, the mean over them counts.
            log_metric: called with the fraction of texts that had to be cut.
            columns: not read.
        """
        pairs = [
            _pair(prompt, completion, shown)
            for prompt, completion, shown in zip(prompts, completions, images or [None] * len(prompts), strict=True)
        ]
        texts = list(dict.fromkeys(text for text, pictures in pairs if text and pictures))
        pictures = {id(picture): picture for text, shown in pairs if text for picture in shown}
        if not texts:
            return [_empty(text, shown) for text, shown in pairs]
        self._count_truncated(texts, log_metric)
        text_vectors = dict(zip(texts, self._encode_texts(texts), strict=True))
        picture_vectors = dict(zip(pictures, self._encode_pictures(list(pictures.values())), strict=True))
        values: list[float | None] = []
        for text, shown in pairs:
            if text and shown:
                cosines = [float(text_vectors[text] @ picture_vectors[id(picture)]) for picture in shown]
                values.append(self._scale * min(1.0, max(0.0, sum(cosines) / len(cosines))))
            else:
                values.append(_empty(text, shown))
        return values

    def _count_truncated(self, texts: list[str], log_metric: Any) -> None:
        length = self._tokenizer.context_length
        num_long = sum(_num_tokens(self._tokenizer, text) > length for text in texts)
        if num_long and not self.num_truncated:
            log.warning(
                "%d of %d texts exceed the %d tokens CLIP reads; their ends are not judged",
                num_long,
                len(texts),
                length,
            )
        self.num_truncated += num_long
        if log_metric is not None:
            log_metric("clip_alignment/truncated_fraction", num_long / len(texts))

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        """Return [N, D] float64 unit vectors."""
        return self._encode(self._model.encode_text, [self._tokenizer([text])[0] for text in texts])

    def _encode_pictures(self, pictures: list[Image.Image]) -> np.ndarray:
        """Return [N, D] float64 unit vectors."""
        return self._encode(self._model.encode_image, [self._preprocess(as_rgb(picture)) for picture in pictures])

    def _encode(self, encode: Any, inputs: list[Any]) -> np.ndarray:
        import torch

        vectors = []
        with torch.no_grad():
            for start in range(0, len(inputs), BATCH_SIZE):
                batch = torch.stack(inputs[start : start + BATCH_SIZE]).to(self._device)
                vectors.append(encode(batch).double().cpu().numpy())
        stacked = np.concatenate(vectors)
        return stacked / np.linalg.norm(stacked, axis=-1, keepdims=True)


def _pair(
    prompt: Any, completion: Any, shown: Sequence[Image.Image] | None
) -> tuple[str | None, tuple[Image.Image, ...]]:
    """Return the text and the pictures to compare; the text is None where the reward does not apply."""
    if is_picture(completion):
        text = completion_text(prompt)
        return (None if text is None else text.strip()), (completion,)
    text = completion_text(completion)
    if text is None or not shown:
        return None, ()
    return after_thinking(cut_at_eos(text)).strip(), tuple(shown)


def _empty(text: str | None, shown: tuple[Image.Image, ...]) -> float | None:
    return 0.0 if text is not None and shown else None


def _num_tokens(tokenizer: Any, text: str) -> int:
    """Return how many tokens a text has, uncut, start and end included."""
    clean = tokenizer.clean_fn(text)
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(text)) + 2
    return len(tokenizer.tokenizer(clean).input_ids)


def _load(model: str, pretrained: str | None, device: str) -> tuple[Any, Any, Any]:
    """Return the model, its tokenizer and its preprocessing."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name, weights, is_quick = _resolve(model, pretrained)
    try:
        loaded = open_clip.create_model(
            name, weights, device=device, force_quick_gelu=is_quick, require_pretrained=True
        ).eval()
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"CLIP {model!r} with pretrained={pretrained!r} did not load ({error}); without network, give "
            "local-dir:FOLDER with open_clip_config.json and open_clip_model.safetensors"
        ) from error
    loaded.requires_grad_(False)
    preprocess = image_transform_v2(PreprocessCfg(**loaded.visual.preprocess_cfg), is_train=False)
    return loaded, open_clip.get_tokenizer(name), preprocess


def _resolve(model: str, pretrained: str | None) -> tuple[str, str | None, bool]:
    """Return what open_clip is asked for: name, weights, and whether the weights were trained with QuickGELU."""
    if model.startswith(PREFIX):
        return _local(asset_folder(model)), None, False
    if model.startswith("local-dir:"):
        return _local(Path(model.removeprefix("local-dir:"))), None, False
    if model.startswith("hf-hub:"):
        _fetch(model, model.removeprefix("hf-hub:"), ["open_clip_config.json"])
        return model, None, False
    return _named(model, pretrained)


def _local(folder: Path) -> str:
    missing = [] if (folder / "open_clip_config.json").is_file() else ["open_clip_config.json"]
    missing += [] if any(folder.glob("*.safetensors")) else ["open_clip_model.safetensors"]
    if missing:
        raise FileNotFoundError(f"{folder} is no open_clip folder: it holds no {' and no '.join(missing)}")
    return f"local-dir:{folder}"


def _named(model: str, pretrained: str | None) -> tuple[str, str | None, bool]:
    import open_clip

    if open_clip.get_model_config(model) is None:
        raise ValueError(
            f"CLIP model {model!r} is none of open_clip's names, such as ViT-L-14; or give asset:tiny_clip, "
            "local-dir:FOLDER or hf-hub:OWNER/NAME"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is not None and Path(pretrained).is_file():
        return model, pretrained, False
    entry = open_clip.get_pretrained_cfg(model, pretrained) if pretrained is not None else None
    if not entry:
        raise ValueError(
            f"pretrained={pretrained!r} for CLIP {model}; give a file of weights or one of {', '.join(tags)}"
        )
    is_quick = bool(entry.get("quick_gelu", False))
    repository, file = entry.get("hf_hub", "").rsplit("/", 1) if entry.get("hf_hub") else ("", "")
    if repository:
        _fetch(f"{model} {pretrained}", repository, [file] if file else list(HUB_FILES))
    return model, pretrained, is_quick


def _fetch(name: str, repository: str, files: list[str]) -> None:
    """Fail within seconds where neither the cache nor the hub has a repository; open_clip itself keeps trying."""
    from huggingface_hub import constants, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        if constants.is_offline_mode():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        with urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # the hub answers; whether it has the repository, open_clip finds out at once
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of CLIP {name} are not in the cache and {constants.ENDPOINT} did not answer ({error}); "
            "download them where there is network, or give local-dir:FOLDER"
        ) from error
