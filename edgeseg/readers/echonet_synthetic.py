"""EchoNet-Synthetic: generated apical four chamber clips in EchoNet-Dynamic's layout, without tracings.

Its FileList.csv has 0 for the volumes: they are unknown, not zero. EF is what the generator was asked for.
H. Reynaud et al., MICCAI 2024.
"""

import logging
from functools import partial
from pathlib import Path

from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.echonet import read_case, read_list, split_of

LICENCE = "unknown (EchoNet-Synthetic, H. Reynaud et al., MICCAI 2024)"


def open_echonet_synthetic(root: Path, *, spec: str, split_file: Path | None = None) -> Dataset:
    """`echonet-synthetic:PATH`, PATH = the folder of FileList.csv and Videos/, or the one above its dynamic/.

    Cases have no labels. Raises as `open_echonet`.
    """
    folder = root / "dynamic" if not (root / "FileList.csv").exists() and (root / "dynamic").is_dir() else root
    listed, files, notes = read_list(folder)
    for note in notes:
        logging.getLogger(__name__).warning(note)
    split = split_of(listed, folder, split_file)
    refs = [CaseRef(v.name, v.name, split.get(v.name), None, None, None, partial(read_case, files[v.name], v, None))
            for v in listed if v.name in files]
    return Dataset("echonet-synthetic", spec, tuple(refs), None, LICENCE)
