import dataclasses
import io
import itertools
import json
import math
import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.report import spectra_samples as samples

from signalprop.jacobian.spectra import Spectra
from signalprop.report import terminal, text
from signalprop.report.spectra import said
from signalprop.report.spectra.rows import rows

MADE = {
    "mlp": samples.deep_mlp(),
    "deep": samples.deep_mlp(100, 12),
    "residual": samples.residual(),
    "strong": samples.residual(60, strength=1.5),
    "conv": samples.conv(),
    "broken": samples.broken(),
    "isometry": samples.isometry(),
}


def flat(shown: Spectra, width: int = 80) -> str:
    return " ".join(text(shown, width=width).split())


def swept_only(shown: Spectra) -> Spectra:
    return dataclasses.replace(shown, deep=None)


@pytest.mark.parametrize("width", [40, 60, 80, 140])
@pytest.mark.parametrize("name", MADE)
def test_every_line_fits(name, width):
    lines = text(MADE[name], width=width).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert len(lines) < 80


class TestHeadline:
    def test_range_by_sweeps_where_rounding_hides_the_rest(self):
        made = MADE["mlp"]
        low = float(np.median(made.deep.log_values[:, -1]))
        high = float(np.log(np.median(made.between.largest)))
        decades = (high - low) / math.log(10)
        sentence = said.headline(made)
        assert f"run from {said.power(low)} to" in sentence
        assert f"over {decades:.1f} decades" in sentence
        assert "far from an isometry" in sentence

    def test_lost_in_rounding_without_sweeps(self):
        made = swept_only(MADE["mlp"])
        resolution = float(np.median(made.between.resolution))
        sentence = said.headline(made)
        assert f"run from below {said.power(math.log(resolution))} to" in sentence
        assert "over more than" in sentence
        shown = text(made, width=80)
        assert "lost in rounding" in shown
        assert re.search(r"condition +> ", shown)

    def test_a_few_of_many(self):
        sentence = said.headline(MADE["conv"])
        assert "The 4 largest of the 10 singular values of J from input to 7" in sentence
        assert "decades" not in sentence

    def test_isometries(self):
        made = MADE["isometry"]
        assert "All 12 singular values of J from input to output are 1." in said.headline(made)
        assert "J is close to an isometry" in said.headline(made)
        assert said.isometric(made.between)
        s = made.between
        third = dataclasses.replace(
            s,
            values=s.values / 3,
            frobenius=dataclasses.replace(s.frobenius, value=s.frobenius.value / 3),
            fourth=dataclasses.replace(s.fourth, value=s.fourth.value / 81),
        )
        assert "close to 0.333 times an isometry" in said.isometry(third)
        assert not said.isometric(third)

    def test_exactly_zero(self):
        made = MADE["broken"]
        s = made.between
        values = s.values.copy()
        values[:, -1] = 0
        between = dataclasses.replace(s, values=values, resolution=np.zeros(len(values)))
        made = dataclasses.replace(made, between=between, deep=None)
        assert "run from exactly zero to" in said.headline(made)

    def test_nothing_passes(self):
        s = MADE["conv"].between
        made = dataclasses.replace(
            MADE["conv"], between=dataclasses.replace(s, values=np.zeros_like(s.values))
        )
        assert said.headline(made) == "Every singular value of J from input to 7 is zero."


@pytest.mark.parametrize(
    ("ln", "shown"),
    [
        (0.0, "1"),
        (-math.inf, "zero"),
        (math.log(2.5e-9), "2.5e-9"),
        (-1460.4, "5.8e-635"),
        (2000 * math.log(10), "1.0e2000"),
    ],
)
def test_powers_that_no_float_holds(ln, shown):
    mantissa, _, exponent = said.power(ln).partition("e")
    wanted, _, power = shown.partition("e")
    assert exponent == power
    assert mantissa == wanted or float(mantissa) == pytest.approx(float(wanted), abs=0.2)


def test_facts_agree_with_the_headline():
    made = MADE["mlp"]
    found = {fact.name: fact for fact in said.facts(made)}
    assert found["smallest"].value in said.headline(made)
    assert found["largest"].value in said.headline(made)
    assert float(found["log-volume"].value) == pytest.approx(
        np.median(made.deep.log_values.sum(axis=1)), abs=0.1
    )
    assert "4.6e35" in found["condition"].value or "e35" in found["condition"].value


def test_an_estimate_says_its_error():
    found = {fact.name: fact for fact in said.facts(MADE["conv"])}
    error = float(np.median(MADE["conv"].between.errors[:, 0]))
    assert f"error {said.words.number(error)}" in found["largest"].spread
    assert "error" not in found["distortion"].spread


