"""``import seg_ext`` is instant, and touching a name registers everything once."""

import subprocess
import sys

import pytest

import seg_ext
from seg_ext.errors import UserError


def test_importing_loads_nothing_heavy_until_a_name_is_touched() -> None:
    code = """
import sys, seg_ext
assert not {"torch", "detectron2", "numpy"} & set(sys.modules)
seg_ext.get_cfg
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, META_ARCH_REGISTRY
from detectron2.data import DatasetCatalog
assert "SegHead" in SEM_SEG_HEADS_REGISTRY and "PanopticSegmentor" in META_ARCH_REGISTRY
assert {"nuclei_train", "camvid_test"} <= set(DatasetCatalog.list())
seg_ext.register()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in seg_ext.__all__ if name != "register"])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(seg_ext, name) is not None and name in dir(seg_ext)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        seg_ext.nothing  # noqa: B018


def test_a_missing_detectron2_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seg_ext, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="run `seg-ext install-detectron2`"):
        seg_ext.register()
