"""The trainer's options, and the two recipes that their defaults come from.

    published   for a model that has weights: trained on as it was trained before, on small sets too
    scratch     for random weights: auxiliary losses, changed recordings, short padding, a running mean

What a recipe says can be said otherwise, option by option. `described` is what is printed before the first step.
"""

import argparse
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import torch
from batches import grouped
from lora import Settings
from manifest import Row, TrainingError

NONE: Mapping[str, str] = MappingProxyType({})

RECIPES = {
    "published": {
        "steps": None,  # `paced`
        "batch_seconds": None,
        "short": 0.0,
        "rate": 5e-5,
        "freeze": ["encoder", "embedding"],
        "schedule": "linear",
        "warmup": None,  # a tenth of the steps
        "ctc": 0.0,
        "guide": 0.0,
        "smoothing": 0.0,
        "times": 1.0,
        "decay": 0.01,
        "augment": False,
        "shift": 0.0,
        "mean": 0.0,
        "blend": 1.0,
        "retain": 3.0,
        "keep": "best",
        "patience": 3,
        "eval_every": None,
        "eval_count": 100,
    },
    "scratch": {
        "steps": 8000,
        "batch_seconds": 80.0,
        "short": 0.7,
        "rate": 1.5e-3,
        "freeze": [],
        "schedule": "cosine",
        "warmup": 300,
        "ctc": 0.5,
        "guide": 0.5,
        "smoothing": 0.05,
        "times": 0.2,
        "decay": 0.05,
        "augment": True,
        "shift": 0.3,
        "mean": 0.998,
        "blend": 1.0,
        "retain": 0.0,
        "keep": "last",
        "patience": 0,
        "eval_every": 1000,
        "eval_count": 60,
    },
}
LORA_RATE = 8e-4  # an adapter begins at nothing and has further to go
NOTHING = "nothing"  # is frozen
# Steps of a published model, where none are asked for: a few clips are known by heart after some epochs, many need not all
# be seen.
EPOCHS, FEWEST, MOST = 3, 20, 300
BATCH = 240.0  # seconds, at most
BATCHES = 4  # of an epoch, at least: of ten clips too a step is one of several
EVALUATIONS = 5, 10  # of a training: about one an epoch


