"""The whole server as its own process: page, Gradio's calls, the end, faults. In a real Chromium where there is one."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.web
pytest.importorskip("gradio", reason="needs the extra [web]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from helpers.checkpoints import make_encoder_decoder  # noqa: E402
from helpers.server import ROOT, Server  # noqa: E402

EXAMPLES = ROOT / "examples"
TEXTS = {
    name: entry["text"] for name, entry in json.loads((EXAMPLES / "texts.json").read_text(encoding="utf-8")).items()
}
MODEL = "demo-article"
ROUTE = "/v1/audio/transcriptions"


def post(server, name="zh.wav", content=None, **fields):
    files = {"file": (name, (EXAMPLES / name).read_bytes() if content is None else content)}
    return httpx.post(server.url + ROUTE, data={"model": MODEL} | fields, files=files, timeout=120)


def works(server) -> bool:
    """The next good request is answered, and no place is taken behind it."""
    answer = post(server)
    assert answer.status_code == 200, answer.text
    server.until(lambda: httpx.get(f"{server.url}/healthz").json() == {"status": "ok", "waiting": 0, "running": 0})
    return answer.json()["text"] == TEXTS["zh.wav"]


@pytest.fixture(scope="module")
def server():
    with Server("--max-upload", "4") as running:
        yield running
    assert running.process.returncode == 0 and not list(running.temporary.iterdir())
    assert not any(text in running.log for text in (*TEXTS.values(), "zh.wav", "Traceback")), running.log
    running.temporary.rmdir()


# ---- Gradio's calls -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def polyglot(tmp_path_factory):
    """A server with a random model that knows many languages, and translates."""
    from glmasr.transcription.language import NAMES

    folder = make_encoder_decoder(
        tmp_path_factory.mktemp("model") / "tiny", languages=(*NAMES, "xx"), tasks=("translate", "transcribe"), seed=1
    )
    with Server(model=str(folder)) as running:
        yield running


@pytest.fixture
def short(tmp_path):
    """A second of sound, which a random model answers soon."""
    import soundfile

    from glmasr import audio

    soundfile.write(tmp_path / "short.wav", audio.load(EXAMPLES / "yue.flac").numpy()[:16_000], 16_000)
    return tmp_path / "short.wav"


def call(server, data, session):
    """As the article does it: the messages of /gradio_api/queue/data."""
    joined = httpx.post(
        f"{server.url}/gradio_api/queue/join", json={"data": data, "fn_index": 0, "session_hash": session}, timeout=60
    )
    assert joined.status_code == 200 and joined.json()["event_id"], joined.text
    return finished(server, session)


def finished(server, session):
    with httpx.stream(
        "GET", f"{server.url}/gradio_api/queue/data", params={"session_hash": session}, timeout=60
    ) as stream:
        messages = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line]
    return next(message for message in messages if message["msg"] == "process_completed")


def uri(name):
    return "data:audio/wav;base64," + base64.b64encode((EXAMPLES / name).read_bytes()).decode()


def test_the_call_of_the_article(server):
    done = call(server, [uri("zh.wav"), "auto"], "article")
    assert done["success"] and done["output"]["data"] == [TEXTS["zh.wav"]]
    done = call(server, [{"name": "talk.wav", "data": uri("zh.wav")}, "zh"], "older")
    assert done["success"] and done["output"]["data"] == [TEXTS["zh.wav"]]


@pytest.mark.parametrize(
    "start",
    ["data:;base64,", "DATA:AUDIO/WAV;BASE64,", 'data:audio/wav; codecs="1";base64,', "data:audio/x-wav;base64,\n"],
)
def test_data_uris_may_look_otherwise(server, start):
    done = call(server, [start + uri("zh.wav").partition(",")[2], "auto"], f"uri-{time.monotonic()}")
    assert done["success"] and done["output"]["data"] == [TEXTS["zh.wav"]]


def test_a_recording_with_a_wrong_language_does_not_stay(server):
    answer = httpx.post(
        f"{server.url}/gradio_api/queue/join",
        json={"data": [uri("zh.wav"), "fr"], "fn_index": 0, "session_hash": "wrong"},
    )
    assert answer.status_code == 400 and "language is 'fr', expected one of auto" in answer.json()["error"]["message"]
    server.until(lambda: not list(server.temporary.rglob("recording.wav")))  # files are removed in the background


def meta(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "recording, reason",
    [
        (meta("/etc/hostname"), "no file that was uploaded here"),
        (meta(str(EXAMPLES / "zh.wav")), "no file that was uploaded here"),
        (meta("/nowhere/zh.wav"), "no file that was uploaded here"),
        (meta(str(EXAMPLES / "zh.wav")) | {"is_stream": True}, "a stream"),
        (meta("http://127.0.0.1:1/talk.wav"), "fetches nothing"),
        ({"path": str(EXAMPLES / "zh.wav")}, "no file that was uploaded here"),
        (str(EXAMPLES / "zh.wav"), "expected a data URI"),
        ("data:audio/wav;base64,!!!", "expected a data URI"),
        ("data:audio/wav;base64,AAA", "expected a data URI"),
        ("data:audio/wav;base64,AA==AAAA", "expected a data URI"),
        ("data:audio/wav;base64,\xe9", "expected a data URI"),
        ([meta("/etc/hostname")], "expected a data URI"),
        (7, "expected a data URI"),
    ],
)
def test_what_is_no_recording_that_was_uploaded_is_not_opened(server, recording, reason):
    answer = httpx.post(
        f"{server.url}/gradio_api/queue/join",
        json={"data": [recording, "auto"], "fn_index": 0, "session_hash": "hostile"},
    )
    assert answer.status_code == 400 and reason in answer.json()["error"]["message"] and works(server)


@pytest.mark.parametrize(
    "recording, reason",
    [
        ("data:audio/wav;base64," + base64.b64encode(b"no sound").decode(), "not a readable recording"),
        (None, "missing"),
    ],
)
def test_a_recording_that_is_none(server, recording, reason):
    done = call(server, [recording, "auto"], f"none-{time.monotonic_ns()}")
    assert not done["success"] and reason in done["output"]["error"]


@pytest.mark.parametrize("pieces", [1, 7, 4096, 65537])
def test_a_data_uri_is_read_however_it_comes(server, pieces):
    """In pieces of any size, with slashes as some programs escape them, line breaks in it, and other fields around
    it."""
    content = uri("zh.wav")
    content = (
        "\\n".join(content[start : start + 7600] for start in range(0, len(content), 7600)).replace("/", "\\/")
        if pieces > 1
        else content[:20_000]
    )
    body = f'{{"session_hash": "pieces-{pieces}", "event_data": null, "data": [ "{content}" , "zh"], "fn_index": 0, "trigger_id": null}}'.encode()
    chunks = (
        (body[start : start + pieces] for start in range(0, len(body), pieces))
        if pieces > 1
        else iter([*(body[place : place + 1] for place in range(100)), body[100:]])
    )
    answer = httpx.post(
        f"{server.url}/gradio_api/queue/join",
        content=chunks if pieces > 40 or pieces == 1 else body,
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == (200 if pieces > 1 else 400), answer.text
    if pieces > 1:
        done = finished(server, f"pieces-{pieces}")
        assert done["success"] and done["output"]["data"] == [TEXTS["zh.wav"]]
    assert works(server)


def test_gradio_client(server):
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(server.url, verbose=False)
    assert (
        client.predict(gradio_client.handle_file(EXAMPLES / "en.mp3"), "auto", api_name="/transcribe")
        == TEXTS["en.mp3"]
    )
    assert client.predict(gradio_client.handle_file(EXAMPLES / "yue.flac"), api_name="/transcribe") == TEXTS["yue.flac"]
    with pytest.raises(Exception, match="not a readable recording"):
        client.predict(gradio_client.handle_file(ROOT / "README.md"), "auto", api_name="/transcribe")
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/transcribe"]


def test_a_call_may_translate_where_the_model_does(polyglot, server, short):
    recording = "data:audio/wav;base64," + base64.b64encode(short.read_bytes()).decode()
    said = [
        call(polyglot, [recording, "en", *task], f"task-{number}")["output"]["data"]
        for number, task in enumerate(((), ("transcribe",), ("translate",)))
    ]
    assert said[0] == said[1] != said[2]
    for where, data in ((polyglot, [recording, "en", "summarize"]), (server, [recording, "en", "translate"])):
        assert (
            httpx.post(
                f"{where.url}/gradio_api/queue/join", json={"data": data, "fn_index": 0, "session_hash": "task"}
            ).status_code
            == 400
        )
    fields = [
        [
            field["parameter_name"]
            for field in httpx.get(f"{where.url}/gradio_api/info").json()["named_endpoints"]["/transcribe"][
                "parameters"
            ]
        ]
        for where in (server, polyglot)
    ]
    assert fields == [["recording", "language"], ["recording", "language", "task"]]


def test_an_upload_to_gradio_that_is_too_large(server):
    answer = httpx.post(f"{server.url}/gradio_api/upload", files={"files": ("talk.wav", bytes(5 * 2**20))})
    assert answer.status_code == 413
    assert (
        httpx.post(
            f"{server.url}/gradio_api/queue/join", json={"data": ["x" * 2**23], "fn_index": 0, "session_hash": "x"}
        ).status_code
        == 413
    )
    assert works(server)


def test_gradio_lets_no_other_origin_in(server):
    for path in ("/config", "/gradio_api/info"):
        assert (
            "access-control-allow-origin"
            not in httpx.get(server.url + path, headers={"Origin": "https://example.org"}).headers
        )


def test_the_page_needs_the_key_too():
    with Server("--api-key", "open sesame") as server:
        for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x", "/v1/models"):
            assert httpx.get(server.url + path).status_code == 401, path
        assert httpx.get(server.url, auth=("me", "open sesame")).status_code == 200
        gradio_client = pytest.importorskip("gradio_client")
        client = gradio_client.Client(server.url, headers={"Authorization": "Bearer open sesame"}, verbose=False)
        assert (
            client.predict(gradio_client.handle_file(EXAMPLES / "en.mp3"), "auto", api_name="/transcribe")
            == TEXTS["en.mp3"]
        )
        assert "sesame" not in server.log


# ---- the page -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def browse(server):
    """browse(...) -> an open page."""
    browser = pytest.importorskip("helpers.browser", reason="needs selenium, of the extra [test]", exc_type=ImportError)
    if not (shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("chromium-browser"))):
        pytest.skip("needs chromium and chromedriver on the PATH")
    pages = []

    def browse(*args, url=server.url, **more):
        pages.append(browser.Page(url, *args, **more))
        return pages[-1]

    yield browse
    for page in pages:
        page.__exit__()


def test_upload_transcribe_read_download(browse, server):
    page = browse()
    page.upload(EXAMPLES / "en.mp3")
    assert page.transcribe() == TEXTS["en.mp3"]
    assert page.download("srt").read_text() == "1\n00:00:00,000 --> 00:00:03,020\nfive five five zero one three six\n"
    assert json.loads(page.download("json").read_text())["text"] == TEXTS["en.mp3"]
    assert (
        page.download("vtt").read_text().startswith("WEBVTT")
        and page.download("txt").read_text() == f"{TEXTS['en.mp3']}\n"
    )
    assert [cell.text for cell in page.all("#details td")] == ["0:00.0", "0:03.0", TEXTS["en.mp3"]]
    [mark] = page.all("#details svg rect.segment")
    assert float(mark.get_attribute("width")) > 100
    assert "3.4 s of sound, language: en" in page.find("#status").text
    assert page.errors() == []


def test_words_are_marked_while_they_are_played(browse, server):
    page = browse()
    page.upload(EXAMPLES / "en.mp3")
    assert page.transcribe() == TEXTS["en.mp3"]
    assert page.all(".glm-word") == page.all(".glm-player") == []
    page.find("#more button").click()
    page.find("#words input").click()
    page.find("#go").click()
    words = page.wait(lambda: page.all("#details .glm-word"), "words")
    assert page.text == TEXTS["en.mp3"] and [word.text for word in words] == TEXTS["en.mp3"].split()
    assert page.all("#details td")[2].text == TEXTS["en.mp3"]
    starts = [float(word.get_attribute("data-start")) for word in words]
    player = "document.querySelector('.glm-player')"
    marked = "[...document.querySelectorAll('.glm-word.now')].map(word => word.textContent)"
    page.wait(lambda: page.script(f"return {player}.duration") > 3, "the recording")
    page.script(  # each change of the mark, and where the player is then
        "window.seen = []; new MutationObserver(() => { "
        f"const now = {marked}; if (now.length) seen.push([now.join('+'), {player}.currentTime]) }})"
        ".observe(document.querySelector('.glm-table'), {subtree: true, attributeFilter: ['class']})"
    )
    words[4].click()  # plays from there to the end
    page.wait(lambda: page.script(f"return {player}.ended"), "the end")
    seen = page.script("return seen")
    assert seen and seen[0][0] == words[4].text and seen[0][1] == pytest.approx(starts[4], abs=0.5), seen
    assert {text for text, _ in seen} <= {word.text for word in words[4:]}, seen  # and never two at once
    page.script(f"{player}.currentTime = {starts[2] + 0.01}")  # as somebody moves it, while nothing plays
    page.wait(lambda: page.script(f"return {marked}") == [words[2].text], "a mark")
    assert page.script(f"return {player}.paused") and page.errors() == []


def test_many_words_stay_quick_and_hostile_ones_are_text(browse, server):
    """3,000 words within the three seconds of an example, as `page_views.table` writes them, in light and dark."""
    from glmasr.pipeline import Segment, Word
    from glmasr.server import page_texts, page_views

    hostile = ["<script>window.hurt = 1</script>", '"><img src=x onerror="window.hurt = 2">', "${window.hurt = 3}"]
    texts = [*hostile, *(f"word{number}" for number in range(2997))]
    words = [Word(text, index / 1000, (index + 1) / 1000, index % 5 / 4) for index, text in enumerate(texts)]
    rows = [words[index : index + 30] for index in range(0, 3000, 30)]
    segments = [
        Segment(row[0].start, row[-1].end, " ".join(word.text for word in row), words=tuple(row)) for row in rows
    ]
    source = page_views.table(segments, lambda name: page_texts.TEXTS[name][0])
    page = browse()
    page.upload(EXAMPLES / "en.mp3")
    page.find("#more button").click()
    page.find("#words input").click()
    page.transcribe()
    player = "document.querySelector('.glm-player')"
    page.wait(lambda: page.script(f"return {player}.duration") > 3, "the recording")
    took = page.driver.execute_script(
        "const began = performance.now(); document.querySelector('.glm-table').outerHTML = arguments[0]; "
        "document.body.getBoundingClientRect(); return performance.now() - began",
        source,
    )
    assert took < 2000 and [word.text for word in page.all(".glm-word")[:3]] == hostile
    page.all(".glm-word")[0].click()
    page.wait(lambda: page.script(f"return {player}.ended"), "the end")
    assert page.script("return document.querySelector('.glm-table').scrollTop") > 500  # it went along
    page.script(f"{player}.currentTime = 1.5004")
    now = page.wait(lambda: page.find(".glm-word.now"), "a mark")
    box = page.find(".glm-table").rect
    assert float(now.get_attribute("data-start")) == pytest.approx(1.5, abs=0.01)
    assert box["y"] <= now.rect["y"] <= box["y"] + box["height"]
    took = page.script(  # milliseconds to mark a word, the table scrolled and laid out anew
        f"const player = {player}, took = []; for (let step = 0; step < 50; step++) {{ "
        "player.currentTime = step * 37 % 50 / 20; const began = performance.now(); "
        "player.dispatchEvent(new Event('timeupdate')); document.body.getBoundingClientRect(); "
        "took.push(performance.now() - began) } return took"
    )
    assert sorted(took)[25] < 50  # the median: the machine may be busy
    assert page.script("return window.hurt") is None and page.errors() == []
    looks = []
    for dark in (False, True):
        page.script(f"document.body.classList.toggle('dark', {str(dark).lower()})")
        style = "return ['backgroundColor', 'color'].map(name => getComputedStyle(document.querySelector(arguments[0]))[name])"
        found = [page.driver.execute_script(style, f".glm-word{kind}") for kind in (".unsure", ".now", ":nth-child(3)")]
        assert len({background for background, _ in found}) == 3  # unsure, played, neither
        looks.append(found[0][1])
    assert looks[0] != looks[1]


def test_many_languages_can_be_searched_and_a_translation_asked_for(browse, polyglot, short):
    from glmasr.transcription.language import NAMES

    page = browse(url=polyglot.url, height=1400)
    field = page.find("#language input")
    assert field.get_attribute("value") == "Auto 自动"

    def search(text):
        page.script("document.querySelector('#language input').select()")
        field.send_keys(text)
        return page.wait(
            lambda: [
                option.text.removeprefix("✓").strip()
                for option in page.all("#language [role=option]")
                if option.is_displayed()
            ],
            "languages",
        )

    field.click()
    everything = [option.text.removeprefix("✓").strip() for option in page.all("#language [role=option]")]
    assert len(everything) >= 100 and everything[:4] == [
        "Auto 自动",
        "Chinese 中文 (zh)",
        "Cantonese 粤语 (yue)",
        "English 英语 (en)",
    ]
    assert (
        everything[4] == "Afrikaans (af)"
        and everything[4:] == sorted(everything[4:])
        and "Haitian Creole (ht)" in everything
    )
    for name, code in (
        ("yiddish", "yi"),
        ("YORUBA", "yo"),
        ("xx", "xx"),
        ("(ht)", "ht"),
    ):  # those at the end are shown when they are scrolled to, or searched
        assert search(name) == [f"{NAMES.get(code, code).title()} ({code})"]
    assert search("germ") == ["German (de)"]
    page.all("#language [role=option]")[0].click()
    assert field.get_attribute("value") == "German (de)"
    page.upload(short)
    page.find("#task input[value=translate]").click()
    text = page.transcribe()
    send = lambda route, **fields: httpx.post(
        polyglot.url + route, data={"model": "tiny"} | fields, files={"file": short.read_bytes()}, timeout=60
    ).json()  # noqa: E731
    assert "language: de" in page.find("#status").text and page.errors() == []
    assert text != send(ROUTE, language="de")["text"] and text.strip()


def test_a_few_languages_stay_as_simple_as_they_were(browse, server):
    page = browse()
    assert [label.text for label in page.all("#language label")] == [
        "Auto 自动",
        "普通话 Mandarin",
        "粤语 Cantonese",
        "English 英语",
    ] and page.all("#task") == []


def test_the_page_about_the_api(browse, server):
    """Nothing comes from elsewhere, the policy lets its own style and script in, and the examples have the address that
    the reader uses."""
    url = server.url.replace("127.0.0.1", "localhost")
    page = browse("en-GB", 390, 844, url=f"{url}/docs", ready="#errors")
    assert page.errors() == [] and {place.text for place in page.all("pre b")} == {url}
    assert (
        page.script(
            "return performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:'))"
        )
        == []
    )
    assert page.script("return getComputedStyle(document.querySelector('h2')).borderTopWidth") == "1px"
    assert page.script("return document.documentElement.scrollWidth") <= 390
    light = page.script("return getComputedStyle(document.body).backgroundColor")
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert page.script("return getComputedStyle(document.body).backgroundColor") != light


def test_chinese_on_a_phone(browse, server):
    page = browse("zh-CN", 390, 844)
    assert page.find("#go").text == "开始识别" and "语音转文字" in page.find("h1").text
    page.upload(EXAMPLES / "zh.wav")
    assert page.transcribe() == TEXTS["zh.wav"]
    assert "完成" in page.find("#status").text and page.find("#details th").text == "开始"
    assert page.script("return document.documentElement.scrollWidth") <= 390  # nothing to scroll sideways
    assert (
        page.script(
            "return [...document.querySelectorAll('button')].filter(b => b.getBoundingClientRect().right > 391).length"
        )
        == 0
    )


def test_nothing_comes_from_elsewhere(browse, server):
    page = browse()
    names = page.script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(names) > 5 and [name for name in names if not name.startswith((server.url, "data:", "blob:"))] == []


def test_microphone(browse, server):
    """Chromium's fake microphone plays an example once."""
    page = browse(microphone=f"{EXAMPLES / 'zh.wav'}%noloop")
    page.record(6.0)
    assert page.transcribe().strip() == TEXTS["zh.wav"]


