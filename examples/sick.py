"""Ten sigmoid layers on handwritten digits: nothing comes back from the loss to the first of them.

Try `signalprop diagnose examples/sick.py:build`, and `signalprop cure examples/sick.py:build`.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def build():
    """The network, its data, its loss and its optimizer."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32) / 16
    data = TensorDataset(x, torch.tensor(labels))
    layers = [m for _ in range(10) for m in (nn.Linear(64, 64), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    return model, loader, nn.functional.cross_entropy, optimizer
