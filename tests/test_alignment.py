"""Words and their times: the path, the words of a text, and what both make of a recording."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis", reason="needs the extra [test]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import glmasr  # noqa: E402
from glmasr.alignment import align, times  # noqa: E402
from glmasr.alignment.heads import steadiest  # noqa: E402
from glmasr.alignment.times import in_order  # noqa: E402
from glmasr.alignment.words import spans, spell  # noqa: E402
from glmasr.tokenizer import IncrementalDecoder  # noqa: E402
from glmasr.transcription import word_times  # noqa: E402
from glmasr.transcription.chunking import Window  # noqa: E402
from glmasr.transcription.families import Piece  # noqa: E402
from glmasr.transcription.word_times import timed_by_words, timed_words, with_text  # noqa: E402


def plain_path(cost: np.ndarray) -> list[int]:
    """The path of least cost, cell by cell, as openai/whisper finds it; the first frame of each token."""
    tokens, frames = cost.shape
    total = np.full((tokens + 1, frames + 1), np.inf)
    total[0, 0] = 0
    for token in range(tokens):
        for frame in range(frames):
            before = min(total[token, frame], total[token, frame + 1], total[token + 1, frame])
            total[token + 1, frame + 1] = cost[token, frame] + before
    token, frame, found = tokens, frames, [0] * tokens
    while token > 0:
        found[token - 1] = frame - 1
        steps = [(token - 1, frame - 1), (token - 1, frame), (token, frame - 1)]
        token, frame = min(steps, key=lambda step: total[step])
    return found


@pytest.mark.parametrize("tokens, frames", [(1, 1), (1, 9), (7, 7), (5, 40), (30, 8), (40, 200)])
def test_the_path_is_that_of_the_plain_recursion(tokens, frames):
    draw = np.random.default_rng(tokens * frames)
    for _ in range(5):
        score = draw.normal(size=(tokens, frames))
        assert align.starts(torch.tensor(score)).tolist() == plain_path(-score)


def test_the_path_follows_the_diagonal():
    score = torch.eye(6).repeat_interleave(5, dim=1)
    assert align.starts(score).tolist() == [0, 5, 10, 15, 20, 25]


def test_the_median_filter():
    x = torch.tensor([[3.0, 0.0, 9.0, 1.0, 2.0]])
    assert align.median_filter(x, 3).tolist() == [[0.0, 3.0, 1.0, 2.0, 1.0]]
    assert align.median_filter(x, 1).tolist() == x.tolist()
    assert align.median_filter(x[:, :1], 7).tolist() == [[3.0]]


@pytest.mark.parametrize(
    "text, expected",
    [
        (" Hello, world! It's 5-fold (really) - yes.", ["Hello,", "world!", "It's", "5-fold", "(really) -", "yes."]),
        ("他说“好”，然后走了。2026年", ["他", "说", "“好”，", "然", "后", "走", "了。", "2026", "年"]),
        ("「こんにちは」 パーティー", ["「こ", "ん", "に", "ち", "は」", "パー", "テ", "ィー"]),
        ("OK吗？ $5 'tis", ["OK", "吗？", "$5", "'tis"]),
        ("—你好 — world —", ["—你", "好 —", "world —"]),
        ("naïve co-op…", ["naïve", "co-op…"]),
        ("left—then wait...what", ["left—", "then", "wait...", "what"]),
        ("3.14 U.S. don't", ["3.14", "U.S.", "don't"]),
        ("...", []),
        ("", []),
    ],
)
def test_words_of_a_text(text, expected):
    assert [text[first:last] for first, last in spans(text)] == expected


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_words_hold_all_that_is_spoken(text):
    found = spans(text)
    assert all(first < last for first, last in found)
    assert all(last <= following for (_, last), (following, _) in zip(found, found[1:], strict=False))
    left = set(range(len(text))) - {place for first, last in found for place in range(first, last)}
    if found:
        assert all(text[place].isspace() for place in left)
    else:
        assert not any(sign.isalpha() or sign.isdigit() for sign in text)


class Bytes:
    """A decoder of ids that are bytes."""

    def __init__(self):
        self.left = b""

    def feed(self, number):
        self.left += bytes([number])
        try:
            text = self.left.decode()
        except UnicodeDecodeError:
            return ""
        self.left = b""
        return text

    def finish(self):
        return self.left.decode(errors="replace")


def test_a_character_of_several_tokens_begins_with_the_first():
    text, words = spell(list("好 ab".encode()), Bytes())
    assert text == "好 ab"
    assert [(word.begins, word.ends) for word in words] == [(0.0, 3.0), (4.0, 6.0)]


class Pieces:
    """A decoder whose tokens are the pieces of a list."""

    def __init__(self, pieces):
        self.pieces = pieces

    def feed(self, number):
        return self.pieces[number]

    def finish(self):
        return ""


def test_a_token_of_several_characters_is_shared():
    _, words = spell([0, 1, 2], Pieces([" a(", "天气", " x"]))
    assert [(word.begins, word.ends) for word in words] == [(0.0, 0.5), (1.0, 1.5), (1.5, 2.0), (2.0, 3.0)]


@pytest.mark.parametrize(
    "written, text, words",
    [
        ("不足".encode() + b"\xe6\x83" + "卻".encode(), "不足卻", ["不", "足", "卻"]),
        ("不足".encode() + b"\xe6", "不足", ["不", "足"]),
        (b"caf\xc3e \xff noir", "cafe  noir", ["cafe", "noir"]),
        ("a \ufffd b".encode(), "a  b", ["a", "b"]),
        (b"\x80\xe6\x83", "", []),
    ],
)
def test_half_characters_are_no_words(written, text, words):
    """A token is a byte here. What is left keeps its places."""
    found, spelled = spell(list(written), IncrementalDecoder(lambda number: bytes([number])))
    assert found == text and [found[word.first : word.last] for word in spelled] == words
    times = [time for word in spelled for time in (word.begins, word.ends)]
    assert times == sorted(times) and all(0 <= time <= len(written) for time in times)


@pytest.mark.parametrize("name", ["demo", "demo-article"])
def test_half_characters_are_left_out_of_a_text(name):
    """A model may write any bytes; `Tokenizer.decode` gives U+FFFD for them, as others do."""
    recognizer = glmasr.load(name, device="cpu", dtype="float32")
    tokenizer, family = recognizer.tokenizer, recognizer.family
    half = next(number for number in range(tokenizer.size) if tokenizer.token_bytes(number) == b"\xe6")
    one, two = (tokenizer.encode(text) for text in ("good", " morning"))
    assert "\ufffd" in tokenizer.decode([*one, half, *two])
    assert family.text([half, *one, half, *two, half]) == "good morning"
    window = Window(0, torch.ones(16_000))
    assert [piece.text for piece in family.segments(window, [*one, half, *two])] == ["good morning"]
    assert family.segments(window, [half]) == []


@given(st.lists(st.tuples(st.floats(-1, 9), st.floats(-1, 9)), max_size=40), st.floats(0.01, 8))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_times_are_put_in_order(pairs, seconds):
    found = in_order(pairs, 0.0, seconds)
    assert len(found) == len(pairs)
    least = min(0.02, seconds / max(1, len(pairs)))
    place = 0.0
    for begin, end in found:
        assert begin >= place - 1e-9 and end - begin >= least - 1e-9 and end <= seconds + 1e-9
        place = end


def test_a_text_without_a_word_has_no_times(recognizer, sound, monkeypatch):
    """It is not even read again."""
    window, piece = Window(0, sound[:8000]), Piece(0.0, 0.5, "...", [1])
    monkeypatch.setattr(word_times, "spell", lambda ids, decoder: ("...", []))
    assert timed_words(recognizer.family, window, None, [], [piece]) == ([()], True)


def test_words_of_overlapping_windows_are_put_in_order():
    first = glmasr.Segment(0.0, 1.0, "a b", words=(glmasr.Word("a", 0.0, 0.5, 1.0), glmasr.Word("b", 0.5, 1.2, 1.0)))
    second = glmasr.Segment(1.0, 2.0, "c", words=(glmasr.Word("c", 1.0, 2.4, 1.0),))
    found = timed_by_words([first, glmasr.Segment(1.0, 1.0, "..."), second], 0.0, 2.0)
    assert [(word.start, word.end) for segment in found for word in segment.words] == [(0, 0.5), (0.5, 1.2), (1.2, 2)]
    assert (found[0].end, found[1].text, found[2].start, found[2].end) == (1.2, "...", 1.2, 2.0)


def test_times_in_order_stay():
    pairs = [(0.1, 0.3), (0.3, 0.34), (1.0, 2.0)]
    assert in_order(pairs, 0.0, 2.0) == pairs


# ---- of a recording --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["demo", "demo-article"])
def recognizer(request):
    return glmasr.load(request.param)


@pytest.fixture(scope="module")
def sound():
    """Two recordings of the examples, with a pause between them, and the seconds at which their digits begin and end."""
    english, chinese = (glmasr.audio.load(f"examples/{name}") for name in ("en.mp3", "zh.wav"))
    return torch.cat([english, torch.zeros(16_000), chinese])


def said(transcript):
    return [word for segment in transcript.segments for word in segment.words]


def test_words_of_a_recording(recognizer, sound):
    plain = recognizer.transcribe(sound, sample_rate=16_000)
    found = recognizer.transcribe(sound, sample_rate=16_000, words=True)
    assert found.text == plain.text and not said(plain)
    place = 0.0
    for segment in found.segments:
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
        assert "".join(word.text for word in segment.words) == segment.text.replace(" ", "")
        for word in segment.words:
            assert place <= word.start < word.end <= found.seconds and 0 < word.probability <= 1
            place = word.end


def test_words_begin_and_end_where_the_speech_does(recognizer, sound):
    """Two recordings with a second of silence between them: where each begins and ends is known from the samples."""
    words = said(recognizer.transcribe(sound, sample_rate=16_000, words=True))
    loud = (sound.unfold(0, 160, 160).abs().amax(-1) > 0.004).nonzero().flatten() / 100
    gap = int(loud.diff().argmax())
    before, after = float(loud[gap]), float(loud[gap + 1])
    last = max(number for number, word in enumerate(words) if word.start < (before + after) / 2)
    assert words[0].start == pytest.approx(float(loud[0]), abs=0.15)
    assert words[last].end == pytest.approx(before, abs=0.15)
    assert words[last + 1].start == pytest.approx(after, abs=0.15)
    assert words[-1].end == pytest.approx(float(loud[-1]), abs=0.2)  # it fades
    assert all(word.end <= before + 0.15 or word.start >= after - 0.15 for word in words)


def test_a_text_that_is_not_found_in_the_sound_is_spread_over_it():
    _, words = spell([0, 1, 2, 3], Pieces([" one", " two", " three", " four"]))
    flat = torch.zeros(1, 5, 100)
    flat[:, :, 0] = 9.0  # all look at one place
    found = times.word_times(words, flat, 0.02, 0.06, [(0.5, 1.0)], 2.0)
    assert not found.found
    assert found.spans[0][0] == 0.0 and found.spans[-1][1] == 2.0
    assert all(end - begin > 0.2 for begin, end in found.spans)


def test_pauses_are_found_by_loudness():
    levels = torch.full((300,), -60.0)
    levels[50:120] = -20.0
    levels[124:200] = -25.0  # 40 ms are no pause
    found = times.pauses(levels, 0.01)
    assert np.array(found) == pytest.approx(np.array([(0.0, 0.5), (2.0, 3.0)]), abs=0.011)
    assert times.pauses(torch.full((300,), -20.0), 0.01) == []
    assert times.pauses(torch.zeros(0), 0.01) == []


def test_a_word_next_to_a_pause_begins_or_ends_there():
    """Two words, of which the attention to the second one begins before the pause is over."""
    _, words = spell([0, 1], Pieces([" one", " two"]))
    scores = torch.full((1, 3, 100), -4.0)
    scores[0, 0, 5:35] = scores[0, 1, 50:90] = scores[0, 2, 95:] = 4.0
    [first, second] = times.word_times(words, scores, 0.02, 0.06, [(0.0, 0.1), (0.7, 1.2), (1.8, 2.0)], 2.0).spans
    assert first == (0.1, 0.7) and second == (1.2, 1.8)


def test_a_full_stop_that_looks_behind_the_pause_leaves_its_word_before_it():
    """Two words, both of which look at the end of the first stretch, and one after the pause, where the full stop of
    the second looks at the beginning of that."""
    _, words = spell([0, 1, 2, 3], Pieces([" one", " two", ".", " three"]))
    scores = torch.full((1, 5, 200), -4.0)
    for token, (first, last) in enumerate([(45, 75), (66, 75), (115, 140), (140, 190), (195, 200)]):
        scores[0, token, first:last] = 4.0
    silent = [(0.0, 0.1), (1.5, 2.3), (3.8, 4.0)]
    [one, two, three] = times.word_times(words, scores, 0.02, 0.0, silent, 4.0).spans
    assert one[0] == 0.1 and one[1] == two[0] == pytest.approx(1.3, abs=0.05)
    assert two[1] == 1.5 and three == (2.3, 3.8)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(st.lists(st.sampled_from([" one", " two", "wo", ".", ",", " -", "?!"]), min_size=1, max_size=9), st.integers(0))
def test_tokens_follow_each_other_whatever_they_look_at(pieces, seed):
    _, words = spell(list(range(len(pieces))), Pieces(pieces))
    generator = torch.Generator().manual_seed(seed % 2**32)
    scores = 4 * torch.randn(2, len(pieces) + 1, 150, generator=generator)
    silent = [(0.5, 0.9), (1.1, 1.5), (1.6, 2.2)][seed % 3 :]
    seconds = times.token_seconds(words, scores, 0.02, 0.0, silent)
    assert seconds == sorted(seconds)


def test_a_pause_after_a_token_belongs_to_none_of_its_characters():
    """Two characters of one token, a pause of 0.6 s, and another one: the border of the first two isn't in the pause."""
    _, words = spell([0, 1], Pieces(["情况", "那"]))
    scores = torch.full((1, 3, 100), -4.0)
    scores[0, 0, 5:65] = scores[0, 1, 65:90] = scores[0, 2, 95:] = 4.0
    found = times.word_times(words, scores, 0.02, 0.06, [(0.0, 0.1), (0.7, 1.3), (1.8, 2.0)], 2.0).spans
    assert [found[0][0], found[1][1], *found[2]] == [0.1, 0.7, 1.3, 1.8]
    assert found[0][1] == found[1][0] == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    "pause, seconds",
    [
        ((1.3, 2.0), [0.2, 2.0, 3.0, 4.0]),  # more of it sounds behind the pause
        ((2.2, 2.9), [0.2, 1.0, 2.2, 4.0]),
        ((1.3, 1.4), [0.2, 1.0, 3.0, 4.0]),  # a stop consonant
        ((0.3, 0.9), [0.2, 1.0, 3.0, 4.0]),  # of a token of one character
    ],
)
def test_a_token_of_two_characters_is_on_one_side_of_a_long_pause(pause, seconds):
    _, words = spell([0, 1, 2], Pieces(["八", "我们", "同意"]))
    assert times._undivided([0.2, 1.0, 3.0, 4.0], words, [pause]) == seconds


