"""What rewards teach whatever their scale, and what is masked, bounded and said where they teach nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from unigrpo.cli.app import run
from unigrpo.files import json_text
from unigrpo.methods.advantages.leave_one_out import LeaveOneOut
from unigrpo.methods.advantages.mean import Mean
from unigrpo.methods.advantages.zscore import ZScore
from unigrpo.methods.groups import group_advantages, spread_fractions
from unigrpo.quickstart.makers.policy import make_policy
from unigrpo.recipe.load import load_recipe
from unigrpo.report.data import read_run
from unigrpo.report.write import _facts
from unigrpo.reward_table import RewardTable, disagreement
from unigrpo.runs.alarms import SILENCE, Alarms, about, alarms_of
from unigrpo.runs.course import NOTHING_LEARNT, Course
from unigrpo.runs.metrics import read_metrics
from unigrpo.runs.trackers.terminal import Terminal, columns_of
from unigrpo.settings.learning import AdvantageChoice
from unigrpo.settings.rewards import RewardSettings
from unigrpo.train import train

NAN = float("nan")
SCALES = [1e-12, 1e-4, 1e-2, 1.0, 1e2, 1e6]
REWARDS = np.array([0.0, 0.25, 0.5, 1.0, 1.0, 0.0, 0.75, 0.25])
IDS = [0, 0, 0, 0, 1, 1, 1, 1]


def table(values, weights, ranges=None, **fields):
    values = np.array(values, dtype=np.float64)
    count = values.shape[1]
    return RewardTable(
        names=tuple(f"r{number}" for number in range(count)),
        values=values,
        status=np.zeros(values.shape, dtype=np.int8),
        weights=np.array(weights, dtype=np.float64),
        ranges=tuple(ranges or ((0.0, 1.0),) * count),
        **fields,
    )


def advantages(rewards, rule, ids=None, **choice):
    ids = [0] * len(rewards.total if isinstance(rewards, RewardTable) else rewards) if ids is None else ids
    return group_advantages(rewards, ids, rule, AdvantageChoice(**choice))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("choice", [{}, {"whiten": True}])
def test_a_z_score_does_not_depend_on_the_scale_of_the_reward(scale, choice):
    wanted = advantages(REWARDS, ZScore(eps=0.0), IDS, **choice).values
    np.testing.assert_allclose(advantages(REWARDS * scale, ZScore(eps=0.0), IDS, **choice).values, wanted, rtol=1e-9)
    found = advantages(REWARDS * scale, ZScore(), IDS, **choice)
    np.testing.assert_allclose(found.values, wanted, rtol=0.0101)  # eps takes 1 % of them at most
    assert found.frac_reward_zero_std == 0.0


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6])
def test_with_the_eps_of_the_trainers_a_small_reward_is_worth_what_one_of_scale_one_is(scale):
    wanted = advantages(REWARDS, ZScore(), IDS).values
    np.testing.assert_allclose(advantages(REWARDS * scale, ZScore(), IDS).values, wanted, rtol=5e-4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", [Mean(), LeaveOneOut()])
def test_a_distance_from_the_mean_scales_with_the_reward_and_is_the_same_once_whitened(scale, rule):
    wanted = advantages(REWARDS, rule, IDS).values
    np.testing.assert_allclose(advantages(REWARDS * scale, rule, IDS).values, wanted * scale, rtol=1e-9)
    whitened = advantages(REWARDS * scale, rule, IDS, whiten=True).values
    np.testing.assert_allclose(whitened, wanted / wanted.std(ddof=1), rtol=0.0101)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6])
def test_each_reward_is_normalised_at_its_own_scale(scale):
    other = np.roll(REWARDS, 1)
    one = table(np.stack([REWARDS, other], axis=1), [2.0, 0.5])
    scaled = table(np.stack([REWARDS, other * scale], axis=1), [2.0, 0.5], [(0, 1), (0, scale)])
    choice = {"aggregate": "normalize_then_sum"}
    wanted = advantages(one, ZScore(), IDS, **choice).values
    np.testing.assert_allclose(advantages(scaled, ZScore(), IDS, **choice).values, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("rule", [ZScore(), Mean(), LeaveOneOut()])
@pytest.mark.parametrize("aggregate", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize(
    "rounded",
    [[0.1 + 0.2, 0.3, 0.3, 0.3], [float(np.float32(0.1)), 0.1, 0.1, 0.1], [1 / 3 + 1 / 3, 2 / 3, 1 - 1 / 3, 2 / 3]],
)
def test_rewards_that_differ_by_rounding_teach_nothing(scale, rule, aggregate, rounded):
    rewards = table(np.array(rounded)[:, None] * scale, [1.0], [(0.0, scale)])
    found = advantages(rewards, rule, aggregate=aggregate, whiten=True)
    assert (found.values == 0).all() and found.frac_reward_zero_std == 1.0
    assert spread_fractions(rewards, [range(4)], 1e-6) == {"r0": 0.0}


def test_parts_that_cancel_leave_rounding_and_no_preference():
    rewards = table([[0.1 + 0.2, 0.3], [0.3, 0.3], [0.2, 0.2]], [1.0, -1.0])
    assert rewards.total.tolist() != [0.0] * 3
    assert (advantages(rewards, ZScore()).values == 0).all()
    residue = table([[0.1 + 0.2 - 0.3], [0.0], [0.0]], [1.0])
    assert (advantages(residue, ZScore()).values == 0).all()


def test_a_small_reward_beside_a_large_constant_one_still_teaches():
    rewards = table([[1.0, 1e-4], [1.0, 0.0], [1.0, 0.0], [1.0, 1e-4]], [1.0, 1.0])
    np.testing.assert_allclose(advantages(rewards, ZScore()).values, np.array([1, -1, -1, 1]) * 0.866, rtol=1e-3)


def test_a_task_of_a_small_scale_teaches_in_the_step_of_one_of_a_large_scale():
    rewards = np.concatenate([REWARDS[:4] * 1e-4, REWARDS[4:] * 1e6])
    np.testing.assert_allclose(
        advantages(rewards, ZScore(), IDS).values, advantages(REWARDS, ZScore(), IDS).values, rtol=5e-4
    )


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.integers(-20, 20), min_size=2, max_size=8),
    scale=st.floats(1e-12, 1e12),
    shift=st.floats(-100, 100),
)
def test_any_positive_scale_and_shift_of_the_rewards_leave_the_z_scores(rewards, scale, shift):
    wanted = advantages(np.array(rewards, dtype=float), ZScore(eps=0.0)).values
    moved = (np.array(rewards) + shift) * scale
    np.testing.assert_allclose(advantages(moved, ZScore(eps=0.0)).values, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [1e308, -1e308, 1e31, float("inf"), -float("inf")])
@pytest.mark.parametrize("aggregate", ["sum_then_normalize", "normalize_then_sum"])
def test_a_value_too_large_to_count_is_masked_and_its_group_goes_on(value, aggregate):
    rewards = table([[value], [1.0], [0.0], [0.5]], [1.0])
    found = advantages(rewards, ZScore(), aggregate=aggregate)
    assert found.values[0] == 0 and np.isfinite(found.values).all() and (found.values[1:3] != 0).all()
    assert rewards.is_too_large[:, 0].tolist() == [True, False, False, False]
    assert np.isnan(rewards.total[0]) and np.isnan(rewards.unit_total[0])


def test_a_weight_that_makes_a_value_overflow_masks_it_and_a_clip_saves_it():
    assert table([[1e10], [1.0]], [1e300]).is_too_large.tolist() == [[True], [True]]
    clipped = table([[1e308], [0.5]], [1.0], clips=((0.0, 1.0),))
    assert clipped.total.tolist() == [1.0, 0.5]
    opposed = table([[1e308, 1e308], [1.0, 0.0]], [1.0, -1.0])
    assert np.isnan(opposed.total[0]) and opposed.total[1] == 1.0


def test_a_gate_that_is_too_large_opens_nothing_and_masks_what_is_behind_it():
    gated = table([[1e308, 1.0], [1.0, 1.0]], [0.0, 1.0], gates=((), (0,)))
    assert np.isnan(gated.total[0]) and gated.total[1] == 1.0


def test_a_reward_of_a_small_range_passes_at_its_highest_and_not_at_its_lowest():
    assert table([[1e-12], [0.0]], [1.0], [(0.0, 1e-12)]).is_passed[:, 0].tolist() == [True, False]


def test_only_rewards_with_a_value_tell_completions_apart():
    rewards = table(
        [[0.0, 1.0, NAN, 0.0], [0.0, 0.0, NAN, 1.0], [0.0, 1.0, NAN, 0.0], [0.0, 1.0, NAN, 0.0]], [1, 2, 1, 0]
    )
    assert spread_fractions(rewards, [[0, 1], [2, 3]], 1e-6) == {"r0": 0.0, "r1": 0.5, "r2": 0.0}


def slow_pairs(optimized, mapped):
    """Every pair that the two measures order otherwise, as (larger sum, smaller sum)."""
    rows = range(len(optimized))
    return [(i, j) for i in rows for j in rows if optimized[i] > optimized[j] and mapped[i] < mapped[j]]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=10))
def test_disagreement_equals_the_double_loop_over_pairs(rows):
    optimized, mapped = np.array(rows, dtype=float).reshape(-1, 2).T
    found, pairs = disagreement(optimized, mapped / 6), slow_pairs(optimized, mapped)
    assert (found is None) == (not pairs)
    if found is not None:
        assert found.num_rows == len({worse for _, worse in pairs})
        assert mapped[found.worse] - mapped[found.better] == max(mapped[j] - mapped[i] for i, j in pairs)


def test_rewards_of_one_width_are_ordered_alike_whatever_their_weights():
    values = np.random.default_rng(0).random((50, 3))
    alike = table(values, [2.0, 0.5, -0.1], [(0, 1), (0, 1), (0, 1)])
    assert disagreement(alike.total, alike.unit_total) is None
    assert disagreement(np.array([NAN]), np.array([NAN])) is None


# The optimised sum and the mapped reward


def test_the_papers_weights_on_pictures_are_ordered_otherwise_and_it_is_said():
    ranges = [(0.0, 100.0), (-2.5, 2.5)]  # CLIP score x 100, and an ImageReward
    pictures = table([[32.0, -2.5], [19.0, 2.0]], [0.1, 0.1], ranges)
    assert pictures.total.tolist() == pytest.approx([2.95, 2.10])
    assert pictures.unit_total[0] < pictures.unit_total[1]
    found = disagreement(pictures.total, pictures.unit_total)
    assert (found.num_rows, found.better, found.worse) == (1, 0, 1)


REWARDS_FILE = """
def small(*, prompts, completions):
    return [1e-4 * sum(letter in "abcdefghijklm" for letter in text) for text in completions]

