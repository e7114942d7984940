"""What is scored once, what is kept, and what is neither. A file counts the items that a reward was called with."""

import io
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reward_rollouts import rollout

from unigrpo.reward_table import RewardStatus
from unigrpo.rewards.runtime.cache import DiskCache, RewardCacheError
from unigrpo.rewards.runtime.digests import NoCanonicalFormError, StepDigests, digest_of
from unigrpo.rewards.runtime.pool import RewardPool
from unigrpo.settings.rewards import RewardSettings
from unigrpo.types import Message

SPECIMENS = Path(__file__).parent / "cache_specimens.py"
TEXTS = ["a", "bb", "a", "ccc", "bb", "a"]


def reward(name, counter=None, **settings):
    arguments = settings.pop("arguments", {}) | ({} if counter is None else {"counter": str(counter)})
    return RewardSettings(use=f"{SPECIMENS}:{name}", arguments=arguments, **settings)


def rollouts(texts, **prompt):
    return [rollout(text, number=number, **prompt) for number, text in enumerate(texts)]


def score(pool, rows, **settings):
    """Score a step whose values later steps know."""
    scored = pool.score(rows, **settings)
    pool.remember(scored)
    return scored


def lines(counter):
    return counter.read_text().split() if counter.exists() else []


def test_equal_items_are_scored_once_and_kept_for_later_steps(tmp_path):
    counter = tmp_path / "count"
    with RewardPool({"it": reward("counted", counter)}) as pool:
        # Prompts p0 (four rows) and p1 ask the same with the same answer, so only the texts tell items apart.
        scored = score(pool, rollouts(TEXTS))
        first = scored.table
        assert sorted(lines(counter)) == ["a", "bb", "ccc"]
        assert scored.stats["it"].num_repeats == 3
        scored = score(pool, rollouts([*TEXTS, "dddd"]), step=1)
        second = scored.table
        assert sorted(lines(counter)) == ["a", "bb", "ccc", "dddd"]
        assert scored.metrics["reward/it/cache_hit_rate"] == pytest.approx(6 / 7)
    assert first.values[:, 0].tolist() == [1.0, 2.0, 1.0, 3.0, 2.0, 1.0]
    assert second.values[:, 0].tolist() == [1.0, 2.0, 1.0, 3.0, 2.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("changed", "num_more"), [({"answer": "6"}, 1), ({"columns": {"level": 2}}, 1), ({"id": "other"}, 0)]
)
def test_another_wanted_column_is_another_item(tmp_path, changed, num_more):
    counter = tmp_path / "count"
    with RewardPool({"it": reward("counted", counter)}) as pool:
        score(pool, rollouts(["a"]))
        score(pool, rollouts(["a"], **changed))
    assert len(lines(counter)) == 1 + num_more


def test_columns_that_a_reward_does_not_want_do_not_count(tmp_path):
    counter = tmp_path / "count"
    with RewardPool({"it": reward("Weights", counter)}) as pool:
        score(pool, rollouts(["a"], columns={"level": 1}))
        score(pool, rollouts(["a"], columns={"level": 2}))
    assert len(lines(counter)) == 1


def test_pictures_count_by_their_pixels(tmp_path):
    counter = tmp_path / "count"
    white, black = np.full((4, 5, 3), 255, np.uint8), np.zeros((4, 5, 3), np.uint8)
    with RewardPool({"it": reward("counted", counter)}) as pool:
        made = [rollout(None, number=n, image=image) for n, image in enumerate([white, black, white.copy()])]
        assert score(pool, made).table.values[:, 0].tolist() == [5.0] * 3
    assert len(lines(counter)) == 2


def test_failures_and_none_are_not_kept(tmp_path):
    counter = tmp_path / "count"
    with RewardPool({"it": reward("fails_on_bomb", counter, max_failed_fraction=1.0)}) as pool:
        for _ in range(2):
            table = score(pool, rollouts(["bomb", "none", "ok", "bomb"])).table
            error, absent = RewardStatus.ERROR, RewardStatus.NOT_APPLICABLE
            assert table.status[:, 0].tolist() == [error, absent, RewardStatus.OK, error]
            given = lines(counter)
            counter.write_text("")
    assert set(given) == {"bomb", "none"}


