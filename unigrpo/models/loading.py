"""From a path to a policy: the family by config.json, weights from safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unigrpo.models import weights
from unigrpo.models.folders import read_json, resolve_folder
from unigrpo.models.llada import Llada, LladaConfig, LladaPolicy
from unigrpo.models.mmada import MmadaPolicy
from unigrpo.models.tokenizer import TextTokenizer
from unigrpo.models.vocabulary import resolve_vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FAMILIES: dict[str, type[LladaPolicy]] = {
    "llada": LladaPolicy,
    "LLaDAModelLM": LladaPolicy,
    "mmada": MmadaPolicy,
    "MMadaModelLM": MmadaPolicy,
}
"""Policy class by config.json's `model_type` or by its first architecture."""

FOREIGN_TYPES = ("dream", "Dream", "sdar", "llama", "qwen2", "qwen3", "gpt2")
"""Model types of other families, whose layers differ; under these no known architecture is believed."""

HUB_FILES = ("*.json", "*.safetensors", "*.jinja")
"""What is downloaded of a hub id."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; wanted a checkpoint folder in the released layout")
    return read_json(path)


def policy_family(config: Mapping[str, Any]) -> type[LladaPolicy]:
    """Return the policy class that a config.json asks for.

    Raises:
        ValueError: a family that is not known here, or model type and architecture of two families.
    """
    model_type = config.get("model_type")
    named = [model_type, *(config.get("architectures") or [])]
    known = [FAMILIES[name] for name in named if name in FAMILIES]
    if len(set(known)) > 1 or (known and model_type in FOREIGN_TYPES):
        raise ValueError(
            f"config.json contradicts itself: model_type {model_type!r}, architectures {named[1:]}; set model_type to "
            "the family of the architecture"
        )
    if known:
        return known[0]
    raise ValueError(f"config.json names the family {named}; known here are {', '.join(FAMILIES)}")


def _empty_module(config: Mapping[str, Any]) -> Llada:
    with torch.device("meta"):
        return Llada(LladaConfig.from_dict(config))


def policy_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a config, of any size: nothing is allocated."""
    return {name: tuple(tensor.shape) for name, tensor in _empty_module(config).state_dict().items()}


def _find_tokenizer(folder: Path, tokenizer: str | Path | TextTokenizer | None) -> TextTokenizer | None:
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if tokenizer is not None:
        return TextTokenizer.from_folder(resolve_folder(tokenizer, files=HUB_FILES))
    return TextTokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else None


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ValueError(
            f"device {str(device)!r} was asked for, and torch sees {count} CUDA devices here; give cpu, install a CUDA "
            "build of torch with its driver, or look at CUDA_VISIBLE_DEVICES"
        )


def load_policy(
    path: str | Path,
    dtype: str = "bfloat16",
    device: str | torch.device = "cpu",
    tokenizer: str | Path | TextTokenizer | None = None,
    vocabulary: Mapping[str, int] | None = None,
    image_tokenizer: Any = None,
    image_size: int = 512,
    revision: str | None = None,
    gradient_checkpointing: bool = False,
) -> LladaPolicy:
    """Return the policy of a checkpoint, in evaluation mode.

    On CPU, weights whose dtype is the file's stay memory-mapped, so that processes on one machine share them.

    Args:
        path: a folder, ``asset:NAME``, or a hub id.
        dtype: float32 or bfloat16.
        device: cpu, cuda or cuda:N.
        tokenizer: a folder with tokenizer.json, where the checkpoint's own has none.
        vocabulary: ids by name (mask_token_id, eos_token_id, soi, image_offset, ...); they win over the files'.
        image_tokenizer: folder or hub id of the MAGVIT-v2 tokenizer, or an object with encode and decode.
        image_size: side in pixels to which the pictures of prompts are resized and cropped.
        revision: branch, tag or commit of a hub id.
        gradient_checkpointing: compute each block again in backward.

    Raises:
        FileNotFoundError: no such checkpoint or no weights in it.
        ValueError: a family, config value, id or tensor that does not fit, pickled weights, or a device that this
            machine lacks.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; wanted {' or '.join(DTYPES)}")
    _check_device(torch.device(device))
    folder = resolve_folder(path, files=HUB_FILES, revision=revision)
    config = read_config(folder)
    family = policy_family(config)
    module = _empty_module(config)
    text_tokenizer = _find_tokenizer(folder, tokenizer)
    ids = resolve_vocabulary(
        config,
        size=module.config.embedding_size,
        tokenizer=text_tokenizer,
        overrides=vocabulary,
        codebook_size=family.codebook_size(config),
    )
    weights.fill(module, folder, DTYPES[dtype], torch.device(device))
    module.is_checkpointing = gradient_checkpointing
    module.eval()
    policy = family(module=module, vocabulary=ids, tokenizer=text_tokenizer, source=str(path), image_size=image_size)
    policy.folder, policy.revision = folder, revision
    if isinstance(image_tokenizer, str | Path):
        from unigrpo.models.magvit import load_image_tokenizer

        image_tokenizer = load_image_tokenizer(image_tokenizer, device=str(device))
    policy.image_tokenizer = image_tokenizer
    return policy
