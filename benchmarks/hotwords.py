"""What hotwords change: recall of listed names, false insertions, the errors of the rest, and time.

    pip install -c constraints.txt '.[bench]'
    python benchmarks/hotwords.py MANIFEST --model DIR [--lists 0 10 100 1000 10000] [--most 40] [--weight 1]
    python benchmarks/hotwords.py --model DIR --cost

MANIFEST is a table with tabs and a header: path (beside it), language, text, speaker. Of its English sentences, the words
that the model spells in three tokens or more count as rare; Mandarin and Cantonese ones have no names. Beside these there is synthetic speech, if the program
espeak-ng is there: sentences in English, Mandarin and Cantonese around names that are in no dictionary.

A list of N phrases has the rare names of a recording, those of the others as far as there is room, and invented names up
to N. Recall is the share of the rare names that are in the text, whatever their case. Speech without rare names tells what
a list of N invented names does: false insertions are listed names in the text that nobody said, for each 1,000 words, and
errors are those of all words (characters of Chinese).
"""

import argparse
import datetime
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from real import RATE, read  # noqa: E402

from glmasr.evaluation.scoring import Errors, units  # noqa: E402

BATCH = 8  # recordings that are recognized together
RARE = 3  # tokens of a word that counts as rare
SHORTEST = 4  # letters of it
NAMES = {
    "en": "Thornquist Vandermeer Haverstock Ellingboe Gottfredson Dunworthy Castellano Brannigan Okonkwo Nakagawa Llewellyn "
    "Zentrix Quantara Novalith Kubernetes Grafana Marchetti Szymanski Oyelaran Bergstrom Featherstonehaugh Kowalczyk "
    "Abernethy Tremblay Villanueva Radcliffe Poniatowski Mbeki Sigurdsson Achterberg".split(),
    "zh": "欧阳靖轩 司徒婉清 慕容博雅 诸葛明远 上官若曦 端木赐恩 令狐承宇 夏侯嘉懿 皇甫立衡 尉迟敬亭".split(),
    "yue": "觀塘道 深水埗 紅磡灣 筲箕灣 鰂魚涌 荔枝角 牛頭角 將軍澳 馬鞍山 薄扶林".split(),
}
SENTENCES = {
    "en": (
        "Please send the report to {} before the end of the week.",
        "I talked with {} about the new contract yesterday.",
        "The next meeting with {} is on Monday at ten.",
        "Nobody at {} has answered my letter so far.",
    ),
    "zh": ("请把这份报告交给{}。", "我昨天和{}讨论了新的合同。", "下一次会议由{}主持。"),
    "yue": ("我聽日要去{}開會。", "由呢度去{}要坐幾個站？", "佢哋屋企喺{}附近。"),
}
OTHERS = {  # sentences without names, for the synthetic voices too
    "zh": ("今天的天气很好，我们一起去公园散步吧。", "请问从这里到火车站怎么走？", "这本书我已经看完了，明天还给你。"),
    "yue": ("今日天氣好好，不如一齊去公園行下。", "唔該問下點樣去火車站？", "呢本書我已經睇完，聽日還返俾你。"),
}
# TRAP: the voice "cmn" spells many characters in English: "qing three".
VOICES = {"en": ("en-us", "en-gb"), "zh": ("cmn-latn-pinyin",), "yue": ("yue",)}
SYLLABLES = (
    "ka lo mi ten shor wick ba dul ner vor sha tre quin os el han gar ber lin mar fos ter ri ga stone ford ley".split()
)
CHARACTERS = {
    "zh": "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗明华伟强军平志文建国海东春秀英丽敏静芳燕玲婷雪梅",
    "yue": "大西北南東中新上下石山水田角灣塘道街村埗嶺坑環門頭井橋圍洲竹荔沙葵青元屯觀",
}


@dataclass
class Recording:
    samples: np.ndarray
    language: str
    text: str
    kind: str  # real or synthetic
    names: list[str] = field(default_factory=list)


