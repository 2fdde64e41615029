"""Pictures of the web page, in a real Chromium (needs the extra [test], and chromium with chromedriver on the PATH).

    python app.py --model demo-article &
    python benchmarks/screenshots.py docs/images

Desktop in English, and a phone in Chinese, each with a recording transcribed; and a GIF of the tab "Live" while the
examples are played to the microphone.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from browser import Page  # the tests drive the same page
from PIL import Image

from glmasr import audio

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"page-desktop": ("en-GB", 1100, 760, "en.mp3"), "page-phone": ("zh-CN", 390, 1280, "zh.wav")}
LIVE = "page-live", "en-GB", 560, 760, ("en.mp3", "zh.wav", "yue.flac")
RATE = 48_000  # of the microphone, in Hz
LONGEST = 60.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--only", choices=[*PICTURES, LIVE[0]], help="this picture")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, (language, width, height, recording) in PICTURES.items():
        if args.only in (None, name):
            with Page(args.url, language, width, height) as page:
                page.upload(ROOT / "examples" / recording)
                page.transcribe()
                page.picture(args.folder / f"{name}.png")
                print(args.folder / f"{name}.png")
    name, language, width, height, recordings = LIVE
    if args.only in (None, name):
        with tempfile.TemporaryDirectory() as folder:
            speech = spoken(recordings, Path(folder) / "speech.wav")
            with Page(args.url, language, width, height, microphone=f"{speech}%noloop") as page:
                page.live()
                animate(frames(page, len(recordings)), args.folder / f"{name}.gif")
                print(args.folder / f"{name}.gif")


def spoken(names: tuple[str, ...], path: Path) -> Path:
    """A recording of the examples with these names, with pauses around them."""
    quiet, parts = np.zeros(RATE, np.float32), []
    for name in names:
        parts += [quiet, audio.resample(audio.load(ROOT / "examples" / name), 16_000, RATE).numpy()]
    soundfile.write(path, np.concatenate([*parts, quiet]), RATE)
    return path


def frames(page: Page, count: int) -> list[tuple[float, Image.Image]]:
    """(time in seconds, picture) from the start of a live recording until `count` segments are complete, and it is
    stopped."""
    found = [picture(page)]
    page.listen()
    while len(page.all("#live-complete p")) < count and found[-1][0] < found[0][0] + LONGEST:
        found.append(picture(page))
    page.stop_listening()
    return [*found, picture(page)]


def picture(page: Page) -> tuple[float, Image.Image]:
    """What the page looks like now."""
    image = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    return time.monotonic(), image


def animate(frames: list[tuple[float, Image.Image]], path: Path) -> None:
    """A GIF of the frames at the pace at which they were taken; those that look alike are one."""
    palette = frames[-1][1].quantize(32)
    images: list[Image.Image] = []
    times: list[float] = []
    for seconds, image in frames:
        image = image.quantize(palette=palette, dither=Image.Dither.NONE)
        if not images or image.tobytes() != images[-1].tobytes():
            images.append(image)
            times.append(seconds)
    lasts = [round(1000 * (after - before)) for before, after in zip(times, times[1:], strict=False)] + [3000]
    images[0].save(path, save_all=True, append_images=images[1:], duration=lasts, loop=0, optimize=True)


if __name__ == "__main__":
    main()
