"""Simplified and traditional characters."""

import sys

import pytest

from glmasr.errors import OptionError
from glmasr.transcription.chinese_script import converter


def test_texts_are_converted():
    pytest.importorskip("opencc")
    assert converter("simplified")("語音識別，three 個頭髮") == "语音识别，three 个头发"
    assert converter("traditional")("语音识别，头发和发展") == "語音識別，頭髮和發展"  # one character, two ways


def test_nothing_asked_nothing_changed():
    assert converter(None)("語音 ok 语音") == "語音 ok 语音"


@pytest.mark.parametrize("script", ["Simplified", "", 3, []])
def test_unknown_scripts(script):
    with pytest.raises(OptionError, match="expected 'simplified' or 'traditional'"):
        converter(script)


def test_without_the_package(monkeypatch):
    from glmasr.transcription import chinese_script

    chinese_script._open.cache_clear()
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(OptionError, match=r"needs the package OpenCC.*\[zh\]"):
        converter("simplified")
