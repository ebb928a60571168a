"""Two sets as sensors give them, made of ordinary photographs: grey DICOM files of 12 bits, and TIFFs of six bands.

    python benchmarks/sensor_sets.py --images=FOLDER --out=OUT

FOLDER has train/ and val/ with a folder for each class; OUT gets dicom/ and bands/ with the same. The photographs are
made linear in light and averaged to `--side` pixels, so that their values lie between those of 8 bits. DICOM: luminance
in 12 bits of 16, every other file with white as the lowest value (MONOCHROME1). TIFF: red, green, blue, what green has
beside red (as a vegetation index has it), red blurred (as a band of a coarser sensor) and blue moved by a pixel, in 16
bits, of which each band uses another range. Needs the extra `sensors`.
"""

import argparse
import io
import pathlib

import numpy as np
from PIL import Image, ImageFilter

BANDS = (
    (200, 9000),
    (150, 7000),
    (100, 5000),
    (0, 12000),
    (300, 6000),
    (50, 4000),
)  # range of each, in its sensor's units


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--each", type=int, default=60, help="of the training images of a class; a quarter to judge by")
    wanted = parser.parse_args()
    count = 0
    for split, most in (("train", wanted.each), ("val", max(1, wanted.each // 4))):
        for folder in sorted(path for path in (wanted.images / split).iterdir() if path.is_dir()):
            for file in sorted(folder.iterdir())[:most]:
                light, count = linear(file, wanted.side), count + 1
                place = pathlib.Path(split) / folder.name / file.stem
                write(wanted.out / "dicom" / f"{place}.dcm", dicom(light, white_is_low=count % 2 == 0))
                write(wanted.out / "bands" / f"{place}.tif", bands(light))
    print(f"{count} images in each of {wanted.out / 'dicom'} and {wanted.out / 'bands'}")


def linear(file, side):
    """A photograph linear in light, float64 [side, side, 3] from 0 to 1, squashed to a square by averaging."""
    levels = np.asarray(Image.open(file).convert("RGB")) / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    planes = [Image.fromarray(light[..., c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(one.resize((side, side), Image.Resampling.BOX)) for one in planes], -1).astype(float)


def dicom(light, white_is_low):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    values = np.rint(4095 * light @ (0.2126, 0.7152, 0.0722)).astype(np.uint16)
    values = 4095 - values if white_is_low else values
    about = FileMetaDataset()
    about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    about.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=about, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME1" if white_is_low else "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = values.tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file, enforce_file_format=True)
    return stream.getvalue()


def bands(light):
    import tifffile

    red, green, blue = np.moveaxis(light, -1, 0)
    blurred = Image.fromarray(np.rint(255 * red).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    beside = (green - red) / (green + red + 0.05) / 2 + 0.5
    shares = (red, green, blue, beside, np.asarray(blurred) / 255, np.roll(blue, 1, 1))
    values = [low + (high - low) * np.clip(share, 0, 1) for share, (low, high) in zip(shares, BANDS, strict=True)]
    stream = io.BytesIO()
    options = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib", "predictor": 2}
    tifffile.imwrite(stream, np.rint(np.stack(values, -1)).astype(np.uint16), **options)
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    main()
