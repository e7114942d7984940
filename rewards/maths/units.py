r"""Units of measure, in one spelling: ``meters per second`` and ``m/s``; ``square cm`` and ``cm^2``."""

from __future__ import annotations

import re

_SPELLINGS = """
    mm millimeter millimeters millimetre millimetres; cm centimeter centimeters centimetre centimetres;
    m meter meters metre metres; km kilometer kilometers kilometre kilometres;
    in inch inches; ft foot feet; yd yard yards; mi mile miles; mph;
    mg milligram milligrams; g gram grams; kg kilogram kilograms kilo kilos; lb lbs pound pounds; oz ounce ounces;
    ml milliliter milliliters mL; l liter liters litre litres L;
    ms millisecond milliseconds; s sec secs second seconds; min mins minute minutes; h hr hrs hour hours; day days;
    week weeks; month months; year years; am a.m.; pm p.m.; cent cents; dollar dollars usd; euro euros eur;
    degree degrees deg; radian radians rad;
    J joule joules; kJ kilojoule kilojoules; N newton newtons; W watt watts; kW kilowatt kilowatts; kWh; eV;
    V volt volts; A amp amps ampere amperes; K kelvin kelvins; Hz hertz; kHz; MHz; Pa pascal pascals; kPa;
    mol mole moles; C coulomb coulombs; ohm ohms
"""
_UNITS = {name: names.split()[0] for names in _SPELLINGS.split(";") for name in names.split()}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_PRODUCTS = {"mph": {"mi": 1, "h": -1}}
_PIECE = re.compile(r"([a-zA-Z][a-zA-Z.]*)\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?|(/)")
_SIGN = re.compile(r"^[-+]?\s*(?:US\s*)?(?:\\?(\$)|([€£¥₹₩])|Rs\b)|(?:\\?(\$)|([€£¥₹₩]))$")
_CURRENCIES = {"$": "dollar", "€": "euro"}


def unit_of(text: str) -> str | None:
    """Return a unit in one spelling; None where it is a counted noun, or not known by all its parts."""
    if "circ" in text:
        return "degree1"
    powers: dict[str, int] = {}
    prefix, sign = 1, 1
    for match in _PIECE.finditer(text.replace(r"\cdot", " ")):
        word = match[1]
        if word is None or word == "per":
            sign = -1
        elif word.lower() in _POWERS:
            prefix = _POWERS[word.lower()]
        else:
            name = _UNITS.get(word) or _UNITS.get(word.lower()) or _UNITS.get(word.rstrip("."))
            if name is None:
                return None
            for part, exponent in _PRODUCTS.get(name, {name: 1}).items():
                powers[part] = powers.get(part, 0) + sign * exponent * int(match[2] or prefix)
            prefix = sign = 1
    return " ".join(f"{name}{power}" for name, power in sorted(powers.items())) or None


def currency_of(text: str) -> str | None:
    """Return the currency whose sign an amount bears; "" for pounds and others, whose sign tells nothing apart.

    (Pounds are also a weight in words.) None without a sign.
    """
    match = _SIGN.search(text)
    if match is None:
        return None
    name = _CURRENCIES.get(match[1] or match[2] or match[3] or match[4] or "", "")
    return f"{name}1" if name else ""
