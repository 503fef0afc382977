"""What holds for every module of the room, and how to look at one's stack of blocks."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def ordinary(make: Callable[[], nn.Module], x: Tensor) -> None:
    """A module that is what torch's own are: copied, saved, compiled, seeded, moved, shown."""
    torch.manual_seed(0)
    net = make()
    torch.manual_seed(0)
    again = make()
    for (name, p), (other, q) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q), name
    nudge(net)
    net.eval()
    y = net(x)
    assert torch.equal(y, copy.deepcopy(net)(x))
    again.load_state_dict(net.state_dict())
    assert torch.equal(y, again.eval()(x))
    compiled = torch.compile(copy.deepcopy(net).train(), fullgraph=True, backend="eager")
    torch.manual_seed(1)
    trained = net.train()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(x), trained)
    assert type(net).__name__ in repr(net)
    trained.square().sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert not unused


def on_meta(make: Callable[..., nn.Module], x: Tensor) -> None:
    """Built without memory, then initialised where it lands; and in the dtype that was said."""
    net = make(device="meta")
    assert all(p.is_meta for p in net.parameters())
    net = net.to_empty(device="cpu")
    for module in net.modules():
        for name, buffer in module.named_buffers(recurse=False):
            buffer.fill_(1.0 if name == "running_var" else 0.0)
    torch.manual_seed(0)
    net.reset_parameters()
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    plain.reset_parameters()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    double = make(dtype=torch.float64)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    assert double(x.double()).dtype == torch.float64


def nudge(net: nn.Module, size: float = 0.1) -> nn.Module:
    """All parameters moved, so that what starts at zero takes part."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(size * torch.randn_like(p))
    return net


def checked(net: nn.Module, x: Tensor) -> None:
    """The gradients of input and parameters against finite differences, in float64."""
    names = [name for name, _ in net.named_parameters()]
    x = x.double().requires_grad_()

    def out(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    given = [p.detach().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(out, (x, *given))


def through(blocks: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Activations before and behind every block, and the deltas of a random output error."""
    x = x.detach().requires_grad_()
    states = [x]
    for block in blocks.children():
        states.append(block(states[-1]))
    errors = torch.randn(
        states[-1].shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype
    )
    deltas = torch.autograd.grad(states[-1], states, errors)
    return [s.detach() for s in states], list(deltas)


def ratio(deltas: list[Tensor]) -> float:
    """|delta| at the input end over |delta| at the output end."""
    return float(deltas[0].norm() / deltas[-1].norm())
