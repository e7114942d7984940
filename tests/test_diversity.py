"""Within-group diversity: values worked out by hand, and how groups are recovered."""

import numpy as np
import pytest
from PIL import Image

from unigrpo.plugin import PluginError
from unigrpo.rewards.diversity import Diversity, hash_distances, pixel_distances, text_distances
from unigrpo.rewards.process.adapt import AdaptedReward
from unigrpo.rewards.process.traits import is_repeatable, needs_whole_groups
from unigrpo.rewards.vision.pictures import RefusedPicture


def flat(level, size=(64, 64)):
    return Image.new("RGB", size, (level, level, level))


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def values(completions, prompts=None, reward=None, **columns):
    return (reward or Diversity())(prompts=prompts or ["p"] * len(completions), completions=completions, **columns)


def test_alike_is_zero_and_opposite_is_one():
    assert values([flat(7), flat(7)]) == [0, 0]
    assert values([flat(0), flat(255)]) == [1, 1]
    assert values(["a b c", "a b c"]) == [0, 0]
    assert values(["a b c", "x y z"]) == [1, 1]


def test_value_is_the_mean_distance_to_the_others():
    assert values([flat(0), flat(51), flat(255)]) == pytest.approx([(0.2 + 1) / 2, (0.2 + 0.8) / 2, (1 + 0.8) / 2])


def test_text_distance_worked_out_by_hand():
    # 1-grams: 2 of 3 shared, 2*2/6; 2-grams: 1 of 2, 2*1/4; 3-grams: 0 of 1; no 4-grams in either.
    assert text_distances(["a b c", "A, b d".replace(",", "")])[0, 1] == pytest.approx(1 - (2 / 3 + 1 / 2 + 0) / 3)
    assert text_distances(["a", "a b"])[0, 1] == pytest.approx(1 - (2 / 3 + 0) / 2)
    assert text_distances(["", ""])[0, 1] == 0
    assert text_distances(["", "a"])[0, 1] == 1


def test_distances_equal_slow_loops():
    shown = [noise(seed) for seed in range(4)]
    pixels, hashes = pixel_distances(shown), hash_distances(shown)
    for first in range(4):
        for second in range(4):
            a, b = (np.asarray(shown[k].resize((32, 32), Image.Resampling.BOX)).astype(float) for k in (first, second))
            assert pixels[first, second] == pytest.approx(np.abs(a - b).mean() / 255)
            gray = [shown[k].convert("L").resize((9, 8), Image.Resampling.BOX) for k in (first, second)]
            differing = sum(
                len({one.getpixel((x + 1, y)) > one.getpixel((x, y)) for one in gray}) == 2
                for x in range(8)
                for y in range(8)
            )
            assert hashes[first, second] == differing / 64


def test_hash_sees_structure_and_not_brightness():
    shown = noise(0)
    darker = shown.point(lambda value: value // 2)
    by_hash = values([shown, darker], reward=Diversity(pictures="hash"))[0]
    assert by_hash < 0.1 < values([shown, darker])[0]


class MeanColor:
    def __init__(self, offset=0.0):
        self.offset = offset

    def __call__(self, pictures):
        return np.stack([np.asarray(picture).mean(axis=(0, 1)) + self.offset for picture in pictures])


def test_embeddings_are_compared_by_cosine():
    red, green, dark = (Image.new("RGB", (4, 4), color) for color in ("#ff0000", "#00ff00", "#330000"))
    reward = Diversity(embedder="test_diversity:MeanColor")
    assert values([red, green, dark], reward=reward) == pytest.approx([0.25, 0.5, 0.25])
    with pytest.raises(ValueError, match="zero or not finite"):
        values([red, flat(0)], reward=reward)


def test_groups_are_equal_prompts_in_any_order():
    texts = ["a b", "q r", "a c", "q r", "lonely"]
    together = values(texts, prompts=["p", "s", "p", "s", "t"])
    assert together == [*values(["a b", "a c"])[:1], 0, *values(["a b", "a c"])[1:], 0, None]
    order = [3, 0, 4, 2, 1]
    shuffled = values([texts[k] for k in order], prompts=[["p", "s", "p", "s", "t"][k] for k in order])
    assert shuffled == [together[k] for k in order]


def test_groups_of_one_question_differ_by_their_pictures():
    own = [[noise(0)], [noise(0)], [noise(1)], [noise(1)]]
    assert values(["a", "a", "b", "b"], images=own) == [0, 0, 0, 0]
    assert values(["a", "a", "b", "b"])[0] == pytest.approx(2 / 3)


def test_text_and_pictures_are_compared_with_their_own_kind():
    assert values([flat(0), "a", flat(255), "a"]) == [1, 0, 1, 0]
    assert values([flat(0), "a"]) == [None, None]


def test_broken_picture_gets_zero_and_does_not_touch_the_others():
    assert values([flat(0), RefusedPicture("empty", "none"), flat(255)]) == [1, 0, 1]


def test_half_a_group_gives_the_same_mean_on_average():
    rng = np.random.default_rng(0)
    shown = [flat(int(level)) for level in rng.integers(0, 256, 8)]
    whole = np.mean(values(shown))
    halves = []
    for _ in range(300):
        order = rng.permutation(8)
        halves.append(np.mean(values([shown[k] for k in order[:4]])))
    assert np.mean(halves) == pytest.approx(whole, abs=3 * np.std(halves) / 300**0.5)


def test_pool_is_told_to_keep_groups_whole_and_not_to_remember_values():
    adapted = AdaptedReward(Diversity(), name="diversity")
    assert needs_whole_groups(adapted)
    assert not is_repeatable(adapted)
    assert adapted.wanted_columns == ("images",)


def test_empty_batch_and_wrong_settings():
    assert values([]) == []
    with pytest.raises(ValueError, match="pixels or hash"):
        Diversity(pictures="lpips")
    with pytest.raises(PluginError, match="is a str"):
        Diversity(embedder="test_diversity:__name__")
