"""MMaDA: the LLaDA body with image codes in its vocabulary, and the three prompt layouts of its release.

reason       chat, open text
understand   [mmu] (soi codes eoi)*  chat, open text
imagine      see `unigrpo.models.picture_codes`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unigrpo.errors import UserError
from unigrpo.models.base import Abilities
from unigrpo.models.canvas import Piece, text_canvas
from unigrpo.models.files.vocabulary import RELEASE_LENGTH
from unigrpo.models.layers.llada import Llada, LladaConfig
from unigrpo.models.picture_codes import PictureCodesPolicy
from unigrpo.types import Canvas, ImageFit, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from unigrpo.settings.tasks import SamplingSettings

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}"
)
"""The reference's inference template (generate.py): one newline after a header, where LLaDA's has two. It stands in
where the tokenizer brings none, and replaces the file's own in the release, as the reference does."""


class MmadaPolicy(PictureCodesPolicy):
    """MMaDA behind the policy contract: text and pictures in, text or a picture out."""

    # Pictures are cropped by app.py, the released evaluation and inference_mmu.py, which squashes those of data sets
    # named ai2d, clevr, docvqa, geo or llava; training does so by the same names, and pads Geo170K in its stage 4.
    abilities = Abilities(tasks=("reason", "understand", "imagine"), pictures="codes", image_fit="crop")
    model_types = ("mmada",)
    architectures = ("MMadaModelLM",)
    hub_names = ("mmada",)
    released_sizes = """
    mmada-8b: {num_layers: 32, width: 4096, mlp_width: 12288, vocabulary: 134656, num_parameters: 8082690048, linears: {
        q_proj: 262144, k_proj: 262144, v_proj: 262144, attn_out: 262144, ff_proj: 524288, up_proj: 524288,
        ff_out: 524288}}
    """
    layouts = r"""
    mmada:
      like: llada
      title: MMaDA
      checkpoints: 8B Base, 8B MixCoT, Parallel-M
      golden: mmada_tiny
      config: {architectures: [MMadaModelLM], model_type: mmada, codebook_size: 16,
        num_new_special_tokens: 0, num_vq_tokens: 16}
      special_tokens: [<|startoftext|>, <|endoftext|>, <|mdm_mask|>, <|start_header_id|>, <|end_header_id|>,
        <|eot_id|>, <|soi|>, <|eoi|>, <|t2i|>, <|mmu|>, <|ipad|>]
      vocabulary_keys: [vocab_size, embedding_size, new_vocab_size]
      text_rows_key: llm_vocab_size
      codebook_size: 16
      releases:
        8b: {d_model: 4096, n_layers: 32, n_heads: 32, n_kv_heads: 32, mlp_hidden_size: 12288,
          vocab_size: 134656, embedding_size: 134656, new_vocab_size: 134656, llm_vocab_size: 126464,
          codebook_size: 8192, num_vq_tokens: 1024}
    """

    required_text = ("<think>", "</think>")
    module: Llada

    @classmethod
    def build(cls, config: Mapping[str, Any]) -> Llada:
        """Return the body of a config.json."""
        return Llada(LladaConfig.from_dict(config))

    def encode_text_canvas(
        self, prompt: Prompt, sampling: SamplingSettings, text_template_ids: Sequence[int]
    ) -> Canvas:
        """Return a canvas whose open text holds given tokens: infilling and continuation.

        ``text_template_ids`` are the text's ids, with the mask token at the gaps; they give the length.

        Raises:
            UserError: a template without a gap.
        """
        if self.vocabulary.mask_token_id not in text_template_ids:
            raise UserError(
                f"the text template of prompt {prompt.id!r} has no mask token ({self.vocabulary.mask_token_id}): "
                "nothing to fill"
            )
        return text_canvas(self._text_pieces(prompt, self._picture_ids), sampling, self.vocabulary, text_template_ids)

    def _chat_ids(self, prompt: Prompt) -> list[int]:
        tokenizer = self.text_tokenizer
        if tokenizer.chat_template is None or len(tokenizer) == RELEASE_LENGTH:
            return tokenizer.encode_chat(prompt.messages, CHAT_TEMPLATE)
        return tokenizer.encode_chat(prompt.messages)

    def _text_pieces(self, prompt: Prompt, read: Callable[[Image, ImageFit | None], Sequence[int]]) -> list[Piece]:
        if prompt.kind == "imagine" or (prompt.kind == "understand") != bool(prompt.images):
            raise UserError(
                f"prompt {prompt.id!r} is of kind {prompt.kind!r} with {len(prompt.images)} pictures; wanted reason "
                "without pictures or understand with at least one"
            )
        pieces: list[Piece] = []
        if prompt.images:
            mmu, soi, eoi = self._special("mmu", "soi", "eoi")
            pieces.append(([mmu], None))
            for picture in prompt.images:
                pieces += [([soi], None), (read(picture, prompt.image_fit), "image_slot"), ([eoi], None)]
        return [*pieces, (self._chat_ids(prompt), None)]
