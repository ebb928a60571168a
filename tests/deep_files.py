"""Image files of more than 8 bits, written here, for tests."""

import struct

import tensorflow as tf


def pgm(values, maxval, magic="P5"):
    head = f"{magic} {values.shape[1]} {values.shape[0]} {maxval}\n".encode()
    if magic == "P2":
        return head + " ".join(map(str, values.ravel())).encode()
    return head + values.astype(">u2").tobytes()


def tiff(values, order="<", photometric=1):
    """An uncompressed TIFF of one strip, grey or RGB, of any type of number; of grey ones 0: the lowest is white."""
    h, w, colours = *values.shape[:2], values.shape[2] if values.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = 8 * values.dtype.itemsize
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, w),
        (257, h),
        (258, bits),
        (259, 1),
        (262, 2 if colours == 3 else photometric),
        (273, 8),
        (277, colours),
    ]
    tags += [(278, h), (279, len(body)), (339, kind)]
    beside = 8 + len(body)
    entries = b""
    for tag, value in tags:
        count = colours if tag in (258, 339) else 1
        if count == 3:
            place = beside + (6 if tag == 339 else 0)
            entries += struct.pack(f"{order}HHII", tag, 3, 3, place)
        elif tag in (273, 279):
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
        else:
            entries += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    extra = struct.pack(f"{order}6H", *[bits] * 3, *[kind] * 3)
    start = beside + len(extra)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + body + extra + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def png16(values):
    """A PNG of 16 bits: [h, w] grey, or [h, w, 2, 3 or 4]."""
    values = values.reshape(*values.shape[:2], -1)
    return tf.io.encode_png(values).numpy()
