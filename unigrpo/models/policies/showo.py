"""Show-o: pictures by discrete diffusion and text by next-token prediction, in one Phi body.

    imagine      [t2i] bos text eos soi MASK*N eoi        twin: [pad]*left [t2i] bos eos soi MASK*N eoi
    understand   [mmu] soi codes eoi bos "USER: … ASSISTANT:", open text

Who sees whom follows from the ids of a row (Show-o's omni-attention): text sees what stands before it; a picture that
is written sees everything; a picture that is read is seen by everything. Text is predicted from the position before it,
which `hidden` moves into place, so that the sampler writes it token by token where the block length is 1. It does not
train: a masked token says nothing about a distribution that looks only back.

Written from the released config keys and tensor names (showlab/show-o, showlab/show-o-512x512).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unigrpo.errors import UserError
from unigrpo.models.base import Abilities
from unigrpo.models.canvas import Piece, text_canvas
from unigrpo.models.files.folders import read_json
from unigrpo.models.layers.attention import mask_pieces
from unigrpo.models.layers.phi import Phi, body_config
from unigrpo.models.layers.shift import predicting_positions
from unigrpo.models.layers.transformers_body import fill_buffers, set_recomputing
from unigrpo.models.picture_codes import PictureCodesPolicy
from unigrpo.settings.tasks import SamplingSettings, ScheduleChoice
from unigrpo.types import Canvas, ImageFit, ModelInput, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

PHI_1_5: Mapping[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.5,
    "eos_token_id": 50256,
    "max_position_embeddings": 2048,
}
"""The sizes of microsoft/phi-1_5, which the release names and does not carry."""

SPECIAL = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
"""The tokens that Show-o adds after the text tokens, in their order; the image codes come next."""
MAX_CUTS = 4
"""Columns where a picture starts or ends in some row, at which the mask is cut: most batches have one layout or two."""


def omni_visible(token_ids: Tensor, is_padding: Tensor | None, *, soi: int, eoi: int, t2i: int, mmu: int) -> Tensor:
    """Return [N, 1, L, L]: whether the query (third axis) sees the key (last).

    A row with ``t2i`` writes a picture, one with ``mmu`` reads one, any other is text. Nobody sees padding, but for a
    padding position itself: no softmax over nothing, hence no NaN.

    Args:
        token_ids: [N, L].
        is_padding: [N, L] bool, or None.
        soi: id of the start of a picture.
        eoi: of its end.
        t2i: of a row that writes a picture.
        mmu: of a row that reads one.
    """
    length, device = token_ids.shape[1], token_ids.device
    is_real = torch.ones_like(token_ids, dtype=torch.bool) if is_padding is None else ~is_padding
    column = torch.arange(length, device=device)
    is_end = (token_ids == eoi) & is_real
    num_open = ((token_ids == soi) & is_real).long().cumsum(1) - is_end.long().cumsum(1)
    is_picture = (num_open > 0) | is_end
    writes, reads = (((token_ids == token) & is_real).any(dim=1)[:, None, None] for token in (t2i, mmu))
    last_end = torch.where(is_end, column, -1).amax(dim=1)[:, None]
    is_visible = (column[None] <= column[:, None])[None]
    is_visible = is_visible | (writes & is_picture[:, :, None]) | (reads & (column[None] <= last_end)[:, None, :])
    is_visible = is_visible & is_real[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=device)[None]
    return (is_visible | (itself & ~is_real[:, None, :]))[:, None]


class ShowoPolicy(PictureCodesPolicy):
    """Show-o behind the policy contract: a picture out, or a picture and a question in and text out."""

    abilities = Abilities(
        tasks=("understand", "imagine"),
        untrained=("reason", "understand"),
        why_untrained="Show-o predicts text from what stands before it, so a masked token says nothing about it; its "
        "text can be evaluated, its pictures train",
        attention="omni",
        pictures="codes",
        image_fit="crop",  # image_transform of training/utils.py, in training and inference
    )
    architectures = ("Showo",)
    hub_names = ("show-o",)
    layouts = r"""
    showo:
      title: Show-o
      checkpoints: 256 and 512 pixels, 1.3B
      golden: showo_tiny
      config: {_class_name: Showo, _diffusers_version: 0.32.2, codebook_size: 16, num_vq_tokens: 16,
        llm_model_path: phi_config, load_from_showo: true, w_clip_vit: false}
      ids: {phi_config.eos_token_id: <|endoftext|>, phi_config.bos_token_id: <|endoftext|>}
      special_tokens: [<|endoftext|>]
      chat_template: "USER: \n{% for message in messages %}{{ message['content'] }}{% endfor %} ASSISTANT:"
      bos_token: <|endoftext|>
      eos_token: <|endoftext|>
      layers_key: phi_config.num_hidden_layers
      width_key: phi_config.hidden_size
      text_rows_key: llm_vocab_size
      rounding: 1
      codebook_size: 16
      extra_rows: 11
      releases:
        '256': {llm_model_path: microsoft/phi-1_5, llm_vocab_size: 50295, vocab_size: 58498,
          codebook_size: 8192, num_vq_tokens: 256, phi_config.hidden_size: 2048, phi_config.intermediate_size: 8192,
          phi_config.num_hidden_layers: 24, phi_config.num_attention_heads: 32, phi_config.num_key_value_heads: 32}
        '512': {llm_model_path: microsoft/phi-1_5, llm_vocab_size: 50295, vocab_size: 58498,
          codebook_size: 8192, num_vq_tokens: 1024, phi_config.hidden_size: 2048, phi_config.intermediate_size: 8192,
          phi_config.num_hidden_layers: 24, phi_config.num_attention_heads: 32, phi_config.num_key_value_heads: 32}
      files: {phi_config/config.json: {model_type: phi, hidden_size: 64, intermediate_size: 128,
          num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4, partial_rotary_factor: 0.5,
          qk_layernorm: true, hidden_act: gelu_new, layer_norm_eps: 1.0e-05, max_position_embeddings: 2048,
          rope_theta: 10000.0, tie_word_embeddings: false}}
    """

    token_text: ClassVar[Mapping[str, str]] = {}
    module: Phi

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        fill_buffers(self.module.showo)
        start, _ = self._image_range
        self.vocabulary = replace(self.vocabulary, text_range=(0, start - len(SPECIAL)))

    @classmethod
    def complete_config(cls, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Return the config with the language model's own, which the release only names, and with the ids.

        Raises:
            UserError: a language model that is not known and not in the folder, or ids that do not add up.
        """
        name = str(config.get("llm_model_path", "microsoft/phi-1_5"))
        local = folder / name / "config.json"
        if "phi" in config:
            phi = dict(config["phi"])
        elif local.is_file():
            phi = read_json(local)
        elif name.endswith("phi-1_5"):
            phi = dict(PHI_1_5)
        else:
            raise UserError(
                f"config.json has llm_model_path {name!r}, which is no folder beside it; put that model's config.json "
                f"at {local}"
            )
        missing = [key for key in ("vocab_size", "llm_vocab_size", "codebook_size") if not config.get(key)]
        if missing:
            raise UserError(f"config.json lacks {', '.join(missing)}: the layout of Show-o's vocabulary")
        first = int(config["llm_vocab_size"])
        offset = first + len(SPECIAL)
        if offset + config["codebook_size"] + 1 != config["vocab_size"]:
            raise UserError(
                f"config.json has vocab_size {config['vocab_size']}; {first} text tokens, {len(SPECIAL)} special ones, "
                f"{config['codebook_size']} image codes and the mask are {offset + config['codebook_size'] + 1}"
            )
        ids = {f"{special}_token_id": first + place for place, special in enumerate(SPECIAL)}
        ids |= {"ipad_token_id": ids["pad_token_id"], "mask_token_id": config["vocab_size"] - 1, "image_offset": offset}
        end = int(phi.get("eos_token_id") or PHI_1_5["eos_token_id"])
        return dict(config) | ids | {"eos_token_id": end, "bos_token_id": end, "phi": phi}

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Phi:
        """Return the body of a config.json.

        Raises:
            UserError: the variant with a CLIP tower, or a language model that this code does not compute.
        """
        if config.get("w_clip_vit"):
            raise UserError("config.json has w_clip_vit = True; this model code reads pictures as discrete codes only")
        return Phi(body_config(config.get("phi") or PHI_1_5, config["vocab_size"]))

    def recompute_blocks(self, is_recomputed: bool) -> None:
        """Have each layer computed again in backward, or not: less memory, more time."""
        set_recomputing(self.module.showo, is_recomputed)

    def hidden(self, model_input: ModelInput) -> Tensor:
        """Return [N, L, D] after the final norm; in rows of text, each position's from the one before it."""
        ids, is_padding = model_input.token_ids, model_input.is_padding
        soi, eoi, t2i, mmu = self._special("soi", "eoi", "t2i", "mmu")
        is_seen = omni_visible(ids, is_padding, soi=soi, eoi=eoi, t2i=t2i, mmu=mmu)[:, 0]
        is_mark = (ids == soi) | (ids == eoi)
        bounds = {0, ids.shape[1], *is_mark.any(dim=0).nonzero().flatten().tolist()[:MAX_CUTS]}
        is_visible = mask_pieces(lambda start, stop: is_seen[:, start:stop], bounds)
        hidden = self.module(ids, is_visible, model_input.positions)
        is_real = torch.ones_like(ids, dtype=torch.bool) if is_padding is None else ~is_padding
        is_text = ~((ids == t2i) & is_real).any(dim=1, keepdim=True)
        if not bool(is_text.any()):
            return hidden
        here = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        index = torch.where(is_text, predicting_positions(~is_real), here)
        return hidden.gather(1, index[..., None].expand_as(hidden))

    def encode(self, prompt: Prompt, sampling: SamplingSettings) -> Canvas:
        """Return the canvas of a picture to write, or of a question about one picture, answered token by token.

        Raises:
            UserError: a prompt of another kind, or ids that are not known.
        """
        if prompt.kind == "imagine":
            return super().encode(prompt, sampling)
        length = sampling.completion_length
        by_token = {"block_length": 1, "num_denoising_steps": length, "schedule": ScheduleChoice()}
        pieces = self._text_pieces(prompt, self._picture_ids)
        return text_canvas(pieces, sampling.model_copy(update=by_token), self.vocabulary)

    def _text_pieces(self, prompt: Prompt, read: Callable[[Image, ImageFit | None], Sequence[int]]) -> list[Piece]:
        if prompt.kind != "understand" or len(prompt.images) != 1 or len(prompt.messages) != 1:
            raise UserError(
                f"prompt {prompt.id!r} is of kind {prompt.kind!r} with {len(prompt.images)} pictures and "
                f"{len(prompt.messages)} messages; Show-o answers one question about one picture, or writes a picture"
            )
        mmu, soi, eoi, bos = self._special("mmu", "soi", "eoi", "bos")
        question = self.text_tokenizer.encode(f"USER: \n{prompt.text} ASSISTANT:")
        picture = read(prompt.images[0], prompt.image_fit)
        return [([mmu, soi], None), (picture, "image_slot"), ([eoi, bos, *question], None)]