def _argument(kind: type, good: Callable[[float], bool], expected: str) -> Callable[[str], Any]:
    """A type of arguments: numbers of a `kind` that are `good`."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not good(value):
            raise argparse.ArgumentTypeError(f"{text}, expected {expected}")
        return value

    return read


share = _argument(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
dropout = _argument(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
weight = _argument(float, lambda value: 0 <= value < inf, "a number from 0 on")
above_zero = _argument(float, lambda value: 0 < value < inf, "a number above 0")
positive = _argument(int, lambda value: value >= 1, "a whole number from 1 on")
count = _argument(int, lambda value: value >= 0, "a whole number from 0 on")
# NumPy takes none below 0, PyTorch no more than 64 bits.
seed = _argument(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")


def parser() -> argparse.ArgumentParser:
    """All options; those of a recipe are None where they aren't given."""
    found = argparse.ArgumentParser(
        description="Trains a model of this package, from scratch or from its weights, on manifests.",
        epilog="Where two defaults are told, the first is of the recipe published, the second of scratch.",
    )
    found.add_argument("model", metavar="MODEL", help="a checkpoint directory, or a name that the package knows")
    found.add_argument("--plan", action="store_true", help="tell the memory that training would take, and end")
    found.add_argument("--recipe", choices=RECIPES, help="default: published for a model with weights, else scratch")
    found.add_argument("--from-scratch", action="store_true", help="random weights, even if MODEL has some")

    data = found.add_argument_group("data")
    data.add_argument(
        "--train", default=[], nargs="+", metavar="MANIFEST", help=".jsonl, .tsv, .csv, .parquet, or an audiofolder"
    )
    data.add_argument(
        "--eval", default=[], nargs="+", metavar="MANIFEST", help="what the model is judged by; other recordings"
    )
    data.add_argument("--language", default="", help='of recordings whose line says none, such as "zh"')
    data.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="gets model/, a complete checkpoint (or adapter/, with --lora), and what is needed to go on",
    )
    data.add_argument(
        "--twice", default=[], nargs="+", metavar="SPEAKER", help="use recordings of these speakers twice as often"
    )
    data.add_argument(
        "--without", default=[], nargs="+", metavar="SPEAKER", help="leave out recordings of these speakers"
    )
    data.add_argument(
        "--longest", type=above_zero, default=float("inf"), metavar="SECONDS", help="leave out longer recordings"
    )

    steps = found.add_argument_group("steps")
    steps.add_argument("--steps", type=positive, help=f"default {EPOCHS} epochs, but {FEWEST} to {MOST} steps; 8000")
    steps.add_argument("--epochs", type=above_zero, help="the steps in which all clips come so often")
    steps.add_argument(
        "--batch-seconds",
        type=above_zero,
        help=f"recording and padding in a batch (default {BATCH:g}, less if all is less than {BATCHES} of them; 80)",
    )
    steps.add_argument("--accumulate", type=positive, default=1, metavar="N", help="batches of a step (default 1)")
    steps.add_argument("--rate", type=above_zero, help="peak learning rate (default 5e-5, 1.5e-3; with --lora 8e-4)")
    steps.add_argument(
        "--warmup", type=count, metavar="STEPS", help="over which the rate rises (default a tenth of all, 300)"
    )
    steps.add_argument("--schedule", choices=["linear", "cosine"], help="how the rate falls (default linear, cosine)")
    steps.add_argument("--decay", type=weight, help="weight decay of the matrices (default 0.01, 0.05)")
    steps.add_argument(
        "--mean", type=share, help="decay of a running mean of the weights, 0 for none (default 0, 0.998)"
    )
    steps.add_argument(
        "--blend",
        type=share,
        help="share of what is learned in what is measured and kept, the rest being the weights as they were (default 1)",
    )
    steps.add_argument(
        "--freeze",
        nargs="+",
        metavar="PART",
        help=f"encoder, frontend, projector, decoder, embedding; or {NOTHING} (default encoder embedding, but with --lora-targets "
        f"{NOTHING}; {NOTHING})",
    )
    steps.add_argument(
        "--lora",
        type=positive,
        default=0,
        metavar="RANK",
        help="learn an adapter of this rank (LoRA), and nothing else",
    )
    steps.add_argument(
        "--lora-targets",
        nargs="+",
        metavar="NAME",
        help="linears that it adapts, by Transformers' names, or encoder, projector, decoder, all (default decoder)",
    )
    steps.add_argument("--lora-alpha", type=above_zero, metavar="ALPHA", help="default twice the rank")
    steps.add_argument("--lora-dropout", type=dropout, metavar="SHARE", help="of what the adapter reads (default 0)")
    steps.add_argument(
        "--keep-states",
        action=argparse.BooleanOptionalAction,
        help="compute the states of a frozen encoder once, and keep them in RUN (default: on a CPU, where they are the "
        "same in every step)",
    )
    steps.add_argument("--checkpoint", action="store_true", help="compute activations again instead of keeping them")
    steps.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of products; learned weights are float32"
    )
    steps.add_argument(
        "--save-dtype", choices=["float32", "bfloat16"], help="default bfloat16 if MODEL's own weights are"
    )
    steps.add_argument("--device", default="auto")
    steps.add_argument("--threads", type=positive, default=torch.get_num_threads())
    steps.add_argument("--seed", type=seed, default=1)

    losses = found.add_argument_group("what is learned")
    losses.add_argument(
        "--pad-to", choices=["window", "speech"], help="what all clips are padded to (default: see --short)"
    )
    losses.add_argument(
        "--short", type=share, help="share of the steps that are padded to the longest clip only (default 0, 0.7)"
    )
    losses.add_argument(
        "--previous", type=share, default=0.0, help="share of the clips that get the text before them (default 0)"
    )
    losses.add_argument(
        "--times", type=weight, help="weight of a time in the loss, where a word has 1 (default 1, 0.2)"
    )
    losses.add_argument("--smoothing", type=share, help="of the targets, and of times with it (default 0, 0.05)")
    losses.add_argument(
        "--retain",
        type=weight,
        help="weight of the KL divergence from the unchanged model, where that was right (default 3, 0)",
    )
    losses.add_argument("--ctc", type=weight, help="weight of a CTC loss at the encoder (default 0, 0.5)")
    losses.add_argument(
        "--guide", type=weight, help="weight of the loss that shows the decoder its place (default 0, 0.5)"
    )
    losses.add_argument(
        "--misread", type=share, default=0.0, help="share of the text that the decoder reads wrongly (default 0)"
    )

    changes = found.add_argument_group("changes of recordings")
    changes.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="speed, channel, noise, level (default no, yes)"
    )
    changes.add_argument("--spec-augment", action="store_true", help="stripes of the log-mel are set to its mean")
    changes.add_argument(
        "--shift", type=share, help="share of the clips that begin later in their window (default 0, 0.3)"
    )
    changes.add_argument(
        "--silence", type=share, default=0.0, help="share of the clips that are replaced by noise or silence"
    )
    changes.add_argument(
        "--join", type=share, default=0.0, help="share of the clips that are joined, as in long recordings"
    )
    changes.add_argument(
        "--ramp", type=count, default=0, help="steps over which long recordings and changes come in (default 0)"
    )

    judged = found.add_argument_group("evaluation")
    judged.add_argument(
        "--eval-every", type=positive, metavar="STEPS", help="default an epoch, 5 to 10 times in all; 1000"
    )
    judged.add_argument("--eval-count", type=positive, help="recordings that are evaluated (default 100, 60)")
    judged.add_argument("--keep", choices=["best", "last"], help="what becomes RUN/model (default best, last)")
    judged.add_argument(
        "--patience", type=count, help="evaluations without a gain after which to stop, 0: never (default 3, 0)"
    )
    judged.add_argument(
        "--accept-errors", action="store_true", help="train though the error rate before it can't be right"
    )
    return found


