"""The shared body: what is encoded once, what is not, and that nobody's vector reaches another."""

import numpy as np
import pytest
from clip_specimens import TEXTS, noise
from PIL import Image

from unigrpo.rewards.clip_alignment import ClipAlignment
from unigrpo.rewards.vision import clip_body
from unigrpo.rewards.vision.clip_body import ClipBody, shared_body
from unigrpo.rewards.vision.open_clip_towers import open_clip_body
from unigrpo.rewards.vision.pictures import RefusedPicture


class CountingTowers:
    """Towers whose vectors are worked out by hand: letters of a text, mean colour of a picture."""

    context_length = 10
    logit_scale = 1.0

    def __init__(self):
        self.batches = []

    def num_tokens(self, text):
        return len(text)

    def text_input(self, text):
        import torch

        return torch.tensor([text.count("a") + 1, text.count("b"), text.count("c")])

    def picture_input(self, picture):
        import torch

        return torch.from_numpy(np.asarray(picture).astype(np.float32)).mean(dim=(0, 1))

    def embed_texts(self, batch):
        self.batches.append(len(batch))
        return batch.float()

    def embed_pictures(self, batch):
        self.batches.append(len(batch))
        return batch


@pytest.fixture
def towers():
    return CountingTowers()


@pytest.fixture
def body(towers):
    return ClipBody(towers, "cpu")


def test_prompt_of_a_group_and_a_picture_seen_twice_are_encoded_once(body):
    colors = [Image.new("RGB", (4, 4), (index, 9, 7)) for index in (1, 2, 3)]
    body.cosines(["ab"] * 6, [*colors, *colors])
    assert (body.num_encoded["texts"], body.num_encoded["pictures"]) == (1, 3)
    copies = [color.copy() for color in colors]
    body.cosines(["ab", "cc", "ab"], copies)
    assert (body.num_encoded["texts"], body.num_encoded["pictures"]) == (2, 3)


def test_same_bytes_in_another_shape_are_another_picture(body):
    body.encode_pictures([Image.new("RGB", (2, 8), "red"), Image.new("RGB", (8, 2), "red")])
    assert body.num_encoded["pictures"] == 2


def test_cosines_are_those_worked_out_by_hand(body):
    values = body.cosines(
        ["", "bbb", "cc"],
        [Image.new("RGB", (1, 1), (5, 0, 0)), RefusedPicture("empty", ""), Image.new("RGB", (1, 1), (0, 3, 4))],
    )
    assert values[:2] == [None, None]
    assert values[2] == pytest.approx(2 * 4 / (np.sqrt(5) * 5))


def test_every_call_goes_in_batches_of_one_size(body, towers):
    body.encode_texts(["a" * number for number in range(20)])
    body.encode_texts(["b"])
    assert towers.batches == [8] * 4
    assert body.num_encoded["texts"] == 21


def test_a_vector_is_equal_to_the_last_bit_whatever_else_is_known_or_asked():
    pictures, texts = [noise(seed) for seed in range(9)], [f"a red circle {number}" for number in range(9)]
    fresh = [clip_body.ClipBody(open_clip_body("asset:tiny_clip", None, "cpu").towers, "cpu") for _ in range(3)]
    at_once = fresh[0].encode_pictures(pictures), fresh[0].encode_texts(texts)
    fresh[1].encode_pictures(pictures[2:4])
    known = fresh[1].encode_pictures(pictures[::-1])[::-1], fresh[1].encode_texts(texts[::-1])[::-1]
    one_by_one = [
        np.concatenate([fresh[2].encode_pictures([picture]) for picture in pictures[:2]]),
        np.concatenate([fresh[2].encode_texts([text]) for text in texts[:2]]),
    ]
    for wanted, *given in zip(at_once, known, one_by_one, strict=True):
        assert all((one == wanted[: len(one)]).all() for one in given)


def test_memory_forgets_the_oldest_and_still_answers_a_call_larger_than_itself(towers, monkeypatch):
    monkeypatch.setattr(clip_body, "NUM_KEPT", 3)
    body = clip_body.ClipBody(towers, "cpu")
    texts = ["a", "b", "c", "ab", "bc"]
    wanted = [[1 + text.count("a"), text.count("b"), text.count("c")] for text in texts]
    wanted = np.array(wanted) / np.linalg.norm(wanted, axis=-1, keepdims=True)
    assert np.allclose(body.encode_texts(texts), wanted)
    assert np.allclose(body.encode_texts(texts), wanted)
    assert body.num_encoded["texts"] == 7
    body.encode_texts(["bc"])
    assert body.num_encoded["texts"] == 7


def test_body_is_shared_by_key_and_device_and_ends_with_its_rewards(towers):
    made = []

    def make():
        made.append(1)
        return towers

    one = shared_body("k", "cpu", make)
    assert shared_body("k", "cpu", make) is one
    assert shared_body("k", "cuda:1", make) is not one
    assert shared_body("j", "cpu", make) is not one
    del one
    shared_body("k", "cpu", make)
    assert len(made) == 4


def test_rewards_that_name_the_same_model_share_one_pass():
    one, percent = ClipAlignment("asset:tiny_clip"), ClipAlignment("asset:tiny_clip", scale=100.0)
    body = open_clip_body("asset:tiny_clip", None, "cpu")
    before = body.num_encoded["pictures"]
    shown = [noise(seed) for seed in range(4)]
    for reward in (one, percent):
        reward(prompts=TEXTS[:1] * 4, completions=shown)
    assert body.num_encoded["pictures"] == before + 4
