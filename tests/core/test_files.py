"""Files appear whole or not at all."""

import os

import pytest

from ase_biasgrad.files import refuse_existing, whole_file


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with whole_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "x.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="nowhere does not exist"),
        whole_file(tmp_path / "nowhere" / "x.txt"),
    ):
        pytest.fail("the block must not run")


def test_existing_files_need_overwrite_and_inputs_are_never_outputs(tmp_path):
    output, source = tmp_path / "out.txt", tmp_path / "in.txt"
    refuse_existing(output, overwrite=False, inputs=[source])
    output.write_text("x")
    with pytest.raises(FileExistsError, match=r"out\.txt: exists; say --overwrite"):
        refuse_existing(output, overwrite=False)
    refuse_existing(output, overwrite=True, inputs=[source])
    (tmp_path / "hard.txt").hardlink_to(output)
    (tmp_path / "soft.txt").symlink_to(output)
    for same in ("hard.txt", "soft.txt", "out.txt"):
        with pytest.raises(ValueError, match=r"out\.txt: is what is read"):
            refuse_existing(output, overwrite=True, inputs=[source, tmp_path / same])
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError):
        refuse_existing(tmp_path / "dangling.txt", overwrite=False)
