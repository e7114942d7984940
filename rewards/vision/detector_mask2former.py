"""Mask2Former as a detector: boxes, masks and COCO names, the family that GenEval's own evaluator uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from unigrpo.rewards.vision.detection import Detection
from unigrpo.rewards.vision.pretrained_detector import PretrainedDetector

if TYPE_CHECKING:
    import torch

PUBLISHED = "hf-hub:facebook/mask2former-swin-small-coco-instance"
MAX_INSTANCES = 100
NAMES = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "mouse": "computer mouse",
}
"""Labels of published checkpoints, and of COCO, whose name in GenEval's prompts is another."""


class Mask2FormerDetector(PretrainedDetector):
    """Instances of a Mask2Former trained for instance segmentation.

    The score is the class's probability times the mean probability of the mask's pixels, over the best 100 pairs of
    query and class; the box is the extent of the mask. Masks are brought to the picture's own size.
    """

    _auto_class = "Mask2FormerForUniversalSegmentation"

    def __init__(
        self, model: str = PUBLISHED, *, device: str = "cpu", min_score: float = 0.05, batch_size: int = 4
    ) -> None:
        """Load the model.

        Args:
            model: a folder in transformers' layout, or ``hf-hub:OWNER/NAME``.
            device: cpu, cuda or cuda:N.
            min_score: what scores less is left out; below any threshold of the reward.
            batch_size: pictures of one size that go through together.

        Raises:
            FileNotFoundError: if the files are neither here nor to be had.
        """
        super().__init__(model, device=device, min_score=min_score, batch_size=batch_size)
        labels = self._model.config.id2label
        self._names = [NAMES.get(labels[index].lower(), labels[index].lower()) for index in range(len(labels))]

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Return what each picture shows, of all classes that the model knows.

        Raises:
            ValueError: if a label is asked for that is none of them: it could never be found.
        """
        unknown = sorted({label for asked in labels for label in asked} - set(self._names))
        if unknown:
            raise ValueError(
                f"this Mask2Former has no class {unknown[0]!r} (it has {len(self._names)}, such as "
                f"{', '.join(self._names[:3])}); ask for those, or use a zero-shot detector"
            )
        return super().__call__(pictures, labels)

    def _key(self, labels: tuple[str, ...]) -> None:
        """Labels are not asked for: all classes come at once."""

    def _detect(self, pictures: list[Image.Image], labels: tuple[str, ...]) -> list[list[Detection]]:
        inputs = self._processor(images=pictures, return_tensors="pt")
        output = self._run(inputs)
        # What was padded on the right and below is no part of the picture.
        filled = [(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in inputs["pixel_mask"].bool()]
        return [
            self._instances(classes, masks, inputs["pixel_values"].shape[-2:], kept, picture.size)
            for classes, masks, kept, picture in zip(
                output.class_queries_logits, output.masks_queries_logits, filled, pictures, strict=True
            )
        ]

    def _instances(
        self,
        class_logits: torch.Tensor,
        mask_logits: torch.Tensor,
        padded: Sequence[int],
        filled: tuple[int, int],
        size: tuple[int, int],
    ) -> list[Detection]:
        """Return the objects of one picture of ``size`` (width, height); logits are [Q, C + 1] and [Q, h, w]."""
        probabilities = class_logits.double().softmax(-1)[:, :-1]
        scores, places = probabilities.flatten().topk(min(MAX_INSTANCES, probabilities.numel()))
        is_kept = scores >= self._min_score
        scores, places = scores[is_kept], places[is_kept]
        if not len(scores):
            return []
        chosen = mask_logits[places // probabilities.shape[1]][None].float()
        whole = _resized(chosen, padded)[..., : filled[0], : filled[1]]
        logits = _resized(whole, (size[1], size[0]))[0].double()
        masks = logits > 0
        sureness = (logits.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)
        found = []
        for place, score, mask in zip(places.tolist(), (scores * sureness).tolist(), masks.cpu().numpy(), strict=True):
            if score >= self._min_score and mask.any():
                name = self._names[place % probabilities.shape[1]]
                found.append(Detection(label=name, score=score, box=_extent(mask), mask=mask))
        return found


def _resized(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    import torch

    resized: torch.Tensor = torch.nn.functional.interpolate(
        masks, size=tuple(size), mode="bilinear", align_corners=False
    )
    return resized


def _extent(mask: Any) -> tuple[float, float, float, float]:
    """Return the box of the true pixels of [H, W]."""
    columns, rows = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
