import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from reward_rollouts import rollout

from unigrpo.errors import UserError
from unigrpo.reward_table import RewardStatus, RewardTable
from unigrpo.rewards.process.adapt import RewardContractError
from unigrpo.rewards.runtime.isolation import RewardOutageError
from unigrpo.rewards.runtime.pool import MAX_ITEMS_A_CALL, RewardFailedError, RewardPool
from unigrpo.rewards.runtime.process import RewardLoadError, RewardPoolClosedError
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Message

SPECIMENS = Path(__file__).parent / "reward_specimens.py"


def specimen(name: str, **settings: object) -> RewardSettings:
    return RewardSettings(use=f"{SPECIMENS}:{name}", **({"timeout_s": 20.0} | settings))


def score(texts: list[str], name: str, **settings: object) -> RewardTable:
    with RewardPool({"it": specimen(name, **settings)}) as pool:
        return pool.score([rollout(text, number=number) for number, text in enumerate(texts)]).table


BATCH = [*("x" * number for number in range(1, 8)), "bomb", *("x" * number for number in range(8, 15))]
GUILTY = BATCH.index("bomb")
EXPECTED = [len(text) / 100 for text in BATCH]


def assert_only_the_guilty_item_pays(table: RewardTable, status: RewardStatus) -> None:
    assert table.status[GUILTY, 0] == status
    assert list(np.delete(table.values[:, 0], GUILTY)) == list(np.delete(EXPECTED, GUILTY))
    assert (np.delete(table.status[:, 0], GUILTY) == RewardStatus.OK).all()


@pytest.mark.parametrize("name", ["hang_on_bomb", "spin_on_bomb"])
def test_an_item_that_hangs_gets_the_minimum_and_the_others_their_value(name: str) -> None:
    with RewardPool({"it": specimen(name, timeout_s=1.0)}) as pool:
        rollouts = [rollout(text, number=number) for number, text in enumerate(BATCH)]
        scored = pool.score(rollouts)
        table = scored.table
        assert_only_the_guilty_item_pays(table, RewardStatus.TIMEOUT)
        assert table.values[GUILTY, 0] == 0.0
        assert scored.stats["it"].num_restarts == 2
        again = pool.score(rollouts[:3]).table
        assert (again.status == RewardStatus.OK).all()


@pytest.mark.parametrize("name", ["exit_on_bomb", "raise_on_bomb", "system_exit_on_bomb"])
def test_an_item_that_crashes_or_raises_is_masked(name: str) -> None:
    table = score(BATCH, name)
    assert_only_the_guilty_item_pays(table, RewardStatus.ERROR)
    assert np.isnan(table.values[GUILTY, 0])


def test_the_minimum_is_the_range_of_the_class() -> None:
    table = score(["a", "bomb"], "Scaled", timeout_s=1.0, arguments={"factor": 3.0})
    assert table.values[:, 0].tolist() == [3.0, -2.0]
    assert table.ranges == ((-2.0, 3.0),)


def test_a_worker_killed_once_costs_nothing(tmp_path: Path) -> None:
    table = score(BATCH, "killed_once", arguments={"marker": str(tmp_path / "killed")})
    assert table.values[:, 0].tolist() == EXPECTED


def test_a_worker_killed_between_steps_is_replaced() -> None:
    with RewardPool({"it": specimen("process_id")}) as pool:
        first = int(pool.score([rollout("a")]).table.values[0, 0])
        os.kill(first, 9)
        scored = pool.score([rollout("a")])
        second = int(scored.table.values[0, 0])
        assert first != second
        assert scored.stats["it"].num_restarts == 1
    assert not psutil.pid_exists(second)


def test_values_that_are_no_numbers_are_invalid_and_none_does_not_apply() -> None:
    texts = ["nan", "inf", "none", "true", *("ok" for _ in range(11))]
    table = score(texts, "odd_values")
    invalid, skipped, ok = RewardStatus.INVALID, RewardStatus.NOT_APPLICABLE, RewardStatus.OK
    assert table.status[:5, 0].tolist() == [invalid, invalid, skipped, ok, ok]
    assert np.isnan(table.values[:3, 0]).all()
    assert table.values[3:, 0].tolist() == [1.0, *(0.5 for _ in range(11))]


@pytest.mark.parametrize(
    ("name", "given"), [("one_element_list", "a list of 1"), ("scalar", "a float"), ("one_too_many", "a list of 4")]
)
def test_a_wrong_shape_always_raises(name: str, given: str) -> None:
    with pytest.raises(
        RewardContractError, match=rf"reward 'it' .*{name}\) returned {given} for 3 completions"
    ) as error:
        score(["a", "b", "c"], name)
    assert isinstance(error.value, UserError)  # one line for the user, who can mend it


