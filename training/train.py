"""Trains a model of this package, from scratch or from its weights, on a manifest of recordings and texts.

    python training/train.py MODEL_DIR --train train.jsonl --eval eval.jsonl --out RUN --steps 8000

MODEL_DIR holds config.json and tokenizer.json; where it holds weights too, they are the start (fine-tuning) unless
--from-scratch is given. RUN gets `model/` (a complete checkpoint: what is evaluated, the running mean of the weights)
and `state.safetensors` (to go on from: the same command again resumes).

Three losses, the second and the third while training only:

    answer      cross-entropy of the answer after the trained prompt
    CTC         between the encoder's states and the text: it teaches a fresh encoder to listen long before the decoder
                could
    guide       a head of the decoder's last layer is shown where CTC finds the next word, and a head of each other
                layer where it finds the last one, for one has to know where one is before one goes on. A decoder that
                has to find its place by itself loses it after six words for thousands of steps

From scratch, a model finds nothing in long and changed recordings for thousands of steps; --ramp begins with short
clean ones, in which it finds the words within hundreds. And for a part of the steps (--short) a batch is padded to its
longest recording, not to the whole window: rotary positions don't mind, and it is several times cheaper. The rest of
the steps gets the model used to the silence of padded windows.
"""

import argparse
import itertools
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from augment import augment, nothing_said  # noqa: E402
from evaluate import TrainingError, evaluate, read_manifest  # noqa: E402
from families import IGNORE, TIME_WEIGHT, Batch, Clip, EncoderDecoderFamily, GlmAsrFamily, family_of  # noqa: E402

from glmasr import (
    audio,
    weights,  # noqa: E402
)
from glmasr.checkpoint.config_json import read_config  # noqa: E402
from glmasr.conv_frontend import WaveformFrontend  # noqa: E402
from glmasr.decoder import CrossDecoder, LlamaDecoder  # noqa: E402
from glmasr.errors import GlmAsrError  # noqa: E402
from glmasr.kernels import devices
from glmasr.layers import CrossAttention, SelfAttention, rotate  # noqa: E402
from glmasr.model import EncoderDecoder, GlmAsr  # noqa: E402
from glmasr.pipeline import Recognizer  # noqa: E402
from glmasr.tokenizer import read_tokenizer  # noqa: E402
from glmasr.transcription.language import join  # noqa: E402

GAPS = 0.15, 0.8  # seconds between recordings that are joined
EDGE = 0.05  # seconds of a joined recording around what is said in it
PAUSE = 0.5  # seconds; a shorter gap doesn't end a phrase, as in make_digits.py


# -- batches -----------------------------------------------------------------------------------------------------------


