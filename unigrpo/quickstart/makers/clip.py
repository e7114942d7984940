"""Make the quickstart's CLIP: a genuine open_clip checkpoint of about 2 MB that knows the little world's scenes.

A vision transformer whose patches are the 16 cells, a text transformer over a vocabulary of some thirty words, trained
by contrast against captions and pictures with one thing wrong: a colour, a shape, the relation, an object too many
or too few. Closed-form targets guide the first half of the training, about three minutes on one core.

    python -m unigrpo.quickstart.makers.clip OUT --seed 0
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from unigrpo.quickstart.scenes import (
    COLORS,
    ITEMS,
    LAYOUTS,
    NUM_CELLS,
    RELATIONS,
    SHAPES,
    Cell,
    ImagineScenes,
    Item,
    Scene,
    caption,
    caption_scene,
    render,
)

log = logging.getLogger(__name__)

CONTEXT_LENGTH = 16
SPECIAL = ("<pad>", "<unk>")
WORDS = (*COLORS, *SHAPES, "left", "right", "above", "below", "of", "is", "the", "a", "and", "picture", "one", ",", ".")
VOCABULARY = (*SPECIAL, *WORDS, "<start>", "<end>")
"""The end token is last: the text tower pools at the highest id."""
VISION = {"image_size": 64, "layers": 2, "width": 96, "head_width": 24, "patch_size": 16, "pool_type": "avg"}
TEXT = {"hf_tokenizer_name": "tokenizer.json", "vocab_size": len(VOCABULARY), "context_length": CONTEXT_LENGTH}
CONFIG: dict[str, Any] = {
    "model_cfg": {"embed_dim": 96, "vision_cfg": VISION, "text_cfg": TEXT | {"width": 96, "heads": 4, "layers": 2}},
    "preprocess_cfg": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
}
LOGIT_SCALE = 10.0
"""Fixed and low, so that right and wrong must differ much in cosine, which is what the reward reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A scene and its caption, with captions and scenes that do not belong."""

    scene: Scene
    text: str
    items: tuple[Item, Item]
    relation: str | None
    """None for a text that only lists the items."""
    wrong_texts: tuple[str, ...]
    wrong_scenes: tuple[Scene, ...]


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json: lower-case words, anything else unknown."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, ids[name]) for name in ("<start>", "<end>")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(folder)


def _other(item: Item, rng: np.random.Generator, attribute: str) -> Item:
    """Return the item with another colour or shape."""
    choices = [
        other
        for other in ITEMS
        if (other.color != item.color, other.shape != item.shape) == (attribute == "colour", attribute == "shape")
    ]
    return choices[int(rng.integers(len(choices)))]


def _holding(first: Cell, second: Cell) -> list[str]:
    """Return the relations in which two cells stand."""
    rows, columns = second[0] - first[0], second[1] - first[1]
    holds = (columns > 0, columns < 0, rows > 0, rows < 0)
    return [relation for relation, is_so in zip(RELATIONS, holds, strict=True) if is_so]


def example(rng: np.random.Generator) -> Example:
    """Return a random scene of two items, in a caption's layout or anywhere, with what is wrong for it."""
    first, second = (ITEMS[index] for index in rng.choice(len(ITEMS), size=2, replace=False))
    if rng.random() < 0.6:
        relation = str(rng.choice(RELATIONS))
        where_first, where_second = caption_scene(first, relation, second).cells
    else:
        where_first, where_second = (
            (int(index) // NUM_CELLS, int(index) % NUM_CELLS) for index in rng.permutation(NUM_CELLS**2)[:2]
        )
        relation = str(rng.choice(_holding(where_first, where_second)))
    free = [cell for cell in np.ndindex(NUM_CELLS, NUM_CELLS) if cell not in (where_first, where_second)]
    extra = free[int(rng.integers(len(free)))]
    slips = [str(name) for name in rng.permutation(["colour", "shape"])]
    altered, is_first = _other(first, rng, slips[0]), rng.random() < 0.5
    wrong = (altered, second) if is_first else (first, _other(second, rng, slips[0]))
    too_many = {where_first: first, where_second: second, extra: ITEMS[int(rng.integers(len(ITEMS)))]}
    too_few = {where_first: first} if is_first else {where_second: second}
    swapped = Scene(cells={where_first: second, where_second: first})
    if rng.random() < 0.2:
        text, layout = f"{first}, {second}", None
        wrong_texts = [f"{wrong[0]}, {wrong[1]}", f"{altered}, {_other(second, rng, slips[1])}"]
        swapped = Scene(cells={where_first: altered, where_second: _other(second, rng, slips[1])})
    else:
        text, layout = caption(first, relation, second), relation
        turned = str(rng.choice([name for name in RELATIONS if name not in _holding(where_first, where_second)]))
        wrong_texts = [caption(wrong[0], relation, wrong[1]), caption(second, relation, first)]
        wrong_texts.append(caption(first, turned, second))
    return Example(
        scene=Scene(cells={where_first: first, where_second: second}),
        text=text,
        relation=layout,
        items=(first, second),
        wrong_texts=tuple(wrong_texts),
        wrong_scenes=(
            swapped,
            Scene(cells={where_first: wrong[0], where_second: wrong[1]}),
            Scene(cells=too_many if rng.random() < 0.5 else too_few),
        ),
    )


class Targets:
    """Where pictures and captions should lie before contrast sets in: sums over items, in closed form.

    Contrast alone soon tells colours and shapes apart, and then rests for thousands of steps before it finds out which
    item is the left one. So each item gets random vectors for being there, for its column and for its row; a picture
    is the sum over its items, a caption that of its layout.
    """

    def __init__(self, seed: int, width: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> Tensor:
            return torch.randn(count, 3, width, generator=generator)

        whole = draw(len(ITEMS)).view(len(COLORS), len(SHAPES), 3, width)
        mixed = draw(len(COLORS))[:, None] + draw(len(SHAPES))[None] + whole
        self._vectors = mixed.reshape(len(ITEMS), 3, width)

    def _place(self, cell: Cell | None) -> Tensor:
        if cell is None:
            return torch.tensor([1.0, 0.0, 0.0])
        middle = (NUM_CELLS - 1) / 2
        return torch.tensor([1.0, 1.3 * (cell[0] - middle) / middle, 1.3 * (cell[1] - middle) / middle])

    def _sum(self, placed: list[tuple[Item, Cell | None]]) -> Tensor:
        return torch.stack([self._place(cell) @ self._vectors[item.kind - 1] for item, cell in placed]).sum(dim=0)

    def pictures(self, scenes: list[Scene]) -> Tensor:
        """Return [N, D] unit vectors."""
        sums = [self._sum([(item, cell) for cell, item in scene.cells.items()]) for scene in scenes]
        return F.normalize(torch.stack(sums), dim=-1)

    def captions(self, examples: list[Example]) -> Tensor:
        """Return [N, D] unit vectors of the right texts."""
        layouts = [LAYOUTS[one.relation] if one.relation else (None, None) for one in examples]
        sums = [
            self._sum(list(zip(one.items, cells, strict=True))) for one, cells in zip(examples, layouts, strict=True)
        ]
        return F.normalize(torch.stack(sums), dim=-1)


def pixels_of(scenes: list[Scene]) -> Tensor:
    """Return [N, 3, 64, 64] in [-1, 1]."""
    stacked = np.stack([np.asarray(render(scene)) for scene in scenes]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked).float() / 127.5 - 1


def contrast(scores: Tensor, own: Tensor) -> Tensor:
    """Return the mean cross-entropy of the diagonal of [N, M], M >= N, entries equal to the own one left out.

    Args:
        scores: similarity of each of N anchors to M candidates; candidate n is the right one of anchor n.
        own: [N, M] bool, candidates that are right, too.
    """
    keep = ~own
    index = torch.arange(len(scores))
    keep[index, index] = True
    return F.cross_entropy(scores.masked_fill(~keep, -torch.inf), index)


def loss_of(
    model: Any, tokenize: Any, examples: list[Example], rng: np.random.Generator, targets: Targets, guidance: float
) -> Tensor:
    """Return the contrastive loss of a batch, pictures against texts and texts against pictures.

    ``guidance`` weighs the distance of both from their targets.
    """
    texts = [one.text for one in examples] + [wrong for one in examples for wrong in one.wrong_texts]
    scenes = [one.scene for one in examples] + [wrong for one in examples for wrong in one.wrong_scenes]
    pixels = pixels_of(scenes)
    pixels = pixels + torch.from_numpy(rng.normal(0, 0.05, pixels.shape)).float()
    pictures = model.encode_image(pixels, normalize=True)
    captions = model.encode_text(tokenize(texts), normalize=True)
    count = len(examples)
    own_text = torch.tensor([[text == one.text for text in texts] for one in examples])
    kinds = np.stack([scene.kinds for scene in scenes]).reshape(len(scenes), -1)
    own_scene = torch.from_numpy((kinds[:count, None] == kinds[None]).all(axis=-1))
    loss = contrast(LOGIT_SCALE * pictures[:count] @ captions.T, own_text)
    loss = loss + contrast(LOGIT_SCALE * captions[:count] @ pictures.T, own_scene)
    off_pictures = 1 - (pictures * targets.pictures(scenes)).sum(dim=-1).mean()
    off_captions = 1 - (captions[:count] * targets.captions(examples)).sum(dim=-1).mean()
    return loss + guidance * (off_pictures + off_captions)


def make_clip(folder: Path, seed: int, *, num_steps: int = 800, batch_size: int = 32, lr: float = 1e-3) -> Any:
    """Write the configuration and tokenizer, train, and return the model; deterministic in the seed."""
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    write_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # open_clip draws its first weights from the global generator
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.logit_scale.data.fill_(math.log(LOGIT_SCALE))
    model.logit_scale.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)
    rng, targets = np.random.default_rng(seed), Targets(seed, CONFIG["model_cfg"]["embed_dim"])
    model.train()
    for step in range(num_steps):
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 50) * decay
        guidance = 20.0 * max(0.0, 1 - 2 * step / num_steps)
        loss = loss_of(model, tokenize, [example(rng) for _ in range(batch_size)], rng, targets, guidance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99 or step == num_steps - 1:
            log.info("step %d of %d: loss %.4f", step + 1, num_steps, float(loss.detach()))
            log.info("right picture preferred: %.4f of captions", accuracy(model, tokenize))
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, tokenize: Any, num_prompts: int = 256) -> float:
    """Return how often a caption is closer to its picture than to the same with one thing wrong."""
    source, rng = ImagineScenes("eval", 0), np.random.default_rng(0)
    prompts = [source[index] for index in range(num_prompts)]
    captions = model.encode_text(tokenize([prompt.text for prompt in prompts]), normalize=True)
    cosines = []
    for noise in (0.0, 1.0):
        pictures = np.stack([np.asarray(source.demonstration(prompt, rng, noise)) for prompt in prompts])
        pixels = torch.from_numpy(pictures.transpose(0, 3, 1, 2)).float() / 127.5 - 1
        cosines.append((model.encode_image(pixels, normalize=True) * captions).sum(dim=-1))
    log.info("cosine %.3f when right, %.3f with one thing wrong", float(cosines[0].mean()), float(cosines[1].mean()))
    return float((cosines[0] > cosines[1]).float().mean())


def main(arguments: list[str] | None = None) -> None:
    """Train, check and write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    model = make_clip(options.out, options.seed)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, options.out / "open_clip_model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
