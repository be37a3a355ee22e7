"""DICOM structured report of measured values: a Comprehensive SR of TID 1500 (Measurement Report), by highdicom."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeseg import __version__
from edgeseg.errors import EdgesegError, need
from edgeseg.runtime.dicom_codes import UNITS, Code, structure
from edgeseg.runtime.dicom_seg import Maker, Sources

REPORT_SERIES = 2000
"""Reports on series 3 are series 2003."""
PROCEDURES: dict[str, Code] = {"MR": ("25056-3", "LN", "MRI unspecified body region"),
                               "CT": ("25045-6", "LN", "CT unspecified body region")}
OTHER_PROCEDURE: Code = ("16310003", "SCT", "Diagnostic ultrasonography")


@dataclass(frozen=True)
class Measured:
    """A value of a structure: what it is, a number, "ml", "g" or "%", and a coded method where there are several."""

    name: Code
    value: float
    unit: str
    method: Code | None = None


def make_report(maker: Maker, sources: Sources, found: Mapping[str, Sequence[Measured]], segs: Sequence[Any]) -> Any:
    """The report (a pydicom data set): for each label of `found` a group of its values, with the SEGs as evidence.

    Raises:
        EdgesegError: no highdicom; headers that no report can be made of.
    """
    highdicom = need("highdicom", "dicom")
    head = sources.head
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values
        try:
            return highdicom.sr.ComprehensiveSR(
                evidence=[head, *segs], content=content(maker, str(head.get("Modality") or ""), found)[0],
                series_instance_uid=maker.uid("SR series", str(head.SeriesInstanceUID)),
                series_number=REPORT_SERIES + int(head.get("SeriesNumber") or 0),
                sop_instance_uid=maker.uid("SR", *(str(s.SOPInstanceUID) for s in segs)), instance_number=1,
                manufacturer="edgeseg", manufacturer_model_name=maker.bundle[:64], software_versions=__version__,
                device_serial_number=maker.serial, series_description=f"edgeseg {maker.bundle} report"[:64])
        except Exception as error:  # a header that highdicom cannot work with; its message would quote values
            raise EdgesegError(f"the header of a series does not do for a report ({type(error).__name__}): repair "
                               "it") from None


def content(maker: Maker, modality: str, found: Mapping[str, Sequence[Measured]]) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    def coded(code: Code) -> Any:
        return sr.CodedConcept(*code)

    device = sr.ObserverContext(codes.DCM.Device, sr.DeviceObserverIdentifyingAttributes(
        uid=maker.uid("device"), name="edgeseg", manufacturer_name="edgeseg", model_name=maker.bundle[:64],
        serial_number=maker.serial))
    groups = []
    for label, values in found.items():
        code = coded(structure(label, maker.scheme.values[maker.scheme.names.index(label)]))
        groups.append(sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid=maker.uid("group", label), identifier=label),
            finding_type=code, finding_sites=[sr.FindingSite(code)],
            algorithm_id=sr.AlgorithmIdentification(maker.bundle[:64], maker.serial),
            measurements=[sr.Measurement(coded(v.name), float(f"{v.value:.6g}"), coded(UNITS[v.unit]),
                                         method=coded(v.method) if v.method else None) for v in values]))
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=coded(PROCEDURES.get(modality, OTHER_PROCEDURE)), imaging_measurements=groups)
