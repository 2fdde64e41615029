"""Sound files and checkpoint files to damage, and ways to damage them: bytes anywhere, and the fields that a reader
believes."""

import io
import json
import struct
from dataclasses import dataclass

import numpy as np
import soundfile
from hypothesis import strategies as st


@dataclass(frozen=True)
class Field:
    """A number in a file, by its place and width in bits. `little`: its bytes are in little-endian order."""

    name: str
    start: int
    width: int
    little: bool = False

    def put(self, content: bytearray, value: int) -> None:
        first, last = self.start // 8, -(-(self.start + self.width) // 8)
        if last > len(content):
            return
        if self.little:
            content[first:last] = (value % 2**self.width).to_bytes(last - first, "little")
            return
        shift, mask = 8 * last - self.start - self.width, 2**self.width - 1
        whole = int.from_bytes(content[first:last], "big")
        content[first:last] = (whole & ~(mask << shift) | (value & mask) << shift).to_bytes(last - first, "big")


@dataclass(frozen=True)
class Base:
    """A whole file, its fields, and a last step that makes checksums right again."""

    content: bytes
    fields: tuple[Field, ...] = ()
    repair: "object" = None


def fields(start: int, *parts: str, little: bool = False) -> list[Field]:
    """`fields(20, "channels 16", "rate 32")`: fields one behind the other from byte 20 on."""
    found, place = [], 8 * start
    for part in parts:
        name, width = part.rsplit(" ", 1)
        found.append(Field(name, place, int(width), little))
        place += int(width)
    return found


# ---- sound --------------------------------------------------------------------------------------------------------------


def encoded(format: str, subtype: str, channels: int = 1, rate: int = 16_000) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 20, channels))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def chunks(content: bytes, start: int, little: bool, sizes: str = "I", pad: int = 2):
    """(id, first byte of the body) of each chunk of a RIFF, AIFF or CAF file; the size lies in front of the body."""
    order = ("<" if little else ">") + sizes
    head = 4 + struct.calcsize(order)
    while start + head <= len(content):
        size = struct.unpack_from(order, content, start + 4)[0]
        yield content[start : start + 4], start + head
        start += head + size + size % pad


def wav(content: bytes) -> list[Field]:
    found = fields(4, "size 32", little=True)
    for name, body in chunks(content, 12, True):
        found += fields(body - 8, f"{name} id 32", f"{name} size 32", little=True)
        if name == b"fmt ":
            found += fields(
                body,
                "codec 16",
                "channels 16",
                "rate 32",
                "bytes a second 32",
                "bytes a frame 16",
                "bits 16",
                "more 16",
                "valid bits 16",
                "mask 32",
                "sub codec 16",
                little=True,
            )
        elif name == b"ds64":
            found += fields(body, "ds64 size 64", "ds64 data 64", "ds64 frames 64", "ds64 table 32", little=True)
        elif name == b"fact":
            found += fields(body, "fact frames 32", little=True)
    return found


def aiff(content: bytes) -> list[Field]:
    found = fields(4, "size 32")
    for name, body in chunks(content, 12, False):
        found += fields(body - 8, f"{name} id 32", f"{name} size 32")
        if name == b"COMM":
            found += fields(body, "channels 16", "frames 32", "bits 16", "rate 80", "codec 32")
        elif name == b"SSND":
            found += fields(body, "offset 32", "block 32")
    return found


def caf(content: bytes) -> list[Field]:
    found = fields(4, "version 16", "flags 16")
    for name, body in chunks(content, 8, False, "Q", pad=1):
        found += fields(body - 12, f"{name} id 32", f"{name} size 64")
        if name == b"desc":
            found += fields(
                body,
                "rate 64",
                "codec 32",
                "flags 32",
                "bytes a packet 32",
                "frames a packet 32",
                "channels 32",
                "bits 32",
            )
        elif name == b"pakt":
            found += fields(body, "packets 64", "frames 64", "priming 32", "rest 32")
        elif name == b"kuki":
            found += fields(body, *(f"cookie {number} 32" for number in range(8)))
    return found


def au(content: bytes) -> list[Field]:
    return fields(4, "offset 32", "size 32", "codec 32", "rate 32", "channels 32")


