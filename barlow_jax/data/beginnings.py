"""What a file that is no image, or none that is read here, seems to be."""

import re

# What files that are no image begin with, and what to call it.
BEGINNINGS = (
    (rb"\0{8}", "zero bytes"),
    (rb"version https://git-lfs", "a pointer of Git LFS (fetch the file with git lfs pull)"),
    (rb"\s*<(!doctype html|html|head|body|script)", "HTML, a web page"),
    (rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!--)", "XML or SVG"),
    (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive"),
    (rb"\x1f\x8b", "gzip"),
    (rb"....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", "HEIC"),
    (rb"....ftyp(avif|avis)", "AVIF"),
    (rb"....ftyp", "a video (MP4)"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\n|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"GIF8", "GIF"),
    (rb"BM", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"P[1-7]\s", "PPM"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\0\0[\x01\x02]\0", "an icon"),
    (rb".{128}DICM", "DICOM"),
    (rb"SIMPLE  =", "FITS"),
    (rb"\x93NUMPY", "an array of numpy"),
    (rb"\x89HDF", "HDF5"),
    (rb"[\t\n\r -~]{16}|[\t\n\r -~]*$", "text"),
)

READ_HERE = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM")


def begins_as(encoded):
    """What a file that is no image seems to be, for a person."""
    for pattern, name in BEGINNINGS:
        if re.match(pattern, encoded, re.DOTALL | re.IGNORECASE):
            return name
    return f"the bytes {encoded[:8].hex(' ')}"
