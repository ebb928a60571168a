"""Small files of weights of every format: as they should be, damaged at random, and made to do harm.

hostile_weights.py has them read.
"""

import json
import pathlib
import pickle
import random
import re
import struct
import tempfile
import zipfile

import numpy as np

from barlow_jax.weights import pickle_reader, pickle_writer

# Files that are as they should be.


def tiny_names():
    """{name: array} with the names of a ResNet-18 and widths of 2: 120 arrays, 20 KB."""
    found = {"conv1.weight": (2, 3, 7, 7)} | dict.fromkeys(norm("bn1"), (2,))
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            for k in (1, 2):
                found |= {f"{name}.conv{k}.weight": (2, 2, 3, 3)} | dict.fromkeys(norm(f"{name}.bn{k}"), (2,))
            if layer > 1 and block == 0:
                found[f"{name}.downsample.0.weight"] = (2, 2, 1, 1)
                found |= dict.fromkeys(norm(f"{name}.downsample.1"), (2,))
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in found.items()}
    return arrays | {n: np.array(8) for n in found if n.endswith("num_batches_tracked")}


def norm(name):
    return [f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def in_legacy(path, arrays):
    """A file as torch before 1.6 wrote it: pickles, then the bytes of each tensor behind its count."""
    pickle_writer.save(path, arrays)
    with zipfile.ZipFile(path) as archive:
        program = archive.read("archive/data.pkl")
    about = {"protocol_version": pickle_reader.LEGACY_VERSION, "little_endian": True, "type_sizes": {}}
    keys = [str(k) for k in range(len(arrays))]
    head = [pickle.dumps(x, 2) for x in (pickle_reader.LEGACY_MAGIC, pickle_reader.LEGACY_VERSION, about)]
    tensors = [struct.pack("<q", a.size) + a.tobytes() for a in arrays.values()]
    path.write_bytes(b"".join([*head, program, pickle.dumps(keys, 2), *tensors]))


def in_safetensors(path):
    """A convnet of ours with its config."""
    import jax
    from flax import nnx

    from barlow_jax import model
    from barlow_jax.run import config_files
    from barlow_jax.weights import files

    config = config_files.load("demo").to_dict() | {"arch": "convnet", "image_size": 8}
    config["views"] |= {"mean": (0.5,), "std": (0.5,)}
    _, *trees = model.split(model.make_backbone("convnet", image_size=8, channels=1)(rngs=nnx.Rngs(0)))
    params, batch_stats = jax.tree.map(np.asarray, trees)
    weights = files.Weights("backbone", {"backbone": params}, {"backbone": batch_stats})
    files.save(path, "safetensors", weights, about=files.about_of(config, 1, 8, 1))


def whole_files(folder):
    """{name: bytes} of one small file of each format."""
    folder.mkdir(exist_ok=True)
    arrays = tiny_names()
    pickle_writer.save(folder / "x.pth", {"state_dict": arrays, "epoch": 3})
    in_legacy(folder / "legacy.pth", arrays)
    pickle_writer.save_pickle(folder / "x.pkl", {"model": arrays})
    in_safetensors(folder / "x.safetensors")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# Files that are damaged at random.

_NUMBERS = [struct.pack("<I", n) for n in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)] + [b"\xff" * 8, b"\x00" * 8]


