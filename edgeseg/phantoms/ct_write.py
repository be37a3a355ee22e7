"""Write labelled CT in the layout of the Medical Segmentation Decathlon, as its files lie: RAS."""

from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import labels_in, prepare, write_json, write_split
from edgeseg.readers.dataset import Dataset
from edgeseg.readers.nifti_write import write_volume


def write_msd(data: Dataset, out: Path, modality: str = "CT") -> Path:
    """out/{dataset.json, imagesTr, labelsTr, imagesTs, split.json}; returns `out` (its name should be TaskNN_Name).

    Label values are the class indices of the data set's scheme. Cases are expected in the DICOM view, as
    phantom:ct and msd: give them; those without labels go to imagesTs.

    Raises:
        EdgesegError: `out` is not empty, no scheme, a patient of several cases, or a case of several channels.
    """
    prepare(out)
    if data.scheme is None:
        raise EdgesegError(f"{data.spec}: has no labels, so there are no training data to write")
    scheme = LabelScheme(data.scheme.names)
    training, test, names = [], [], set()
    for case in data:
        if case.frames.shape[1] != 1:
            raise EdgesegError(f"{case.id}: has {case.frames.shape[1]} channels, this layout has one here")
        name = f"{case.patient}.nii.gz"
        if name in names:
            raise EdgesegError(f"{data.spec}: patient {case.patient} has several cases, this layout has one file each")
        names.add(name)
        folder = "imagesTr" if case.labels is not None else "imagesTs"
        # rows run to the back and columns to the left in a DICOM view, to the front and the right in these files
        write_volume(out / folder / name, np.flip(case.frames[:, 0], (1, 2)), case.spacing, case.slice_spacing)
        if case.labels is None:
            test.append(f"./imagesTs/{name}")
            continue
        write_volume(out / "labelsTr" / name, np.flip(labels_in(scheme, case), (1, 2)), case.spacing,
                     case.slice_spacing)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    write_json(out / "dataset.json", {
        "name": data.name, "licence": data.licence, "tensorImageSize": "3D", "modality": {"0": modality},
        "labels": {str(v): n for n, v in zip(scheme.names, scheme.values, strict=True)},
        "numTraining": len(training), "numTest": len(test), "training": training, "test": test})
    write_split(data, out, {})
    return out
