"""The Triton kernels against the reference: on a GPU where there is one, else through Triton's interpreter.

The interpreter has to be chosen before Triton is imported, and by now anything may have imported it: without a GPU these tests
skip, and ``test_by_interpreter`` runs this file again in a process of its own. That the kernels compile is tested in either case.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.compilation import TARGETS, compile_only, needs
from spikeprop import CNN, IF, LIF, Direct, MaxActivation, Poisson, convert
from spikeprop.snn import STDB, ATan, Encoder, Neuron
from spikeprop.snn.engine import batch
from spikeprop.snn.engine.kernels import cpu, packed_kernels, packed_reference
from spikeprop.snn.engine.kernels.arguments import PackedSpikes, ScanParameters, SpikeTrain
from spikeprop.snn.engine.kernels.gradient import Gradient
from spikeprop.snn.engine.kernels.words import pack, unpack, word_count

triton: Any = pytest.importorskip("triton", reason="torch brings no Triton for this platform")
cuda: Any = packed_kernels(torch.device("cuda"))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
CHANNELS = (1, 31, 32, 33, 70)
DTYPES_AND_CHANNELS = [  # the interpreter takes half of them on each commit: every dtype, and every number of channels
    pytest.param(dtype, channels, marks=[pytest.mark.slow] if INTERPRETED and (dtype is torch.float64) == (i % 2 == 0) else [])
    for dtype in (torch.float32, torch.float64)
    for i, channels in enumerate(CHANNELS)
]
needs_device = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU: run through the interpreter by test_by_interpreter"
)
main_process = pytest.mark.skipif(INTERPRETED, reason="the interpreter is on")
BATCH, SIDE = 2, 4


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows in one program, since the interpreter's time goes by the number of programs."""
    if INTERPRETED:
        monkeypatch.setattr(cuda, "SEARCH", (32, 4))


def on_device(*tensors: Tensor) -> list[Tensor]:
    """Copies where the kernels under test run."""
    return [tensor.clone().to(DEVICE) for tensor in tensors]


def parameters(channels: int, dtype: torch.dtype, leaky: bool, per_position: bool) -> tuple[Tensor, Tensor]:
    """Thresholds and leaks."""
    rows = SIDE**2 if per_position else 1
    theta = torch.rand(rows, channels, dtype=dtype) + 0.5
    return theta, torch.rand(rows, channels, dtype=dtype) if leaky else torch.ones(rows, channels, dtype=dtype)


def spike_words(steps: int, channels: int) -> Tensor:
    """Words of neurons that are silent, rare, busy, or fire at every step."""
    rates = torch.tensor([0.0, 0.02, 0.1, 0.5, 1.0])[torch.randint(5, (BATCH, SIDE**2, channels))]
    return pack(torch.bernoulli(rates.expand(steps, -1, -1, -1)))


def summary(words_TBSW: Tensor, chunk: int) -> Tensor:
    """Words of each chunk or-ed."""
    parts = [torch.empty_like(words_TBSW[0]) for _ in range(0, len(words_TBSW), chunk)]
    for part, words in zip(parts, words_TBSW.split(chunk)):
        packed_reference.any_of(words, part)
    return torch.stack(parts)


