"""Rows of the data, from the file to the reward: each value arrives as it was written, or its line is named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reward_rollouts import rollout

from unigrpo.data.generated import GeneratedPrompts
from unigrpo.data.jsonl import RESERVED_NAMES
from unigrpo.data.sources import load_prompts
from unigrpo.documents import MAX_DEPTH
from unigrpo.errors import UserError
from unigrpo.reward_table import RewardTable
from unigrpo.rewards.process import wire
from unigrpo.rewards.process.adapt import AdaptedReward
from unigrpo.rewards.runtime.columns import SUPPLIED, columns_of
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.runs.samples import SAVED_NAMES, write_samples
from unigrpo.scoring.items import read_items
from unigrpo.settings.rewards import RewardSettings
from unigrpo.settings.tasks import DataSettings
from unigrpo.types import Message, Prompt, Rollout

VALUES = [
    "text",
    ["red", "crimson"],
    [["yes"] * 10, 3],
    7,
    23.0,
    1e22,
    -0.0,
    2**70,
    True,
    False,
    0,
    None,
    {"a": {"b": [1, 1.0, True, None]}, "$": "map"},
    [],
    {},
    "",
]


def prompts_of(path: Path, *lines: str, **data: object) -> list[Prompt]:
    """The prompts of a file, in its order."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogatepass")
    source = load_prompts(DataSettings(eval_jsonl=str(path), **data), "reason", "reason", "eval", 0)
    return [source[place] for place in range(source.num_prompts or 0)]


def answered(prompt: Prompt, text: str = "a", number: int = 0) -> Rollout:
    fields = ("id", "kind", "task", "messages", "answer", "columns")
    return rollout(text, number=number, **{name: getattr(prompt, name) for name in fields})


def table_of(count: int) -> RewardTable:
    names = ("one",)
    return RewardTable(
        names=names,
        values=np.ones((count, 1)),
        status=np.zeros((count, 1), np.int64),
        weights=np.ones(1),
        ranges=((0, 1),),
    )


def saved_and_read(path: Path, rollouts: list[Rollout]) -> list[Rollout]:
    """The same completions as `score` reads them of a run."""
    table = table_of(len(rollouts))
    write_samples(path, [(one, table, row) for row, one in enumerate(rollouts)])
    return [item.rollout() for item in read_items(path)]


def seen_by_a_reward(rollouts: list[Rollout]) -> list[tuple[object, object]]:
    """Answer and column ``x`` as a reward gets them over the wire."""
    seen: list[tuple[object, object]] = []

    def reward(*, completions, **columns):
        seen.extend(zip(columns["answer"], columns["x"], strict=True))
        return [1.0] * len(completions)

    sent = wire.decode(wire.encode({"columns": columns_of(rollouts), "step": 0}))
    AdaptedReward(reward, name="it").score(sent["columns"], sent["step"])
    return seen


TEXTS = st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("$"), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(answer=JSON, column=JSON)
def test_any_value_of_json_arrives_at_a_reward_equal_and_of_its_type(tmp_path_factory, answer, column) -> None:
    folder = tmp_path_factory.getbasetemp()
    line = json.dumps({"prompt": "?", "answer": answer, "x": column})
    rollouts = [answered(prompt) for prompt in prompts_of(folder / "any.jsonl", line)]
    for found in (rollouts, saved_and_read(folder / "saved.jsonl", rollouts)):
        assert repr(seen_by_a_reward(found)) == repr([(answer, column)])  # repr tells 1, 1.0 and True apart


