"""The door of the command line: whatever happens inside, out come one sentence and a status."""

from __future__ import annotations

import os
import sys
import traceback

from cyclopts import App, CycloptsError

from signalprop.cli import blame, screen
from signalprop.errors import SignalpropError

OK, FOUND, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def run(app: App, tokens: list[str]) -> int:
    """Run a command line, and return its exit status."""
    # looked for in the words themselves, for what goes wrong before they are understood
    debug = "--debug" in tokens
    try:
        command, bound, _ = app.parse_args(
            tokens, console=screen.stdout(), exit_on_error=False, print_error=False
        )
        status = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()  # a reader that went away shows here, not when Python shuts down
    except CycloptsError as error:
        return _refuse(_command_line(error, tokens), error, debug)
    except SignalpropError as error:
        sentence = str(error)
        if blame.out_of_memory(error) and "memory" not in sentence.partition("\n")[0][:80]:
            sentence = blame.memory_sentence()
        return _refuse(sentence, error, debug)
    except KeyboardInterrupt:
        screen.say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except SystemExit as error:
        return (
            error.code if isinstance(error.code, int) else OK if error.code is None else BAD_INPUT
        )
    except Exception as error:
        return _refuse(_unexpected(error), error, debug)
    return status if isinstance(status, int) else OK


def _refuse(sentence: str, error: BaseException, debug: bool) -> int:
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    screen.say(sentence, "error: ", "bold red")
    return BAD_INPUT


def _command_line(error: CycloptsError, tokens: list[str]) -> str:
    error.verbose = False
    command = tokens[0] if tokens and error.command_chain else ""
    words = " ".join(filter(None, ["signalprop", command, "--help"]))
    sentence = " ".join(str(error).split())
    return f"{sentence.rstrip('.')}; see {words}"


def _unexpected(error: Exception) -> str:
    if blame.out_of_memory(error):
        return blame.memory_sentence()
    if not blame.ours(error) and blame.user_frame(error) is not None:
        return f"your code raised {blame.named(error)}{blame.at(error)}"
    return (
        f"this is a bug in signalprop: {blame.named(error)}; run again with --debug and report it"
    )


def _forget_stdout() -> None:
    """Keep Python from complaining about the closed pipe once more when it shuts down."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # not a real stream
        return
