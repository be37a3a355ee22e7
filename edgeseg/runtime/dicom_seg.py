"""DICOM segmentations (SEG) of what `dicom_series` finds, written with highdicom.

A stack gets one SEG for each phase, all in one new series (instance number = phase): viewers and converters read a SEG
as one volume, and two frames of one segment at one place would be one too many for them. A loop, which lies nowhere,
gets one SEG whose second dimension is time. In both every frame names the image (and in a file with several, the frame)
that it was made from.

UIDs are made from those of the images, the bundle and its settings: the same images give the same UIDs again, so that
what is sent twice after a crash is one object.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeseg import __version__
from edgeseg.errors import EdgesegError, need
from edgeseg.files import new_file
from edgeseg.labels import LabelScheme
from edgeseg.readers.dicom_image import REFERENCE, Instance, short_hash
from edgeseg.runtime.dicom_codes import ANATOMY, description, structure
from edgeseg.runtime.dicom_series import Plane
from edgeseg.runtime.segmenter import Segmenter

Kind = Literal["BINARY", "LABELMAP"]

SEG_SERIES = 1000
"""Segmentations of series 3 are series 1003."""
FRAME_ORIGIN = "1.2.826.0.1.3680043.8.498.1."
"""Stands for the images while highdicom works; replaced before anything is written."""
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
           "StudyTime", "ReferringPhysicianName")
"""Type 2 elements (they may be empty, but have to be there) that a result takes over from its images."""
NOT_OF_A_PLANE = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
              "DimensionIndexSequence", "FrameIncrementPointer",
              "SpacingBetweenSlices")  # this one follows from the places
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"


@dataclass(frozen=True)
class Maker:
    """What a result says of what made it. `serial`: first digits of the hash of the bundle's list of hashes."""

    bundle: str
    serial: str
    scheme: LabelScheme
    settings: dict[str, str]
    kind: Kind = "BINARY"

    @classmethod
    def of(cls, segmenter: Segmenter, kind: Kind = "BINARY") -> "Maker":
        sums = (segmenter.bundle.path / "SHA256SUMS").read_bytes()
        return cls(segmenter.bundle.manifest.name, short_hash(sums, 16), segmenter.scheme,
                   {"backend": segmenter.backend, "precision": segmenter.precision}, kind)

    def uid(self, *sources: str) -> str:
        """The same for the same sources, bundle and settings."""
        return str(need("pydicom", "dicom").uid.generate_uid(
            entropy_srcs=[__version__, self.serial, self.kind, repr(sorted(self.settings.items())), *sources]))


class Sources:
    """The headers of a series' files: that of the first one whole (`head`), of each what refers to it.

    `stand_ins`: of planes, see there; the same ones serve for every phase.
    """

    def __init__(self, first: Path) -> None:
        self._known: dict[Path, Instance] = {}
        self.stand_ins: dict[tuple[Any, ...], list[Any]] = {}
        self.head = self._read(first)
        for name in PATIENT:
            if name not in self.head:
                setattr(self.head, name, "")
        if "SeriesInstanceUID" not in self.head or "StudyInstanceUID" not in self.head:
            raise EdgesegError(f"{first}: says no series and study (SeriesInstanceUID, StudyInstanceUID): a result "
                               "could not be filed: repair it")

    def of(self, plane: Plane) -> Instance:
        if plane.instance:
            return plane.instance
        if plane.path not in self._known:
            self._known[plane.path] = Instance.of(self._read(plane.path, list(REFERENCE)))
        return self._known[plane.path]

    @staticmethod
    def _read(path: Path, tags: list[str] | None = None) -> Any:
        pydicom = need("pydicom", "dicom")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            try:
                return pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
            except OSError:
                raise
            except Exception:
                raise EdgesegError(f"{path}: is truncated or damaged: copy it again") from None


def make_seg(maker: Maker, sources: Sources, planes: Sequence[Plane], labels: np.ndarray, moment: int = 0,
             moments: int = 1) -> Any:
    """The SEG (a pydicom data set) of label values uint8 [N, H, W] on these planes of one moment.

    Raises:
        EdgesegError: no highdicom; planes of two frames of reference; headers that no SEG can be made of.
    """
    highdicom = need("highdicom", "dicom")
    logging.getLogger("highdicom").setLevel(logging.ERROR)  # that a SEG without any structure has empty frames
    references = {f"{FRAME_ORIGIN}{k}": (sources.of(p), p.frame) for k, p in enumerate(planes)}
    origins = {i.frame_of_reference for i, _ in references.values()}
    if len(origins) > 1:
        raise EdgesegError(f"{planes[0].path}: is of a stack with several frames of reference: these are no volume")
    instances = sorted({i.uid for i, _ in references.values()})
    head = sources.head
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            made = highdicom.seg.Segmentation(
                source_images=stand_ins(sources, planes, min(origins)), pixel_array=classes_of(maker.scheme, labels),
                segmentation_type=maker.kind, segment_descriptions=segments(maker),
                series_instance_uid=maker.uid("SEG series", str(head.SeriesInstanceUID)),
                series_number=SEG_SERIES + int(head.get("SeriesNumber") or 0),
                sop_instance_uid=maker.uid("SEG", str(head.SeriesInstanceUID), str(moment), *instances),
                instance_number=moment + 1, manufacturer="edgeseg", manufacturer_model_name=maker.bundle[:64],
                software_versions=__version__, device_serial_number=maker.serial, content_label="EDGESEG",
                content_description=f"phase {moment + 1} of {moments}" if moments > 1 else None,
                series_description=f"edgeseg {maker.bundle}"[:64])
            if planes[0].position is None:
                leave_space(made)
            refer(made, references, sources)
        except EdgesegError:
            raise
        except Exception as error:  # a header that highdicom cannot work with; its message would quote values
            raise EdgesegError(f"{planes[0].path}: its header does not do for a segmentation "
                               f"({type(error).__name__}): repair the series") from None
    return made


