"""Prompt layouts against hand-written ids, pictures against a transparent codec, ids by every route."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from unigrpo.models import load_policy
from unigrpo.models.files.tokenizer import TextTokenizer
from unigrpo.models.files.vocabulary import RELEASE_IDS, RELEASE_LENGTH, resolve_vocabulary
from unigrpo.models.pictures.pixels import picture_to_pixels, pixels_to_picture
from unigrpo.models.policies.mmada import CHAT_TEMPLATE, MmadaPolicy
from unigrpo.settings.tasks import SamplingSettings, ScheduleChoice
from unigrpo.types import ImageFit, Message, Prompt, Span

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 505
BOS, EOS, SOI, EOI, T2I, MMU, IPAD, MASK, START, END, EOT = 480, 481, 484, 485, 488, 489, 493, 500, 502, 503, 504
NAMED = {
    "<|startoftext|>": BOS,
    "<|endoftext|>": EOS,
    "<|soi|>": SOI,
    "<|eoi|>": EOI,
    "<|t2i|>": T2I,
    "<|mmu|>": MMU,
    "<|ipad|>": IPAD,
    "<|mdm_mask|>": MASK,
    "<|start_header_id|>": START,
    "<|end_header_id|>": END,
    "<|eot_id|>": EOT,
}
WORDS = {"a": 10, "red": 11, "cat": 12, "user": 13, "assistant": 14, "\n": 15, "left": 16}
IDS = {
    "bos": BOS,
    "soi_id": SOI,
    "EOI": EOI,
    "t2i_token_id": T2I,
    "mmu": MMU,
    "iPad": IPAD,
    "mask_token_id": MASK,
    "start_header": START,
    "end_header": END,
    "eot_id": EOT,
    "image_offset": LENGTH,
}


def text_tokenizer(length: int = LENGTH) -> TextTokenizer:
    """Return a tokenizer of whole words with the golden's special ids."""
    taken = {value: key for key, value in (WORDS | NAMED).items()}
    vocabulary = {taken.get(index, f"reserved{index}"): index for index in range(length)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="reserved0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in NAMED])
    return TextTokenizer(tokenizer, bos_token="<|startoftext|>")


class GridCodec:
    """A transparent image tokenizer: 2 x 2 cells, the code is the cell's mean level in sixteenths."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), 2)
        return ((cells.flatten(1) + 1) / 2 * 15).round().long()

    def decode(self, codes: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        return (codes.view(-1, 1, 2, 2).float() / 15 * 2 - 1).expand(-1, 3, 2, 2)


@pytest.fixture(scope="module")
def policy() -> MmadaPolicy:
    loaded = load_policy(
        GOLDEN / "mmada_tiny", dtype="float32", tokenizer=text_tokenizer(), image_tokenizer=GridCodec(), image_size=4
    )
    assert isinstance(loaded, MmadaPolicy)
    return loaded


def ask(task: Any, text: str, *images: Image.Image) -> Prompt:
    return Prompt(id="p", kind=task, messages=(Message(role="user", text=text, images=images),))


def settings(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**({"completion_length": 4, "num_denoising_steps": 2} | changes))


CHAT = [BOS, START, 13, END, 15, 10, 11, 12, EOT, START, 14, END, 15]


def test_reason_is_chat_then_open_text(policy: MmadaPolicy) -> None:
    canvas = policy.encode(ask("reason", " a red cat "), settings(block_length=2))
    assert canvas.token_ids.tolist() == CHAT + [MASK] * 4
    assert canvas.token_ids.dtype == np.int64
    given, text = canvas.spans
    assert given == Span(kind="prompt", start=0, stop=13)
    assert text == Span(
        kind="text",
        start=13,
        stop=17,
        is_open=True,
        vocabulary_range=(0, LENGTH),
        num_denoising_steps=2,
        block_length=2,
        schedule=ScheduleChoice(),
    )
    assert canvas.unconditional_ids is None


def test_whole_vocabulary_and_twin_of_text_on_request(policy: MmadaPolicy) -> None:
    canvas = policy.encode(ask("reason", "a red cat"), settings(restrict_vocabulary=False, guidance_scale=1.0))
    assert canvas.open_spans[0].vocabulary_range is None
    assert canvas.unconditional_ids is not None
    assert canvas.unconditional_ids.tolist() == [MASK] * 17


def test_understand_puts_codes_before_the_chat(policy: MmadaPolicy) -> None:
    black, white = Image.new("RGB", (6, 4)), Image.new("L", (4, 9), 255)
    canvas = policy.encode(ask("understand", "a red cat", black, white), settings())
    first, second = [LENGTH] * 4, [LENGTH + 15] * 4
    assert canvas.token_ids.tolist() == [MMU, SOI, *first, EOI, SOI, *second, EOI, *CHAT, *[MASK] * 4]
    assert [(s.start, s.stop) for s in canvas.spans if s.kind == "image_slot"] == [(2, 6), (8, 12)]
    assert [(a.stop, b.start) for a, b in zip(canvas.spans, canvas.spans[1:], strict=False) if a.stop != b.start] == []


def test_imagine_and_its_twin(policy: MmadaPolicy) -> None:
    canvas = policy.encode(ask("imagine", "a red cat"), settings(schedule="cosine"))
    picture = [SOI, *[MASK] * 4, EOI]
    assert canvas.token_ids.tolist() == [T2I, BOS, 10, 11, 12, EOS, *picture]
    assert canvas.unconditional_ids is not None
    assert canvas.unconditional_is_padding is not None
    assert canvas.unconditional_ids.tolist() == [IPAD, IPAD, IPAD, T2I, BOS, EOS, *picture]
    assert canvas.unconditional_is_padding.tolist() == [True] * 3 + [False] * 9
    span = canvas.open_spans[0]
    assert (span.kind, span.start, span.stop, span.schedule.use) == ("image_codes", 7, 11, "cosine")
    assert span.vocabulary_range == (LENGTH, LENGTH + 128)
    assert canvas.spans[-1].stop == 12


def test_picture_layout_equals_the_reference_without_its_padding(policy: MmadaPolicy) -> None:
    with np.load(GOLDEN / "mmada_tiny" / "t2i_generate.npz") as file:
        ids, mask = file["in_N16_B1_input_ids"][0], file["in_N16_B1_attention_mask"][0]
        twin, twin_mask = file["in_N16_B1_uncond_input_ids"][0], file["in_N16_B1_uncond_attention_mask"][0]
    real, bare = ids[mask == 1], twin[twin_mask == 1]
    text = real[2 : list(real).index(EOS)]
    names = {index: f"reserved{index}" for index in range(480)} | {index: word for word, index in WORDS.items()}
    canvas = policy.encode(ask("imagine", " ".join(names[i] for i in text)), settings(completion_length=16))
    assert canvas.unconditional_ids is not None
    assert canvas.token_ids.tolist() == real.tolist()
    assert canvas.unconditional_is_padding is not None
    assert canvas.unconditional_ids[~canvas.unconditional_is_padding].tolist() == bare.tolist()


def test_inpainting_keeps_given_codes_in_row_and_twin(policy: MmadaPolicy) -> None:
    codes, is_open = np.array([3, 7, 0, 127]), np.array([False, True, True, False])
    canvas = policy.encode_image_canvas(ask("imagine", "cat"), settings(), codes, is_open)
    picture = [LENGTH + 3, MASK, MASK, LENGTH + 127, EOI]
    assert canvas.token_ids.tolist() == [T2I, BOS, 12, EOS, SOI, *picture]
    assert canvas.unconditional_ids is not None
    assert canvas.unconditional_ids.tolist() == [IPAD, T2I, BOS, EOS, SOI, *picture]
    assert canvas.open_spans[0].stop - canvas.open_spans[0].start == 4
    with pytest.raises(ValueError, match=r"given codes span 3\.\.128; the codebook has 0\.\.127"):
        policy.encode_image_canvas(ask("imagine", "cat"), settings(), np.array([3, 0, 0, 128]), is_open)
    with pytest.raises(ValueError, match="at least one open"):
        policy.encode_image_canvas(ask("imagine", "cat"), settings(), codes, np.zeros(4, dtype=bool))


def test_text_infilling_keeps_the_given_text(policy: MmadaPolicy) -> None:
    canvas = policy.encode_text_canvas(ask("reason", "a red cat"), settings(), [16, MASK, MASK, 12, EOS])
    assert canvas.token_ids.tolist() == [*CHAT, 16, MASK, MASK, 12, EOS]
    assert (canvas.open_spans[0].start, canvas.open_spans[0].stop) == (13, 18)
    with pytest.raises(ValueError, match="nothing to fill"):
        policy.encode_text_canvas(ask("reason", "a red cat"), settings(), [16, 12])


@pytest.mark.parametrize("task", ["understand", "nothing"])
def test_task_and_pictures_must_agree(policy: MmadaPolicy, task: str) -> None:
    prompt = ask("understand", "cat") if task == "understand" else ask("reason", "cat", Image.new("RGB", (4, 4)))
    with pytest.raises(ValueError, match=r"wanted reason without pictures or understand with at least one"):
        policy.encode(prompt, settings())


def test_text_is_decoded_up_to_the_first_eos(policy: MmadaPolicy) -> None:
    assert policy.decode_text(np.array([BOS, 10, LENGTH + 3, EOT, EOS, 11])) == "a"


def test_decoded_picture_has_each_pixel_rounded_once(policy: MmadaPolicy) -> None:
    span = Span(kind="image_codes", start=7, stop=11, is_open=True)
    picture = policy.decode_image(np.array([0, 5, 10, 15]) + LENGTH, span)
    assert np.asarray(picture)[..., 0].tolist() == [[0, 85], [170, 255]]
    with pytest.raises(ValueError, match="give the ids of the image span alone, filled"):
        policy.decode_image(np.array([MASK, 505, 505, 505]), span)
    with pytest.raises(ValueError, match="are no picture of 4 codes"):
        policy.decode_image(np.array([505] * 5), span)


def test_pixels_are_cropped_from_the_center_and_scaled() -> None:
    stripes = np.zeros((4, 8, 3), dtype=np.uint8)
    stripes[:, 2:6] = 255
    pixels = picture_to_pixels(Image.fromarray(stripes), 4)
    assert torch.equal(pixels, torch.ones(3, 4, 4))
    assert torch.equal(picture_to_pixels(Image.new("L", (30, 20), 0), 8), -torch.ones(3, 8, 8))
    wide = torch.tensor([-1.5, -1.0, 0.0, 0.0039, 1.0, 9.0]).view(1, 1, 6).expand(3, 1, 6)
    assert np.asarray(pixels_to_picture(wide))[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(61, 37), (37, 61), (16, 16), (16, 7), (480, 320)])
def test_pixels_equal_the_transforms_of_the_reference(size: tuple[int, int], fit: ImageFit) -> None:
    from torchvision import transforms

    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture, bicubic = Image.fromarray(noise), transforms.InterpolationMode.BICUBIC
    across, down = max(size) - size[0], max(size) - size[1]
    bars = [across // 2, down // 2, across - across // 2, down - down // 2]
    steps = {
        "crop": [transforms.Resize(16, bicubic), transforms.CenterCrop(16)],
        "squash": [transforms.Resize((16, 16), bicubic)],
        "pad": [transforms.Pad(bars, fill=(255, 255, 255)), transforms.Resize((16, 16), bicubic)],
    }[fit]
    wanted = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])(picture)
    torch.testing.assert_close(picture_to_pixels(picture, 16, fit), wanted, atol=1e-6, rtol=0)


def test_ids_of_the_golden_by_vocabulary_alone(tmp_path: Path) -> None:
    loaded = load_policy(GOLDEN / "mmada_tiny", dtype="float32", vocabulary=IDS)
    vocabulary = loaded.vocabulary
    assert (vocabulary.mask_token_id, vocabulary.eos_token_id, vocabulary.pad_token_id) == (MASK, EOS, EOS)
    assert (vocabulary.text_range, vocabulary.image_range) == ((0, LENGTH), (LENGTH, 633))
    assert vocabulary.special == {
        "bos": BOS,
        "soi": SOI,
        "eoi": EOI,
        "t2i": T2I,
        "mmu": MMU,
        "ipad": IPAD,
        "start_header": START,
        "end_header": END,
        "eot": EOT,
    }
    with pytest.raises(ValueError, match=r"'soj'; known are mask, eos, pad, bos, soi"):
        load_policy(GOLDEN / "mmada_tiny", vocabulary={"soj": 1})


def test_without_tokenizer_the_image_range_is_not_guessed() -> None:
    loaded = load_policy(GOLDEN / "mmada_tiny", dtype="float32")
    assert loaded.vocabulary.image_range is None
    with pytest.raises(ValueError, match="where its image codes start is not known"):
        loaded.decode_image(np.array([505]), Span(kind="image_codes", start=0, stop=1))


def test_tokenizer_names_the_ids(policy: MmadaPolicy) -> None:
    assert policy.vocabulary == load_policy(GOLDEN / "mmada_tiny", vocabulary=IDS).vocabulary


def test_release_has_its_codes_at_the_tokenizer_length() -> None:
    config = {"mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081, "llm_vocab_size": 126464}
    tokenizer = text_tokenizer(RELEASE_LENGTH)
    release = Tokenizer(models.WordLevel({f"r{index}": index for index in range(RELEASE_LENGTH)}, unk_token="r0"))
    tokenizer._tokenizer = release
    found = resolve_vocabulary(config, size=134656, tokenizer=tokenizer, overrides=None, codebook_size=8192)
    assert found.image_range == (126349, 134541)
    assert found.special == {name: value for name, value in RELEASE_IDS.items() if name not in ("mask", "eos")}


@pytest.mark.parametrize(
    ("overrides", "size", "message"),
    [
        ({"image_offset": 513}, 640, "128 image codes from id 513 end at 641, but the embedding has 640 rows"),
        ({"soi": 640}, 640, r"\{'soi': 640\} are not inside the embedding's 0:640"),
    ],
)
def test_ids_outside_the_embedding_are_refused(overrides: dict[str, int], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_vocabulary(
            {"mask_token_id": MASK, "eos_token_id": EOS},
            size=size,
            tokenizer=None,
            overrides=overrides,
            codebook_size=128,
        )


def test_mask_ids_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_token_id 7, the tokenizer has <\|mdm_mask\|> at 500"):
        resolve_vocabulary(
            {"mask_token_id": 7, "eos_token_id": EOS},
            size=640,
            tokenizer=text_tokenizer(),
            overrides=None,
            codebook_size=None,
        )
    with pytest.raises(ValueError, match="gives the mask id"):
        resolve_vocabulary({}, size=640, tokenizer=None, overrides=None, codebook_size=None)


def test_chat_template_of_a_folder_replaces_ours(policy: MmadaPolicy, tmp_path: Path) -> None:
    own = text_tokenizer()
    assert own.render_chat((Message(role="user", text=" a "),), CHAT_TEMPLATE) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
    )
    shutil.copytree(GOLDEN / "mmada_tiny", tmp_path / "copy", ignore=shutil.ignore_patterns("*.npz", "magvit_tiny"))
    own._tokenizer.add_tokens(["<think>", "</think>"])
    own._tokenizer.save(str(tmp_path / "copy" / "tokenizer.json"))
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages[0].content }} left")
    loaded = load_policy(tmp_path / "copy", dtype="float32")
    assert loaded.encode(ask("reason", "cat"), settings()).token_ids.tolist() == [12, 16, *[MASK] * 4]
