"""The main job, readable in one sitting: recipe -> data -> ann -> convert -> finetune -> evaluate -> export -> simulate.

``HybridConversion`` is the experiment of Rathi et al. 2020 ("Enabling deep spiking neural networks with hybrid
conversion and spike timing dependent backpropagation"). Each stage's result lies in the run folder, so a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeprop.convert import convert, relu_activations, spike_worths, to_spiking
from spikeprop.data import ImageData
from spikeprop.deploy.export import chip_budget, compare, export
from spikeprop.errors import CheckpointError, DamagedFileError, EvaluationError, NirError, RecipeError
from spikeprop.evaluate import (
    MAC_JOULES,
    Journal,
    Question,
    Report,
    accuracy_rows,
    conversion_error,
    count_macs,
    draw,
    draw_conversion_error,
    evaluate,
    latency_of,
    scalars_by_steps,
    silent_layers,
    summarise,
)
from spikeprop.experiment.context import Context
from spikeprop.experiment.networks import check_network, describe_network, load_network
from spikeprop.experiment.settings import (
    DEVICE,
    Conversion,
    Evaluation,
    FineTuning,
    Precision,
    Simulation,
    Training,
    find_device,
    trial_optimizer,
)
from spikeprop.learn import (
    Callback,
    CollapseGuard,
    LearningRule,
    MetricsLog,
    Parted,
    ProgressBar,
    check_shardable,
    drop_progress,
    fit,
    load_checkpoint,
    load_model,
    save_checkpoint,
    shard,
)
from spikeprop.recipe import Component
from spikeprop.runtime.processes import ALONE, Processes
from spikeprop.runtime.seeding import seed_torch
from spikeprop.snn import IF, SignedIF, SpikingNetwork

TOGETHER = ("ann", "convert", "finetune", "evaluate")  # stages whose work several processes share
NETWORKS = {"ann": "ann", "convert": "converted", "finetune": "finetuned"}  # the network that each stage leaves
SMOKE_IMAGES = 64
ANSWERS = "answers"  # folder of the answers to the test images, by network
ERROR_IMAGES = 16  # for the error of the conversion, layer by layer
ACTIVITY_IMAGES = 500  # whose spikes are counted: SynOps come out within a few percent, and a network is simulated once


@dataclass(frozen=True, kw_only=True)
class HybridConversion:
    """Train an ANN, convert it, fine-tune it with spikes, evaluate it, export it, and check it on Lava.

    Attributes:
        seed: of everything random.
        data, ann: components.
        train, convert, finetune, evaluate, simulate: settings of the stages.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1"; a run may go on on another one.
        precision: of the synapses while training on CUDA ("bfloat16" and "float16" by autocast; the loss is not scaled, so
            prefer bfloat16). Potentials, weights and the optimiser stay in float32, and so does evaluation.
        sharded: of several processes each keeps its part alone of what training keeps of the parameters (weights, gradients, the
            optimiser's memory), for networks that fit none of them otherwise; a run may go on the other way.
    """

    seed: int
    data: Component[ImageData]
    ann: Component[nn.Module]
    train: Training
    convert: Conversion
    finetune: FineTuning
    evaluate: Evaluation
    simulate: Simulation
    device: str = "auto"
    precision: Precision = "float32"
    sharded: bool = False

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"device is {self.device!r}; use auto, cpu, cuda or cuda:1")

    def check(self, *, here: bool = False) -> None:
        """Build every component, and an outline of the ANN and its conversion: what cannot work is found before training.

        Args:
            here: ask too whether this machine has the device.

        Raises:
            RecipeError: a bad value, an ANN that does not fit the data, or a device that is not here.
            ConversionError: an ANN that cannot be converted.
            SegmentError: an ANN that the learning rule cannot cut into segments.
        """
        for settings in (self.train, self.convert, self.finetune):
            settings.check()
        if self.finetune.epochs and isinstance(self.convert.neuron.build(), SignedIF):
            raise RecipeError("finetune: SignedIF passes no gradient; use finetune.epochs=0, or convert.neuron=IF")
        if self.sharded:
            self._check_sharded()
        data = self.data.build()
        check_network(self.ann, self.convert.neuron, self.convert.encoder, data)
        self._check_training(data)
        if here and find_device(self.device).type == "cpu" and self.precision != "float32":
            raise RecipeError(f"precision: {self.precision} is for CUDA, and this run is on the CPU; use precision=float32")

    def _check_training(self, data: ImageData) -> None:
        """Rule and callbacks meet the ANN: not each can train every network, or finds in it what it looks for."""
        rule, callbacks = self.train.rule.build(), [c.build() for c in self.train.callbacks]
        if not self.train.epochs or not (callbacks or type(rule).prepare is not LearningRule.prepare):
            return
        ann = self.ann.build()
        rule.prepare(ann, data.example(2))
        groups = rule.param_groups(ann)
        for callback in callbacks:
            groups = callback.param_groups(ann, groups)
        self.train.build_optimizer(groups)

    def _check_sharded(self) -> None:
        """Rules and callbacks that meet the network in parts must be made for it."""
        for stage, rule in (("train", self.train.rule.build()), ("finetune", self.finetune.build_rule())):
            settings = getattr(self, stage)
            try:
                if settings.epochs:
                    check_shardable(rule, [c.build() for c in settings.callbacks], trial_optimizer(settings))
            except ValueError as error:
                raise RecipeError(f"{stage}: {error}") from error

    def smoke(self) -> HybridConversion:
        """The same on a few images, epochs and steps: does it run from end to end?"""
        small = dataclasses.replace
        return small(
            self,
            data=self.data.replace(train_limit=SMOKE_IMAGES, test_limit=SMOKE_IMAGES // 2),
            train=small(self.train, epochs=min(1, self.train.epochs), batch_size=16),
            convert=small(self.convert, images=16, calibrator=_shortened(self.convert.calibrator)),
            finetune=small(self.finetune, epochs=min(1, self.finetune.epochs), batch_size=16, timesteps=2),
            evaluate=small(self.evaluate, timesteps=[2, 4], finetuned_up_to=None, batch_size=16),
            simulate=Simulation(samples=min(1, self.simulate.samples)),
        )

    def run(self, context: Context) -> Report:
        """All stages in order; finished ones are read from the folder."""
        return _Run(self, context).report()


class _Run:
    """One run: the experiment, its folder, and what the stages share."""

    def __init__(self, experiment: HybridConversion, context: Context):
        self.experiment, self.context, self.folder = experiment, context, context.folder
        experiment.check(here=True)
        self.data = experiment.data.build()
        self.processes = context.folder.processes
        self.device = self.processes.device(find_device(experiment.device))
        if experiment.sharded and self.processes.count == 1:
            context.notify("sharded: there is one process, which keeps all; start several with torchrun")

    def report(self) -> Report:
        stages = {
            "data": self.load_data,
            "ann": self.train_ann,
            "convert": self.convert,
            "finetune": self.finetune,
            "evaluate": self.evaluate,
            "export": self.export,
            "simulate": self.simulate,
        }
        results = {}
        self.processes.first(lambda: self._forget_damaged(list(stages)))
        self.folder.reread()
        for name, work in stages.items():
            results[name] = self.folder.stage(name, work, together=name in TOGETHER)
            if self.context.writes:
                self._drop_progress(name)
        values = {
            "name": self.context.name,
            "seed": self.experiment.seed,
            "timesteps": self.experiment.finetune.timesteps,
            **results["evaluate"],
            "finetuned_epochs": self.experiment.finetune.epochs,
            "thresholds": results["convert"]["thresholds"],
            "simulate": results["simulate"],
            "seconds": self.folder.seconds(),
            "device": str(self.device),
            "provenance": self.folder.provenance(),
        }
        report = Report(name=self.context.name, values=values, rows=accuracy_rows(values))
        if self.context.writes:
            report.save(self.folder.path / "report.json")
            draw(values, self.folder.path / "report.png", self.context.name)
        return report

    # stages -------------------------------------------------------------------------------------------------------------------

    def load_data(self) -> dict[str, Any]:
        train, test = self.data.train(self.experiment.train.batch_size, 0), self.data.test(1)
        return {"use": type(self.data).__name__, "train_batches": len(train), "test_images": len(test)}

    def train_ann(self) -> dict[str, Any]:
        settings, seed = self.experiment.train, self.experiment.seed
        seed_torch(seed, 1)
        ann = self.experiment.ann.build()
        history = self._fit("ann", ann, settings, settings.rule.build(), seed + 1)
        self._save(ann, "ann")
        return {"history": history}

    def convert(self) -> dict[str, Any]:
        settings, found = self.experiment.convert, {}
        if settings.calibrator.build().joins and settings.images >= self.processes.count:
            return self._converted(self.processes)
        self.processes.first(lambda: found.update(self._converted(ALONE)))  # what cannot be shared, rank 0 does
        return found

    def _converted(self, processes: Processes) -> dict[str, Any]:
        """The conversion is done, by these, and saved; its thresholds."""
        settings = self.experiment.convert
        ann = self._load_ann()
        seed_torch(self.experiment.seed, 2)
        images, neuron, encoder = self._calibration_images(processes), settings.neuron.build(), settings.encoder.build()
        network = convert(ann, images, neuron, settings.calibrator.build(), encoder=encoder, processes=processes)
        self._save(network, "converted")
        return {"thresholds": {name: float(n.spike_size.max()) for name, n in network.dynamics().items()}}

    def finetune(self) -> dict[str, Any]:
        settings = self.experiment.finetune
        network = self._load("converted").to(self.device)
        if settings.epochs and not network.readout.trivial:
            self.context.notify("fine-tuning trains the sum over all steps: the delay that calibration chose is taken back")
            network.readout.set()
        if settings.dropout is not None:
            network.set_dropout(settings.dropout)
        self._warn_of_silence(network, settings.timesteps)
        guard = CollapseGuard(self.data.classes)
        history = self._fit("finetune", network, settings, settings.build_rule(), self.experiment.seed + 2, guard)
        self._save(network, "finetuned")
        return {"history": history}

    def evaluate(self) -> dict[str, Any]:
        settings = self.experiment.evaluate
        steps = self.experiment.finetune.timesteps + latency_of(self._load("finetuned"))  # those of its simulation, and before
        wanted = sorted({*settings.timesteps, steps})
        limit = max(settings.finetuned_up_to or max(wanted), steps)
        ann = self._load_ann()
        plan = {"converted": wanted, "finetuned": [t for t in wanted if t <= limit]}
        if not self.experiment.finetune.epochs:  # it is the same network
            del plan["finetuned"]
        answers = {"ann": self._ask("ann", ann, ())}
        answers |= {kind: self._ask(kind, self._load(kind).to(self.device), at) for kind, at in plan.items()}
        if self.processes.rank:  # what the answers say is rank 0's to work out
            return {}
        found = answers["ann"]["accuracy"]["ANN"]
        macs = count_macs(ann, self.data.input_shape)
        result: dict[str, Any] = {"ann": {"accuracy": found["top1"], "interval": found["top1_interval"]}}
        for kind in ("converted", "finetuned"):
            at, summary = plan.get(kind, [t for t in wanted if t <= limit]), answers.get(kind, answers["converted"])
            answered = {t: found for t, found in summary["accuracy"].items() if int(t) in at}
            result[kind] = {
                "accuracy": {t: found and found["top1"] for t, found in answered.items()},
                "interval": {t: found and found["top1_interval"] for t, found in answered.items()},
                "activity": {t: found for t, found in summary["activity"].items() if int(t) in at},
                "activity_images": summary["activity_images"],
            }
            self.context.show(kind, scalars_by_steps(result[kind]))
        result["conversion_error"] = self._conversion_error(ann, wanted)
        active = result["finetuned"]["activity"][str(steps)]
        energy = {
            "ann": macs * MAC_JOULES,
            "snn": active["energy_joules"],
            "constants": "45 nm, 4.6 pJ a MAC, 0.9 pJ an addition (Horowitz 2014)",
        }
        at_steps = {"rates_at": steps, "rates": active["rates"], "synops": active["synops"]}
        return {**result, **at_steps, "macs": macs, "energy_joules": energy}

    def export(self) -> dict[str, Any]:
        try:
            network = self._load("finetuned")
            export(network, self.folder.path / "network.nir", describe_network(network, self.experiment, self.data))
        except NirError as error:  # not a reason to lose the report
            self.context.notify(f"warning: the network cannot be written for the hardware: {error}")
            return {"file": None, "why": str(error)}
        return {"file": "network.nir"}

    def simulate(self) -> dict[str, Any]:
        samples, steps = self.experiment.simulate.samples, self.experiment.finetune.timesteps
        if samples == 0 or not (self.folder.path / "network.nir").exists():
            return {"samples": 0}
        images, labels = next(self.data.test(samples).epoch(0))
        seed_torch(self.experiment.seed, 3)
        file = self.folder.path / "network.nir"
        found = compare(self._load("finetuned"), file, images, labels, steps, self.context.notify)
        return found | {"chip": chip_budget(file)}

    # helpers ------------------------------------------------------------------------------------------------------------------

    def _fit(
        self, stage: str, model: nn.Module, settings: Training | FineTuning, rule: LearningRule, seed: int, *guards: CollapseGuard
    ) -> list[dict[str, Any]]:
        if settings.epochs == 0:
            return []
        if self._shards:
            shard(model, self.processes, self.device)
        else:
            model.to(self.device)
        batches, callbacks = self.data.train(settings.batch_size, seed), [c.build() for c in settings.callbacks]
        rule.prepare(model, next(batches.epoch(0))[0].to(self.device))
        groups = rule.param_groups(model)
        for callback in callbacks:
            groups = callback.param_groups(model, groups)
        precision = self.experiment.precision
        return fit(
            model,
            rule,
            batches,
            settings.build_optimizer(groups),
            epochs=settings.epochs,
            schedule=settings.schedule.build(),
            seed=seed,
            clip=settings.clip,
            callbacks=[*self._watchers(stage), *guards, *callbacks, *self.context.watchers(stage)],
            checkpoint=self._progress(stage),
            processes=self.processes,
            checkpoint_seconds=self.context.save_every,
            autocast=None if precision == "float32" else getattr(torch, precision),
        )

    @property
    def _shards(self) -> bool:
        return self.experiment.sharded and self.processes.count > 1

    def _watchers(self, stage: str) -> list[Callback]:
        if self.processes.rank:  # nothing to see there; the callbacks after these keep their places
            return [Callback(), Callback()]
        return [ProgressBar(stage), MetricsLog(self.folder.path / "metrics.jsonl", stage)]

    def _ask(self, kind: str, network: nn.Module, timesteps: Sequence[int]) -> dict[str, Any]:
        """The summary of a network's answers to the test images; one that was stopped goes on."""
        split = self.data.test(self.experiment.evaluate.batch_size)
        question = Question(timesteps=tuple(timesteps), extra_steps=latency_of(network), seed=self.experiment.seed)
        journal = Journal(self._answers() / kind, {**dataclasses.asdict(question), "device": self.device.type})
        self.processes.first(lambda: _open(journal))
        batches = evaluate(
            network,
            split,
            question,
            journal=journal,
            processes=self.processes,
            activity_images=ACTIVITY_IMAGES,
            label=f"evaluate {kind}",
        )
        return {} if self.processes.rank else summarise(network, question, batches)

    def _answers(self) -> Path:
        return self.folder.path / "evaluate.progress"

    def _progress(self, stage: str) -> Path:
        return self.folder.path / f"{stage}.progress.safetensors"

    def _drop_progress(self, stage: str) -> None:
        """A finished stage needs no optimiser state, which is up to three times the network's size."""
        drop_progress(self._progress(stage))
        if stage == "evaluate":
            self._keep_answers()
            shutil.rmtree(self._answers(), ignore_errors=True)

    def _forget_damaged(self, stages: list[str]) -> None:
        """A stage whose network cannot be read any more runs again, and so does what was made of it."""
        if all(map(self.folder.finished, stages)) and (self.folder.path / "report.json").exists():
            return  # nothing will be read: what has the networks deleted, to save room, stays done
        for stage, network in NETWORKS.items():
            if not self.folder.finished(stage):
                continue
            try:
                load_checkpoint(self._file(network))
            except CheckpointError as error:
                again = stages[stages.index(stage) :]
                self.context.notify(f"warning: {error}. Stage {stage} and those after it run again")
                self._file(network).unlink(missing_ok=True)
                self.folder.forget(again)
                return

    def _keep_answers(self) -> None:
        """The answers to the test images stay, under another name: confusions and examples are made from them."""
        for folder in self._answers().glob("*"):
            if (folder / "answers.safetensors").exists():
                kept = self.folder.path / ANSWERS / folder.name
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(exist_ok=True)
                folder.rename(kept)

    def _conversion_error(self, ann: nn.Module, timesteps: list[int]) -> dict[str, Any]:
        """By layer and number of steps: how far rates are from the ANN's activations, on a few test images; and its picture."""
        images = next(self.data.test(ERROR_IMAGES).epoch(0))[0].to(self.device)
        network = self._load("converted").to(self.device)
        plain = to_spiking(ann, IF, network.encoder, self.data.input_shape).to(images).eval()
        with torch.no_grad():
            errors = conversion_error(network, images, relu_activations(plain, images), spike_worths(network), timesteps)
        draw_conversion_error(errors, self.folder.path / "conversion_error.png", self.context.name)
        return {name: {str(t): dataclasses.asdict(error) for t, error in by_t.items()} for name, by_t in errors.items()}

    def _warn_of_silence(self, network: SpikingNetwork, timesteps: int) -> None:
        images, _ = next(self.data.test(32).epoch(0))
        silent = silent_layers(network, images, timesteps)
        if silent:
            self.context.notify(
                f"warning: within finetune.timesteps={timesteps} no neuron of {', '.join(silent)} fires, so no gradient passes; "
                "raise finetune.timesteps or lower the calibrator's scale"
            )

    def _calibration_images(self, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches are read in parts where the data can do it; one that is cut short is read whole by all processes."""
        images = self.experiment.convert.images
        split = self.data.train(min(images, 256), self.experiment.seed + 3)
        parted = split.part(processes) if processes.count > 1 and isinstance(split, Parted) else split
        whole, left = divmod(images, split.batch_size)
        yield from islice(parted.epoch(0), whole)
        for x, y in islice(split.epoch(0, whole), int(left > 0)):
            yield x[:left], y[:left]

    def _save(self, model: nn.Module, name: str) -> None:
        if self.context.writes or self._shards:
            described = describe_network(model, self.experiment, self.data)
            save_checkpoint(self._file(name), model, described, writes=self.context.writes)

    def _load_ann(self) -> nn.Module:
        ann = self.experiment.ann.build()
        load_model(ann, load_checkpoint(self._file("ann")))
        return ann.to(self.device).eval()

    def _load(self, name: str) -> SpikingNetwork:
        network = load_network(self._file(name)).network
        assert isinstance(network, SpikingNetwork)
        return network

    def _file(self, name: str) -> Path:
        return self.folder.path / f"{name}.safetensors"


def _open(journal: Journal) -> None:
    try:
        journal.open({})
    except EvaluationError:  # a run may go on on another device, and what was begun there is begun again
        journal.open({}, restart=True)
    except DamagedFileError:
        warnings.warn(f"{journal.path / 'evaluation.json'} is damaged: its images are asked again", stacklevel=2)
        journal.open({}, restart=True)


def _shortened(calibrator: Component[Any]) -> Component[Any]:
    return calibrator.replace(timesteps=4) if "timesteps" in calibrator.parameters() else calibrator