def test_a_closed_page_leaves_nothing(browse):
    from glmasr.server.uploads import RETURN

    with Server() as server:
        from helpers import browser

        page = browser.Page(server.url)
        page.upload(EXAMPLES / "en.mp3")
        assert page.transcribe() == TEXTS["en.mp3"]
        page.find("#recording button[aria-label='Clear']").click()
        page.upload(EXAMPLES / "zh.wav")
        page.find("#go").click()
        page.wait(lambda: page.text == TEXTS["zh.wav"])
        assert {path.name for path in server.uploads()} == {"zh.wav", "zh.txt", "zh.srt", "zh.vtt", "zh.json"}
        page.__exit__()
        server.until(lambda: not server.uploads(), RETURN + 120)


def test_a_broken_file_and_none(browse, server):
    page = browse()
    page.find("#go").click()
    assert page.alert == "First choose a file or record something."
    broken = page.downloads / "broken.wav"
    broken.write_bytes(b"RIFF\x00\x00\x00\x00WAVE" + bytes(range(200)))
    page.upload(broken)
    page.find("#go").click()
    page.wait(lambda: "It didn't work" in page.alert)
    assert str(server.temporary) not in page.alert and page.text == ""
    assert works(server)


def test_two_tabs_at_once(browse, server):
    page = browse()
    page.upload(EXAMPLES / "en.mp3")
    first = page.tab()
    second = page.tab(new=server.url)
    page.upload(EXAMPLES / "zh.wav")
    os.kill(server.worker, signal.SIGSTOP)  # so that they are under way at once
    try:
        page.find("#go").click()
        page.tab(first)
        page.find("#go").click()
        server.until(lambda: httpx.get(f"{server.url}/healthz").json()["running"] == 2)
        page.wait(lambda: page.find("#status progress"))
    finally:
        os.kill(server.worker, signal.SIGCONT)
    assert page.finished() == TEXTS["en.mp3"]
    page.tab(second)
    assert page.finished() == TEXTS["zh.wav"]


