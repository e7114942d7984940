"""The small text rewards: multiple choice, exact match, VQA accuracy, length, repetition."""

import time
from itertools import combinations

import pytest
from PIL import Image
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from unigrpo.rewards.exact_match import ExactMatch
from unigrpo.rewards.length import Length
from unigrpo.rewards.multiple_choice import MultipleChoice
from unigrpo.rewards.repetition import Repetition
from unigrpo.rewards.vqa_accuracy import VQAAccuracy, normalize_vqa, soft_accuracy
from unigrpo.testing.conformance import check_reward

PICTURE = Image.new("RGB", (2, 2))
FRUITS = ["an apple", "a pear", "the plum", "B-sides"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{B}", 1.0),
        (r"\boxed{\text{B}}", 1.0),
        (r"\boxed{(b)}", 1.0),
        ("<answer>B</answer>", 1.0),
        ("<answer>\n(B)\n</answer>", 1.0),
        ("<answer>B. a pear</answer>", 1.0),
        ("<answer>(B) a pear</answer>", 1.0),
        ("<answer>B: a pear</answer>", 1.0),
        ("<answer>**B**</answer>", 1.0),
        ("<answer>Option B</answer>", 1.0),
        ("<answer>The correct answer is B.</answer>", 1.0),
        ("<answer>a pear</answer>", 1.0),
        ("<answer>A pear.</answer>", 1.0),
        ("<think>A or C?</think> The answer is B.", 1.0),
        ("The answer is A. No: the answer is (B).", 1.0),
        ("The answer is B", 1.0),
        ("The answer is a pear.", 1.0),
        ("It must be (B), I think.", 1.0),
        ("B. It is green.", 1.0),
        ("B", 1.0),
        ("#### B", 1.0),
        (r"\boxed{A}", 0.0),
        (r"\boxed{A, B, C, D}", 0.0),
        (r"\boxed{B or C}", 0.0),
        (r"\boxed{(B) (C)}", 0.0),
        (r"\boxed{B, C}", 0.0),
        ("<answer>B-sides</answer>", 0.0),
        ("<answer>an apple</answer>", 0.0),
        ("(A) or (B)", 0.0),
        ("<answer>Bananas</answer>", 0.0),
        ("It is a pear tree.", 0.0),
        ("", 0.0),
        (r"\boxed{B", 0.0),
    ],
)
def test_choice_by_letter_or_text(text: str, value: float) -> None:
    assert MultipleChoice()(prompts=["?"], completions=[text], answer=["B"], choices=[FRUITS]) == [value]


@pytest.mark.parametrize("gold", ["B", "(B)", "b", "B.", "a pear", 1])
def test_the_right_choice_may_be_given_in_any_form(gold: object) -> None:
    reward = MultipleChoice()
    assert reward(completions=["<answer>B</answer>"] * 2, answer=[gold, None], choices=[FRUITS] * 2) == [1.0, None]


def test_letters_beyond_the_choices_are_none() -> None:
    assert MultipleChoice(num_choices=4)(completions=[r"\boxed{E}"], answer=["E"]) == [0.0]
    assert MultipleChoice(num_choices=5)(completions=[r"\boxed{E}", "a pear"], answer=["E", "E"]) == [1.0, 0.0]
    assert MultipleChoice()(completions=[r"\boxed{B}", PICTURE], answer=[7, "B"]) == [None, None]


@pytest.mark.parametrize(
    ("text", "normalization", "value"),
    [
        ("<answer> The Eiffel-Tower! </answer>", "squad", 0.0),
        ("<answer> The Eiffel Tower! </answer>", "squad", 1.0),
        ("<answer> The Eiffel Tower! </answer>", "case", 0.0),
        ("<answer>eiffel\n tower</answer>", "case", 1.0),
        ("<answer>eiffel tower</answer>", "none", 0.0),
        ("<answer> Eiffel Tower </answer>", "none", 1.0),
        ("<reasoning>the Louvre?</reasoning> Eiffel tower", "squad", 1.0),
        ("Paris' tower", "squad", 1.0),
        ("Louvre", "squad", 0.0),
    ],
)
def test_exact_match(text: str, normalization: str, value: float) -> None:
    reward = ExactMatch(normalization=normalization)  # type: ignore[arg-type]
    assert reward(prompts=["?"], completions=[text], answer=[["Eiffel Tower", "Paris tower"]]) == [value]


def test_exact_match_takes_numbers_and_skips_what_has_no_answer() -> None:
    assert ExactMatch()(completions=["42", "42", "42", PICTURE], answer=[42, None, [], "42"]) == [1.0, None, None, None]


def vqa_by_subsets(answer: str, annotated: list[str]) -> float:
    """The definition: over all sets of nine of the ten, the mean of min(1, agreeing / 3)."""
    subsets = list(combinations([other == answer for other in annotated], 9))
    return sum(min(1.0, sum(subset) / 3) for subset in subsets) / len(subsets)


def test_soft_accuracy_is_the_mean_over_nine_of_ten() -> None:
    for num_agreeing in range(11):
        annotated = ["red"] * num_agreeing + ["blue"] * (10 - num_agreeing)
        assert soft_accuracy("red", annotated) == pytest.approx(vqa_by_subsets("red", annotated))
        assert soft_accuracy("red", annotated) == pytest.approx(min(1.0, 0.3 * num_agreeing))


