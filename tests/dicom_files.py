"""Real DICOM files of a volume, written with pydicom: classic series (a file a slice) and enhanced ones (one file)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

PERSON = "SECRETSKI^JANINA"
ID = "MRN-7391124"


@dataclass(frozen=True)
class Plane:
    """Where a stack lies: unit vectors along a row and down a column and the first pixel's centre (DICOM axes, mm);
    spacing of rows and columns; distance of slices along the normal (below 0: they are written from the far end)."""

    row: tuple[float, float, float] = (1, 0, 0)
    column: tuple[float, float, float] = (0, 1, 0)
    origin: tuple[float, float, float] = (-20, -30, 40)
    spacing: tuple[float, float] = (1.5, 1.5)
    gap: float = 8.0

    def position(self, k: float) -> np.ndarray:
        return np.asarray(self.origin) + k * self.gap * np.cross(self.row, self.column)

    @property
    def affine(self) -> np.ndarray:
        """[4, 4]: column, row, slice -> mm in NIfTI's axes (right, front, head)."""
        lps = np.eye(4)
        lps[:3, :3] = np.stack([np.multiply(self.row, self.spacing[1]), np.multiply(self.column, self.spacing[0]),
                                self.gap * np.cross(self.row, self.column)], axis=1)
        lps[:3, 3] = self.origin
        return np.diag([-1.0, -1, 1, 1]) @ lps


def oblique(**changes) -> Plane:
    """A plane across a heart: no axis of it is one of the patient."""
    turn = np.linalg.qr(np.array([[0.6, 0.5, -0.6], [0.3, -0.8, -0.5], [-0.7, 0.2, 0.6]]))[0]
    return Plane(row=tuple(turn[:, 0].round(8)), column=tuple(turn[:, 1].round(8)), **changes)


def base(plane: Plane, shape: tuple[int, int], series: str, number: int, storage: UID, syntax: UID) -> FileDataset:
    """What every image of a series says, with a person's name in every place that has one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = storage, syntax
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta, is_implicit_VR=syntax.is_implicit_VR,
                     is_little_endian=syntax.is_little_endian)
    ds.SOPClassUID, ds.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = f"{series}.1", series, number
    ds.PatientName, ds.PatientID, ds.OtherPatientNames, ds.Modality = PERSON, ID, PERSON, "MR"
    ds.PatientBirthDate, ds.ReferringPhysicianName, ds.StudyDescription = "19470311", PERSON, f"of {PERSON}"
    ds.Manufacturer = "SIEMENS"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    return ds


def slice_file(pixels: np.ndarray, plane: Plane, k: int, t: int, slices: int, *, series: str = "1.2.3.4",
               number: int = 4, phases: int = 1, syntax: UID = ExplicitVRLittleEndian) -> FileDataset:
    """A classic MR image [H, W]: slice `k` at phase `t`; numbers run slice by slice, as scanners count."""
    ds = base(plane, pixels.shape, series, number, MRImageStorage, syntax)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    ds.InstanceNumber, ds.CardiacNumberOfImages = k * phases + t + 1, phases
    ds.TriggerTime = str(round(33.4 * t + 0.7 * k, 1))  # the heart beats a little differently at every slice
    ds.TemporalPositionIdentifier, ds.AcquisitionTime = t + 1, f"10{k:02d}{t:02d}.500"
    ds.PixelSpacing = list(plane.spacing)
    ds.ImageOrientationPatient = [*plane.row, *plane.column]
    ds.ImagePositionPatient = [round(float(p), 6) for p in plane.position(k)]
    ds.SliceThickness, ds.SpacingBetweenSlices = 6.0, abs(plane.gap)
    order = "<u2" if syntax.is_little_endian else ">u2"
    ds.PixelData = pixels.astype(order).tobytes()
    return ds


def save(ds: FileDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, volumes: np.ndarray, plane: Plane | None = None, *, extension: str = "", change=None,
                 **about) -> list[Path]:
    """Whole numbers [T, N, H, W] as one file a slice and phase, in an order of names that means nothing.

    `change(ds, k, t)` may alter a file before it is written; False leaves it out. Returns the files, [T][N] in a row.
    """
    plane, files = plane or Plane(), []
    names = np.random.default_rng(7).permutation(volumes.shape[0] * volumes.shape[1])
    for t, volume in enumerate(volumes):
        for k, pixels in enumerate(volume):
            ds = slice_file(pixels, plane, k, t, len(volume), phases=len(volumes), **about)
            if change is not None and change(ds, k, t) is False:
                continue
            files.append(save(ds, folder / f"{'ab'[k % 2]}" / f"IM{names[t * len(volume) + k]:04d}{extension}"))
    return files


def write_enhanced(path: Path, volumes: np.ndarray, plane: Plane | None = None, change=None) -> Path:
    """Whole numbers [T, N, H, W] as one Enhanced MR file, its frames in a shuffled order."""
    plane, frames = plane or Plane(), []
    ds = base(plane, volumes.shape[2:], "1.2.3.5", 5, EnhancedMRImageStorage, ExplicitVRLittleEndian)
    order = np.random.default_rng(3).permutation(volumes.shape[0] * volumes.shape[1])
    for t, k in (divmod(int(i), volumes.shape[1]) for i in order):
        frame = Dataset()
        frame.PlanePositionSequence = [item(ImagePositionPatient=[round(float(p), 6) for p in plane.position(k)])]
        frame.FrameContentSequence = [item(TemporalPositionIndex=t + 1, InStackPositionNumber=k + 1)]
        frame.CardiacSynchronizationSequence = [item(NominalCardiacTriggerDelayTime=33.4 * t)]
        frame.PixelValueTransformationSequence = [item(RescaleIntercept=10 * k, RescaleSlope=1, RescaleType="US")]
        frames.append(frame)
    shared = Dataset()
    shared.PixelMeasuresSequence = [item(PixelSpacing=list(plane.spacing), SliceThickness=6)]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=[*plane.row, *plane.column])]
    shared.MRImageFrameTypeSequence = [item(FrameType=["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"])]
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames, ds.InstanceNumber = len(frames), 1
    stored = volumes - 10 * np.arange(volumes.shape[1])[:, None, None]  # what the rescale intercepts add again
    ds.PixelData = stored.reshape(-1, *volumes.shape[2:])[order].astype("<i2").tobytes()
    ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 1, 16, 15
    if change is not None:
        change(ds)
    return save(ds, path)


def item(**elements) -> Dataset:
    ds = Dataset()
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds
