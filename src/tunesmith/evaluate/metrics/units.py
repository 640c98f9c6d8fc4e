"""Units and magnitudes that ``numeric`` reads: a table of words and symbols, exact.

Two quantities with units are compared in one unit, and only within one dimension: 5 km is 5,000 m and not 5 miles. Symbols keep
their case (``mW`` is not ``MW``), words do not. Left out is what means two things that differ (gallon, ton, billion of the long
scale); a word that is not here is no unit, and says nothing.

Currencies are dimensions of their own: nobody knows the rate. Source: SI brochure, 9th edition; NIST SP 811 (inch, pound).
"""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit of a dimension.

    Attributes:
        dimension: what it measures; a currency is one of its own.
        factor: how many of the dimension's first unit one is.
        zero: where its zero lies in that first unit (degrees).
    """

    dimension: str
    factor: Fraction
    zero: Fraction = Fraction(0)


_TABLE = """
length: m metre metres meter meters = 1; km kilometre kilometres kilometer kilometers = 1000; dm = 1/10
length: cm centimetre centimetres centimeter centimeters = 1/100; mm millimetre millimetres millimeter millimeters = 1/1000
length: µm um micrometre micrometer micrometers = 1/1000000; nm nanometre nanometer nanometers = 1/1000000000
length: in inch inches = 254/10000; ft foot feet = 3048/10000; yd yard yards = 9144/10000; mi mile miles = 1609344/1000
mass: g gram grams = 1; kg kilogram kilograms kilo kilos = 1000; mg milligram milligrams = 1/1000; µg ug = 1/1000000
mass: t tonne tonnes = 1000000; lb lbs = 45359237/100000; oz ounce ounces = 28349523125/1000000000
time: s sec secs second seconds = 1; ms millisecond milliseconds = 1/1000; min mins minute minutes = 60
time: µs us microsecond microseconds = 1/1000000; h hr hrs hour hours = 3600; d day days = 86400; week weeks = 604800
months: month months = 1; yr yrs year years = 12
volume: l L litre litres liter liters = 1; ml mL millilitre millilitres milliliter milliliters = 1/1000; cl = 1/100
volume: m^3 = 1000; cm^3 cc = 1/1000
area: m^2 = 1; cm^2 = 1/10000; mm^2 = 1/1000000; km^2 = 1000000; ha hectare hectares = 10000; ft^2 = 9290304/100000000
speed: m/s = 1; km/h kmh kph = 10/36; mph = 44704/100000
data: bit bits = 1; B byte bytes = 8; kB KB = 8000; MB = 8000000; GB = 8000000000; TB = 8000000000000
data: KiB = 8192; MiB = 8388608; GiB = 8589934592
energy: J joule joules = 1; kJ = 1000; MJ = 1000000; Wh = 3600; kWh = 3600000; cal = 4184/1000; kcal = 4184
power: W watt watts = 1; mW = 1/1000; kW = 1000; MW = 1000000; GW = 1000000000
frequency: Hz hertz = 1; kHz = 1000; MHz = 1000000; GHz = 1000000000
voltage: V volt volts = 1; mV = 1/1000; kV = 1000
current: A ampere amperes amps = 1; mA = 1/1000
pressure: Pa = 1; hPa mbar = 100; kPa = 1000; bar = 100000
angle: ° deg degree degrees = 1
dollar: $ US$ USD dollar dollars = 1; ¢ cent cents = 1/100
euro: € EUR euro euros = 1
sterling: £ GBP = 1
yen or yuan: ¥ = 1
yen: JPY yen = 1
yuan: CNY RMB yuan 元 = 1
rupee: ₹ INR rupee rupees = 1
won: ₩ KRW won = 1
franc: CHF = 1
"""
_MAGNITUDES = """
k thousand 千 = 3; million millions mio mn = 6; billion billions mrd bn = 9; trillion trillions tn = 12; hundred 百 = 2
lakh lakhs = 5; crore crores = 7; 万 萬 만 = 4; 亿 億 억 = 8
"""
_ATTACHED = {"K": 3, "M": 6, "B": 9}  # 5M, and never 5 M


def _entries(text: str) -> list[tuple[str, str]]:
    entries = [entry.partition("=") for line in text.splitlines() for entry in line.split(";") if entry.strip()]
    return [(name, value.strip()) for names, _, value in entries for name in names.split()]


UNITS = {
    name: Unit(dimension=dimension, factor=Fraction(factor))
    for dimension, _, entries in (line.partition(": ") for line in _TABLE.strip().splitlines())
    for name, factor in _entries(entries)
} | {
    name: Unit(dimension="temperature", factor=factor, zero=zero)
    for names, factor, zero in (
        (("°C", "celsius"), Fraction(1), Fraction(0)),
        (("K", "kelvin"), Fraction(1), Fraction(-27315, 100)),
        (("°F", "fahrenheit"), Fraction(5, 9), Fraction(-160, 9)),
    )
    for name in names
}
MAGNITUDES = {name: 10 ** int(exponent) for name, exponent in _entries(_MAGNITUDES)}


def unit_of(word: str) -> Unit | None:
    """The unit of a word or symbol: as it stands, or in small letters where it has more than one."""
    return UNITS.get(word) or (UNITS.get(word.lower()) if len(word) > 1 else None)


def magnitude_of(word: str, attached: bool, money: bool) -> int | None:
    """What a word behind a number multiplies it by: ``million``, ``k``; ``m`` only behind money (``£5m``)."""
    if attached and word in _ATTACHED:
        return 10 ** _ATTACHED[word]
    if attached and money and word == "m":
        return 10**6
    return MAGNITUDES.get(word.lower()) if len(word) > 1 or word != word.upper() or not word.isascii() else None