class TestRows:
    def test_linear_layers_and_slopes_fold_apart(self):
        made = MADE["mlp"]
        found = rows(made.blocks)
        assert [row.label for row in found] == ["0", "1", "2 to 56", "3 to 57", "58", "59"]
        assert sum(len(row.blocks) for row in found) == len(made.blocks)
        linear, slope = found[2], found[3]
        assert (linear.every, slope.every) == (2, 2)
        assert min(linear.largest) > 1.5 > 1.01 > max(slope.largest)
        shown = flat(made)
        assert (
            f"x28 blocks like this, every second, largest {said.words.number(min(linear.largest))}"
            in shown
        )

    def test_a_trend_stays_seen(self):
        made = MADE["residual"]
        blocks = [
            dataclasses.replace(
                block,
                end=f"h.{i}.add",
                spectrum=dataclasses.replace(
                    block.spectrum, values=block.spectrum.values * 10 ** (i / 20)
                ),
            )
            for i, block in enumerate(itertools.islice(itertools.cycle(made.blocks), 60))
        ]
        found = rows(blocks)
        assert len(found) == 7
        middles = [np.median(row.largest) for row in found]
        assert middles == sorted(middles)

    def test_different_blocks_stay_in_few_rows(self):
        blocks = [
            dataclasses.replace(block, end=f"part{'x' * (i % 7)}.{'y' * (i % 11)}{i}")
            for i, block in enumerate(MADE["deep"].blocks)
        ]
        found = rows(blocks)
        assert len(found) <= 33
        assert sum(len(row.blocks) for row in found) == len(blocks)
        made = dataclasses.replace(MADE["deep"], blocks=tuple(blocks))
        assert "not all alike" in flat(made)

    def test_values_lost_in_rounding_are_zero(self):
        (block, *_) = MADE["mlp"].blocks
        s = block.spectrum
        noisy = dataclasses.replace(s, values=s.values.copy(), resolution=s.values[:, 0] * 0.5)
        (row,) = rows([dataclasses.replace(block, spectrum=noisy)])
        assert row.quantiles[0] == 0
        assert row.quantiles[-1] > 0


def test_bars_have_a_place_for_one():
    lines = text(MADE["residual"], width=100).splitlines()
    head = next(line for line in lines if line.startswith("block "))
    one = re.search(r"\s1\s", head).start() + 1
    first = next(line for line in lines if line.startswith("h.0.add"))
    # the values of I + X with a small X lie around 1
    assert first[one] in "│●━─"
    assert "●" in first[one - 3 : one + 4]


def test_certificate_against_what_was_measured():
    made = MADE["residual"]
    low, high = (
        said.power(float(np.median(x)))
        for x in (made.certificate.log_low, made.certificate.log_high)
    )
    sentence = said.certificate_sentence(made)
    assert f"every singular value lies between {low} and {high}." in sentence
    assert "Measured: 0.3" in sentence
    assert sentence in flat(made)
    strong = said.certificate_sentence(MADE["strong"])
    assert "nothing is promised from below" in strong
    assert "zero and" not in strong
    few = dataclasses.replace(made, certificate=dataclasses.replace(made.certificate, blocks=9))
    said_of_few = said.certificate_sentence(few)
    assert "3 other blocks between the ends count with their own smallest" in said_of_few
    assert said.certificate_sentence(MADE["mlp"]) == ""


def test_what_is_skipped_zero_or_noted_is_said():
    shown = flat(MADE["broken"])
    assert "Not measured: 7, 8: argmax is not differentiable." in shown
    assert "3 exactly zero" in shown
    assert "zero, or lost in rounding" in shown
    assert "Note: [bold]" in shown
    assert "\x1b" not in text(MADE["broken"], width=80)
    assert "Of the 4 largest only" in flat(MADE["conv"])


@pytest.mark.parametrize("name", MADE)
def test_numbers_that_are_none_are_words(name):
    for shown in (text(MADE[name], width=80), said.headline(MADE[name])):
        assert not re.search(r"\b(nan|inf|None)\b", shown)


def test_ascii_where_nothing_else_is_known():
    for made in MADE.values():
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="ascii", errors="strict")  # raises at anything else
        clean = dataclasses.replace(made, model="Net", notes=())
        if made is MADE["broken"]:
            clean = dataclasses.replace(clean, blocks=made.blocks[1:])
        Console(file=out, width=80).print(terminal(clean))
        out.flush()
        assert raw.getvalue().isascii()
        assert not made.blocks or b"o" in raw.getvalue()


def test_repr_and_json():
    made = MADE["broken"]
    assert repr(made) == text(made)
    plain = json.dumps(made.to_dict(), allow_nan=False)
    assert '"-inf"' in plain
