"""Two and three processes, each with its shard of the calibration images, get the thresholds, biases and gains of one process.

Real digits and a network trained on them; the shards are unequal, and one batch has fewer images than there are processes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikeprop import CNN, IF, Digits, MaxActivation, Percentile, Poisson, ThresholdBalancing, convert
from spikeprop.ann.activation import QCFS
from spikeprop.cli import main
from spikeprop.convert import (
    AdvancedCalibration,
    CalibrationShard,
    ConversionError,
    LearnedCeiling,
    LeastError,
    LightCalibration,
    LocalThresholdBalancing,
    OffsetSpike,
    ThresholdCalibrator,
)
from spikeprop.experiment.context import Context
from spikeprop.experiment.run_folder import RunFolder
from spikeprop.experiment.stages import PipelineRun
from spikeprop.experiment.stages.conversion import calibration_images
from spikeprop.recipe import load_recipe
from spikeprop.runtime.processes import ALONE, Processes, group
from spikeprop.snn import Direct, Encoder, SpikingNetwork
from tests.forked import Program, ranks, spawn

SIZES = (67, 1, 12)  # of the batches: 80 images, in two blocks of draws
EXACT = 0.0
ROUNDING = 1e-6  # of a tensor's largest number: sums are of float64, what they give of float32
FITTED = 1e-4  # gradients are summed in float32 within a process, and Adam divides by their size

CASES: dict[str, tuple[ThresholdCalibrator, Encoder, float]] = {
    "maximum": (MaxActivation(), Direct(), EXACT),
    "maximum by channel": (MaxActivation(per="channel"), Direct(), EXACT),
    "percentile": (Percentile(percentile=99.0), Direct(), EXACT),
    "percentile by channel": (Percentile(percentile=70.0, per="channel"), Direct(), EXACT),
    "balancing": (ThresholdBalancing(timesteps=20), Direct(), EXACT),
    "balancing, Poisson": (ThresholdBalancing(timesteps=20, scale=0.7), Poisson(), EXACT),
    "balancing, percentile": (ThresholdBalancing(timesteps=20, percentile=99.0), Poisson(), EXACT),
    "learnt ceiling": (LearnedCeiling(), Direct(), EXACT),
    "offset": (OffsetSpike(calibrator=Percentile(), pre_run=3), Direct(), EXACT),
    "least error": (LeastError(timesteps=4), Direct(), ROUNDING),
    "least error by layer": (LeastError(timesteps=4, per="layer"), Direct(), ROUNDING),
    "local": (LocalThresholdBalancing(timesteps=4, iterations=50), Direct(), ROUNDING),
    "light": (LightCalibration(timesteps=4), Direct(), ROUNDING),
    "light, Poisson": (LightCalibration(timesteps=6, potential=True), Poisson(), ROUNDING),
    "advanced": (AdvancedCalibration(timesteps=4, iterations=20, batch_size=16), Direct(), FITTED),
    "advanced, batches of two": (AdvancedCalibration(timesteps=16, iterations=30, batch_size=2), Poisson(), FITTED),
}


def batches() -> list[tuple[Tensor, Tensor]]:
    (x, y) = next(iter(Digits().train(sum(SIZES), seed=0).epoch(0)))
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


def digits_ann(folder: Path) -> nn.Module:
    ann = CNN(input_shape=(1, 8, 8), classes=10, plan=[16, "A", 32, "A"], hidden=[32], dropout=0.1, hidden_dropout=0.1)
    ann.load_state_dict(load_file(folder / "ann.safetensors"))
    return ann.eval()


def clipped_ann() -> nn.Module:
    torch.manual_seed(0)
    return CNN(input_shape=(1, 8, 8), classes=10, plan=[6, "A"], hidden=[5], activation=QCFS(levels=4, ceiling=0.7)).eval()


def converted(folder: Path, case: str, processes: Processes = ALONE) -> SpikingNetwork:
    calibrator, encoder, _ = CASES[case]
    ann = clipped_ann() if isinstance(calibrator, LearnedCeiling) else digits_ann(folder)
    torch.manual_seed(5 + processes.rank)  # only the draws of rank 0 count
    return convert(ann, batches(), IF(v_init=0.5), calibrator, encoder=encoder, processes=processes)


def state_of(network: SpikingNetwork) -> dict[str, Tensor]:
    return {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}


class Alone(ThresholdCalibrator):
    """A calibrator that knows no shards."""

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return MaxActivation().calibrate(network, x)


class Broken(Alone):
    """Fails, as a calibrator may on unsuitable images."""

    def calibrate(self, network: SpikingNetwork, x: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise ConversionError("these images do not suit")


def values_of(kind: str, images: int) -> Tensor:
    """Rows of 7 values an image."""
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(3, images * 7, generator=draws, dtype=torch.float64 if kind == "float64" else torch.float32)
    if kind == "ascending":
        values = values.sort().values
    if kind == "few":
        values = values.round()
    if kind == "wide":
        values = values * 10 ** (60 * torch.rand(values.shape, generator=draws) - 30)
        values[0, :5], values[1, -5:], values[2, 3] = torch.inf, -torch.inf, 0.0
    return values.half() if kind == "half" else values


KINDS = ("float32", "float64", "half", "ascending", "few", "wide")
QUANTILES = (0.001, 0.3, 0.5, 0.9, 0.999, 1.0)


def quantiles(kind: str, shard: CalibrationShard, cuts: slice) -> Tensor:
    values = values_of(kind, sum(SIZES))[:, cuts.start * 7 : cuts.stop * 7]
    return torch.stack([shard.quantile(values, q) for q in QUANTILES])


def refusal(folder: Path, images: list[Tensor], processes: Processes, calibrator: ThresholdCalibrator) -> str:
    with pytest.raises(ConversionError) as error:
        convert(digits_ann(folder), images, IF(), calibrator, processes=processes)
    return str(error.value)


def _one_of(rank: int, count: int, place: str) -> None:
    torch.set_num_threads(1)
    folder = Path(place)
    with group(dist.FileStore(f"{place}/store", count), rank, count) as processes:
        for number, case in enumerate(CASES):
            save_file(state_of(converted(folder, case, processes)), folder / f"{number}.{rank}.safetensors")
        save_file(_more(folder, processes), folder / f"more.{rank}.safetensors")
        (folder / f"errors.{rank}.json").write_text(json.dumps(_errors(folder, processes)))


def _more(folder: Path, processes: Processes) -> dict[str, Tensor]:
    """Quantiles, and a network of batches of which each process was given its own images alone."""
    total = sum(SIZES)
    cuts = range(total)[processes.rows(total)]
    shard = CalibrationShard(processes, cuts, total)
    found = {kind: quantiles(kind, shard, slice(cuts.start, cuts.stop)) for kind in KINDS}
    parted = [(x[processes.rows(len(y))], y) for x, y in batches()]
    network = convert(digits_ann(folder), parted, IF(v_init=0.5), MaxActivation(), processes=processes)
    return {**found, **{f"parted.{name}": value for name, value in state_of(network).items()}}


def _errors(folder: Path, processes: Processes) -> dict[str, str]:
    """Messages that this process gets, by what each must say; the first error concerns one process only."""
    images = [x for x, _ in batches()]
    broken = [x.clone() for x in images]
    broken[0][-1, 0, 3, 3] = torch.nan
    return {
        "NaN": refusal(folder, broken, processes, MaxActivation()),
        "never active": refusal(folder, [torch.zeros_like(x) for x in images], processes, Percentile()),
        "pass at least one for each": refusal(folder, [images[0][: processes.count - 1]], processes, MaxActivation()),
        "Alone() calibrates in one process": refusal(folder, images, processes, Alone()),
        "Alone(), pre_run=1) calibrates in one": refusal(folder, images, processes, OffsetSpike(calibrator=Alone(), pre_run=1)),
    }


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits_cnn: CNN) -> Path:
    """The folder with the networks of so many processes."""
    path = tmp_path_factory.mktemp("together")
    save_file({name: value.contiguous() for name, value in digits_cnn.state_dict().items()}, path / "ann.safetensors")
    spawn(_one_of, (request.param, str(path)), nprocs=request.param)
    return path


@pytest.mark.parametrize("case", CASES)
def test_processes_convert_like_one(folder: Path, case: str) -> None:
    expected, number = state_of(converted(folder, case)), list(CASES).index(case)
    first, *others = (load_file(file) for file in sorted(folder.glob(f"{number}.*.safetensors")))
    assert others
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        assert all(torch.equal(one[name], first[name]) for one in others), f"{name} is not the same in all processes"
        apart = float((first[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-30))
        assert apart <= CASES[case][2], f"{name} is {apart:.2g} of its size apart"


@pytest.mark.parametrize("kind", KINDS)
def test_quantiles_do_not_depend_on_how_values_are_sharded(folder: Path, kind: str) -> None:
    expected = quantiles(kind, CalibrationShard(), slice(0, sum(SIZES)))
    assert all(torch.equal(load_file(file)[kind], expected) for file in folder.glob("more.*.safetensors"))


def test_a_process_may_be_given_its_own_images_alone(folder: Path) -> None:
    found = load_file(folder / "more.0.safetensors")
    expected = state_of(converted(folder, "maximum"))
    assert all(torch.equal(found[f"parted.{name}"], value) for name, value in expected.items())


def test_all_processes_raise_the_same_error(folder: Path) -> None:
    files = list(folder.glob("errors.*.json"))
    assert len(files) > 1
    for file in files:
        assert all(says in message for says, message in json.loads(file.read_text()).items())


def test_a_calibrator_without_shards_calibrates_in_one_process(digits_cnn: CNN) -> None:
    x = batches()[0][0]
    found = convert(digits_cnn, [x], IF(), OffsetSpike(calibrator=Alone(), pre_run=1))
    expected = convert(digits_cnn, [x], IF(), MaxActivation())
    assert all(torch.equal(a.v_threshold, b.v_threshold) for a, b in zip(found.neurons().values(), expected.neurons().values()))


# the command --------------------------------------------------------------------------------------------------------------------

UNTRAINED = ("train.epochs=0", "finetune.epochs=0", "evaluate.timesteps=[2]", "simulate.samples=0", "data.test_limit=8")


def _together(out: Path, processes: int, settings: list[str]) -> list[Program]:
    runs = ranks(processes, None, _arguments(out, settings), out.with_suffix(".log"))
    for run in runs:
        run.ended()
    return runs


def _arguments(out: Path, settings: list[str]) -> list[str]:
    return ["run", "digits_cnn_stdb", *UNTRAINED, *settings, "--out", str(out)]


CUT_SHORT = "convert.images=300"  # a batch that is sharded, and one that is cut short
LIGHT = ["convert.calibrator={use: LightCalibration, timesteps: 4}", "convert.encoder=Poisson", CUT_SHORT]
OUTSIDE = ["convert.calibrator=tests.convert.test_distributed.Alone", CUT_SHORT]


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (2, ["convert.calibrator.timesteps=10", CUT_SHORT]),
        pytest.param(3, LIGHT, marks=pytest.mark.slow),
        pytest.param(2, OUTSIDE, marks=pytest.mark.slow),
        pytest.param(3, ["convert.images=2"], marks=pytest.mark.slow),  # then rank 0 calibrates alone
    ],
    ids=["balancing", "light", "one that knows no shards", "fewer images than processes"],
)
def test_the_command_converts_like_one_process(processes: int, settings: list[str], tmp_path: Path) -> None:
    together = _together(tmp_path / "together", processes, settings)
    assert [run.poll() for run in together] == [0] * processes, "".join(run.output for run in together)
    found = load_file(tmp_path / "together" / "converted.safetensors")
    done = CliRunner().invoke(main, _arguments(tmp_path / "alone", settings))
    assert done.exit_code == 0, done.output
    expected = load_file(tmp_path / "alone" / "converted.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=ROUNDING, atol=0.0)


@pytest.mark.slow
def test_an_error_of_rank_0_that_calibrates_alone_ends_all(tmp_path: Path) -> None:
    first, second = _together(tmp_path / "run", 2, ["convert.calibrator=tests.convert.test_distributed.Broken"])
    assert [first.poll(), second.poll()] == [1, 1]
    assert "these images do not suit" in first.output
    assert "rank 1 ends because another process failed" in second.output
    assert "closed by peer" not in first.output + second.output


def test_a_process_reads_its_own_images_alone(tmp_path: Path) -> None:
    """From a folder of photographs; a last batch that is cut short is read by all."""
    source = torch.Generator().manual_seed(0)
    for i in range(12):
        path = tmp_path / "train" / "n01440764" / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40, 40, 3), generator=source, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    recipe = load_recipe(
        "digits_cnn_stdb", [f"data={{use: ImageNet, root: {tmp_path}, size: 32, workers: 0}}", "convert.images=10"]
    )
    run = PipelineRun(recipe.experiment, Context(RunFolder(tmp_path / "run", recipe), "photographs", print))
    ((complete, labels),) = list(calibration_images(run, ALONE))
    parts = []
    for rank in range(3):
        ((x, y),) = list(calibration_images(run, Processes(rank, 3)))
        assert torch.equal(y, labels)
        parts.append(x)
    assert [len(x) for x in parts] == [3, 3, 4]
    assert torch.equal(torch.cat(parts), complete)
