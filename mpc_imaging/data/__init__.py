"""Images and labels: whose rows are whose, DICOM and MedMNIST readers, phantoms.

A party calls `load_party` for the images it owns; a model owner that trains in plaintext first, `load_whole_split`.
"""

from mpc_imaging.data.dicom import ImageError, Reason, read_dicom
from mpc_imaging.data.loading import Split, load_party, load_whole_split
from mpc_imaging.data.manifest import read_manifest
from mpc_imaging.data.partition import divide

__all__ = ["ImageError", "Reason", "Split", "divide", "load_party", "load_whole_split", "read_dicom", "read_manifest"]
