"""Pickles as data: what plain ones hold, and what is seen before memory or time is spent on it."""

import argparse
import collections
import io
import pickle
import random
import struct
import sys
import zipfile

import commands
import numpy as np
import pytest

from barlow_jax.errors import UserError
from barlow_jax.weights import files, pickle_machine, pickle_objects, pickle_reader, pickle_writer
from barlow_jax.weights.file_arrays import Unfit

sys.path.insert(0, str(commands.ROOT / "benchmarks"))
import weight_files


def machine(data, known=None):
    source = pickle_machine.Bytes(io.BytesIO(data), len(data))
    return pickle_machine.load(source, known or {}, lambda reference: reference, pickle_machine.Limits(len(data)))


def a_tree(rng, depth=3):
    """Plain data of every kind, some of it shared."""
    if depth == 0 or rng.random() < 0.2:
        words = ["", "naïve 🐍\n", "\udc80", "a" * 300, "x" * 20_000]
        numbers = [0, -1, 255, 256, 2**31, -(2**31) - 1, 2**70, 1.5, -0.0, float("inf"), None, True, False]
        return rng.choice(words + numbers + [b"", b"\xff" * 300, b"\x00" * 5000])
    items = [a_tree(rng, depth - 1) for _ in range(rng.randrange(5))]
    items += items[:1]
    return rng.choice([list, tuple, lambda items: {k if k % 2 else str(k): item for k, item in enumerate(items)}])(
        items
    )


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_as_pythons_own_reader_has_it(protocol):
    rng = random.Random(protocol)
    for _ in range(60):
        tree = a_tree(rng)
        data = pickle.dumps(tree, protocol)
        assert machine(data, pickle_objects.KNOWN) == pickle.loads(data) == tree


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_namespaces_and_sets(tmp_path, protocol):
    """As numpy and argparse pickle themselves here."""
    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "half": np.float16([1, 2]),
        "none": np.zeros((0, 3), np.float32),
    }
    tree = arrays | {
        "args": argparse.Namespace(epochs=3, names=["a"]),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, b=2),
        "set": {1},
        "scalar": np.float32(0.5),
        "objects": np.array([{}, "a"], object),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(tree, protocol))
    with pickle_reader.opened(tmp_path / "x.pkl") as found:
        for name, values in arrays.items():
            read = found[name].numpy()
            assert found[name].shape == read.shape == values.shape and found[name].nbytes == values.nbytes
            np.testing.assert_array_equal(read, values)
        assert (found["args"], found["ordered"], found["default"]) == (
            {"epochs": 3, "names": ["a"]},
            {"a": 1},
            {"b": 2},
        )
        assert (found["set"], found["scalar"]) == ([1], 0.5)
        with pytest.raises(ValueError, match="something else than numbers"):
            found["objects"].numpy()


def test_what_is_named_or_called_beside_the_weights_is_inert():
    """Called, filled, given a state: it stays what it is."""
    called = b"cos\nsystem\n" + weight_files.text("exit 1") + b"\x85R"
    found = machine(b"\x80\x02(" + called + b"(Nu" + called + b"(Ne" + called + b"}b" + b"cos\nsystem\n" + b"l.")
    assert [(made.name, made.called) for made in found] == [("os.system", True)] * 3 + [("os.system", False)]


CASES = {
    "80025d72ffffff072e": None,  # an empty list at 134,217,727 of the memo, which took 2 GB: one entry is one entry
    "80025d720000ffff2e": None,
    "80026affffff072e": "entry 134217727 of the memo, which is empty",
    "8004" + "8e" + "ff" * 8 + "2e": "18446744073709551615 bytes are announced and 1 are left",
    "8002" + "58" + "ffffff7f" + "2e": "2147483647 bytes are announced and 1 are left",
    "8002" + "54" + "ffffffff" + "2e": "-1 bytes are announced",
    "8002" + "8b" + "00100000" + "00" * 5000 + "2e": "a number of 4096 bytes",
    "8002" + "28" * 65 + "2e": "nested more than 64 deep",
    "8002" + "4e" + "32" * 400_000 + "2e": "more than 400000 instructions",
    "8002" + "7d" + "29" + "4e" + "73" + "2e": "a key that is a tuple",
    "8002" + "7d" + "473ff0000000000000" + "4e" + "73" + "2e": "a key that is a float",
    "8002" + "7d" + "8a08" + "ffffffffffffff1f" + "4e" + "73" + "2e": "a key that is a int",
    "8002" + "82" + "01" + "2e": "the instruction b'.x82', which no file of weights needs",
    "8002" + "52" + "2e": "an empty stack",
    "8002" + "4e" + "4e" + "61" + "2e": "items for a NoneType",
    "8002" + "4e" + "4e" + "62" + "2e": "a NoneType is given a state",
    "8002" + "4e" + "29" + "52" + "2e": "a NoneType is called",
}


