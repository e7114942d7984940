"""What a config.json must say."""

import pytest

from unigrpo.models.files.config_file import require_sizes, require_values

COMPUTED = {"rope": (True,), "bias": (False, None), "act": ("silu", "swish")}


@pytest.mark.parametrize("config", [{}, {"rope": True, "bias": None, "act": "swish"}, {"other": 7}])
def test_what_is_computed_absent_or_unknown_passes(config: dict[str, object]) -> None:
    require_values(config, COMPUTED)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope": False}, "has rope = False; this model code computes True only"),
        ({"act": "gelu"}, "has act = 'gelu'; this model code computes 'silu' only"),
        ({"rope": None}, "has rope = None"),
    ],
)
def test_another_value_is_named_with_what_is_computed(config: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_values(config, COMPUTED)


def test_every_size_that_is_absent_or_nothing_is_named() -> None:
    require_sizes({"a": 1, "b": 2}, ("a", "b"))
    with pytest.raises(ValueError, match="lacks a, c: sizes of the model"):
        require_sizes({"a": 0, "b": 2}, ("a", "b", "c"))