def invented(language: str, count: int) -> list[str]:
    """Names that nobody has, always the same: half of them are of two words, or of three characters."""
    rng, found = random.Random(language), {}
    while len(found) < count:
        if language == "en":
            one = lambda: "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))).capitalize()  # noqa: E731
            name = one() if rng.random() < 0.5 else f"{one()} {one()}"
        else:
            name = "".join(rng.choices(CHARACTERS[language], k=rng.choice((2, 3, 3, 4))))
        found[name] = None
    return list(found)


def spoken(text: str, voice: str, folder: str) -> np.ndarray:
    from glmasr import audio

    path = Path(folder) / "spoken.wav"
    subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", str(path), text], check=True)
    return np.asarray(audio.load(path))


def synthetic(languages: list[str], most: int) -> list[Recording]:
    if not shutil.which("espeak-ng"):
        print("without synthetic speech: there is no espeak-ng", file=sys.stderr)
        return []
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for language in languages:
            for index, name in enumerate(NAMES[language][:most]):
                text = SENTENCES[language][index % len(SENTENCES[language])].format(name)
                voice = VOICES[language][index % len(VOICES[language])]
                found.append(Recording(spoken(text, voice, folder), language, text, "synthetic", [name]))
            for text in OTHERS.get(language, ()):
                found.append(Recording(spoken(text, VOICES[language][0], folder), language, text, "synthetic"))
    return found


def real(manifest: Path, language: str, most: int, tokenizer) -> list[Recording]:
    """Sentences, first those with rare words, each sentence once. Of English only it is looked for rare words."""
    from glmasr import audio

    found: dict[str, Recording] = {}
    for clip in read(manifest, None, [language], None):
        text = clip.text if not clip.text.isupper() else clip.text.lower()
        rare = [
            word
            for word in dict.fromkeys(re.findall(r"[A-Za-z]+", text))
            if language == "en"
            and len(word) >= SHORTEST
            and min(len(tokenizer.encode(f" {form}")) for form in (word, word.lower(), word.title())) >= RARE
        ]
        if text not in found and len(units(text, language)) > 3:
            found[text] = Recording(clip.path, language, text, "real", rare)
    with_names = [one for one in found.values() if one.names][:most]
    without = [one for one in found.values() if not one.names][:most]
    for one in [*with_names, *without]:
        one.samples = np.asarray(audio.load(one.samples))
    return [*with_names, *without]


def holds(text: str, name: str, language: str) -> bool:
    """Whether a name is in a text, as whole words, whatever the case."""
    said, wanted = units(text, language), units(name, language)
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


def listed(recording: Recording, everything: list[Recording], size: int) -> tuple[str, ...]:
    """The list of so many phrases that a recording is recognized with."""
    language = recording.language
    others = [name for one in everything if one.language == language for name in one.names]
    known = recording.names + (others if recording.names else [])  # without names: invented ones only
    names = list(dict.fromkeys([*known, *invented(language, size)]))
    return tuple(sorted(names[:size]))


def row(recognizer, recordings: list[Recording], everything: list[Recording], size: int, args) -> list[float]:
    """Recall, false insertions for 1,000 words, errors without names, seconds of sound a second."""
    hits = named = false = said = 0
    errors, start = Errors(), time.perf_counter()
    alike: dict[tuple[str, ...], list[Recording]] = {}
    for one in recordings:
        alike.setdefault(listed(one, everything, size), []).append(one)
    texts = []
    for phrases, some in alike.items():  # those with the same list are recognized together
        language = some[0].language
        language = "zh" if language == "yue" and "yue" not in recognizer.family.languages else language
        weighed = [(phrase, args.weight) for phrase in phrases]
        options = {
            "sample_rate": RATE,
            "beams": args.beams,
            "hotwords": weighed,
            "pad_to": args.pad_to,
            "batch_size": BATCH,
        }
        found = recognizer.transcribe([one.samples for one in some], language, **options)
        texts += [(one, phrases, transcript.text) for one, transcript in zip(some, found, strict=True)]
    for one, phrases, text in texts:
        if args.verbose:
            print(size, one.names, text, file=sys.stderr, flush=True)
        hits += sum(holds(text, name, one.language) for name in one.names)
        named += len(one.names)
        if not one.names:
            errors += Errors.of(text, one.text, one.language)
            said += len(units(one.text, one.language))
            found = [name for name in phrases if name.lower() in text.lower()]
            false += sum(holds(text, name, one.language) and not holds(one.text, name, one.language) for name in found)
    spent = time.perf_counter() - start
    rate = sum(len(one.samples) for one in recordings) / RATE / spent
    nothing = float("nan")
    return [
        100 * hits / named if named else nothing,
        1000 * false / said if said else nothing,
        errors.percent if said else nothing,
        rate,
    ]


