"""Draws the two networks: glm-asr.svg and encoder-decoder.svg, beside this file.

    python docs/pictures/networks.py            writes both
    python docs/pictures/networks.py --check    exit code 1 if the files aren't what this script draws today

The package has to be installed, as for the tests.
Every number comes from the presets of `glmasr.config`, or from the modules that they make on the meta device, where
tensors have shapes and no memory. Each picture is light or dark as the reader's browser is, and uses its fonts. Sound
goes down on the left, text goes up on the right; the prompt lies below both.
"""

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
from torch import nn

from glmasr.audio import FFT_SIZE
from glmasr.config import HOP, PRESETS, SAMPLE_RATE, EncoderDecoderConfig, GlmAsrConfig, total_stride
from glmasr.conv_frontend import MelFrontend, WaveformFrontend
from glmasr.model import EncoderDecoder, GlmAsr

FOLDER = Path(__file__).resolve().parent

WIDTH = 980
LEFT, RIGHT = 245, 735  # the middle of each column
FRAME = 410  # width of the frame around a block that is repeated
BOX = 290
ROUND = 7

# What a box is for -> its fill and its edge, light and dark.
COLORS = {
    "plain": ("#ffffff", "#8c959f", "#161b22", "#6e7681"),
    "sound": ("#ddf4ff", "#0969da", "#0b2447", "#58a6ff"),
    "attention": ("#fff1e5", "#bc4c00", "#3a1c06", "#f0883e"),
    "mlp": ("#dafbe1", "#1a7f37", "#04260f", "#3fb950"),
    "norm": ("#f6f8fa", "#8c959f", "#21262d", "#6e7681"),
    "ids": ("#fbefff", "#8250df", "#231546", "#bc8cff"),
    "search": ("#ffeff7", "#bf3989", "#380a26", "#f778ba"),
}
INK = {
    "page": ("#ffffff", "#0d1117"),
    "panel": ("#f6f8fa", "#151b23"),
    "edge": ("#d1d9e0", "#3d444d"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9198a1"),
    "line": ("#59636e", "#9198a1"),
}


def style() -> str:
    def rules(dark: bool) -> str:
        boxes = {name: (colors[2 * dark], colors[2 * dark + 1]) for name, colors in COLORS.items()}
        ink = {name: colors[dark] for name, colors in INK.items()}
        lines = [f".{name} {{ fill: {fill}; stroke: {edge} }}" for name, (fill, edge) in boxes.items()]
        lines += [f".{name} {{ fill: {ink[name]} }}" for name in ("page", "ink", "soft")]
        lines += [
            f".panel {{ fill: {ink['panel']}; stroke: {ink['edge']} }}",
            f".plus {{ fill: {ink['page']}; stroke: {ink['line']} }}",
            f".head {{ fill: {ink['line']} }}",
            f".line {{ fill: none; stroke: {ink['line']} }}",
            f".attended {{ stroke: {boxes['attention'][1]} }}",
            f".wave {{ fill: none; stroke: {boxes['sound'][1]} }}",
        ]
        return "\n".join(lines)

    return f"""text {{ font: 13px system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif }}
.mono {{ font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace }}
.small {{ font-size: 11.5px }}
.tiny {{ font-size: 10.5px }}
.bold {{ font-weight: 600 }}
.title {{ font-size: 20px; font-weight: 600 }}
.middle {{ text-anchor: middle }}
.end {{ text-anchor: end }}
.line, .wave {{ stroke-width: 1.5 }}
.dashed {{ stroke-dasharray: 4 4 }}
rect, circle {{ stroke-width: 1.2 }}
.page {{ stroke: none }}
{rules(False)}
@media (prefers-color-scheme: dark) {{
{rules(True)}
}}"""


class Drawing:
    """Elements of an SVG, in the order in which they are painted. y grows downward."""

    def __init__(self, title: str, description: str):
        self.title, self.description = title, description
        self.height = 0.0
        self.elements: list[str] = []

    def text(self, x: float, y: float, text: str, *kinds: str) -> None:
        if not text.strip():
            return
        self.elements.append(f'<text x="{x:g}" y="{y:g}" class="{" ".join(kinds or ("ink",))}">{escape(text)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, radius: float = ROUND) -> None:
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="{kind}"/>'
        )

    def box(self, x: float, y: float, height: float, kind: str, title: str, *below: str, width: float = BOX) -> None:
        """A box around the middle `x`, from `y` down, with a title and lines of small text."""
        self.rect(x - width / 2, y, width, height, kind)
        first = y + height / 2 + 4.5 - 8 * len(below)
        self.text(x, first, title, "ink", "middle", "bold")
        for number, line in enumerate(below, 1):
            self.text(x, first + 16 * number, line, "soft", "middle", "small")

    def path(self, *points: tuple[float, float], head: bool = True, kind: str = "line") -> None:
        """A line through points, with round corners, and the head of an arrow at its end."""
        parts = [f"M{points[0][0]:g} {points[0][1]:g}"]
        for before, here, after in zip(points[:-2], points[1:-1], points[2:], strict=True):
            turn = [
                (here[axis] + max(-8, min(8, other[axis] - here[axis]))) for other in (before, after) for axis in (0, 1)
            ]
            parts.append("L{:g} {:g} Q{:g} {:g} {:g} {:g}".format(*turn[:2], *here, *turn[2:]))
        end = points[-1]
        parts.append(f"L{end[0]:g} {end[1]:g}")
        self.elements.append(f'<path d="{" ".join(parts)}" class="{kind}"/>')
        if head:
            across = points[-2][1] == end[1]
            sign = 1 if (end[0] - points[-2][0] if across else end[1] - points[-2][1]) > 0 else -1
            corners = [(-8, -4.5), (-8, 4.5)] if across else [(-4.5, -8), (4.5, -8)]
            wings = [
                (end[0] + (dx * sign if across else dx), end[1] + (dy if across else dy * sign)) for dx, dy in corners
            ]
            self.elements.append(
                '<path d="M{:g} {:g} L{:g} {:g} L{:g} {:g} Z" class="head"/>'.format(*end, *wings[0], *wings[1])
            )

    def flow(self, x: float, start: float, end: float, shape: str = "", note: str = "") -> None:
        """An arrow down or up, the shape that flows at its right, a remark at its left."""
        self.path((x, start), (x, end))
        middle = (start + end) / 2 + 4
        if shape:
            self.text(x + 12, middle, shape, "ink", "mono")
        if note:
            self.text(x - 12, middle, note, "soft", "small", "end")

    def plus(self, x: float, y: float) -> None:
        self.elements.append(f'<circle cx="{x:g}" cy="{y:g}" r="8" class="plus"/>')
        self.path((x - 4, y), (x + 4, y), head=False)
        self.path((x, y - 4), (x, y + 4), head=False)

    def block(
        self,
        x: float,
        start: float,
        direction: int,
        repeat: str,
        name: str,
        layers: list[tuple[str, str, str, str]],
        width: float,
        middle: float,
    ) -> tuple[float, list[float]]:
        """A pre-norm block that is repeated, from `start` down (1) or up (-1): for each of its layers a norm, the layer
        itself, and the sum with what came in. `layers` has kind, norm, title and small text. Gives the far edge of the
        frame, and the middle of each layer."""
        d, size = direction, 44 + 130 * len(layers)
        self.rect(middle - FRAME / 2, start if d > 0 else start - size, FRAME, size, "panel", 10)
        top = start if d > 0 else start - size
        self.text(middle + FRAME / 2 - 12, top + 20, name, "soft", "small", "end")
        self.text(middle - FRAME / 2 + 14, top + 22, repeat, "ink", "bold")
        # The label stands at the top, so a block that goes down begins below it.
        y, middles = start + 20 * (d > 0), []
        self.path((x, start), (x, y), head=False)
        for kind, norm, title, below in layers:

            def span(offset: float, height: float, y: float = y) -> float:
                return y + offset if d > 0 else y - offset - height

            self.path((x, y), (x, y + 30 * d))
            self.path(
                (x, y + 14 * d),
                (x - width / 2 - 20, y + 14 * d),
                (x - width / 2 - 20, y + 122 * d),
                (x - 8, y + 122 * d),
                kind="line",
            )
            self.box(x, span(30, 22), 22, "norm", norm, width=width)
            self.path((x, y + 52 * d), (x, y + 62 * d), head=False)
            self.box(x, span(62, 42), 42, kind, title, below, width=width)
            self.path((x, y + 104 * d), (x, y + 114 * d), head=False)
            self.plus(x, y + 122 * d)
            middles.append(y + 83 * d)
            y += 130 * d
        self.path((x, y), (x, start + size * d), head=False)
        return start + size * d, middles

    def svg(self) -> str:
        body = "\n".join(self.elements)
        return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}"
  width="{WIDTH}" height="{self.height:g}" role="img" aria-labelledby="title description">
