"""What a run depends on: versions, devices, threads, and which fast parts are there."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from signalprop.memory import memory_setting

PACKAGES = ("torch", "numpy", "pandas", "plotly", "rich", "loky", "cloudpickle", "cyclopts")
OPTIONAL = ("ray", "rdkit", "scikit-learn", "scipy", "transformers", "triton")


@dataclass(frozen=True)
class Config:
    """Versions and settings, by name; printed as a table.

    Attributes:
        versions: of signalprop, Python and packages; "missing" of optional ones that are not there.
        settings: devices, threads, memory, compiled parts.
    """

    versions: dict[str, str]
    settings: dict[str, str]

    def to_dict(self) -> dict[str, str]:
        """Everything in one dictionary."""
        return self.versions | self.settings

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return str(self)

    def _lines(self) -> Iterator[str]:
        width = max(map(len, self.to_dict()))
        for name, value in self.to_dict().items():
            yield f"{name:<{width}}  {value}"


def show_config() -> Config:
    """What a run depends on: to be put into a report of a bug.

    Nothing is built and no device is started.

    Returns:
        Versions and settings; `print` shows them as a table, and so does a notebook.

    Examples:
        >>> import signalprop as sp
        >>> sp.show_config().settings["compiled recurrent loops"] != ""
        True
    """
    import torch

    from signalprop.compiled import sums
    from signalprop.recurrent.compiled import loops

    versions = {
        "signalprop": metadata.version("signalprop"),
        "python": f"{platform.python_version()} ({platform.platform()})",
        **{name: _version(name) for name in (*PACKAGES, *OPTIONAL)},
    }
    within, between = torch.get_num_threads(), torch.get_num_interop_threads()
    settings = {
        "devices": ", ".join(_devices()),
        "threads": f"{within} ({between} between operations)",
        "CPU kernels": torch.backends.cpu.get_cpu_capability(),
        "oneDNN": "available" if torch.backends.mkldnn.is_available() else "missing",
        "freed memory": memory_setting(),
        "compiled recurrent loops": loops.LIBRARY.status(),
        "compiled sums": sums.LIBRARY.status(),
        "Triton": "available" if find_spec("triton") else "missing",
    }
    return Config(versions, settings)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _devices() -> Iterator[str]:
    import torch

    yield "cpu"
    for k in range(torch.cuda.device_count()):
        yield f"cuda:{k} ({torch.cuda.get_device_name(k)})"
    if torch.backends.mps.is_available():
        yield "mps"
