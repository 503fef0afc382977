"""The cured architectures as ordinary modules, which need torch and nothing else of this package.

| cure               | modules                                                   |
|--------------------|-----------------------------------------------------------|
| highway            | `Highway`, `HighwayConv1d`, `HighwayConv2d`, `HighwayNet` |
| residual A and B   | `Residual`, `ResidualNet`, `ResidualConv2d`, `ResNet`     |
| self-normalizing   | `SelfNormalizing`, `SelfNormalizingConv2d`                |
| activation shaping | `TailoredReLU`, `ShapedActivation`                        |
| initialisation     | `he_`, `glorot_`, `lecun_`, `orthogonal_`, `delta_orthogonal_`, `lsuv_` |
| pre-training       | `pretrain`, `RBM`, `DenoisingAutoencoder`                 |
| recurrent          | `LSTM`, `MinGRU`, `MinLSTM`, `identity_rnn_`, `orthogonal_recurrent_` |

The residual ones have SkipInit, ReZero, Fixup and fixed multipliers as an option. Each module
states its equation and paper, and starts as its paper says.
"""

from signalprop.nets.autoencoder import DenoisingAutoencoder as DenoisingAutoencoder
from signalprop.nets.highway import Highway as Highway
from signalprop.nets.highway import HighwayConv1d as HighwayConv1d
from signalprop.nets.highway import HighwayConv2d as HighwayConv2d
from signalprop.nets.highway import HighwayNet as HighwayNet
from signalprop.nets.highway import gate_bias_for as gate_bias_for
from signalprop.nets.initialise import delta_orthogonal_ as delta_orthogonal_
from signalprop.nets.initialise import glorot_ as glorot_
from signalprop.nets.initialise import he_ as he_
from signalprop.nets.initialise import lecun_ as lecun_
from signalprop.nets.initialise import orthogonal_ as orthogonal_
from signalprop.nets.lsuv import LayerVariance as LayerVariance
from signalprop.nets.lsuv import UnitVariance as UnitVariance
from signalprop.nets.lsuv import lsuv_ as lsuv_
from signalprop.nets.pretraining import Pretrained as Pretrained
from signalprop.nets.pretraining import pretrain as pretrain
from signalprop.nets.rbm import RBM as RBM
from signalprop.nets.rbm import Divergence as Divergence
from signalprop.nets.recurrent.lstm import LSTM as LSTM
from signalprop.nets.recurrent.minimal import MinGRU as MinGRU
from signalprop.nets.recurrent.minimal import MinLSTM as MinLSTM
from signalprop.nets.recurrent.starts import identity_rnn_ as identity_rnn_
from signalprop.nets.recurrent.starts import orthogonal_recurrent_ as orthogonal_recurrent_
from signalprop.nets.residual import Residual as Residual
from signalprop.nets.residual import ResidualNet as ResidualNet
from signalprop.nets.resnet import ResidualConv2d as ResidualConv2d
from signalprop.nets.resnet import ResNet as ResNet
from signalprop.nets.self_normalizing import SelfNormalizing as SelfNormalizing
from signalprop.nets.self_normalizing import SelfNormalizingConv2d as SelfNormalizingConv2d
from signalprop.nets.shaping import ShapedActivation as ShapedActivation
from signalprop.nets.shaping import TailoredReLU as TailoredReLU
from signalprop.nets.shaping import leaky_cosine as leaky_cosine
from signalprop.nets.shaping import tailored_slope as tailored_slope
