"""Tiny CLIP checkpoints in the published layouts, with random weights."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

TEXTS = ["a red circle", "two dogs & a cat", "a photo of the sea at night, oil on canvas", "A RED  circle"]


def noise(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def pictures() -> list[Image.Image]:
    """Wide, tall, square, small and large ones."""
    return [noise(seed, size) for seed, size in enumerate([(40, 30), (31, 57), (32, 32), (7, 9), (301, 120)])]


def architecture(folder: Path, name: str, *, width: int, is_quick: bool = False) -> str:
    """Make a tiny architecture known to open_clip, as ViT-L-14.json and its like are; return its name."""
    import open_clip

    config: dict[str, Any] = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    if is_quick:
        config["quick_gelu"] = True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return name


def random_state(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state dict of an architecture; large weights, so that details show."""
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(name)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in model.state_dict().items():
        is_matrix = value.ndim > 1 and "embedding" not in key
        state[key] = value + 0.4 * torch.randn(value.shape, generator=generator) if is_matrix else value
    return state


def published_head(affine: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LAION's five layers, names and shapes as published, that make the same affine function."""
    sizes = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    state = {}
    for number, (num_out, num_in) in sizes.items():
        weight = torch.zeros(num_out, num_in)
        weight[0] = affine["weight"][0] if number == 0 else torch.eye(num_in)[0]
        state[f"layers.{number}.weight"], state[f"layers.{number}.bias"] = weight, torch.zeros(num_out)
    state["layers.7.bias"] = affine["bias"]
    return state


def hub_snapshot(cache: Path, repository: str) -> Path:
    """A folder of the hub's cache; its files count as downloaded."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    (root / "snapshots" / "abc").mkdir(parents=True)
    return root / "snapshots" / "abc"


def transformers_clip(folder: Path, *, tie_eos: int = 2) -> Path:
    """A tiny CLIPModel with its tokenizer and preprocessing, files as PickScore and laion's ViT-H/14 have them."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "hidden_act": "gelu", "eos_token_id": tie_eos, "projection_dim": 24}
    vision = {**small, "hidden_act": "gelu", "image_size": 32, "patch_size": 8, "projection_dim": 24}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, logit_scale_init_value=4.6052)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator) if value.ndim > 1 else 0.0
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    processing = {
        "crop_size": 32,
        "size": 32,
        "resample": 3,
        "do_resize": True,
        "do_center_crop": True,
        "do_normalize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """CLIP's own vocabulary, which comes with open_clip, in the published files."""
    import open_clip

    package = Path(open_clip.__file__).parent
    with gzip.open(package / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "vocab.json").write_text(json.dumps(open_clip.tokenizer.SimpleTokenizer().encoder))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    vocabulary = json.loads((folder / "vocab.json").read_text())
    fixed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {fixed.get(token, token): number for token, number in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {**special, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pickled(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    return path