def test_stop_and_a_closed_tab_free_their_place(browse, server):
    running = lambda: httpx.get(f"{server.url}/healthz").json()["running"]  # noqa: E731
    page = browse()
    page.upload(EXAMPLES / "en.mp3")
    os.kill(server.worker, signal.SIGSTOP)
    try:
        page.find("#go").click()
        server.until(lambda: running() == 1)
        page.find("#stop").click()
        server.until(lambda: running() == 0)
        page.find("#go").click()
        server.until(lambda: running() == 1)
        page.driver.get("about:blank")
        server.until(lambda: running() == 0)
    finally:
        os.kill(server.worker, signal.SIGCONT)
    assert works(server)


# ---- the end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_end_finishes_what_runs_and_refuses_the_rest(number):
    with Server("--queue", "40") as server, ThreadPoolExecutor(20) as pool:
        assert len(list(server.temporary.iterdir())) == 1
        os.kill(server.worker, signal.SIGSTOP)
        answers = [pool.submit(post, server) for _ in range(18)]  # the worker takes 16
        server.until(lambda: httpx.get(f"{server.url}/healthz").json() == {"status": "ok", "running": 16, "waiting": 2})
        worker = server.worker
        server.process.send_signal(number)
        server.until(lambda: sum(answer.done() for answer in answers) == 2)
        os.kill(worker, signal.SIGCONT)
        found = [answer.result() for answer in answers]
        assert sorted(answer.status_code for answer in found) == [200] * 16 + [503] * 2
        assert {answer.json()["text"] for answer in found if answer.status_code == 200} == {TEXTS["zh.wav"]}
        assert all(answer.headers["Retry-After"] for answer in found if answer.status_code == 503)
        assert (
            server.process.wait(60) == 0
            and not list(server.temporary.iterdir())
            and not Path(f"/proc/{worker}").exists()
        )
        with pytest.raises(httpx.ConnectError):
            post(server)


