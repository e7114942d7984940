"""Means and errors of measurements of which some are missing: NaN in arrays, None in files.

A measurement of 1e308 makes a mean infinite, without a warning; a file has None for it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def nan_mean(values: Any) -> float:
    """Return the mean of the values [n] that are no NaN; NaN where there is none."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def nan_std(values: Any) -> float:
    """Return the standard deviation of the population of the values [n] that are no NaN; NaN where there is none."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float("nan") if np.isnan(values).all() else float(np.nanstd(values))


def standard_error(values: Any) -> float:
    """Return the standard error of the mean of the values [n] that are no NaN; NaN where there are fewer than two."""
    values = np.asarray(values, dtype=np.float64)
    valid = values[~np.isnan(values)]
    with np.errstate(over="ignore", invalid="ignore"):
        return float(valid.std(ddof=1) / len(valid) ** 0.5) if len(valid) > 1 else float("nan")


def number_or_none(value: Any) -> float | None:
    """Return a value as JSON may hold it: None in place of what is not finite, no number, or beyond any float."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return float(value) if is_number and math.isfinite(value) else None
    except OverflowError:
        return None
