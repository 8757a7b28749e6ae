#!/usr/bin/python3
"""The resident Python runner of a forkd guest image (/usr/lib/forkd/runner).

The agent starts it once; it imports what is worth warming, then evaluates code for as long as the machine lives, in one globals dict. Descriptors 3
and 4 are described in guest/agent/runner.h. Standard library alone; NumPy is imported where the image has it.
"""

import _thread
import ast
import hashlib
import linecache
import os
import random
import signal
import socket
import struct
import sys
import traceback

EVAL = 1
READY, RESULT = 128, 129
HAS_VALUE, HAS_ERROR, VALUE_TRUNCATED, THREADS_RUN = 1, 2, 4, 8
MAX_TEXT_BYTES = 64 * 1024
RESEED_SIGNAL = signal.SIGRTMIN + 7


class Channel:
    """Length-prefixed messages over the agent's socket."""

    def __init__(self, fd):
        self._socket = socket.socket(fileno=fd)
        # Programs that the code starts must not inherit it.
        self._socket.set_inheritable(False)

    def _receive_exactly(self, size):
        pieces = []
        while size > 0:
            piece = self._socket.recv(min(size, 1 << 16))
            if not piece:
                os._exit(0)  # The agent is gone, and so is the machine.
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def receive(self):
        (size,) = struct.unpack(">I", self._receive_exactly(4))
        message = self._receive_exactly(size)
        return message[0], message[1:]

    def send(self, kind, body):
        self._socket.sendall(struct.pack(">IB", len(body) + 1, kind) + body)


def encode(text):
    return text.encode("utf-8", "backslashreplace")


def cut(data, limit):
    """The first `limit` bytes at most, not ending within a character."""
    if len(data) <= limit:
        return data, False
    return data[:limit].decode("utf-8", "ignore").encode("utf-8"), True


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # The code has closed or replaced it: its own affair.


class Evaluator:
    """Runs statements in one namespace; the last expression's value is the result."""

    def __init__(self):
        self.globals = {"__name__": "__main__", "__builtins__": __builtins__, "__doc__": None}
        self._count = 0

    def _run(self, code):
        self._count += 1
        name = "<eval-%d>" % self._count
        # So that tracebacks show the code's lines.
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        linecache.cache.pop("<eval-%d>" % (self._count - 64), None)
        tree = ast.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        if tree.body:
            exec(compile(tree, name, "exec"), self.globals)
        if last is None:
            return None
        return eval(compile(last, name, "eval"), self.globals)

    def evaluate(self, code, limit):
        flags, value, error, trace = 0, b"", b"", b""
        pid = os.getpid()
        try:
            result = self._run(code)
            if result is not None:
                value, was_cut = cut(encode(repr(result)), limit)
                flags |= HAS_VALUE | (VALUE_TRUNCATED if was_cut else 0)
                self.globals["_"] = result
        except BaseException as e:  # SystemExit and KeyboardInterrupt as well: the runner lives on.
            flags, value = HAS_ERROR, b""
            try:
                text = str(e)
            except Exception:
                text = "<its text cannot be had>"
            error = encode("%s: %s" % (type(e).__name__, text) if text else type(e).__name__)
            # Without this file's own frames.
            tb = e.__traceback__
            while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
                tb = tb.tb_next
            try:
                trace = encode("".join(traceback.format_exception(type(e), e, tb)))
            except Exception:
                trace = error
            e = tb = None
        if os.getpid() != pid:
            flush()
            os._exit(1 if flags & HAS_ERROR else 0)  # The code forked; only the parent answers.
        flush()
        error, trace = cut(error, MAX_TEXT_BYTES)[0], trace[-MAX_TEXT_BYTES:]
        fields = b"".join(struct.pack(">I", len(f)) + f for f in (value, error, trace))
        if _thread._count() > 0:
            flags |= THREADS_RUN
        return bytes([flags]) + fields

    def reseed(self, entropy):
        """Gives every user-space generator that a clone inherited a new state. Returns what went wrong, or ""."""
        failures = []

        def attempt(name, step):
            try:
                step()
            except Exception as e:
                failures.append("%s: %s: %s" % (name, type(e).__name__, e))

        count = [0]

        def seed(size=64):
            count[0] += 1
            return hashlib.shake_256(b"forkd reseed %d " % count[0] + entropy).digest(size)

        attempt("random", lambda: random.seed(seed()))
        modules = sys.modules
        if "numpy.random" in modules:
            numpy = modules["numpy"]
            words = lambda: [int(w) for w in struct.unpack(">16I", seed(64))]
            attempt("numpy.random", lambda: numpy.random.seed(words()))

            def generator(g):
                # Any bit generator: a fresh one of the same type, seeded, lends its state.
                g.bit_generator.state = type(g.bit_generator)(words()).state

            for name, held in list(self.globals.items()):
                if isinstance(held, numpy.random.Generator):
                    attempt(name, lambda: generator(held))
                elif isinstance(held, numpy.random.RandomState):
                    attempt(name, lambda: held.seed(words()))
        for name, held in list(self.globals.items()):
            if type(held) is random.Random:
                attempt(name, lambda: held.seed(seed()))
        if "ssl" in modules:
            attempt("ssl", lambda: modules["ssl"].RAND_add(seed(), 64.0))
        if "uuid" in modules:
            modules["uuid"]._last_timestamp = None
            modules["uuid"]._node = None
        if "tempfile" in modules:
            modules["tempfile"]._name_sequence = None
        return "; ".join(failures)


def answer_reseeds(evaluator, fd):
    """Reseeds whenever the agent asks, between any two steps of the code that runs."""
    requests = socket.socket(fileno=fd)
    requests.set_inheritable(False)

    def on_signal(_number, _frame):
        while True:
            try:
                entropy = requests.recv(4096, socket.MSG_DONTWAIT)
            except OSError:
                return  # No more; or the code has closed it, and the agent will say that no answer came.
            if not entropy:
                return
            failures = evaluator.reseed(entropy)
            try:
                requests.send(b"\1" + encode(failures)[:512] if failures else b"\0", socket.MSG_DONTWAIT)
            except OSError:
                return

    signal.signal(RESEED_SIGNAL, on_signal)


def main():
    channel = Channel(3)
    evaluator = Evaluator()
    answer_reseeds(evaluator, 4)
    # A line at a time, so that little is lost if the code hangs and the runner is killed.
    sys.stdout.reconfigure(line_buffering=True)
    info = "python %d.%d.%d" % sys.version_info[:3]
    try:
        import numpy

        numpy.random.default_rng  # Loads the submodule: its first use is not the user's to pay for.
        evaluator.globals["numpy"] = evaluator.globals["np"] = numpy
        info += ", numpy " + numpy.__version__
    except ImportError:
        info += ", no numpy"
    channel.send(READY, encode(info))
    while True:
        kind, body = channel.receive()
        if kind == EVAL:
            (limit,) = struct.unpack(">I", body[:4])
            channel.send(RESULT, evaluator.evaluate(body[4:].decode("utf-8", "replace"), limit))


if __name__ == "__main__":
    main()