def assert_near(ours: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Within 1e-6 (float32) or 1e-12 (float64) of the largest value."""
    limit = 1e-6 if dtype is torch.float32 else 1e-12
    assert float((ours.cpu().double() - wanted).abs().max()) <= limit * float(wanted.abs().max())


@needs_device
@pytest.mark.parametrize(("dtype", "channels"), DTYPES_AND_CHANNELS)
def test_scan(dtype: torch.dtype, channels: int) -> None:
    """Spikes and potentials equal the reference's to the bit, from chunk to chunk."""
    torch.manual_seed(0)
    for to_zero, leaky, per_position in itertools.product((False, True), repeat=3):
        theta, leak = parameters(channels, dtype, leaky, per_position)
        v = torch.rand(BATCH, SIDE**2, channels, dtype=dtype)
        ours_v, theta_there, leak_there = on_device(v, theta, leak)
        for steps, current_dtype in ((5, dtype), (1, dtype), (5, torch.bfloat16), (1, torch.float16)):
            current = torch.randn(steps, *v.shape).to(current_dtype)
            words = torch.empty(5, BATCH, SIDE**2, word_count(channels), dtype=torch.int32)
            ours_current, ours = on_device(current, words)
            count = packed_reference.scan(current, v, ScanParameters(theta, leak, to_zero), words, potential=False)
            cuda.scan(ours_current, ours_v, ScanParameters(theta_there, leak_there, to_zero), ours, potential=False)
            assert 0 < count < 5 * v.numel()
            assert torch.equal(ours.cpu(), words)
            assert torch.equal(ours_v.cpu(), v)
            assert torch.equal(ours_current.cpu(), current)


@needs_device
def test_a_potential_at_the_threshold_does_not_fire() -> None:
    current = torch.tensor([1.0, 0.5, 0.5, 2.0]).expand(3, 1, 1, 4)
    current, v, one, leak = on_device(current, torch.tensor([0.0, 0.5, 0.5, 0.0])[None, None], torch.ones(1, 4), torch.ones(1, 4))
    words = torch.empty(3, 1, 1, 1, dtype=torch.int32, device=DEVICE)
    cuda.scan(current, v, ScanParameters(one, leak, False), words, potential=False)
    assert words.flatten().tolist() == [0b1000, 0b1111, 0b1001]
    assert v.flatten().tolist() == [1.0, 1.0, 1.0, 3.0]


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scan_keeps_the_potentials_that_are_asked_for(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theta, leak = parameters(33, dtype, True, True)
    v, current = torch.rand(BATCH, SIDE**2, 33, dtype=dtype), torch.randn(4, BATCH, SIDE**2, 33, dtype=dtype)
    words = torch.empty(4, BATCH, SIDE**2, 2, dtype=torch.int32)
    ours_current, ours_v, ours_words, theta_there, leak_there = on_device(current, v, words, theta, leak)
    packed_reference.scan(current, v, ScanParameters(theta, leak, True), words, potential=True)
    cuda.scan(ours_current, ours_v, ScanParameters(theta_there, leak_there, True), ours_words, potential=True)
    assert torch.equal(ours_current.cpu(), current)
    assert torch.equal(ours_words.cpu(), words)


@needs_device
@pytest.mark.parametrize("channels", CHANNELS)
def test_words_or_ed_and_steps_since_the_last_spike(channels: int, few_programs: None) -> None:
    torch.manual_seed(0)
    for steps, chunk in ((13, 5), (3, 1), (45, 40)):
        words = spike_words(steps, channels)
        (there,) = on_device(words)
        parts = []
        for part in there.split(chunk):
            parts.append(torch.full_like(part[0], -1))
            cuda.any_of(part, parts[-1])
        wanted = summary(words, chunk)
        assert torch.equal(torch.stack(parts).cpu(), wanted)
        since = cuda.since_at_end(there, torch.stack(parts), chunk)
        assert torch.equal(since.cpu(), packed_reference.since_at_end(words, wanted, chunk))


@needs_device
@pytest.mark.parametrize(("dtype", "channels"), DTYPES_AND_CHANNELS)
def test_scan_back(dtype: torch.dtype, channels: int, few_programs: None) -> None:
    torch.manual_seed(0)
    for i, (scaled, pool) in enumerate(itertools.product((False, True), (1, 2))):
        scan_back_all_chunks(channels, dtype, 13, 5, scaled, pool, to_zero=i in (0, 3), leaky=i != 1, per_position=i < 2)


@needs_device
@pytest.mark.parametrize(("steps", "chunk"), [(3, 1), (75, 70), (97, 64), (40, 50)])
def test_scan_back_through_chunks_short_and_long(steps: int, chunk: int, few_programs: None) -> None:
    """The kernel goes through a chunk in blocks of 32 steps."""
    torch.manual_seed(0)
    scan_back_all_chunks(33, torch.float64, steps, chunk, scaled=True, pool=2, to_zero=True, leaky=True, per_position=True)


def scan_back_all_chunks(
    channels: int,
    dtype: torch.dtype,
    steps: int,
    chunk: int,
    scaled: bool,
    pool: int,
    to_zero: bool,
    leaky: bool,
    per_position: bool,
) -> None:
    """From the last to the first, with what passes between them, against the reference in double precision."""
    theta, leak = parameters(channels, dtype, leaky, per_position)
    words, surrogate = spike_words(steps, channels), STDB(alpha=0.3, beta=0.05)
    ors = summary(words, chunk)
    scale = torch.bernoulli(torch.full((BATCH, SIDE**2, channels), 0.8, dtype=dtype)) / 0.8 if scaled else None
    grad_v = torch.randn(BATCH, SIDE**2, channels, dtype=dtype)
    ours_v, words_there, ors_there, theta_there, leak_there = on_device(grad_v, words, ors, theta, leak)
    since = cuda.since_at_end(words_there, ors_there, chunk)
    train, train_there = SpikeTrain(words, ors, chunk, since), SpikeTrain(words_there, ors_there, chunk, since)
    parameters_there = ScanParameters(theta_there, leak_there, to_zero)
    grad_v, theta, leak = grad_v.double(), theta.double(), leak.double()
    for begin in reversed(range(0, steps, chunk)):
        values = torch.randn(min(chunk, steps - begin), BATCH, SIDE**2 // pool**2, channels, dtype=dtype)
        (values_there,) = on_device(values)
        given = Gradient(values.double(), SIDE, pool, None if scale is None else scale.double())
        there = Gradient(values_there, SIDE, pool, None if scale is None else scale.to(DEVICE))
        wanted = torch.empty(len(values), *grad_v.shape, dtype=torch.float64)
        ours = values_there if pool == 1 else torch.empty_like(wanted, dtype=dtype, device=DEVICE)
        packed_reference.scan_back(given, grad_v, train, begin, ScanParameters(theta, leak, to_zero), surrogate, wanted)
        cuda.scan_back(there, ours_v, train_there, begin, parameters_there, surrogate, ours)
        assert_near(ours, wanted, dtype)
        assert_near(ours_v, grad_v, dtype)
        before = packed_reference.since_at_end(words[:begin], ors, chunk)
        assert torch.equal(since.cpu()[..., :channels], before[..., :channels])


@needs_device
def test_scan_back_of_half_precision_keeps_its_sum_in_single() -> None:
    """Gradients of 2^-12, added to 1 over 64 steps: each result is the exact sum, rounded once."""
    words = pack(torch.ones(64, 1, 1, 32)).to(DEVICE)
    ors, one = summary(words.cpu(), 64).to(DEVICE), torch.ones(1, 32, device=DEVICE)
    grad_v = torch.ones(1, 1, 32, device=DEVICE)
    since = torch.zeros(1, 1, 32, dtype=torch.int32, device=DEVICE)
    given = Gradient(torch.full((64, 1, 1, 32), 2.0**-12, dtype=torch.float16, device=DEVICE))
    ours = given.values_KBPC
    cuda.scan_back(given, grad_v, SpikeTrain(words, ors, 64, since), 0, ScanParameters(one, one, False), STDB(alpha=1.0), ours)
    wanted = 1 + torch.arange(64, 0, -1) * 2.0**-12
    assert torch.equal(ours[:, 0, 0, 5].cpu(), wanted.half())
    assert float(grad_v[0, 0, 5]) == float(wanted[0])


@needs_device
@pytest.mark.parametrize("channels", CHANNELS)
def test_scan_back_with_slopes_given(channels: int) -> None:
    torch.manual_seed(0)
    for to_zero, leaky, dtype in itertools.product((False, True), (False, True), (torch.float32, torch.float64)):
        theta, leak = parameters(channels, dtype, leaky, per_position=to_zero)
        words = spike_words(5, channels)
        grad, slope = torch.randn(2, 5, BATCH, SIDE**2, channels, dtype=dtype)
        grad_v = torch.randn(BATCH, SIDE**2, channels, dtype=dtype)
        ours, ours_v, words_there, slope_there, theta_there, leak_there = on_device(grad, grad_v, words, slope, theta, leak)
        wanted, wanted_v = grad.double(), grad_v.double()
        reference = ScanParameters(theta.double(), leak.double(), to_zero)
        packed_reference.scan_back_slopes(wanted, wanted_v, words, slope.double(), reference)
        cuda.scan_back_slopes(ours, ours_v, words_there, slope_there, ScanParameters(theta_there, leak_there, to_zero))
        assert_near(ours, wanted, dtype)
        assert_near(ours_v, wanted_v, dtype)


@needs_device
@pytest.mark.parametrize("channels", CHANNELS)
def test_words_as_values_and_back(channels: int) -> None:
    """Unpacking, average pooling under a dropout mask, and the gradients of both."""
    torch.manual_seed(0)
    words = spike_words(3, channels)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int32):
        assert torch.equal(cuda.unpack(words.to(DEVICE), channels, dtype).cpu(), unpack(words, channels, dtype))
    for pool, scaled in itertools.product((1, 2, 4), (False, True)):
        scale = torch.rand(BATCH, SIDE**2, channels, dtype=torch.float64) if scaled else None
        scale_there = scale.to(DEVICE) if scale is not None else None
        wanted = cpu.pooled(PackedSpikes(words, (SIDE, SIDE), channels, pool, scale, None), torch.float64)
        there = PackedSpikes(words.to(DEVICE), (SIDE, SIDE), channels, pool, scale_there, None)
        assert_near(cuda.pooled(there, torch.float64), wanted, torch.float64)
        grad = torch.randn(3, BATCH, SIDE**2 // pool**2, channels, dtype=torch.float64)
        wanted = Gradient(grad, SIDE, pool, scale).dense()
        assert_near(cuda.spread(Gradient(grad.to(DEVICE), SIDE, pool, scale_there)), wanted, torch.float64)


# the whole engine -------------------------------------------------------------------------------------------------------------


@needs_device
@pytest.mark.parametrize(
    ("neuron", "encoder"),
    [
        (IF(v_init=0.3), Direct()),
        (IF(), Poisson()),
        (LIF(leak=0.9, reset="zero", surrogate=STDB(beta=0.5)), Direct()),
        (LIF(surrogate=ATan()), Direct()),
    ],
    ids=str,
)
def test_the_engine_on_these_kernels(neuron: Neuron, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's outputs and gradients equal the reference's."""
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 4, 4), classes=3, plan=[5, "A"], hidden=[33], dropout=0.2, hidden_dropout=0.3)
    x = torch.rand(2, 1, 4, 4)
    network = convert(ann, [x], neuron, MaxActivation(), encoder=encoder).double().train().to(DEVICE)
    for neuron_there in network.neurons().values():
        neuron_there.v_threshold *= 0.3
    x = x.double().to(DEVICE)
    monkeypatch.setattr(batch, "packed_kernels", lambda device: cuda)
    monkeypatch.setattr(batch, "_spans", lambda x: [(0, len(x))])  # as on CUDA: the interpreter is not made for threads
    monkeypatch.setattr(batch, "kept_spikes", lambda x: x.to(torch.int8))  # as on CUDA

    def output_and_gradient(packed: bool, **how: int) -> tuple[Tensor, Tensor]:
        network.packed = packed
        network.zero_grad()
        torch.manual_seed(5)
        output = network(x, 7, **how)
        F.cross_entropy(output, torch.arange(2, device=DEVICE)).backward()
        return output.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    wanted = output_and_gradient(False)
    assert float(wanted[1].abs().max()) > 1e-3
    assert batch.supports(network, x)
    for ours, theirs in zip(output_and_gradient(True, chunk=4), wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


# without a GPU ----------------------------------------------------------------------------------------------------------------


@main_process
@pytest.mark.skipif(torch.cuda.is_available(), reason="these tests ran on the GPU")
@pytest.mark.slow  # half a minute; the kernels are compiled in the fast tests
@pytest.mark.parametrize("marked", ["not slow", "slow"])
def test_by_interpreter(marked: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, __file__]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Kernels are compiled to machine code when they are launched, and not launched."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with compile_only(request.param) as found:
        yield found


SHAPES_AND_DTYPES = [
    (64, 4, torch.float32, torch.float32),
    (70, 2, torch.float64, torch.float64),
    (1, 1, torch.float32, torch.bfloat16),
]
TARGETS_AND_KINDS = [  # on each commit every kernel for every target, and for every kind
    pytest.param(target, *kind, marks=[] if i == j else [pytest.mark.slow], id=f"{target}-{kind[0]}-{kind[3]}")
    for i, target in enumerate(TARGETS)
    for j, kind in enumerate(SHAPES_AND_DTYPES)
]


@main_process
@pytest.mark.parametrize(("compiled", "channels", "side", "dtype", "given"), TARGETS_AND_KINDS, indirect=["compiled"])
def test_kernels_compile(compiled: list[Any], channels: int, side: int, dtype: torch.dtype, given: torch.dtype) -> None:
    pool, positions = min(side, 2), side**2
    theta, v = torch.ones(1, channels, dtype=dtype), torch.zeros(2, positions, channels, dtype=dtype)
    dense = torch.zeros(5, 2, positions, channels, dtype=given)
    words = torch.zeros(5, 2, positions, word_count(channels), dtype=torch.int32)
    ors = torch.zeros(2, *words.shape[1:], dtype=torch.int32)
    for to_zero, flag in ((False, True), (True, False)):
        gradient = Gradient(dense[:, :, : positions // pool**2].contiguous(), side, pool, v if flag else None)
        neurons = ScanParameters(theta, theta, to_zero)
        cuda.scan(dense, v, neurons, words, potential=flag)
        train = SpikeTrain(words, ors, 3, cuda.since_at_end(words, ors, 3))
        cuda.scan_back(gradient, v, train, 0, neurons, STDB(), dense)
        cuda.scan_back_slopes(dense, v, words, dense, neurons)
        cuda.spread(gradient)
        cuda.pooled(PackedSpikes(words, (side, side), channels, pool, v if flag else None, None), given)
    cuda.any_of(words, ors[0])
    cuda.unpack(words, channels, given)
    assert len(compiled) == 2 * 6 + 2
    assert not any(needs(kernel)["spilled"] for kernel in compiled)
    names = {kernel.name for kernel in compiled}
    assert names == {"_scan", "_since_at_end", "_scan_back", "_scan_back_slopes", "_spread", "_pool", "_any_of", "_unpack"}
    # leak * v + current rounds twice, as in the reference
    assert not any("fma.rn" in kernel.asm["ptx"] for kernel in compiled if kernel.name == "_scan")


@main_process
def test_without_triton_the_plain_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_kernels(torch.device("cuda")) is cuda
    assert packed_kernels(torch.device("meta")) is packed_reference
    monkeypatch.setitem(sys.modules, "triton", None)
    assert packed_kernels(torch.device("cuda")) is packed_reference
    assert packed_kernels(torch.device("cpu")) is cpu