def test_it_ends_while_the_model_is_loaded_and_where_it_cannot_be(tmp_path):
    command = [sys.executable, "app.py", "--port", "0", "--model"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, "nowhere"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: ")
        and "nowhere" in done.stderr
        and "Traceback" not in done.stderr
    )
    started = subprocess.Popen([*command, MODEL], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    Server.until(lambda: list(tmp_path.iterdir()))
    started.terminate()
    assert started.wait(60) == 143 and not list(tmp_path.iterdir())


# ---- faults ---------------------------------------------------------------------------------------------------------------


def test_the_worker_is_killed_again_and_again(server):
    for _ in range(3):
        os.kill(server.worker, signal.SIGKILL)
        server.until(lambda: httpx.get(f"{server.url}/healthz").status_code == 503)
        assert works(server)


def test_the_worker_hangs():
    with Server("--time-limit", "6") as server:
        assert works(server)
        hung = server.worker
        os.kill(hung, signal.SIGSTOP)
        assert post(server).status_code == 504
        server.until(lambda: not Path(f"/proc/{hung}").exists())
        server.until(
            lambda: httpx.get(f"{server.url}/healthz").status_code == 200
        )  # a busy machine may take longer than 6 s for a new one
        assert works(server)


def test_uploads_that_are_cut(server):
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 2000000\r\n\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    before = set(server.uploads())
    for amount in (0, 10, 1000, 1_500_000):  # the last one is on the disk by then
        for _ in range(5):
            for where in (ROUTE, "/gradio_api/upload"):
                with socket.create_connection(server.url.removeprefix("http://").split(":")) as cut:
                    cut.sendall(
                        (head.replace(ROUTE, where) + part).encode()[: len(head) + amount]
                        + bytes(max(0, amount - len(part)))
                    )
    assert works(server)
    server.until(lambda: set(server.uploads()) <= before)


def test_slow_loris_clients(server):
    """200 connections that send a byte now and then, and never a request, or after one: others are served, and they are
    closed."""
    from glmasr.server.connections import HEADERS

    connections = [socket.create_connection(server.url.removeprefix("http://").split(":")) for _ in range(200)]
    began, closed = time.monotonic(), 0
    for number, connection in enumerate(connections):
        if number % 4 == 0:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in connection.recv(1000)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    assert works(server) and time.monotonic() < began + HEADERS
    while time.monotonic() < began + HEADERS + 10 and closed < len(connections):
        closed = 0
        for connection in connections:
            try:
                connection.sendall(b"x")
            except OSError:
                closed += 1
        time.sleep(1)
    assert closed == len(connections)
    for connection in connections:
        connection.close()
    assert works(server)


def test_a_full_disk(tmp_path):
    """The folder for temporary files is a file system of 3 MiB, in a mount namespace of the server's own."""
    prefix = (
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=3m tmpfs {tmp_path} && exec "$@"',
        "sh",
    )
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("needs a machine on which unshare --mount works")
    with Server(prefix=prefix, temporary=tmp_path) as server:
        answer = post(server, content=bytes(8 * 2**20))
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "no_space"
        assert works(server)
        answer = httpx.post(f"{server.url}/gradio_api/upload", files={"files": ("a.wav", bytes(8 * 2**20))})
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "no_space"
        joined = {"data": ["data:audio/wav;base64," + "A" * 2**23, "auto"], "fn_index": 0, "session_hash": "full"}
        answer = httpx.post(f"{server.url}/gradio_api/queue/join", json=joined)
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "no_space"
        assert works(server) and not server.uploads()


def test_schemathesis(server):
    """Garbage for every route of the OpenAPI document: no answer is a defect, all have the stated status, type and
    shape."""
    pytest.importorskip("schemathesis", reason="needs the extra [test]")
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            command,
            "run",
            f"{server.url}/openapi.json",
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            "--max-examples",
            "50",
            "--seed",
            "1",
            "--request-timeout",
            "60",
            "--suppress-health-check",
            "all",
        ],
        cwd=server.temporary.parent,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert works(server)


def test_load():
    done = subprocess.run(
        [sys.executable, "benchmarks/load.py", "--clips", "40", "--flat", "400"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| 64 |") >= 1
