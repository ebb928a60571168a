"""Pickles as data: a machine for those instructions that files of weights need, which looks before it takes.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever the program names,
takes memory for lengths and indices before it looks whether the file holds so much, and hashes keys of any kind. This
one calls nothing but what it is given (`known`), and everything is counted first: a string against the bytes that
remain, an index of the memo against what the memo holds, every instruction and every copied item against `STEPS`.

What a pickle names and `known` does not have becomes a `Foreign`: it may be mentioned, called, filled and given a
state, and none of that does anything.
"""

import pickle
import struct
from typing import NamedTuple

from barlow_jax.weights.file_arrays import Unfit

STEPS = 400_000  # instructions and items of copies; a tensor takes 31, a ResNet-152 with Adam's state 72,000
DEPTH = 64  # of marks: containers that are being filled at once
LINE = 65_536  # bytes of a line of text, which is how protocol 0 writes strings
KEY = 2**60  # integers that are keys are smaller: below 2**61 no two have one hash


class Foreign:
    """Stands for a function, a class, or what a call of one would have made."""

    __slots__ = ("called", "name")

    def __init__(self, name, called=False):
        self.name, self.called = name, called


class Known(NamedTuple):
    """A name that stands for something here: make(limits, *arguments) -> plain data."""

    name: str
    make: object


class Limits:
    """What is left of `STEPS`, and of the bytes that may be made of a file's own.

    Args:
      size: bytes of the file.
    """

    def __init__(self, size):
        self.steps, self.bytes = STEPS, 2 * size

    def spend(self, steps):
        self.steps -= steps
        if self.steps < 0:
            raise Unfit(f"more than {STEPS} instructions")

    def spend_bytes(self, count):
        self.bytes -= count
        if self.bytes < 0:
            raise Unfit("its strings are copied until they are more than twice the file")


class Bytes:
    """A stream of which no more is read than it holds.

    Args:
      stream: seekable; read from where it stands.
      size: bytes up to the end of it.
    """

    def __init__(self, stream, size):
        self._stream, self.left = stream, size - stream.tell()

    def take(self, count):
        if not 0 <= count <= self.left:
            raise EOFError(f"{count} bytes are announced and {self.left} are left")
        data = self._stream.read(count)
        if len(data) != count:
            raise EOFError("it ends early")
        self.left -= count
        return data

    def line(self):
        data = self._stream.readline(min(LINE, self.left))
        if not data.endswith(b"\n"):
            raise EOFError("a line that does not end")
        self.left -= len(data)
        return data[:-1]

    def number(self, code):
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]


def load(source, known, persistent, limits):
    """The object that the pickle at the start of a stream describes.

    Args:
      source: Bytes; it is left behind the pickle.
      known: {"module.name": a function of Limits and the arguments, or plain data}. Functions pay for what they copy.
      persistent: what a persistent id stands for, a function of it.
      limits: Limits, shared by all pickles of a file.
    Raises:
      Unfit: it is too large, or uses what weights need not.
      pickle.UnpicklingError, EOFError and the like: it is damaged.
    """
    machine = _Machine(source, known, persistent, limits)
    while True:
        code = source.take(1)
        limits.spend(1)
        if code == pickle.STOP:
            return machine.pop()
        if code not in _INSTRUCTIONS:
            raise Unfit(f"the instruction {code!r}, which no file of weights needs")
        _INSTRUCTIONS[code](machine)


class _Machine:
    """The stack, the stacks below its marks, and the memo."""

    def __init__(self, source, known, persistent, limits):
        self.source, self.known, self.persistent, self.limits = source, known, persistent, limits
        self.stack, self.marks, self.memo, self.names = [], [], {}, {}

    def push(self, value):
        self.stack.append(value)

    def pop(self):
        if not self.stack:
            raise pickle.UnpicklingError("an empty stack")
        return self.stack.pop()

    def top(self):
        if not self.stack:
            raise pickle.UnpicklingError("an empty stack")
        return self.stack[-1]

    def mark(self):
        if len(self.marks) >= DEPTH:
            raise Unfit(f"it is nested more than {DEPTH} deep")
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self):
        if not self.marks:
            raise pickle.UnpicklingError("no mark")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def text(self, count, encoding="utf-8"):
        self.push(self.source.take(count).decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict"))

    def tuple(self, count):
        if len(self.stack) < count:
            raise pickle.UnpicklingError("an empty stack")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(items)

    def put(self, index):
        # torch counts them up; whatever an index, a dict holds one entry for it.
        self.memo[index] = self.top()

    def get(self, index):
        if index not in self.memo:
            raise pickle.UnpicklingError(f"entry {index} of the memo, which is empty")
        self.push(self.memo[index])

    def name(self, module, name):
        full = f"{module}.{name}"
        if len(full) > 500 or not full.isprintable():
            raise pickle.UnpicklingError("a name that is none")
        if full not in self.names:
            found = self.known.get(full)
            self.names[full] = Foreign(full) if found is None else Known(full, found) if callable(found) else found
        self.push(self.names[full])

    def global_(self):
        module = self.source.line().decode("ascii")
        self.name(module, self.source.line().decode("ascii"))

    def stack_global(self):
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("a name that is none")
        self.name(module, name)

    def call(self):
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a call without arguments")
        if isinstance(function, Foreign):
            self.push(Foreign(function.name, called=True))
        elif isinstance(function, Known):
            self.push(function.make(self.limits, *arguments))
        else:
            raise pickle.UnpicklingError(f"a {type(function).__name__} is called")

    def call_with_keywords(self):
        self.pop()
        self.call()

    def build(self):
        state, made = self.pop(), self.top()
        if hasattr(made, "set_state"):
            made.set_state(self.limits, state)
        elif not isinstance(made, Foreign | dict):  # the attribute _metadata that torch gives a state_dict is left out
            raise pickle.UnpicklingError(f"a {type(made).__name__} is given a state")

    def append(self, items):
        made = self.top()
        if isinstance(made, list):
            made.extend(items)
        elif not isinstance(made, Foreign):
            raise pickle.UnpicklingError(f"items for a {type(made).__name__}")

    def set_items(self, items):
        made = self.top()
        if isinstance(made, dict):
            fill(made, items[::2], items[1::2])
        elif not isinstance(made, Foreign):
            raise pickle.UnpicklingError(f"entries for a {type(made).__name__}")

    def push_made(self, make):
        items = self.pop_mark()
        self.push(make(items))

    def make_dict(self):
        items = self.pop_mark()
        self.push({})
        self.set_items(items)

    def two(self):
        value, key = self.pop(), self.pop()
        return [key, value]


def fill(made, keys, values):
    """Puts entries into a dict; a tuple as a key, nested deeply enough, would be hashed for ever.

    Raises:
      Unfit: a key is no string, number or name.
      ValueError: a value is missing.
    """
    for key, value in zip(keys, values, strict=True):
        plain = isinstance(key, str | Foreign) or key is None or (isinstance(key, int) and abs(key) < KEY)
        if not plain:
            raise Unfit(f"a key that is a {type(key).__name__}, and no string or number")
        made[key] = value


def _long(count):
    if count > 1024:
        raise pickle.UnpicklingError(f"a number of {count} bytes")
    return count


def _integer(line):
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)


