"""Calls that are made in a thread of their own."""

import logging
import threading

import pytest

from signalprop.watching.adapters.behind import Behind


def test_calls_are_made_in_order():
    done: list[int] = []
    behind = Behind("x")
    for i in range(100):
        behind.do(lambda i=i: done.append(i))
    behind.close(10)
    assert done == list(range(100))


def test_an_error_is_raised_at_the_next_call_and_no_more_are_made(caplog):
    made = threading.Event()
    behind = Behind("x")

    def fails():
        made.set()
        raise OSError("no route to host")

    behind.do(fails)
    made.wait(10)
    behind._thread.join(10)
    with pytest.raises(OSError, match="no route"):
        behind.do(fails)
    with caplog.at_level(logging.WARNING, "signalprop"):
        behind.close(1)
    assert "x: no route to host" in caplog.text


def test_a_slow_side_delays_nobody(caplog):
    go = threading.Event()
    done: list[int] = []
    behind = Behind("x", most=3)
    behind.do(go.wait)
    while behind._calls:
        pass
    for i in range(10):
        behind.do(lambda i=i: done.append(i))
    with caplog.at_level(logging.WARNING, "signalprop"):
        behind.close(0.05)
        assert "no answer for 0.05 s" in caplog.text
        go.set()
        behind.close(10)
    assert done == [7, 8, 9]
    assert behind.dropped == 7
    assert "7 batches were dropped" in caplog.text


def test_nothing_to_do_needs_no_thread():
    behind = Behind("x")
    behind.close(1)
    assert behind._thread is None