def mutated(data, rng):
    """Bytes, changed in one to four places."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 16, 256))
        kind = rng.randrange(7)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            number = rng.choice(_NUMBERS)
            data[place : place + len(number)] = number
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            data[place:place] = rng.randbytes(length)
        elif len(data) > 64 and rng.random() < 0.3:
            del data[place:]
        data = data or bytearray(b"\x00")
    return bytes(data)


def mutated_inside(name, data, rng):
    """The same of what is read first, with lengths and checksums made right again."""
    if name == "x.safetensors":
        (length,) = struct.unpack("<Q", data[:8])
        header = mutated(data[8 : 8 + length], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    if name == "x.pth":
        return zipped(data, lambda content: mutated(content, rng))
    return mutated(data[:6000], rng) + data[6000:]


def zipped(data, change, **how):
    """An archive again, with another data.pkl."""
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as other:
        one.write(data)
        with zipfile.ZipFile(one) as old, zipfile.ZipFile(other, "w", **how) as new:
            for member in old.namelist():
                content = old.read(member)
                new.writestr(member, change(content) if member.endswith("data.pkl") else content)
        other.seek(0)
        return other.read()


def mutations(whole, count, seed):
    """(name, bytes) of so many damaged files."""
    rng = random.Random(seed)
    for k in range(count):
        name, data = rng.choice([*whole.items()])
        changed = mutated_inside(name, data, rng) if k % 2 else mutated(data, rng)
        yield f"{k:05}.{name}", changed


# Files that are made to do harm.


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def hostile_pickles(canary):
    """{name: pickle}: memory, time, calls."""
    found = {"nine bytes": bytes.fromhex("80025d72ffffff072e")}
    for index in (2**16, 2**24, 2**28, 2**31 - 1, 2**32 - 1):
        found[f"memo at {index}"] = b"\x80\x02]r" + struct.pack("<I", index) + b"."
        found[f"memo at {index} in text"] = b"\x80\x02]p%d\n." % index
        found[f"memo read at {index}"] = b"\x80\x02j" + struct.pack("<I", index) + b"."
    for code, form in ((b"X", "<I"), (b"B", "<I"), (b"T", "<i"), (b"\x8b", "<I"), *((c, "<Q") for c in BIG)):
        for count in (2**20, 2**27, 2**31 - 1, *((2**40, 2**62, 2**64 - 1) if form == "<Q" else ())):
            found[f"{code.hex()} of {count}"] = b"\x80\x04" + code + struct.pack(form, count) + b"a."
    found["frame"] = b"\x80\x04\x95" + b"\xff" * 8 + b"N."
    found |= {f"a key of tuples {n} deep": b"\x80\x02}N" + b"q\x00h\x00\x86" * n + b"Ns." for n in (25, 40, 4000)}
    found |= {f"a key of {n} tuples": b"\x80\x02}N" + b"\x85" * n + b"Ns." for n in (100, 100_000)}
    found |= {f"{n} marks": b"\x80\x02" + b"(" * n + b"." for n in (100, 1_000_000)}
    found |= {f"{n} lists in lists": b"\x80\x02" + b"]" * n + b"a" * (n - 1) + b"." for n in (1000, 150_000)}
    found |= {f"{n} lists": b"\x80\x02(" + b"]" * n + b"l." for n in (100_000, 3_000_000)}
    found |= {f"{n} sets": b"\x80\x04(" + b"\x8f" * n + b"l." for n in (100_000, 3_000_000)}
    found |= {f"{n} copies of it": b"\x80\x02N" + b"2" * n + b"." for n in (1000, 3_000_000)}
    found |= {f"{n} entries of the memo": b"\x80\x04N" + b"\x94" * n + b"." for n in (1000, 3_000_000)}
    found["doubled lists"] = b"\x80\x02]q\x00" + b"(h\x00h\x00lq\x00" * 60 + b"."
    found["doubled tuples"] = b"\x80\x02Nq\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"."
    found["a list in itself"] = b"\x80\x02]q\x00h\x00a."
    pair, keys = b"(N" + b"NN\x86" * 50_000, [n * (2**61 - 1) for n in range(1, 20_000)]
    found["dicts of one list"] = (
        b"\x80\x02"
        + pair.replace(b"(N", b"(", 1)
        + b"lq\x000"
        + (b"ccollections\nOrderedDict\nh\x00\x85R" * 2000)
        + b"."
    )
    found["sizes of one list"] = (
        b"\x80\x02(" + b"K\x01" * 50_000 + b"lq\x000" + b"ctorch\nSize\nh\x00\x85R" * 2000 + b"."
    )
    found["bytes of one string"] = (
        b"\x80\x02" + text("a" * 2_000_000) + b"q\x000" + b"(" + b"c_codecs\nencode\nh\x00\x85R" * 2000 + b"l."
    )
    found["keys of one hash"] = b"\x80\x02}(" + b"".join(pickle.dumps(k, 2)[2:-1] + b"N" for k in keys) + b"u."
    found["a long number"] = b"\x80\x02\x8b" + struct.pack("<I", 2**20) + b"\x7f" * 2**20 + b"."
    found["a number of digits"] = b"\x80\x02L" + b"9" * 60_000 + b"L\n."
    found["a line without an end"] = b"\x80\x02V" + b"a" * 3_000_000
    found["wide text"] = b"\x80\x02" + text("a" * 3_000_000 + "\U0001f40d") + b"."
    for name, opcodes in {
        "ext": b"\x82\x01",
        "inst": b"(ios\nsystem\n",
        "obj": b"(cos\nsystem\no",
        "buffer": b"\x97",
    }.items():
        found[f"instruction {name}"] = b"\x80\x02" + opcodes + b"."
    command = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w').close()"
    for name, argument in (
        *(
            ("os system", command),
            ("posix system", command),
            ("subprocess getoutput", command),
            ("builtins eval", python),
        ),
        *(
            ("builtins exec", python),
            ("__builtin__ eval", python),
            ("pathlib Path", command),
            ("runpy run_path", command),
        ),
        *(("importlib import_module", "antigravity"), ("ctypes CDLL", "libc.so.6"), ("os popen", command)),
        *(
            ("torch.hub load", command),
            ("numpy load", command),
            ("webbrowser open", "file:///"),
            ("pty spawn", command),
        ),
    ):
        module, function = name.split()
        named = f"c{module}\n{function}\n".encode()
        called = named + text(argument) + b"\x85R"
        found[f"{name}"] = b"\x80\x02" + called + b"."
        found[f"{name} in a model"] = b"\x80\x02}" + text("model") + called + b"s."
        found[f"{name} as a weight"] = b"\x80\x02}" + text("conv1.weight") + called + b"s."
        found[f"{name} by its stack"] = (
            b"\x80\x04" + text(module) + text(function) + b"\x93" + text(argument) + b"\x85R."
        )
    for attribute in ("__class__", "__setstate__", "__reduce__", "__new__", "set_state", "make"):
        for name in (
            "collections\nOrderedDict",
            "argparse\nNamespace",
            "torch\nSize",
            "numpy\ndtype",
            "builtins\nobject",
        ):
            state = b"}" + text(attribute) + text(command) + b"s"
            found[f"{attribute} of {name.split()[1]}"] = b"\x80\x02c" + name.encode() + b"\n" + state + b"b."
    return found


BIG = (b"\x8d", b"\x8e", b"\x96")  # the instructions whose counts have eight bytes


def hostile_archives(whole):
    """{name: bytes} of archives that are larger than they look."""
    data = whole["x.pth"]
    found = {"packed": zipped(data, lambda content: content, compression=zipfile.ZIP_DEFLATED)}
    for megabytes in (10, 1000):
        found[f"a packed pickle of {megabytes} MB"] = bomb(megabytes)
    numbers = np.zeros(2**18, np.float32)
    for count in (3, 400, 4000):
        found[f"{count} names on one storage"] = one_storage(numbers, count, whole)
    end = data.rindex(b"PK\x05\x06")
    for name, place, form, value in (
        *(("entries", 10, "<H", 65535), ("directory", 12, "<I", 2**32 - 1), ("directory at", 16, "<I", 2**32 - 1)),
        *(("directory of 1 GB", 12, "<I", 2**30), ("comment", 20, "<H", 65535)),
    ):
        found[name] = data[: end + place] + struct.pack(form, value) + data[end + place + struct.calcsize(form) :]
    with tempfile.TemporaryFile() as stream:
        with zipfile.ZipFile(stream, "w") as archive:
            for k in range(50_000):
                archive.writestr(str(k), b"")
        stream.seek(0)
        found["50,000 members"] = stream.read()
    sizes = re.sub(rb"(PK\x01\x02.{16})(.{4})(.{4})", lambda m: m[1] + b"\xff\xff\xff\x7f" * 2, data, flags=re.S)
    return found | {"members larger than the file": sizes}


def bomb(megabytes):
    with tempfile.TemporaryFile() as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data.pkl", "w") as file:
            file.write(b"\x80\x02B" + struct.pack("<I", megabytes * 2**20))
            for _ in range(megabytes):
                file.write(b"\x00" * 2**20)
            file.write(b".")
        stream.seek(0)
        return stream.read()


def one_storage(numbers, count, whole):
    """A state_dict of which so many entries are one tensor."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x"
        names = {f"layer1.{k % 1000}.conv{k // 1000 % 3 + 1}.weight": numbers for k in range(count)}
        pickle_writer.save(path, {"conv1.weight": numbers} | names)
        with zipfile.ZipFile(path) as archive:
            program = archive.read("archive/data.pkl")
            kept = {name: archive.read(name) for name in archive.namelist() if re.search("data/0$|order|version", name)}
        program = re.sub(rb"X....\d+(?=q.X\x03\x00\x00\x00cpu)", text("0"), program, flags=re.S)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            for name, content in kept.items():
                archive.writestr(name, content)
        return path.read_bytes()


