import datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.numeric import numeric_score
from tunesmith.evaluate.metrics.quantities import last_quantity
from tunesmith.recipe import Task

EQUAL = [  # answer, reference
    ("1,000", "1000"),
    ("1e3", "1000"),
    ("-0.0", "0"),
    ("50%", "0.5"),
    ("1.000,50", "1000.50"),
    ("1 000", "1000"),
    ("1\u202f000", "1000"),
    ("1'000", "1000"),
    ("$1,000.50", "1000.5"),
    ("2024-01-02", "2024-01-02"),
    ("The answer is 5 (see page 12).", "5"),
    ("5 apples, 3 left: 5", "5"),
    ("42.", "42"),
    ("x=42", "42"),
    ("10-3=7", "7"),
    ("1/2", "0.5"),
    ("1e400", "1e400"),
    ("1E5", "100000"),
    ("٣", "3"),
    ("１２", "12"),
    ("½", "0.5"),
    ("0x10", "16"),
    ("10^3", "1000"),
    ("1.5e", "1.5"),
    ("5 million", "5000000"),
    ("five", "5"),
    ("Step 1: 4. Step 2: 9", "9"),
    ("#### 9", "9"),
    ("9 (not 8)", "9"),
    ("1,23", "1.23"),
    ("12 apples and 5 pears, so 17.", "17"),
    ("It costs $1,234.50", "1234.50"),
    ("x = -5", "-5"),
    ("−3,000", "-3000"),
    ("3/4", "0.75"),
    ("1.5e3", "1500"),
    ("= .5", "0.5"),
    ("12%", "12"),
    ("9007199254740993", "9007199254740993"),
    ("2 March 2024", "2024-03-02"),
    ("March 2, 2024", "2024-03-02"),
    ("March 2nd, 2024.", "2024-03-02"),
    ("02.03.2024", "2024-03-02"),
    ("25/12/2024", "2024-12-25"),
    ("12/25/2024", "2024-12-25"),
    ("3/4/2024", "3/4/2024"),
    ("12:30", "12:30"),
    ("3:30 pm", "15:30"),
    ("12 am", "0:00"),
    ("12:00 p.m.", "12:00"),
    ("15:30:00", "15:30"),
    ("3:4", "3:4"),
    ("6:8", "3:4"),
    ("2024-03-02T10:00Z", "2024-03-02 10:00"),
    ("May 5", "5 May"),
    ("you may 5", "5"),
    ("5 km", "5000 m"),
    ("5 km", "5"),
    ("5 ft 3 in", "63 inches"),
    ("5'3\"", "63 in"),
    ("1 h 30 min", "90 minutes"),
    ("2 hours and 30 minutes", "2.5 h"),
    ("I have 5 in total", "5"),
    ("20 °C", "68 °F"),
    ("293.15 K", "20 °C"),
    ("3 GB", "3000 MB"),
    ("36 km/h", "10 m/s"),
    ("2 m²", "2 m^2"),
    ("5 apples", "5 pears"),
    ("1 person", "1"),
    ("5 per day", "5"),
    ("$5", "5 dollars"),
    ("$5 million", "5000000"),
    ("£5m", "5000000"),
    ("5m", "5"),
    ("5M", "5000000"),
    ("5k", "5000"),
    ("5K", "5000"),
    ("5 thousand", "5000"),
    ("2.5bn", "2500000000"),
    ("5万", "50000"),
    ("答案是5个", "5"),
    ("共5万元", "50000"),
    ("3 lakh", "300000"),
    ("USD 5", "$5"),
    ("5 EUR", "€5"),
    ("50 cents", "$0.50"),
    ("5 dollars and 20 cents", "$5.20"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("0.005", "0.5%"),
    ("50", "50%"),
    ("100%", "1"),
    ("50 percent", "50 %"),
    ("5 ‰", "0.5%"),
    ("5‰", "0.005"),
    ("1.234.567", "1234567"),
    ("1.234,56", "1234.56"),
    ("1 234,5", "1234.5"),
    ("12 345 678", "12345678"),
    ("1,00,000", "100000"),
    ("1_000", "1000"),
    ("1.234", "1.234"),
    ("0,125", "0.125"),
    ("1 1/2", "1.5"),
    ("1½", "1.5"),
    ("1 ½", "1.5"),
    ("11/2", "5.5"),
    ("¾", "0.75"),
    ("-1/2", "-0.5"),
    ("2/4", "1/2"),
    ("2^10", "1024"),
    ("10⁵", "100000"),
    ("3 × 10^8", "300000000"),
    ("3x10^8", "3e8"),
    ("6.02·10²³", "6.02e23"),
    ("10^{-3}", "0.001"),
    ("2**3", "8"),
    ("0b101", "5"),
    ("\\boxed{9} since 8 is not", "9"),
    ("\\frac{3}{4}", "0.75"),
    ("$\\boxed{\\frac{1}{2}}$", "0.5"),
    ("1\\frac{1}{2}", "1.5"),
    ("12{,}000", "12000"),
    ("\\boxed{5\\text{ cm}}", "5 cm"),
    ("$5$", "5"),
    ("50\\%", "50%"),
    ("90^\\circ", "90"),
    ("3 \\times 10^{8}", "3e8"),
    ("9, not 8", "9"),
    ("9 rather than 8", "9"),
    ("not 8 but 9", "9"),
    ("17 = 12 + 5", "17"),
    ("12 + 5 = 17", "17"),
    ("x=5", "5"),
    ("3-5", "3–5"),
    ("3 - 5 days", "3-5"),
    ("**5** km", "5"),
    ("**5**", "5"),
    ("- 5", "5"),
    ("Answer: -5", "-5"),
    ("minus 5", "-5"),
    ("twenty-one", "21"),
    ("Minus two hundred and five thousand.", "-205000"),
    ("one hundred and one", "101"),
    ("1,2,3", "3"),
    ("(5)", "5"),
    ("9 apples (8 were rotten)", "9"),
    ("Question 3 is (5)", "5"),
    ("5th", "5"),
    ("5 * 3 = 15 cm", "15"),
    ("1 234 and 5", "5"),
    ("temperature fell from 5 to -3", "-3"),
    ("page 7\n12", "12"),
    ("7\n- 12", "12"),
    ("5°", "5"),
    ("5 B", "5 bytes"),
    ("Total: 1 000,50 €", "1000.5"),
    ("3.14159", "3.14159"),
    ("3,14159", "3.14159"),
]
DIFFERENT = [
    ("5 persons", "0.05"),
    ("5 per day", "0.05"),
    ("2024-03-02", "2024-01-02"),
    ("-42", "42"),
    ("H2O and 1", "5"),
    ("1/3", "0.333333"),
    ("∞", "5"),
    ("NaN", "5"),
    ("10^3", "3"),
    ("5 million", "5"),
    ("1.2.3", "3"),
    ("3 - 5", "5"),
    ("5–3", "-3"),
    ("5−3", "-3"),
    ("12:30", "30"),
    ("1,2345", "12345"),
    ("1e999", "1e998"),
    ("1/0", "5"),
    ("3/4/2024", "2024-03-04"),
    ("3/4/2024", "4/3/2024"),
    ("2024-13-45", "5"),
    ("on 2024-03-02", "2"),
    ("2", "2024-03-02"),
    ("3:4", "4"),
    ("2024-03-02T10:00", "2024-03-02"),
    ("May 5", "5"),
    ("5 km", "5 miles"),
    ("5 km", "5 hours"),
    ("5 mW", "5 MW"),
    ("2 m²", "4"),
    ("$5", "€5"),
    ("0.5%", "0.5"),
    ("0.5", "0.5%"),
    ("1%", "1"),
    ("1.234", "1234"),
    ("1,234", "1.234"),
    ("0,125", "125"),
    ("12 + 5", "5"),
    ("12+5", "17"),
    ("2x + 3", "3"),
    ("x + 5", "5"),
    ("COVID-19", "19"),
    ("F-16", "16"),
    ("3-5", "4"),
    ("3-5", "5"),
    ("3f2a9", "9"),
    ("3f2a9", "3"),
    ("10 minus 5", "5"),
    ("10 minus 5", "-5"),
    ("No one knows", "1"),
    ("555-1234", "1234"),
    ("24/7", "7"),
    ("1:2:3", "3"),
    ("192.168.0.1", "1"),
    ("5 x 3", "3"),
    ("1e99999", "1"),
    ("3 times 4", "4"),
]
NOT_A_NUMBER = [
    "",
    "∞",
    "NaN",
    "1/0",
    "v2 and H2O",
    "1.2.3",
    "3f2a9",
    "192.168.0.1",
    "12 + 5",
    "2x + 3",
    "x + 5",
    "COVID-19",
    "F-16",
    "2024-13-45",
    "5 - 3",
    "not 8",
    "No one knows",
    "1e99999",
    "0^-1",
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_what_is_the_same_quantity(answer, reference):
    assert numeric_score(answer, reference, 0.0) == {"score": 1.0, "has_number": 1.0}


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_what_is_another_quantity(answer, reference):
    assert numeric_score(answer, reference, 0.0)["score"] == 0.0


@pytest.mark.parametrize("text", NOT_A_NUMBER)
def test_what_is_no_quantity(text):
    assert numeric_score(text, "2", 0.0) == {"score": 0.0, "has_number": 0.0}
    with pytest.raises(ValueError, match="holds no number"):
        numeric_score("2", text, 0.0)


@given(st.integers(-(10**12), 10**12), st.integers(0, 99))
def test_thousands_and_decimals_of_several_countries_are_one_number(whole, hundredths):
    english = f"{whole:,}.{hundredths:02d}"
    wanted = last_quantity(f"{whole}.{hundredths:02d}")
    assert wanted.values == (Fraction(f"{whole}.{hundredths:02d}"),)
    for thousands, point in (",.", ".,", " ,", "\u202f,", "'.", "_."):
        spelling = english.translate({ord(","): thousands, ord("."): point.strip()})
        assert last_quantity(f"so {spelling} in all.") == wanted, spelling


@given(st.dates(min_value=datetime.date(1000, 1, 1)))
def test_a_date_is_one_day_in_every_spelling(date):
    month, day, year = date.strftime("%B"), date.day, date.year
    for spelling in (date.isoformat(), f"{day} {month} {year}", f"{month} {day}, {year}", f"{day:02d}.{date.month:02d}.{year}"):
        assert last_quantity(spelling).values == (date.toordinal(),), spelling


def test_the_tolerance_is_in_the_unit_of_the_reference():
    assert numeric_score("2.3", "2.0", 0.3)["score"] == 1.0 and numeric_score("2.31", "2.0", 0.3)["score"] == 0.0
    assert numeric_score("2/3", "0.6667", 0.001)["score"] == 1.0
    assert numeric_score("52%", "50%", 3)["score"] == numeric_score("0.52", "50%", 3)["score"] == 1.0
    assert numeric_score("54%", "50%", 3)["score"] == numeric_score("0.54", "50%", 3)["score"] == 0.0
    assert numeric_score("5.2 km", "5000 m", 100)["score"] == 0.0 and numeric_score("5.1 km", "5000 m", 100)["score"] == 1.0
    assert numeric_score("3 - 6", "3 - 5", 1)["score"] == 1.0 and numeric_score("2024-01-03", "2024-01-02", 1)["score"] == 0.0
    assert numeric_score("1e308", "1e307", 1.0)["score"] == 0.0
    assert not make_metric(Task(metric="numeric")).fits("no number")


@pytest.mark.parametrize("digits", [30, 5000])
def test_numbers_of_many_digits_stay_apart(digits):
    number = "9" * digits
    assert numeric_score(number, number, 0.0)["score"] == 1.0 and numeric_score(number[:-1] + "8", number, 0.0)["score"] == 0.0


@pytest.mark.parametrize("text", ["1,", "1 000 ", "1/", "1^", "$", "\\boxed{", "(1 a ", "1km ", "9", "4^9999 ", "May ", "not "])
def test_an_answer_that_repeats_itself_without_end_is_read(text):
    assert numeric_score(text * 3000, "77", 0.0)["score"] == 0.0
