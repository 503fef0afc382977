"""The example of the documentation goes wrong twice, and is told twice."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from signalprop.watching.file.reader import Run

EXAMPLE = Path(__file__).parents[2] / "examples" / "watched.py"


@pytest.mark.slow
def test_the_example(tmp_path):
    pytest.importorskip("sklearn")
    spec = spec_from_file_location("watched", EXAMPLE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    dead, *_, spike = module.train(str(tmp_path / "run.sp"))
    assert (dead.code, dead.sites, dead.since) == ("SP403", ("blocks.3.relu",), 500)
    assert (spike.code, spike.sites, spike.since) == ("SP405", ("embed",), 1100)
    with Run(tmp_path / "run.sp") as run:
        codes = [alert.code for alert in run.alerts]
        assert (codes[0], codes[-1]) == ("SP403", "SP405")
        assert set(codes) <= {"SP403", "SP404", "SP405"}
        assert len(run.windows) == 1