def stand_ins(sources: Sources, planes: Sequence[Plane], frame_of_reference: str) -> list[Any]:
    """A classic MR image header for each plane, number k with the UID FRAME_ORIGIN + k: highdicom would take files with
    several frames only whole."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    key = (frame_of_reference, *((p.position, p.row, p.column, p.spacing, p.thickness) for p in planes))
    if key in sources.stand_ins:
        return sources.stand_ins[key]
    head, found = sources.head, []
    for k, plane in enumerate(planes):
        data = deepcopy(head) if k == 0 else Dataset()
        for name in NOT_OF_A_PLANE:
            if name in data:
                delattr(data, name)
        data.StudyInstanceUID, data.SeriesInstanceUID = head.StudyInstanceUID, head.SeriesInstanceUID
        data.SOPClassUID, data.SOPInstanceUID = MR_IMAGE, f"{FRAME_ORIGIN}{k}"
        data.Rows, data.Columns = head.Rows, head.Columns
        # images without one still lie beside each other, which is what it stands for
        data.FrameOfReferenceUID = frame_of_reference or generate_uid(
            entropy_srcs=["frame of reference", str(head.SeriesInstanceUID)])
        data.ImagePositionPatient = decimals(plane.position or (0, 0, -k))  # highdicom counts from the head down
        data.ImageOrientationPatient = decimals((*planes[0].row, *planes[0].column))
        data.PixelSpacing = decimals(planes[0].spacing)
        data.SliceThickness = data.get("SliceThickness") or plane.thickness
        found.append(data)
    sources.stand_ins = {key: found}  # the last are enough: phases have the same planes
    return found


def decimals(numbers: Sequence[float]) -> list[str]:
    """As decimal strings, which have room for 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(n)) for n in numbers]


def classes_of(scheme: LabelScheme, labels: np.ndarray) -> np.ndarray:
    """Label values -> class indices, which are the segment numbers."""
    table = np.zeros(256, np.uint8)
    table[list(scheme.values)] = np.arange(len(scheme.values))
    return table[labels]


def segments(maker: Maker) -> list[Any]:
    """Segment k is the k-th label of the bundle, whether the images show it or not."""
    import highdicom
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        maker.bundle[:64], codes.DCM.ArtificialIntelligence, maker.serial, source="edgeseg", parameters=maker.settings)
    found = []
    for k, (name, value) in enumerate(zip(maker.scheme.names, maker.scheme.values, strict=True)):
        if k:
            segment = highdicom.seg.SegmentDescription(
                k, name[:64], CodedConcept(*ANATOMY), CodedConcept(*structure(name, value)), "AUTOMATIC", algorithm)
            if text := description(name):
                segment.SegmentDescription = text
            found.append(segment)
    return found


def refer(made: Any, references: dict[str, tuple[Instance, int]], sources: Sources) -> None:
    """Put the images, and frames where a file has several, in the place of what stood for them."""
    several = "NumberOfFrames" in sources.head

    def replace(item: Any) -> None:
        if (uid := str(item.ReferencedSOPInstanceUID)) not in references:
            return  # segments of one plane share this item
        instance, frame = references[uid]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.storage, instance.uid
        if several:
            item.ReferencedFrameNumber = frame + 1

    for group in made.PerFrameFunctionalGroupsSequence:
        for item in group.DerivationImageSequence[0].SourceImageSequence:
            replace(item)
    once = {}
    for item in made.SourceImageSequence:
        instance, _ = references[str(item.ReferencedSOPInstanceUID)]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.storage, instance.uid
        once[instance.uid] = item
    made.SourceImageSequence = list(once.values())
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = deepcopy(list(once.values()))


def leave_space(made: Any) -> None:
    """Turn the made-up places of a loop's frames into what they are: moments of time."""
    from pydicom.tag import Tag

    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionOrganizationType"):
        if name in made:
            delattr(made, name)
    shared = made.SharedFunctionalGroupsSequence[0]
    del shared.PlaneOrientationSequence
    measures = shared.PixelMeasuresSequence[0]
    if "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    measures.SliceThickness = None  # there, but empty: readers ask for the element
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
        frame = int(str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID).rpartition(
            ".")[2])
        content = group.FrameContentSequence[0]
        content.TemporalPositionIndex = frame + 1
        content.DimensionIndexValues = [*list(np.atleast_1d(content.DimensionIndexValues))[:-1], frame + 1]
    dimension = made.DimensionIndexSequence[-1]
    dimension.DimensionIndexPointer = Tag("TemporalPositionIndex")
    dimension.FunctionalGroupPointer = Tag("FrameContentSequence")
    dimension.DimensionDescriptionLabel = "Time"


def save(made: Any, path: Path) -> Path:
    """Write a data set beside `path`, let the disk have it, then rename."""
    with new_file(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with part.open("wb") as file:
            made.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
    return path
