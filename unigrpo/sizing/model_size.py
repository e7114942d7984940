"""How large a model is, by the headers of its files and its config.json: what memory estimates follow from. Torch-free.

No family is written out here: names and shapes of the tensors say what there is, of a user's family, too.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigrpo.models.families import family_facts, find_family, known_families
from unigrpo.models.files.folders import read_json
from unigrpo.models.files.headers import read_shapes, weight_files
from unigrpo.recipe.text import parse

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

PARTS = (
    ("vision", r"(^|\.)(vision_tower|vision_model|embed_vision)\."),
    ("projector", r"(^|\.)(mm_projector|image_newline)"),
    ("experts", r"\.experts?\."),
    ("router", r"\.(router|gate)(\.|$)"),
    ("embedding", r"(wte|embed_tokens|tok_embeddings|embeddings\.\w+)(\.weight)?$|word_embeddings|position_embeddings"),
    ("head", r"lm_head|transformer\.ff_out|(^|\.)(cls|head|decoder)\.(?!layers|embed|self_cond)"),
    ("attention", r"attn|attention|[qkv]_proj"),
    ("feed-forward", r"mlp|(ff|gate|up|down)_proj|ff_out|intermediate|fc[12]|output\.dense"),
)
"""Part of a model by the name of a tensor; the first that is found in it."""
UNWRAPPED = ("vision", "projector", "experts", "router", "embedding", "head")
"""Parts whose linear layers LoRA leaves alone by default."""
BLOCK = re.compile(r"^(.*?\.\d+)\.")
"""The numbered block that a tensor lies in."""
TOKENS = re.compile(r"(wte|embed_tokens|tok_embeddings|word_embeddings)\.weight$")
"""The embedding of the token ids, [V, D]."""


def part_of(name: str) -> str:
    """Return the part of a model that a tensor belongs to, by its name."""
    return next((part for part, pattern in PARTS if re.search(pattern, name)), "norms and others")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """The numbers that memory follows from."""

    num_layers: int
    width: int
    mlp_width: int
    """Width of the feed-forward part; with experts, of those that a token goes through together."""
    vocabulary: int
    num_parameters: int
    linears: Mapping[str, int]
    """Inputs and outputs of the linear layers that LoRA wraps by default, summed over the layers, by their names."""

    @classmethod
    def from_shapes(cls, shapes: Shapes, config: Config) -> ModelSize | None:
        """Count a model's tensors, a tied one once; None where they hold no token embedding or no numbered blocks.

        Args:
            shapes: by the tensors' names.
            config: the content of a config.json, for how many experts a token goes through together.
        """
        wrapped = {
            name.removesuffix(".weight"): shape
            for name, shape in shapes.items()
            if len(shape) == 2 and name.endswith(".weight") and BLOCK.match(name) and part_of(name) not in UNWRAPPED
        }
        tables = [shape for name, shape in shapes.items() if TOKENS.search(name)]
        if not wrapped or not tables:
            return None
        vocabulary, width = max(tables)
        linears: Counter[str] = Counter()
        for name, shape in wrapped.items():
            linears[name.rpartition(".")[2]] += sum(shape)
        widest = max(max(shape) for shape in wrapped.values())
        return cls(
            num_layers=len({found[1] for name in wrapped if (found := BLOCK.match(name))}),
            width=width,
            mlp_width=_active_width(config.get("text_config") or config) or widest,
            vocabulary=vocabulary,
            num_parameters=sum(math.prod(shape) for shape in shapes.values()),
            linears=dict(linears),
        )

    @classmethod
    def from_folder(cls, folder: Path, use: str | None = None) -> ModelSize | None:
        """Read the headers of a checkpoint's files; None where it holds none; ``use`` is the family, where not told."""
        config = read_json(folder / "config.json")
        family = find_family(config, use)
        unused = family_facts(family).get("unused_tensors", r"(?!)") if family is not None else r"(?!)"
        try:
            shapes = read_shapes(weight_files(folder))
        except (FileNotFoundError, ValueError):
            return None
        return cls.from_shapes({name: shape for name, shape in shapes.items() if not re.search(unused, name)}, config)

    def num_adapter_parameters(self, rank: int, targets: list[str] | None) -> int:
        """Return the weights of LoRA of a rank on the named linear layers of the blocks; None is all of them."""
        return rank * sum(count for name, count in self.linears.items() if targets is None or name in targets)


def _active_width(config: Config) -> int:
    """Return the width of the feed-forward parts that a token goes through together; 0 where config.json is silent."""
    expert = config.get("moe_intermediate_size") or config.get("expert_intermediate_size")
    chosen = config.get("num_experts_per_tok") or config.get("top_k_experts") or 0
    if expert and chosen:
        return int(expert * (chosen + (config.get("num_shared_experts") or 0)))
    return int(config.get("mlp_hidden_size") or config.get("intermediate_size") or 0)


def released_sizes() -> dict[str, ModelSize]:
    """Return the sizes of released checkpoints that need not be here, by how their names on the hub begin."""
    texts = [said.get("released_sizes", "") for said in known_families().values()]
    return {start: ModelSize(**size) for text in texts for start, size in (parse(text) or {}).items()}
