"""Functions of other trainers as they are; what they must return is checked with their name."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reward_rollouts import rollout

from unigrpo.plugin import PluginError
from unigrpo.rewards.adapters import FlowGrpo, OpenRlhf, Trl, Verl
from unigrpo.rewards.process.adapt import AdaptedReward, RewardContractError, load_reward
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import RewardSettings

FOREIGN = Path(__file__).parent / "foreign_rewards.py"
TEXT = {"prompts": ["1+1? ", "2+2? "], "completions": ["it is 2", "it is 5"], "answer": ["2", "4"]}


def adapted(kind: type, function: str, **settings: object) -> AdaptedReward:
    return AdaptedReward(kind(function=f"{FOREIGN}:{function}", **settings), name="it")


def picture(level: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def trl(name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl.rewards")
    return f"trl.rewards:{name}"


def test_trl_s_factory_runs_unmodified_through_the_adapter() -> None:
    arguments = {"function": trl("get_repetition_penalty_reward"), "make": {"ngram_size": 2}, "range": [-1, 0]}
    reward = load_reward("unigrpo.rewards.adapters:Trl", arguments)
    assert reward.wants_completion_ids
    assert reward.range == (-1.0, 0.0)
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5]]
    assert reward(prompts=["", ""], completions=["", ""], completion_ids=ids) == [0.0, -0.75]


def test_trl_s_factory_without_the_adapter_is_sent_to_it() -> None:
    reward = load_reward(trl("get_repetition_penalty_reward"), {"ngram_size": 3})
    with pytest.raises(RewardContractError, match=r"get_repetition_penalty_reward.*a factory.*adapters:Trl"):
        reward(**TEXT)  # type: ignore[arg-type]


def test_a_file_starts_where_the_recipe_says_and_not_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "recipe", tmp_path / "elsewhere"
    for place, value in ((folder, 1.0), (elsewhere, 0.0)):
        place.mkdir()
        (place / "theirs.py").write_text(f"def score(completions):\n    return [{value}] * len(completions)\n")
    monkeypatch.chdir(elsewhere)
    settings = RewardSettings(use="unigrpo.rewards.adapters:Trl", arguments={"function": "theirs.py:score"})
    with RewardPool({"it": settings}, folder=folder) as pool:
        assert pool.score([rollout("a")]).table.values.tolist() == [[1.0]]
    with RewardPool({"it": settings}) as pool:
        assert pool.score([rollout("a")]).table.values.tolist() == [[0.0]]


def test_a_made_function_gets_the_columns_that_it_names() -> None:
    reward = adapted(Trl, "make_doubling", make={"factor": 2}, range=(0, 100))
    assert reward(**TEXT) == [14, 14]  # type: ignore[arg-type]
    assert reward.wanted_columns is None


def test_verl_function_gets_one_completion_at_a_time() -> None:
    assert adapted(Verl, "compute_score", data_source="gsm8k")(**TEXT) == [1.0, 0.0]  # type: ignore[arg-type]
    columns = {**TEXT, "answer": ["x", "x"], "data_source": ["gsm8k"] * 2, "ground_truth": ["2", None]}
    columns["reward_model"] = [{"ground_truth": "9"}, {"ground_truth": 5}]
    assert adapted(Verl, "compute_score")(**columns) == [1.0, 1.0]  # type: ignore[arg-type]


def test_verl_dict_is_scored() -> None:
    reward = adapted(Verl, "compute_score_dict", arguments={"bonus": 0.5})
    assert reward(**TEXT, level=[3, 4]) == [1.5, 0.5]  # type: ignore[arg-type]


def test_verl_coroutines_of_a_batch_run_together() -> None:
    from unigrpo.plugin import resolve

    reward = adapted(Verl, "compute_score_async", range=(0, 9))
    assert reward(**TEXT) == [7.0, 7.0]  # type: ignore[arg-type]
    assert resolve(f"{FOREIGN}:compute_score_async").most == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("result", [[1.0], (0.5, {}), "1", np.ones(1), torch.ones(1), {"reward": 1.0}])
def test_verl_function_must_give_one_number(result: object) -> None:
    reward = adapted(Verl, "compute_score_as_given", arguments={"result": result})
    with pytest.raises(
        RewardContractError, match=r"foreign_rewards.py:compute_score_as_given returned a .*wanted a num"
    ):
        reward(**TEXT)  # type: ignore[arg-type]


@pytest.mark.parametrize("result", [None, 1, True, np.float64(0.5), torch.tensor(0.5), float("nan")])
def test_verl_number_of_any_kind_passes(result: object) -> None:
    assert len(adapted(Verl, "compute_score_as_given", arguments={"result": result})(**TEXT)) == 2  # type: ignore[arg-type]


def test_openrlhf_gets_the_whole_query_and_gives_a_tensor() -> None:
    columns = {"prompts": ["a", "b"], "completions": ["1", "2"], "answer": ["1", "3"]}
    assert adapted(OpenRlhf, "reward_func_tensor")(**columns) == [1.0, 0.0]  # type: ignore[arg-type]


def test_openrlhf_dict_is_scored_and_logged_and_pictures_are_left_out() -> None:
    columns = {"prompts": ["a", "c", "b"], "completions": ["1", picture(0), "2"], "answer": ["1", None, "3"]}
    reward = adapted(OpenRlhf, "reward_func_dict", range=(-1, 1))
    assert reward(**columns) == [1.0, None, -1.0]  # type: ignore[arg-type]
    assert reward.metrics == {"accuracy": [0.5]}


WRONG_BATCHES = [1.0, [1.0], [1.0, 2.0, 3.0], torch.ones(1), torch.ones(2, 1), torch.tensor(1.0), np.ones((2, 1)), "ab"]


@pytest.mark.parametrize("result", [*WRONG_BATCHES, None, {"scores": [1, 1]}, {"rewards": [1.0]}, {"rewards": 1.0}])
def test_openrlhf_function_must_give_one_number_a_completion(result: object) -> None:
    with pytest.raises(RewardContractError, match=r"foreign_rewards.py:reward_func_as_given returned .*; wanted "):
        adapted(OpenRlhf, "reward_func_as_given", arguments={"result": result})(**TEXT)  # type: ignore[arg-type]


def test_flow_grpo_function_gets_pictures_of_one_size_together() -> None:
    sizes = [(4, 4), (8, 4), (4, 4)]
    completions = [*(picture(51 * n, size) for n, size in enumerate(sizes)), "text"]
    reward = adapted(FlowGrpo, "brightness")
    values = reward(prompts=["p"] * 4, completions=completions)
    assert values == pytest.approx([0.0, 0.2, 0.4, None])
    assert reward.metrics["call_size"] == [2.0, 1.0]


def test_a_picture_that_cannot_be_read_has_the_least_of_flow_grpo_s_range() -> None:
    reward = adapted(FlowGrpo, "brightness", range=(-2, 1))
    values = reward(prompts=["p"] * 2, completions=[Image.new("F", (4, 4)), picture(0)])
    assert values[0] == -2.0
    assert reward.metrics["pictures/refused_fraction"] == [0.5]


def test_flow_grpo_factory_is_made_once_for_its_device() -> None:
    reward = adapted(FlowGrpo, "make_brightness", make={"device": "cpu"}, images="tensor")
    assert reward(prompts=["p"], completions=[picture(51)]) == pytest.approx([0.2])
    assert adapted(FlowGrpo, "make_without_settings", make={})(
        prompts=["p"] * 2, completions=[picture(0)] * 2, wanted=[0.5, 1], answer=[None, None]
    ) == [0.5, 1.0]


def test_flow_grpo_metadata_column_is_handed_on() -> None:
    reward = adapted(FlowGrpo, "make_without_settings", make={})
    assert reward(prompts=["p"], completions=[picture(0)], metadata=[{"wanted": 0.25}]) == [0.25]


def test_of_several_scores_the_average_counts_and_of_several_results_the_first() -> None:
    reward = adapted(FlowGrpo, "several_scores", arguments={"only_strict": False})
    assert reward(prompts=["p"] * 2, completions=[picture(0)] * 2) == [0.25, 0.25]
    assert adapted(FlowGrpo, "strict_scores")(prompts=["p"], completions=[picture(0)]) == [0.5]


@pytest.mark.parametrize("result", [*((wrong, {}) for wrong in WRONG_BATCHES), *WRONG_BATCHES, (), ({"x": [1, 1]}, {})])
def test_flow_grpo_function_must_give_one_number_a_picture(result: object) -> None:
    reward = adapted(FlowGrpo, "scores_as_given", arguments={"result": result})
    with pytest.raises(RewardContractError, match=r"foreign_rewards.py:scores_as_given returned .*; wanted "):
        reward(prompts=["p", "q"], completions=[picture(0), picture(9)])


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("nothing", {}, "has no 'nothing'"),
        ("NUMBER", {}, "is a int; wanted something to call"),
        ("not_a_factory", {"make": {}}, r"called with \{\} gave a int.*leave out make"),
    ],
)
def test_what_is_no_function_is_named(function: str, settings: dict[str, object], message: str) -> None:
    for kind in (Trl, Verl, OpenRlhf, FlowGrpo):
        with pytest.raises(PluginError, match=message):
            adapted(kind, function, **settings)


def test_pictures_come_as_array_or_tensor() -> None:
    with pytest.raises(ValueError, match="images 'jax' is not known; it is 'array' or 'tensor'"):
        adapted(FlowGrpo, "brightness", images="jax")


@pytest.mark.parametrize("result", [torch.ones(2, 1), np.ones((2, 2)), np.float64(1.0), {1.0, 2.0}, iter([1.0, 2.0])])
def test_plain_function_must_give_one_value_a_completion(result: object) -> None:
    reward = AdaptedReward(lambda completions: result, name="mine")
    with pytest.raises(
        RewardContractError, match=r"'mine' \(.*lambda.*\) returned a .* for 2 completions; return a li"
    ):
        reward(**TEXT)  # type: ignore[arg-type]
