"""Images and labels: whose rows are whose, DICOM and MedMNIST readers, phantoms.

A party calls `load_party` for the images it owns; a model owner that trains in plaintext first, `load_whole_split`.
"""

from mpc_imaging.data.dicom import ImageError, Reason, directory_files, open_picture, read_dicom
from mpc_imaging.data.loading import load_party, load_whole_split
from mpc_imaging.data.manifest import read_manifest
from mpc_imaging.data.partition import divide
from mpc_imaging.data.series import read_volumes
from mpc_imaging.data.splits import Split
from mpc_imaging.data.windows import Window

__all__ = [
    "ImageError",
    "Reason",
    "Split",
    "Window",
    "directory_files",
    "divide",
    "load_party",
    "load_whole_split",
    "open_picture",
    "read_dicom",
    "read_manifest",
    "read_volumes",
]
