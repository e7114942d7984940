"""MAGVIT-v2: pictures to discrete codes and back, in the released layout of tensor names.

A convolutional encoder halves the picture once a level and emits one channel a bit; lookup-free quantisation keeps the
signs (Yu et al., arXiv 2310.05737); a decoder mirrors the encoder. The layout is that of the image tokenizer which
Show-o and MMaDA use. Every size is read from the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unigrpo.errors import MissingFileError, UserError
from unigrpo.files import optional_file
from unigrpo.models.files.folders import resolve_folder
from unigrpo.models.files.headers import read_headers, require_reals
from unigrpo.models.files.weights import read_tensors

FILES = ("pytorch_model.safetensors", "model.safetensors")
NORM_GROUPS = 32
MAX_PIXEL = 16.0
"""Pictures whose pixels go beyond it are taken for 0..255 ones."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSizes:
    """One resolution of the encoder or decoder."""

    num_blocks: int
    channels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MagvitSizes:
    """Everything that tells one tokenizer of the layout from another."""

    num_bits: int
    base_channels: int
    """Channels of the full resolution, next to the picture."""
    down: tuple[LevelSizes, ...]
    """From the full resolution to the coarsest."""
    up: tuple[LevelSizes, ...]
    """From the full resolution to the coarsest, too: the decoder runs it backwards."""
    image_channels: int = 3


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two normalised 3 x 3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, C', h, w]."""
        change = self.conv1(F.silu(self.norm1(hidden)))
        change = self.conv2(F.silu(self.norm2(change)))
        return (self.nin_shortcut(hidden) if hasattr(self, "nin_shortcut") else hidden) + change


class SpatialAttention(nn.Module):
    """One head of self-attention among all positions of a picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape."""
        normed = self.norm(hidden)
        q, k, v = (project(normed).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return hidden + self.proj_out(mixed.transpose(1, 2).reshape(hidden.shape))


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape."""
        return self.block_2(self.attn_1(self.block_1(hidden)))


class Halve(nn.Module):
    """Half the resolution: a 3 x 3 convolution of stride 2, zeros added on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, C, h/2, w/2]."""
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the resolution: each position repeated, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, C, 2h, 2w]."""
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, then the step to the next."""

    def __init__(self, channels_in: int, sizes: LevelSizes, step: type[Halve] | type[Double] | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(channels_in if index == 0 else sizes.channels, sizes.channels)
            for index in range(sizes.num_blocks)
        )
        self.name = {Halve: "downsample", Double: "upsample", None: None}[step]
        if step is not None and self.name is not None:
            self.add_module(self.name, step(sizes.channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, C, h, w] to the next level's resolution."""
        for block in self.block:
            hidden = block(hidden)
        return hidden if self.name is None else self.get_submodule(self.name)(hidden)