def zero(*, prompts, completions):
    return [0.0] * len(completions)

def nothing(*, prompts, completions):
    return [None] * len(completions)

def constant(*, prompts, completions):
    return [0.1 + 0.2 if number % 2 else 0.3 for number, _ in enumerate(completions)]

def huge(*, prompts, completions):
    return [1e308 if number == 0 else -1e308 if number == 1 else 0.0 for number, _ in enumerate(completions)]

class Wide:
    range = (0.0, 100.0)

    def __call__(self, *, completions, wide, **columns):
        return wide

class Narrow:
    range = (-2.5, 2.5)

    def __call__(self, *, completions, narrow, **columns):
        return narrow
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    make_policy(folder / "policy")
    (folder / "signals.py").write_text(REWARDS_FILE)
    sampling = {"completion_length": 8, "num_denoising_steps": 4}
    recipe = {
        "name": "small",
        "num_steps": 2,
        "group_size": 4,
        "num_threads": 1,
        "policy": {"path": "policy", "dtype": "float32"},
        "lora": {"r": 4, "alpha": 8},
        "tasks": {
            "reason": {"data": {"use": "unigrpo.quickstart.sums:Sums"}, "prompts_per_step": 2, "sampling": sampling}
        },
        "rewards": {"zero": {"use": "signals.py:zero"}},
        "learner": {"lr": 0.01, "lr_schedule": "constant"},
        "evaluate": {"enabled": False},
        "tracking": {"use": ["jsonl"], "rollouts_every": 1},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def trained(folder: Path, run_dir: Path, *names: str):
    rewards = ", ".join(f"{name}: {{use: '{folder / 'signals.py'}:{name}'}}" for name in names)
    recipe = yaml.safe_load((folder / "small.yaml").read_text())
    recipe["rewards"] = yaml.safe_load(f"{{{rewards}}}")
    (folder / "now.yaml").write_text(yaml.safe_dump(recipe))
    return train(load_recipe(folder / "now.yaml"), run_dir, Terminal(is_live=False))


def test_a_run_in_which_no_reward_tells_completions_apart_says_so(folder, tmp_path, capsys):
    summary = trained(folder, tmp_path / "run", "zero", "nothing", "constant")
    assert summary["status"] == NOTHING_LEARNT
    notes = " ".join(summary["notes"])
    for name, state in (("zero", "at last 0)"), ("nothing", "no value"), ("constant", "0.3")):
        assert f"nothing was learnt from the reward {name}: in none of 2 steps" in notes and state in notes
    output = capsys.readouterr().out
    assert "finished, nothing learnt in" in output and "note: nothing was learnt from the reward zero" in output
    facts = _facts(read_run(tmp_path / "run"))
    assert ("status", NOTHING_LEARNT) in list(facts)
    assert [record["advantages/abs_mean"] for record in read_metrics(tmp_path / "run")] == [0.0, 0.0]


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_a_small_reward_teaches_beside_one_too_large_and_no_file_holds_what_is_no_json(folder, tmp_path):
    summary = trained(folder, tmp_path / "run", "small", "huge")
    assert summary["status"] == "finished"
    assert any("masked, of huge" in note for note in summary["notes"])
    records = read_metrics(tmp_path / "run")
    assert records[0]["advantages/abs_mean"] > 0.1 and about(records[0], "too_large") == "huge"
    assert records[0]["reward/huge/too_large_rate"] == 0.25 and records[0]["rewards/huge/mean"] == 0.0
    assert all(np.isfinite([record["loss"], record["grad_norm"]]).all() for record in records)
    for path in (tmp_path / "run").rglob("*.json*"):
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)


