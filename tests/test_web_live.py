"""The page's tab "Live" in a real Chromium, whose fake microphone plays a recording."""

import json
import os
import shutil
import signal
import threading
import time

import pytest

pytestmark = pytest.mark.web
pytest.importorskip("gradio", reason="needs the extra [web]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from helpers.server import ROOT, Server  # noqa: E402

EXAMPLES = ROOT / "examples"
TEXTS = {
    name: entry["text"] for name, entry in json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8")).items()
}


@pytest.fixture(scope="module")
def server():
    with Server(model="demo") as running:
        yield running
    assert running.process.returncode == 0 and not list(running.temporary.iterdir())
    assert not any(text in running.log for text in (*TEXTS.values(), "Traceback")), running.log
    running.temporary.rmdir()


@pytest.fixture
def speak(tmp_path):
    """speak("en.mp3") -> what a microphone plays once: that example, with a second of silence around it."""
    import numpy as np
    import soundfile

    from glmasr import audio

    def speak(name, times=1):
        quiet = np.zeros(48_000, np.float32)
        digits = audio.resample(audio.load(EXAMPLES / name), 16_000, 48_000).numpy()
        path = tmp_path / f"{name}-{times}.wav"
        soundfile.write(
            path, np.concatenate([quiet, *[part for _ in range(times) for part in (digits, quiet)]]), 48_000
        )
        return f"{path}%noloop"

    return speak


@pytest.fixture
def browse(server):
    """browse(...) -> an open page, with its tab "Live"."""
    browser = pytest.importorskip("helpers.browser", reason="needs selenium, of the extra [test]", exc_type=ImportError)
    if not (shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("chromium-browser"))):
        pytest.skip("needs chromium and chromedriver on the PATH")
    pages = []

    def browse(*args, url=server.url, **more):
        pages.append(browser.Page(url, *args, **more))
        pages[-1].live()
        return pages[-1]

    yield browse
    for page in pages:
        page.__exit__()


def test_text_grows_while_somebody_speaks(browse, speak):
    page = browse(microphone=speak("en.mp3"))
    page.listen()
    page.wait(lambda: len(page.said.split()) >= 2, "the first words")
    early = page.said
    page.wait(lambda: page.said == TEXTS["en.mp3"], "all words")
    assert len(early.split()) < 7 and page.find("#live-stop").is_displayed()  # it is still on
    page.stop_listening()
    assert page.said == TEXTS["en.mp3"] and not page.all("#live-said .glm-maybe")
    assert "Stopped" in page.find("#live-status").text and page.find("#live-record").is_displayed()
    srt = page.download("srt", "live-download").read_text()
    assert srt.startswith("1\n00:00:0") and srt.endswith(f"\n{TEXTS['en.mp3']}\n")
    assert page.download("txt", "live-download").read_text() == f"{TEXTS['en.mp3']}\n"
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite", "audioCapture"]}
    )
    page.find("#live-copy").click()
    copied = "const done = arguments[0]; navigator.clipboard.readText().then(done, error => done(String(error)))"
    page.wait(lambda: page.driver.execute_async_script(copied) == TEXTS["en.mp3"], "the text in the clipboard")
    page.listen()  # goes on with the same text
    page.wait(lambda: page.said == f"{TEXTS['en.mp3']}\n{TEXTS['en.mp3']}", "both texts")
    page.find("#live-stop").click()
    page.wait(lambda: "Stopped" in page.find("#live-status").text, "the end")
    page.find("#live-fresh").click()
    page.wait(lambda: page.said == "" and not page.find("#live-download-srt").is_enabled(), "nothing")
    assert page.errors() == []


def test_what_is_said_just_before_a_stop_is_heard(browse, speak):
    page = browse("zh-CN", width=390, height=844, microphone=speak("zh.wav"))  # a phone, in Chinese
    page.listen()
    page.wait(lambda: len(page.said) >= 7, "seven digits of eight")
    page.stop_listening()
    assert TEXTS["zh.wav"].startswith(page.said) and len(page.said) >= 7
    assert "已停止" in page.find("#live-status").text
    assert page.script("return document.documentElement.scrollWidth <= innerWidth")  # nothing to scroll sideways
    assert page.errors() == []


