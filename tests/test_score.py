import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reward_rollouts import rollout

from unigrpo.cli.app import run
from unigrpo.errors import UserError
from unigrpo.quickstart.scenes import ImagineScenes
from unigrpo.recipe.load import load_rewards
from unigrpo.rewards.correctness import Correctness
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.runs.samples import write_samples
from unigrpo.scoring.items import ScoreItem, read_items
from unigrpo.scoring.score import Scores, bench_rewards, score_items
from unigrpo.settings.rewards import RewardSettings

SPECIMENS = Path(__file__).parent / "reward_specimens.py"
Lines = Callable[[list[dict[str, Any]]], Path]


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def texts(*completions: str) -> list[dict[str, Any]]:
    return [{"prompt": f"p{n}", "completion": text, "answer": "5"} for n, text in enumerate(completions)]


def scored(items: list[ScoreItem], name: str, **settings: Any) -> Scores:
    entry = RewardSettings(use=f"{SPECIMENS}:{name}", **({"timeout_s": 20.0} | settings))
    return score_items({"it": entry}, items, batch_size=4)


def test_values_are_those_of_the_reward_itself(lines: Lines) -> None:
    completions = [r"\boxed{5}", "I do not know", "The answer is 5.", r"\boxed{5.0}", r"\boxed{6}", "5"]
    wanted = Correctness()(completions=completions, answer=["5"] * 6)
    rewards = load_rewards("unigrpo.rewards.correctness:Correctness")
    result = score_items(rewards, read_items(lines(texts(*completions))), batch_size=4)
    assert [item.values["Correctness"] for item in result.items] == wanted
    (summary,) = result.rewards
    assert summary.mean == pytest.approx(sum(filter(None, wanted)) / 6)
    assert (summary.num_scored, summary.failures, summary.range) == (6, {}, (0.0, 1.0))


def test_failures_are_counted_by_kind_and_stop_nothing(lines: Lines) -> None:
    items = read_items(lines(texts("a", "nan", "none", "inf", "true", "text")))
    result = scored(items, "odd_values")
    assert [item.status["it"] for item in result.items] == [
        "ok",
        "invalid",
        "not_applicable",
        "invalid",
        "ok",
        "invalid",
    ]
    assert result.rewards[0].failures == {"invalid": 3}
    assert result.rewards[0].num_not_applicable == 1
    assert result.rewards[0].mean == 0.75
    result = scored(read_items(lines(texts("a", "bomb", "c", "d", "e"))), "raise_on_bomb", on_error="raise")
    assert [item.values["it"] for item in result.items] == [0.01, None, 0.01, 0.01, 0.01]
    assert result.rewards[0].failures == {"error": 1}


def test_an_answer_that_hangs_has_the_lowest_value(lines: Lines) -> None:
    result = scored(read_items(lines(texts("a", "bomb", "c"))), "hang_on_bomb", timeout_s=1.0)
    assert [item.values["it"] for item in result.items] == [0.01, 0.0, 0.01]
    assert result.rewards[0].failures == {"timeout": 1}


def test_percentiles_extremes_and_times(lines: Lines) -> None:
    result = scored(read_items(lines(texts(*("x" * n for n in range(1, 102))))), "length", timeout_s=20.0)
    (summary,) = result.rewards
    assert (summary.p5, summary.p95, summary.mean) == pytest.approx((0.06, 0.96, 0.51))
    worst, best = result.extremes("it", 3)
    assert [item.values["it"] for item in worst] == pytest.approx([0.01, 0.02, 0.03])
    assert [item.values["it"] for item in best] == pytest.approx([1.01, 1.0, 0.99])
    assert summary.latency_p50_s is not None
    assert summary.latency_p95_s is not None
    assert 0 < summary.latency_p50_s <= summary.latency_p95_s
    assert summary.items_per_s is not None


def test_where_all_are_alike_none_is_worst(lines: Lines) -> None:
    worst, best = scored(read_items(lines(texts("a", "b", "c"))), "length").extremes("it", 2)
    assert (worst, len(best)) == ([], 2)


