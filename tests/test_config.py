"""What a run depends on."""

import torch

import signalprop as sp
from signalprop.config import show_config


def test_versions_and_settings(monkeypatch):
    monkeypatch.setenv("SIGNALPROP_COMPILED", "0")
    found = show_config()
    assert found.versions["signalprop"] == sp.__version__
    assert found.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    for part in ("compiled recurrent loops", "compiled sums"):
        assert found.settings[part] == "off (SIGNALPROP_COMPILED=0)"
    assert found.settings["devices"].startswith("cpu")
    assert str(torch.get_num_threads()) in found.settings["threads"]


def test_it_is_a_table():
    found = show_config()
    told, lines = found.to_dict(), str(found).splitlines()
    assert len(lines) == len(told)
    starts = {line.index(value) for line, value in zip(lines, told.values(), strict=True)}
    assert len(starts) == 1
    assert repr(found) == str(found)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("signalprop.config.OPTIONAL", ("no such package",))
    assert show_config().versions["no such package"] == "missing"


def test_nothing_is_built(monkeypatch, tmp_path):
    monkeypatch.delenv("SIGNALPROP_COMPILED", raising=False)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/such/compiler")
    told = show_config().settings["compiled recurrent loops"]
    assert told == "not built: no compiler (/no/such/compiler) on the PATH"
    assert not list(tmp_path.iterdir())
