"""CLIP alignment: the cosine of a picture and a text under an open_clip model.

A generated picture is compared with its prompt; a generated text, without its reasoning, with the prompt's pictures
(MMaDA, arXiv 2505.15809, section 5.2: text-to-image and captioning). The paper's numbers are 100 times the cosine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from unigrpo.rewards.base import Column, Failed
from unigrpo.rewards.text.answers import after_thinking, completion_text, cut_at_eos
from unigrpo.rewards.vision.open_clip_towers import open_clip_body
from unigrpo.rewards.vision.pictures import is_picture, read_pictures

_LOGGER = logging.getLogger(__name__)


class ClipAlignment:
    """``scale`` times the cosine of picture and text, 0 where it is negative.

    Range: 0 to ``scale``; good pairs have cosines of 0.15 to 0.35 under OpenAI's ViT-L/14.
    Needs: pictures with prompts (text to image), or texts whose prompts have ``images`` (captions).
    Source: Radford et al., arXiv 2103.00020; as a reward in MMaDA, arXiv 2505.15809, section 5.2.
    Cost: ViT-L/14 has 0.43 billion weights; one pass a picture, which ``aesthetics`` of the same worker shares.
    Hacked by: the prompt's words painted into the picture; captions that list everything. Pair it with a human
        preference reward, and hold one scorer out.
    Recipe:
        clip_alignment: {use: "unigrpo.rewards.clip_alignment:ClipAlignment",
            arguments: {model: ViT-L-14-quickgelu, pretrained: openai}, tasks: [imagine]}
    """

    wanted_columns = ("images",)
    is_deterministic = True

    def __init__(self, model: str, pretrained: str | None = None, *, scale: float = 1.0, device: str = "cpu") -> None:
        """Load the model, or take the one that another reward of this process holds.

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
        self._body = open_clip_body(model, pretrained, device)
        self.num_truncated = 0
        """Texts, of all calls, that were longer than the model reads."""

    def __call__(
        self, *, prompts: Column, completions: Column, images: Column | None = None, log_metric: Any = None, **_: Any
    ) -> list[float | Failed | None]:
        """Return one value a completion; None for a text whose prompt has no picture.

        An empty text and a generated picture that cannot be read get 0; a text whose prompt's pictures cannot be read
        is ``Failed``. Where a prompt has several pictures, the mean over them counts.
        """
        rows = zip(prompts, completions, images or [None] * len(prompts), strict=True)
        items = [_item(*row) for row in rows]
        pairs = [(row, text, picture) for row, (text, several) in enumerate(items) if text for picture in several]
        pictures = read_pictures([picture for _, _, picture in pairs], log_metric)
        texts = [text for _, text, _ in pairs]
        self._count_truncated(texts, log_metric)
        found: dict[int, list[float | None]] = {}
        for pair, cosine in zip(pairs, self._body.cosines(texts, pictures), strict=True):
            found.setdefault(pair[0], []).append(cosine)
        return [
            self._value(*item, found.get(row, []), is_answer=is_picture(completions[row]))
            for row, item in enumerate(items)
        ]

    def _value(
        self, text: str | None, pictures: tuple[Any, ...], found: list[float | None], *, is_answer: bool
    ) -> float | Failed | None:
        """Return one value; ``is_answer`` says that the picture is the policy's, not the prompt's."""
        if text is None or not pictures:
            return None
        cosines = [cosine for cosine in found if cosine is not None]
        if cosines:
            return self._scale * max(0.0, sum(cosines) / len(cosines))
        return 0.0 if not text or is_answer else Failed("the prompt's pictures cannot be read")

    def _count_truncated(self, texts: list[str], log_metric: Any) -> None:
        num_texts, num_long = len(set(texts)), len(self._body.truncated(texts))
        if num_long and not self.num_truncated:
            _LOGGER.warning(
                "%d of %d texts exceed the %d tokens CLIP reads; their ends are not judged",
                num_long,
                num_texts,
                self._body.towers.context_length,
            )
        self.num_truncated += num_long
        if log_metric is not None and texts:
            log_metric("clip_alignment/truncated_fraction", num_long / num_texts)


def _item(prompt: Any, completion: Any, shown: Sequence[Any] | None) -> tuple[str | None, tuple[Any, ...]]:
    """Return the text and the pictures to compare; the text is None where the reward does not apply."""
    if is_picture(completion):
        text = completion_text(prompt)
        return (None if text is None else text.strip()), (completion,)
    text = completion_text(completion)
    if text is None or not shown:
        return None, ()
    return after_thinking(cut_at_eos(text)).strip(), tuple(shown)