def test_an_outage_stops_with_the_name_and_three_samples() -> None:
    with pytest.raises(RewardOutageError, match=r"'it' failed on 3 of 8 .*(server is down.*){3}"):
        score(["a"] * 8, "always_raises")


def test_a_reward_that_always_hangs_is_an_outage_after_five_items() -> None:
    with pytest.raises(RewardOutageError, match=r"'it' gave no answer for 5 single items in a row out of 64"):
        score(["a"] * 100, "always_hangs", timeout_s=0.2)


def test_closing_ends_a_score_that_hangs_and_leaves_no_process() -> None:
    pool = RewardPool({"it": specimen("always_hangs", timeout_s=60.0)})
    pool.wait_until_loaded()
    timer = threading.Timer(0.5, pool.close)
    timer.start()
    with pytest.raises(RewardPoolClosedError, match="'it' was closed"):
        pool.score([rollout("a")])
    timer.join()
    assert not any("rewards.process.worker" in " ".join(child.cmdline()) for child in psutil.Process().children())


@pytest.mark.parametrize(
    ("name", "limit", "wanted"),
    [
        ("address_space_gb", None, 16.0),
        ("address_space_gb", 2.5, 2.5),
        ("address_space_gb", 0.0, -1.0),
        ("AddressSpace", None, -1.0),
        ("AddressSpace", 3.0, 3.0),
        ("AddressSpaceOfItsOwn", None, 1.0),
    ],
)
def test_address_space_is_the_recipes_else_the_rewards_own_else_that_of_a_function(
    name: str, limit: float | None, wanted: float
) -> None:
    assert score(["a", "b"], name, memory_limit_gb=limit).values[:, 0].tolist() == [wanted] * 2


def test_memory_of_a_rule_is_limited() -> None:
    table = score(["a", "bomb", "b"], "Greedy")
    assert table.status[:, 0].tolist() == [RewardStatus.OK, RewardStatus.ERROR, RewardStatus.OK]


def test_on_error_raise_names_the_sample() -> None:
    with pytest.raises(RewardFailedError, match=r"'it' failed on sample 3 of prompt 'p1'.*no such thing"):
        score(BATCH, "raise_on_bomb", on_error="raise")


def test_on_error_value_is_used() -> None:
    table = score(BATCH, "raise_on_bomb", on_error="value", error_value=0.25)
    assert table.values[GUILTY, 0] == 0.25
    assert table.status[GUILTY, 0] == RewardStatus.ERROR
    with pytest.raises(ValueError, match="error_value go together"):
        RewardPool({"it": specimen("length", on_error="value")})


def test_on_error_drop_group_masks_every_reward_of_the_group() -> None:
    settings = {"it": specimen("raise_on_bomb", on_error="drop_group"), "other": specimen("length")}
    with RewardPool(settings) as pool:
        table = pool.score([rollout(text, number=number) for number, text in enumerate(BATCH)]).table
    is_dropped = np.arange(len(BATCH)) // 4 == GUILTY // 4
    assert (np.isnan(table.values) == is_dropped[:, None]).all()
    assert np.isnan(table.total[is_dropped]).all()


def test_drop_group_spares_other_groups_of_the_same_prompt_id() -> None:
    texts = ["a", "bomb", "a", "b", "a", "b"]
    rows = [rollout(text, number=number % 2, id="same") for number, text in enumerate(texts)]
    rows[4:] = [rollout(text, number=number, id="same", kind="understand") for number, text in enumerate("ab")]
    with RewardPool({"it": specimen("raise_on_bomb", on_error="drop_group")}) as pool:
        assert np.isnan(pool.score(rows).table.values[:, 0]).tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("is_adapted", [False, True], ids=["function", "adapted"])
def test_the_warm_up_of_a_function_is_not_in_the_time_of_its_first_call(is_adapted: bool) -> None:
    settings = specimen("warmed", timeout_s=1.0)
    if is_adapted:
        arguments = {"function": settings.use}
        settings = RewardSettings(use="unigrpo.rewards.adapters:Trl", arguments=arguments, timeout_s=1.0)
    with RewardPool({"it": settings}) as pool:
        table = pool.score([rollout("a")]).table
    assert table.status.tolist() == [[RewardStatus.OK]]


@pytest.mark.parametrize("settings", [{}, {"max_failed_fraction": 1.0}], ids=["too many", "in a row"])
def test_an_outage_of_a_function_that_is_slow_at_first_names_warm_up(settings: dict[str, float]) -> None:
    with pytest.raises(RewardOutageError, match=r"first call .*warm_up|warm_up .*first call"):
        score(["a"] * 8, "slow_at_first", timeout_s=0.2, **settings)