@pytest.mark.parametrize("program", CASES)
def test_what_a_program_asks_for_is_looked_at_first(program):
    if CASES[program] is None:
        assert machine(bytes.fromhex(program)) == []
        return
    with pytest.raises((Unfit, pickle.UnpicklingError, EOFError), match=CASES[program]):
        machine(bytes.fromhex(program))


def written(path, change=lambda name, content: content, **how):
    """A small file of weights, its members changed."""
    pickle_writer.save(path, {"conv1.weight": np.arange(6, dtype=np.float32)})
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", **how) as new:
        for name, content in members.items():
            new.writestr(name, change(name, content))
    return path


def test_archives_that_are_larger_than_they_look(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"x.pth is no plain file of weights \(archive/\w+ is compressed\); save its"):
        files.load(written(path, compression=zipfile.ZIP_DEFLATED))
    packed = written(path, lambda name, data: data + b"\x00" * (2**24 if name.endswith("pkl") else 0))
    with pytest.raises(UserError, match=r"data.pkl is of 16777... bytes, and 16777216 is the most"):
        files.load(packed)
    data = written(path).read_bytes()
    end = data.rindex(b"PK\x05\x06")
    path.write_bytes(data[: end + 12] + struct.pack("<I", 2**31) + data[end + 16 :])
    with pytest.raises(UserError, match=r"its directory is of 2147483648 bytes, and 2097152 is the most|is damaged"):
        files.load(path)
    first = data.index(b"PK\x01\x02")
    path.write_bytes(data[: first + 20] + struct.pack("<II", 2**30, 2**30) + data[first + 28 :])
    with pytest.raises(UserError, match=r"its members lie upon each other"):
        files.load(path)


def test_many_names_for_one_storage(tmp_path):
    """Two are weights that are tied; four hundred are a way to fill memory."""
    numbers, whole = np.ones(2**12, np.float32), {}
    (tmp_path / "x.pth").write_bytes(weight_files.one_storage(numbers, 400, whole))
    with pickle_reader.opened(tmp_path / "x.pth") as tree:
        one, other = (tree[name].numpy() for name in ("conv1.weight", "layer1.7.conv1.weight"))
        assert np.shares_memory(one, other)  # it was read once
    with pytest.raises(UserError, match="names the same bytes more than twice"):
        files.load(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(weight_files.one_storage(numbers, 1, whole))
    assert files.load(tmp_path / "x.pth").kind == "backbone"


def test_legacy_files_whose_counts_are_others(tmp_path):
    path = tmp_path / "x.pth"
    weight_files.in_legacy(path, {"conv1.weight": np.arange(6, dtype=np.float32)})
    np.testing.assert_array_equal(files.load(path).params["backbone"]["conv1"]["kernel"], np.arange(6))
    data = path.read_bytes()
    path.write_bytes(data[:-32] + struct.pack("<q", 7) + data[-24:])
    with pytest.raises(UserError, match="x.pth is damaged or cut off .7 numbers in place of 6"):
        files.load(path)
    path.write_bytes(data[:-4])  # seen when it is opened, not when the array is wanted
    with pytest.raises(UserError, match="x.pth is damaged or cut off"):
        pickle_reader.opened(path).__enter__()


def test_a_stream_is_read_from_where_it_stands():
    stream = io.BytesIO(b"0123456789")
    stream.seek(6)
    rest = pickle_machine.Bytes(stream, 10)
    with pytest.raises(EOFError, match="5 bytes are announced and 4 are left"):
        rest.take(5)
    assert rest.take(4) == b"6789" and rest.left == 0
