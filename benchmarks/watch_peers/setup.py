"""An environment with the tools that `bench_watch --peers` measures beside signalprop.

    python -m benchmarks.watch_peers.setup DIR
    DIR/bin/python -m benchmarks.bench_watch --peers

Everything is installed into DIR and nothing into this project's environment. torch and what
signalprop needs have the versions of constraints.txt; a tool that cannot be installed beside them
is told and left out, and the table then says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: what is needed to run the benchmark and to build the networks of tests/cases
OWN = ("-e", str(ROOT), "transformers", "pytest")
#: one after the other, so that one that fails leaves the others
PEERS = (
    "wandb",
    "lightning",
    "torchlens",
    "torchmortem",
    "neural-observatory",
    "torch-audit",
)


def install(python: Path, *what: str) -> bool:
    """Install by pip, under this project's constraints."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return not subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *what]).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the environment is made")
    folder = parser.parse_args().folder.resolve()
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not install(python, *OWN):
        sys.exit(f"signalprop could not be installed into {folder}")
    missing = [name for name in PEERS if not install(python, name)]
    if missing:
        print("could not be installed:", ", ".join(missing))
    print(f"{python} -m benchmarks.bench_watch --peers --alarms")


if __name__ == "__main__":
    main()
