"""The goldens of LLaDA-V and LaViDa: their pictures, their prompts as canvases, and their cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from unigrpo.models import load_policy
from unigrpo.models.canvas import Piece, text_canvas
from unigrpo.models.llava import PLACEHOLDER
from unigrpo.settings.tasks import SamplingSettings
from unigrpo.types import Canvas

GOLDEN = Path(__file__).parent / "golden"
IDS = {"mask": 500, "bos": 480, "eos": 481, "start_header": 502, "end_header": 503}
PICTURES = ("square", "wide", "tall", "big")
IS_RESIZE_EXACT = int(PIL.__version__.partition(".")[0]) >= 13
"""The goldens were made with pillow 13; the bicubic resize of older ones rounds single pixels to the next level."""
FROM_PICTURE = 1e-5 if IS_RESIZE_EXACT else 0.1
"""Farthest from the reference where a picture is resized on the way."""


class Golden:
    """One family's folder."""

    def __init__(self, folder: str, **ids: int) -> None:
        """Load the policy, in float32."""
        self.policy: Any = load_policy(GOLDEN / folder, dtype="float32", vocabulary=IDS | ids)
        with np.load(GOLDEN / folder / "golden.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.facts = json.loads((GOLDEN / folder / "cases.json").read_text())
        self.config = json.loads((GOLDEN / folder / "config.json").read_text())

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    def picture(self, name: str) -> Image.Image:
        return Image.fromarray(self.arrays[f"image_{name}"])

    def features(self, name: str) -> torch.Tensor:
        """Return a picture's features, from the tiles that the reference cut."""
        levels = self.tensor(f"pixel_u8_{name}").float()
        return self.policy.module.vision_encoder.tile_features((levels / 255 - 0.5) / 0.5, self.picture(name).size)

    def case(self, name: str) -> dict[str, Any]:
        return next(case for case in self.facts["cases"] if case["name"] == name)

    def canvas(self, token_ids: Sequence[int], pictures: Sequence[str], sampling: SamplingSettings) -> Canvas:
        """Return a prompt whose pictures stand at the reference's placeholders, and an open text."""
        features = [self.policy.module.vision_encoder.features(self.picture(name)) for name in pictures]
        left, start = list(features), self.policy.vocabulary.size
        pieces: list[Piece] = []
        for token in token_ids:
            if token == PLACEHOLDER:
                stop = start + len(left.pop(0))
                pieces.append((range(start, stop), "image_slot"))
                start = stop
            else:
                pieces.append(([int(token)], None))
        canvas = text_canvas(pieces, sampling, self.policy.vocabulary)
        return replace(canvas, image_features=torch.cat(features) if features else None)


def sampling_of(case: dict[str, Any], **changes: Any) -> SamplingSettings:
    """Return a case's settings; LaViDa's reference counts its steps from the length."""
    length = case.get("gen_length") or case["max_new_tokens"]
    blocks = length // case["block_length"]
    if "steps" in case:
        steps = case["steps"] // blocks * blocks
    else:
        steps = case["step_per_block"] * blocks if "step_per_block" in case else int(length * case["step_ratio"])
    values: dict[str, Any] = {
        "completion_length": length,
        "num_denoising_steps": steps,
        "block_length": case["block_length"],
        "temperature": 0.0,
        "guidance_scale": case.get("cfg_scale", 0.0),
        "restrict_vocabulary": False,
    }
    return SamplingSettings(**values | changes)