def hostile_safetensors(whole):
    """{name: bytes}: headers that promise what is not there."""
    data = whole["x.safetensors"]
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]

    def made(header):
        encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(encoded)) + encoded + body

    found = {f"a header of {n}": struct.pack("<Q", n) + b"{" + data[9:] for n in (2**20, 2**31, 2**63, 2**64 - 1)}
    found["nested"] = made(b'{"a":' + b"[" * 1_000_000)
    found["lists"] = made(b'{"a":[' + b"[]," * 600_000 + b"[]]}")
    found["twins"] = made(b'{"a":1,"a":1}')
    found["digits"] = made(b'{"a":' + b"9" * 1_000_000 + b"}")
    entry = header["norm.weight"]
    for name, change in {
        "no shape": {"shape": None},
        "a shape of text": {"shape": "aa"},
        "a shape of fractions": {"shape": [1.5]},
        "a shape below 0": {"shape": [-1]},
        "a large shape": {"shape": [2**40, 2**40]},
        "many dimensions": {"shape": [1] * 100_000},
        "no type": {"dtype": []},
        "another type": {"dtype": "F8_E4M3"},
        "offsets beyond": {"data_offsets": [0, 2**60]},
        "offsets below 0": {"data_offsets": [-4, 0]},
        "offsets of text": {"data_offsets": ["a", "b"]},
        "one offset": {"data_offsets": [0]},
        "overlapping": {"data_offsets": [0, entry["data_offsets"][1] - entry["data_offsets"][0]]},
    }.items():
        found[name] = made(header | {"norm.weight": entry | change})
    found["no fields"] = made(header | {"norm.weight": {}})
    found["a list for an entry"] = made(header | {"norm.weight": []})
    found["metadata of numbers"] = made(header | {"__metadata__": {"config": 1}})
    found["metadata of lists"] = made(header | {"__metadata__": []})
    about = header["__metadata__"]
    config = json.loads(about["config"])
    for name, change in {
        **{f"channels {c!r}": {"channels": c} for c in ("0", "-1", "x", "9" * 5000, "", "１", "3")},
        **{f"step {s!r}": {"step": s} for s in ("x", "-1", "9" * 5000, "nan")},
        **{f"config {c}": {"config": c} for c in ("", "[]", "null", "1", '"a"', "{}", "[" * 100_000, "NaN")},
        **{
            f"config.{field}={value!r}"[:80]: {"config": json.dumps(config | {field: value})}
            for field in ("arch", "stem", "image_size", "views", "eval", "seed", "data", "projector", "precision")
            for value in (None, [], {}, "x", -1, 10**30, [[[]]], True)
        },
    }.items():
        found[name] = made(header | {"__metadata__": about | change})
    return found


def hostile(whole, canary):
    """(name, bytes) of all of them."""
    kinds = {
        "pkl": hostile_pickles(canary),
        "pth": hostile_archives(whole),
        "safetensors": hostile_safetensors(whole),
    }
    for suffix, found in kinds.items():
        for k, (name, data) in enumerate(found.items()):
            yield f"{k:03}-{re.sub('[^a-zA-Z0-9]+', '-', name)[:60]}.{suffix}", data
