"""A memory of a fixed number of values."""

import pytest

from unigrpo.lru import LruCache


def test_what_was_put_longest_ago_goes_first_and_looking_changes_nothing():
    cache = LruCache(2)
    cache.put({b"a": 1.0, b"b": 2.0})
    cache.put({b"a": 1.0})
    assert cache.get([b"b"]) == {b"b": 2.0}
    cache.put({b"c": 3.0})
    assert cache.get([b"a", b"b", b"c"]) == {b"a": 1.0, b"c": 3.0}


@pytest.mark.parametrize("num_entries", [0, 1, 3])
def test_of_more_than_fit_the_last_stay(num_entries):
    cache = LruCache(num_entries)
    cache.put(dict.fromkeys(range(5)))
    assert list(cache.get(range(5))) == list(range(5))[5 - num_entries :]
    assert len(cache) == num_entries
