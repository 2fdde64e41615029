"""Makes a smaller model of one that this package runs, and trains it on what its teacher says.

    python training/distill.py TEACHER --student layers=2 --train train.jsonl --eval eval.jsonl --out RUN

TEACHER is a checkpoint directory, or a name that the package knows. The texts of the manifest are only what the teacher's
are compared with; a clip may be without. The loss is the cross-entropy of the teacher's text, and the KL divergence from
the teacher's logits at its positions (Hinton et al., 2015; Gandhi et al., 2023). The order of things:

    teacher         its texts, which of them count, its logits; both are kept in RUN
    student         a checkpoint with the weights of the teacher that it begins with, RUN/student
    train           everything else: batches, steps, before and after; RUN/model is the best

The same command again goes on where the last one was stopped.
"""

import os
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import options
import parallel
import scores
import start
import student
from auxiliary import Labels
from batches import Family, unchanged
from families import IGNORE, Batch
from manifest import Row, TrainingError, raise_faults, read_manifests
from steps import Steps
from teacher import TEXTS, Logits, Teacher, sieved
from torch import Tensor
from train import FEW, Run, ended

from glmasr.checkpoint import hub
from glmasr.checkpoint.config_json import read_config
from glmasr.kernels import devices

RATE = 5e-4  # of AdamW, where train.py has 3e-5: layers that lost their neighbors have more to learn
STEPS = 300  # a student has more to learn than what the recordings have that is new
STUDENT = "student"  # in RUN: what training begins with
# What they change of a clip or of what the decoder reads, the teacher's logits know nothing of; or they help a model that
# has no teacher.
REFUSED = (
    "augment",
    "spec_augment",
    "shift",
    "silence",
    "join",
    "previous",
    "misread",
    "ctc",
    "guide",
    "from_scratch",
    "retain",
)


def parser() -> ArgumentParser:
    """The trainer's options and a student's."""
    found = options.parser()
    found.description = "Makes a smaller model of a teacher, and trains it on the teacher's texts and logits."
    found.epilog = (
        f"Defaults are those of train.py for a model with weights, but for the rate, {RATE:g}, and {STEPS} steps. An encoder "
        f"that is the teacher's is frozen, unless --freeze says what is: --freeze {options.NOTHING} learns all."
    )
    own = found.add_argument_group("teacher and student")
    own.add_argument("--student", metavar="SPEC", help="layers=2, encoder=3,decoder=2, a preset, or a config.json")
    own.add_argument(
        "--beams", type=options.positive, default=1, help="of the search for the teacher's texts (default 1)"
    )
    own.add_argument(
        "--agreement",
        type=options.weight,
        default=30.0,
        metavar="PERCENT",
        help="errors by which a text may differ from the manifest's (default 30)",
    )
    own.add_argument("--kl", type=options.weight, default=1.0, help="weight of the KL divergence (default 1)")
    own.add_argument("--temperature", type=options.above_zero, default=1.0, help="of both models' logits (default 1)")
    own.add_argument("--top", type=options.positive, default=64, help="tokens of a position that are kept (default 64)")
    return found


def checked(args) -> None:
    """Raises TrainingError for what is missing or means nothing here."""
    for name in ("student", "train", "out"):
        if not getattr(args, name):
            raise TrainingError(f"--{name} is missing; expected a student, what to train on, and a folder for it")
    for name in REFUSED:
        if getattr(args, name):
            option = f"--{name.replace('_', '-')}"
            raise TrainingError(
                f"{option}: the teacher's logits are of the clips as they are; expected none of {option}"
            )
    if args.plan:
        raise TrainingError("--plan: expected train.py MODEL --plan, where MODEL may be a student's preset")
    if args.lora:
        raise TrainingError("--lora: a student is learned as a whole; expected none, or --freeze encoder")


# -- losses ------------------------------------------------------------------------------------------------------------


def losses(family: Family, batch: Batch, logits: Logits) -> tuple[Tensor, Tensor, Tensor]:
    """-> the sums of cross-entropy and of KL divergence over the positions of a batch, and how many they are."""
    hidden, _ = family.forward(batch)
    learned = batch.targets != IGNORE
    found = family.model.decoder.head(hidden[learned]).float()
    entropy, count = family.loss(found, batch.targets[learned])
    return entropy, logits.divergence(found, batch.where), count


class DistillSteps(Steps):
    """Steps whose loss looks at the teacher as well."""

    logits: Logits

    def losses(self, batch: Batch) -> Tensor:
        """(sum of cross-entropy and weighted KL, 0, 0), as the trainer wants it."""
        entropy, divergence, _ = losses(self.family, batch, self.logits)
        found = entropy + self.args.kl * divergence
        return torch.stack((found, torch.zeros_like(found), torch.zeros_like(found)))


