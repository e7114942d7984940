"""GenEval's rules on boxes and names alone (Ghosh et al., arXiv 2310.11513; the published evaluator's constants).

A prompt has ``include`` clauses, all of which must hold, and ``exclude`` clauses, none of which may:

- Of each class, detections above 0.3 count, best first, at most 16; for prompts tagged ``counting`` only those above
  0.9. Both thresholds are strict.
- An include clause {class, count} looks at the ``count`` best of its class and fails if there are fewer. More do not
  harm: "two" is an include of 2 and an exclude of 3.
- ``color``: all of those ``count`` objects must be named so; a right one of lower score does not help.
- ``position`` [relation, k]: each of those objects must stand so to each object that clause k matched; it fails where
  clause k failed. The offset of the centres is shortened, on each axis, by 0.1 of the two boxes' summed extents there;
  what is left, as a share of the whole distance, must exceed 0.5 on the relation's axis. A diagonal may thus be two
  relations at once.
- ``exclude`` {class, count} fails where ``count`` or more are found.

Each clause stands alone: two of one class look at the same objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unigrpo.rewards.vision.detection import Box, Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
POSITION_MARGIN = 0.1
_MIN_SHARE = 0.5
_NO_OFFSET = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Clause:
    """What must be in the picture."""

    label: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int = 0
    """Index of the clause that ``relation`` refers to; an earlier one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A prompt's clauses."""

    include: tuple[Clause, ...]
    exclude: tuple[tuple[str, int], ...]
    """(class, count): so many are too many."""
    is_counting: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the classes that matter, each once."""
        return tuple(dict.fromkeys([*(clause.label for clause in self.include), *(name for name, _ in self.exclude)]))


def parse_wanted(
    include: Sequence[Mapping[str, Any]] | None, exclude: Sequence[Mapping[str, Any]] | None, tag: str | None
) -> Wanted:
    """Return the clauses of a line of ``evaluation_metadata.jsonl``.

    Raises:
        ValueError: for a clause that cannot be judged: a count below 1, a colour or relation that GenEval does not
            have, a position that refers to a later clause, or no clause at all.
    """
    clauses = tuple(_clause(given, index) for index, given in enumerate(include or ()))
    limits = tuple(_class_and_count(given) for given in exclude or ())
    if not clauses and not limits:
        raise ValueError("neither include nor exclude asks for anything; give include: [{class: ..., count: 1}]")
    return Wanted(include=clauses, exclude=limits, is_counting=tag == "counting")


def _clause(given: Mapping[str, Any], index: int) -> Clause:
    (label, count), color, position = _class_and_count(given), given.get("color"), given.get("position")
    if color is not None and color not in COLORS:
        raise ValueError(f"color {color!r} of {dict(given)}; GenEval's colours are {', '.join(COLORS)}")
    if position is None:
        return Clause(label=label, count=count, color=color)
    relation, target = position
    if relation not in RELATIONS or not 0 <= target < index:
        raise ValueError(
            f"position {position!r} of clause {index}; give [relation, k], the relation one of "
            f"{', '.join(RELATIONS)} and k the index of an earlier clause"
        )
    return Clause(label=label, count=count, color=color, relation=relation, target=int(target))


def _class_and_count(given: Mapping[str, Any]) -> tuple[str, int]:
    if "class" not in given or not isinstance(given.get("count"), int) or given["count"] < 1:
        raise ValueError(f"clause {dict(given)}; give a class and a count of 1 or more")
    return str(given["class"]), int(given["count"])


def kept(
    detections: Sequence[Detection], *, threshold: float, max_objects: int = MAX_OBJECTS, max_overlap: float = 1.0
) -> dict[str, list[Detection]]:
    """Return the detections that count, by class, best first; equal scores keep the detector's order.

    ``max_overlap`` below 1 drops an object that overlaps a better one of its class by that much or more.
    """
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda one: -one.score):
        if detection.score > threshold:
            found.setdefault(detection.label, []).append(detection)
    return {label: _thinned(objects[:max_objects], max_overlap) for label, objects in found.items()}


def _thinned(objects: list[Detection], max_overlap: float) -> list[Detection]:
    if max_overlap >= 1:
        return objects
    chosen: list[Detection] = []
    for one in objects:
        if all(overlap(one.box, other.box) < max_overlap for other in chosen):
            chosen.append(one)
    return chosen


def overlap(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes whose far edges count as a pixel, as in the evaluator."""
    shared = _area(
        (max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3]))
    )
    union = _area(first) + _area(second) - shared
    return shared / union if union else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0.0) * max(box[3] - box[1] + 1, 0.0)


def relations(first: Box, second: Box, margin: float = POSITION_MARGIN) -> frozenset[str]:
    """Return how the first box stands to the second: none, one, or two of :data:`RELATIONS`."""
    offsets = [(first[axis] + first[axis + 2] - second[axis] - second[axis + 2]) / 2 for axis in (0, 1)]
    extents = [abs(first[axis + 2] - first[axis]) + abs(second[axis + 2] - second[axis]) for axis in (0, 1)]
    clear = [max(abs(offset) - margin * extent, 0.0) for offset, extent in zip(offsets, extents, strict=True)]
    if max(clear) < _NO_OFFSET:
        return frozenset()
    distance = math.hypot(*offsets)
    names = (("left of", "right of"), ("above", "below"))
    return frozenset(names[axis][offsets[axis] > 0] for axis in (0, 1) if clear[axis] / distance > _MIN_SHARE)


def needed_colors(wanted: Wanted, found: Mapping[str, Sequence[Detection]]) -> list[tuple[str, int]]:
    """Return the class and rank of the objects whose colour decides: of clauses that ask for one and are complete."""
    return list(
        dict.fromkeys(
            (clause.label, rank)
            for clause in wanted.include
            if clause.color is not None and len(found.get(clause.label, ())) >= clause.count
            for rank in range(clause.count)
        )
    )


def credits(wanted: Wanted, found: Mapping[str, Sequence[Detection]], margin: float = POSITION_MARGIN) -> list[float]:
    """Return how far each condition is met, 0 to 1; GenEval's verdict is that all are 1.

    A clause has one condition for its objects (found of ``count``), one for their colour (right of ``count``) and one
    for their position (1 or 0); the last two are 0 unless all objects are there, but do not wait for each other. An
    exclude clause is 1 or 0, and 0, too, while its class is asked for and not there: an empty picture has no merit.

    Args:
        wanted: of the prompt.
        found: see :func:`kept`; those in :func:`needed_colors` have a colour.
        margin: of the position rule.
    """
    matched = [list(found.get(clause.label, ())[: clause.count]) for clause in wanted.include]
    missing = {
        clause.label for clause, objects in zip(wanted.include, matched, strict=True) if len(objects) < clause.count
    }
    values: list[float] = []
    for clause, objects in zip(wanted.include, matched, strict=True):
        is_complete = clause.label not in missing
        values.append(len(objects) / clause.count)
        if clause.color is not None:
            num_right = sum(one.color == clause.color for one in objects)
            values.append(num_right / clause.count if is_complete else 0.0)
        if clause.relation is not None:
            targets = matched[clause.target]
            is_placed = is_complete and wanted.include[clause.target].label not in missing
            values.append(float(is_placed and _all_stand(clause.relation, objects, targets, margin)))
    values += [float(label not in missing and len(found.get(label, ())) < count) for label, count in wanted.exclude]
    return values


def _all_stand(relation: str, objects: list[Detection], targets: list[Detection], margin: float) -> bool:
    return all(relation in relations(one.box, target.box, margin) for one in objects for target in targets)
