"""Two processes of Lightning's Trainer: one file, of the global batch, and both end together."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tests.watching.adapters.lightning.fits import quiet

from signalprop.watching.file.reader import Run

pytestmark = [*quiet, pytest.mark.slow]


def launch(folder, code):
    """Run a script, which Lightning starts a second time."""
    script = folder / "train.py"
    script.write_text(textwrap.dedent(code))
    python_path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=180,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_processes(tmp_path):
    launch(
        tmp_path,
        """
        import torch
        torch.set_num_threads(1)
        from signalprop.watching.adapters.lightning import SignalpropCallback
        from tests.watching.adapters.lightning.fits import Net, fit

        if __name__ == "__main__":
            for watched in (False, True):
                callback = SignalpropCallback(every=4, to="run.sp", on="stop")
                torch.manual_seed(0)
                module = Net(nan_at=9)
                callbacks = [callback] if watched else []
                trainer = fit(module, callbacks, max_epochs=6, strategy="ddp", devices=2)
                name = f"{watched}{trainer.global_rank}.pt"
                torch.save((module.losses, trainer.global_step), name)
        """,
    )
    both = []
    for rank in (0, 1):
        losses, steps = torch.load(tmp_path / f"True{rank}.pt")
        plain, all_steps = torch.load(tmp_path / f"False{rank}.pt")
        assert all_steps == 24
        assert 10 <= steps <= 14  # both stopped, together
        np.testing.assert_array_equal(losses, plain[: len(losses)])
        both.append(losses)
    assert sorted(p.name for p in tmp_path.glob("*.sp")) == ["run.sp"]
    with Run(tmp_path / "run.sp") as run:
        assert run.meta["ranks"] == 2
        assert run.steps.tolist()[:3] == [0, 4, 8]
        steps, losses = run.scalars()["loss"]
        assert steps.tolist() == list(range(len(both[0])))
        np.testing.assert_allclose(losses, np.mean(both, 0), rtol=1e-6)  # the global batch's


def test_a_callback_on_one_rank_alone_changes_nothing(tmp_path):
    launch(
        tmp_path,
        """
        import os
        import torch
        torch.set_num_threads(1)
        from signalprop.watching.adapters.lightning import SignalpropCallback
        from signalprop.watching.ranks import control
        from tests.watching.adapters.lightning.fits import Net, fit

        if __name__ == "__main__":
            control.ATTACH = 2.0
            first = int(os.environ.get("LOCAL_RANK", 0)) == 0
            for watched in (False, True):
                callback = SignalpropCallback(every=4, to="run.sp", on="stop")
                torch.manual_seed(0)
                module = Net()
                callbacks = [callback] if watched and first else []
                trainer = fit(module, callbacks, max_epochs=3, strategy="ddp", devices=2)
                name = f"{watched}{trainer.global_rank}.pt"
                torch.save((module.losses, trainer.global_step), name)
        """,
    )
    for rank in (0, 1):
        plain, watched = (torch.load(tmp_path / f"{which}{rank}.pt") for which in (False, True))
        assert plain == watched
        assert plain[1] == 12
    with Run(tmp_path / "run.sp") as run:
        assert "ranks" not in run.meta
        assert run.steps.tolist() == [0, 4, 8]