class Distillation(Run):
    """A training whose clips and texts are the teacher's."""

    def __init__(
        self, args, directory: Path, processes: parallel.Processes, device: torch.device, rows, logits: Logits
    ):
        self.taught, self.logits = rows, logits
        super().__init__(args, directory, processes, device)

    def read(self) -> tuple[list[Row], dict[str, list[Row]]]:
        """The teacher's rows, and those to evaluate. Raises TrainingError with all faults."""
        args, family, faults = self.args, self.family, []
        judges = {str(path): read_manifests([path], args.language, faults.append) for path in args.eval}
        for row in (row for some in judges.values() for row in some):
            try:
                family.check(row if row.seconds <= family.longest else replace(row, text="", phrases=(), seconds=1.0))
            except ValueError as error:
                faults.append(f"{row.where}: {error}")
        raise_faults(list(dict.fromkeys(faults)))
        self.remark(self.taught, judges)
        return self.taught + [row for row in self.taught if row.person in args.twice], judges

    def steps(self, labels: Labels | None) -> Steps:
        """Those that look at the teacher."""
        found = DistillSteps(self.family, self.learned, labels, self.args, self.processes)
        found.logits = self.logits
        return found

    def before(self, steps: Steps) -> scores.Score:
        """Of the student as it begins, its losses alone: without its layers it writes and writes to the end."""
        with steps.autocast():
            return self.judge("before", self.train_loss()[0])

    @torch.inference_mode()
    def train_loss(self, count: int = FEW) -> tuple[float, list[tuple[float, Row]]]:
        """The cross-entropy; the KL divergence is said."""
        self.model.eval()
        total = torch.zeros(3, dtype=torch.float64)
        rows = scores.sample(self.rows, count)[self.processes.rank :: self.processes.count]
        for _, batch in unchanged(rows, self.family, self.args.short < 1):
            total += torch.stack(losses(self.family, batch.to(self.model.device), self.logits)).cpu()
        self.model.train()
        entropy, divergence, positions = self.processes.summed(total.tolist())
        self.say(f"KL divergence from the teacher {divergence / max(1.0, positions):.4f} a token")
        return entropy / max(1.0, positions), []


# -- all of it ---------------------------------------------------------------------------------------------------------


def frozen(asked: list[str] | None, same: bool) -> list[str]:
    """Parts that aren't learned: as --freeze says, else an encoder that is the `same` as the teacher's, which is better than
    what it would learn of fewer recordings (Gandhi et al., 2023)."""
    if asked is None:
        return ["encoder"] if same else []
    return [] if asked == [options.NOTHING] else asked


def prepared(args, teacher: Teacher, config: student.AnyConfig) -> tuple[list[Row], Logits]:
    """The rows that count, with the teacher's texts, and its logits; writes RUN/student. Raises TrainingError."""
    say, directory, out = tqdm.write, teacher.directory, args.out / STUDENT
    if out.exists() and read_config(out) != config:
        raise TrainingError(f"{out}: is another student than --student {args.student}; expected another --out")
    say(
        f"loss: cross-entropy of the teacher's text + {args.kl:g} x KL divergence from its logits at temperature "
        f"{args.temperature:g}; recordings are never changed"
    )
    rows = teacher.rows(args, say)
    args.out.mkdir(parents=True, exist_ok=True)
    answers = teacher.answers(rows, args.out / TEXTS, args.beams, say)
    rows, said = sieved(answers, teacher.family.check, args.agreement / 100)
    for line in said:
        say(line)
    if not rows:
        raise TrainingError(f"none of {len(answers)} clips is left: expected texts that teacher and manifest agree on")
    logits = teacher.logits(rows, args.out, args.top, args.temperature, say)
    if not out.exists():
        student.made(directory, teacher.model, config, start.own_dtype(directory), out, say)
    return rows, logits


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    checked(args)
    there = next(path for path in (args.out.absolute(), *args.out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TrainingError(f"--out {args.out}: {there} is no folder to write to; expected another one")
    directory = Path(args.model) if Path(args.model).is_dir() else hub.find(args.model)
    if not start.has_weights(directory):
        raise TrainingError(f"{directory}: has no weights, and nothing to teach; expected a trained model")
    args.rate, args.accept_errors = RATE if args.rate is None else args.rate, True
    if not args.epochs:
        args.steps = STEPS if args.steps is None else args.steps
    args.retain = 0.0  # what a student begins with is nothing to hold on to
    asked = args.freeze
    options.completed(args, has_weights=True)
    processes, device = parallel.start(devices.choose_device(args.device))
    teacher = Teacher(directory, device)
    config = student.config_of(args.student, teacher.config, teacher.tokenizer)
    same = config.encoder == teacher.config.encoder
    args.freeze = frozen(asked, same)
    shared = same and "encoder" in args.freeze and not args.short  # the student's states are the teacher's
    if args.keep_states or (args.keep_states is None and shared and device.type == "cpu"):
        teacher.folder = args.out
    rows, logits = processes.shared(prepared(args, teacher, config) if processes.first else None)
    Distillation(args, args.out / STUDENT, processes, device, rows, logits).train()


if __name__ == "__main__":
    sys.exit(ended(main, "the same command goes on"))