class Encoder(nn.Module):
    """Pictures to one real number a bit."""

    def __init__(self, sizes: MagvitSizes) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(sizes.image_channels, sizes.base_channels, 3, padding=1)
        channels_in = [sizes.base_channels, *(level.channels for level in sizes.down)]
        last = len(sizes.down) - 1
        self.down = nn.ModuleList(
            Level(channels_in[index], level, Halve if index < last else None) for index, level in enumerate(sizes.down)
        )
        self.mid = Middle(channels_in[-1])
        self.norm_out = _norm(channels_in[-1])
        self.conv_out = nn.Conv2d(channels_in[-1], sizes.num_bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(sizes.num_bits, sizes.num_bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [N, 3, H, W] in [-1, 1] to [N, bits, h, w]."""
        hidden = self.conv_in(pixels)
        for level in self.down:
            hidden = level(hidden)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(hidden)))))


class Decoder(nn.Module):
    """Signs of bits to pictures."""

    def __init__(self, sizes: MagvitSizes) -> None:
        super().__init__()
        coarsest = sizes.up[-1].channels
        channels_in = [*(level.channels for level in sizes.up[1:]), coarsest]
        self.post_quant_conv = nn.Conv2d(sizes.num_bits, sizes.num_bits, 1)
        self.conv_in = nn.Conv2d(sizes.num_bits, coarsest, 3, padding=1)
        self.mid = Middle(coarsest)
        self.up = nn.ModuleList(
            Level(channels_in[index], level, Double if index > 0 else None) for index, level in enumerate(sizes.up)
        )
        self.norm_out = _norm(sizes.up[0].channels)
        self.conv_out = nn.Conv2d(sizes.up[0].channels, sizes.image_channels, 3, padding=1)

    def forward(self, signs: Tensor) -> Tensor:
        """Map [N, bits, h, w] of -1 and 1 to [N, 3, H, W], about [-1, 1]."""
        hidden = self.mid(self.conv_in(self.post_quant_conv(signs)))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class Quantizer(nn.Module):
    """Lookup-free quantisation: a code is the number whose bits are the signs of the latent."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, num_bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(num_bits - 1, -1, -1)  # the first channel is the most significant bit
        signs = (torch.arange(2**num_bits, device=powers.device)[:, None] & powers > 0).float() * 2 - 1
        self.register_buffer("embedding", signs)
        self.register_buffer("power_vals", powers)

    def codes(self, latent: Tensor) -> Tensor:
        """Map [N, bits, h, w] to codes [N, h * w] int64, row by row."""
        is_set = (latent > 0).flatten(2).transpose(1, 2)
        return (is_set * self.power_vals.long()).sum(dim=-1)

    def signs(self, codes: Tensor) -> Tensor:
        """Map codes [..., K] to [..., K, bits] of -1 and 1."""
        return self.embedding[codes]


class ImageTokenizer(nn.Module):
    """MAGVIT-v2 with its two directions."""

    def __init__(self, sizes: MagvitSizes) -> None:
        """Build an untrained tokenizer of given sizes.

        Raises:
            UserError: if the encoder and the decoder differ in their number of levels.
        """
        super().__init__()
        if len(sizes.down) != len(sizes.up):
            raise UserError(f"{len(sizes.down)} levels down but {len(sizes.up)} up; the decoder mirrors the encoder")
        self.codebook_size: int = 2**sizes.num_bits
        self.downsampling: int = 2 ** (len(sizes.down) - 1)
        self.encoder = Encoder(sizes)
        self.quantize = Quantizer(sizes.num_bits)
        self.decoder = Decoder(sizes)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return codes [N, K] int64 of pictures, K = H·W / downsampling², row by row.

        Args:
            pixels: [N, 3, H, W] float in [-1, 1].

        Raises:
            UserError: for another shape or type, or a side that the downsampling does not divide.
        """
        self._check_pixels(pixels)
        weight = self.encoder.conv_in.weight
        return self.quantize.codes(self.encoder(pixels.to(weight)))

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Return pictures [N, 3, H, W], about [-1, 1], not clamped.

        Args:
            codes: [N, K] integers, row by row.
            grid: rows and columns of codes; None is a square.

        Raises:
            UserError: if the codes do not fill the grid or are not in the codebook.
        """
        if codes.ndim != 2 or codes.is_floating_point():
            raise UserError(f"codes of shape {tuple(codes.shape)} and type {codes.dtype}; wanted [N, K] integers")
        rows, columns = self._grid(codes.shape[1], grid)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise UserError(
                f"codes {int(codes.min())}..{int(codes.max())}; the codebook is 0..{self.codebook_size - 1}; "
                "subtract the offset of the image codes from token ids"
            )
        weight = self.decoder.conv_in.weight
        signs = self.quantize.signs(codes.to(weight.device)).to(weight)
        return self.decoder(signs.transpose(1, 2).unflatten(2, (rows, columns)))

    def _grid(self, num_codes: int, grid: tuple[int, int] | None) -> tuple[int, int]:
        side = math.isqrt(num_codes)
        rows, columns = (side, side) if grid is None else grid
        if rows * columns != num_codes:
            wanted = "a square" if grid is None else f"{rows} x {columns}"
            raise UserError(f"{num_codes} codes do not make {wanted}; give grid=(rows, columns) of the picture")
        return rows, columns

    def _check_pixels(self, pixels: Tensor) -> None:
        channels = self.encoder.conv_in.in_channels
        if pixels.ndim != 4 or pixels.shape[1] != channels or not pixels.is_floating_point():
            raise UserError(
                f"pixels of shape {tuple(pixels.shape)} and type {pixels.dtype}; wanted [N, {channels}, H, W] float in "
                "[-1, 1]: uint8 / 127.5 - 1"
            )
        height, width = pixels.shape[2:]
        step = self.downsampling
        if height % step or width % step or not height * width:
            raise UserError(
                f"a picture of {height} x {width} pixels does not split into {step} x {step} ones; resize or crop it "
                f"to {max(step, height // step * step)} x {max(step, width // step * step)}"
            )
        if pixels.numel() and float(pixels.abs().amax()) > MAX_PIXEL:
            raise UserError(f"pixels up to {float(pixels.abs().amax()):.0f}; wanted [-1, 1]: uint8 / 127.5 - 1")


def sizes_of(shapes: Shapes) -> MagvitSizes:
    """Read the sizes of a tokenizer from the shapes of its tensors.

    Raises:
        UserError: naming a tensor that the layout needs and that is not there.
    """
    conv_in, conv_out = _shape(shapes, "encoder.conv_in.weight"), _shape(shapes, "encoder.quant_conv.weight")
    return MagvitSizes(
        num_bits=conv_out[0],
        base_channels=conv_in[0],
        image_channels=conv_in[1],
        down=_levels(shapes, "encoder.down"),
        up=_levels(shapes, "decoder.up"),
    )


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"no tensor {name}; wanted the MAGVIT-v2 layout (encoder.*, decoder.*, quantize.*)")
    return tuple(shapes[name])


def _levels(shapes: Shapes, prefix: str) -> tuple[LevelSizes, ...]:
    levels: list[LevelSizes] = []
    while f"{prefix}.{len(levels)}.block.0.conv1.weight" in shapes or not levels:
        start = f"{prefix}.{len(levels)}.block"
        channels = _shape(shapes, f"{start}.0.conv1.weight")[0]
        num_blocks = 1
        while f"{start}.{num_blocks}.conv1.weight" in shapes:
            num_blocks += 1
        levels.append(LevelSizes(num_blocks=num_blocks, channels=channels))
    return tuple(levels)


def build_image_tokenizer(tensors: Mapping[str, Tensor]) -> ImageTokenizer:
    """Return a tokenizer that holds the given tensors.

    Raises:
        UserError: naming the tensors that are missing, unknown or of another shape.
    """
    sizes = sizes_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    odd = [level.channels for level in (*sizes.down, *sizes.up) if level.channels % NORM_GROUPS]
    if odd or sizes.base_channels % NORM_GROUPS:
        raise UserError(f"{odd or sizes.base_channels} channels do not split into {NORM_GROUPS} groups of the norm")
    with torch.device("meta"):
        tokenizer = ImageTokenizer(sizes)
    wanted = tokenizer.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {list(tensors[name].shape)}, wanted {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"the tensors do not fit the MAGVIT-v2 layout: {'; '.join(problems[:8])}{more}")
    tokenizer.load_state_dict(dict(tensors), assign=True)
    return tokenizer.eval().requires_grad_(False)


def load_image_tokenizer(
    path: str | Path, *, dtype: str = "float32", device: str = "cpu", revision: str | None = None
) -> ImageTokenizer:
    """Load a MAGVIT-v2 tokenizer from safetensors.

    Args:
        path: a folder, a hub id or ``asset:NAME``, with pytorch_model.safetensors or model.safetensors.
        dtype: float32, or bfloat16 where speed matters more than the codes of borderline cells.
        device: where the weights go.
        revision: branch, tag or commit of a hub id.

    Raises:
        MissingFileError: if there is no such folder, or no safetensors in it; pickled weights are never opened.
        UserError: if the tensors do not fit, naming them.
    """
    folder = resolve_folder(path, files=(*FILES, "config.json"), revision=revision)
    file = next((folder / name for name in FILES if optional_file(folder / name)), None)
    if file is None:
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        hint = f"; {', '.join(pickles)} may run code when opened: convert it to safetensors" if pickles else ""
        raise MissingFileError(f"{folder} holds neither {' nor '.join(FILES)}{hint}")
    target = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(dtype)
    if target is None:
        raise UserError(f"dtype {dtype!r} for an image tokenizer; give float32 or bfloat16")
    try:
        stored = read_headers([file])
        require_reals(stored, [name for name in stored if name.endswith(("weight", "bias"))])
        tensors = dict(read_tensors([file], frozenset(stored), torch.float32, torch.device("cpu")))
        tokenizer = build_image_tokenizer(tensors)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    for part in (tokenizer.encoder, tokenizer.decoder):
        part.to(device=device, dtype=target)
    tokenizer.quantize.to(device)
    return tokenizer