def flac(content: bytes) -> list[Field]:
    found, place = [], 4
    while True:
        found += fields(place, "last 1", "type 7", "length 24")
        if content[place] & 0x7F == 0:
            found += fields(
                place + 4,
                "smallest block 16",
                "largest block 16",
                "smallest frame 24",
                "largest frame 24",
                "rate 20",
                "channels 3",
                "bits 5",
                "frames 36",
            )
        elif content[place] & 0x7F == 4:
            found += fields(place + 4, "vendor 32", little=True)
        last, place = content[place] >> 7, place + 4 + int.from_bytes(content[place + 1 : place + 4], "big")
        if last:
            return found + fields(
                place,
                "sync 14",
                "reserved 1",
                "strategy 1",
                "block 4",
                "rate 4",
                "channels 4",
                "bits 3",
                "reserved 1",
                "number 8",
            )


def pages(content: bytes):
    """(first byte, number of segments, end) of each page of an Ogg file."""
    place = 0
    while content[place : place + 4] == b"OggS" and place + 27 <= len(content):
        count = content[place + 26]
        end = place + 27 + count + sum(content[place + 27 : place + 27 + count])
        yield place, count, end
        place = end


def ogg(content: bytes) -> list[Field]:
    found = []
    for place, count, end in pages(content):
        found += fields(place + 4, "version 8", "flags 8", "granule 64", "serial 32", "number 32", little=True)
        found += fields(place + 26, "segments 8", *(f"segment {number} 8" for number in range(min(count, 4))))
        body = place + 27 + count
        if content[body : body + 7] == b"\x01vorbis":
            found += fields(
                body + 7,
                "version 32",
                "channels 8",
                "rate 32",
                "most 32",
                "nominal 32",
                "least 32",
                "blocks 8",
                "end 8",
                little=True,
            )
        elif content[body : body + 8] == b"OpusHead":
            found += fields(
                body + 8,
                "version 8",
                "channels 8",
                "skip 16",
                "rate 32",
                "gain 16",
                "mapping 8",
                "streams 8",
                "coupled 8",
                little=True,
            )
        elif content[body : body + 7] == b"\x03vorbis" or content[body : body + 8] == b"OpusTags":
            found += fields(body + 7 + (content[body] == ord("O")), "vendor 32", little=True)
        setup = content.find(b"\x05vorbis", body, end)
        if setup >= 0:
            found += fields(setup + 7, "books 8", "book 24", "dimensions 16", "entries 24", little=True)
    return found


_CRC = []
for byte in range(256):
    value = byte << 24
    for _ in range(8):
        value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    _CRC.append(value)


def ogg_checksums(content: bytearray) -> None:
    for place, _, end in pages(bytes(content)):
        if end <= len(content):
            content[place + 22 : place + 26] = bytes(4)
            sum = 0
            for byte in content[place:end]:
                sum = (sum << 8 ^ _CRC[sum >> 24 ^ byte]) & 0xFFFFFFFF
            content[place + 22 : place + 26] = sum.to_bytes(4, "little")


def mp3(content: bytes) -> list[Field]:
    start = 10 + content[9] if content[:3] == b"ID3" else 0
    found = fields(6, "tag size 32") if start else []
    found += fields(
        start,
        "sync 11",
        "version 2",
        "layer 2",
        "protected 1",
        "bit rate 4",
        "rate 2",
        "padding 1",
        "private 1",
        "mode 2",
    )
    for name in (b"Xing", b"Info"):
        if (place := content.find(name)) >= 0:
            found += fields(place + 4, "flags 32", "frames 32", "bytes 32")
    return found


READERS = {
    "WAV": wav,
    "WAVEX": wav,
    "RF64": wav,
    "AIFF": aiff,
    "AU": au,
    "CAF": caf,
    "FLAC": flac,
    "OGG": ogg,
    "MP3": mp3,
}
SOUNDS = [
    "WAV PCM_16",
    "WAV FLOAT 2",
    "WAV ALAW",
    "WAV ULAW",
    "WAVEX PCM_24 2",
    "RF64 PCM_16",
    "FLAC PCM_16 2",
    "FLAC PCM_24",
    "OGG VORBIS",
    "OGG OPUS",
    "MP3 MPEG_LAYER_III",
    "AIFF PCM_16",
    "AIFF FLOAT 2",
    "AU PCM_16",
    "AU ULAW",
    "CAF PCM_16 2",
    "CAF ALAW",
]
# Not before libsndfile has seen their headers.
REFUSED = [
    "WAV IMA_ADPCM",
    "WAV MS_ADPCM",
    "WAV GSM610",
    "WAV G721_32",
    "WAV NMS_ADPCM_16",
    "AIFF IMA_ADPCM",
    "AIFF GSM610",
    "AU G723_40",
    "CAF ALAC_16",
]


