"""The fused LSTM without an accelerator: through Triton's interpreter, and through its compiler."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from signalprop.recurrent.fused import lstm
from signalprop.recurrent.fused.deal import UNITS, deal

HERE = Path(__file__).parent
#: an H200: multiprocessors, bytes of shared memory of a program
LARGE = {"processors": 132, "room": 232448}
#: the two sizes that are measured: batch, hidden
MEASURED = [(64, 256), (16, 768)]


def needs_triton(version):
    """Skip, with the reason, where Triton is not at hand."""
    if sys.platform != "linux" or importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from triton import __version__

    if tuple(int(n) for n in __version__.split(".")[:2]) < version:
        pytest.skip(f"Triton {__version__} is older than {'.'.join(map(str, version))}")


def test_interpreted():
    # older interpreters do not go with numpy 2.4
    needs_triton((3, 7))
    # Triton decides when it is imported
    env = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", str(HERE / "test_fused_interpreted.py")]
    done = subprocess.run(
        command, env=env, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("size", "which", "architecture"),
    [((64, 256), "forward", 80), ((16, 768), "backward", 90)],
    ids=["forward on an A100", "back on an H100"],
)
def test_compiles_and_fits(size, which, architecture, tmp_path, monkeypatch):
    needs_triton((3, 3))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    room = {80: 166912, 90: LARGE["room"]}[architecture]
    how = deal(*size, 2, back=which == "backward", processors=108, room=room, twice=False)
    made = compiled(which, size[1], how, architecture)
    assert made.metadata.shared <= room
    text = made.asm["ptx"]
    assert "mma" in text
    # the meeting: stores are released and acquired, and the state is read past the first cache
    assert "red.global.gpu.release.add" in text or "atom.global.gpu.release.add" in text
    assert "acquire" in text
    assert "ld.global.cg" in text
    assert how.keep


def compiled(which, hidden, how, architecture):
    """A kernel for a device that is not there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from signalprop.recurrent.fused import kernels

    kernel = getattr(kernels, which)
    constants = how.options() | {"H": hidden, "MASKED": True, "PRECISION": "ieee"}
    kinds = dict.fromkeys(("rows", "begin", "end"), "i32") | dict.fromkeys(constants, "constexpr")
    kinds |= {"carried": "*fp32", "kept": "*fp32", "mask": "*u8", "counters": "*i32"}
    names = kernel.arg_names
    signature = {name: kinds.get(name, "*bf16") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"
    }
    places = {(names.index(name),): value for name, value in constants.items()}
    options = {
        "num_warps": how.warps, "num_stages": 1, "enable_fp_fusion": True,
        "launch_cooperative_grid": True,
    }  # fmt: skip
    source = ASTSource(kernel, signature, places, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("size", [2, 4], ids=["16 bits", "32 bits"])
@pytest.mark.parametrize(
    ("batch", "hidden"), [*MEASURED, (1, 1), (3, 5), (512, 256), (100, 1000), (7, 3000)]
)
def test_everything_is_dealt_out(batch, hidden, size, back):
    how = deal(batch, hidden, size, back=back, twice=False, **LARGE)
    slices, blocks = how.grid
    assert slices * UNITS >= hidden > (slices - 1) * UNITS
    assert blocks * how.rows >= batch > (blocks - 1) * how.rows
    length = 4 * hidden if back else hidden
    assert how.chunks * how.parts * how.depth >= length
    assert 1 <= how.group <= how.chunks
    assert how.parts in (1, how.warps)
    assert how.together == (slices * blocks <= LARGE["processors"])


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("size", MEASURED, ids=str)
def test_measured_sizes_run_in_one_launch_and_keep_their_weights(size, back):
    how = deal(*size, 2, back=back, twice=False, **LARGE)
    assert how.together
    assert how.keep


def test_what_cannot_run_at_once_runs_step_by_step():
    how = deal(4096, 1024, 2, back=False, twice=False, **LARGE)
    assert not how.together
    assert how.grid[0] * how.grid[1] > LARGE["processors"]


def test_what_does_not_fit_is_not_kept():
    assert not deal(16, 4096, 4, back=False, twice=True, **LARGE).keep


def weights(hidden):
    return torch.randn(2, 2, 3), torch.randn(4 * hidden, 3), torch.randn(4 * hidden, hidden)


def test_falls_back_without_triton(monkeypatch):
    monkeypatch.setattr(lstm.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    lstm._triton.cache_clear()
    try:
        assert not lstm.available(*weights(4))
    finally:
        lstm._triton.cache_clear()


def test_not_on_a_cpu():
    assert not lstm.available(*weights(4))
