"""Pictures of the web page, in a real Chromium (needs the extra [test], and chromium with chromedriver on the PATH).

    python app.py --model demo-article &
    python benchmarks/screenshots.py docs/images

Desktop in English, and a phone in Chinese, each with a recording transcribed.
"""

import argparse
from pathlib import Path

from browser import Page  # the tests drive the same page

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"page-desktop": ("en-GB", 1100, 640, "en.mp3"), "page-phone": ("zh-CN", 390, 1240, "zh.wav")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, (language, width, height, recording) in PICTURES.items():
        with Page(args.url, language, width, height) as page:
            page.upload(ROOT / "examples" / recording)
            page.transcribe()
            page.picture(args.folder / f"{name}.png")
            print(args.folder / f"{name}.png")


if __name__ == "__main__":
    main()