def test_a_reward_in_a_process_of_its_own_gets_each_value_as_it_stands_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def same(*, completions, answer, x, step, wanted):\n"
        "    rows = zip(answer, x, step, wanted, strict=True)\n"
        "    return [float(repr([a, b, c]) == w) for a, b, c, w in rows]\n"
    )
    lines = [
        json.dumps({"prompt": "?", "answer": one, "x": one, "step": one, "wanted": repr([one] * 3)}) for one in VALUES
    ]
    rollouts = [answered(prompt) for prompt in prompts_of(tmp_path / "data.jsonl", *lines)]
    again = saved_and_read(tmp_path / "saved.jsonl", rollouts)
    with RewardPool({"same": RewardSettings(use=f"{tmp_path / 'mine.py'}:same")}) as pool:
        values = [pool.score(found).table.values[:, 0].tolist() for found in (rollouts, again)]
    assert values == [[1.0] * len(VALUES)] * 2


VERDICTS = [
    ("exact_match:ExactMatch", {"answer": ["red", "crimson"]}, {"red": 1.0, "crimson": 1.0, "blue": 0.0}),
    ("exact_match:ExactMatch", {"answer": 23.0}, {"23": 1.0, "23.0": 1.0, "23.00": 1.0, "230": 0.0, "24": 0.0}),
    ("exact_match:ExactMatch", {"answer": 23}, {"23": 1.0, "23.0": 1.0, "230": 0.0}),
    ("exact_match:ExactMatch", {"answer": [7, "seven"]}, {"7": 1.0, "seven": 1.0, "8": 0.0}),
    ("multiple_choice:MultipleChoice", {"answer": 1, "choices": ["red", "blue"]}, {r"\boxed{B}": 1.0, "(A)": 0.0}),
    ("multiple_choice:MultipleChoice", {"answer": 2, "choices": ["1", "2", "3"]}, {r"\boxed{C}": 1.0, "(B)": 0.0}),
    ("multiple_choice:MultipleChoice", {"answer": "2", "choices": ["1", "2", "3"]}, {r"\boxed{B}": 1.0, "(C)": 0.0}),
    ("vqa_accuracy:VQAAccuracy", {"answer": ["yes"] * 2 + ["no"] * 8}, {"yes": 0.6, "no": 1.0, "maybe": 0.0}),
    ("vqa_accuracy:VQAAccuracy", {"answer": [2.0] * 10}, {"two": 1.0, "2": 1.0, "3": 0.0}),
    ("correctness:Correctness", {"answer": 23.0}, {r"\boxed{23}": 1.0, "#### 23.0": 1.0, r"\boxed{24}": 0.0}),
    ("correctness:Correctness", {"answer": "#### 1,234"}, {r"\boxed{1234}": 1.0}),
    ("countdown:Countdown", {"answer": [[1, 2, 3], 6]}, {"<answer>1+2+3</answer>": 1.0}),
    ("sudoku:Sudoku", {"prompt": "1 0 | 0 1", "answer": 1221}, {"<answer>1221</answer>": 1.0}),
]


@pytest.mark.parametrize(("use", "row", "wanted"), VERDICTS)
def test_an_answer_that_is_no_text_is_judged_as_what_it_is(tmp_path: Path, use: str, row: dict, wanted: dict) -> None:
    module, _, name = use.partition(":")
    reward = getattr(__import__(f"unigrpo.rewards.{module}", fromlist=[name]), name)()
    (prompt,) = prompts_of(tmp_path / "data.jsonl", json.dumps({"prompt": "?", **row}))
    columns = columns_of([answered(prompt, text) for text in wanted], wanted=frozenset(reward.wanted_columns))
    assert dict(zip(wanted, AdaptedReward(reward, name="it").score(columns, 0), strict=True)) == pytest.approx(wanted)


def test_columns_that_a_saved_rollout_names_itself_come_back_as_the_data_had_them(tmp_path: Path) -> None:
    columns = {name: f"of the data: {name}" for name in (*SAVED_NAMES, "columns") if name not in ("task", "answer")}
    file = {f"our_{name}": f"ours {name}" for name in ("prompt", "answer", "id")} | columns
    file |= {"image": None, "our_image": None, "our_completion": None}
    mapping = {name: f"our_{name}" for name in ("prompt", "answer", "image", "id", "completion")}
    made = [answered(one) for one in prompts_of(tmp_path / "d.jsonl", json.dumps(file), columns=mapping)]
    (back,) = saved_and_read(tmp_path / "saved.jsonl", made)
    assert (back.prompt.text, back.prompt.answer, back.prompt.id) == ("ours prompt", "ours answer", "ours id")
    assert dict(back.prompt.columns) == columns | {"image": None}


