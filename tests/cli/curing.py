"""Tiny cures: a module of its own, as other processes import it."""

from torch import nn

from signalprop.cures.cure import DoesNotApply, cure
from signalprop.cures.surgery import operate


@cure("sigmoid-to-relu", treats=("SP101",))
def sigmoid_to_relu(model, *, inplace=False):
    """Sigmoid to ReLU."""

    def change(name, module):
        return nn.ReLU() if isinstance(module, nn.Sigmoid) else None

    return operate(model, change, inplace=inplace)


@cure("frozen", treats=("SP101",))
def frozen(model, *, inplace=False):
    """Nothing learns but the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    return model


@cure("no-cure", treats=("SP101",))
def no_cure(model, *, inplace=False):
    """Never applies."""
    raise DoesNotApply("the network has no attention")


CURES = {one.name: one for one in (sigmoid_to_relu, frozen, no_cure)}