def test_by_default_every_one_of_eight_equal_completions_is_scored():
    settings = {"rarity": reward("rarity"), "chance": reward("chance")}
    with RewardPool(settings) as pool:
        table = score(pool, rollouts(["a"] * 8)).table
        assert len(set(score(pool, rollouts(["a"] * 8)).table.values[:, 1]) - set(table.values[:, 1])) == 8
    assert table.values[:, 0].tolist() == [1 / 8] * 8
    assert len(set(table.values[:, 1])) == 8


@pytest.mark.parametrize("name", ["says_nothing", "Reweighted"])
@pytest.mark.parametrize(("settings", "num_scored"), [({}, 4), ({"cache": "memory"}, 1)])
def test_what_says_nothing_is_kept_only_where_the_recipe_says_so(tmp_path, name, settings, num_scored):
    counter = tmp_path / "count"
    with RewardPool({"it": reward(name, counter, **settings)}) as pool:
        for _ in range(2):
            score(pool, rollouts(["a", "a"]))
    assert len(lines(counter)) == num_scored


@pytest.mark.parametrize(("name", "settings"), [("asks_somebody", {}), ("counted", {"cache": "off"})])
def test_nothing_is_kept_of_a_reward_that_asks_somebody_or_where_the_recipe_says_off(tmp_path, name, settings):
    counter = tmp_path / "count"
    with RewardPool({"it": reward(name, counter, **settings)}) as pool:
        score(pool, rollouts(["a"]))
        score(pool, rollouts(["a"]))
    assert lines(counter) == ["a", "a"]


def test_what_a_reward_logs_is_of_the_items_it_was_asked(tmp_path):
    with RewardPool({"it": reward("logs")}) as pool:
        scored = score(pool, rollouts(["a", "b", "a"]))
        assert scored.stats["it"].metrics == {"number": 2.0}
        scored = score(pool, rollouts(["a", "c"]))
        assert scored.stats["it"].metrics == {"number": 1.0}
        assert scored.metrics["reward/it/number"] == 1.0


def test_a_file_is_shared_between_runs_until_weights_or_arguments_change(tmp_path):
    counter, file = tmp_path / "count", tmp_path / "cache.sqlite"
    disk = {"cache": "disk", "cache_file": str(file)}
    for arguments, expected in [({}, 1), ({}, 1), ({"fingerprint": "b"}, 2), ({"fingerprint": "b"}, 2)]:
        with RewardPool({"it": reward("Weights", counter, arguments=arguments, **disk)}) as pool:
            assert score(pool, rollouts(["bb"])).table.values.tolist() == [[2.0]]
        assert len(lines(counter)) == expected


def test_a_changed_module_beside_the_reward_makes_its_values_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))  # A worker has the paths of its parent.
    disk = {"cache": "disk", "cache_file": str(tmp_path / "cache.sqlite")}
    (tmp_path / "mine.py").write_text("def score(completions):\n    import near\n    return near.values(completions)\n")
    (tmp_path / "near.py").write_text("from far import VALUE\ndef values(them):\n    return [VALUE for _ in them]\n")
    of_trl = {"use": "unigrpo.rewards.adapters:Trl", "arguments": {"function": f"{tmp_path}/mine.py:score"}}
    for value in (0.25, 0.5):
        (tmp_path / "far.py").write_text(f"VALUE = {value}\n")
        for settings in ({"use": f"{tmp_path}/mine.py:score"}, of_trl):
            with RewardPool({"it": RewardSettings(**settings, **disk)}) as pool:
                for _ in range(2):
                    scored = score(pool, rollouts(["a"]))
                    assert scored.table.values.tolist() == [[value]]
                assert scored.stats["it"].num_known == 1


