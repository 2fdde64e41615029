"""One step: batches -> losses -> gradients of all of them -> AdamW; and what is needed to go on another time.

A gradient is that of the mean over all tokens of a step, however they lie in batches and processes: two batches of one
process, or one of each of two processes, make the step that a single batch of all would.

Learned weights, their gradients and AdamW's moments are float32; with --dtype bfloat16 products are computed in
bfloat16, and what is frozen is kept in the type of its file (Micikevicius et al., 2018).
"""

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import start
import torch
import torch.nn.functional as F
from auxiliary import Guide, Labels
from families import IGNORE, Batch
from manifest import TrainingError
from parallel import Processes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

LARGEST_GRADIENT = 1.0  # norm
SLOW = 0.98  # of the losses that are shown


def rate(step: int, args) -> float:
    """Learning rate: linear up over `args.warmup` steps, then down: in a line to 0, or half a cosine to a hundredth."""
    if step < args.warmup:
        return args.rate * (step + 1) / args.warmup
    done = min(1.0, (step - args.warmup) / max(1, args.steps - args.warmup))
    if args.schedule == "linear":
        return args.rate * (1 - done)
    return args.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Steps:
    """A model, its optimizer, and what else changes with each step."""

    def __init__(self, family, learned: list[nn.Parameter], labels: Labels | None, args, processes: Processes):
        self.family, self.model, self.labels, self.args, self.processes = family, family.model, labels, args, processes
        self.guide = Guide(self.model.decoder) if args.guide else None
        self.before = _as_it_is(family) if args.retain else None
        self.learned = learned + (list(labels.parameters()) if labels else [])
        matrices, vectors = [p for p in self.learned if p.dim() > 1], [p for p in self.learned if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": args.decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=args.rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        names = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().clone() for name, p in names.items()} if args.mean else {}
        self.shown, self.weight = torch.zeros(3), 0.0

    def autocast(self):
        """Products in bfloat16, if asked for and if the device is fast at it."""
        device = self.model.device
        half = self.args.dtype == "bfloat16" and not start.widens(self.args, device)
        return torch.autocast(device.type, torch.bfloat16, enabled=half)

    def step(self, number: int, batches: Iterator[Batch]) -> None:
        """Takes the batches of a step, and changes the weights."""
        args, device = self.args, self.model.device
        for group in self.optimizer.param_groups:
            group["lr"] = rate(number, args)
        some = []
        for batch in itertools.islice(batches, args.accumulate):
            if isinstance(batch, TrainingError):
                raise batch
            some.append(batch)
        tokens, clips = self.processes.summed(
            (sum(self.family.weight(batch.targets) for batch in some), sum(len(batch.samples) for batch in some))
        )
        total = torch.zeros(3)
        for batch in some:
            shares = torch.tensor([1 / tokens, len(batch.samples) / clips, len(batch.samples) / clips])
            with self.autocast():
                each = self.losses(batch.to(device)) * shares.to(device)
            (each * torch.tensor([1.0, args.ctc, args.guide], device=device)).sum().backward()
            total += each.detach().cpu()
        self.processes.sum_gradients(self.learned)
        norm = nn.utils.clip_grad_norm_(self.learned, LARGEST_GRADIENT)
        if not norm.isfinite():
            raise TrainingError(
                f"step {number + 1}: the gradient is no number any more; expected a lower --rate, or --dtype float32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(args.mean, (number + 1) / (number + 10))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.mean:
                    self.mean[name].lerp_(parameter, 1 - decay)
        self.shown = SLOW * self.shown + (1 - SLOW) * torch.tensor(self.processes.summed(total.tolist()))
        self.weight = SLOW * self.weight + 1 - SLOW

    def losses(self, batch: Batch) -> Tensor:
        """(sum of the cross-entropy of the answers, CTC, where the decoder attends); 0 for what is off."""
        family = self.family
        if not batch.encoded and not any(p.requires_grad for p in family.model.encoder.parameters()):
            with torch.no_grad():  # once, for the model as it is and as it was
                batch = replace(batch, features=family.model.encoder(batch.features), encoded=True)
        hidden, spoken = family.forward(batch)
        answers = batch.targets != IGNORE
        logits, targets = family.model.decoder.head(hidden[answers]).float(), batch.targets[answers]
        answer, _ = family.loss(logits, targets)
        if self.before:
            answer = answer + self.args.retain * self.moved(logits, targets, batch)
        ctc = look = answer.new_zeros(())
        if self.labels is not None:
            logprobs, lengths = self.labels(spoken), [len(states) for states in spoken]
            ctc = self.labels.loss(logprobs, lengths, batch.labels)
            if self.guide is not None:
                places = self.labels.places(logprobs, lengths, batch.labels)
                look = self.guide.loss(family.places(places, batch), family.words(batch))
        return torch.stack((answer, ctc, look))

    def moved(self, logits: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """How far the answers went from those of the model as it was: the sum of the KL divergences (Li and Hoiem, 2016), but
        only where it was right, for there is something to keep."""
        with torch.no_grad():
            hidden, _ = self.before.forward(batch)
            before = self.before.model.decoder.head(hidden[batch.targets != IGNORE]).float()
        right = before.argmax(-1) == targets
        ours, theirs = (some[right].log_softmax(-1) for some in (logits, before))
        return F.kl_div(ours, theirs, log_target=True, reduction="sum")

    def status(self) -> str:
        """The losses of late, for the bar."""
        answer, ctc, look = (self.shown / max(self.weight, 1e-9)).tolist()
        args = self.args
        return f"answer {answer:.3f}" + f" ctc {ctc:.3f}" * bool(args.ctc) + f" look {look:.3f}" * bool(args.guide)

    # -- going on another time -----------------------------------------------------------------------------------------

    def save(self, path: Path, step: int, notes: dict[str, str]) -> None:
        """Everything that the next session needs, as safetensors: no pickle, and a half-written file never replaces a
        whole one."""
        state = {f"model/{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        state |= {f"labels/{name}": value for name, value in (self.labels.state_dict() if self.labels else {}).items()}
        state |= {f"mean/{name}": value for name, value in self.mean.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= {f"adam/{index}/{key}": value for key, value in values.items()}
        state = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        try:
            save_file(state, path.with_suffix(".part"), metadata={"step": str(step), **notes})
            path.with_suffix(".part").replace(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{path}: can't be written ({error}); expected a folder with enough room") from None

    def load(self, path: Path) -> tuple[int, dict[str, str]]:
        """The step to go on with, and the notes. Raises TrainingError for the state of another run."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "labels": {}, "mean": {}, "adam": {}}
        try:
            with safe_open(path, framework="pt") as file:
                notes = dict(file.metadata())
                for name in file.keys():
                    part, _, rest = name.partition("/")
                    groups[part][rest] = file.get_tensor(name)
            ours = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            own = {
                "model": ours,
                "labels": self.labels.state_dict() if self.labels else {},
                "mean": self.mean,
            }
            for part, tensors in own.items():
                if {name: x.shape for name, x in tensors.items()} != {n: x.shape for n, x in groups[part].items()}:
                    raise KeyError(part)
                with torch.no_grad():
                    for name, tensor in tensors.items():
                        tensor.copy_(groups[part][name])
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in groups["adam"].items():
                index, _, key = name.partition("/")
                state.setdefault(int(index), {})[key] = value
            self.optimizer.load_state_dict(
                {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
            )
            return int(notes.pop("step")), notes
        except (KeyError, ValueError, TypeError, SafetensorError, OSError) as error:
            raise TrainingError(
                f"{path}: is the state of another run ({error}); expected that of the same model, data and options: "
                "choose another --out, or remove the file"
            ) from None


def _as_it_is(family):
    """A copy of a family whose model stays as it is now; of what is frozen there is no second one."""
    found = copy.copy(family)
    frozen = {id(p): p for p in family.model.parameters() if not p.requires_grad}
    found.model = copy.deepcopy(family.model, frozen).requires_grad_(False).eval()
    return found
