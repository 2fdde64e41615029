"""Trains a model of this package, from scratch or from its weights, on manifests of recordings and texts.

    python training/train.py MODEL --train train.jsonl --eval eval.jsonl --out RUN

MODEL is a checkpoint directory, or a name that the package knows; where it holds weights, they are the start
(fine-tuning) unless --from-scratch is given. RUN gets `model/` (a complete checkpoint, of the best evaluation), or with
--lora `adapter/`, and `state.safetensors` (to go on from: the same command again resumes).

The order of things, and where they are:

    options         what is asked for, and the two recipes of defaults
    manifest        what to train on; all faults are told before anything else happens
    long_clips      clips longer than a window, cut; `anchors` finds out where
    start           the model, and which of its parameters are learned; `lora` puts adapters into it
    plan            the memory that it will take
    states          of a frozen encoder, computed once
    scores          how good the unchanged model is; whether that can be right
    batches         rows -> batches, by `families`, which knows what each model reads and learns
    steps           batches -> new weights; `auxiliary` has two losses for fresh models
    parallel        several processes
"""

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import parallel
import plan
import scores
import start
from anchors import with_phrases
from auxiliary import Labels
from batches import Family, Stream
from families import family_of
from long_clips import fitted
from lora import Settings
from manifest import Row, TrainingError, raise_faults, read_manifests, strangers
from options import completed, described, paced, parser
from states import States, objection
from steps import Steps

from glmasr import weights
from glmasr.checkpoint import hub
from glmasr.errors import GlmAsrError, out_of_memory
from glmasr.kernels import devices
from glmasr.pipeline import Options, Recognizer
from glmasr.tokenizer import read_tokenizer

STATE = "state.safetensors"
STRANGE = 3.0  # loss a token of a clip whose text may be another's
FEW = 20  # clips whose loss shows what was learned by heart


