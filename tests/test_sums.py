"""The sums: their demonstrations are right, their noise is one digit of the answer, and the splits never meet."""

import re

import numpy as np
import pytest

from unigrpo.quickstart.sums import Sums


def pairs(source, count):
    return {(source[n].columns["a"], source[n].columns["b"]) for n in range(count)}


def test_splits_are_disjoint_either_way_round_and_together_they_are_all_pairs():
    test, validation = Sums("eval"), Sums("eval", held_out="validation")
    tested, validated = pairs(test, test.num_prompts), pairs(validation, validation.num_prompts)
    assert len(tested) == test.num_prompts >= 800 and len(validated) == validation.num_prompts >= 800
    trained = pairs(Sums("train"), 90 * 90 - len(tested) - len(validated))
    assert len(trained | tested | validated) == 90 * 90
    for one, other in ((trained, tested), (trained, validated), (tested, validated)):
        assert not one & (other | {(b, a) for a, b in other})


def test_the_thought_adds_units_then_tens_with_the_carry():
    source, generator = Sums("train", seed=1), np.random.default_rng(0)
    for n in range(300):
        prompt = source[n]
        a, b = map(int, re.fullmatch(r"(\d+)\+(\d+)=", prompt.text).groups())
        units, tens, answer = map(
            int, re.fullmatch(r"<think>(\d+),(\d+)</think>(\d+)", source.demonstration(prompt, generator, 0.0)).groups()
        )
        assert units == a % 10 + b % 10
        assert 10 * tens + units % 10 == answer == a + b == int(prompt.answer)


def test_noise_changes_exactly_one_digit_of_the_answer_that_often():
    source, generator = Sums("train"), np.random.default_rng(1)
    wrong = 0
    for n in range(1000):
        thought, _, answer = source.demonstration(source[n], generator, 0.5).rpartition("</think>")
        assert thought == source.demonstration(source[n], generator, 0.0).rpartition("</think>")[0]
        assert len(answer) == len(source[n].answer)
        differing = sum(one != other for one, other in zip(answer, source[n].answer, strict=True))
        assert differing <= 1
        wrong += differing
    assert 440 < wrong < 560


def test_a_place_gives_one_prompt_whatever_was_asked_before():
    there, back = Sums("train", seed=4), Sums("train", seed=4)
    places = [0, 20_000, 3, 8_000, 0]
    assert [there[n] for n in places] == [back[n] for n in reversed(places)][::-1]
    assert [Sums("train", seed=5)[n].id for n in range(9)] != [there[n].id for n in range(9)]


def test_wrong_splits_and_places_are_refused():
    with pytest.raises(ValueError, match="'train' or 'eval'"):
        Sums("test")
    with pytest.raises(ValueError, match="'test' or 'validation'"):
        Sums("eval", held_out="train")
    source = Sums("eval")
    with pytest.raises(IndexError):
        source[source.num_prompts]
    with pytest.raises(IndexError):
        source[-1]
