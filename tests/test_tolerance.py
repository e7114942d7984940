"""The one rule of tolerance, on exact fractions of any size."""

from hypothesis import given
from hypothesis import strategies as st

from unigrpo.rewards.maths.tolerance import are_one_number, last_digit


@given(value=st.fractions(min_value=1), exponent=st.integers(-40, 40), digits=st.integers(7, 20))
def test_a_decimal_stands_for_what_it_cuts_at_any_size_and_for_nothing_one_digit_off(
    value: object, exponent: int, digits: int
) -> None:
    exact = value * 10**exponent if exponent >= 0 else value / 10**-exponent  # type: ignore[operator]
    whole = int(value)  # type: ignore[call-overload]
    scale = 10 ** max(digits - len(str(whole)), 1)
    cut = int(value * scale)  # type: ignore[operator]
    mantissa = f"{cut // scale}.{str(cut % scale).zfill(len(str(scale)) - 1)}"
    worth = last_digit(mantissa, exponent)
    assert worth is not None
    written = cut * worth
    assert are_one_number(written, exact, worth)
    assert not are_one_number(written, exact + 2 * max(worth, exact / 10**13), worth)
