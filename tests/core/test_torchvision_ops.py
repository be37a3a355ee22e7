"""torchvision beside a CPU-only torch."""

import subprocess
import sys


def test_torchvision_imports_and_nnunet_finds_its_trainer_variants():
    code = """
from edgeseg.torchvision_ops import import_torchvision
import_torchvision()
import_torchvision()
import torchvision.models
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
print(find("nnUNetTrainer_20epochs").__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "nnUNetTrainer_20epochs", done.stderr
