from __future__ import annotations

import shutil
from pathlib import Path

from pydicom.data import get_testdata_file

from mpc_imaging.data.drafting import LINKED_FOLDER, candidates, inspect


def test_links_to_folders_are_counted_not_passed_by(tmp_path: Path) -> None:
    """They are not followed: a hospital whose series are all links has to be told why nothing is listed."""
    (tmp_path / "export").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "elsewhere")
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "export" / "a.dcm")
    (tmp_path / "export" / "s1").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "export" / "loop").symlink_to(tmp_path / "export", target_is_directory=True)
    files = candidates(tmp_path / "export")
    assert [file.name for file in files] == ["a.dcm", "loop", "s1"]
    contents = inspect(tmp_path / "export", files, [])
    assert [image.file for image in contents.images] == ["a.dcm"] and contents.left_out == {LINKED_FOLDER: 2}
