"""ImageReward: what people said they prefer, of the pictures made for a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unigrpo.files import sha256_of
from unigrpo.rewards.text.answers import completion_text
from unigrpo.rewards.vision.blip import MAX_TOKENS, NUM_TEXT_HEADS, NUM_VISION_HEADS, load_blip, pixels_of, tokenizer_of
from unigrpo.rewards.vision.captions import captions_of
from unigrpo.rewards.vision.pictures import picture_values
from unigrpo.rewards.vision.published_weights import open_published, require_reachable

if TYPE_CHECKING:
    from PIL import Image

BATCH_SIZE = 32
"""Pictures that go through the model together on a GPU; on a CPU each goes alone, so that no neighbour moves a bit."""

_VOCABULARY_FILE = "vocab.txt"


class ImageReward:
    """A picture's score under ImageReward (Xu et al., arXiv 2304.05977), for its prompt; float32 throughout.

    Range: (low, high), (-3, 3) unless set. The score itself has no bounds; it is normalised to mean 0 and deviation 1
        over the pictures it was trained on, where real ones lie in about -2.3 to 2.1, and is clipped here.
    Needs: generated pictures (task imagine; a text gets None); by default the hub's checkpoint and BERT's vocabulary.
    Source: ``ImageReward.pt`` of THUDM/ImageReward, 447 M parameters, on transformers' BLIP classes; Apache-2.0.
    Cost: 1.8 GB of memory; about 125 GFLOP of multiplications and additions a picture, most in the picture encoder.
    Hacked by: the look of its time's best pictures (contrast, detail, centred faces) whatever the prompt, and the loss
        of diversity within a group; it reads 35 tokens, so the end of a longer prompt is free.
    Recipe:
        image_reward: {use: "unigrpo.rewards.image_reward:ImageReward", tasks: [imagine], weight: 0.1, timeout_s: 120}
    """

    wanted_columns = ()
    is_deterministic = True

    def __init__(
        self,
        checkpoint: str = "image_reward",
        vocabulary: str = "google-bert/bert-base-uncased",
        *,
        low: float = -3.0,
        high: float = 3.0,
        device: str = "cpu",
        num_vision_heads: int = NUM_VISION_HEADS,
        num_text_heads: int = NUM_TEXT_HEADS,
    ) -> None:
        """Load the model.

        Args:
            checkpoint: the released file by its name among the published weights, or a file with such tensors.
            vocabulary: BERT's ``vocab.txt``: a file, its folder, or a repository of the hub.
            low: what every lower score becomes.
            high: what every higher score becomes.
            device: cpu, cuda or cuda:N.
            num_vision_heads: of the picture encoder; the released model's unless the checkpoint is smaller.
            num_text_heads: of the text encoder, likewise.

        Raises:
            ValueError: for an empty range, or a checkpoint or vocabulary that is not ImageReward's.
            FileNotFoundError: if either is neither here nor to be had.
        """
        from safetensors.torch import load_file

        if not low < high:
            raise ValueError(f"low {low} and high {high} leave no range; give low below high")
        self.range = (float(low), float(high))
        self._device = device
        file = open_published(checkpoint)
        self.fingerprint = sha256_of(file)
        blip = load_blip(load_file(file), num_vision_heads=num_vision_heads, num_text_heads=num_text_heads)
        blip.modules.to(device)
        self._blip = blip
        self._tokenizer = _tokenizer(vocabulary, blip.vocabulary)
        self._captions = captions_of(self._tokenizer, MAX_TOKENS)

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        """Return one value a completion; None for a text, ``low`` for a picture that cannot be read."""
        texts = [completion_text(prompt) for prompt in prompts]
        low, high = self.range

        def score(pictures: dict[int, Image.Image]) -> list[float]:
            captions = [self._captions.plain(str(texts[row])) for row in pictures]
            scores = self._scores(captions, list(pictures.values()))
            if log_metric is not None:
                log_metric("image_reward/clipped_fraction", float(np.mean((scores < low) | (scores > high))))
                lengths = [len(ids) for ids in self._tokenizer(captions).input_ids]
                log_metric("image_reward/truncated_fraction", float(np.mean(np.array(lengths) > MAX_TOKENS)))
            return [min(high, max(low, score)) for score in scores.tolist()]

        asked = [text is not None for text in texts]
        return picture_values(completions, score, refused=low, asked=asked, log_metric=log_metric)

    def _scores(self, texts: list[str], pictures: list[Image.Image]) -> np.ndarray:
        """Return [N] float64 scores without bounds."""
        import torch

        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        found = []
        size = 1 if torch.device(self._device).type == "cpu" else BATCH_SIZE
        for start in range(0, len(texts), size):
            # Filled up with its first item: the shape of a batch would show in the last bits of its scores.
            rows = list(range(start, min(start + size, len(texts))))
            rows += rows[:1] * (size - len(rows))
            pixels = np.stack([pixels_of(pictures[row], self._blip.image_size) for row in rows])
            batch = (torch.from_numpy(pixels), tokens.input_ids[rows], tokens.attention_mask[rows])
            found.append(self._blip.scores(*(tensor.to(self._device) for tensor in batch)).double().cpu())
        return np.asarray(torch.cat(found).numpy()[: len(texts)])


def _tokenizer(vocabulary: str, num_rows: int) -> Any:
    path = _vocabulary_file(vocabulary)
    tokenizer = tokenizer_of(path.read_text(encoding="utf-8"))
    if len(tokenizer) != num_rows:
        raise ValueError(
            f"{path} and BLIP's two tokens make {len(tokenizer)}, the checkpoint embeds {num_rows}; "
            "give the vocabulary that the checkpoint was made with (bert-base-uncased)"
        )
    return tokenizer


def _vocabulary_file(vocabulary: str) -> Path:
    path = Path(vocabulary).expanduser()
    if path.is_dir():
        path = path / _VOCABULARY_FILE
    if path.is_file():
        return path
    if path.is_absolute() or vocabulary.count("/") != 1 or path.suffix:
        raise FileNotFoundError(f"no vocabulary {path}; give vocab.txt of bert-base-uncased, or its folder")
    from huggingface_hub import hf_hub_download

    require_reachable(f"the vocabulary {vocabulary}", vocabulary, [_VOCABULARY_FILE])
    return Path(hf_hub_download(vocabulary, _VOCABULARY_FILE))
