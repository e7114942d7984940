"""Whatever a reward does, in whatever form: a typed outcome, and no other item touched."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reward_rollouts import rollout

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.process.adapt import RewardContractError
from unigrpo.rewards.runtime.isolation import RewardOutageError
from unigrpo.rewards.runtime.pool import RewardFailedError, RewardPool
from unigrpo.settings.rewards import RewardSettings

SPECIMENS = Path(__file__).parent / "matrix_specimens.py"
FORMS = ("function", "coroutine", "Class", "trl")
LOWEST = (0.0, 0.0, -1.0, 0.0)
OK, ABSENT, INVALID, ERROR, TIMEOUT = RewardStatus
OUTCOMES = {
    "nan": INVALID,
    "inf": INVALID,
    "none": ABSENT,
    "dict": INVALID,
    "array": INVALID,
    "text": INVALID,
    "exception": ERROR,
    "base_exception": ERROR,
    "interrupt": ERROR,
    "exit": ERROR,
    "kill": ERROR,
    "hang": TIMEOUT,
    "fork": OK,
    "numpy": OK,
}
ODD_TEXTS = ["x" * 2**20, "\ud83d and \udfff", "\u202eגד\u202c שלום", "\x00\x1b[31m", "", "🙂" * 1000]


def settings(form: str, **changes: object) -> RewardSettings:
    return RewardSettings(use=f"{SPECIMENS}:{form}", **({"timeout_s": 2.0, "num_workers": 2} | changes))


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    """All four at once: the first two in processes of their own, the last two in shared ones."""
    shared = {"Class": "shared", "trl": "shared"}
    with RewardPool({form: settings(form, worker=shared.get(form)) for form in FORMS}) as pool:
        pool.wait_until_loaded()
        yield pool


def rollouts(texts):
    return [rollout(text, number=number) for number, text in enumerate(texts)]


@pytest.mark.parametrize("kind", OUTCOMES)
def test_one_item_has_its_outcome_and_the_others_their_value(pool: RewardPool, kind: str) -> None:
    texts = [*("x" * number for number in range(1, 8)), f"bomb {kind}", *("y" * number for number in range(8, 15))]
    table = pool.score(rollouts(texts)).table
    assert table.status[7].tolist() == [OUTCOMES[kind]] * 4
    expected = LOWEST if kind == "hang" else [len(texts[7]) / 2**20 if OUTCOMES[kind] == OK else np.nan] * 4
    np.testing.assert_allclose(table.values[7], expected, rtol=1e-6)
    assert (np.delete(table.status, 7, axis=0) == OK).all()
    values = [[len(text) / 2**20] * 4 for number, text in enumerate(texts) if number != 7]
    np.testing.assert_allclose(np.delete(table.values, 7, axis=0), values, rtol=1e-6)
    again = pool.score(rollouts(["abc", "de"])).table
    assert again.values.tolist() == [[3 / 2**20] * 4, [2 / 2**20] * 4]


def test_odd_texts_arrive_as_they_are(pool: RewardPool) -> None:
    table = pool.score(rollouts(ODD_TEXTS)).table
    assert (table.status == OK).all()
    assert table.values.tolist() == [[len(text) / 2**20] * 4 for text in ODD_TEXTS]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["short", "long", "scalar", "mapping", "nothing", "matrix"])
def test_a_wrong_shape_stops_with_the_function_and_both_counts(pool: RewardPool, form: str, kind: str) -> None:
    with pytest.raises(RewardContractError, match=rf"'{form}' \(.*{form}\) returned .* for 2 completions"):
        pool.score(rollouts(["a", f"bomb {kind} {form}", "b", "c"]))
    assert (pool.score(rollouts(["abc", "de"])).table.status == OK).all()


def test_the_pool_is_whole_after_any_number_of_hangs(pool: RewardPool) -> None:
    for _ in range(3):
        texts = ["bomb hang function", *("x" * number for number in range(1, 12))]
        table = pool.score(rollouts(texts)).table
        assert table.status[0].tolist() == [TIMEOUT, OK, OK, OK]
    processes = pool._scorers["function"]._processes
    assert len(processes) == 2
    assert all(process._child.is_alive for process in processes)
    start_s = time.perf_counter()
    assert (pool.score(rollouts(["a"] * 8)).table.status == OK).all()
    assert time.perf_counter() - start_s < 2.0


@pytest.mark.parametrize("form", FORMS)
def test_each_way_to_take_an_error(form: str) -> None:
    texts = ["a", "bomb exception", "c", "d", *"efgh"]
    ways = {
        "mask": settings(form),
        "value": settings(form, on_error="value", error_value=-0.5),
        "drop_group": settings(form, on_error="drop_group"),
        "held_out": settings(form, weight=0.0),
    }
    ways = {name: way.model_copy(update={"worker": "one", "num_workers": 1}) for name, way in ways.items()}
    with RewardPool(ways) as pool:
        table = pool.score(rollouts(texts)).table
    is_dropped = np.arange(8) < 4
    # The group is dropped of every optimised reward; what is logged only stays.
    assert np.isnan(table.values[is_dropped, :3]).all()
    assert np.isnan(table.values[:, 3]).tolist() == [number == 1 for number in range(8)]
    assert table.status[1].tolist() == [ERROR] * 4
    assert not np.isnan(table.total[~is_dropped]).any()
    with (
        RewardPool({form: settings(form, on_error="raise", num_workers=1)}) as pool,
        pytest.raises(RewardFailedError, match=rf"reward '{form}' failed on sample 1 of prompt 'p0': KeyError"),
    ):
        pool.score(rollouts(texts))


def test_the_recipe_says_how_many_may_fail() -> None:
    texts = ["bomb exception"] * 3 + ["x" * number for number in range(1, 8)]
    with RewardPool({"it": settings("function", max_failed_fraction=0.3)}) as pool:
        assert (pool.score(rollouts(texts)).table.status[:, 0] == ERROR).sum() == 3
    with (
        RewardPool({"it": settings("function", max_failed_fraction=0.25)}) as pool,
        pytest.raises(RewardOutageError, match=r"'it' failed on 3 of 10 items .* more than 25%: (KeyError.*){3}"),
    ):
        pool.score(rollouts(texts))
