"""Make the quickstart's image tokenizer: MAGVIT-v2's layout, 4 bits, one code for each kind of cell.

The encoder learns to give every cell the bits of its kind; the decoder learns to draw any grid of kinds. Both are
small convolutional networks trained from nothing, deterministic in the seed: about five minutes on one core.

    python -m unigrpo.quickstart.makers.image_tokenizer OUT --seed 0
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from unigrpo.models.pictures.magvit import ImageTokenizer, LevelSizes, MagvitSizes, Quantizer, build_image_tokenizer
from unigrpo.quickstart.scenes import NUM_CELLS, random_scene, render

log = logging.getLogger(__name__)

NUM_BITS = 4
LEVELS = tuple(LevelSizes(num_blocks=1, channels=channels) for channels in (32, 32, 32, 64, 64))
"""Channels are multiples of 32, the layout's groups of the norm; the coarse levels, which cost little, are wider."""
SIZES = MagvitSizes(num_bits=NUM_BITS, base_channels=32, down=LEVELS, up=LEVELS)
SMOOTH = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
COARSE = (".mid.", "decoder.conv_in", "encoder.conv_out", "up.2.block", "up.3.block", "up.4.block", "down.4.block")
MARGIN = 2.0
"""How far from 0 the encoder must push every bit."""


def _first_weights(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return random weights with two priors that save most of the training.

    Coarse convolutions start out looking at their own position: a cell's picture depends on its code. Doubling starts
    as smooth interpolation: repeating each position leaves the four copies alike, and only a difference to a neighbour
    tells a pixel where in its cell it is.
    """
    gain = 0.2 if name.endswith(("conv2.weight", "proj_out.weight")) else 1.4
    weight = torch.randn(shape, generator=generator) * gain / math.sqrt(math.prod(shape[1:]))
    if name.endswith("upsample.conv.weight"):
        return 0.1 * weight + torch.eye(shape[0])[:, :, None, None] * SMOOTH
    if shape[-1] == 3 and any(part in name for part in COARSE):
        own = 3 * weight[:, :, 1, 1]
        weight = 0.1 * weight
        weight[:, :, 1, 1] = own
    return weight


def untrained(sizes: MagvitSizes, seed: int) -> ImageTokenizer:
    """Return a tokenizer of random weights in which every residual branch starts small."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ImageTokenizer(sizes).named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        else:
            tensors[name] = _first_weights(name, shape, generator)
    tensors |= {f"quantize.{name}": tensor for name, tensor in Quantizer(sizes.num_bits).state_dict().items()}
    return build_image_tokenizer(tensors).train()


def examples(rng: np.random.Generator, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return pixels [N, 3, 64, 64] in [-1, 1] and kinds [N, 16] of random scenes, a quarter of them with few items."""
    most = [3 if index % 4 == 0 else NUM_CELLS**2 for index in range(batch_size)]
    scenes = [random_scene(rng, int(rng.integers(0, limit + 1))) for limit in most]
    pixels = np.stack([np.asarray(render(scene)) for scene in scenes]).transpose(0, 3, 1, 2)
    kinds = np.stack([scene.kinds.reshape(-1) for scene in scenes])
    return torch.from_numpy(pixels).float() / 127.5 - 1, torch.from_numpy(kinds)


def encoder_losses(
    tokenizer: ImageTokenizer, rng: np.random.Generator, num_steps: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield the hinge loss of every bit on pictures with noise, and on the decoder's own pictures of them."""
    for step in range(num_steps):
        pixels, kinds = examples(rng, batch_size)
        signs = tokenizer.quantize.signs(kinds)
        if step % 2:
            pixels = tokenizer.decode(kinds)
        pixels = pixels + torch.from_numpy(rng.normal(0, 0.05, pixels.shape)).float()
        latent = tokenizer.encoder(pixels).flatten(2).transpose(1, 2)
        yield F.relu(MARGIN - latent * signs).mean()


def decoder_losses(
    tokenizer: ImageTokenizer, rng: np.random.Generator, num_steps: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield the distance of the drawn pictures from the rendered ones, object pixels and ground alike."""
    for _ in range(num_steps):
        pixels, kinds = examples(rng, batch_size)
        signs = tokenizer.quantize.signs(kinds).transpose(1, 2).unflatten(2, (NUM_CELLS, NUM_CELLS))
        difference = tokenizer.decoder(signs) - pixels
        yield difference.abs().mean() + 4 * difference.square().mean()


def fit(parameters: Iterator[torch.nn.Parameter], losses: Iterator[Tensor], num_steps: int, lr: float) -> float:
    """Minimise a series of losses with AdamW, the rate rising for 20 steps and then falling as a cosine."""
    optimizer = torch.optim.AdamW(list(parameters), lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    value = math.nan
    for step, loss in enumerate(losses):
        optimizer.param_groups[0]["lr"] = (
            lr * min(1, (step + 1) / 20) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        value = float(loss.detach())
        if step % 50 == 0 or step == num_steps - 1:
            log.info("step %d of %d: loss %.4f", step, num_steps, value)
    return value


def make_image_tokenizer(
    seed: int, *, num_decoder_steps: int = 1400, num_encoder_steps: int = 500, batch_size: int = 8, lr: float = 4e-3
) -> ImageTokenizer:
    """Train the decoder, then the encoder; deterministic in the seed."""
    tokenizer, rng = untrained(SIZES, seed), np.random.default_rng(seed)
    decoder = decoder_losses(tokenizer, rng, num_decoder_steps, batch_size)
    fit(tokenizer.decoder.requires_grad_(True).parameters(), decoder, num_decoder_steps, lr)
    encoder = encoder_losses(tokenizer, rng, num_encoder_steps, batch_size)
    fit(tokenizer.encoder.requires_grad_(True).parameters(), encoder, num_encoder_steps, lr)
    return tokenizer.eval().requires_grad_(False)


def accuracy(tokenizer: ImageTokenizer, seed: int, num_scenes: int = 200) -> tuple[float, float]:
    """Return the fraction of scenes, and of decoded random grids, whose codes come back exactly."""
    rng = np.random.default_rng(seed)
    pixels, kinds = examples(rng, num_scenes)
    grids = torch.from_numpy(rng.integers(0, tokenizer.codebook_size, kinds.shape))
    seen = (tokenizer.encode(pixels) == kinds).all(dim=1)
    returned = (tokenizer.encode(tokenizer.decode(grids).clamp(-1, 1)) == grids).all(dim=1)
    return float(seen.float().mean()), float(returned.float().mean())


def main(arguments: list[str] | None = None) -> None:
    """Train, check and write the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = make_image_tokenizer(options.seed)
    log.info("codes come back: %.4f of scenes, %.4f of random grids", *accuracy(tokenizer, options.seed + 1))
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tokenizer.state_dict().items()}
    save_file(tensors, options.out / "pytorch_model.safetensors", metadata={"format": "pt"})
    (options.out / "config.json").write_text(json.dumps({"model_type": "magvitv2"}, indent=2) + "\n")


if __name__ == "__main__":
    main()
