"""The demos' recipes, a hundredth of each: what they need comes out, and loads."""

import importlib.util
import os
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.programs import needs

import glmasr

SPEAKERS = {
    "digits/cmn_chen_wang/{digit}.wav": ("cmn", 220),
    "digits/cmn_yue_tan/{digit}.wav": ("cmn", 110),
    "digits/yue_kt/{digit}.wav": ("yue", 220),
    "digits/yue_jyutping_org/{digit}.wav": ("yue", 110),
    "fsdd/{digit}_george_0.wav": ("en-us", 110),
    "fsdd/{digit}_jackson_0.wav": ("en-gb", 140),
    "fsdd/{digit}_nicolas_0.wav": ("en-029", 220),
    "fsdd/{digit}_lucas_0.wav": ("en-us-nyc", 180),
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder as the recipe reads it, of digits that espeak-ng says in eight voices."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, (name, (voice, pitch)) in enumerate(SPEAKERS.items()):
        for digit in range(10):
            path = folder / name.format(digit=digit)
            path.parent.mkdir(parents=True, exist_ok=True)
            command = [
                "espeak-ng",
                "-v",
                f"{voice}+m{number % 4 + 1}",
                "-p",
                str(pitch // 3),
                "-w",
                str(path),
                str(digit),
            ]
            subprocess.run(command, check=True)
    return folder


def festival_voices() -> bool:
    """Whether festival has the three voices of the recipe; they are packages of their own."""
    asked = subprocess.run(["festival", "-b", "(print (voice.list))"], capture_output=True, text=True)
    return all(voice in asked.stdout for voice in ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts"))


@pytest.mark.slow
@needs("espeak-ng", "flite", "festival")
@pytest.mark.skipif(not importlib.util.find_spec("pyworld"), reason="needs pyworld, of the extra [train]")
def test_a_hundredth_of_both_recipes_runs_through(recordings, tmp_path):
    """Each model of the recipes is there at the end, reads a recording, and its table is written."""
    if not festival_voices():
        pytest.skip("needs festival's voices: apt-get install festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    settings = {**os.environ, **threads, "PATH": path, "PART": "100"}
    for name, arguments in {"demo": [recordings, tmp_path], "article": [tmp_path]}.items():
        script = ROOT / "training" / f"remake_{name}.sh"
        done = subprocess.run(["bash", script, *arguments], env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    for name in ("unseen", "demo", "article", "article-frontend", "waveform-frontend"):
        table = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        assert table.count("| eval_") >= 16, table
        recognizer = glmasr.load(tmp_path / name / "model")
        assert all(parameter.isfinite().all() for parameter in recognizer.model.parameters())
        recognizer.transcribe(tmp_path / "digits/audio/eval_recorded_en/000.wav")
