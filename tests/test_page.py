"""What the page shows of a transcript: HTML whose every text is escaped, with the words where they are asked for."""

import asyncio
import contextlib
import re
import time
from html.parser import HTMLParser

import pytest

pytest.importorskip("gradio", reason="needs the extra [web]")

from glmasr.pipeline import Options, Segment, Transcript, Word  # noqa: E402
from glmasr.server import calls, messages, page, page_texts, page_views, page_words, request_queue, talks, uploads  # noqa: E402

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "a&b", "' onclick='x", "${7*7}", "{{value}}"]
SAY = [lambda name, index=index: page_texts.TEXTS[name][index] for index in (0, 1)]


class Read(HTMLParser):
    """The elements of some HTML with their attributes and texts, as a browser reads it."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in ("path", "img"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, kind=""):
        """The elements of a tag; `kind`: one of their classes."""
        kinds = lambda attributes: (attributes.get("class") or "").split()  # noqa: E731
        return [element for element in self.elements if element[0] == tag and (not kind or kind in kinds(element[1]))]


def spoken(texts, start=0.0, probability=0.9):
    """A segment of these words, half a second each, with a space between them."""
    words = tuple(
        Word(text, start + index / 2, start + index / 2 + 0.4, probability) for index, text in enumerate(texts)
    )
    return Segment(start, start + len(texts) / 2, " ".join(texts), words=words)


def shown(segments, say=SAY[0], source="gradio_api/file=/kept/0123/talk.wav"):
    transcript = Transcript(" ".join(segment.text for segment in segments), "en", segments, 60.0)
    finished = request_queue.Finished(transcript, [[]] * len(segments), [0.0] * len(segments), [0.1, 0.5, 0.2])
    _, text, details, files = page_views.result(finished, "talk.wav", say, source)
    assert text == transcript.text and set(files) == {f"talk.{form}" for form in page_views.FORMATS}
    return details


def test_words_have_their_times_and_the_rest_stays_text():
    segment = Segment(
        1.0, 3.0, "Good morning,  你好。", words=(Word("Good", 1.0, 1.25, 0.9), Word("morning,", 1.25, 1.8, 0.5),
        Word("你", 2.0, 2.4, 0.31), Word("好。", 2.4, 3.0, 0.99))
    )  # fmt: skip
    read = Read(shown([segment]))
    words = read.all("span", "glm-word")
    assert [(word[2], word[1]["data-start"], word[1]["data-end"]) for word in words] == [
        ("Good", "1.000", "1.250"),
        ("morning,", "1.250", "1.800"),
        ("你", "2.000", "2.400"),
        ("好。", "2.400", "3.000"),
    ]
    assert [cell[2] for cell in read.all("td")] == ["0:01.0", "0:03.0", "Good morning,  你好。"]
    assert [word[2] for word in read.all("span", "unsure")] == ["你"] and words[2][1]["title"] == "unsure: 31%"
    assert not any("title" in word[1] for word in (*words[:2], words[3]))
    [player] = read.all("audio")
    assert player[1]["src"] == "gradio_api/file=/kept/0123/talk.wav" and "controls" in player[1]
    assert Read(shown([segment], SAY[1])).all("span", "unsure")[0][1]["title"] == "没有把握：31%"


def test_without_words_there_is_no_player_and_the_text_is_as_it_was():
    source = shown([Segment(0.0, 1.0, "Good <morning>.")])
    assert "<td>Good &lt;morning&gt;.</td></tr>" in source and "glm-word" not in source and "<audio" not in source
    assert "<audio" not in shown([])


def test_hostile_words_are_text():
    segments = [spoken(HOSTILE, probability=0.1), spoken([text * 2 for text in HOSTILE], 30.0)]
    read = Read(shown(segments, source='x" onerror="alert(3)'))
    assert {tag for tag, *_ in read.elements} == {
        *("svg", "rect", "title", "path", "div", "span", "audio", "table", "thead", "tbody", "tr", "th", "td")
    }
    names = {name for _, attributes, _ in read.elements for name in attributes}
    assert not [name for name in names if name.startswith("on") and name != "on"] and "src" in names
    assert [word[2] for word in read.all("span", "glm-word")] == [*HOSTILE, *(text * 2 for text in HOSTILE)]
    assert read.all("audio")[0][1]["src"] == 'x" onerror="alert(3)'


def test_words_that_are_not_in_the_text_leave_it_whole():
    segment = Segment(0.0, 1.0, "one <two>", words=(Word("one", 0.0, 0.5, 0.9), Word("three", 0.5, 1.0, 0.9)))
    assert page_words.text(segment, SAY[0]) == "one &lt;two&gt;"


def test_an_hour_of_words_is_written_at_once():
    segments = [spoken(["word"] * 40, 20.0 * index, 0.4 + index % 2) for index in range(250)]
    began = time.thread_time()
    source = page_views.table(segments, SAY[0])
    assert time.thread_time() - began < 2 and source.count("glm-word") == 10_000
    assert len(source) < 150 * 10_000


def test_the_box_reaches_the_model_and_the_player_the_recording(tmp_path):
    """What the page's function hands on, and what it shows at the end."""

    class Queue:
        asked = []

        async def recognize(self, path, language, options):
            self.asked.append(options)
            words = [spoken(["one", "two"])] if options.words else [Segment(0.0, 1.0, "one two")]
            yield request_queue.Finished(Transcript("one two", "en", words, 1.0), [[]], [0.0], [0.1])

    kept = uploads.Uploads(tmp_path / "page", 2**20)
    path = kept.new("my talk #1?.wav")

    async def details(words):
        async with contextlib.aclosing(
            page.Handlers(Queue(), kept, 60.0).show(path, "auto", True, words, 0, False, "", "")
        ) as values:
            return [value async for value in values][-1][2]

    plain, timed = (asyncio.run(details(words)) for words in (False, True))
    assert [options.words for options in Queue.asked] == [False, True] and "audio" not in plain
    assert Queue.asked[0] == Options(timestamps=True, max_duration=60.0)
    [player] = Read(timed).all("audio")
    assert re.fullmatch(r"gradio_api/file=/.*/[0-9a-f]{32}/my%20talk%20%231_\.wav", player[1]["src"])


def test_the_box_is_named_in_both_languages():
    facts = messages.Ready(["auto", "en"], True, ["transcribe"], {"device": "cpu", "dtype": "float32"})
    queue = request_queue.RequestQueue({})
    queue.facts = facts
    blocks = page.layout("model", queue, page.Handlers(queue, None, 60.0), talks.Talks(None, 60.0))
    [box] = [block for block in blocks.blocks.values() if getattr(block, "elem_id", "") == "words"]
    assert box.value is False and box.label.key == "words" and box.info.key == "words_info"
    assert page_texts.TEXTS["words"] == ("Word times", "逐词时间")


def test_what_the_page_sends_unchanged_is_let_through():
    """A field without a value would send null, which the fence refuses."""
    facts = messages.Ready(["auto", "en"], True, ["transcribe"], {"device": "cpu", "dtype": "float32"})
    queue = request_queue.RequestQueue({})
    queue.facts = facts
    blocks = page.layout("model", queue, page.Handlers(queue, None, 60.0), talks.Talks(None, 60.0))
    [show] = [call for call in blocks.fns.values() if call.name == "show"]
    values = [None, *(field.value for field in show.inputs[1:])]
    assert calls.checked_values(values, 1, {"language": ["auto", "en"]})[1:] == values[1:]
