"""Files as sensors give them, for tests; tifffile and pydicom come as arguments, as tests go without them."""

import io


def tiff(tifffile, array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **({"planarconfig": "contig"} if array.shape[-1] == 6 else {}) | options)
    return stream.getvalue()


def dicom_file(pydicom, values, bits=12, **more):
    """A DICOM file of one image [h, w], or of frames or colours, as it comes from a machine."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    about = FileMetaDataset()
    about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    about.TransferSyntaxUID = more.pop("syntax", ExplicitVRLittleEndian)
    file = FileDataset(None, {}, file_meta=about, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID
    frames = more.get("NumberOfFrames", 0)
    file.Rows, file.Columns = values.shape[1:3] if frames else values.shape[:2]
    file.SamplesPerPixel = values.shape[2] if values.ndim == 3 and not frames else 1
    file.PhotometricInterpretation = "RGB" if file.SamplesPerPixel == 3 else "MONOCHROME2"
    if file.SamplesPerPixel == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated = 8 * values.itemsize
    file.BitsStored, file.HighBit = bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for name, value in more.items():
        setattr(file, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file, enforce_file_format=True)
    return stream.getvalue()
