"""Aesthetics: how much people would like a picture, whatever was asked for: LAION's improved predictor.

The predictor is five linear layers on OpenAI's ViT-L/14 vector of unit length, with nothing between them in the
published version, so they are one weight a number of the vector and a constant. The loader multiplies them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unigrpo.rewards.base import Column
from unigrpo.rewards.vision.open_clip_towers import open_clip_body
from unigrpo.rewards.vision.pictures import picture_values
from unigrpo.rewards.vision.published_weights import WeightsError, open_published

if TYPE_CHECKING:
    from torch import Tensor

_LAYERS = (0, 2, 4, 6, 7)
"""Numbers of the linear layers in the published file; the variant with ReLU between them has others."""


class Aesthetics:
    """LAION's aesthetic score: about 4 to 7 for real pictures, held between 0 and 10.

    The score itself lies between -12.8 and 23.2: it is linear in the vector. People rated from 1 to 10, so what lies
    beyond is no taste any more, and is cut.

    Range: 0 to 10.
    Needs: generated pictures; no column. The prompt is not read.
    Source: Schuhmann, improved-aesthetic-predictor (``sac+logos+ava1-l14-linearMSE.pth``, Apache-2.0).
    Cost: OpenAI's ViT-L/14, 0.43 billion weights; no pass of its own beside ``clip_alignment`` in one worker.
    Hacked by: one fixed direction of CLIP's space: saturated, painterly pictures, the same for each prompt. Keep the
        weight small, beside a reward that reads the prompt; distrust means above 7.5.
    Recipe:
        aesthetics: {use: "unigrpo.rewards.aesthetics:Aesthetics", arguments: {device: cuda}, tasks: [imagine]}
    """

    range = (0.0, 10.0)
    wanted_columns = ()
    is_deterministic = True

    def __init__(
        self,
        model: str = "ViT-L-14-quickgelu",
        pretrained: str | None = "openai",
        *,
        head: str = "aesthetics",
        device: str = "cpu",
    ) -> None:
        """Load the head, and the body unless another reward of this process holds it.

        Args:
            model: as ``clip_alignment`` names it; the published head is for OpenAI's ViT-L/14 alone.
            pretrained: its tag or file.
            head: a published name, ``hf-hub:OWNER/NAME/FILE`` or a path: five linear layers in LAION's layout, or one.
            device: cpu, cuda or cuda:N.

        Raises:
            ValueError: for a model that does not exist, or a head that does not fit it.
            FileNotFoundError: if weights are neither here nor to be had.
        """
        from safetensors.torch import load_file

        self._weight, self._bias = affine_head(load_file(open_published(head)), head)
        self._body = open_clip_body(model, pretrained, device)
        width = self._body.encode_pictures([Image.new("RGB", (8, 8))]).shape[-1]
        if width != len(self._weight):
            raise ValueError(
                f"the head {head} reads vectors of {len(self._weight)}, CLIP {model} gives {width}; "
                "the published head is for ViT-L-14-quickgelu with pretrained: openai"
            )

    def __call__(self, *, completions: Column, log_metric: Any = None, **columns: Any) -> list[float | None]:
        """Return one value a completion; None for text, 0 for a picture that cannot be read."""
        return picture_values(completions, self._scores, refused=self.range[0], log_metric=log_metric)

    def _scores(self, pictures: dict[int, Image.Image]) -> list[float]:
        scores = self._body.encode_pictures(list(pictures.values())) @ self._weight + self._bias
        return np.asarray(np.clip(scores, *self.range)).tolist()


def affine_head(tensors: Mapping[str, Tensor], name: str) -> tuple[np.ndarray, float]:
    """Return weight [D] and constant, in float64, of LAION's five linear layers, or of a single one.

    Raises:
        WeightsError: for another layout, such as that with ReLU between the layers, which is not linear.
    """
    prefixes = [""] if set(tensors) == {"weight", "bias"} else [f"layers.{number}." for number in _LAYERS]
    wanted = {f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias")}
    if set(tensors) != wanted:
        raise WeightsError(
            f"the head {name} holds {', '.join(sorted(tensors))}; wanted {', '.join(sorted(wanted))}: "
            "give the published linear head (sac+logos+ava1-l14-linearMSE.pth)"
        )
    arrays = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    weight, bias = arrays[f"{prefixes[0]}weight"], arrays[f"{prefixes[0]}bias"]
    for prefix in prefixes[1:]:
        weight, bias = arrays[f"{prefix}weight"] @ weight, arrays[f"{prefix}weight"] @ bias + arrays[f"{prefix}bias"]
    if weight.ndim != 2 or len(weight) != 1:
        raise WeightsError(f"the head {name} ends in {weight.shape} weights; wanted one number a picture")
    return weight[0], float(bias[0])
