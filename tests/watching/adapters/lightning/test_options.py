"""What the callback is given, and the package it belongs to."""

import subprocess
import sys
import textwrap

import pytest
from tests.watching.adapters.lightning.fits import Net, fit, quiet

from signalprop.errors import SignalpropError
from signalprop.watching.adapters.lightning import SignalpropCallback
from signalprop.watching.rules.judge import DEFAULT_RULES_OVER_TIME

pytestmark = quiet


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"every": 0}, "every=0"),
        ({"start": 3}, "start=: the trainer gives it"),
        ({"sites": True}, "sites=: watch has no such option"),
        ({"on": "halt"}, "on= has the action 'halt'"),
        ({"on": ["warn", {}]}, "on= has the action"),
    ],
)
def test_wrong_options_are_said_before_training(options, part):
    with pytest.raises(SignalpropError, match=part):
        SignalpropCallback(**options)


def test_rules_and_ignored_codes_are_passed_on(tmp_path):
    callback = SignalpropCallback(
        every=2, to=None, rules=DEFAULT_RULES_OVER_TIME, ignore=["SP411"], on={"SP405": "stop"}
    )
    fit(Net(nan_at=9), [callback])
    assert not any(alarm.code == "SP411" for alarm in callback.watch.alarms)


def test_the_package_that_is_in_use_is_taken():
    code = """
        import sys, pytorch_lightning
        from signalprop.watching.adapters.lightning import SignalpropCallback
        print(issubclass(SignalpropCallback, pytorch_lightning.Callback))
        print("lightning.pytorch" in sys.modules)
    """
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"]