# What each instruction does to the machine `m`. Left out are those that find classes in a registry, make instances of
# old classes or take buffers from elsewhere: EXT, INST, OBJ, PERSID, NEXT_BUFFER; and STRING, which is Python.
_INSTRUCTIONS = {
    pickle.PROTO: lambda m: m.source.take(1),
    pickle.FRAME: lambda m: m.source.take(8),
    # The stack.
    pickle.MARK: lambda m: m.mark(),
    pickle.POP: lambda m: m.pop() if m.stack else m.pop_mark(),
    pickle.POP_MARK: lambda m: m.pop_mark(),
    pickle.DUP: lambda m: m.push(m.top()),
    # The memo.
    pickle.PUT: lambda m: m.put(int(m.source.line())),
    pickle.BINPUT: lambda m: m.put(m.source.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.source.number("<I")),
    pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
    pickle.GET: lambda m: m.get(int(m.source.line())),
    pickle.BINGET: lambda m: m.get(m.source.number("<B")),
    pickle.LONG_BINGET: lambda m: m.get(m.source.number("<I")),
    # Numbers.
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.INT: lambda m: m.push(_integer(m.source.line())),
    pickle.BININT: lambda m: m.push(m.source.number("<i")),
    pickle.BININT1: lambda m: m.push(m.source.number("<B")),
    pickle.BININT2: lambda m: m.push(m.source.number("<H")),
    pickle.LONG: lambda m: m.push(int(m.source.line().rstrip(b"L"))),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.source.take(m.source.number("<B")), "little", signed=True)),
    pickle.LONG4: lambda m: m.push(int.from_bytes(m.source.take(_long(m.source.number("<I"))), "little", signed=True)),
    pickle.FLOAT: lambda m: m.push(float(m.source.line())),
    pickle.BINFLOAT: lambda m: m.push(m.source.number(">d")),
    # Strings; those of Python 2 in latin1, as everyone reads them.
    pickle.UNICODE: lambda m: m.push(m.source.line().decode("raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.source.number("<B")),
    pickle.BINUNICODE: lambda m: m.text(m.source.number("<I")),
    pickle.BINUNICODE8: lambda m: m.text(m.source.number("<Q")),
    pickle.SHORT_BINSTRING: lambda m: m.text(m.source.number("<B"), "latin1"),
    pickle.BINSTRING: lambda m: m.text(m.source.number("<i"), "latin1"),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.source.take(m.source.number("<B"))),
    pickle.BINBYTES: lambda m: m.push(m.source.take(m.source.number("<I"))),
    pickle.BINBYTES8: lambda m: m.push(m.source.take(m.source.number("<Q"))),
    pickle.BYTEARRAY8: lambda m: m.push(m.source.take(m.source.number("<Q"))),
    # Containers; sets as lists.
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.tuple(1),
    pickle.TUPLE2: lambda m: m.tuple(2),
    pickle.TUPLE3: lambda m: m.tuple(3),
    pickle.TUPLE: lambda m: m.push_made(tuple),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push_made(list),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.DICT: lambda m: m.make_dict(),
    pickle.SETITEM: lambda m: m.set_items(m.two()),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.EMPTY_SET: lambda m: m.push([]),
    pickle.ADDITEMS: lambda m: m.append(m.pop_mark()),
    pickle.FROZENSET: lambda m: m.push_made(list),
    # What is named, and what is called.
    pickle.GLOBAL: lambda m: m.global_(),
    pickle.STACK_GLOBAL: lambda m: m.stack_global(),
    pickle.REDUCE: lambda m: m.call(),
    pickle.NEWOBJ: lambda m: m.call(),
    pickle.NEWOBJ_EX: lambda m: m.call_with_keywords(),
    pickle.BUILD: lambda m: m.build(),
    pickle.BINPERSID: lambda m: m.push(m.persistent(m.pop())),
}
