"""A step of the learned receiver, forward and backward, compared with a split step by FFT under autograd.

python benchmarks/ldbp.py --out results/benchmarks/ldbp.json

Ours: short filters in the time domain (9 taps for one polarisation; 15 + 5 - 1 for two, with a rotation) and the Kerr phase,
with gradients by the samples, all taps, the rotation and the Kerr coefficient. "FFT, trained": fft, a trained response (the
phase of each frequency, and the delay between polarisations), ifft, the same rotation and Kerr phase in torch operations, all
under autograd. "FFT, fixed": the dispersion is a constant, so only the gradient by the input is computed; without rotation and
delays. Times are CPU seconds of one thread, rounds in random order, medians; the ratio is ours divided by theirs in samples per
second.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import OURS, option_parser, parse, save
from torch import Tensor

from spikeprop.plugins.ldbp_pmd.fibre import Fibre
from spikeprop.plugins.ldbp_pmd.filters import FilterDesign
from spikeprop.plugins.ldbp_pmd.receiver import Backward, make_receiver

PEERS = ("FFT, trained", "FFT, fixed")
CASES = {
    1: Backward(train_kerr=True),
    2: Backward(steps_per_span=4, filters=FilterDesign(taps=15, gain=0.65), dgd_taps=5, train_kerr=True),
}
RATES = {1: 21.4e9, 2: 64e9}


def ours(polarisations: int) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """One step and its parameters."""
    backward = CASES[polarisations]
    receiver = make_receiver(Fibre(spans=1), backward, RATES[polarisations], polarisations, torch.Generator().manual_seed(0))
    for tensor in (*receiver.parameters(), *receiver.buffers()):
        tensor.data = tensor.data[:1].clone()
    return receiver, list(receiver.parameters())


def with_fft(polarisations: int, samples: int, trained: bool) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """The same step in the frequency domain and its parameters."""
    omega = 2 * torch.pi * torch.fft.fftfreq(samples)
    phase, delay = (0.1 * omega.square()).requires_grad_(), torch.tensor(0.1, requires_grad=True)
    numbers, kerr = torch.tensor([0.6, 0.2, 0.3, 0.7], requires_grad=True), torch.tensor(-0.1, requires_grad=True)
    fixed = torch.exp(1j * phase.detach())
    both = polarisations == 2 and trained

    def response() -> Tensor:
        return (
            torch.exp(1j * (torch.stack([phase - omega * delay, phase + omega * delay]) if both else phase)) if trained else fixed
        )

    def step(x: Tensor) -> Tensor:
        x = torch.fft.ifft(torch.fft.fft(x) * response())
        if both:
            a, b = torch.view_as_complex((numbers / numbers.norm()).view(2, 2)).unbind()
            x = torch.stack([a * x[:, 0] + b * x[:, 1], -b.conj() * x[:, 0] + a.conj() * x[:, 1]], 1)
        power = x.abs().square().sum(1, keepdim=True)
        return x * torch.exp(1j * kerr * power)

    return step, [*([phase] if trained else []), *([delay, numbers] if both else []), kerr]


def timed(step: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, cotangent: Tensor) -> float:
    """CPU seconds of one forward and backward pass."""
    start = time.thread_time()
    torch.autograd.grad(step(x), [x, *parameters], cotangent)
    return time.thread_time() - start


def race(polarisations: int, samples: int, blocks: int, repeats: int, seed: int) -> dict[str, Any]:
    """Samples a second of each contender, both polarisations counted, and ratios."""
    draws, order = torch.Generator().manual_seed(seed), random.Random(seed)
    shape = (blocks, polarisations, samples)
    x = torch.randn(shape, dtype=torch.complex64, generator=draws).requires_grad_()
    cotangent = torch.randn(shape, dtype=torch.complex64, generator=draws)
    steps = {OURS: ours(polarisations)} | {name: with_fft(polarisations, samples, name == PEERS[0]) for name in PEERS}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 3):
        for name in order.sample(list(steps), len(steps)):
            found = timed(*steps[name], x, cotangent)
            if turn >= 3:
                seconds[name].append(found)
    rates = {name: x.numel() / statistics.median(values) for name, values in seconds.items()}
    return {
        "polarisations": polarisations,
        "samples": samples,
        "blocks": blocks,
        "taps": CASES[polarisations].filters.taps + max(0, CASES[polarisations].dgd_taps - 1),
        "samples_per_second": rates,
        "least_seconds": {name: min(values) for name, values in seconds.items()},
        "ratios": {name: rates[OURS] / rates[name] for name in PEERS},
    }


def show(races: Sequence[dict[str, Any]]) -> None:
    """A line for each race."""
    print(f"{'samples/s (millions)':<44}" + "".join(f"{name:>15}" for name in (OURS, *PEERS)) + f"{'ratios':>15}")
    for found in races:
        title = f"{found['polarisations']} pol., {found['taps']} taps, {found['blocks']} x {found['samples']} samples"
        rates = "".join(f"{found['samples_per_second'][name] / 1e6:>15.1f}" for name in (OURS, *PEERS))
        print(f"{title:<44}{rates}{', '.join(f'{ratio:.2f}' for ratio in found['ratios'].values()):>15}")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(option_parser(__doc__, [OURS, *PEERS], repeats=40, blocks=50), argv)
    torch.set_num_threads(1)  # the clock is that of one thread
    sizes = ((1, 512), (1, 4096), (2, 512), (2, 4096))
    races = [race(p, n, max(1, options.blocks * 512 // n // p), options.repeats, options.seed) for p, n in sizes]
    show(races)
    save(__file__, options, clock="CPU seconds of one thread", races=races)


if __name__ == "__main__":
    main()