def test_what_json_cannot_hold_is_left_out_of_a_saved_rollout(tmp_path: Path) -> None:
    columns = {"nan": math.nan, "deep": [math.inf], "array": np.ones(2), "kept": [1.5]}
    (back,) = saved_and_read(tmp_path / "saved.jsonl", [rollout("x", columns=columns, answer=math.nan)])
    assert (dict(back.prompt.columns), back.prompt.answer) == ({"kept": [1.5]}, "NaN")


DEEP = "[" * 5_000 + "]" * 5_000
BAD = [
    ('{"prompt": "x", "answer": NaN}', "not JSON: NaN"),
    ('{"prompt": "x", "answer": [1, -Infinity]}', "not JSON: -Infinity"),
    ('{"prompt": "x", "answer": 1e999}', "the number 1e999 is beyond"),
    ('{"prompt": "x", "answer": ' + "9" * 5_000 + "}", f"the number {'9' * 40}... has 5,000 digits, too many"),
    ('{"prompt": "x", "meta": [{"a": -' + "7" * 4_301 + "}]}", f"the number -{'7' * 39}... has 4,301 digits"),
    ('{"prompt": "x", "id": ' + "1" * 100_000 + "}", "has 100,000 digits, too many"),
    ('{"prompt": "x", "answer": "1", "answer": "2"}', "the key 'answer' stands twice"),
    ('{"prompt": "x", "meta": {"a": 1, "a": 1}}', "the key 'a' stands twice"),
    ('{"prompt": "x", "meta": ' + DEEP + "}", f"more than {MAX_DEPTH} lists and objects"),
    ('{"prompt": "x", "meta": ' + '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH + "}", f"more than {MAX_DEPTH} lists"),
    (DEEP, f"more than {MAX_DEPTH} lists"),
    (r'{"prompt": "a \ud800"}', r"prompt has \ud800 at character 2, half of a character"),
    (r'{"prompt": [{"role": "system", "content": "\udfff"}, {"role": "user", "content": "x"}]}', r"prompt has \udfff"),
    (r'{"prompt": "x", "id": "\ud800"}', r"id has \ud800"),
    (r'{"prompt": "x", "answer": "\ud83d"}', r"answer has \ud83d at character 0, half of a character; mend it"),
    (r'{"prompt": "x", "answer": ["a", {"b": "c\uDE00\ud83d"}]}', r"answer has \ude00 at character 1"),
    (r'{"prompt": "x", "meta": {"a": {"b\udc80": 1}}}', r"meta has \udc80 at character 1"),
    (r'{"prompt": "x", "\udbff": 1}', r"the name of column '\udbff' has \udbff at character 0"),
    (r'{"prompt": "x", "image": "\udcff.png"}', r"image has \udcff at character 0"),
    (r'{"prompt": "x", "completion": "\ud800"}', r"completion has \ud800"),
    ('{"prompt": "x", "id": true}', "id True; it is a text or a number"),
    ('{"prompt": "x", "id": [1]}', "id [1]; it is a text or a number"),
    ('{"prompt": ""}', "the prompt is empty"),
    ('{"prompt": " \\n"}', "the prompt is empty"),
    ('{"prompt": "x", "task": "algebra"}', "a column 'task' of 'algebra'"),
    *((json.dumps({"prompt": "x", name: 1}), f"a column '{name}'") for name in RESERVED_NAMES),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message for _, message in BAD])
