"""What a checkpoint is, from its config.json, its tokenizer and the headers of its files: no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from torch import nn

from unigrpo.errors import UserError
from unigrpo.models.families import policy_family
from unigrpo.models.files import headers, weights
from unigrpo.models.files.folders import resolve_folder
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.models.files.vocabulary import resolve_vocabulary
from unigrpo.models.loading import empty_module, read_config
from unigrpo.models.text_policy import lora_layers
from unigrpo.settings.recipe import Recipe
from unigrpo.sizing.memory import PROMPT_TOKENS, Row, memory_rows
from unigrpo.sizing.model_size import ModelSize, part_of
from unigrpo.types import TaskKind

if TYPE_CHECKING:
    from unigrpo.models.llava import VisionEncoder
    from unigrpo.models.text_policy import TextPolicy

SMALL_FILES = ("*.json", "*.jinja", "merges.txt")
"""What is downloaded of a hub id: no weights."""

SIZE_KEYS = (
    ("layers", ("n_layers", "num_hidden_layers")),
    ("width", ("d_model", "hidden_size")),
    ("heads", ("n_heads", "num_attention_heads")),
    ("key-value heads", ("n_kv_heads", "num_key_value_heads")),
    ("feed-forward width", ("mlp_hidden_size", "intermediate_size", "dense_intermediate_size")),
    ("experts", ("num_experts",)),
    ("experts a token", ("num_experts_per_tok", "top_k_experts")),
    ("block length", ("block_size", "canvas_length")),
)
SAMPLING = {"completion_length": 256, "num_denoising_steps": 128}
MEMORY_RECIPE: dict[str, Any] = {
    "name": "inspect",
    "num_steps": 1,
    "group_size": 8,
    "tasks": {"reason": {"data": {}, "prompts_per_step": 8, "sampling": SAMPLING}},
    "rewards": {},
    "learner": {"lr": 3e-6, "micro_batch_rows": 8},
    "rollouts": {"num_actors": 1},
}
"""What memory is estimated for: LoRA of rank 16, bfloat16, 8 rows with gradient, 64 sampled."""

OPEN_TOKENS = 256
PICTURE = (640, 480)
"""Width and height of a prompt's picture where its size decides how many tokens it has."""


def inspect_model(
    path: str | Path,
    revision: str | None = None,
    *,
    length: int | None = None,
    images: int | None = None,
    use: str | None = None,
) -> dict[str, list[Row]]:
    """Return sections of rows for people to read.

    Args:
        path: a folder, ``asset:NAME``, or a hub id, of which only the small files are downloaded.
        revision: branch, tag or commit of a hub id.
        length: open tokens of the rows that memory is estimated for; None is 256 of text, or a picture's codes.
        images: pictures in their prompts; None is one where the family is trained to read pictures.
        use: the family, where config.json does not say it: ``path/to/file.py:Class``.

    Raises:
        MissingFileError: no such checkpoint.
        UserError: a family or config value that is not known, or pictures for a family that reads none.
    """
    folder = resolve_folder(path, files=SMALL_FILES, revision=revision)
    raw = read_config(folder)
    family = policy_family(raw, use)
    config = family.complete_config(raw, folder)
    module = empty_module(family, config)
    shapes = _shapes(module)
    return {
        "model": [
            Row("family", family.__name__.removesuffix("Policy"), f"{family.__module__}:{family.__name__}"),
            *_size_rows(config),
            _files_row(family, module, folder),
        ],
        "parameters": [*_parameter_rows(shapes), _lora_row(module, family.frozen_parts)],
        "vocabulary": _vocabulary_rows(family, config, folder),
        "tasks": _task_rows(family),
        "memory, estimated": _memory_rows(
            str(path),
            config,
            shapes,
            counted_row(family, config, module, length, images),
            is_trained=bool(family.abilities.trained),
        ),
    }


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor, a tied one once."""
    again = {name for names in weights.tied_names(module) for name in names[1:]}
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in again}


def _size_rows(config: Mapping[str, Any]) -> list[Row]:
    places = (config, config.get("text_config") or {}, config.get("phi") or {})
    rows = []
    for title, keys in SIZE_KEYS:
        found = [(key, place[key]) for place in places for key in keys if place.get(key)]
        if found:
            rows.append(Row(title, f"{found[0][1]:,}", found[0][0]))
    return rows


def _files_row(family: type[TextPolicy], module: nn.Module, folder: Path) -> Row:
    """Say whether the files' tensors fit, by their headers."""
    try:
        files = headers.weight_files(folder)
        stored = headers.read_shapes(files)
        weights.match_names(module, stored, str(folder), family.module_name)
    except (FileNotFoundError, ValueError) as error:
        return Row("files", "do not load", str(error))
    size = sum(path.stat().st_size for path in files)
    explanation = f"all {len(stored)} tensors fit, in {len(files)} file{'s' if len(files) > 1 else ''}"
    return Row("files", f"{size / 1e9:,.3f} GB", explanation)


