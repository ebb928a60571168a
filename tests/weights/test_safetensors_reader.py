"""Files of safetensors: as their own library reads them, and what a header may not promise."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from barlow_jax.errors import UserError
from barlow_jax.weights import safetensors_reader


def test_every_type_is_as_the_library_wrote_it(tmp_path):
    rng = np.random.default_rng(0)
    types = [dtype for dtype in safetensors_reader.DTYPES.values() if dtype is not ml_dtypes.bfloat16]
    arrays = {np.dtype(dtype).name: rng.integers(0, 2, (3, 2)).astype(dtype) for dtype in types}
    arrays |= {"none": np.zeros((0, 4), np.float32), "one": np.array(7.5)}
    save_file(arrays, tmp_path / "x", metadata={"a": "b"})
    with safetensors_reader.opened(tmp_path / "x") as (found, about):
        assert about == {"a": "b"} and found.keys() == arrays.keys()
        for name, values in arrays.items():
            read = found[name].numpy()
            assert read.dtype == values.dtype and read.shape == values.shape == found[name].shape
            np.testing.assert_array_equal(read, values)


def written(path, header, body=b"\x00\x00\x80\x3f" * 6):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + body)


def entry(*shape, first=0, last=24, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_bfloat16(tmp_path):
    written(tmp_path / "x", {"a": entry(2, 6, dtype="BF16")})
    with safetensors_reader.opened(tmp_path / "x") as (found, _):
        np.testing.assert_array_equal(found["a"].numpy().astype(np.float32), [[0, 1] * 3] * 2)


@pytest.mark.parametrize(
    "header,sentence",
    [
        ({"a": {}}, "is damaged or cut off .'dtype'"),
        ({"a": []}, "is damaged or cut off"),
        ([], "is damaged or cut off"),
        ({"a": entry(7, last=28)}, "arrays of .* bytes in a file of"),
        ({"a": entry(5, last=20)}, "arrays of .* bytes in a file of"),
        ({"a": entry(6), "b": entry(6)}, "b begins at byte .* and not at"),
        ({"a": entry(2, last=8), "b": entry(3, first=12)}, "b begins at byte .* and not at"),
        ({"a": entry(5)}, "a has other bytes than its shape"),
        ({"a": entry(2**40, 2**40)}, "a has other bytes than its shape"),
        ({"a": entry(-6)}, "a shape that holds something else"),
        ({"a": entry("6")}, "a shape that holds something else"),
        ({"a": entry(24, dtype="F8_E4M3")}, "is no plain file of weights .a is of type F8_E4M3"),
        ({"a": entry(6), "__metadata__": {"a": 1}}, "metadata that are no strings"),
        (b'{"a":1,"a":1}', "two entries of one name"),
        (b'{"a":' + b"[" * 100_000, "is damaged or cut off"),
        (b"{" + b" " * 2**20, "its header is of 1048577 bytes, and 1048576 is the most"),
    ],
)
def test_headers_that_promise_what_is_not_there(tmp_path, header, sentence):
    written(tmp_path / "x", header)
    with pytest.raises(UserError, match=sentence) as caught, safetensors_reader.opened(tmp_path / "x"):
        pass
    assert str(caught.value).startswith(str(tmp_path / "x")) and len(str(caught.value)) < 500


def test_a_header_that_is_longer_than_the_file(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(UserError, match="a header of 9223372036854775808 bytes in a file of 10"):
        safetensors_reader.opened(tmp_path / "x").__enter__()