def test_an_odd_row_is_named_with_file_and_line_when_the_file_is_read(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        prompts_of(tmp_path / "data.jsonl", '{"prompt": "fine"}', line)
    assert str(raised.value).startswith(f"{tmp_path / 'data.jsonl'}:2: ")
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(("line", "message"), BAD[:11], ids=[message for _, message in BAD[:11]])
def test_score_names_an_odd_row_too(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n' + line.replace("{", '{"completion": "c", ', 1) + "\n")
    with pytest.raises(UserError) as raised:
        read_items(path)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert message in str(raised.value)


def test_the_names_that_no_column_may_have_are_those_that_rewards_get_from_us() -> None:
    assert set(RESERVED_NAMES) == {*SUPPLIED, "images", "self"}


def test_a_value_as_deep_as_allowed_reaches_a_reward(tmp_path: Path) -> None:
    value = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    (prompt,) = prompts_of(tmp_path / "data.jsonl", f'{{"prompt": "?", "x": {value}}}')
    assert seen_by_a_reward([answered(prompt)]) == [(None, json.loads(value))]


def test_rows_without_an_id_or_with_null_are_called_by_their_line(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "a", "id": null}',
        '{"prompt": "b", "id": null}',
        '{"prompt": "c", "id": 1}',
        '{"prompt": "d"}',
    ]
    assert [one.id for one in prompts_of(tmp_path / "d.jsonl", *lines)] == ["d-1", "d-2", "1", "d-4"]
    with pytest.raises(UserError, match=r":2: id '1' is already that of line 1"):
        prompts_of(tmp_path / "d.jsonl", '{"prompt": "a", "id": 1}', '{"prompt": "b", "id": "1"}')


def test_a_question_about_a_picture_that_is_null_is_refused_and_other_tasks_have_none(tmp_path: Path) -> None:
    line = '{"prompt": "what?", "image": null}'
    (prompt,) = prompts_of(tmp_path / "d.jsonl", line)
    assert prompt.images == ()
    for value in ("null", "[]"):
        (tmp_path / "d.jsonl").write_text(f'{{"prompt": "what?", "image": {value}}}\n')
        with pytest.raises(UserError, match=r"d\.jsonl:1: no picture in column 'image'"):
            load_prompts(DataSettings(jsonl=str(tmp_path / "d.jsonl")), "understand", "understand", "train", 0)


def test_a_template_fills_in_the_prompt_alone_and_says_so(tmp_path: Path) -> None:
    line = '{"prompt": "2+2", "level": 3}'
    with pytest.raises(UserError, match=r"\{level\} in 'Level \{level\}: \{prompt\}'"):
        prompts_of(tmp_path / "d.jsonl", line, template="Level {level}: {prompt}")
    kept = r"{prompt} = ? Give \boxed{answer}, {} or x^{n} or a_{i}"
    (prompt,) = prompts_of(tmp_path / "d.jsonl", line, template=kept)
    assert prompt.text == kept.replace("{prompt}", "2+2")
    (prompt,) = prompts_of(tmp_path / "d.jsonl", '{"prompt": ""}', template="Say anything.{prompt}")
    assert prompt.text == "Say anything."


def test_two_halves_of_a_character_are_one_and_an_escaped_backslash_is_text(tmp_path: Path) -> None:
    (prompt,) = prompts_of(tmp_path / "d.jsonl", r'{"prompt": "?", "answer": "\ud83d\uDE00", "x": "\\ud800"}')
    assert seen_by_a_reward([answered(prompt)]) == [("\U0001f600", r"\ud800")]


@pytest.mark.parametrize("digits", ["9" * 4_300, "-" + "1" * 4_300])
def test_a_number_of_as_many_digits_as_python_reads_arrives(tmp_path: Path, digits: str) -> None:
    made = [answered(one) for one in prompts_of(tmp_path / "d.jsonl", f'{{"prompt": "?", "x": {digits}}}')]
    for found in (made, saved_and_read(tmp_path / "saved.jsonl", made)):
        assert seen_by_a_reward(found) == [(None, int(digits))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "x", "answer": "1"}', '{"prompt": "y", "answer": null}'], ":2: no completion to learn from"),
        (['{"prompt": "x", "completion": null}'], ":1: no completion to learn from"),
    ],
)
def test_demonstrations_are_looked_at_when_the_file_is_read(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(lines))
    data = DataSettings(jsonl=str(path))
    load_prompts(data, "reason", "reason", "train", 0)
    with pytest.raises(UserError) as raised:
        load_prompts(data, "reason", "reason", "train", 0, are_taught=True)
    assert f"{path}{message}" in str(raised.value)