def sound(name: str) -> Base:
    format, subtype, *channels = name.split()
    content = encoded(format, subtype, int(channels[0]) if channels else 1, 48_000 if subtype == "OPUS" else 16_000)
    if format == "MP3":
        content = b"ID3\x04\0\0\0\0\0\x14" + bytes(20) + content
    return Base(content, tuple(READERS[format](content)), ogg_checksums if format == "OGG" else None)


def extended(value: float) -> int:
    """A positive number as the 80 bits that AIFF has for its sample rate."""
    mantissa, exponent = np.frexp(value)
    return (int(exponent) + 16382) << 64 | int(mantissa * 2**64)


NUMBERS = [
    *range(5),
    7,
    8,
    16,
    17,
    24,
    31,
    32,
    33,
    48,
    49,
    63,
    64,
    65,
    80,
    85,
    127,
    128,
    255,
    256,
    300,
    1023,
    1024,
    1025,
    3999,
    4000,
    8000,
    15_999,
    44_100,
    65_534,
    65_535,
    65_536,
    383_999,
    384_000,
    384_001,
    999_983,
    10**6,
    10**9,
    2**20,
    2**24,
    2**30,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**36 - 1,
    2**40,
    2**48,
    2**62,
    2**63 - 1,
    2**63,
    -1,
    -2,
    -8,
    -44,
    *(
        int.from_bytes(struct.pack(">d", value), "big")
        for value in (0.5, 1, 4000, 383_999, 1e6, 1e300, -1, float("inf"), float("nan"))
    ),
    *(extended(value) for value in (0.5, 1, 3999, 4000, 383_999, 1e6, 1e300)),
    0x7FFF << 64,
    0xFFFF << 64,
    *(
        int.from_bytes(name, order)
        for name in (b"fmt ", b"data", b"LIST", b"bext", b"PEAK", b"smpl", b"cart", b"ima4", b"alaw", b"lpcm", b"alac")
        for order in ("big", "little")
    ),
]


def damages(base: Base):
    """A strategy of lists of things to do to a file."""
    size = len(base.content)
    place, some = st.integers(0, size - 1), st.integers(1, 64)
    ways = [
        st.tuples(st.just("flip"), st.integers(0, 8 * size - 1)),
        st.tuples(st.just("byte"), place, st.integers(0, 255)),
        st.tuples(st.just("cut"), place),
        st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("delete"), place, some),
        st.tuples(st.just("repeat"), place, some),
    ]
    if base.fields:
        number = st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1)
        ways += [st.tuples(st.just("put"), st.sampled_from(base.fields), number)] * 6
    return st.lists(st.one_of(ways), min_size=1, max_size=4)


def damaged(base: Base, todo: list, repair: bool = True) -> bytes:
    content = bytearray(base.content)
    for way, *details in todo:
        if way == "put":
            details[0].put(content, details[1])
            continue
        place = details[0]
        if way == "flip" and place // 8 < len(content):
            content[place // 8] ^= 1 << place % 8
        elif way == "byte":
            content[place : place + 1] = bytes([details[1]])
        elif way == "cut":
            del content[place:]
        elif way == "insert":
            content[place:place] = details[1]
        elif way == "delete":
            del content[place : place + details[1]]
        elif way == "repeat":
            content[place:place] = content[place : place + details[1]]
    if repair and base.repair:
        base.repair(content)
    return bytes(content)


# ---- JSON ---------------------------------------------------------------------------------------------------------------

VALUES = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "4",
    "8",
    "16",
    "30",
    "100",
    "1000",
    "-0.0",
    "0.5",
    "1.5",
    "1e9",
    "1000000000",
    "16777216",
    "16777217",
    "2147483648",
    "9223372036854775808",
    "1" + "0" * 30,
    "1" + "0" * 400,
    "-1" + "0" * 400,
    "9" * 5000,
    "1e300",
    "1e-320",
    "1e9999",
    "NaN",
    "Infinity",
    "-Infinity",
    "null",
    "true",
    "false",
    '""',
    '"a"',
    '"0"',
    '" "',
    '"\\u0000"',
    '"\\ud800"',
    '"<|en|>"',
    '"..\\/up"',
    '"' + "x" * 10_000 + '"',
    "[]",
    "{}",
    "[[]]",
    "[0]",
    "[-1]",
    "[null]",
    '{"": 0}',
    '{"a": {"b": []}}',
    '["a", "b"]',
    "[1, 1, 1]",
    "[[512, 10, 5]]",
    "[[1, 16777215, 1]]",
    "[" * 1000 + "]" * 1000,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 900 + "0" + "}" * 900,
]
# Patterns of tokenizers: what they mean is exponential work, or as much memory.
PATTERNS = [
    json.dumps({"Regex": pattern})
    for pattern in (
        r"(a+)+b",
        r"(\S+\S+)+\d",
        r"(?:a|a)*c",
        r"(a{1,1000}){1,1000}b",
        "a{1000000000}",
        "((a{1000}){1000}){1000}",
        "(?:a*)*",
        "[",
        "(?=a)",
        "(?i:'s)",
        "",
        r"(?<=a+)b",
        "(" * 2000 + ")" * 2000,
    )
] + ['{"String": "a"}', '{"String": ""}']


