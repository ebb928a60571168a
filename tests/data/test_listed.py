"""Lists of image files: their order, where relative paths begin, and the sentence where one is wrong."""

import pytest
from source_kinds import folder, one_sentence

from barlow_jax.data.listed import ListedFiles
from barlow_jax.errors import UserError


def test_a_list_is_read_in_its_order_from_its_own_folder(tmp_path):
    folder(tmp_path, "lists/near.jpg", "far/away.png")
    (tmp_path / "lists" / "list.txt").write_text(f"{tmp_path}/far/away.png\n\nnear.jpg\n{tmp_path}/far/away.png\n")
    source = ListedFiles(tmp_path / "lists" / "list.txt", channels=1)
    away, near = str(tmp_path / "far" / "away.png"), str(tmp_path / "lists" / "near.jpg")
    assert source.paths == [away, near, away] and source.channels == 1 and source.labels is source.num_classes is None
    assert source.name == str(tmp_path / "lists" / "list.txt") and source.take([1]).paths == [near]


def test_a_list_that_begins_with_a_byte_order_mark(tmp_path):
    """As Windows' editors write them."""
    (tmp_path / "a.jpg").touch()
    (tmp_path / "list.txt").write_bytes("\ufeffa.jpg\r\n".encode())
    assert list(ListedFiles(tmp_path / "list.txt").paths) == [str(tmp_path / "a.jpg")]


def test_unusable_lists(tmp_path):
    folder(tmp_path, "there.jpg")
    (tmp_path / "list.txt").write_text("there.jpg\nabsent.jpg\ngone.jpg\n")
    with pytest.raises(UserError, match="absent.jpg, which .*list.txt names, does not exist, nor do 1 other of its 3"):
        ListedFiles(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError) as caught:
        ListedFiles(tmp_path / "list.txt")
    assert "list.txt is empty" in one_sentence(caught)
