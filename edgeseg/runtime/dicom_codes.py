"""Coded terms, as DICOM segmentations and reports name structures: by label name, whatever bundle it comes from.

A label that the table does not know gets a code of the private scheme 99EDGESEG (LABEL-value, with its name in the
bundle as the meaning): what reads the object then shows the name, and takes it for nothing that it is not.
"""

from edgeseg.labels import canonical_name

Code = tuple[str, str, str]
"""Value, coding scheme and meaning."""

ANATOMY: Code = ("91723000", "SCT", "Anatomical Structure")
"""The category of every segment (CID 7150)."""
PRIVATE = "99EDGESEG"

# SNOMED CT. Of the ventricles' cavities DICOM's context groups know the ventricle only; that the muscle is a segment
# of its own, and not part of it, is what SegmentDescription says.
STRUCTURES: dict[str, Code] = {
    "lv": ("87878005", "SCT", "Left ventricle"),
    "rv": ("53085002", "SCT", "Right ventricle"),
    "myo": ("49848007", "SCT", "Left Ventricle Myocardium"),
    "la": ("82471001", "SCT", "Left atrium"),
    "ra": ("73829009", "SCT", "Right atrium"),
    "heart": ("80891009", "SCT", "Heart"),
    "aorta": ("15825003", "SCT", "Aorta"),
    "spleen": ("78961009", "SCT", "Spleen"),
}
MEASURES: dict[str, Code] = {  # LOINC, by label and measure; CID 3467, 3468, 3469, 12200, 12203, 3833
    "lv edv": ("8821-1", "LN", "Left Ventricular ED Volume"),
    "lv esv": ("8823-7", "LN", "Left Ventricular ES Volume"),
    "lv ef mr": ("8811-2", "LN", "Left ventricular ejection fraction by MR"),
    "lv ef us": ("18043-0", "LN", "Left Ventricular Ejection Fraction by US"),
    "rv edv": ("8822-9", "LN", "Right Ventricular ED Volume"),
    "rv esv": ("8824-5", "LN", "Right Ventricular ES Volume"),
    "rv ef mr": ("8818-7", "LN", "Right ventricular ejection fraction by MR"),
    "myo mass": ("18087-7", "LN", "Left Ventricle Mass"),
}
EJECTION_FRACTION: Code = ("70822001", "SCT", "Cardiac ejection fraction")
STROKE_VOLUME: Code = ("90096001", "SCT", "Stroke Volume")
UNITS: dict[str, Code] = {"ml": ("ml", "UCUM", "milliliter"), "g": ("g", "UCUM", "gram"),
                          "%": ("%", "UCUM", "percent")}
AREA_LENGTH: Code = ("125205", "DCM", "Area-Length Single Plane")
OTHER_NAMES = {"left atrium": "la", "right atrium": "ra"}
DESCRIPTIONS = {"lv": "cavity (blood pool) without the myocardium", "rv": "cavity (blood pool)"}


def structure(name: str, value: int) -> Code:
    """The code of a label of this name and value in its bundle."""
    return STRUCTURES.get(key(name)) or (f"LABEL-{value}", PRIVATE, name[:64])


def description(name: str) -> str | None:
    """What there is to say of a segment beyond its code."""
    return DESCRIPTIONS.get(key(name))


def key(name: str) -> str:
    plain = canonical_name(name).lower()
    return OTHER_NAMES.get(plain, plain)
