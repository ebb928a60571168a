"""VOC2007: the lists, and the sentence where one is wrong."""

import pathlib

import numpy as np
import pytest
import voc_set

from barlow_jax.data.voc import VOC
from barlow_jax.errors import UserError


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return voc_set.write(tmp_path_factory.mktemp("voc") / "VOC2007")


def test_the_lists_are_read_as_they_are(voc):
    source = VOC(voc, "test")
    assert source.name == "VOC2007:test" and source.target_names == voc_set.CLASSES and len(source) == 23
    assert source.labels is None and source.num_classes is None
    rows = [int(pathlib.Path(path).stem) for path in source.paths]
    assert rows == list(range(31, 54))
    assert source.targets[rows.index(35)].tolist() == [0, -1, 1]  # n = 35: class 2, difficult for class 0
    assert source.targets[rows.index(36)].tolist() == [1, -1, -1]
    assert source.take(np.array([4])).targets.tolist() == [[0, -1, 1]]


def test_what_is_wrong_with_the_lists_is_one_sentence(voc, tmp_path):
    with pytest.raises(UserError, match="no folder ImageSets/Main: point config.data.path"):
        VOC(tmp_path, "test")
    with pytest.raises(UserError, match="no list of a class, such as dog_val.txt"):
        VOC(voc, "val")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "cow_test.txt").write_text("000031 1\n000032 2\n")
    with pytest.raises(UserError, match="Line 2 of .*cow_test.txt is '000032 2'"):
        VOC(tmp_path, "test")
    (lists / "cow_test.txt").write_text("000031 1\n000032 -1\n")
    with pytest.raises(UserError, match="2 of the 2 images of .* are missing, .*000031.jpg for one"):
        VOC(tmp_path, "test")
    (lists / "cow_test.txt").write_text("")
    with pytest.raises(UserError, match="cow_test.txt is empty"):
        VOC(tmp_path, "test")
