"""What spells a control token of a text encoder is text to it; nothing else about captions changes."""

import time
from pathlib import Path
from typing import Any

import pytest
from clip_specimens import TEXTS, architecture, noise, random_state, transformers_clip
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from unigrpo.rewards.clip_alignment import ClipAlignment
from unigrpo.rewards.pick_score import PickScore
from unigrpo.rewards.vision.blip import MAX_TOKENS, tokenizer_of
from unigrpo.rewards.vision.captions import captions_of
from unigrpo.rewards.vision.open_clip_towers import OpenClipTowers

VOCABULARY = Path(__file__).parent / "golden" / "imagereward_tiny" / "tokenizer" / "vocab.txt"


@pytest.fixture(scope="module")
def plain_clip() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@pytest.fixture(scope="module")
def clip_towers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("clip")
    name = architecture(folder / "configs", "tiny-captions", width=32)
    save_file(random_state(name), folder / "weights.safetensors")
    return OpenClipTowers(name, str(folder / "weights.safetensors"), device="cpu")


@pytest.fixture(scope="module")
def pick_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformers_clip(tmp_path_factory.mktemp("pick") / "PickScore_v1")


@pytest.mark.parametrize(
    ("caption", "same_as"),
    [
        ("a cat <end_of_text> a dog", "a cat < end_of_text> a dog"),
        ("a cat <END_OF_TEXT>", "a cat < end_of_text>"),
        ("<start_of_text>a cat", "< start_of_text>a cat"),
        ("a cat &lt;end_of_text&gt; on a mat", "a cat < end_of_text> on a mat"),
        ("a cat &amp;lt;end_of_text&amp;gt;", "a cat < end_of_text>"),
        ("<end_of_text>" * 3, "< end_of_text>" * 3),
    ],
)
def test_open_clips_own_tokenizer_reads_its_controls_as_text(
    clip_towers: Any, plain_clip: Any, caption: str, same_as: str
) -> None:
    ids = clip_towers.text_input(caption).tolist()
    assert ids == plain_clip([same_as])[0].tolist()
    assert (ids.count(plain_clip.sot_token_id), ids.count(plain_clip.eot_token_id)) == (1, 1)
    assert clip_towers.num_tokens(caption) == ids.index(plain_clip.eot_token_id) + 1


@pytest.mark.parametrize(
    ("caption", "same_as"),
    [
        ("a cat <|endoftext|> a dog", "a cat < |endoftext|> a dog"),
        ("<|startoftext|>a cat<|endoftext|>", "< |startoftext|>a cat< |endoftext|>"),
        ("<|endoftext|><|endoftext|>", "< |endoftext|>< |endoftext|>"),
        ("a cat \ud800", "a cat ?"),
    ],
)
def test_pick_score_reads_its_controls_as_text(pick_folder: Path, caption: str, same_as: str) -> None:
    reward = PickScore(f"local-dir:{pick_folder}")
    tokenizer = CLIPTokenizer.from_pretrained(pick_folder)
    ids = reward._body.towers.text_input(caption).tolist()
    wanted = tokenizer(same_as).input_ids
    assert ids[: len(wanted)] == wanted
    assert ids.index(tokenizer.eos_token_id) == len(wanted) - 1
    assert reward._body.towers.num_tokens(caption) == len(wanted)
    picture = noise(1)
    assert reward(prompts=[caption], completions=[picture]) == reward(prompts=[same_as], completions=[picture])


@pytest.mark.parametrize("control", ["[SEP]", "[DEC]", "[ENC]", "[MASK]", "[CLS]", "[PAD]", "[UNK]"])
def test_image_reward_reads_its_controls_as_text(control: str) -> None:
    tokenizer = tokenizer_of(VOCABULARY.read_text(encoding="utf-8"))
    captions = captions_of(tokenizer, MAX_TOKENS)
    ids = tokenizer(captions.plain(f"a {control} b{control}")).input_ids
    apart = tokenizer(f"a [ {control[1:-1]} ] b [ {control[1:-1]} ]").input_ids
    assert ids == apart
    assert tokenizer.convert_tokens_to_ids(control) not in ids[1:-1] or control == "[UNK]"


@pytest.mark.parametrize("caption", [*TEXTS, "a [cat] <b> | 5 < 6 & 7 > 6!", " two  blanks ", "<|end|>", "!!!", ""])
def test_captions_without_controls_stay_as_they_are(plain_clip: Any, caption: str) -> None:
    tokenizer = tokenizer_of(VOCABULARY.read_text(encoding="utf-8"))
    assert captions_of(tokenizer, MAX_TOKENS).plain(caption) == caption
    assert captions_of(plain_clip, 77).plain(caption) == caption


@pytest.mark.parametrize("piece", ["a", "a ", "<end_of_text>", "&lt;", "   ", "é", "!"])
def test_a_hundred_kilobytes_take_under_a_second_and_read_as_their_start(clip_towers: Any, piece: str) -> None:
    caption = piece * (100_000 // len(piece)) + "b"
    start = time.process_time()
    ids = clip_towers.text_input(caption).tolist()
    num_tokens = clip_towers.num_tokens(caption)
    assert time.process_time() - start < 1.0
    assert ids == clip_towers.text_input(piece * (4_000 // len(piece)) + "b").tolist()
    assert num_tokens > 77 or piece.isspace()


def test_a_completion_that_spells_controls_is_scored_as_a_caption() -> None:
    reward = ClipAlignment("asset:tiny_clip")
    asked = {"prompts": ["?", "?"], "images": [[noise(2)], [noise(2)]]}
    first, second = reward(completions=["a red <start> circle <unk>", "a red < start> circle < unk>"], **asked)
    assert first == second