def nodes(tree, path=()):
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from nodes(value, (*path, key))


def json_damages(tree, more=()):
    places = [path for path in nodes(tree) if path]
    value = st.sampled_from([*VALUES, *more]) | st.integers(-2, 600).map(str)
    ways = [st.tuples(st.just("value"), st.sampled_from(places), value)] * 4
    ways += [
        st.tuples(st.just("twice"), st.sampled_from(places), value),
        st.tuples(st.just("drop"), st.sampled_from(places)),
        st.tuples(st.just("key"), st.sampled_from(places), value),
        st.tuples(st.just("copy"), st.sampled_from(places), st.sampled_from(places)),
    ]
    return st.lists(st.one_of(ways), min_size=1, max_size=3)


def json_damaged(tree, todo: list) -> str:
    """The text of a JSON tree with other values, keys more or less, or a key twice: what is no JSON value is put in as
    text."""
    tree, texts = json.loads(json.dumps(tree)), {}

    def mark(text: str) -> str:
        name = f"@{len(texts)}@"
        texts[json.dumps(name)] = text
        return name

    for way, path, *details in todo:
        inside, key = tree, path[-1]
        try:
            for step in path[:-1]:
                inside = inside[step]
            old = inside[key]
            if not isinstance(inside, (dict, list)):
                continue
            if way == "value":
                inside[key] = mark(details[0])
            elif way == "drop":
                del inside[key]
            elif way == "copy":
                other = tree
                for step in details[0]:
                    other = other[step]
                inside[key] = mark(json.dumps(other))
            elif way == "twice" and isinstance(inside, dict):
                inside[key] = mark(f"{json.dumps(old)}, {json.dumps(key)}: {details[0]}")
            elif way == "key" and isinstance(inside, dict):
                inside[f"{key}_"] = mark(details[0])
        except (KeyError, IndexError, TypeError):  # an earlier one has taken its place away
            continue
    text = json.dumps(tree)
    for name, value in reversed(texts.items()):  # a later one may hold an earlier one
        text = text.replace(name, value)
    return text


# ---- SentencePiece models: protocol buffers ------------------------------------------------------------------------------


def varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (content[place] & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if content[place - 1] < 0x80:
            return value, place


def protobuf(content: bytes, start: int = 0, end: int | None = None, depth: int = 0) -> list[Field]:
    """Tags, lengths and numbers, byte by byte."""
    found, pieces, place, end = [], 0, start, len(content) if end is None else end
    while place < end:
        tag, body = varint(content, place)
        name = f"{depth}: {tag >> 3}"
        found += fields(place, f"tag of {name} 8")
        place = body
        if tag & 7 == 0:
            _, place = varint(content, body)
            found += fields(body, f"number {name} 8")
        elif tag & 7 == 5:
            place = body + 4
            found += fields(body, f"float {name} 32", little=True)
        elif tag & 7 == 2:
            size, inner = varint(content, body)
            found += fields(body, f"length of {name} 8")
            place = inner + size
            if depth == 0:
                pieces += tag >> 3 == 1
                if tag >> 3 != 1 or pieces <= 20:  # the others are like them
                    found += protobuf(content, inner, place, 1)
            elif size >= 8:
                found += fields(inner, f"begin of {name} 32", little=True)
    return found