def test_a_call_is_of_bounded_size_and_what_it_logs_comes_back() -> None:
    num_items = 2 * MAX_ITEMS_A_CALL + 10
    with RewardPool({"it": specimen("size_of_call")}) as pool:
        scored = pool.score([rollout(f"{number}", number=number) for number in range(num_items)])
        table = scored.table
        stats = scored.stats["it"]
    assert table.values[:, 0].tolist() == [64.0] * 128 + [10.0] * 10
    assert stats.metrics == {"size": pytest.approx((64 * 128 + 10 * 10) / 138)}


def test_tasks_filter_and_weights_make_the_total() -> None:
    settings = {
        "length": specimen("length", weight=2.0, tasks=["reason"]),
        "format": RewardSettings(use="unigrpo.rewards.format:Format", weight=0.5),
    }
    with RewardPool(settings) as pool:
        good = "<think>x</think> 5"
        table = pool.score([rollout(good), rollout(good, kind="understand", id="other")]).table
    assert table.names == ("length", "format")
    assert table.status[:, 0].tolist() == [RewardStatus.OK, RewardStatus.NOT_APPLICABLE]
    assert table.total.tolist() == pytest.approx([2.0 * len(good) / 100 + 0.5, 0.5])


def test_pictures_columns_and_ids_arrive_by_name() -> None:
    message = Message(role="user", text="?", images=(Image.new("RGB", (2, 2)), Image.new("L", (3, 3))))
    made = rollout(None, image=np.zeros((4, 7, 3), np.uint8), messages=(message,), columns={"difficulty": 3})
    with RewardPool({"it": specimen("images_and_columns")}) as pool:
        assert pool.score([made]).table.values[0, 0] == 7 + 10 * 2 + 100 * 3 + 1000 * 3


def test_async_functions_metrics_and_the_step() -> None:
    with RewardPool({"it": specimen("asynchronous")}) as pool:
        scored = pool.score([rollout("a", answer="abc")], step=7)
        table = scored.table
        assert table.values[0, 0] == 10.0
        assert scored.stats["it"].metrics == {"half": 0.5}


def test_several_workers_share_the_items_in_order() -> None:
    with RewardPool({"it": specimen("process_id", num_workers=3)}) as pool:
        assert len(set(pool.score([rollout("a") for _ in range(9)]).table.values[:, 0])) == 3
    with RewardPool({"it": specimen("length", num_workers=3)}) as pool:
        table = pool.score([rollout(text, number=number) for number, text in enumerate(BATCH)]).table
    assert table.values[:, 0].tolist() == EXPECTED


def test_a_reward_that_cannot_be_made_is_named() -> None:
    with (
        RewardPool({"it": specimen("Unloadable")}) as pool,
        pytest.raises(RewardLoadError, match=r"'it' .*weights\.safetensors is missing"),
    ):
        pool.wait_until_loaded()


def test_a_column_that_is_no_data_is_named() -> None:
    with (
        RewardPool({"it": specimen("length")}) as pool,
        pytest.raises(TypeError, match=r"columns\.odd\[0\] is a object"),
    ):
        pool.score([rollout("a", columns={"odd": object()})])


@pytest.fixture(scope="module")
def text_pool() -> Iterator[RewardPool]:
    settings = {
        name: RewardSettings(use=f"unigrpo.rewards.{name}:{name.title()}") for name in ("correctness", "format")
    }
    with RewardPool(settings) as pool:
        pool.wait_until_loaded()
        yield pool


def test_text_rewards_of_256_rollouts_take_a_fraction_of_a_second(text_pool: RewardPool) -> None:
    texts = [f"<think>{'because ' * 100}</think> \\boxed{{{number % 7}}}" for number in range(256)]
    rollouts = [rollout(text, number=number) for number, text in enumerate(texts)]
    start_s = time.perf_counter()
    table = text_pool.score(rollouts).table
    assert time.perf_counter() - start_s < 1.0
    assert table.values[:, 0].tolist() == [float(number % 7 == 5) for number in range(256)]
    assert table.values[:, 1].tolist() == [1.0] * 256


def test_power_towers_are_wrong_and_the_rest_is_scored(text_pool: RewardPool) -> None:
    texts = [r"\boxed{9^9^9^9}", r"\boxed{10^{10^{10}}}", r"\boxed{\sqrt{25}}", r"\boxed{5}"]
    table = text_pool.score([rollout(text, number=number) for number, text in enumerate(texts)]).table
    assert table.values[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