def test_two_users_at_once(browse, speak):
    pages = {name: browse(microphone=speak(name)) for name in ("en.mp3", "zh.wav")}
    seen = {name: set() for name in pages}
    for page in pages.values():
        page.listen()

    def all_said():
        for name, page in pages.items():
            seen[name].add(page.said)
        return all(page.said == TEXTS[name] for name, page in pages.items())

    next(iter(pages.values())).wait(all_said, "both texts")
    for page in pages.values():
        page.stop_listening()
    assert not any(letter.isascii() for letter in "".join(seen["zh.wav"]))
    assert all(letter.isascii() for letter in "".join(seen["en.mp3"]))


def test_a_page_that_is_closed_gives_its_place_back(browse, speak, server):
    page = browse(microphone=speak("en.mp3"))
    page.listen()
    page.wait(lambda: page.said, "words")
    healthz = lambda: httpx.get(f"{server.url}/healthz").json()  # noqa: E731
    assert healthz()["running"] == 1
    page.driver.get("about:blank")
    server.until(lambda: healthz()["running"] == 0, 20)


def test_a_worker_that_dies(browse, speak, server):
    page = browse(microphone=speak("en.mp3", times=2))
    page.listen()
    page.wait(lambda: page.find("#live-now span:first-child").text, "words that are certain")
    os.kill(server.worker, signal.SIGKILL)
    alert = page.wait(lambda: page.find("#live-status .glm-alert").text, "an error")
    assert "has ended" in alert and "five" in page.said  # what was certain stays
    page.wait(lambda: page.find("#live-record").is_displayed(), "the button")
    server.until(lambda: httpx.get(f"{server.url}/healthz").status_code == 200)
    page.find("#live-fresh").click()
    page.wait(lambda: page.said == "", "nothing")
    page.listen()
    page.wait(lambda: TEXTS["en.mp3"] in page.said, "all words")
    page.stop_listening()


def test_the_server_ends_while_somebody_speaks():
    """And says all that was heard by then."""
    from glmasr import audio

    digits = audio.resample(audio.load(EXAMPLES / "en.mp3"), 16_000, 8000)
    sound = (digits * 32767).short().numpy().tobytes()
    key, answers = "0123456789abcdef" * 2, []
    with Server(model="demo") as server:
        call = {"data": [key, 8000, "en"], "fn_index": 5, "session_hash": "speaker"}
        assert httpx.post(f"{server.url}/gradio_api/queue/join", json=call).status_code == 200

        def listen():
            query = {"session_hash": "speaker"}
            with httpx.stream("GET", f"{server.url}/gradio_api/queue/data", params=query, timeout=60) as stream:
                answers.extend(stream.iter_lines())

        listening = threading.Thread(target=listen)
        listening.start()
        headers = {"Content-Type": "application/octet-stream"}
        for place in range(0, len(sound), 4000):
            answer = httpx.post(
                f"{server.url}/live/{key}?at={place // 2}", content=sound[place : place + 4000], headers=headers
            )
            assert answer.status_code == 204
        server.until(lambda: "five" in "".join(answers))
        began = time.monotonic()
        assert server.stop() == 0 and time.monotonic() - began < 30
        listening.join(10)
    said = "".join(answers)
    assert "about to end" in said and TEXTS["en.mp3"] in said and "Traceback" not in server.log


def test_without_a_microphone_the_page_says_so(browse):
    page = browse()
    assert not page.find("#live-denied").is_displayed()
    page.script("navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('NotAllowedError'))")
    page.find("#live-record").click()
    page.wait(lambda: page.find("#live-denied").is_displayed(), "the reason")
    assert "no microphone" in page.find("#live-denied").text and page.find("#live-record").is_displayed()


def test_sound_arrives_whole_where_the_network_stumbles(browse, speak):
    """Answers that are lost, and seconds without any network."""
    page = browse(microphone=speak("en.mp3"))
    page.script("""
        const send = window.fetch;
        let count = 0;
        window.fetch = async (...call) => {
          if (!String(call[0]).startsWith("live/")) return send(...call);
          if (++count % 3 === 0) { await send(...call); throw new TypeError("the answer was lost"); }
          if (count > 6 && count < 12) throw new TypeError("no network");
          return send(...call);
        };
    """)
    page.listen()
    page.wait(lambda: page.said == TEXTS["en.mp3"], "all words")
    page.stop_listening()
    assert page.said == TEXTS["en.mp3"]