def test_few_annotators_must_all_agree() -> None:
    assert [soft_accuracy("red", ["red"] * count) for count in (1, 2, 3, 4)] == [1.0] * 4
    assert soft_accuracy("red", ["blue"]) == 0.0


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("blue, red", "blue red"),
        ("dont know", "don't know"),
        ("couldn'tve", "couldn't've"),
        ("an\tapple\nand a pear", "apple and pear"),
        ("its", "its"),
        ("what?", "what"),
    ],
)
def test_vqa_normalization(given: str, normal: str) -> None:
    assert normalize_vqa(given) == normal


def test_vqa_reads_lists_dicts_and_single_answers() -> None:
    reward = VQAAccuracy()
    completions = ["<answer>Two.</answer>"] * 4 + [PICTURE]
    answers = [["2"] * 10, [{"answer": "two"}] * 3 + [{"answer": "3"}] * 7, None, None, ["2"]]
    given = reward(completions=completions, answers=answers, answer=[None, None, "2", None, None])
    assert given == [1.0, pytest.approx(0.9), 1.0, None, None]


def test_length_is_trls_soft_overlong_punishment() -> None:
    ids = [[1] * count for count in range(130)]
    ours = Length(max_length=100, soft_margin=20)(completions=[""] * 130, completion_ids=ids)
    assert ours == pytest.approx(get_soft_overlong_punishment(100, 20)(completion_ids=ids))
    assert (ours[80], ours[90], ours[100], ours[101]) == (0.0, -0.5, -1.0, -1.0)


def test_length_counts_words_and_characters_up_to_the_end_of_sequence() -> None:
    text = "one two three<|endoftext|> four five"
    assert Length(max_length=4, soft_margin=2, unit="words")(completions=[text, PICTURE]) == [-0.5, None]
    assert Length(max_length=13, soft_margin=0, unit="characters")(completions=[text, text[1:] + "!"]) == [0.0, 0.0]
    assert Length(max_length=12, soft_margin=0, unit="characters")(completions=[text]) == [-1.0]
    assert Length(max_length=4, soft_margin=2)(completions=[text]) == [None]


def test_repetition_is_trls_penalty() -> None:
    ids = [[], [1], [1, 2, 3, 4], [5] * 5, [1, 2] * 20, [*range(50), 7, 7, 7]]
    for size in (1, 2, 3):
        ours = Repetition(ngram_size=size, max_penalty=-2.0)(completions=[""] * len(ids), completion_ids=ids)
        assert ours == pytest.approx(get_repetition_penalty_reward(size, -2.0)(completion_ids=ids))


def test_repetition_of_words_and_characters() -> None:
    reward = Repetition(ngram_size=2, unit="words")
    assert reward(completions=["a b A B", "a b<eos> a b a b", PICTURE]) == [pytest.approx(-1 / 3), 0.0, None]
    assert Repetition(ngram_size=1, unit="characters")(completions=["哈哈哈哈"]) == [-0.75]
    assert Repetition(max_penalty=-0.5).range == (-0.5, 0.0)
    assert Repetition()(completions=["a"]) == [None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultipleChoice(num_choices=1), "num_choices is 1"),
        (lambda: MultipleChoice(sources=[]), "answer sources"),
        (lambda: ExactMatch(normalization="lower"), "'lower' is unknown"),  # type: ignore[arg-type]
        (lambda: VQAAccuracy(sources="box"), "answer sources 'box'"),  # type: ignore[arg-type]
        (lambda: Length(max_length=10, soft_margin=11), "soft_margin is 11"),
        (lambda: Length(max_length=10, soft_margin=1, unit="bytes"), "'bytes' is unknown"),  # type: ignore[arg-type]
        (lambda: Repetition(ngram_size=0), "ngram_size is 0"),
        (lambda: Repetition(max_penalty=1.0), "max_penalty is 1.0"),
        (lambda: Repetition(unit="bytes"), "'bytes' is unknown"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_each_reward_keeps_its_contract() -> None:
    texts = ["<answer>B</answer>", "two two two two", "", "(A) \ud800 \u202e x"]
    rewards = [
        MultipleChoice(),
        ExactMatch(),
        VQAAccuracy(),
        Length(max_length=4, soft_margin=3),
        Length(max_length=4, soft_margin=3, unit="words"),
        Repetition(ngram_size=1),
        Repetition(ngram_size=2, unit="characters"),
    ]
    for reward in rewards:
        check_reward(
            reward,
            prompts=["?"] * 4,
            completions=texts,
            answer=["B", "2", "x", None],
            answers=[["B"], ["2"] * 10, ["x"], None],
            choices=[FRUITS] * 4,
            completion_ids=[[1], [2, 2, 2, 2], [], [3, 4, 5]],
        )


@pytest.mark.parametrize("piece", ["<answer>", "(A) ", "answer is ", "the ", "\\text{", " ", "*"])
def test_a_megabyte_takes_under_a_second(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    rewards = [
        MultipleChoice(),
        ExactMatch(),
        VQAAccuracy(),
        Length(max_length=4, soft_margin=3, unit="words"),
        Repetition(ngram_size=2, unit="words"),
    ]
    for reward in rewards:
        start = time.process_time()
        reward(prompts=["?"], completions=[text], answer=["A"])  # type: ignore[operator]
        assert time.process_time() - start < 1.0
