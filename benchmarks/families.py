"""Which of timm's and torchvision's families convert: a row each, or the reason of the refusal. Random weights, small images.

    python benchmarks/families.py [--simulate] [--seconds 150] [NAME ...]

A row says how many layers the network has, how many of them compute (need arithmetic on the chip), how long the conversion took,
its proof included, and with ``--simulate`` the error of the output after 4, 16 and 64 steps of graded spikes (4 levels, largest
activation by channel), relative to the output's mean size. It needs timm, which is no dependency of spikeprop.
"""

from __future__ import annotations

import argparse
import signal
import time
import warnings
from typing import Any

import torch
from torch import nn
from torchvision import models

from spikeprop import Direct, GradedIF, MaxActivation, convert
from spikeprop.convert import ConversionError, to_spiking

TORCHVISION: list[tuple[str, int, dict[str, Any]]] = [
    ("vit_b_16", 32, {"image_size": 32}), ("swin_t", 32, {}), ("swin_v2_t", 64, {}), ("convnext_tiny", 32, {}),
    ("efficientnet_b0", 32, {}), ("efficientnet_v2_s", 32, {}), ("mobilenet_v3_small", 32, {}), ("regnet_y_400mf", 32, {}),
    ("shufflenet_v2_x0_5", 32, {}), ("maxvit_t", 224, {}),
]  # fmt: skip
TIMM: list[tuple[str, int, dict[str, Any]]] = [
    ('vit_tiny_patch16_224', 32, {'img_size': 32}),
    ('deit_tiny_patch16_224', 32, {'img_size': 32}),
    ('deit3_small_patch16_224', 32, {'img_size': 32}),
    ('beit_base_patch16_224', 32, {'img_size': 32}),
    ('cait_xxs24_224', 32, {'img_size': 32}),
    ('swin_tiny_patch4_window7_224', 56, {'img_size': 56}),
    ('swinv2_tiny_window8_256', 64, {'img_size': 64}),
    ('convnext_atto', 32, {}),
    ('convnextv2_atto', 32, {}),
    ('mixer_s32_224', 32, {'img_size': 32}),
    ('resmlp_12_224', 32, {'img_size': 32}),
    ('gmlp_ti16_224', 32, {'img_size': 32}),
    ('efficientnet_b0', 32, {}),
    ('efficientnet_lite0', 32, {}),
    ('tf_efficientnet_b0', 32, {}),
    ('mobilenetv2_050', 32, {}),
    ('mobilenetv3_small_050', 32, {}),
    ('mobilenetv4_conv_small', 32, {}),
    ('mnasnet_small', 32, {}),
    ('fbnetc_100', 32, {}),
    ('ghostnet_100', 32, {}),
    ('tinynet_e', 32, {}),
    ('hardcorenas_a', 32, {}),
    ('lcnet_050', 32, {}),
    ('rexnet_100', 32, {}),
    ('resnet18', 32, {}),
    ('resnet26d', 32, {}),
    ('resnext26ts', 32, {}),
    ('seresnet18', 32, {}),
    ('ecaresnet26t', 32, {}),
    ('skresnet18', 32, {}),
    ('resnest14d', 64, {}),
    ('res2net50_26w_4s', 32, {}),
    ('resnetv2_50', 32, {}),
    ('gernet_s', 32, {}),
    ('regnetx_002', 32, {}),
    ('regnety_002', 32, {}),
    ('repvgg_a0', 32, {}),
    ('densenet121', 32, {}),
    ('dla34', 32, {}),
    ('darknet17', 32, {}),
    ('cspresnet50', 32, {}),
    ('cspdarknet53', 32, {}),
    ('vgg11', 32, {}),
    ('vovnet39a', 32, {}),
    ('xception41', 32, {}),
    ('inception_v4', 96, {}),
    ('nf_resnet26', 32, {}),
    ('dm_nfnet_f0', 32, {}),
    ('selecsls42', 32, {}),
    ('hrnet_w18_small', 32, {}),
    ('mobileone_s0', 32, {}),
    ('fastvit_t8', 64, {}),
    ('edgenext_xx_small', 32, {}),
    ('mobilevit_xxs', 64, {}),
    ('mobilevitv2_050', 64, {}),
    ('poolformer_s12', 32, {}),
    ('coatnet_nano_rw_224', 64, {'img_size': 64}),
    ('maxvit_pico_rw_256', 64, {'img_size': 64}),
    ('levit_128s', 64, {'img_size': 64}),
    ('efficientformer_l1', 224, {}),
    ('pit_ti_224', 64, {'img_size': 64}),
    ('tnt_s_patch16_224', 32, {'img_size': 32}),
    ('twins_pcpvt_small', 64, {'img_size': 64}),
    ('pvt_v2_b0', 64, {}),
    ('focalnet_tiny_srf', 64, {}),
    ('davit_tiny', 64, {}),
    ('xcit_nano_12_p16_224', 64, {}),
    ('crossvit_tiny_240', 240, {}),
    ('convmixer_768_32', 32, {}),
    ('sequencer2d_s', 64, {}),
    ('eva02_tiny_patch14_224', 28, {'img_size': 28}),
    ('starnet_s1', 32, {}),
    ('rdnet_tiny', 32, {}),
    ('inception_next_atto', 32, {}),
    ('caformer_s18', 32, {}),
    ('hgnet_tiny', 32, {}),
    ('repvit_m0_9', 32, {}),
    ('ghostnetv2_100', 32, {}),
    ('nest_tiny', 64, {'img_size': 64}),
    ('visformer_tiny', 224, {}),
    ('convit_tiny', 32, {'img_size': 32}),
    ('gcvit_xxtiny', 224, {}),
    ('volo_d1_224', 64, {'img_size': 64}),
    ('hiera_tiny_224', 224, {}),
    ('mvitv2_tiny', 64, {'img_size': 64}),
    ('tiny_vit_5m_224', 224, {}),
    ('efficientvit_b0', 64, {}),
    ('efficientvit_m0', 224, {}),
    ('halonet26t', 64, {}),
    ('lambda_resnet26t', 64, {}),
    ('botnet26t_256', 64, {'img_size': 64}),
    ('vit_relpos_small_patch16_224', 32, {'img_size': 32}),
    ('samvit_base_patch16_224', 32, {'img_size': 32}),
    ('vit_small_patch14_dinov2', 28, {'img_size': 28})
]  # fmt: skip
SCALES = ("layer_scale", "gamma", "gamma1", "gamma2", "gamma_1", "gamma_2", "ls1", "ls2", "alpha", "skipinit_gain")