def plan(rows: list[dict], budget: float, window: float, whole: bool, rng: random.Random) -> list[list[dict]]:
    """Groups recordings of like length so that each batch has about `budget` seconds, padding counted."""

    def cost(row):
        return window * -(-row["seconds"] // window) if whole else row["seconds"] + 0.5

    rows = sorted(rows, key=lambda row: row["seconds"] * rng.uniform(0.8, 1.25))
    batches, batch, longest = [], [], 0.0
    for row in rows:
        longest_now = max(longest, cost(row))
        if batch and longest_now * (len(batch) + 1) > budget:
            batches.append(batch)
            batch, longest_now = [], cost(row)
        batch.append(row)
        longest = longest_now
    batches.append(batch)
    rng.shuffle(batches)
    return batches


def joined(rows: list[dict], share: float, longest: float, rng: random.Random) -> list[dict]:
    """The rows, a share of them made into longer recordings, as windows of a long one are: {"parts": rows of one
    language, "gaps": seconds in front of each, "seconds"}, together at most `longest` seconds."""
    rows = rng.sample(rows, len(rows))
    count = round(share * len(rows))
    found, groups = rows[count:], {}
    for row in rows[:count]:
        group = groups.get(row.get("language"))
        gap = rng.uniform(*GAPS) if group else 0.0
        if group and group["seconds"] + gap + row["seconds"] > longest * rng.uniform(0.6, 1.0):
            found.append(groups.pop(row.get("language")))
            group, gap = None, 0.0
        if not group:
            group = groups[row.get("language")] = {
                "parts": [],
                "gaps": [],
                "seconds": 0.0,
                "language": row.get("language", ""),
            }
        group["parts"].append(row)
        group["gaps"].append(gap)
        group["seconds"] += gap + row["seconds"]
    return found + list(groups.values())


def read_clip(row: dict, changed: float, silence: float, rng: np.random.Generator) -> Clip:
    """The recording of a row, changed with probability `changed`; or, with probability `silence`, no speech."""
    if rng.random() < silence:
        return Clip(torch.from_numpy(nothing_said(min(row["seconds"], 10.0), rng)), "", row.get("language", ""), [])
    sounds, phrases, length = [], [], 0
    parts = row.get("parts", [row])
    for part, gap in zip(parts, row.get("gaps", [0.0])):
        samples, said = audio.load(part["audio"]).numpy(), part.get("phrases", [])
        begin = (
            max(0.0, said[0]["start"] - EDGE) if said and len(parts) > 1 else 0.0
        )  # the gap is the silence that is wanted
        end = said[-1]["end"] + EDGE if said and len(parts) > 1 else part["seconds"]
        samples = samples[round(begin * audio.SAMPLE_RATE) : round(end * audio.SAMPLE_RATE)]
        sounds += [np.zeros(round(gap * audio.SAMPLE_RATE), np.float32), samples]
        later = (length + len(sounds[-2])) / audio.SAMPLE_RATE - begin
        length += len(sounds[-2]) + len(samples)
        for phrase in said:
            start, end = later + phrase["start"], later + phrase["end"]
            if phrases and start - phrases[-1][1] < PAUSE:
                phrases[-1] = (phrases[-1][0], end, join([phrases[-1][2], phrase["text"]]))
            else:
                phrases.append((start, end, phrase["text"]))
    samples, speed = np.concatenate(sounds), 1.0
    if rng.random() < changed:
        samples, speed = augment(samples, rng)
    return Clip(
        torch.from_numpy(samples),
        join([part["text"] for part in parts]),
        row.get("language", ""),
        [(start / speed, end / speed, text) for start, end, text in phrases],
    )


class Stream(torch.utils.data.IterableDataset):
    """Endless batches, from step `start` on. Read in a process of its own, so that the next ones are ready in time."""

    def __init__(self, rows: list[dict], family: GlmAsrFamily | EncoderDecoderFamily, args, start: int):
        self.rows, self.family, self.args, self.start = rows, family, args, start

    def allowed(self, step: int) -> list[dict]:
        """Short recordings first: to a fresh model a long one says little about which sound is which word."""
        if step >= self.args.ramp:
            return self.rows
        share = 0.1 + 0.9 * step / self.args.ramp
        return sorted(self.rows, key=lambda row: row["seconds"])[: max(1, round(share * len(self.rows)))]

    def __iter__(self):
        args, queue, epoch, was_whole = self.args, [], 0, None
        for step in itertools.count():
            whole = step >= args.short * args.steps
            # While more recordings come in, a plan is good for 50 steps only.
            if not queue or whole != was_whole or (step < args.ramp and step % 50 == 0):
                window = self.family.config.window_seconds
                rng, rows = random.Random(args.seed + epoch), self.allowed(step)
                if step >= args.ramp:
                    rows = joined(rows, args.join, 0.9 * window, rng)  # slowed down they have to fit still
                queue = plan(rows, args.batch_seconds, window, whole, rng)
                epoch, was_whole = epoch + 1, whole
            batch = queue.pop()
            if step >= self.start:
                changed = min(1.0, step / args.ramp) if args.ramp else 1.0
                rng = np.random.default_rng(args.seed * 1_000_003 + step)
                clips = [read_clip(row, changed, args.silence, rng) for row in batch]
                yield self.family.collate(clips, whole, rng.random() < changed, args.misread, rng)


# -- losses ------------------------------------------------------------------------------------------------------------


class Labels(nn.Module):
    """The CTC head: encoder states -> the text ids that the training texts use, and a blank (label 0)."""

    def __init__(self, width: int, texts: list[list[int]], vocabulary: int):
        super().__init__()
        used = sorted({token for text in texts for token in text})
        self.register_buffer(
            "label",
            torch.zeros(vocabulary, dtype=torch.long).index_put((torch.tensor(used),), torch.arange(1, len(used) + 1)),
            persistent=False,
        )
        self.head = nn.Linear(width, len(used) + 1)

    def forward(self, states: list[Tensor]) -> Tensor:
        """Log-probabilities (T, B, labels)."""
        return self.head(nn.utils.rnn.pad_sequence(states)).float().log_softmax(-1)

    def loss(self, logprobs: Tensor, lengths: list[int], texts: list[Tensor]) -> Tensor:
        return F.ctc_loss(
            logprobs,
            self.label[torch.cat(texts)],
            torch.tensor(lengths),
            torch.tensor([len(x) for x in texts]),
            zero_infinity=True,
        )

    def places(self, logprobs: Tensor, lengths: list[int], texts: list[Tensor]) -> Tensor:
        """(B, L, T): for each word of each text, how likely CTC finds it in each frame; zeros where it can't be.

        These posteriors are what the gradient of the CTC loss is made of. With a label for each word of a text, instead
        of one for equal words, they can be read from it: gradient = probability - posterior.
        """
        own = nn.utils.rnn.pad_sequence([F.pad(self.label[text], (1, 0)) for text in texts], batch_first=True)
        counts, ends = torch.tensor([len(text) for text in texts]), torch.tensor(lengths)
        with torch.enable_grad():
            logprobs = logprobs.detach().gather(2, own.expand(len(logprobs), *own.shape)).requires_grad_()
            order = torch.arange(1, own.shape[1], device=own.device).expand(len(texts), -1)
            loss = F.ctc_loss(logprobs, order, ends, counts, reduction="none")
            (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        posterior = (logprobs.detach().exp() - gradient).permute(1, 2, 0)[:, 1:]
        inside = (torch.arange(posterior.shape[1]) < counts[:, None])[:, :, None] & (
            torch.arange(len(logprobs)) < ends[:, None]
        )[:, None]
        return torch.where(inside.to(logprobs.device) & loss.isfinite()[:, None, None], posterior.clamp(min=0), 0.0)


class Guide:
    """Shows the first head of each layer that attends to the sound its place: that of the next word in the last layer,
    else that of the word before.

    `scores` are the logits (B, T, S) of these heads in the last forward pass, one for each layer.
    """

    def __init__(self, decoder: CrossDecoder | LlamaDecoder):
        self.scores: list[Tensor] = []
        for block in decoder.blocks:
            (block.cross if isinstance(decoder, CrossDecoder) else block.attn).register_forward_hook(self.keep)

    def keep(self, attention: CrossAttention | SelfAttention, inputs, _) -> None:
        if not attention.training:
            return
        size, mask = attention.head_size, None
        query = self.first(attention.query, inputs[0], size)
        if isinstance(attention, CrossAttention):
            key = inputs[1][:, :1]
        else:
            _, rope, _, _, mask = inputs
            query, key = rotate(query, rope), rotate(self.first(attention.key, inputs[0], size), rope)
        scores = query @ key.transpose(2, 3) * size**-0.5
        self.scores.append((scores if mask is None else scores.masked_fill(~mask, -1e4))[:, 0])

    @staticmethod
    def first(linear: nn.Linear, x: Tensor, size: int) -> Tensor:
        """x (B, T, D) -> what a projection gives its first head, (B, 1, T, K)."""
        return F.linear(x, linear.weight[:size], None if linear.bias is None else linear.bias[:size])[:, None]

    def loss(self, places: Tensor, words: Tensor) -> Tensor:
        """Cross-entropy between where CTC finds a word, (B, L, S), and where the heads attend; at `words` (B, T) one is
        to be learned."""
        scores, self.scores = self.scores, []
        mass = places.sum(-1)  # at least 1 where there is a word: it may last for frames
        whole = (mass > 0).sum(-1) == words.sum(-1)  # not where CTC can't find it, or the answer has other pieces
        places = (places / mass.clamp(min=1)[..., None])[whole]
        words, first = words[whole], words[whole].cumsum(1) == 1
        losses = []
        for layer, score in enumerate(scores):
            lag = layer < len(scores) - 1
            attended = score[whole][words & ~first if lag else words].float().log_softmax(-1)[:, : places.shape[-1]]
            wanted = places[:, :-1][(mass > 0)[whole][:, 1:]] if lag else places[(mass > 0)[whole]]
            losses.append(-(wanted * attended).sum() / max(1, len(wanted)))
        return torch.stack(losses).mean()


def losses(family, labels: Labels, guide: Guide, batch: Batch) -> Tensor:
    """(cross-entropy of the answer, CTC, where the decoder attends)."""
    hidden, spoken = family.forward(batch)
    answers = batch.targets != IGNORE
    logits = family.model.decoder.head(hidden[answers]).float()
    answer = family.loss(logits, batch.targets[answers])
    logprobs, lengths = labels(spoken), [len(states) for states in spoken]
    ctc = labels.loss(logprobs, lengths, batch.labels)
    look = guide.loss(family.places(labels.places(logprobs, lengths, batch.labels), batch), family.words(batch))
    return torch.stack((answer, ctc, look))


# -- the run -----------------------------------------------------------------------------------------------------------


def start_model(directory: Path, from_scratch: bool) -> GlmAsr | EncoderDecoder:
    if not from_scratch and any(directory.glob("model.safetensors*")):
        model = weights.load(directory, device=devices.choose_device("auto")).requires_grad_(True)
        if isinstance(model, EncoderDecoder):
            model.encoder.positions.requires_grad_(False)
        return model
    model = weights.build(read_config(directory)).to(devices.choose_device("auto"))
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter.requires_grad:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    for name, module in model.decoder.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
    if isinstance(getattr(model.encoder, "frontend", None), WaveformFrontend):
        begin_as_waves(model.encoder.frontend.layers[0].conv.weight)
    for blocks in (model.encoder.blocks, model.decoder.blocks):
        for block in blocks:  # what is added to the residual starts small, so that depth doesn't blow it up
            for layer in (block.attn.out, block.mlp.down, *([block.cross.out] if hasattr(block, "cross") else [])):
                layer.weight.data /= (2 * len(blocks)) ** 0.5
    return model


@torch.no_grad()
def begin_as_waves(weight: Tensor) -> None:
    """Filters (C, 1, kernel) become short waves, evenly spaced on the mel scale, in four phases a quarter turn apart
    (as SincNet's, Ravanelli and Bengio, 2018): after SiLU the four together say how loud a frequency is, whatever its
    phase. Random filters learned nothing in 600 steps."""
    channels, _, kernel = weight.shape
    bands = -(-channels // 4)
    mel = torch.linspace(100, 2800, bands)  # 65 Hz to 7.7 kHz
    frequency = 700 * (10 ** (mel / 2595) - 1)
    time = (torch.arange(kernel) - (kernel - 1) / 2) / audio.SAMPLE_RATE
    phase = torch.arange(4)[:, None] * torch.pi / 2
    waves = torch.cos(2 * torch.pi * frequency[:, None, None] * time + phase) * torch.hann_window(kernel + 2)[1:-1]
    louder = 1 + frequency / 500  # speech has little at high frequencies
    weight.copy_((waves * louder[:, None, None]).flatten(0, 1)[:channels, None] / kernel)


def rate(step: int, args) -> float:
    """Learning rate: linear up, then half a cosine down to a hundredth."""
    if step < args.warmup:
        return args.rate * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.rate * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * min(1.0, done))))


