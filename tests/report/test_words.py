import math

import pytest

from signalprop.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "zero"),
        (1.0, "1"),
        (0.0312345, "0.0312"),
        (123456.0, "1.2e5"),
        (9999.4, "9999"),
        (3.21e-14, "3.2e-14"),
        (-3.21e-14, "-3.2e-14"),
        (math.nan, "no number"),
        (math.inf, "infinite"),
        (-math.inf, "-infinite"),
        (None, "none"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-38.21, "-38.2"),
        (-0.001, "0.00"),
        (9.999, "10.0"),
        (-9.99, "-9.99"),
        (math.nan, "no number"),
        (-math.inf, "to zero"),
    ],
)
def test_nats(value, text):
    assert words.nats(value) == text


def test_nats_with_sign():
    assert words.nats(1.5, sign=True) == "+1.50"
    assert words.nats(-11.13, sign=True) == "-11.1"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.0312, "3.1%"), (2e-7, "<0.1%"), (-2e-7, "-<0.1%"), (None, "")],
)
def test_share(value, text):
    assert words.share(value) == text


def test_quantity_says_the_unit_once():
    assert words.quantity(-38.2, "nats") == "-38.2 nats"
    assert words.quantity(0.97, "share of units") == "97% of units"
    assert words.quantity(0.25, "share") == "25%"
    assert words.quantity(-math.inf, "nats") == "to exactly zero"
    assert words.quantity(math.nan, "nats") == "not a number"


def test_shorten_cuts_in_the_middle():
    name = "model.encoder.layers.11.mlp.down_proj"
    short = words.shorten(name, 16)
    assert len(short) == 16
    assert short.startswith("model")
    assert short.endswith("wn_proj")
    assert words.shorten(name, 60) == name


def test_clean_takes_out_what_rewrites_a_terminal():
    assert "\x1b" not in words.clean("a\x1b[2Jb")
    assert words.clean("größe → ok") == "größe → ok"


def test_listed():
    assert words.listed(["a", "b", "c", "d", "e"]) == "a, b, c +2 more"
    assert words.listed(["a"]) == "a"


def test_split_sentence():
    labels = {"slope": "activation slope", "weights": "weights"}
    said = words.split_sentence(-38.2, {"weights": -11.1, "slope": -27.1}, "1", "30", labels)
    assert said == "lost 38.2 nats from 30 back to 1: activation slope -27.1, weights -11.1"
    assert words.split_sentence(2.0, {"weights": 2.0}, "a", "b", labels).startswith("gained 2.00")
    gone = words.split_sentence(-math.inf, {"slope": -math.inf, "weights": -1}, "a", "b", labels)
    assert "all of the error signal lost" in gone
    assert "activation slope to zero" in gone
    assert "not a number" in words.split_sentence(math.nan, {}, "a", "b", labels)