def cost(model: str, sizes: list[int], widths: tuple[int, ...] = (1, 5, 40)) -> None:
    """What a list costs a core, of English names: seconds to build, and milliseconds of a step for so many rows, whose tokens
    are those of listed names, one behind the other. Of the model only the tokenizer is read."""
    import torch

    from glmasr.tokenizer import read_tokenizer
    from glmasr.transcription import hotwords, spelling

    tokenizer = read_tokenizer(Path(model))
    print(f"\n| phrases | {tokenizer.size:,} ids: nodes | built, s |" + "".join(f" {w} rows, ms |" for w in widths))
    print("|---" * (3 + len(widths)) + "|")
    spelling.automaton(hotwords.parse(["Kowloon"]), tokenizer, tokenizer.size)  # what is done once for a tokenizer
    for size in filter(None, sizes):
        names = hotwords.parse(invented("en", size))
        start = time.process_time()
        automaton = spelling.automaton(names, tokenizer, tokenizer.size)
        built = time.process_time() - start
        said = [number for name, _ in names[:100] for number in tokenizer.encode(f" {name}")][:100]
        steps = []
        for width in widths:
            states, times = automaton.start(width), []
            for number in said:
                start = time.process_time()
                automaton.scores(states)
                states = automaton.step(states, torch.full((width,), number))
                times.append(time.process_time() - start)
            steps.append(1000 * sorted(times)[len(times) // 2])
        print(f"| {size:,} | {automaton.size:,} | {built:.2f} |" + "".join(f" {step:.2f} |" for step in steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path, nargs="?")
    parser.add_argument("--model", required=True)
    parser.add_argument("--lists", type=int, nargs="+", default=[0, 10, 100, 1000, 10000])
    parser.add_argument("--languages", nargs="+", default=["en", "zh", "yue"], choices=["en", "zh", "yue"])
    parser.add_argument("--most", type=int, default=40, help="recordings of each kind, with and without names")
    parser.add_argument("--weight", type=float, default=1.0, help="of all phrases")
    parser.add_argument("--beams", type=int)
    parser.add_argument("--pad-to", default="window", choices=["window", "speech"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cost", action="store_true", help="only what a list costs; MANIFEST isn't needed")
    parser.add_argument("--verbose", action="store_true", help="all texts on standard error")
    args = parser.parse_args()

    import torch

    import glmasr

    torch.set_num_threads(args.threads)
    if args.cost:
        return cost(args.model, args.lists)
    if args.manifest is None:
        parser.error("expected MANIFEST, or --cost")
    recognizer = glmasr.load(args.model, device="cpu", dtype="float32")
    everything = [
        one for language in args.languages for one in real(args.manifest, language, args.most, recognizer.tokenizer)
    ]
    everything += synthetic(args.languages, args.most)
    print(
        f"{Path(args.model).name}, {args.threads} threads, {platform.machine()}, {datetime.date.today()}, weight {args.weight:g}\n"
    )
    print(
        "| speech | recordings, names | list | recall, % | false insertions in 1,000 words | errors without names, % | x real time |"
    )
    print("|---" * 7 + "|")
    for kind, language in dict.fromkeys((one.kind, one.language) for one in everything):
        some = [one for one in everything if (one.kind, one.language) == (kind, language)]
        for size in args.lists:
            recall, false, wrong, rate = row(recognizer, some, everything, size, args)
            count = f"{len(some)}, {sum(len(one.names) for one in some)}"
            print(
                f"| {kind} {language} | {count} | {size:,} | {recall:.1f} | {false:.2f} | {wrong:.2f} | {rate:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
