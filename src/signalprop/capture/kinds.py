"""What kind of operation a site or a node of the autograd graph is.

Two tables: one by the name of the torch function a site was seen at, one by the
name of the autograd node. Both map to the kinds that an explanation adds up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch

Kind = Literal[
    "input", "weights", "slope", "normalisation", "skip", "attention", "pooling", "other"
]

KINDS: tuple[Kind, ...] = (
    "weights",
    "slope",
    "normalisation",
    "skip",
    "attention",
    "pooling",
    "other",
)

KIND_LABELS: dict[str, str] = {
    "input": "input",
    "weights": "weights",
    "slope": "activation slope",
    "normalisation": "normalisation",
    "skip": "skip + branch",
    "attention": "attention",
    "pooling": "pooling",
    "other": "other",
}

_WEIGHTS = (
    "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "addmm addbmm baddbmm mm bmm matmul einsum embedding embedding_bag mv addmv tensordot inner"
)
_ACTIVATIONS = (
    "relu sigmoid tanh gelu silu elu selu celu leaky_relu prelu rrelu relu6 hardtanh hardsigmoid "
    "hardswish hardshrink softshrink tanhshrink softplus softsign softmax log_softmax logsigmoid "
    "mish threshold glu sin erf exp"
)
_NORMS = (
    "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize "
    "native_batch_norm native_layer_norm"
)
_POOLS = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d lp_pool2d mean amax logsumexp"
)
_ATTENTION = "scaled_dot_product_attention multi_head_attention_forward"
_RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
_OTHER = "add sub mul dropout alpha_dropout dropout1d dropout2d dropout3d cat interpolate index_add"

_LOSSES = (
    "cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss "
    "smooth_l1_loss huber_loss kl_div hinge_embedding_loss soft_margin_loss multi_margin_loss "
    "multilabel_margin_loss multilabel_soft_margin_loss poisson_nll_loss gaussian_nll_loss "
    "ctc_loss cosine_embedding_loss margin_ranking_loss triplet_margin_loss linear_cross_entropy"
)


def _all(names: str, kind: Kind) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


_OP_KINDS: dict[str, Kind] = {
    **_all(_WEIGHTS, "weights"),
    **_all(_ACTIVATIONS, "slope"),
    **_all(_NORMS, "normalisation"),
    **_all(_POOLS, "pooling"),
    **_all(_ATTENTION, "attention"),
    **_all(_RECURRENT, "other"),
    **_all(_OTHER, "other"),
}

LOSS_OPS = frozenset(_LOSSES.split())
ARITHMETIC = frozenset({"add", "sub", "mul"})
RECURRENT_OPS = frozenset(_RECURRENT.split())

#: activations that are exactly zero on one side: a unit can be dead
RECTIFIERS = frozenset({"relu", "relu6", "threshold"})
#: activations whose slope goes to zero towards both ends of a bounded range
SATURATING = frozenset({"sigmoid", "tanh", "hardtanh", "hardsigmoid", "softsign", "erf"})

_PYTHON_NAMES = {
    "__matmul__": "matmul",
    "__rmatmul__": "matmul",
    "_scaled_dot_product_attention": "scaled_dot_product_attention",
    "feature_alpha_dropout": "alpha_dropout",
    "feature_dropout": "dropout",
    "multiply": "mul",
    "subtract": "sub",
}


def _op_names() -> dict[str, str]:
    plain = {name: name for name in (*_OP_KINDS, *LOSS_OPS)}
    in_place = {f"{name}_": name for name in plain}
    dunder = {f"__{prefix}{name}__": name for name in ARITHMETIC for prefix in ("", "r", "i")}
    return plain | in_place | dunder | _PYTHON_NAMES


#: name of a torch function as called -> name of the operation; all others are not seen
OP_NAMES = _op_names()

_VIEWS = (
    "View UnsafeView ReshapeAlias Transpose Permute T Mt Unsqueeze Squeeze Clone Alias ToCopy "
    "Select Slice Split SplitWithSizes Unbind Narrow Movedim Swapaxes Contiguous Diagonal "
    "ViewAsReal ViewAsComplex BackwardHookFunction Unflatten"
).split()

_NODE_KINDS: dict[str, Kind] = {
    **_all(
        "Addmm Mm Bmm Baddbmm Addbmm Mv Addmv Linear MkldnnLinear Convolution CudnnConvolution "
        "MkldnnConvolution ConvolutionOverrideable Embedding EmbeddingBag Dot Bilinear "
        "Trilinear SparseAddmm Fft_c2c",
        "weights",
    ),
    **_all(
        "Relu Sigmoid Tanh Gelu Silu Elu LeakyRelu PreluKernel RreluWithNoise Hardtanh "
        "Hardsigmoid Hardswish Hardshrink Softshrink Softplus Softmax LogSoftmax LogSigmoid "
        "Mish Threshold Glu Clamp ClampMin Sin Cos Erf Exp Celu",
        "slope",
    ),
    **_all(
        "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeLayerNorm NativeGroupNorm "
        "FusedRmsNorm",
        "normalisation",
    ),
    **_all(
        "MaxPool2DWithIndices MaxPool3DWithIndices AvgPool2D AvgPool3D AdaptiveAvgPool2D "
        "AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D MkldnnMaxPool2D AdaptiveMaxPool2D Mean "
        "Max Amax Min Amin Sum Logsumexp",
        "pooling",
    ),
    **_all(
        "ScaledDotProductEfficientAttention ScaledDotProductFlashAttention "
        "ScaledDotProductFlashAttentionForCpu ScaledDotProductCudnnAttention "
        "ScaledDotProductFusedAttentionOverrideable",
        "attention",
    ),
}


def kind_of_op(op: str) -> Kind:
    """The kind of a torch function, `other` for those not in the table."""
    return _OP_KINDS.get(op, "other")


def node_stem(node_name: str) -> str:
    """`AddmmBackward0` -> `Addmm`; a custom `autograd.Function` keeps its own name."""
    return node_name.rstrip("0123456789").removesuffix("Backward")


def kind_of_node(node_name: str) -> Kind:
    """The kind of an autograd node by its name, `other` for those not in the table."""
    return _NODE_KINDS.get(node_stem(node_name), "other")


_VIEW_STEMS = frozenset(_VIEWS)


@lru_cache(1024)
def moves_values_only(node_name: str) -> bool:
    """Whether a node only rearranges values, so that delta's L2 norm passes it unchanged."""
    return node_stem(node_name) in _VIEW_STEMS


def class_of(module: torch.nn.Module) -> type[torch.nn.Module]:
    """Its class, without the one that `fully_shard` puts in front of it."""
    of = type(module)
    return of.__mro__[2] if of.__module__.startswith("torch.distributed.fsdp") else of


def kind_of_module(module: torch.nn.Module) -> Kind | None:
    """The kind of a leaf module, where its class tells; None where it does not."""
    name = class_of(module).__name__.lower()
    if "norm" in name:
        return "normalisation"
    if "attention" in name:
        return "attention"
    if "pool" in name:
        return "pooling"
    if "dropout" in name or "droppath" in name:
        return "other"
    if isinstance(module, (torch.nn.RNNBase, torch.nn.RNNCellBase)):
        return "other"
    if class_of(module).__module__.startswith("torch.nn.modules.activation"):
        return "slope"
    if any(word in name for word in ("gelu", "relu", "silu", "swish", "activation", "sigmoid")):
        return "slope"
    if any(word in name for word in ("linear", "conv", "embedding")):
        return "weights"
    return None
