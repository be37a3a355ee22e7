"""Ultrasound multi-frame files (loops), written with pydicom."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid


def loop_file(pixels: np.ndarray, spacing: tuple[float, float] | None = (1.5, 1.5), **elements) -> Dataset:
    """uint8 [T, H, W] -> a data set with file meta; `spacing` (row, column) in mm is that of its region."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundMultiFrameImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber = "1.2.8.1", "1.2.8", 8
    data.PatientID, data.PatientName, data.Modality, data.FrameTime = "MRN-7391124", "SECRETSKI^JANINA", "US", "20"
    data.NumberOfFrames, data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    if spacing:
        region = Dataset()
        region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, 3, 3
        region.PhysicalDeltaY, region.PhysicalDeltaX = spacing[0] / 10, spacing[1] / 10
        data.SequenceOfUltrasoundRegions = [region]
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB"
    return data


def write_loop(path: Path, pixels: np.ndarray, **about) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    loop_file(pixels, **about).save_as(path, enforce_file_format=True)
    return path
