"""All cures by name, in the order in which they are applied together.

First what is wrong with the program, then the modules, then their weights, then the rate, which is
measured on what all others have left.
"""

from __future__ import annotations

from signalprop.cures.activations.add import add_activations
from signalprop.cures.activations.swap import (
    leaky_activation,
    self_normalize,
    shaped_activation,
    swap_activation,
)
from signalprop.cures.cure import Cure
from signalprop.cures.program.gradient import freeze, guard_operation, reconnect
from signalprop.cures.program.head import (
    add_sigmoid,
    remove_output_activation,
    remove_sigmoid,
    remove_softmax,
    use_log_softmax,
)
from signalprop.cures.program.inputs import clean_data, normalise_inputs
from signalprop.cures.program.losses import use_bce_with_logits, use_cross_entropy, use_mse
from signalprop.cures.program.modes import eval_frozen, train_mode
from signalprop.cures.program.optimizer import adam, rebuild_optimizer
from signalprop.cures.program.outputs import add_outputs
from signalprop.cures.program.precision import float32, float32_weights
from signalprop.cures.program.rate import lower_learning_rate, raise_learning_rate
from signalprop.cures.program.targets import (
    cast_targets,
    match_target_shape,
    scale_targets,
    set_ignore_index,
    shift_labels,
    use_sign_labels,
    use_zero_one_labels,
)
from signalprop.cures.program.updates import clip_gradient, larger_batch, warm_up
from signalprop.cures.structure.branches import residual_scaling, rezero
from signalprop.cures.structure.gated import gru, lstm
from signalprop.cures.structure.normalise import group_norm, input_batchnorm, normalise
from signalprop.cures.structure.recurrent import (
    chrono,
    forget_bias,
    identity_recurrent,
    orthogonal_recurrent,
)
from signalprop.cures.structure.skips import highway, residual
from signalprop.cures.weights.initialise import (
    critical_init,
    delta_orthogonal_init,
    glorot_init,
    he_init,
    lecun_init,
    orthogonal_init,
    reinitialise,
)
from signalprop.cures.weights.pretraining import pretrain
from signalprop.cures.weights.rescale import lsuv, smaller_init

CURES: tuple[Cure, ...] = (
    # what does not run, or runs on what it should not
    train_mode, eval_frozen, freeze, reconnect, guard_operation,
    float32, float32_weights,
    # targets before the loss, so that it is judged by what it is given; inputs
    set_ignore_index, shift_labels, use_zero_one_labels, use_sign_labels,
    match_target_shape, cast_targets,
    clean_data, normalise_inputs,
    # the end of the network; its targets are scaled to what it then puts out
    use_cross_entropy, use_bce_with_logits, use_mse,
    remove_softmax, remove_sigmoid, use_log_softmax, remove_output_activation, add_sigmoid,
    add_outputs, scale_targets,
    # structure: what replaces modules before what is put around them
    lstm, gru, group_norm, input_batchnorm, residual, highway, normalise,
    add_activations, swap_activation, leaky_activation, shaped_activation, self_normalize,
    # weights: all of them, then single ones
    he_init, glorot_init, lecun_init, orthogonal_init, delta_orthogonal_init, critical_init,
    reinitialise, lsuv, smaller_init, residual_scaling, rezero,
    identity_recurrent, orthogonal_recurrent, chrono, forget_bias, pretrain,
    # training
    rebuild_optimizer, adam, larger_batch, clip_gradient, warm_up,
    lower_learning_rate, raise_learning_rate,
)  # fmt: skip

CATALOGUE: dict[str, Cure] = {cure.name: cure for cure in CURES}