def lively(ann: nn.Module) -> nn.Module:
    """Statistics, scales and weights with which the image matters in the last layer."""
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        for name, parameter in module.named_parameters(recurse=False):
            if name in SCALES:
                nn.init.uniform_(parameter, 0.3, 0.7)
            elif isinstance(module, nn.Conv2d) and name == "weight":
                nn.init.kaiming_normal_(parameter, nonlinearity="linear")
            elif parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.05)
    return ann.eval()


@torch.no_grad()
def row(ann: nn.Module, size: int, simulate: bool) -> str:
    """What became of one network."""
    x = torch.randn(2, 3, size, size)
    start = time.perf_counter()
    network = to_spiking(ann, lambda: GradedIF(levels=4), Direct(), (3, size, size), images=x)
    text = f"{len(network.layers)} layers, {len(network.arithmetic_layers())} compute, {time.perf_counter() - start:.1f} s"
    if not simulate:
        return text
    network = convert(ann, [x], GradedIF(levels=4), MaxActivation(per="channel"))
    expected, errors = ann(x), []
    for steps in (4, 16, 64):
        found = network.estimate(network(x, steps), steps)
        errors.append(float((found - expected).abs().mean() / expected.abs().mean()))
    return text + ", error " + " / ".join(f"{error:.5f}" for error in errors)


def expired(*_: Any) -> None:
    """The time of one network is over."""
    raise TimeoutError


def main() -> None:
    """Print a row for each network, and how many convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--seconds", type=int, default=150)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, expired)
    try:
        from timm import create_model
    except ImportError:
        create_model = None
    counts = {True: 0, False: 0}
    for name, size, options in (*TORCHVISION, *(TIMM if create_model is not None else ())):
        if given.names and name not in given.names:
            continue
        torch.manual_seed(0)
        made: Any = models.get_model if (name, size, options) in TORCHVISION else create_model
        named = {"weights": None} if made is models.get_model else {"pretrained": False}
        signal.alarm(given.seconds)
        converts = False
        try:
            text = row(lively(made(name, num_classes=10, **named, **options)), size, given.simulate)
            converts = True
        except TimeoutError:
            text = f"not within {given.seconds} s"
        except ConversionError as error:
            text = f"refused: {' '.join(str(error).split())}"
        except Exception as error:
            text = f"FAULT: {type(error).__name__}: {' '.join(str(error).split())}"
        finally:
            signal.alarm(0)
        counts[converts] += 1
        print(f"{name:34} {text}", flush=True)
    print(f"{counts[True]} convert, {counts[False]} do not")


if __name__ == "__main__":
    main()