def test_a_group_is_not_torn_apart(lines: Lines) -> None:
    rows = [{"prompt": "p", "completion": f"c{n}", "id": str(n // 3)} for n in range(9)]
    items = read_items(lines(rows))
    assert [item.sample_index for item in items] == [0, 1, 2] * 3
    result = scored(items, "size_of_call", timeout_s=20.0)
    assert [item.values["it"] for item in result.items] == [6.0] * 6 + [3.0] * 3


def test_words_are_counted_without_token_ids(lines: Lines) -> None:
    settings = {
        unit: RewardSettings(
            use="unigrpo.rewards.length:Length", arguments={"max_length": 3, "soft_margin": 0, "unit": unit}
        )
        for unit in ("words", "tokens")
    }
    items = read_items(lines(texts("a b c", "a b c d")))
    result = score_items({"length": settings["words"]}, items)
    assert [item.values["length"] for item in result.items] == [0.0, -1.0]
    with pytest.raises(UserError, match=r"'length' counts tokens; .*`unit: words`"):
        score_items({"length": settings["tokens"]}, items)


def test_reward_that_counts_tokens_needs_them(lines: Lines) -> None:
    rows = texts("a", "b")
    with pytest.raises(
        UserError, match=r"data.jsonl:1: the reward 'it' counts tokens; give each line .*completion_ids"
    ):
        scored(read_items(lines(rows)), "images_and_columns")
    rows = [row | {"completion_ids": [1, 2], "difficulty": 1, "task": "imagine", "completion": "x.png"} for row in rows]
    path = lines(rows)
    Image.new("RGB", (7, 5)).save(path.parent / "x.png")
    assert [i.values["it"] for i in scored(read_items(path), "images_and_columns").items] == [2107.0, 2107.0]


def test_the_task_is_told_from_the_line(lines: Lines) -> None:
    path = lines(
        [
            {"prompt": "p", "completion": "c"},
            {"prompt": "p", "completion": "c", "image": "x.png"},
            {"prompt": "p", "completion": "x.png", "objects": [1]},
            {"prompt": "p", "completion": "x.png", "task": "reason"},
            {"prompt": "p", "completion": None, "image": "x.png", "task": "imagine", "reward": 1, "seed": 3},
        ]
    )
    Image.new("RGB", (4, 4)).save(path.parent / "x.png")
    items = read_items(path)
    assert [item.task for item in items] == ["reason", "understand", "imagine", "reason", "imagine"]
    assert [item.text for item in items] == ["c", "c", None, "x.png", None]
    assert [dict(item.columns) for item in items] == [{}, {}, {"objects": [1]}, {}, {}]
    assert len(items[1].rollout().prompt.images) == 1


def test_columns_are_mapped(lines: Lines) -> None:
    path = lines([{"question": "q", "generations": "g", "gold": 7}])
    columns = {"prompt": "question", "completion": "generations", "answer": "gold"}
    (item,) = read_items(path, columns=columns)
    assert (item.prompt_text, item.text, item.answer, dict(item.columns)) == ("q", "g", 7, {})


def test_a_folder_of_pictures_has_its_prompts_in_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (1, 2, 10, 11):
        Image.new("RGB", (number, 4)).save(folder / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("first\n\nsecond\n")
    items = read_items(folder, prompts=tmp_path / "prompts.txt")
    assert [(item.prompt_text, item.sample_index, item.picture.name) for item in items if item.picture] == [
        ("first", 0, "1.png"),
        ("first", 1, "2.png"),
        ("second", 0, "10.png"),
        ("second", 1, "11.png"),
    ]
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"holds 4 pictures and .*prompts.txt 3 prompts; wanted as many, or a multiple"):
        read_items(folder, prompts=tmp_path / "prompts.txt")
    with pytest.raises(UserError, match="is a folder of pictures; give the file of their prompts with --prompts"):
        read_items(folder)


def test_a_picture_of_a_prompt_is_found_in_the_picture_folder_or_else_beside_its_file(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    for place, names in ((folder, ["0", "1"]), (elsewhere, ["0", "beside"])):
        place.mkdir()
        for name in names:
            Image.new("RGB", (2, 2)).save(place / f"{name}.png")
    prompts = elsewhere / "prompts.jsonl"

    def write(*images: str) -> None:
        prompts.write_text("".join(json.dumps({"prompt": "p", "image": image}) + "\n" for image in images))

    write("0.png", "beside.png")
    items = read_items(folder, prompts=prompts, task="understand")
    assert [item.images for item in items] == [(folder / "0.png",), (elsewhere / "beside.png",)]
    write("0.png", "2.png")
    with pytest.raises(UserError, match=r":2: there is no picture '2.png' in .*/pictures or .*/elsewhere;"):
        read_items(folder, prompts=prompts)
    write("0.png", "../0.png")
    with pytest.raises(UserError, match=r":2: picture '../0.png' lies outside .*/pictures or .*/elsewhere;"):
        read_items(folder, prompts=prompts)


def test_the_command_scores_a_folder_whose_prompts_name_its_pictures_from_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "0.png")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "p", "image": "0.png"}\n')
    arguments = [str(tmp_path / "pictures"), "--prompts", str(tmp_path / "prompts.jsonl")]
    assert run(["score", "unigrpo.rewards.jpeg_size:JpegSize", *arguments]) == 0, capsys.readouterr().err


GOOD = '{"prompt": "p", "completion": "c"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing to score"),
        (GOOD + "{", ":2: not JSON"),
        (GOOD + "[1]", ":2: a JSON list; each line is an object"),
        (
            GOOD + '{"prompt": "p"}',
            ":2: no column 'completion' for 'completion'; its columns are 'prompt'; say which with --column",
        ),
        (GOOD + '{"prompt": 3, "completion": "c"}', ":2: prompt 3; it is text, or turns"),
        ('{"prompt": [{"role": "assistant", "content": "x"}], "completion": "c"}', ":1: the last turn is the assistan"),
        ('{"prompt": "p", "completion": 3}', ":1: completion 3; it is text, or the path of a picture"),
        ('{"prompt": "p", "completion": "no.png"}', ":1: there is no picture 'no.png'.*text that looks so needs task"),
        ('{"prompt": "p", "completion": "../x.png"}', ":1: picture '../x.png' lies outside"),
        ('{"prompt": "p", "completion": "c", "task": 3}', ":1: task 3; wanted a task's name, or reason, understand"),
        ('{"prompt": "p", "completion": "c", "image": 3}', ":1: image 3; give a path or a list of paths"),
        ('{"prompt": "p", "completion": "c", "completion_ids": "x"}', ":1: completion_ids 'x'; wanted a list of token"),
    ],
)
def test_bad_input_is_one_message_with_file_and_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    assert run(["score", f"{SPECIMENS}:length", str(path), "--out", str(tmp_path / "out")]) == 2
    assert re.match(f"error: {path}.*{message}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "prompt"], r"--column 'prompt': wanted OURS=THEIRS"),
        (["--column", "picture=x"], r"--column picture: not a name of ours; wanted one of prompt, completion"),
        (["--prompts", "x.txt"], r"--prompts belongs to a folder of pictures"),
        (["--bench", "--out", "x"], r"--bench measures and writes nothing"),
        (["--bench"], r"1 items do not share out over 6 passes"),
        (["--html", "."], r"--html . is a folder; give a file"),
        (["rewards.length.wieght=2"], r".*rewards.length.wieght: unknown key; did you mean `weight`"),
    ],
)
def test_bad_options_are_one_message(
    arguments: list[str], message: str, lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["score", f"{SPECIMENS}:length", str(lines(texts("a"))), *arguments]) == 2
    assert re.match(f"error: {message}", capsys.readouterr().err)


