"""Data and models that do not go together, as the user's own code makes them."""

import pytest


class TestData:
    def test_wrong_shapes(self, refused, write):
        write("""
            import torch, torch.nn as nn, torch.nn.functional as F
            def build():
                net = nn.Sequential(nn.Linear(4, 8), nn.Linear(9, 2))
                return net, (torch.randn(3, 4), torch.tensor([0, 1, 1])), F.cross_entropy
        """)
        said = refused("train.py:build")
        assert "module '1'" in said
        assert "mat1 and mat2 shapes" in said

    def test_nan(self, refused, write):
        write("""
            import torch, torch.nn as nn, torch.nn.functional as F
            def build():
                x = torch.randn(4, 3)
                x[1] = float("nan")
                return nn.Linear(3, 2), (x, torch.tensor([0, 1, 1, 0])), F.cross_entropy
        """)
        assert "holds 3 NaN among 12 values (tensor 1, shape (4, 3))" in refused("train.py:build")

    def test_output_is_no_tensor(self, refused, write):
        write("""
            import torch, torch.nn as nn, torch.nn.functional as F
            class Net(nn.Linear):
                def forward(self, x):
                    return {"scores": super().forward(x)}
            def build():
                return Net(3, 2), (torch.randn(2, 3), torch.tensor([0, 1])), F.cross_entropy
        """)
        assert "the loss raised" in refused("train.py:build")

    def test_dataset_raises(self, refused, write):
        write("""
            import torch, torch.nn as nn, torch.nn.functional as F
            from torch.utils.data import DataLoader
            class Images(torch.utils.data.Dataset):
                def __len__(self):
                    return 4
                def __getitem__(self, i):
                    raise FileNotFoundError("no cat.png")
            def build():
                return nn.Linear(3, 2), DataLoader(Images()), F.cross_entropy
        """)
        said = refused("train.py:build")
        assert "the data loader of build() in train.py raised FileNotFoundError: no cat.png" in said
        assert "train.py:7, in __getitem__" in said

    def test_empty_loader(self, refused, write):
        write("""
            import torch, torch.nn as nn, torch.nn.functional as F
            def build():
                return nn.Linear(3, 2), iter(()), F.cross_entropy
        """)
        assert "empty" in refused("train.py:build")

    @pytest.mark.parametrize(
        "error",
        [
            "MemoryError",
            "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')",
            'RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9")',
        ],
    )
    def test_out_of_memory(self, refused, write, error):
        write(f"""
            import torch, torch.nn as nn, torch.nn.functional as F
            class Net(nn.Linear):
                def forward(self, x):
                    raise {error}
            def build():
                return Net(3, 2), (torch.randn(2, 3), torch.tensor([0, 1])), F.cross_entropy
        """)
        said = refused("train.py:build")
        assert said.startswith("out of memory")
        assert "smaller batch" in said

    def test_error_while_the_model_moves(self, refused, write):
        write("""
            import torch, torch.nn as nn, torch.nn.functional as F
            class Net(nn.Linear):
                def to(self, *args):
                    raise ValueError("cannot move")
            def build():
                return Net(3, 2), (torch.randn(2, 3), torch.tensor([0, 1])), F.cross_entropy
        """)
        said = refused("train.py:build", "--device", "cpu")
        assert said.startswith("your code raised ValueError: cannot move (train.py:4, in to")