def test_score_says_that_the_two_orders_disagree(folder, tmp_path, capsys):
    use = {name: {"use": f"{folder / 'signals.py'}:{name}", "weight": 0.1} for name in ("Wide", "Narrow")}
    (tmp_path / "rewards.yaml").write_text(yaml.safe_dump({"rewards": use}))
    rows = [{"prompt": "p", "completion": "a", "wide": 32, "narrow": -2.5}]
    rows += [{"prompt": "q", "completion": "b", "wide": 19, "narrow": 2.0}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        run(["score", str(tmp_path / "rewards.yaml"), str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")])
        == 0
    )
    output = " ".join(capsys.readouterr().out.split())
    assert "the two orders disagree for 1 of 2 items" in output and "2.95 against 2.1 of" in output
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [line["optimized"] for line in lines] == pytest.approx([2.95, 2.10])
    assert [line["reward"] for line in lines] == pytest.approx([0.16, 0.545])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["optimized"] == pytest.approx(2.525) and "orders disagree" in summary["order_note"]
    page = (tmp_path / "out" / "scores.html").read_text()
    assert "the two orders disagree" in page and "as optimised" in page


# Alarms, and what is said of a step


def watched(rewards, records):
    watch = Alarms({name: RewardSettings(use="a:b", weight=weight) for name, weight in rewards.items()})
    return [watch.observe({"step": step, **record}) for step, record in enumerate(records, start=1)], watch.course()


def test_a_silent_reward_sets_the_alarm_by_name_until_it_speaks():
    quiet = {"reward/a/spread_fraction": 0.0, "rewards/a/mean": 0.0, "reward/b/spread_fraction": 0.5}
    speaks = {**quiet, "reward/a/spread_fraction": 0.1}
    found, course = watched({"a": 1.0, "b": 1.0, "held_out": 0.0}, [*[quiet] * SILENCE, speaks])
    assert [alarms_of(one) for one in found] == [[]] * (SILENCE - 1) + [["no_signal"], []]
    assert about(found[-2], "no_signal") == f"a (0) for {SILENCE} steps"
    assert course.alarms["no_signal"] == {"steps": 1, "last": SILENCE, "of": f"a (0) for {SILENCE} steps"}
    assert course.status == "finished" and course.notes() == []


def test_an_alarm_names_what_it_is_about_and_the_report_says_whether_it_is_bad(tmp_path):
    record = {"tasks/imagine/reward": 0.99, "tasks/imagine/mean_length": 16.0, "reward/scene/mapped": 0.99}
    found, _ = watched({"scene": 1.0}, [{**record, "frac_reward_zero_std": 0.1}] * 20)
    assert about(found[-1], "saturation") == "task imagine 0.990 of 1, reward scene 0.990 of 1"
    lines = [json_text({"step": step, **record, **alarms}) for step, alarms in enumerate(found, start=1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    facts = dict(_facts(read_run(tmp_path)))
    assert facts["alarm: saturation"].startswith("task imagine 0.990 of 1, reward scene 0.990 of 1: 1 of 20 steps")
    assert "not a fault" in facts["alarm: saturation"]


def test_skipped_updates_are_said_by_step_and_cause(capsys):
    record = {"num_skipped_updates": 2, "num_updates": 4, "skipped_updates/cause": "the gradient is"}
    found, course = watched({"a": 1.0}, [record])
    metrics = {"step": 1, **record, **found[0]}
    assert columns_of(metrics)["skipped"] == "2 of 4 (the gradient is not finite)"
    terminal = Terminal(is_live=False)
    terminal.step(metrics)
    terminal.done({"status": course.status, "notes": course.notes(), "wall_s": 1.0})
    output = capsys.readouterr().out
    assert "alarm at step 1: skipped updates: the gradient is not finite. bad if it lasts" in output
    assert "note: 2 updates were skipped, the last because the gradient is not finite" in output


def test_a_run_whose_updates_were_all_skipped_has_learnt_nothing():
    course = Course(["a"])
    course.take({"step": 1, "num_updates": 2, "num_skipped_updates": 2, "skipped_updates/cause": "the loss is"})
    assert course.status == NOTHING_LEARNT


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text("ab/é\ud800", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/é\ud800", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=JSON_VALUES, number=st.floats(width=32))
def test_whatever_floats_metrics_hold_the_file_is_json(value, number):
    text = json_text({"value": value, "scalar": np.float32(number), "array": np.array(number)})
    found = json.loads(text, parse_constant=refuse)
    assert found["scalar"] == found["array"] == (float(np.float32(number)) if np.isfinite(number) else None)


def test_one_writer_makes_all_json_of_runs_evaluations_and_scores():
    root = Path(__file__).parent.parent / "unigrpo"
    files = [
        path
        for room in ("evaluation", "scoring", "supervised", "learner", "runs")
        for path in (root / room).rglob("*.py")
    ]
    texts = {path.name: path.read_text().count("json.dumps(") for path in files}
    texts.pop("items.py")  # a key of a comparison, not a file
    assert {name for name, count in texts.items() if count} <= {
        "checkpoint.py",
        "directory.py",
    }  # texts and hashes alone