def test_rewards_come_from_a_section_or_a_recipe(
    tmp_path: Path, recipe_values: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path]
) -> None:
    (tmp_path / "mine.py").write_text("def length(completions): return [len(c) for c in completions]\n")
    section = tmp_path / "rewards.yaml"
    section.write_text("rewards: {size: {use: 'mine.py:length', weight: 2}}\n")
    rewards = load_rewards(str(section), ["rewards.size.timeout_s=3"])
    assert (rewards["size"].weight, rewards["size"].timeout_s) == (2.0, 3.0)
    assert rewards["size"].use == f"{tmp_path / 'mine.py'}:length"
    assert list(load_rewards(str(write_recipe(recipe_values)))) == list(recipe_values["rewards"])
    assert "scene" in load_rewards("quickstart")
    section.write_text("name: x\n")
    with pytest.raises(UserError, match="rewards: none; wanted at least one"):
        load_rewards(str(section))
    section.write_text(
        "rewards: {x: {use: 'unigrpo.rewards.adapters:Verl', arguments: {function: 'mine.py:compute'}}}\n"
    )
    with pytest.raises(UserError, match=r"rewards.x.arguments.function: .*defines no 'compute'"):
        load_rewards(str(section))


def test_command_writes_scores_summary_and_a_page(lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(
        [
            {"prompt": "<b>draw</b>", "completion": "x.png", "answer": "<script>alert(1)</script>"},
            {"prompt": "draw", "completion": "broken.png"},
            {"prompt": "write", "completion": "<img src=x onerror=alert(1)>"},
        ]
    )
    Image.new("RGB", (600, 300), "red").save(path.parent / "x.png")
    (path.parent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    out = path.parent / "out"
    jpeg = "unigrpo.rewards.jpeg_size:JpegSize"
    assert run(["score", jpeg, str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "1 pictures could not be read; the first: broken.png" in text
    records = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [record["status"]["JpegSize"] for record in records] == ["ok", "unreadable", "not_applicable"]
    assert json.loads((out / "summary.json").read_text())["rewards"]["JpegSize"]["failures"] == {"unreadable": 1}
    page = (out / "scores.html").read_text()
    assert "&lt;b&gt;draw&lt;/b&gt;" in page
    assert "<script" not in page
    assert "onerror" not in page  # text to which the reward does not apply is not shown
    assert page.count('src="data:image/png;base64,') == 1
    assert not re.search(r'(?:src|href)="(?!data:image)', page)
    assert run(["score", jpeg, str(path), "--out", str(out)]) == 2
    assert "is there and not an empty folder" in capsys.readouterr().err


def test_saved_rollouts_can_be_scored_again(tmp_path: Path) -> None:
    source = ImagineScenes("train", 0)
    rollouts = []
    for index in range(4):
        prompt = source[index]
        picture = source.demonstration(prompt, np.random.default_rng(index), noise=index % 2)
        fields = {"id": prompt.id, "kind": "imagine", "messages": prompt.messages, "answer": None}
        rollouts.append(rollout(None, image=np.asarray(picture), columns=prompt.columns, **fields))
    settings = {"scene": RewardSettings(use="unigrpo.rewards.scene:Scene")}
    with RewardPool(settings) as pool:
        table = pool.score(rollouts).table
    write_samples(tmp_path / "step.jsonl", [(one, table, row) for row, one in enumerate(rollouts)])
    again = score_items(settings, read_items(tmp_path / "step.jsonl"), batch_size=4)
    assert [item.values["scene"] for item in again.items] == table.values[:, 0].tolist()
    assert len(set(table.values[:, 0])) > 1


def test_each_bench_pass_sees_items_of_its_own(tmp_path: Path, lines: Lines) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "mine.py").write_text(
        "def noted(completions):\n"
        f"    with open({str(seen)!r}, 'a') as file:\n"
        "        print(*completions, file=file)\n"
        "    return [1.0] * len(completions)\n"
    )
    rewards = load_rewards(f"{tmp_path / 'mine.py'}:noted")
    rates = bench_rewards(rewards, read_items(lines(texts(*map(str, range(8))))), num_passes=3)
    assert seen.read_text().split("\n") == ["0 1", "2 3", "4 5", "6 7", ""]
    assert rates["noted"] > 0


def test_a_lone_surrogate_is_shown_and_written_as_its_escape(
    lines: Lines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = "\ud800 \x1b[31mx"
    path = lines([{"prompt": odd, "completion": odd, "answer": odd, "id": odd}, {"prompt": "p", "completion": "y"}])
    out = path.parent / "out"
    monkeypatch.chdir(path.parent)
    assert run(["score", f"{SPECIMENS}:length", path.name, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "\\ud800 \\x1b[31mx" in shown and "\x1b[31m" not in shown
    assert json.loads((out / "scores.jsonl").read_text().splitlines()[0])["id"] == odd
    assert "\\ud800" in (out / "scores.html").read_text()


def test_samples_and_pages_with_a_lone_surrogate_are_written(tmp_path: Path) -> None:
    made = rollout("\ud800 x", columns={"note": "\udfff"})
    with RewardPool({"it": RewardSettings(use=f"{SPECIMENS}:length")}) as pool:
        table = pool.score([made]).table
    write_samples(tmp_path / "step.jsonl", [(made, table, 0)])
    record = json.loads((tmp_path / "step.jsonl").read_text())
    assert (record["completion"], record["note"]) == ("\ud800 x", "\udfff")


def test_why_items_failed_is_shown_and_written(lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(texts("a", "bomb", "nan"))
    out = path.parent / "out"
    assert run(["score", f"{SPECIMENS}:raise_on_bomb", str(path), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"raise_on_bomb error  {path.name}:2  KeyError: 'no such thing'" in shown.replace(f"{path.parent}/", "")
    records = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [record.get("reasons") for record in records] == [None, {"raise_on_bomb": "KeyError: 'no such thing'"}, None]
    assert "no such thing" in (out / "scores.html").read_text()


def test_a_reward_that_failed_on_all_items_ends_the_command_with_one(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(texts("a", "b", "c", "d"))
    assert run(["score", f"{SPECIMENS}:always_raises", str(path)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("the server is down") == 1
    assert "Traceback" not in shown


def test_scores_and_page_say_what_passed(lines: Lines) -> None:
    path = lines(texts("0.3", "1.0", "0.7"))
    (path.parent / "mine.py").write_text("def part(completions): return [float(text) for text in completions]\n")
    out = path.parent / "out"
    assert run(["score", f"{path.parent / 'mine.py'}:part", str(path), "--out", str(out)]) == 0
    records = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [record["passed"] for record in records] == [{"part": False}, {"part": True}, {"part": False}]
    page = (out / "scores.html").read_text()
    assert page.count("✓ passed") == 1
    assert "✗ not passed" in page
