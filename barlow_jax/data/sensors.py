"""What Pillow does not read, or not in full: DICOM (pydicom), TIFF of many bands or pages (tifffile), arrays of numpy.

Both libraries are optional (`pip install 'barlow-jax[sensors]'`); a file that needs a missing one is unreadable, with
a sentence. What a header says is looked at before anything is decoded, so that a small file cannot take much memory.
"""

import io
import math
import re
import zlib

import numpy as np

from barlow_jax.data.levels import INSTALL, Values, check_bands, check_size, of_type, turned

# What tifffile decompresses by itself within the size that the header gives (see `_check_inflated`), and what it does
# with imagecodecs, which is told that size.
NATIVE, BY_IMAGECODECS = (1, 8, 32946), {5: "LZW", 32773: "PackBits", 50000: "Zstandard"}


def is_tiff(encoded):
    """Whether a file begins as a TIFF, or as a BigTIFF."""
    return encoded[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def kind(encoded):
    """ "DICOM" or "npy" of a file that is one and that Pillow knows nothing of, else ""."""
    if encoded[:6] == b"\x93NUMPY":
        return "npy"
    return "DICOM" if encoded[128:132] == b"DICM" else ""


def read(kind, encoded, reading, problem=None):
    """A file as Values.

    reading: pixels.Reading, of which channels and max_pixels count; with channels of 0 as many bands as there are.
    problem: why Pillow did not read it. ValueError, in words for a person; and whatever the libraries run into.
    """
    return {"DICOM": _dicom, "npy": _npy, "TIFF": _tiff}[kind](encoded, reading, problem)


def size(kind, encoded):
    """(height, width) by the header. Raises what `read` raises."""
    if kind == "npy":
        return _header_of_numbers(io.BytesIO(encoded))[0][:2]
    if kind == "DICOM":
        head = _library("pydicom", kind).dcmread(io.BytesIO(encoded), stop_before_pixels=True)
        return int(head.Rows), int(head.Columns)
    with _library("tifffile", kind).TiffFile(io.BytesIO(encoded)) as file:
        return tuple(map(int, file.pages.first.shaped[2:4]))


def _library(name, kind, problem=None):
    try:
        return __import__(name)
    except ImportError:
        why = f"{problem}; a TIFF of another kind than Pillow's" if problem else f"it is a {kind} file, which"
        raise ValueError(f"{why} takes {name} to read: {INSTALL}") from None


def _check(height, width, bands, reading):
    check_size(height, width, reading)
    if min(height, width, bands) < 1:
        raise ValueError(f"it has {height} x {width} pixels of {bands} bands, one of which is none")
    if reading.channels:
        check_bands(bands, reading.channels)


# Arrays of numpy.


def npy_header(stream):
    """(shape, whether in Fortran's order, dtype) of an .npy file; the stream then stands at its first value."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"it is an array of numpy's format {version[0]}.{version[1]}, which holds no plain numbers")
    return readers[version](stream)


def _header_of_numbers(stream):
    """`npy_header` of an image; ValueError where it is none of numbers."""
    shape, fortran, dtype = npy_header(stream)
    if dtype.kind not in "uifb":
        raise ValueError(f"it is an array of {dtype}, and an image is one of numbers")
    return shape, fortran, dtype


def _npy(encoded, reading, problem=None):
    stream = io.BytesIO(encoded)
    shape, fortran, dtype = _header_of_numbers(stream)
    if len(shape) not in (2, 3):
        raise ValueError(f"it is an array of shape {shape}, and an image is [height, width] or [height, width, bands]")
    wanted, start = math.prod(shape) * dtype.itemsize, stream.tell()
    if wanted != len(encoded) - start:
        raise ValueError(f"it is cut off or too long: an array of {wanted} bytes in {len(encoded) - start}")
    array = np.frombuffer(encoded, dtype, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")
    array = array if array.ndim == 3 else array[..., None]
    if reading.channels > 1 and array.shape[2] != reading.channels == array.shape[0]:
        array = np.moveaxis(array, 0, 2)  # [bands, height, width]
    _check(*array.shape, reading)
    return Values(array.astype(np.uint8) if dtype.kind == "b" else array, of_type(dtype))


# DICOM.


def _dicom(encoded, reading, problem=None):
    pydicom = _library("pydicom", "DICOM")
    if re.search(rb"\x02\0\x10\0UI..1\.2\.840\.10008\.1\.2\.1\.99\b", encoded, re.DOTALL):
        raise ValueError("its transfer syntax, Deflated, hides how large it is: save it as Explicit VR Little Endian")
    data = pydicom.dcmread(io.BytesIO(encoded))
    syntax = data.file_meta.TransferSyntaxUID
    if "PixelData" not in data:
        raise ValueError("it is a DICOM file without an image")
    samples, frames = int(data.get("SamplesPerPixel", 1)), int(data.get("NumberOfFrames", 1) or 1)
    stacked = samples == 1 and frames == reading.channels and frames not in (1, 3)
    _check(int(data.Rows), int(data.Columns), frames if stacked else samples, reading)
    if syntax.is_compressed:
        _check_decoder(pydicom.pixels.get_decoder, syntax)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        raise ValueError("its values are places in a palette: save it as grey or RGB")
    found = []
    for frame in range(frames if stacked else 1):
        array = pydicom.pixels.pixel_array(data, index=frame).reshape(int(data.Rows), int(data.Columns), samples)
        if "ModalityLUTSequence" in data:
            found.append((pydicom.pixels.apply_modality_lut(array, data), None))
        else:
            found.append(_rescaled(array, data, frame))
    arrays, ranges = zip(*found, strict=True)
    low_high = None if None in ranges else (min(low for low, _ in ranges), max(high for _, high in ranges))
    return Values(np.concatenate(arrays, -1), low_high, data.PhotometricInterpretation == "MONOCHROME1")


def _check_decoder(get_decoder, syntax):
    """Raises ValueError where a compressed DICOM file takes a package that is not there."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ValueError(f"its transfer syntax, {syntax.name}, is not one of images that pydicom reads") from None
    if not decoder.is_available:
        missing = "; ".join(" ".join(words.split()) for words in decoder.missing_dependencies)
        raise ValueError(f"its transfer syntax, {syntax.name}, takes another package beside pydicom: {missing}")


def _rescaled(array, data, frame):
    """(values of a frame by its RescaleSlope and RescaleIntercept, their range or None where it is not known)."""
    about = data
    for groups, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        held = data.get(groups) or ()
        if place < len(held) and "PixelValueTransformationSequence" in held[place]:
            about = held[place].PixelValueTransformationSequence[0]
    slope, intercept = float(about.get("RescaleSlope", 1)), float(about.get("RescaleIntercept", 0))
    signed = data.get("PixelRepresentation", 0) == 1
    low_high = None if signed else (0, 2 ** int(data.BitsStored) - 1)
    if (slope, intercept) == (1, 0):
        return array, low_high
    if not slope or not math.isfinite(slope * intercept):
        raise ValueError(
            f"its RescaleSlope is {slope:g} and its RescaleIntercept {intercept:g}, of which nothing comes"
        )
    low_high = None if signed else tuple(sorted(slope * end + intercept for end in low_high))
    return array * slope + intercept, low_high


# TIFF.


def _tiff(encoded, reading, problem=None):
    tifffile = _library("tifffile", "TIFF", problem)
    try:
        with tifffile.TiffFile(io.BytesIO(encoded)) as file:
            page = file.pages.first
            planes, depth, height, width, contiguous = map(int, page.shaped)
            pages = [page]
            if reading.channels not in (0, 1, 3) and planes * contiguous == 1:
                if len(file.pages) != reading.channels:
                    told = f"{len(file.pages)} pages of one band each, and it is read as {reading.channels} channels"
                    raise ValueError(f"it has {told}: set config.data.channels={len(file.pages)}")
                pages = [file.pages[k] for k in range(reading.channels)]
            _check(height, width, len(pages) if len(pages) > 1 else planes * contiguous, reading)
            if depth != 1 or any(one.shaped != page.shaped or one.dtype != page.dtype for one in pages):
                raise ValueError("its pages are of several sizes or types, and no channels of one image")
            arrays = [_tiff_page(one, encoded, reading) for one in pages]
            inverted, turn = page.photometric == 0, page.tags.get(274)
            array = np.concatenate(arrays, -1)
    except ValueError:
        raise
    except Exception as error:  # of tifffile's parser: whatever a damaged file makes it run into
        raise ValueError(f"{problem or 'it cannot be read'} ({' '.join(str(error).split())[:150]})") from None
    array = (
        turned(array, int(turn.value)) if turn is not None and turn.value in range(1, 9) else array
    )  # as Pillow does
    return Values(array, of_type(array.dtype), inverted)


def _tiff_page(page, encoded, reading):
    """Its values [height, width, bands]."""
    planes, _, height, width, contiguous = map(int, page.shaped)
    if page.dtype is None or page.photometric == 3:
        raise ValueError("its values are places in a palette, or of a type that is none of numbers")
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    if rows * columns > max(4 * reading.max_pixels, 2**20):
        raise ValueError(f"its tiles have {rows} x {columns} pixels, more than the image could")
    compression = int(page.compression)
    if compression in BY_IMAGECODECS:
        _library_of_codecs(BY_IMAGECODECS[compression])
    elif compression not in NATIVE:
        raise ValueError(
            f"its compression is TIFF's number {compression}, which is not read here: save it with Deflate"
        )
    elif compression != 1:
        _check_inflated(page, encoded, rows * columns * contiguous * page.dtype.itemsize)
    array = page.asarray(maxworkers=1).reshape(planes, height, width, contiguous)
    return array[0] if planes == 1 else np.moveaxis(array[..., 0], 0, -1)


def _library_of_codecs(compression):
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        raise ValueError(
            f"its compression, {compression}, takes imagecodecs: pip install imagecodecs, or save it with Deflate"
        ) from None


def _check_inflated(page, encoded, expected):
    """Raises ValueError where a compressed part is larger than it may be; tifffile would take it whole."""
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        inflater = zlib.decompressobj()
        if len(inflater.decompress(encoded[start : start + length], expected + 1)) > expected:
            raise ValueError("a part of it is larger than its header says")
