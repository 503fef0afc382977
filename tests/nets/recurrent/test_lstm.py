"""Called, loaded and differentiated as nn.LSTM is."""

import copy
import pickle
import warnings

import pytest
import torch
from tests.nets.recurrent.support import FORMS, compiles, flat, gradients, leaf, options, sequences
from torch import nn

from signalprop.nets.recurrent import LSTM

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(ours, dtype=torch.float64, **kwargs):
    """nn.LSTM, and ours with its parameters."""
    theirs = nn.LSTM(3, 4, dtype=dtype, **kwargs)
    layer = LSTM(3, 4, dtype=dtype, **kwargs, **ours)
    layer.load_state_dict(theirs.state_dict())
    return theirs, layer


def agree(theirs, layer, x, hx, dtype):
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    named = dict(layer.named_parameters())
    shared = [named[name] for name, _ in theirs.named_parameters()]
    outcome = []
    for net, held in ((theirs, list(theirs.parameters())), (layer, shared)):
        given, data = leaf(x)
        states = None if hx is None else tuple(s.clone().requires_grad_() for s in hx)
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            results = net(given, states)
        grads = gradients(results, [data, *held, *(states or ())])
        outcome.append((results, grads))
    (want, want_grads), (got, got_grads) = outcome
    assert type(got[0]) is type(want[0])
    if not isinstance(x, torch.Tensor):
        for a, b in zip(got[0][1:], want[0][1:], strict=True):
            assert torch.equal(a, b)
    for a, b in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# without their own peepholes, those of the loop are 0: it then computes what torch's kernels do
