"""Open-vocabulary detectors (OWLv2, OWL-ViT, Grounding DINO): they look for the names that a prompt asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from unigrpo.rewards.vision.detection import Detection
from unigrpo.rewards.vision.pretrained_detector import PretrainedDetector

if TYPE_CHECKING:
    import torch

PUBLISHED = "hf-hub:google/owlv2-base-patch16-ensemble"
OWL, DINO = ("owlv2", "owlvit"), ("grounding-dino", "mm-grounding-dino")
PHRASES = {"owl": "a photo of a {}", "dino": "{}"}
"""How the models were trained to read a name."""


class ZeroShotDetector(PretrainedDetector):
    """Any of transformers' OWL and Grounding DINO families.

    A box has the name that scores highest there. OWL scores each name by itself. Grounding DINO reads all names as one
    text and scores its tokens; a name's score is the mean over its tokens, as in that model's COCO evaluation. Scores
    are lower than Mask2Former's and one object may have several boxes: give the reward ``max_overlap: 0.5`` and a
    ``counting_threshold`` near its ``threshold``.
    """

    _auto_class = "AutoModelForZeroShotObjectDetection"

    def __init__(
        self,
        model: str = PUBLISHED,
        *,
        device: str = "cpu",
        phrase: str | None = None,
        min_score: float = 0.05,
        batch_size: int = 4,
    ) -> None:
        """Load the model.

        Args:
            model: a folder in transformers' layout, or ``hf-hub:OWNER/NAME``.
            device: cpu, cuda or cuda:N.
            phrase: what is asked for a name, with ``{}`` for it; None is the family's own.
            min_score: what scores less is left out; below any threshold of the reward.
            batch_size: pictures of one size and the same names that go through together.

        Raises:
            ValueError: for a model of another family, or a phrase without ``{}``.
            FileNotFoundError: if the files are neither here nor to be had.
        """
        if phrase is not None and "{}" not in phrase:
            raise ValueError(f"phrase {phrase!r} has no place for the name; write such as 'a photo of a {{}}'")
        super().__init__(model, device=device, min_score=min_score, batch_size=batch_size)
        kind = self._model.config.model_type
        if kind not in OWL + DINO:
            raise ValueError(f"{model!r} is a {kind}; this detector reads {', '.join(OWL + DINO)}")
        self._family = "owl" if kind in OWL else "dino"
        self._phrase = phrase or PHRASES[self._family]

    def _detect(self, pictures: list[Image.Image], labels: tuple[str, ...]) -> list[list[Detection]]:
        found = (self._with_owl if self._family == "owl" else self._with_dino)(pictures, labels)
        size = pictures[0].size
        return [self._detections(scores, boxes, labels, size) for scores, boxes in found]

    def _with_owl(self, pictures: list[Image.Image], names: tuple[str, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return, of each picture, scores [boxes, names] and boxes as (centre, extent) fractions."""
        phrases = [[self._phrase.format(name) for name in names]] * len(pictures)
        output = self._run(self._processor(text=phrases, images=pictures, return_tensors="pt"))
        boxes = output.pred_boxes
        if self._model.config.model_type == "owlv2":  # It sees the picture in the corner of a square.
            boxes = boxes * max(pictures[0].size) / boxes.new_tensor(pictures[0].size * 2)
        return list(zip(output.logits.double().sigmoid(), boxes, strict=True))

    def _with_dino(
        self, pictures: list[Image.Image], names: tuple[str, ...]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the same for Grounding DINO."""
        import torch

        text = " ".join(f"{self._phrase.format(name).strip().lower()}." for name in names)
        inputs = self._processor(text=[text] * len(pictures), images=pictures, return_tensors="pt")
        spans = self._spans(inputs["input_ids"][0].tolist())
        if len(spans) != len(names):
            raise ValueError(
                f"the model reads {len(spans)} names in {text[:200]!r} and {len(names)} were asked; names may hold no "
                "full stop and all together no more than 256 tokens"
            )
        output = self._run(inputs)
        tokens = output.logits.double().sigmoid()
        scores = torch.stack([tokens[..., start:end].mean(-1) for start, end in spans], -1)
        return list(zip(scores, output.pred_boxes, strict=True))

    def _spans(self, token_ids: list[int]) -> list[tuple[int, int]]:
        """Return where each name's tokens start and end: what stands before a full stop."""
        stop = self._processor.tokenizer.convert_tokens_to_ids(".")
        spans, start = [], 1
        for position, token_id in enumerate(token_ids):
            if token_id == stop:
                if position > start:
                    spans.append((start, position))
                start = position + 1
        return spans

    def _detections(
        self, scores: torch.Tensor, boxes: torch.Tensor, names: tuple[str, ...], size: tuple[int, int]
    ) -> list[Detection]:
        """Return the boxes of one picture whose best name scores enough; sides are cut at the picture's edges."""
        best, which = scores.max(-1)
        found = []
        for score, index, (x, y, width, height) in zip(best.tolist(), which.tolist(), boxes.tolist(), strict=True):
            if score >= self._min_score:
                edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                left, top, right, bottom = (
                    min(1.0, max(0.0, edge)) * side for edge, side in zip(edges, size * 2, strict=True)
                )
                found.append(Detection(label=names[index], score=score, box=(left, top, right, bottom)))
        return found
