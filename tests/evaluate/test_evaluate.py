"""Accuracy from one pass, rates, SynOps and MACs against counts by hand, the report."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeprop import CNN, IF, Digits, Direct, GradedIF, Latency, MaxActivation, Poisson, ResNet, SignedIF, convert, snn_accuracy
from spikeprop.errors import EvaluationError
from spikeprop.evaluate import ADD_JOULES, MAC_JOULES, ActivityMeter, ann_accuracy, count_macs, fan_out, run_rows
from spikeprop.evaluate.summary import levels
from spikeprop.snn import INPUT, Layer, SpikingNetwork, Synapse
from spikeprop.snn.watching import WATCHED_BYTES, watched_chunk


def network_of(ann: nn.Module, shape: tuple[int, ...]) -> SpikingNetwork:
    torch.manual_seed(0)
    return convert(ann, [torch.rand(16, *shape)], IF(), MaxActivation())


def test_one_pass_gives_the_accuracy_of_every_number_of_steps(digits_cnn: CNN) -> None:
    network, data = network_of(digits_cnn, (1, 8, 8)), Digits(test_limit=100)
    together = snn_accuracy(network, data.test(50).epoch(0), [12, 3, 6])
    assert list(together) == [3, 6, 12]
    for t, accuracy in together.items():
        correct = sum(int((network(x, t).argmax(1) == y).sum()) for x, y in data.test(50).epoch(0))
        assert accuracy == pytest.approx(100 * correct / 100)
    assert together[3] < together[12]


def test_evaluation_memory_does_not_grow_with_steps() -> None:
    """Counted in tensors that are alive at once, which is what a long simulation would pile up."""
    network = network_of(CNN(input_shape=(1, 8, 8), classes=4, plan=[4, "A"], hidden=[8]), (1, 8, 8))
    batches = [(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))]
    peaks = []
    for steps in (10, 300):
        tracemalloc.start()
        snn_accuracy(network, batches, [steps])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 50_000


def test_bad_input() -> None:
    network = network_of(CNN(input_shape=(1, 8, 8), classes=4, plan=[4, "A"]), (1, 8, 8))
    with pytest.raises(ValueError, match="at least 1"):
        snn_accuracy(network, [], [0, 5])
    with pytest.raises(ValueError, match="no images"):
        snn_accuracy(network, [], [5])
    with pytest.raises(ValueError, match="no images"):
        ann_accuracy(nn.Identity(), [])


def test_fan_out_by_hand() -> None:
    """3x3 convolution with padding on 4x4, 5 outputs: a corner feeds 4 positions, an edge 6, the inside 9."""
    network = network_of(nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 7)), (1, 4, 4))
    maps = fan_out(network)
    edge = [4, 6, 6, 4]
    inside = [6, 9, 9, 6]
    assert maps[INPUT][0].tolist() == [[5.0 * n for n in row] for row in (edge, inside, inside, edge)]
    (conv,) = [m for name, m in maps.items() if name != INPUT]
    assert (conv == 7).all()


def test_fan_out_counts_pooling_as_part_of_its_synapse_and_both_branches_of_a_skip() -> None:
    pooled = network_of(
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)), (1, 4, 4)
    )
    (conv,) = [m for name, m in fan_out(pooled).items() if name != INPUT]
    assert (conv == 3).all()  # each spike reaches one pooled value, and through it three outputs
    residual = network_of(ResNet(depth=8, input_shape=(1, 8, 8), classes=3), (1, 8, 8))
    assert fan_out(residual)["preprocess_6"].min() >= 4 * 64 + 1  # the block's convolution, and the identity skip


def two_neurons() -> SpikingNetwork:
    """Two inputs -> one IF neuron (theta 1, weights .5 and 1) -> two outputs."""
    first = nn.Linear(2, 1, bias=False)
    first.weight.data = torch.tensor([[0.5, 1.0]])
    layers = {
        "hidden": Layer([(INPUT, Synapse([first]))], IF()),
        "out": Layer([("hidden", Synapse([nn.Linear(1, 2, bias=False)]))], None),
    }
    return SpikingNetwork(layers, Direct(), (2,))


def test_energy_above_the_anns_is_told_with_what_takes_less() -> None:
    def rows(joules_4: float) -> dict[str, str]:
        activity = {t: {"energy_joules": j, "rates": {}} for t, j in (("2", joules_4 / 2), ("4", joules_4))}
        values = {
            "synops": {}, "ann": {"accuracy": 91.0}, "macs": 1, "simulate": {"samples": 0}, "seconds": {}, "rates_at": 4,
            "converted": {"accuracy": {"2": 88.0, "4": 90.0}, "activity": activity},
            "energy_joules": {"ann": 1e-6, "snn": joules_4},
        }  # fmt: skip
        return dict(run_rows(values))

    assert rows(1.5e-6)["more than the ANN"].startswith("1.5 times at T = 4; T = 2 takes 0.75 uJ at 88.00 %. Convert for fewer")
    assert "no measured T takes less" in rows(3e-6)["more than the ANN"]
    assert "more than the ANN" not in rows(0.9e-6)


def test_rows_say_of_how_many_images_and_that_fine_tuning_made_it_worse() -> None:
    def network(percent: float, interval: list[float]) -> dict[str, object]:
        active = {"4": {"energy_joules": 1e-6, "bits_per_neuron": 1.0}}
        return {"accuracy": {"4": percent}, "interval": {"4": interval}, "activity": active, "activity_images": 64, "levels": 1}

    values = {
        "images": 64, "ann": {"accuracy": 60.94, "interval": [48.69, 71.94]}, "finetuned_epochs": 3, "macs": 10,
        "converted": network(59.38, [47.14, 70.54]), "finetuned": network(53.12, [41.07, 64.82]), "synops": {"a": 5.0},
        "rates_at": 4, "energy_joules": {"ann": 2e-6, "snn": 1e-6}, "simulate": {"samples": 0}, "seconds": {},
    }  # fmt: skip
    rows = dict(run_rows(values))
    assert rows["ANN"] == "60.94 % (48.69 to 71.94) of 64 test images"
    assert rows["fine-tuned, T = 4"] == "53.12 % (41.07 to 64.82), 1 bits a neuron, 1.00 uJ"
    assert rows["fine-tuning"].startswith("6.26 points below the converted network at T = 4, which may be chance (the intervals")
    assert rows["MACs (ANN) / SynOps (SNN) an image"] == "10 / 5 (mean of 64)"
    assert "fine-tuning" not in dict(run_rows({**values, "finetuned": network(59.4, [47.0, 70.0])}))
    assert rows["energy an image (arithmetic, 45 nm)"] == "ANN 2.00 uJ, SNN 1.00 uJ at T = 4"
    assert "not simulated" not in rows
    refused = dict(run_rows({**values, "simulate": {"samples": 0, "why": "SiLU is no spike"}}))
    assert refused["not simulated"] == "the network cannot be written for the hardware: SiLU is no spike"


def test_pooled_real_numbers_are_no_levels() -> None:
    """Max pooling passes on what it reads, and of a SiLU that is a real number, for which 31 bits are counted, not 31 levels."""
    ann = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    for neuron, expected in ((GradedIF(levels=3), 3), (SignedIF(), 1)):
        network = convert(ann, [torch.rand(4, 1, 8, 8)], neuron, MaxActivation())
        assert network.arithmetic_layers()
        assert levels(network) == expected


def test_rates_synops_and_energy_by_hand() -> None:
    """Two inputs -> one IF neuron (theta 1, weights .5 and 1) -> two outputs; direct input (1, 0), 6 steps.

    Current .5 a step: u = .5, 1, 1.5* -> .5, 1, 1.5*, ... : spikes at steps 3, 5: two in six steps.
    """
    network = two_neurons()
    meter = ActivityMeter(network, timesteps=6)
    snn_accuracy(network, [(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))], [6, 20], meter=meter)
    assert meter.rates() == {INPUT: pytest.approx(0.5), "hidden": pytest.approx(2 / 6)}
    assert meter.synops() == {INPUT: 6.0, "hidden": 4.0}
    assert meter.energy() == pytest.approx(6 * MAC_JOULES + 4 * ADD_JOULES)
    short = ActivityMeter(network, timesteps=6)
    snn_accuracy(network, [(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))], [3], meter=short)
    assert short.rates() == {INPUT: pytest.approx(0.5), "hidden": pytest.approx(1 / 3)}  # of the three steps there were
    network.encoder = Poisson()
    assert meter.energy() == pytest.approx(10 * ADD_JOULES)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_one_meter_counts_at_every_number_of_steps(chunk: int, digits_cnn: CNN) -> None:
    network, x = network_of(digits_cnn, (1, 8, 8)), next(Digits(test_limit=20).test(20).epoch(0))[0]
    together = ActivityMeter(network, [7, 2, 16])
    with torch.no_grad():
        for _ in network.unroll(x, 20, chunk=chunk, observe=together.start(20)):
            pass
    for t in (2, 7, 16):
        alone = ActivityMeter(network, t)
        network(x, t, observe=alone.start(20))
        assert together.rates(t) == alone.rates()
        assert together.synops(t) == alone.synops()
        assert together.energy(t) == alone.energy()
    taken, images = together.take(), 20
    assert together.rates(7) == dict.fromkeys(together.fan_out, 0.0)
    together.put(taken, images)
    assert together.synops(16) == alone.synops()


def test_watching_large_layers_takes_few_steps_at_once(digits_cnn: CNN) -> None:
    """Unpacked spikes of a layer stay within a quarter of a gigabyte: VGG16 at 224x224 would have 80 of them in 64 steps."""
    network = network_of(digits_cnn, (1, 8, 8))
    largest = 16 * 64 * 4
    assert watched_chunk(network, 10, 30) == 30
    assert watched_chunk(network, WATCHED_BYTES // (7 * largest), 30) == 7
    assert watched_chunk(network, WATCHED_BYTES, 30) == 1


def test_macs_by_hand() -> None:
    ann = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)).train()
    assert count_macs(ann, (3, 8, 8)) == 8 * 64 * 27 + 1280
    assert ann.training
    assert not any(m._forward_hooks for m in ann.modules())


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


W = torch.ones(8, 8)
PRODUCTS: dict[str, tuple[nn.Module, int]] = {  # of x (5, 8), with the products by hand
    "linear function": (Applied(lambda x: F.linear(x, W, W[0])), 5 * 8 * 8),
    "matmul": (Applied(lambda x: x @ x.mT), 5 * 5 * 8),
    "einsum": (Applied(lambda x: torch.einsum("bnd,bmd->bnm", x, x)), 5 * 5 * 8),
    "baddbmm": (Applied(lambda x: torch.baddbmm(x @ x.mT, x, x.mT)), 2 * 5 * 5 * 8),
    "addbmm": (Applied(lambda x: torch.addbmm(W[:5, :5], x, x.mT)), 5 * 5 * 8),
    "mv": (Applied(lambda x: x[0] @ W[0]), 5 * 8),
    "addmv": (Applied(lambda x: torch.addmv(x[0, :, 0], x[0], W[0])), 5 * 8),
    "dot": (Applied(lambda x: x[0, 0] @ W[0]), 8),
    "convolution function": (Applied(lambda x: F.conv1d(x.mT, torch.ones(4, 8, 3), padding=1)), 5 * 4 * 8 * 3),
    "groups": (Applied(lambda x: F.conv1d(x.mT, torch.ones(8, 2, 3), groups=4)), 3 * 8 * 2 * 3),
    "transposed": (Applied(lambda x: F.conv_transpose1d(x.mT, torch.ones(8, 4, 3), stride=2)), 5 * 8 * 4 * 3),
    "attention function": (Applied(lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])), 2 * 5 * 5 * 8),
    "attention": (Applied(lambda x, a: a(x, x, x)[0], nn.MultiheadAttention(8, 2, batch_first=True)), 4 * 5 * 64 + 2 * 25 * 8),
    "encoder layer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 4 * 5 * 64 + 2 * 25 * 8 + 2 * 5 * 8 * 16),
    "bilinear": (Applied(lambda x, b: b(x, x), nn.Bilinear(8, 8, 3)), 5 * 8 * 8 * 3),
    "lstm": (Applied(lambda x, r: r(x)[0], nn.LSTM(8, 6, batch_first=True)), 5 * 4 * 6 * (8 + 6)),
    "gru": (Applied(lambda x, r: r(x)[0], nn.GRU(8, 6, batch_first=True)), 5 * 3 * 6 * (8 + 6)),
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_macs_of_every_product_by_hand(form: str) -> None:
    """Functions and fused kernels as well as modules; the switches of the fused kernels are as they were."""
    ann, expected = PRODUCTS[form]
    assert count_macs(ann, (5, 8)) == expected
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.is_available() == torch.backends.mkldnn.enabled


def test_a_code_that_depends_on_the_number_of_steps_is_evaluated_at_one() -> None:
    """The first 4 of Latency's 16 steps hold the largest values alone; a simulation of 4 steps holds all of them."""
    network = SpikingNetwork({"out": Layer([(INPUT, Synapse([nn.Linear(3, 2)]))], None)}, Latency(), (3,))
    data = torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])
    assert list(snn_accuracy(network, data, [4])) == [4]
    with pytest.raises(EvaluationError, match="what Latency sends depends on the number of steps"):
        snn_accuracy(network, data, [4, 16])