@pytest.mark.parametrize("ours", [{}, {"peepholes": True}], ids=["kernels", "loop"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_nn_lstm_for_every_option(form, dtype, ours):
    torch.manual_seed(0)
    for kwargs in options(proj_size=[0, 2], bias=[True, False]):
        theirs, layer = pair(ours, dtype, **kwargs)
        for length, given in ((4, False), (4, True), (1, True)):
            x = sequences(form, 3, batch_first=kwargs["batch_first"], length=length, dtype=dtype)
            hx = None
            if given:
                count = kwargs["num_layers"] * (1 + kwargs["bidirectional"])
                batch = () if form == "unbatched" else (3,)
                hx = tuple(
                    torch.randn(count, *batch, size, dtype=dtype)
                    for size in (kwargs["proj_size"] or 4, 4)
                )
            agree(theirs, layer, x, hx, dtype)


@pytest.mark.parametrize("ours", [{}, {"peepholes": True}], ids=["kernels", "loop"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
def test_dropout_takes_the_same_random_numbers(form, dtype, ours):
    for kwargs in options(num_layers=[3]):
        theirs, layer = pair(ours, dtype, dropout=0.4, **kwargs)
        x = sequences(form, 3, batch_first=kwargs["batch_first"], length=5, dtype=dtype)
        agree(theirs, layer, x, None, dtype)
        # and it is at work
        assert not torch.equal(flat(layer(x))[0], flat(layer.eval()(x))[0])
        agree(theirs.eval(), layer, x, None, dtype)


def test_the_same_seed_gives_the_same_parameters():
    for kwargs in options(proj_size=[0, 2]):
        torch.manual_seed(3)
        theirs = nn.LSTM(3, 4, **kwargs)
        for ours in ({}, {"peepholes": True}, {"truncated": True}):
            torch.manual_seed(3)
            named = dict(LSTM(3, 4, **kwargs, **ours).named_parameters())
            for name, p in theirs.named_parameters():
                assert torch.equal(named[name], p)


def test_its_state_dict_goes_back_into_nn_lstm():
    for kwargs in options(proj_size=[0, 2], bias=[True, False]):
        layer = LSTM(3, 4, **kwargs, truncated=True)
        theirs = nn.LSTM(3, 4, **kwargs)
        assert list(layer.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(layer.state_dict())


def test_a_forget_gate_that_is_not_there_is_left_out_and_said():
    theirs = nn.LSTM(3, 4, 2, proj_size=2)
    layer = nn.ModuleDict({"memory": LSTM(3, 4, 2, proj_size=2, cell="1997")})
    state = nn.ModuleDict({"memory": theirs}).state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    with pytest.warns(
        UserWarning, match=r"no forget gate: its rows \(4 to 7\) of memory.weight_ih"
    ):
        layer.load_state_dict(state)
    for name, value in kept.items():
        assert torch.equal(state[name], value)
    for name, p in layer.named_parameters():
        want = kept[name] if "weight_hr" in name else torch.cat([kept[name][:4], kept[name][8:]])
        assert torch.equal(p, want)
    # its own is loaded in silence
    again = nn.ModuleDict({"memory": LSTM(3, 4, 2, proj_size=2, cell="1997")})
    again.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        theirs.load_state_dict(layer["memory"].state_dict())


def test_half_a_set_of_peepholes_is_not_filled_up():
    layer = LSTM(3, 4, 2, peepholes=True)
    state = layer.state_dict()
    assert [n for n in state if "weight_c" in n] == ["weight_c_l0", "weight_c_l1"]
    del state["weight_c_l1"]
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_c_l1"):
        layer.load_state_dict(state)


VARIANTS = [
    {},
    {"cell": "1997"},
    {"cell": "1997", "truncated": True, "peepholes": True},
    {"peepholes": True, "proj_size": 2, "bidirectional": True},
    {"forget_bias": 1.0},
]


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_it_is_an_ordinary_module(kwargs):
    layer = LSTM(3, 4, 2, **kwargs)
    x = torch.randn(5, 2, 3)
    want = flat(layer(x))
    again = LSTM(3, 4, 2, **kwargs)
    again.load_state_dict(layer.state_dict())
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="eager")
    values = dict(layer.named_parameters())
    for got in (
        copy.deepcopy(layer)(x),
        pickle.loads(pickle.dumps(layer))(x),
        again(x),
        copy.deepcopy(again).double().float()(x),
        torch.func.functional_call(LSTM(3, 4, 2, **kwargs), values, (x,)),
        compiled(x),
    ):
        for a, b in zip(flat(got), want, strict=True):
            torch.testing.assert_close(a, b)
    assert repr(layer).startswith("LSTM(3, 4")
    for name, value in kwargs.items():
        assert f"{name}={value!r}" in repr(layer)
    sum(r.sum() for r in want).backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_it_is_made_without_memory_and_in_another_precision(kwargs):
    layer = LSTM(3, 4, 2, device="meta", **kwargs)
    assert all(p.is_meta for p in layer.parameters())
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    for p, q in zip(layer.parameters(), LSTM(3, 4, 2, **kwargs).parameters(), strict=True):
        assert torch.equal(p, q)
    half = LSTM(3, 4, 2, dtype=torch.bfloat16, **kwargs)
    x = torch.randn(5, 2, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        assert {t.dtype for t in flat(half(x.bfloat16()))} == {torch.bfloat16}
        want = flat(half.float()(x))
        with torch.autocast("cpu", torch.bfloat16):
            got = flat(half(x))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kwargs", [{}, {"cell": "1997"}, {"truncated": True}])
def test_what_does_not_fit_is_said_as_torch_says_it(kwargs):
    layer = LSTM(3, 4, **kwargs)
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    cases = [
        (RuntimeError, "xpected sequence length to be larger than 0", x[:0], None),
        (RuntimeError, "must be equal to input_size. Expected 3, got 2", x[..., :2], None),
        (ValueError, "Expected input to be 2D or 3D, got 4D", x[None], None),
        (ValueError, "dtype", x.double(), None),
        (
            RuntimeError,
            r"Expected hidden\[0\] size \(1, 2, 4\), got \[1, 2, 3\]",
            x,
            (h[..., :3], h),
        ),
        (RuntimeError, r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 1, 4\]", x, (h, h[:, :1])),
        (RuntimeError, "also be 3-D", x, (h[:, 0], h[:, 0])),
        (RuntimeError, "also be 2-D", x[:, 0], (h, h)),
    ]
    for error, match, given, hx in cases:
        with pytest.raises(error, match=match):
            layer(given, hx)


def test_states_of_another_batch_are_not_taken_for_packed_sequences():
    x = sequences("packed", 3, batch_first=False, length=2, dtype=torch.float32)
    for batch in (2, 4):
        h = torch.randn(1, batch, 4)
        with pytest.raises(RuntimeError, match=rf"hidden\[0\] size \(1, 3, 4\), got \[1, {batch}"):
            LSTM(3, 4, cell="1997")(x, (h, h))


@pytest.mark.parametrize("kwargs", [{}, {"cell": "1997"}])
def test_a_batch_of_none_is_no_error(kwargs):
    y, (h, c) = LSTM(3, 4, **kwargs)(torch.randn(5, 0, 3))
    assert y.shape == (5, 0, 4)
    assert h.shape == c.shape == (1, 0, 4)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"cell": "2000"}, "cell has to be 'modern' or '1997', not '2000'"),
        ({"cell": "1997", "forget_bias": 1.0}, "no forget gate: leave out forget_bias"),
        ({"cell": "1997", "chrono": 100}, "no forget gate: leave out chrono"),
        ({"forget_bias": 1.0, "chrono": 100}, "give one of them"),
        ({"bias": False, "forget_bias": 1.0}, "forget_bias needs biases"),
        ({"bias": False, "chrono": 100}, "chrono needs biases"),
        ({"chrono": 2}, "chrono has to be a whole number of at least 3"),
        ({"forget_bias": float("nan")}, "forget_bias has to be a finite number"),
        ({"dropout": 1.5}, "dropout should be a number in range"),
        ({"proj_size": 4}, "proj_size has to be smaller than hidden_size"),
        ({"num_layers": 0}, "num_layers must be greater than zero"),
    ],
)
def test_options_that_make_no_sense(kwargs, match):
    with pytest.raises(ValueError, match=match):
        LSTM(3, 4, **kwargs)


@pytest.mark.slow
def test_the_loop_compiles():
    layer = LSTM(2, 3, dtype=torch.float64, cell="1997", truncated=True)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    compiles(layer, x)
