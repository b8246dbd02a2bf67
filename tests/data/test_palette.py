"""The default colours."""

from __future__ import annotations

from seg_ext.data.palette import palette


def test_first_colours_are_those_of_pascal_voc() -> None:
    voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert palette(256)[:7] == voc
    assert palette(256)[20] == (0, 64, 128)
    assert palette(256)[255] == (224, 224, 192)


def test_colours_are_distinct_and_do_not_depend_on_the_number_of_classes() -> None:
    assert len(set(palette(1000))) == 1000
    assert palette(1000)[:19] == palette(19)
