"""Means and errors where some measurements are missing, against the standard library."""

import json
import math
import statistics

import numpy as np
import pytest

from unigrpo.runs.nan_statistics import nan_mean, nan_std, number_or_none, standard_error

NAN = float("nan")
KNOWN = [0.25, 1.0, 0.5, -3.0]


def test_missing_values_count_nowhere():
    values = [NAN, *KNOWN, NAN]
    assert nan_mean(values) == pytest.approx(statistics.mean(KNOWN))
    assert nan_std(values) == pytest.approx(statistics.pstdev(KNOWN))
    assert standard_error(values) == pytest.approx(statistics.stdev(KNOWN) / 2)


@pytest.mark.parametrize("values", [[], [NAN], [NAN, NAN]])
def test_nothing_known_is_nan_without_a_warning(values):
    assert all(math.isnan(measure(values)) for measure in (nan_mean, nan_std, standard_error))


def test_one_value_has_a_mean_and_no_error():
    assert nan_mean([2.0]) == 2.0
    assert math.isnan(standard_error([2.0, NAN]))


def test_a_number_goes_into_json_and_all_else_is_null():
    values = [np.float64(0.1), 3, NAN, np.float64("nan"), None, "1", True]
    assert json.dumps([number_or_none(value) for value in values]) == "[0.1, 3.0, null, null, null, null, null]"