class Run:
    """One training: its model, data and steps, and the best that was found."""

    def __init__(self, args, directory: Path, processes: parallel.Processes, device: torch.device):
        self.args, self.directory, self.processes = args, directory, processes
        self.own_dtype = start.own_dtype(directory)
        self.adapters = Settings.of(args)
        self.dtype = torch.float32 if self.adapters else self.own_dtype  # of what is saved
        if args.save_dtype:
            self.dtype = getattr(torch, args.save_dtype)
        self.has_weights = start.has_weights(directory) and not args.from_scratch
        self.tokenizer = read_tokenizer(directory)
        # Of a model with adapters no weight is learned: it needs no float32 in between.
        small = self.adapters and args.dtype == "bfloat16"
        dtype = self.own_dtype if small else torch.float32
        model = start.load(directory, device, dtype) if self.has_weights else start.fresh(directory, device)
        self.model = model.train()
        self.recognizer = Recognizer(self.model, self.tokenizer)
        self.recognizer.family.check_tokenizer()
        self.family: Family = family_of(model, self.tokenizer, args.times, args.smoothing)
        self.say(f"{described(args)}; {self.family.described}")
        self.rows, self.judges = processes.shared(self.read() if processes.first else None)
        self.learned = start.choose(model, args.freeze, self.adapters)
        processes.copy(model.parameters())
        if args.dtype == "bfloat16" and self.has_weights:
            start.compact(model, self.own_dtype, start.widens(args, device))
        if args.checkpoint:
            start.checkpoint_activations(model)
        self.options = Options(
            beams=1, temperatures=(0.0,), guards=False, pad_to="speech" if args.pad_to == "speech" else "window"
        )
        self.unchanged = self.best = scores.Score()
        self.best_step, self.since = 0, 0  # and evaluations since then

    def say(self, text: str) -> None:
        """A line, of the first process only."""
        if self.processes.first:
            tqdm.write(text)
            sys.stdout.flush()

    # -- data ----------------------------------------------------------------------------------------------------------

    def read(self) -> tuple[list[Row], dict[str, list[Row]]]:
        """The rows to train on, and those of each manifest to evaluate. Raises TrainingError with all faults."""
        args, family, faults = self.args, self.family, []
        rows = read_manifests(args.train, args.language, faults.append)
        judges = {str(path): read_manifests([path], args.language, faults.append) for path in args.eval}
        known, odd = len(rows), strangers(rows, {"without": args.without, "twice": args.twice})
        rows = [row for row in rows if row.person not in args.without and row.seconds <= args.longest]
        find = partial(with_phrases, recognizer=self.recognizer) if self.has_weights else None
        self.model.eval()
        rows, said = fitted(rows, family.window, family.longest, find)
        self.model.train()
        for row in [*rows, *(row for some in judges.values() for row in some)]:
            try:
                # A longer recording can be judged by its errors, though not by its loss.
                family.check(row if row.seconds <= family.longest else replace(row, text="", phrases=(), seconds=1.0))
            except ValueError as error:
                faults.append(f"{row.where}: {error}")
        raise_faults(list(dict.fromkeys(faults)))
        for line in [*odd, *said]:
            self.say(line)
        if not rows:
            raise TrainingError(
                f"none of {known} recordings is left: all are of left-out speakers, or longer than "
                f"{min(args.longest, family.longest):g} s"
            )
        self.remark(rows, judges)
        return rows + [row for row in rows if row.person in args.twice], judges

    def remark(self, rows: list[Row], judges: dict[str, list[Row]]) -> None:
        """What is no fault, but may be a mistake."""
        if silent := [row for row in rows if not row.text]:
            self.say(f"{len(silent)} clips have no text and teach that nobody speaks, the first is {silent[0].where}")
        if self.args.previous and not any(row.previous for row in rows):
            raise TrainingError(
                "--previous: no clip has what was said before it; expected `previous` in a line, or clips of one file "
                "by offset and duration"
            )
        place = {(row.audio, row.offset): row for row in rows}
        if twice := [row for some in judges.values() for row in some if (row.audio, row.offset) in place]:
            self.say(
                f"{len(twice)} recordings are both trained on and judged by, so that errors say little about others: "
                f"the first is {twice[0].where}"
            )

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def before(self, steps: Steps) -> scores.Score:
        """The losses and errors of the unchanged model. Raises TrainingError if they can't be right."""
        with steps.autocast():
            train, worst = self.train_loss(self.args.eval_count)
            strange = [(value, row) for value, row in worst if value > max(STRANGE, 3 * train)][:3]
            if strange and self.has_weights:
                named = ", ".join(f"{row.where} ({value:.1f})" for value, row in strange)
                self.say(f"look whether text and recording belong together: the highest losses are of {named}")
            few = train if len(self.rows) <= FEW else self.train_loss()[0]  # the same clips as later
            score = self.judge("before", few, objects=self.has_weights)
        if self.has_weights and train > max(STRANGE, 0.0 if score.loss != score.loss else 3 * score.loss):
            self.say(f"train loss {train:.1f} is what texts of other recordings have: do they belong together?")
        return score

    def train_loss(self, count: int = FEW) -> tuple[float, list[tuple[float, Row]]]:
        """Of some clips, the same each time; and this process's clips with theirs, the worst first."""
        self.model.eval()
        some = scores.sample(self.rows, count)
        found = scores.loss(self.family, some, self.args.short < 1, self.processes)
        self.model.train()
        return found

    def judge(self, when: str, train: float, objects: bool = False) -> scores.Score:
        """The score of the model as it is; raises TrainingError for one that can't be right, if it `objects`. A model
        with random weights is not decoded before the first step: it writes and writes."""
        self.model.eval()
        total = scores.Score(train)
        for manifest, judged in self.judges.items():
            rows = scores.sample(judged, self.args.eval_count)
            mean, _ = scores.loss(self.family, rows, self.args.short < 1, self.processes)
            wrong = said = 0
            if objects or when != "before":
                mine = rows[self.processes.rank :: self.processes.count]
                found = scores.texts(self.recognizer, mine, self.options)
                wrong, said = scores.errors(mine, found, self.processes)
            score = scores.Score(train, mean, wrong, said)
            self.say(f"{when}: {Path(manifest).stem}: {score}")
            before = 0.0 if total.loss != total.loss else total.loss
            total = scores.Score(train, before + mean / len(self.judges), total.errors + wrong, total.words + said)
            objection = scores.objection(mine, found, score) if objects and not self.args.accept_errors else ""
            if objection := next(filter(None, self.processes.gathered(objection)), ""):
                raise TrainingError(f"{manifest}: {objection}")
        if not self.judges:
            self.say(f"{when}: {total}")
        self.model.train()
        return total

    def report(self, steps: Steps, step: int) -> bool:
        """Evaluates, and saves what is to be kept; False if it is time to stop."""
        with start.exchanged(self.model, self.blended(steps.mean), self.dtype), steps.autocast():
            score = self.judge(f"step {step}", self.train_loss()[0])
            if self.args.keep == "last" or score.better(self.best, self.unchanged):
                self.best, self.best_step, self.since = score, step, 0
                self.save()
            else:
                self.since += 1
        if self.processes.first:
            notes = {"best_step": str(self.best_step), "since": str(self.since), "adapters": str(self.adapters or "")}
            notes |= {"steps": str(self.args.steps), "batch_seconds": repr(self.args.batch_seconds)}
            notes |= {"data": self.data()}
            steps.save(self.args.out / STATE, step, notes | {"best": self.best.text, "unchanged": self.unchanged.text})
        return not (self.args.patience and self.since >= self.args.patience)

    @torch.no_grad()
    def blended(self, mean: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is measured and kept instead of the learned parameters: their running mean, a part of the way from the
        unchanged model (WiSE-FT; Wortsman et al., 2022)."""
        blend = self.args.blend
        if blend == 1:
            return mean
        learned = {name: p for name, p in self.model.named_parameters() if p.requires_grad} | mean
        if self.adapters:  # what is added is a product of two matrices, and nothing at first
            return learned | {name: blend * value for name, value in learned.items() if ".lora_B." in name}
        before = dict(weights.load(self.directory, device=self.model.device, dtype=torch.float32).named_parameters())
        return {name: before[name].lerp(value, blend) for name, value in learned.items()}

    @property
    def kept(self) -> Path:
        """Where the model is saved, or the adapter that was learned for it."""
        return self.args.out / ("adapter" if self.adapters else "model")

    def save(self) -> None:
        """What is kept."""
        if not self.processes.first:
            return
        self.args.out.mkdir(parents=True, exist_ok=True)
        if self.adapters:
            start.save_adapter(self.model, self.kept, start.called(self.args.model), self.adapters.dropout)
        else:
            start.save(self.model, self.kept, self.directory, self.dtype)

    def data(self) -> str:
        """Of the clips and texts that are trained on and judged by, wherever the files lie now."""
        rows = [*self.rows, *(row for some in self.judges.values() for row in some)]
        found = [(row.text, row.language, row.offset, row.seconds) for row in rows]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def resume(self, notes: dict[str, str]) -> None:
        """What the last session knew. Raises TrainingError."""
        if (before := notes.get("adapters", "")) != str(self.adapters or ""):
            raise TrainingError(
                f"{self.args.out / STATE}: is of a run with {before}, not {self.adapters}; expected the same options, or "
                "another --out"
            )
        if notes.get("data", self.data()) != self.data():
            raise TrainingError(
                f"{self.args.out / STATE}: is of a run with other clips or texts in --train or --eval; expected the same, or "
                "another --out"
            )
        kept = self.kept
        old = kept.with_name(f"{kept.name}.old")
        if self.processes.first and old.is_dir() and not kept.exists():  # a process was killed while it replaced it
            old.rename(kept)
        self.processes.shared(None)  # the others wait
        if not kept.is_dir():
            raise TrainingError(
                f"{kept}: is missing, though {STATE} is there; expected both to go on with, or neither to begin again"
            )
        try:
            self.best_step, self.since = int(notes["best_step"]), int(notes["since"])
            self.best, self.unchanged = scores.Score.of(notes["best"]), scores.Score.of(notes["unchanged"])
        except (KeyError, ValueError):
            raise TrainingError(
                f"{self.args.out / STATE}: is the state of another version; expected another --out, or no such file"
            ) from None

    def keep_states(self, steps: Steps, often: bool) -> None:
        """Computes what a frozen encoder makes of the clips, where that is the same in every step, and takes it from there
        from now on; unasked, if clips come `often`. Raises TrainingError."""
        args, why = self.args, objection(self.args, self.model)
        if args.keep_states and why:
            raise TrainingError(f"--keep-states: {why}")
        unasked = args.keep_states is None and often and self.model.device.type == "cpu"
        if why or not (args.keep_states or unasked):
            return
        judged = (row for some in self.judges.values() for row in scores.sample(some, args.eval_count))
        with steps.autocast():
            kept = States(args.out, self.family, torch.is_autocast_enabled(self.model.device.type))
            if self.processes.first:
                kept.fill((row for row in [*self.rows, *judged] if row.seconds <= self.family.longest), self.say)
        self.processes.shared(None)  # the others wait
        kept.read()
        self.family.states = kept
        kept.serve(self.recognizer)

    def steps(self, labels: Labels | None) -> Steps:
        """What turns batches into new weights."""
        return Steps(self.family, self.learned, labels, self.args, self.processes)

    # -- all of it -----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """From the unchanged model to the one that is kept."""
        args, model = self.args, self.model
        labels = None
        if args.ctc or args.guide:
            texts = [self.tokenizer.encode(row.text) for row in self.rows]
            labels = Labels(model.config.encoder.width, texts, model.config.decoder.vocabulary).to(model.device)
            self.processes.copy(labels.parameters())
        steps = self.steps(labels)
        state = args.out / STATE
        first, notes = steps.load(state) if state.is_file() else (0, {})
        epoch = paced(args, self.rows, self.family.window, self.processes.count, notes)
        seconds = sum(row.seconds for row in self.rows)
        length = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
        self.say(
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
            f"{sum(p.numel() for p in self.learned) / 1e6:.2f} M of them learned; {len(self.rows)} recordings, "
            f"{length}; an epoch has {epoch} steps; steps {first} to {args.steps}"
        )
        texts = [len(self.tokenizer.encode(row.text)) for row in self.rows]
        wide = start.widens(args, model.device)
        if wide:
            self.say("products in float32, for this CPU has no instructions for bfloat16; frozen weights stay small")
        planned = plan.of(model.config, args, self.own_dtype, max(1, *texts), len(self.rows), wide)
        self.say(str(planned))
        plan.check(planned, model.device, self.processes.count)
        args.out.mkdir(parents=True, exist_ok=True)
        if first:
            self.resume(notes)  # refused, or told, before anything is computed
            if first >= args.steps:
                self.say(f"all {args.steps} steps are done; for others expected more --steps, or another --out")
        self.keep_states(steps, often=args.steps >= epoch)
        if not first:
            self.unchanged = self.best = self.before(steps)
            if args.keep == "best":
                self.save()
        stream = Stream(self.rows, self.family, args, first, self.processes.rank, self.processes.count)
        batches = iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4))
        gained = not args.patience or self.since < args.patience  # else it was stopped for that before
        with tqdm(total=args.steps, initial=first, mininterval=10, disable=not self.processes.first) as bar:
            for number in range(first, args.steps if gained else first):
                steps.step(number, batches)
                bar.set_postfix_str(steps.status(), refresh=False)
                bar.update()
                if (number + 1) % args.eval_every == 0 or number + 1 == args.steps:
                    if not self.report(steps, number + 1):
                        self.say(f"stopped: {self.since} evaluations without a gain (--patience {args.patience})")
                        break
        self.say(f"before: {self.unchanged}")
        none = ": the unchanged model, for none was better" if not self.best_step else ""
        self.say(f"kept, of step {self.best_step}: {self.best}{none}")


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.plan:
        plan.tell(args)
        return
    for name in ("train", "out"):
        if not getattr(args, name):
            raise TrainingError(f"--{name} is missing; expected what to train on, and a folder for what comes of it")
    there = next(path for path in (args.out.absolute(), *args.out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TrainingError(f"--out {args.out}: {there} is no folder to write to; expected another one")
    directory = Path(args.model) if Path(args.model).is_dir() else hub.find(args.model)
    completed(args, start.has_weights(directory) and not args.from_scratch)
    processes, device = parallel.start(devices.choose_device(args.device))
    Run(args, directory, processes, device).train()


def ended(command: Callable[[], None], goes_on: str) -> int:
    """Runs a command of several processes. -> exit code; an error of its user is a line, told by one of them."""
    try:
        command()
    except (GlmAsrError, TrainingError, OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, (RuntimeError, MemoryError)):
            if not out_of_memory(error):
                raise
            error = "out of memory; expected less: --freeze encoder, --checkpoint, a smaller --batch-seconds"
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {goes_on}", file=sys.stderr)
        return 130
    finally:
        parallel.end()
    return 0


if __name__ == "__main__":
    sys.exit(ended(main, "the same command goes on from the last evaluation"))
