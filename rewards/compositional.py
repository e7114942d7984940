"""Compositional: does a generated picture show the asked objects, in number, colour and place? GenEval's six checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from PIL import Image

from unigrpo.plugin import CodeReference, resolve
from unigrpo.rewards.base import Column
from unigrpo.rewards.vision import geneval
from unigrpo.rewards.vision.detection import ColorReader, Detection, Detector
from unigrpo.rewards.vision.geneval import Wanted
from unigrpo.rewards.vision.pictures import is_picture, made_tool, picture_values

MASK2FORMER = "unigrpo.rewards.vision.detector_mask2former:Mask2FormerDetector"
CLIP_COLORS = "unigrpo.rewards.vision.color_clip:ClipColors"


class Compositional:
    """GenEval's verdict on a picture from any detector; its rules are stated in :mod:`unigrpo.rewards.vision.geneval`.

    Single object, two objects, counting, colours, position and colour attribution are one rule over the clauses of the
    prompt. ``strict`` is the benchmark's 1 or 0. ``soft`` is the mean over the conditions (objects found of those
    asked, right colours, position, nothing excluded), so that a group of wrong pictures still has better and worse
    ones; it is 1 exactly where strict is.

    Range: 0 to 1.
    Needs: generated pictures (task imagine); columns ``include`` and, where the data has them, ``exclude`` and ``tag``,
        as in GenEval's evaluation_metadata.jsonl; the extra ``compositional`` for the default detector.
    Source: Ghosh et al., arXiv 2310.11513. Default detector facebook/mask2former-swin-small-coco-instance (the
        published numbers use mmdetection's checkpoint of the same model: close, not equal); colours by open_clip's
        ViT-L-14 ``openai``. Both take a folder instead.
    Cost: one pass of the detector a picture, and one of CLIP an object whose colour is asked.
    Hacked by: collages of cut-out objects on a plain ground, since quality and style do not count; log a picture
        reward at weight 0 beside it.
    Recipe:
        compositional: {use: "unigrpo.rewards.compositional:Compositional", tasks: [imagine], timeout_s: 300,
            arguments: {mode: soft,
                detector_arguments: {model: "hf-hub:facebook/mask2former-swin-small-coco-instance"}}}
    """

    range = (0.0, 1.0)
    wanted_columns = ("include", "exclude", "tag")
    needed_columns = (("include",),)
    is_deterministic = True

    def __init__(
        self,
        *,
        mode: Literal["strict", "soft"] = "strict",
        detector: CodeReference | Detector = MASK2FORMER,
        detector_arguments: Mapping[str, Any] | None = None,
        colors: CodeReference | ColorReader = CLIP_COLORS,
        color_arguments: Mapping[str, Any] | None = None,
        threshold: float = geneval.THRESHOLD,
        counting_threshold: float = geneval.COUNTING_THRESHOLD,
        max_objects: int = geneval.MAX_OBJECTS,
        max_overlap: float = 1.0,
        position_margin: float = geneval.POSITION_MARGIN,
    ) -> None:
        """Make the detector; the reader of colours is made when the first colour is asked that the detector lacks.

        Args:
            mode: ``strict`` or ``soft``, see the class.
            detector: ``"module:Class"`` or an object, see :class:`unigrpo.rewards.vision.detection.Detector`.
            detector_arguments: for the constructor of a detector that is named.
            colors: the same for :class:`unigrpo.rewards.vision.detection.ColorReader`.
            color_arguments: for its constructor.
            threshold: score above which an object counts.
            counting_threshold: the same for prompts tagged ``counting``; 0.9 suits Mask2Former, a zero-shot detector
                rarely reaches it.
            max_objects: of each class.
            max_overlap: overlap from which the weaker of two objects of a class is dropped; 1 drops none, as in the
                benchmark. Zero-shot detectors find one object several times: give 0.5.
            position_margin: share of the boxes' extents that an offset must exceed to count.

        Raises:
            ValueError: for a setting out of its bounds.
            PluginError: if there is no such detector.
        """
        if mode not in ("strict", "soft"):
            raise ValueError(f"mode {mode!r}; give strict (1 or 0) or soft (the fraction of conditions met)")
        shares = {"threshold": threshold, "counting_threshold": counting_threshold, "max_overlap": max_overlap}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} {share}; give a share from 0 to 1")
        if max_objects < 1 or position_margin < 0:
            raise ValueError(f"max_objects {max_objects}, position_margin {position_margin}; give 1 or more, 0 or more")
        self._mode = mode
        self._detector: Detector = made_tool(detector, detector_arguments)
        self.fingerprint = str(getattr(self._detector, "fingerprint", ""))
        self._colors: Any = resolve(colors) if isinstance(colors, str) else colors
        self._color_arguments = color_arguments
        self._threshold, self._counting_threshold = threshold, counting_threshold
        self._max_objects, self._max_overlap, self._margin = max_objects, max_overlap, position_margin

    def __call__(
        self,
        *,
        completions: Column,
        include: Column | None = None,
        exclude: Column | None = None,
        tag: Column | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one value a completion; None for text, and where nothing was asked; 0 for a picture without pixels.

        Raises:
            ValueError: for clauses that cannot be judged, see :func:`unigrpo.rewards.vision.geneval.parse_wanted`.
        """
        nothing = [None] * len(completions)
        clauses = zip(completions, include or nothing, exclude or nothing, tag or nothing, strict=True)
        wanted = {
            row: geneval.parse_wanted(present, absent, kind)
            for row, (completion, present, absent, kind) in enumerate(clauses)
            if is_picture(completion) and (present or absent)
        }
        return picture_values(
            completions,
            lambda read: self._judge(list(read.values()), [wanted[row] for row in read]),
            refused=0.0,
            asked=[row in wanted for row in range(len(completions))],
            log_metric=log_metric,
        )

    def _judge(self, pictures: list[Image.Image], wanted: list[Wanted]) -> list[float]:
        detected = self._detector(pictures, [clauses.labels for clauses in wanted])
        if len(detected) != len(pictures):
            raise ValueError(
                f"the detector returned {len(detected)} lists for {len(pictures)} pictures; wanted one list of "
                "Detection a picture"
            )
        found = [self._kept(objects, clauses) for objects, clauses in zip(detected, wanted, strict=True)]
        self._name_colors(pictures, wanted, found)
        values = []
        for clauses, objects in zip(wanted, found, strict=True):
            met = geneval.credits(clauses, objects, self._margin)
            values.append(sum(met) / len(met) if self._mode == "soft" else float(min(met) == 1))
        return values

    def _kept(self, detections: Sequence[Detection], wanted: Wanted) -> dict[str, list[Detection]]:
        return geneval.kept(
            detections,
            threshold=self._counting_threshold if wanted.is_counting else self._threshold,
            max_objects=self._max_objects,
            max_overlap=self._max_overlap,
        )

    def _name_colors(
        self, pictures: list[Image.Image], wanted: list[Wanted], found: list[dict[str, list[Detection]]]
    ) -> None:
        """Fill in, in ``found``, the colours that are asked for and that the detector did not read."""
        unnamed = [
            (row, label, rank)
            for row, (clauses, objects) in enumerate(zip(wanted, found, strict=True))
            for label, rank in geneval.needed_colors(clauses, objects)
            if objects[label][rank].color is None
        ]
        if not unnamed:
            return
        if isinstance(self._colors, type):
            self._colors = made_tool(self._colors, self._color_arguments)
        given = self._colors([(pictures[row], found[row][label][rank]) for row, label, rank in unnamed])
        for (row, label, rank), name in zip(unnamed, given, strict=True):
            found[row][label][rank] = replace(found[row][label][rank], color=name)