def save_state(path: Path, step: int, parts: dict[str, nn.Module], optimizer, mean: dict[str, Tensor]) -> None:
    """Everything that the next session needs, as safetensors: no pickle, and a half-written file never replaces a whole
    one."""
    state = {
        f"{part}/{name}": value.contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    state |= {f"mean/{name}": value for name, value in mean.items()}
    for index, values in optimizer.state_dict()["state"].items():
        state |= {f"adam/{index}/{key}": value for key, value in values.items()}
    state = {name: value.clone() for name, value in state.items()}
    save_file(state, path.with_suffix(".part"), metadata={"step": str(step)})
    path.with_suffix(".part").replace(path)


def load_state(path: Path, parts: dict[str, nn.Module], optimizer, mean: dict[str, Tensor]) -> int:
    with safe_open(path, framework="pt") as file:
        groups: dict[str, dict] = {}
        for name in file.keys():
            part, _, rest = name.partition("/")
            groups.setdefault(part, {})[rest] = file.get_tensor(name).clone()
        step = int(file.metadata()["step"])
    for part, module in parts.items():
        module.load_state_dict(groups[part])
    for name, value in groups["mean"].items():
        mean[name].copy_(value)
    state: dict[int, dict] = {}
    for name, value in groups.get("adam", {}).items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def with_weights(model: GlmAsr, mean: dict[str, Tensor]):
    """Swaps the model's parameters with the running mean; called again, swaps back."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(mean[name])
            mean[name].copy_(kept)


def report(model, tokenizer, mean, args, step: int) -> None:
    """Saves the mean of the weights as a checkpoint and prints its error rates."""
    with_weights(model, mean)
    weights.save(model, args.out / "model")
    for name in (
        "tokenizer.json",
        "tokenizer.model",
        "added_tokens.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        if (args.model / name).is_file():
            shutil.copy(args.model / name, args.out / "model" / name)
    recognizer = Recognizer(model.eval(), tokenizer)
    language = "given" if getattr(model.config, "languages", None) else "auto"
    for manifest in args.eval:
        rows = read_manifest(manifest)[: args.eval_count]
        error = evaluate(recognizer, rows, language=language, progress=False).rate
        tqdm.write(f"step {step}: {Path(manifest).stem}: word errors {100 * error:.2f} %")
    with_weights(model.train(), mean)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--train", required=True, nargs="+", metavar="MANIFEST")
    parser.add_argument(
        "--twice",
        default=[],
        nargs="+",
        metavar="SPEAKER",
        help="use recordings of these speakers twice as often, changed ones too",
    )
    parser.add_argument(
        "--without",
        default=[],
        nargs="+",
        metavar="SPEAKER",
        help="leave out recordings of these speakers, changed ones too",
    )
    parser.add_argument(
        "--longest", type=float, default=float("inf"), metavar="SECONDS", help="leave out longer recordings"
    )
    parser.add_argument("--eval", default=[], nargs="+", metavar="MANIFEST")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN")
    parser.add_argument("--from-scratch", action="store_true", help="random weights, even if MODEL_DIR has some")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-seconds", type=float, default=80, help="recording and padding in a batch (default 80)")
    parser.add_argument("--short", type=float, default=0.7, help="share of the steps with short padding (default 0.7)")
    parser.add_argument(
        "--ramp",
        type=int,
        default=0,
        help="from scratch: the steps over which long recordings and changes come in (default 0: all at once)",
    )
    parser.add_argument(
        "--rate", type=float, default=1.5e-3, help="peak learning rate (default 1.5e-3; fine-tuning: 1e-4)"
    )
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--ctc", type=float, default=0.5, help="weight of the CTC loss (default 0.5)")
    parser.add_argument(
        "--guide", type=float, default=0.5, help="weight of the loss that shows the decoder its place (default 0.5)"
    )
    parser.add_argument(
        "--times",
        type=float,
        default=TIME_WEIGHT,
        help=f"weight of a time in the loss, where a word has 1 (default {TIME_WEIGHT}; more once the words are known)",
    )
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay of the matrices (default 0.05)")
    parser.add_argument(
        "--silence",
        type=float,
        default=0.0,
        help="share of the clips that are replaced by noise or silence (default 0)",
    )
    parser.add_argument(
        "--join",
        type=float,
        default=0.0,
        help="share of the clips that are joined, as in long recordings (default 0)",
    )
    parser.add_argument(
        "--misread",
        type=float,
        default=0.0,
        help="share of the text that the decoder reads wrongly while it learns (default 0)",
    )
    parser.add_argument(
        "--mean", type=float, default=0.998, help="decay of the running mean of the weights (default 0.998)"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--eval-every", type=int, default=1000)
    parser.add_argument(
        "--eval-count", type=int, default=60, help="recordings of each manifest to evaluate (default 60)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rows = [
        row
        for manifest in args.train
        for row in read_manifest(manifest)
        if row.get("speaker", "").partition("*")[0] not in args.without
    ]
    rows += [row for row in rows if row.get("speaker", "").partition("*")[0] in args.twice]
    tokenizer = read_tokenizer(args.model)
    model = start_model(args.model, args.from_scratch).train()
    family = family_of(model, tokenizer, args.times)
    guide = Guide(model.decoder)
    known = len(rows)
    # Slowed down they have to fit still.
    rows = [row for row in rows if row["seconds"] <= args.longest and row["seconds"] / 0.9 <= family.longest]
    if not rows:
        raise TrainingError(
            f"none of {known} recordings is left: all are of left-out speakers, or longer than {min(args.longest, family.longest)} s"
        )
    labels = Labels(
        model.config.encoder.width, [tokenizer.encode(row["text"]) for row in rows], model.config.decoder.vocabulary
    )
    labels.to(model.device)
    learned = [p for part in (model, labels) for p in part.parameters() if p.requires_grad]
    matrices, vectors = [p for p in learned if p.dim() > 1], [p for p in learned if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    mean = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    parts = {"model": model, "labels": labels}
    args.out.mkdir(parents=True, exist_ok=True)
    state = args.out / "state.safetensors"
    first = load_state(state, parts, optimizer, mean) if state.is_file() else 0
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(rows)} recordings, "
        f"{sum(row['seconds'] for row in rows) / 3600:.1f} h; steps {first} to {args.steps}",
        flush=True,
    )

    stream = Stream(rows, family, args, first)
    batches = iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4))
    share, shown = torch.tensor([1.0, args.ctc, args.guide], device=model.device), np.zeros(3)
    with tqdm(total=args.steps, initial=first, mininterval=10) as bar:
        for step in range(first, args.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, args)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                each = losses(family, labels, guide, next(batches).to(model.device))
            (each * share).sum().backward()
            nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            decay = min(args.mean, (step + 1) / (step + 10))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    mean[name].lerp_(parameter, 1 - decay)
            shown = 0.98 * shown + 0.02 * each.detach().cpu().numpy()
            known = shown / (1 - 0.98 ** (step - first + 1))
            bar.set_postfix_str(f"answer {known[0]:.3f} ctc {known[1]:.3f} look {known[2]:.3f}", refresh=False)
            bar.update()
            if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
                report(model, tokenizer, mean, args, step + 1)
                save_state(state, step + 1, parts, optimizer, mean)


if __name__ == "__main__":
    try:
        main()
    except (GlmAsrError, TrainingError) as error:
        sys.exit(f"error: {error}")