<title id="title">{escape(self.title)}</title>
<desc id="description">{escape(self.description)}</desc>
<style>
{style()}
</style>
<rect width="{WIDTH}" height="{self.height:g}" rx="12" class="page"/>
{body}
</svg>
"""


# -- what both have ----------------------------------------------------------------------------------------------------


def millions(*modules: nn.Module) -> str:
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return f"{count / 1e9:.2f} billion parameters" if count >= 1e9 else f"{count / 1e6:.1f} million parameters"


def shape(*sizes: int | str) -> str:
    return f"({', '.join(map(str, sizes))})"


def headings(drawing: Drawing, subtitle: str, left: tuple[str, str], right: tuple[str, str]) -> None:
    drawing.text(40, 42, drawing.title, "ink", "title")
    drawing.text(40, 64, subtitle, "soft")
    for x, (name, count) in ((LEFT, left), (RIGHT, right)):
        drawing.text(x - FRAME / 2, 100, name, "ink", "bold")
        drawing.text(x + FRAME / 2, 100, count, "soft", "small", "end")
        drawing.path((x - FRAME / 2, 109), (x + FRAME / 2, 109), head=False)


def wave(drawing: Drawing, x: float, y: float) -> None:
    """A sound, as people draw it, around (x, y)."""
    heights = (3, 7, 5, 11, 16, 9, 13, 18, 12, 7, 14, 10, 5, 8, 4, 2)
    bars = " ".join(f"M{x + 5 * (n - 7.5):g} {y - height:g} V{y + height:g}" for n, height in enumerate(heights))
    drawing.elements.append(f'<path d="{bars}" class="wave"/>')


def rate(samples: int) -> str:
    return f"{SAMPLE_RATE / samples:g} a second"


def strip(drawing: Drawing, y: float, cells: Sequence[tuple[str, float, str, str]]) -> dict[str, tuple[float, float]]:
    """What the decoder reads and writes, as cells in a row: text, width, kind, and what stands below. Gives the two
    ends of each by its text."""
    drawing.rect(24, y - 16, WIDTH - 48, 140, "panel", 10)
    x, places = 40.0, {}
    for text, width, kind, below in cells:
        drawing.rect(x, y, width, 30, kind, 4)
        drawing.text(x + width / 2, y + 19.5, text, "ink", "mono", "middle")
        if below:
            drawing.text(x + width / 2, y + 46, below, "soft", "small", "middle")
        places[text] = (x, x + width)
        x += width + 4
    return places


def notes(drawing: Drawing, y: float, *lines: str) -> None:
    for number, line in enumerate(lines):
        drawing.text(40, y + 19 * number, line, "soft", "small")
    drawing.height = y + 19 * len(lines) + 24


def cache(drawing: Drawing, edge: float, y: float, held: str) -> None:
    """The key-value cache at the right of an attention whose box ends at `edge`."""
    drawing.rect(edge + 26, y - 29, 88, 58, "plain")
    drawing.text(edge + 70, y - 10, "KV cache", "ink", "bold", "middle")
    drawing.text(edge + 70, y + 6, "of each layer", "soft", "small", "middle")
    drawing.text(edge + 70, y + 21, held, "soft", "tiny", "middle")
    drawing.path((edge, y - 7), (edge + 26, y - 7))
    drawing.path((edge + 26, y + 7), (edge, y + 7))


def top_of_decoder(
    drawing: Drawing, x: float, y: float, width: float, norm: str, head: str, below: str, size: int, vocabulary: int
) -> float:
    """From the blocks up to the logits; gives where the search begins."""
    drawing.flow(x, y, y - 36)
    drawing.box(x, y - 60, 24, "norm", norm, width=width)
    drawing.flow(x, y - 60, y - 98, shape("B", size), "of the last position")
    drawing.box(x, y - 142, 44, "ids", head, below, width=width)
    drawing.flow(x, y - 142, y - 180, shape("B", vocabulary), "logits")
    return y - 180


def text_out(drawing: Drawing, x: float, y: float, width: float, how: str) -> None:
    """Ids become text, above a search that begins at y."""
    drawing.flow(x, y, y - 38, "ids")
    drawing.box(x, y - 82, 44, "ids", "Tokenizer", how, width=width)
    drawing.flow(x, y - 82, 162)
    drawing.box(x, 126, 36, "plain", "Text", width=width)


def loop(drawing: Drawing, x: float, y: float, below: float, place: tuple[float, float], *notes: str) -> None:
    """From the search back into the prompt, around the right column."""
    at, edge = sum(place) / 2, WIDTH - 20
    drawing.path((x, y), (edge, y), (edge, below - 40), (at, below - 40), (at, below), kind="line dashed")
    for offset, note in zip((-8, 18), notes, strict=True):
        drawing.text(x + 10, y + offset, note, "soft", "small")


# -- GLM-ASR as published ----------------------------------------------------------------------------------------------


def glm_asr(config: GlmAsrConfig) -> str:
    with torch.device("meta"):
        model = GlmAsr(config)
    encoder, decoder = config.encoder, config.decoder
    frontend, projector = model.encoder.frontend, model.projector
    frames = config.window // HOP
    states = frames // frontend.conv2.stride[0]
    rows = states // config.merge
    every = HOP * frontend.conv2.stride[0]
    drawing = Drawing(
        "GLM-ASR-Nano-2512, as published",
        "Log-mel, two convolutions, a rotary encoder, a projector; its rows lie in the "
        "prompt of a Llama decoder, which writes the text.",
    )
    headings(
        drawing,
        f"{millions(model)}. No cross-attention: rows of sound stand in the decoder's prompt, in place of embeddings.",
        ("Sound becomes rows", f"{millions(model.encoder, projector)}"),
        ("Prompt becomes text", millions(model.decoder)),
    )

    x = LEFT
    drawing.box(x, 126, 50, "sound", "", width=BOX)
    wave(drawing, x - 98, 151)
    drawing.text(x - 44, 147, "Recording", "ink", "bold")
    drawing.text(x - 44, 164, f"{SAMPLE_RATE // 1000} kHz, W windows of {config.window_seconds} s", "soft", "small")
    drawing.flow(x, 176, 206, shape("W", config.window))
    drawing.box(x, 206, 44, "sound", "Log-mel", f"{encoder.bands} bands, {FFT_SIZE} samples every {HOP}")
    drawing.flow(x, 250, 280, shape("W", encoder.bands, frames), rate(HOP))
    for place, conv in ((280, frontend.conv1), (354, frontend.conv2)):
        drawing.box(
            x,
            place,
            44,
            "sound",
            f"Conv1d {conv.in_channels} → {conv.out_channels}, GELU",
            f"kernel {conv.kernel_size[0]}, stride {conv.stride[0]}",
        )
    drawing.flow(x, 324, 354, shape("W", encoder.width, frames))
    drawing.flow(x, 398, 430, shape("W", states, encoder.width), rate(every))
    end, _ = drawing.block(
        x,
        430,
        1,
        f"× {encoder.layers}",
        "EncoderBlock",
        [
            (
                "attention",
                "LayerNorm",
                "Self-attention, RoPE",
                f"{encoder.heads} heads of {encoder.head_size}, {encoder.rotary} dims turned; no mask",
            ),
            ("mlp", "LayerNorm", "MLP, GELU", f"{encoder.width} → {encoder.hidden} → {encoder.width}"),
        ],
        BOX,
        LEFT,
    )
    drawing.flow(x, end, end + 24)
    drawing.box(x, end + 24, 24, "norm", "LayerNorm")
    drawing.flow(x, end + 48, end + 78, shape("W", states, encoder.width), rate(every))
    drawing.box(
        x,
        end + 78,
        44,
        "plain",
        f"Stack {config.merge} neighbors",
        f"{config.merge} × {encoder.width} = {config.merge * encoder.width}",
    )
    drawing.flow(x, end + 122, end + 152, shape("W", rows, config.merge * encoder.width), rate(every * config.merge))
    drawing.box(
        x,
        end + 152,
        44,
        "mlp",
        "Projector: Linear, GELU, Linear",
        f"{projector.up.in_features} → {projector.up.out_features} → {projector.down.out_features}",
    )
    y = end + 196

    below = y + 96
    cells = [
        ("<|user|>\\n", 84, "ids", ""),
        ("<|begin_of_audio|>", 144, "ids", ""),
        *((" " * n, 17, "sound", "") for n in range(1, 8)),
        ("<|end_of_audio|>", 130, "ids", ""),
        ("<|user|>\\n", 84, "ids", ""),
        ("instruction", 96, "ids", f"“{config.instruction}”"),
        ("<|assistant|>\\n", 116, "ids", ""),
        ("answer", 80, "search", ""),
    ]
    places = strip(drawing, below, cells)
    rows_end = (places[" "][0] + places[" " * 7][1]) / 2
    drawing.text(rows_end, below + 46, "N placeholders <|pad|>, overlaid by rows of sound", "soft", "small", "middle")
    notes(
        drawing,
        below + 72,
        "The prompt is read once; then each id of the answer is one step against the cache, "
        f"up to one of {len(config.stop)} stop ids.",
        "With --long whole the rows of all windows follow each other in one prompt: "
        f"{config.longest_windows} windows, {config.longest_windows * config.window_seconds} s, at most.",
        "W windows of a recording; N audio embeddings of it; B texts that are written at once; "
        "L ids that are read, later 1; S in the cache.",
    )
    drawing.path((x, y), (x, y + 44), (rows_end, y + 44), (rows_end, below))
    drawing.text(x + 12, y + 22, shape("W", rows, decoder.width), "ink", "mono")
    drawing.text(rows_end - 12, y + 66, "rows of padding dropped", "soft", "small", "end")
    drawing.text(rows_end + 12, y + 66, shape("N", decoder.width), "ink", "mono")

    x, width = RIGHT - 34, 240
    drawing.flow(x, below - 16, y, "(B, L)", "ids of prompt and answer")
    drawing.box(
        x,
        y - 44,
        44,
        "ids",
        f"Embedding {decoder.vocabulary:,} × {decoder.width}",
        "rows of sound replace placeholders",
        width=width,
    )
    drawing.flow(x, y - 44, y - 78, shape("B", "L", decoder.width))
    end, (attention, _) = drawing.block(
        x,
        y - 78,
        -1,
        f"× {decoder.layers}",
        "LlamaBlock",
        [
            (
                "attention",
                "RMSNorm",
                "Causal self-attention, RoPE",
                f"{decoder.heads} query heads, {decoder.key_heads} key heads of {decoder.head_size}",
            ),
            ("mlp", "RMSNorm", "SwiGLU", f"{decoder.width} → 2 × {decoder.hidden} → {decoder.width}"),
        ],
        width,
        RIGHT,
    )
    cache(drawing, x + width / 2, attention, shape("B", decoder.key_heads, "S", decoder.head_size))
    y = top_of_decoder(
        drawing,
        x,
        end,
        width,
        "RMSNorm",
        "Head",
        f"{decoder.width} → {decoder.vocabulary:,}, a matrix of its own",
        decoder.width,
        decoder.vocabulary,
    )
    drawing.box(
        x,
        y - 60,
        60,
        "search",
        "Rules, then greedy search",
        "--lang forbids letters of other scripts;",
        "the likeliest id that is left is taken",
        width=width,
    )
    text_out(drawing, x, y - 60, width, "byte-level BPE")
    loop(drawing, x + width / 2, y - 30, below, places["answer"], "the chosen id,", "if it is no stop id")
    return drawing.svg()


# -- the article's, and Whisper's --------------------------------------------------------------------------------------


def encoder_decoder(config: EncoderDecoderConfig, waveform: EncoderDecoderConfig) -> str:
    with torch.device("meta"):
        model, other = EncoderDecoder(config), EncoderDecoder(waveform)
    encoder, decoder, layers = config.encoder, config.decoder, waveform.encoder.convolutions
    frontend, wave_frontend = model.encoder.frontend, other.encoder.frontend
    assert isinstance(frontend, MelFrontend) and isinstance(wave_frontend, WaveformFrontend)
    project = wave_frontend.project
    assert isinstance(project, nn.Linear)
    frames = config.window // HOP
    drawing = Drawing(
        "The article's encoder-decoder, and Whisper",
        "One of two frontends, sinusoids, an encoder; its states are read by "
        "the cross-attention of a decoder that writes text and times.",
    )
    headings(
        drawing,
        "The decoder attends to the sound through cross-attention. Its prompt is a few tokens: the language, the task.",
        ("Sound becomes states", millions(model.encoder)),
        ("Prompt becomes text", millions(model.decoder)),
    )

    x, width, narrow = LEFT, 195, 182
    mel, raw = LEFT - FRAME / 2 + width / 2, LEFT + FRAME / 2 - narrow / 2
    drawing.box(x, 126, 50, "sound", "", width=BOX)
    wave(drawing, x - 98, 151)
    drawing.text(x - 44, 147, "Recording", "ink", "bold")
    drawing.text(x - 44, 164, f"{SAMPLE_RATE // 1000} kHz, A windows of {config.window_seconds} s", "soft", "small")
    for side in (mel, raw):
        drawing.path((x, 176), (x, 212), (side, 212), (side, 262))
    drawing.text(x + 12, 198, shape("A", config.window), "ink", "mono")
    drawing.text(mel - 12, 240, "article", "soft", "small", "end")
    drawing.text(raw + 12, 240, "article-waveform", "soft", "small")
    drawing.text((mel + raw) / 2, 240, "either, or", "soft", "small", "middle")
    drawing.box(mel, 262, 44, "sound", "Log-mel", f"{encoder.bands} bands, {FFT_SIZE} every {HOP}", width=width)
    drawing.flow(mel, 306, 344, shape("A", encoder.bands, frames))
    for place, conv in ((344, frontend.conv1), (426, frontend.conv2)):
        drawing.box(
            mel,
            place,
            44,
            "sound",
            f"Conv1d {conv.in_channels} → {conv.out_channels}",
            f"kernel {conv.kernel_size[0]}, stride {conv.stride[0]}, GELU",
            width=width,
        )
    drawing.flow(mel, 388, 426, shape("A", encoder.width, frames))
    drawing.box(raw, 262, 28, "sound", "Divide by the peak", width=narrow)
    drawing.flow(raw, 290, 326, shape("A", 1, waveform.window))
    drawing.box(
        raw,
        326,
        80,
        "sound",
        f"{len(layers)} × Conv1d",
        "GroupNorm(1), SiLU",
        "kernels " + ", ".join(str(kernel) for _, kernel, _ in layers),
        "strides " + ", ".join(str(stride) for _, _, stride in layers),
        width=narrow,
    )
    drawing.flow(raw, 406, 442, shape("A", waveform.window // total_stride(layers), layers[-1][0]))
    drawing.box(
        raw,
        442,
        28,
        "sound",
        f"Linear {project.in_features} → {project.out_features}",
        width=narrow,
    )
    drawing.path((mel, 470), (mel, 512), (x, 512), (x, 548))
    drawing.path((raw, 470), (raw, 512), (x, 512), (x, 548), head=False)
    drawing.text(mel + 12, 494, shape("A", encoder.positions, encoder.width), "ink", "mono")
    drawing.text(raw + 12, 494, shape("A", waveform.encoder.positions, waveform.encoder.width), "ink", "mono")
    drawing.plus(x, 556)
    drawing.box(mel, 542, 28, "norm", "Sinusoids", width=150)
    drawing.path((mel + 75, 556), (x - 8, 556))
    drawing.text(x + 16, 552, shape("A", "T", encoder.width), "ink", "mono")
    drawing.text(x + 16, 570, f"T = {encoder.positions} or {waveform.encoder.positions}", "soft", "small")
    drawing.path((x, 564), (x, 596))
    end, _ = drawing.block(
        x,
        596,
        1,
        f"× {encoder.layers}",
        "EncoderBlock",
        [
            ("attention", "LayerNorm", "Self-attention", f"{encoder.heads} heads of {encoder.head_size}; no mask"),
            ("mlp", "LayerNorm", "MLP, GELU", f"{encoder.width} → {encoder.hidden} → {encoder.width}"),
        ],
        BOX,
        LEFT,
    )
    drawing.flow(x, end, end + 36)
    drawing.box(x, end + 36, 24, "norm", "LayerNorm")
    drawing.flow(x, end + 60, end + 104, shape("A", "T", encoder.width))
    drawing.box(
        x, end + 104, 44, "attention", f"{decoder.layers} × keys and values", "of each decoder layer, once for a window"
    )
    y = end + 148

    below = y + 74
    time = [config.times, config.times + 120, config.times + 250]
    text, spoken = " text ", f"<|{next(iter(config.languages))}|>"
    cells = [
        ("<|startoftranscript|>", 158, "ids", str(config.start)),
        (spoken, 62, "ids", str(config.languages[spoken[2:-2]])),
        ("<|transcribe|>", 112, "ids", str(config.tasks["transcribe"])),
        ("<|0.00|>", 70, "search", str(time[0])),
        (text, 54, "search", ""),
        ("<|2.40|>", 70, "search", str(time[1])),
        ("<|2.40|>", 70, "search", str(time[1])),
        (text, 54, "search", ""),
        ("<|5.00|>", 70, "search", str(time[2])),
        ("<|endoftranscript|>", 144, "search", str(config.end)),
    ]
    places = strip(drawing, below, cells)
    notes(
        drawing,
        below + 72,
        "Without times <|notimestamps|> is the last token of the prompt. Without --lang <|startoftranscript|> alone is "
        "read: the language tokens' logits judge.",
        f"Prompt and answer have {decoder.positions} positions. In doubt the answer is sampled at rising temperature. "
        "Whisper: the same, with other numbers.",
        "A windows at once; B = A × beams; T states of a window; L ids that are read, later 1; S in the cache.",
    )

    x, width = RIGHT - 34, 240
    drawing.flow(x, below - 16, y, "(B, L)", "ids of prompt and answer")
    drawing.box(
        x,
        y - 44,
        44,
        "ids",
        f"Embedding {decoder.vocabulary:,} × {decoder.width}",
        f"+ {decoder.positions} learned positions",
        width=width,
    )
    drawing.flow(x, y - 44, y - 78, shape("B", "L", decoder.width))
    heads = f"{decoder.heads} heads of {decoder.head_size}"
    end, (attention, cross, _) = drawing.block(
        x,
        y - 78,
        -1,
        f"× {decoder.layers}",
        "CrossBlock",
        [
            ("attention", "LayerNorm", "Causal self-attention", heads),
            ("attention", "LayerNorm", "Cross-attention", f"{heads}; no mask"),
            ("mlp", "LayerNorm", "MLP, GELU", f"{decoder.width} → {decoder.hidden} → {decoder.width}"),
        ],
        width,
        RIGHT,
    )
    cache(drawing, x + width / 2, attention, shape("B", decoder.heads, "S", decoder.head_size))
    between = (LEFT + FRAME / 2 + RIGHT - FRAME / 2) / 2
    drawing.path(
        (LEFT + BOX / 2, y - 22), (between, y - 22), (between, cross), (x - width / 2, cross), kind="line attended"
    )
    drawing.text(LEFT + BOX / 2 + 6, y - 30, shape("A", decoder.heads, "T", decoder.head_size), "ink", "mono", "tiny")
    y = top_of_decoder(
        drawing,
        x,
        end,
        width,
        "LayerNorm",
        "Head",
        f"{decoder.width} → {decoder.vocabulary:,}: the embedding",
        decoder.width,
        decoder.vocabulary,
    )
    drawing.box(
        x,
        y - 60,
        60,
        "search",
        "Rules, then beam search",
        "suppressed ids; times in their order;",
        f"the {config.beams} best beginnings go on",
        width=width,
    )
    text_out(drawing, x, y - 60, width, "SentencePiece; Whisper: BPE")
    loop(drawing, x + width / 2, y - 30, below, places["<|endoftranscript|>"], "each beam's id,", "if it is no end")
    return drawing.svg()


def pictures() -> dict[str, str]:
    """File name -> what is in it."""
    published, article, waveform = (PRESETS[name] for name in ("glm-asr-nano-2512", "article", "article-waveform"))
    assert isinstance(published, GlmAsrConfig)
    assert isinstance(article, EncoderDecoderConfig) and isinstance(waveform, EncoderDecoderConfig)
    return {"glm-asr.svg": glm_asr(published), "encoder-decoder.svg": encoder_decoder(article, waveform)}


def main() -> int:
    drawn = {FOLDER / name: text for name, text in pictures().items()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.is_file() or path.read_text(encoding="utf-8") != text for path, text in drawn.items()))
    for path, text in drawn.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