def generated(source: object, *, repeats: bool = True) -> GeneratedPrompts:
    return GeneratedPrompts(DataSettings(use="mine.py:make"), source, "reason", "reason", repeats=repeats)


def test_a_list_of_prompts_begins_anew_in_training_and_ends_in_evaluation(tmp_path: Path) -> None:
    prompts = prompts_of(tmp_path / "d.jsonl", *(f'{{"prompt": "{n}"}}' for n in range(3)))
    assert [generated(prompts)[n].text for n in range(7)] == ["0", "1", "2", "0", "1", "2", "0"]
    assert generated(prompts, repeats=False).num_prompts == 3
    with pytest.raises(UserError, match=r"mine\.py:make\[3\]: IndexError.*let its num_prompts or its length say"):
        generated(prompts, repeats=False)[3]


class Ends:
    """A source that ends without a word."""

    def __getitem__(self, index: int) -> Prompt:
        return {}[index]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((one for one in ()), "made a generator, which can only be iterated: return a list of it"),
        ({1: 2}, "made a dict, which can only be iterated"),
        (None, "made a NoneType; wanted a list of prompts"),
        ([], "has 0 prompts; wanted at least one"),
        (["text"], r"mine.py:make[0] is a str; return a unigrpo.types.Prompt"),
        (Ends(), r"mine.py:make[0]: KeyError: 0; if it ends there"),
        ([rollout("x", columns={"self": 1}).prompt], r"mine.py:make[0]: a column 'self'"),
        ([rollout("x", answer=json.loads("[" * 200 + "]" * 200)).prompt], "nested too deeply"),
        ([rollout("x", columns={"a": ["\ud800"]}).prompt], r"mine.py:make[0]: a has \ud800 at character 0, half of"),
        ([rollout("x", answer={"\udfff": 1}).prompt], r"mine.py:make[0]: its answer has \udfff"),
        ([rollout("x", id="\udc00").prompt], r"mine.py:make[0]: its id has \udc00"),
        ([rollout("x", messages=(Message(role="user", text="\ud83d"),)).prompt], r"its prompt has \ud83d"),
    ],
)
def test_a_source_that_gives_no_prompts_is_refused_in_one_line(source: object, message: str) -> None:
    with pytest.raises(UserError) as raised:
        generated(source)[0]
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_picture_of_a_prompt_is_saved_whatever_the_ids(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    asked = [pictures[:2], pictures[2:], pictures[:1]]
    rollouts = [
        rollout("x", kind="understand", id="train-1", messages=(Message(role="user", text="?", images=tuple(shown)),))
        for shown in asked
    ]
    back = saved_and_read(tmp_path / "saved.jsonl", rollouts)
    assert [[one.tobytes() for one in made.prompt.images] for made in back] == [
        [one.tobytes() for one in shown] for shown in asked
    ]
    assert len(list(tmp_path.glob("*.png"))) == 3  # the red one lies there once


def test_a_line_of_prompts_ends_where_its_line_ends_and_is_utf8(tmp_path: Path) -> None:
    folder, texts = tmp_path / "pictures", tmp_path / "prompts.txt"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    texts.write_bytes("\ufeffa\u2028b\r\n\nc\n".encode())
    assert [item.prompt_text for item in read_items(folder, prompts=texts)] == ["a\u2028b", "c"]
    texts.write_bytes(b"a\n\xff\n")
    with pytest.raises(UserError, match=r"prompts\.txt is not UTF-8 text"):
        read_items(folder, prompts=texts)