def completed(args: argparse.Namespace, has_weights: bool) -> argparse.Namespace:
    """The arguments with the recipe's values where none were given. Raises TrainingError for what contradicts."""
    if args.steps and args.epochs:
        raise TrainingError("--steps and --epochs both say how long to train; expected one of them")
    if args.pad_to and args.short is not None:
        raise TrainingError("--pad-to and --short both say what clips are padded to; expected one of them")
    if args.pad_to:
        args.short = 1.0 if args.pad_to == "speech" else 0.0
    if args.recipe is None:
        args.recipe = "published" if has_weights else "scratch"
    if args.lora and args.rate is None:
        args.rate = LORA_RATE
    if not has_weights:  # there is nothing to keep
        args.freeze, args.retain = args.freeze or [], args.retain or 0.0
    if args.freeze == [NOTHING] or args.freeze is None and args.lora_targets:  # which say where adapters are
        args.freeze = []
    for name, value in RECIPES[args.recipe].items():
        if getattr(args, name) is None and not (name == "steps" and args.epochs):
            setattr(args, name, value)
    if not args.eval:
        args.keep = "last"
    if args.lora:
        check_lora(args, has_weights)
    elif args.lora_targets or args.lora_alpha is not None or args.lora_dropout is not None:
        raise TrainingError("--lora-targets, --lora-alpha, --lora-dropout: say how --lora RANK adapts; expected it too")
    for name, asked in {"blend": args.blend < 1, "retain": args.retain > 0}.items():
        if asked and not has_weights:
            raise TrainingError(f"--{name} holds on to weights, and MODEL has none; expected none of it")
    if args.checkpoint and args.guide:
        raise TrainingError("--checkpoint computes layers twice, which --guide can't look at; leave one of them out")
    return args


