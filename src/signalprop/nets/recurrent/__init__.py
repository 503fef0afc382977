"""Recurrent layers that keep the error signal over time, and starts for those of torch.

| name                    | state                                      | paper           |
|-------------------------|--------------------------------------------|-----------------|
| `LSTM(cell="1997")`     | c_t = c_{t-1} + i g                        | Hochreiter 1997 |
| `LSTM`                  | c_t = f c_{t-1} + i g                      | Gers 2000       |
| `LSTM(peepholes=True)`  | the same; the gates see c                  | Gers 2002       |
| `MinGRU`, `MinLSTM`     | h_t = a(x_t) h_{t-1} + (1 - a(x_t)) g(x_t) | Feng 2024       |
| `identity_rnn_`         | `nn.RNN` with ReLU and W_hh = 1            | Le 2015         |
| `orthogonal_recurrent_` | W_hh of every gate orthogonal              | Saxe 2014       |
"""

from signalprop.nets.recurrent.lstm import LSTM as LSTM
from signalprop.nets.recurrent.minimal import MinGRU as MinGRU
from signalprop.nets.recurrent.minimal import MinLSTM as MinLSTM
from signalprop.nets.recurrent.starts import identity_rnn_ as identity_rnn_
from signalprop.nets.recurrent.starts import orthogonal_recurrent_ as orthogonal_recurrent_
