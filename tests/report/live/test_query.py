"""What a page may ask: understood within bounds, refused in one sentence beyond them."""

import pytest

from signalprop.errors import SignalpropError
from signalprop.report.live.query import Query, parse


def test_nothing_asks_for_all():
    assert parse({}, 3) == Query(runs=(0, 1, 2))


def test_everything():
    given = {
        "runs": "1,0,1", "statistic": "dead", "start": "-5", "stop": "900", "columns": "40",
        "of": "high", "scale": "change", "across": "2", "label": "14", "sites": "7,3",
        "number": "4",
    }  # fmt: skip
    assert parse(given, 2) == Query((1, 0), "dead", -5, 900, 40, "high", "change", 2, 14, (7, 3), 4)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("runs", "2"), ("runs", "-1"), ("runs", "0,"), ("runs", "x"), ("runs", "0," * 300),
        ("start", "1e9"), ("start", "9" * 16), ("start", "1.5"), ("start", "٣"), ("start", ""),
        ("columns", "7"), ("columns", "2001"), ("columns", "1" * 40), ("columns", "²"),
        ("of", "median"), ("scale", ""), ("across", "0"), ("across", "5"), ("label", "1000"),
        ("sites", ",".join(map(str, range(17)))), ("sites", "99999999"), ("number", "-1"),
        ("path", "/etc/passwd"), ("statistic", "x" * 201),
    ],
)  # fmt: skip
def test_refused(name, text):
    with pytest.raises(SignalpropError) as error:
        parse({name: text}, 2)
    assert "\n" not in str(error.value)
    assert text not in str(error.value) or len(text) < 3


def test_stop_behind_start():
    with pytest.raises(SignalpropError, match="behind"):
        parse({"start": "10", "stop": "10"}, 1)