def paced(
    args: argparse.Namespace, rows: list[Row], window: float, processes: int = 1, before: Mapping[str, str] = NONE
) -> int:
    """Sets what follows the data, where it wasn't given: seconds of a batch, steps, those in which the rate rises, and those
    from one evaluation to the next. -> the steps of an epoch. `before`: notes of the run that is gone on with, whose numbers
    stay."""
    together, whole = args.accumulate * processes, args.short <= 0.5  # as most of the steps are
    if args.batch_seconds is None and "batch_seconds" in before:
        args.batch_seconds = float(before["batch_seconds"])
    if args.batch_seconds is None:
        costs = [window * -(-row.seconds // window) if whole else row.seconds + 0.5 for row in rows]
        args.batch_seconds = min(BATCH, max(2 * max(costs), sum(costs) / BATCHES / together))
    batches = len(grouped(rows, args.batch_seconds, window, whole, Random(args.seed)))
    epoch = -(-batches // together)  # steps
    if args.steps is None and args.epochs:
        args.steps = max(1, round(args.epochs * batches / together))
    if args.steps is None:
        args.steps = int(before.get("steps", min(MOST, max(FEWEST, EPOCHS * epoch))))
    fewest, most = EVALUATIONS
    if args.eval_every is None:
        args.eval_every = max(1, args.steps // most, min(epoch, args.steps // fewest))
    if args.warmup is None:
        args.warmup = max(1, args.steps // 10)
    return epoch


def check_lora(args: argparse.Namespace, has_weights: bool) -> None:
    """Raises TrainingError for what an adapter can't be learned with."""
    if not has_weights:
        raise TrainingError(
            "--lora adapts a model that has weights, not random ones; expected another MODEL, or no --lora"
        )
    if args.guide:
        raise TrainingError("--guide looks at weights without their adapter; leave it out, or --lora")
    if args.save_dtype:
        raise TrainingError(
            "--save-dtype is of whole models, and an adapter is saved in float32; leave it out, or --lora"
        )


def described(args: argparse.Namespace) -> str:
    """What is on, and what could be but isn't."""
    padded = {0.0: "the whole window", 1.0: "the longest clip of a batch, and a second"}
    on = {
        f"padding to {padded.get(args.short, f'the longest clip in {args.short:.0%} of the steps')}": True,
        f"{Settings.of(args)}, rate {args.rate:g}": args.lora,
        f"frozen: {', '.join(args.freeze)}": args.freeze,
        f"previous text for {args.previous:.0%}": args.previous,
        f"CTC loss x {args.ctc:g}": args.ctc,
        f"attention guide x {args.guide:g}": args.guide,
        f"misread words {args.misread:.0%}": args.misread,
        f"smoothed targets {args.smoothing:g}": args.smoothing,
        "changed recordings": args.augment,
        "SpecAugment": args.spec_augment,
        f"later beginnings {args.shift:.0%}": args.shift,
        f"silence {args.silence:.0%}": args.silence,
        f"joined clips {args.join:.0%}": args.join,
        f"held to the unchanged model x {args.retain:g}": args.retain,
        f"running mean {args.mean:g}": args.mean,
        f"{1 - args.blend:.0%} of the weights as they were": args.blend < 1,
        "activations computed twice": args.checkpoint,
        "products in bfloat16": args.dtype == "bfloat16",
    }
    off = {
        "CTC loss": args.ctc,
        "attention guide": args.guide,
        "misread words": args.misread,
        "short padding": args.short,
        "changed recordings": args.augment,
        "SpecAugment": args.spec_augment,
        "previous text": args.previous,
    }
    return (
        f"recipe {args.recipe}; on: {', '.join(name for name, value in on.items() if value)}; "
        f"off: {', '.join(name for name, value in off.items() if not value) or 'nothing'}"
    )
