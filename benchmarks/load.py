"""Many requests at once: are all answered, and rightly, how long does it take, and does the memory stay as it is?

    python benchmarks/load.py       the tables of docs/SERVER.md, in float32: 200 clips at 1, 4, 16 and 64 at once, and
                                    2,000 more

Starts a server on loopback (needs the extra [test]). Clips are the examples and pairs of them, so there are twenty
texts; right is what the same clip gave alone. A 429 is an answer too; it is counted. Exit code 1 if any other answer
came, none came, or memory grew.
"""

import argparse
import asyncio
import io
import itertools
import json
import statistics
import sys
import time
from collections import Counter

import httpx
import numpy
import soundfile
from serving import ROOT, Server

sys.path.insert(0, str(ROOT))

CONCURRENCY = (1, 4, 16, 64)
GROWTH = 0.05  # of the memory: of the second half of the requests over the first, medians of the samples
REST = 3.0  # seconds: after work, the worker gives memory back when it is idle; before that its size is chance


def clips() -> dict[str, bytes]:
    """name -> WAV: the examples, and each pair of them joined."""
    from glmasr import audio  # resamples; takes a second to import

    names = list(json.loads((ROOT / "examples/texts.json").read_text(encoding="utf-8")))
    sounds = {name: audio.load(ROOT / "examples" / name).numpy() for name in names}
    pause = numpy.zeros(audio.SAMPLE_RATE // 2, numpy.float32)
    sounds |= {
        f"{one}+{other}": numpy.concatenate([sounds[one], pause, sounds[other]])
        for one, other in itertools.product(names, names)
    }
    written = {}
    for name, samples in sounds.items():
        file = io.BytesIO()
        soundfile.write(file, samples, audio.SAMPLE_RATE, format="WAV")
        written[name] = file.getvalue()
    return written


async def transcribe(client: httpx.AsyncClient, model: str, name: str, sound: bytes) -> tuple[int, str, float]:
    """-> status, text, seconds"""
    began = time.perf_counter()
    answer = await client.post(
        "/v1/audio/transcriptions", data={"model": model}, files={"file": (f"{name}.wav", sound)}
    )
    return answer.status_code, answer.json().get("text", ""), time.perf_counter() - began


async def load(
    url: str, model: str, names: list[str], sounds: dict[str, bytes], right: dict[str, str], concurrency: int
) -> tuple[Counter, list[float], float]:
    """Sends clips, `concurrency` at a time -> how many were right, wrong, refused (429), lost; seconds of the right
    ones; seconds of all."""
    found, times, left = Counter(), [], iter(names)

    async def person():
        for name in left:
            try:
                status, text, seconds = await transcribe(client, model, name, sounds[name])
            except httpx.HTTPError:
                found["lost"] += 1
                continue
            kind = "refused" if status == 429 else "right" if status == 200 and text == right[name] else "wrong"
            found[kind] += 1
            if kind == "right":
                times.append(seconds)

    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(person() for _ in range(concurrency)))
    return found, times, time.perf_counter() - began


def batches(url: str) -> tuple[float, float]:
    """Batches so far, and recordings in them."""
    lines = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")
    )
    return float(lines["glmasr_batch_recordings_count"]), float(lines["glmasr_batch_recordings_sum"])


async def alone(url: str, model: str, sounds: dict[str, bytes]) -> dict[str, str]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        answers = {name: await transcribe(client, model, name, sound) for name, sound in sounds.items()}
    assert all(status == 200 for status, _, _ in answers.values()), answers
    return {name: text for name, (_, text, _) in answers.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--flat", type=int, default=2000, help="requests over which the memory is watched")
    args = parser.parse_args()
    sounds, good = clips(), True
    with Server("--no-page", "--dtype", "float32", model=args.model) as server:
        right = asyncio.run(alone(server.url, args.model, sounds))
        known = json.loads((ROOT / "examples/texts.json").read_text(encoding="utf-8"))
        assert all(right[name] == known[name]["text"] for name in known), right
        names = [name for name, _ in zip(itertools.cycle(sounds), range(args.clips))]
        print("| at once | right | 429 | wrong | lost | median, s | 99 %, s | clips/s | recordings a batch |")
        print("|---|---|---|---|---|---|---|---|---|")
        for concurrency in CONCURRENCY:
            before = batches(server.url)
            found, times, seconds = asyncio.run(load(server.url, args.model, names, sounds, right, concurrency))
            count, together = (after - first for after, first in zip(batches(server.url), before))
            slowest = sorted(times)[min(len(times) - 1, int(0.99 * len(times)))]
            print(
                f"| {concurrency} | {found['right']} | {found['refused']} | {found['wrong']} | {found['lost']} | {statistics.median(times):.2f} | {slowest:.2f} "
                f"| {found['right'] / seconds:.1f} | {together / count:.1f} |",
                flush=True,
            )
            good &= found["right"] + found["refused"] == len(names) and found["right"] > 0
        print("\n| requests | memory of the server and its worker, MiB |\n|---|---|")
        sizes, step = [], max(1, args.flat // 8)
        for done in range(step, args.flat + 1, step):
            found, _, _ = asyncio.run(
                load(
                    server.url,
                    args.model,
                    [name for name, _ in zip(itertools.cycle(sounds), range(step))],
                    sounds,
                    right,
                    16,
                )
            )
            good &= found["right"] + found["refused"] == step
            time.sleep(REST)
            sizes.append(server.memory())
            print(f"| {done} | {sizes[-1] / 2**20:.0f} |", flush=True)
        half = max(1, len(sizes) // 2)
        good &= statistics.median(sizes[-half:]) <= (1 + GROWTH) * statistics.median(
            sizes[:half]
        )  # single samples differ by 5 % with nothing kept
        print("\nfine" if good else "\nnot as it should be", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