def _parameter_rows(shapes: Mapping[str, tuple[int, ...]]) -> list[Row]:
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + math.prod(shape)
    total = sum(counts.values())
    rows = [
        Row(part, _millions(count), f"{count / total:.1%}")
        for part, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    return [*rows, Row("total", _millions(total), f"{total:,} in {len(shapes)} tensors")]


def _lora_row(module: nn.Module, frozen_parts: tuple[str, ...]) -> Row:
    """Say which layers LoRA wraps by default, and which of routed experts it leaves alone."""
    reached = lora_layers(module, frozen_parts)
    names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in reached))
    in_experts = sum(isinstance(part, nn.Linear) and ".experts." in name for name, part in module.named_modules())
    left = f"; not the {in_experts:,} of routed experts, which lora.targets may give by full names"
    return Row("LoRA", f"{len(reached):,} layers", (names or "none") + (left if in_experts else ""))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.3f} M" if count < 1e8 else f"{count / 1e9:,.3f} B"


def _vocabulary_rows(family: type[TextPolicy], config: Mapping[str, Any], folder: Path) -> list[Row]:
    rows = family.embedding_rows(config)
    has_tokenizer = (folder / "tokenizer.json").is_file()
    tokenizer = TextTokenizer.from_folder(folder) if has_tokenizer else None
    try:
        ids = resolve_vocabulary(
            config,
            size=rows,
            tokenizer=tokenizer,
            overrides=None,
            codebook_size=family.codebook_size(config),
            token_text=family.token_text,
        )
    except ValueError as error:
        return [Row("embedding", f"{rows:,}"), Row("ids", "not known", str(error))]
    found = [
        Row("embedding", f"{rows:,}", "rows"),
        Row("text", "{:,}..{:,}".format(*ids.text_range), "half-open"),
        Row("mask, eos, pad", f"{ids.mask_token_id}, {ids.eos_token_id}, {ids.pad_token_id}"),
        Row("tokenizer", f"{len(tokenizer):,} tokens" if tokenizer else "none", _template(tokenizer)),
    ]
    if ids.image_range is not None:
        found.insert(2, Row("image codes", "{:,}..{:,}".format(*ids.image_range), "half-open"))
    return found


def _template(tokenizer: TextTokenizer | None) -> str:
    if tokenizer is None:
        return "token ids only; give load_policy(tokenizer=FOLDER)"
    return "with a chat template" if tokenizer.chat_template else "without a chat template"


def counted_row(
    family: type[TextPolicy], config: Mapping[str, Any], module: nn.Module, length: int | None, images: int | None
) -> tuple[int, Row]:
    """Return the tokens of a row of what a family does, and how they are counted.

    The longest row counts: a question about a picture, else a text; the picture itself where only pictures train.

    Raises:
        UserError: pictures for a family that reads none.
    """
    tasks = family.abilities.trained or family.abilities.tasks
    if images and "understand" not in family.abilities.tasks:
        raise UserError(f"{images} pictures were asked for, but {family.__name__} reads none; leave --images out")
    if images is None:
        images = 1 if "understand" in tasks else 0
    codes = int(config.get("num_vq_tokens") or 0)
    is_picture = tasks == ("imagine",) and not images
    opened = length or (codes if is_picture and codes else OPEN_TOKENS)
    has_pixels = family.abilities.pictures == "pixels"
    each = cast("VisionEncoder", module.vision_encoder).count(PICTURE) if has_pixels else codes
    parts = [f"{PROMPT_TOKENS} of text"]
    if images:
        pictures = "one picture" if images == 1 else f"{images} pictures"
        parts.append(f"{images * each:,} of {pictures}" + (" of {} x {} pixels".format(*PICTURE) if has_pixels else ""))
    parts.append(f"{opened:,} open" + (", a picture's codes" if is_picture else ""))
    tokens = PROMPT_TOKENS + images * each + opened
    task = "imagine" if is_picture else "understand" if images else "reason"
    return tokens, Row("a row", f"{tokens:,} tokens", f"{task}: {', '.join(parts)}")


def _task_rows(family: type[TextPolicy]) -> list[Row]:
    can = family.abilities
    titles = {"reason": "text to text", "understand": "pictures and text to text", "imagine": "text to a picture"}
    rows = []
    for task in get_args(TaskKind):
        if task not in can.tasks:
            rows.append(Row(task, "no", titles[task]))
        elif task in can.untrained:
            rows.append(Row(task, "generates only", can.why_untrained))
        else:
            rows.append(Row(task, "generates, trains", titles[task]))
    if can.pictures == "codes":
        why = "the release's way to make a square of a picture; policy.image_fit and data.image_fit change it"
        rows.append(Row("image fit", can.image_fit, why))
    return rows


def _memory_rows(
    path: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    counted: tuple[int, Row],
    *,
    is_trained: bool,
) -> list[Row]:
    size = ModelSize.from_shapes(shapes, config)
    count = sum(math.prod(shape) for shape in shapes.values())
    if size is None:
        return [Row("weights", f"{count * 2 / 1e9:,.2f} GB", "in bfloat16")]
    length, row = counted
    policy = {"path": path, "dtype": "bfloat16", "gradient_checkpointing": True}
    rows = memory_rows(Recipe.model_validate(MEMORY_RECIPE | {"policy": policy}), size, length)
    if not is_trained:
        rows = [row for row in rows if row.name in ("weights", "each actor, besides")]
    return [row, *rows]
