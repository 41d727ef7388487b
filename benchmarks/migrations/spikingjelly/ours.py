"""spikeprop: a CNN learns MNIST and becomes a network of spikes."""

import torch
from torch import nn

import spikeprop as sp


def main(images: int, tests: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    data = sp.MNIST(train_limit=images, test_limit=tests)
    batches, questions = data.train(64, seed=seed), data.test(100)

    parts: list[nn.Module] = []
    for channels in (1, 32, 32):
        parts += [nn.Conv2d(channels, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)]
    ann = nn.Sequential(*parts, nn.Flatten(), nn.Linear(32, 10))

    sp.fit(ann, sp.Backprop(), batches, torch.optim.Adam(ann.parameters(), lr=1e-3), epochs=3, seed=seed)

    calibration = [x for x, _ in data.train(512, seed=seed).epoch(0)][:2]
    snn = sp.convert(ann, calibration, sp.IF(v_init=0.5), sp.Percentile(percentile=99.9, per="channel"))
    found = sp.snn_accuracy(snn, questions.epoch(0), timesteps=[8, 32])
    return {"ANN": sp.ann_accuracy(ann, questions.epoch(0)), **{f"T = {t}": percent for t, percent in found.items()}}