def test_a_changed_file_that_the_reward_does_not_import_keeps_its_values(tmp_path):
    counter, disk = tmp_path / "count", {"cache": "disk", "cache_file": str(tmp_path / "cache.sqlite")}
    (tmp_path / "mine.py").write_text(SPECIMENS.read_text())
    for number in range(2):
        (tmp_path / "other.py").write_text(f"VALUE = {number}\n")
        (tmp_path / "random.py").write_text("no Python, and not what `import random` gives\n")
        settings = RewardSettings(use=f"{tmp_path}/mine.py:counted", arguments={"counter": str(counter)}, **disk)
        with RewardPool({"it": settings}) as pool:
            score(pool, rollouts(["a"]))
    assert lines(counter) == ["a"]


def test_a_file_that_is_no_cache_is_named(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100)
    with pytest.raises(RewardCacheError, match=r"cache_file .*notes\.txt: file is not a database; give a file"):
        RewardPool({"it": reward("logs", cache="disk", cache_file=str(file))}).start()


def test_a_locked_or_damaged_file_is_an_error_and_not_a_miss(tmp_path):
    cache = DiskCache(tmp_path / "cache.sqlite")
    cache.put({b"k": 0.5})
    assert cache.get([b"k", b"l"]) == {b"k": 0.5}
    with sqlite3.connect(tmp_path / "cache.sqlite") as other:
        other.execute("DROP TABLE rewards")
    other.close()
    with pytest.raises(RewardCacheError, match="no such table"):
        cache.get([b"k"])
    cache.close()


def test_a_resumed_run_knows_what_its_journal_tells(tmp_path):
    counter = tmp_path / "count"
    settings = {"it": reward("counted", counter)}
    with RewardPool(settings) as pool:
        first = pool.score(rollouts(TEXTS))
    with RewardPool(settings) as pool:
        pool.wait_until_loaded()
        pool.remember(first)
        pool.score(rollouts(TEXTS))
    assert len(lines(counter)) == 3


def test_hashes_tell_apart_what_looks_alike():
    values = [
        None,
        "None",
        0,
        0.0,
        False,
        "0",
        b"0",
        [],
        [[]],
        {},
        [{}],
        ["ab", "c"],
        ["a", "bc"],
        {"a": "b"},
        ["a", "b"],
        np.zeros(2),
        np.zeros(2, np.float32),
        np.zeros((2, 1)),
        Image.new("L", (2, 3)),
        Image.new("L", (3, 2)),
        Image.new("RGB", (2, 1)),
        "\ud800",
        "é",
    ]
    assert len({digest_of(value) for value in values}) == len(values)
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of((1, np.int64(2))) == digest_of([1, 2])
    with pytest.raises(NoCanonicalFormError):
        digest_of([{1, 2}])


def palette(*colors, transparency=None):
    picture = Image.new("P", (2, 1))
    picture.putpalette([level for color in colors for level in color])
    picture.putpixel((1, 0), 1)
    if transparency is not None:
        picture.info["transparency"] = transparency
    return picture


def rotated(orientation):
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    picture.getexif()[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, format="PNG", exif=picture.getexif())
    return Image.open(file)


def test_pictures_of_equal_bytes_that_look_different_have_different_hashes():
    red, blue = (255, 0, 0), (0, 0, 255)
    assert palette(red, blue).tobytes() == palette(blue, red).tobytes()
    assert rotated(1).tobytes() == rotated(3).tobytes()
    looks = [palette(red, blue), palette(blue, red), palette(red, blue, transparency=0), rotated(1), rotated(3)]
    assert len({digest_of(picture) for picture in looks}) == len(looks)
    assert digest_of(palette(red, blue)) == digest_of(palette(red, blue))
    assert digest_of(rotated(3)) == digest_of(rotated(3))


def test_a_prompt_whose_columns_are_no_data_has_no_key():
    image = Image.new("RGB", (2, 2))
    message = Message(role="user", text="?", images=(image,))
    digests = StepDigests([rollout("a", columns={"odd": object()}), rollout("a", messages=(message,))])
    keys = digests.keys([0, 1], identity=b"i", wanted=None, with_completion_ids=False)
    assert keys[0] is None and keys[1] is not None