def test_a_first_word_does_not_cover_what_sounds_before_its_sentence():
    """Music, or speech that wasn't recognized, and then a pause."""
    rest = [(3.65, 4.1), (4.1, 4.33), (4.33, 4.6), (4.6, 4.8)]
    found = times._behind_the_intro([(0.8, 2.58), *rest], [(2.58, 3.65)])
    assert found == [(3.65, pytest.approx(3.875)), (pytest.approx(3.875), 4.1), *rest[1:]]
    for first, silent in (((0.8, 1.2), (1.2, 3.65)), ((0.8, 3.65), (0.0, 0.5)), ((1.0, 2.58), (2.58, 2.7))):
        assert times._behind_the_intro([first, *rest], [silent]) == [first, *rest]


@pytest.mark.parametrize("short, end", [(0.1, 0.85), (0.22, 0.5)])
def test_no_word_begins_between_two_pauses_of_a_border(short, end):
    """A word, a pause, some sound, a long pause, two words: after a short pause the sound is the end of the first word,
    else of none. It isn't the second word, even if the attention to the full stop goes on into that."""
    _, words = spell([0, 1, 2, 3], Pieces([" one", ".", " two", " three"]))
    scores = torch.full((1, 5, 150), -4.0)
    for token, (first, last) in enumerate([(5, 20), (20, 86), (86, 90), (90, 140), (145, 150)]):
        scores[0, token, first:last] = 4.0
    silent = [(0.0, 0.1), (0.5, 0.5 + short), (0.85, 1.6), (2.8, 3.0)]
    found = times.word_times(words, scores, 0.02, 0.0, silent, 3.0).spans
    assert found[0] == (0.1, end) and found[1][0] == 1.6 and found[2][1] == 2.8


def test_a_segment_keeps_its_words_when_its_script_is_converted():
    words = (glmasr.Word("汉", 0, 1, 0.5), glmasr.Word("字。", 1, 2, 0.5))
    segment = glmasr.Segment(0, 2, "汉字。", words=words)
    table = str.maketrans("汉", "漢")
    found = with_text(segment, lambda text: text.translate(table))
    assert found.text == "漢字。" and [word.text for word in found.words] == ["漢", "字。"]
    longer = with_text(segment, lambda text: text.replace("汉", "ha"))
    assert [word.text for word in longer.words] == ["ha", "字。"]


def test_without_known_heads_the_steadiest_are_kept(recognizer, sound, monkeypatch):
    """Not all are held at once: the result is the same."""
    readings = []
    read_again = recognizer.family.read_again

    def both(*arguments, **more):
        config = recognizer.model.config
        with monkeypatch.context() as patch:
            patch.setattr(type(recognizer.family), "config", replace(config, alignment_heads=()))
            few, every = read_again(*arguments), read_again(*arguments, every_head=True)
        readings.append((few.scores, every.scores))
        return few

    monkeypatch.setattr(recognizer.family, "read_again", both)
    assert said(recognizer.transcribe(sound, sample_rate=16_000, words=True))
    for few, every in readings:
        assert len(few) == 4 < len(every)
        chosen = every[steadiest(every.softmax(-1))]
        assert sorted(float(one.sum()) for one in few) == pytest.approx(sorted(float(one.sum()) for one in chosen))


def test_words_of_all_windows_in_one_prompt():
    recognizer = glmasr.load("demo")
    sound = torch.cat([glmasr.audio.load("examples/zh.wav"), torch.zeros(8_000)] * 3)
    found = recognizer.transcribe(sound, sample_rate=16_000, words=True, long="whole", guards=False)
    words = said(found)
    assert "".join(word.text for word in words) == found.text.replace(" ", "")
    assert all(a.end <= b.start for a, b in zip(words, words[1:], strict=False)) and words[-1].end <= found.seconds
