"""Encoders, the graph, its state, dropout, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spikeprop import CNN, IF, LIF, Direct, Poisson, ResNet, convert
from spikeprop.convert import ThresholdBalancing
from spikeprop.snn import INPUT, DropoutMasks, Encoder, Layer, SampleDropout, SpikingNetwork, Synapse


def small_network(encoder: Encoder | None = None, leak: float = 1.0) -> SpikingNetwork:
    torch.manual_seed(0)
    ann = CNN(input_shape=(1, 8, 8), classes=4, plan=[4, "A", 8], hidden=[16], dropout=0.3)
    neuron = LIF(leak=leak) if leak < 1 else IF()
    return convert(ann, [torch.rand(8, 1, 8, 8)], neuron, ThresholdBalancing(timesteps=10, scale=0.5), encoder=encoder)


def test_poisson_spikes_are_signed_with_the_images_rate() -> None:
    x = torch.tensor([[-0.75, -0.1, 0.0, 0.4, 1.0]])
    torch.manual_seed(0)
    spikes = Poisson()(x.expand(20_000, *x.shape), 0, 20_000)
    assert set(spikes.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(torch.sign(x), torch.sign(spikes.sum(0)))
    torch.testing.assert_close(spikes.mean(0), x, atol=0.015, rtol=0)  # four standard deviations
    assert spikes[:, 0, 4].eq(1).all()


def test_direct_gives_the_image_once_for_all_steps() -> None:
    x = torch.rand(2, 3)
    assert torch.equal(Direct()(x.expand(7, 2, 3), 0, 1), x.unsqueeze(0))


@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=["direct", "poisson"])
@pytest.mark.parametrize("chunk", [1, 3, 12])
def test_chunks_do_not_change_the_result(encoder: Encoder, chunk: int) -> None:
    network, x = small_network(encoder, leak=0.95).double(), torch.rand(5, 1, 8, 8, dtype=torch.float64)
    torch.manual_seed(7)
    whole = network(x, 12, chunk=12)
    torch.manual_seed(7)
    torch.testing.assert_close(network(x, 12, chunk=chunk), whole, rtol=1e-12, atol=1e-12)


def test_steps_by_hand_equal_forward() -> None:
    network, x = small_network(), torch.rand(3, 1, 8, 8)
    output, state = None, network.init_state()
    for _ in range(6):
        output, state = network.step(x, state)
    torch.testing.assert_close(output, network(x, 6))


def test_state_is_not_carried_between_calls_nor_changed_in_place() -> None:
    network, x = small_network(), torch.rand(3, 1, 8, 8)
    first = network(x, 5)
    network(torch.rand(7, 1, 8, 8), 4)
    assert torch.equal(network(x, 5), first)
    state = network.init_state()
    _, after = network.step(x, state)
    assert state.layers == {}
    assert after.layers.keys() == network.layers.keys()
    again, _ = network.step(x, after)
    twice, _ = network.step(x, after)
    assert torch.equal(again, twice)


def test_output_accumulates_without_leak_or_threshold() -> None:
    linear = nn.Linear(3, 2, bias=False)
    network = SpikingNetwork({"out": Layer([(INPUT, Synapse([linear]))], None)}, Direct(), (3,))
    x = torch.tensor([[1.0, -2.0, 3.0]])
    torch.testing.assert_close(network(x, 5), 5 * linear(x))


def test_one_dropout_mask_a_sample_for_all_steps() -> None:
    synapse = Synapse([SampleDropout(0.5)]).train()
    ones, masks = torch.ones(6, 4, 50), DropoutMasks(torch.device("cpu"))
    dropped = synapse(ones, masks)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert torch.equal(synapse(ones[:2], masks), dropped[:2])  # and for the next chunk of the same simulation
    assert not torch.equal(synapse(ones, DropoutMasks(torch.device("cpu"))), dropped)  # the next simulation draws anew
    assert torch.equal(synapse.eval()(ones, masks), ones)


def test_training_uses_the_same_mask_at_every_chunk_size() -> None:
    network, x = small_network(), torch.rand(4, 1, 8, 8)
    network.train()
    outputs = []
    for chunk in (1, 8):
        torch.manual_seed(11)
        outputs.append(network(x, 8, chunk=chunk))
    torch.testing.assert_close(*outputs)


def test_residual_networks_sum_their_branches() -> None:
    torch.manual_seed(1)
    ann = ResNet(depth=8, input_shape=(1, 8, 8), classes=3)
    network = convert(ann, [torch.rand(4, 1, 8, 8)], IF(), ThresholdBalancing(timesteps=8, scale=0.6))
    summed = {name: layer.sources for name, layer in network.named_layers() if len(layer.sources) == 2}
    assert len(summed) == 2
    assert network(torch.rand(2, 1, 8, 8), 5).shape == (2, 3)


@pytest.mark.parametrize("timesteps", [0, -3])
def test_no_steps_is_an_error(timesteps: int) -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        small_network()(torch.rand(1, 1, 8, 8), timesteps)


def test_nan_and_wrong_shapes_are_errors_that_name_them() -> None:
    network, x = small_network(), torch.rand(4, 1, 8, 8)
    x[2, 0, 1, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 4"):
        network(x, 3)
    with pytest.raises(ValueError, match=r"reads \(batch, \*\(1, 8, 8\)\)"):
        network(torch.rand(4, 8, 8), 3)


def test_a_batch_of_one() -> None:
    network, x = small_network(), torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(network(x[:1], 6), network(x, 6)[:1], rtol=1e-5, atol=1e-5)


def test_a_graph_out_of_order_is_refused() -> None:
    layer = Layer([("later", Synapse([nn.Linear(2, 2)]))], IF())
    with pytest.raises(ValueError, match="reads 'later'"):
        SpikingNetwork({"first": layer}, Direct(), (2,))


def test_shapes_follow_operations_settings_and_hooks_that_change() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    layers = {"a": Layer([("input", Synapse([conv]))], IF()), "out": Layer([("a", Synapse([nn.AdaptiveAvgPool2d(1)]))], None)}
    network, x = SpikingNetwork(layers, Direct(), (1, 8, 8)), torch.rand(2, 1, 8, 8)
    ops = layers["a"].synapses[0].ops
    assert isinstance(ops, nn.ModuleList)

    def shape() -> tuple[int, ...]:
        network(x, 2)
        return network.shapes()["a"]

    assert shape() == (2, 8, 8)
    conv.stride = (2, 2)
    assert shape() == (2, 4, 4)
    ops.append(nn.AvgPool2d(2))
    assert shape() == (2, 2, 2)
    del ops[-1]
    conv.weight = nn.Parameter(torch.rand(5, 1, 3, 3))
    conv.bias = None
    assert shape() == (5, 4, 4)
    handle = conv.register_forward_hook(lambda module, args, output: output[..., :3])
    assert shape() == (5, 4, 3)
    handle.remove()
    assert shape() == (5, 4, 4)


@pytest.mark.parametrize("packed", [True, False])
def test_a_layer_that_is_replaced_is_simulated_as_it_is(packed: bool) -> None:
    def made(channels: int) -> dict[str, Layer]:
        torch.manual_seed(channels)
        return {
            "a": Layer([("input", Synapse([nn.Conv2d(1, channels, 3, padding=1)]))], IF(v_threshold=0.2)),
            "out": Layer([("a", Synapse([nn.Flatten(), nn.Linear(channels * 16, 3)]))], None),
        }

    network, x = SpikingNetwork(made(2), Direct(), (1, 4, 4)), torch.rand(2, 1, 4, 4)
    network.packed = packed
    network(x, 3)
    network.layers.update(made(5))
    torch.testing.assert_close(network(x, 3), SpikingNetwork(made(5), Direct(), (1, 4, 4))(x, 3))
    network.layers["out"] = made(3)["out"]
    with pytest.raises((ValueError, RuntimeError), match=r"layer 'out' cannot read 'a' \(5, 4, 4\)" if packed else "shapes"):
        network(x, 3)
    network.layers["a"] = Layer([("out", Synapse([nn.Identity()]))], IF())
    with pytest.raises(ValueError, match="layer 'a' reads 'out', which is not an earlier layer"):
        network.shapes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((torch.rand(1, 1, 8, 8), 3.0), "timesteps is 3.0; a simulation needs a whole number"),
        ((torch.rand(1, 1, 8, 8), None), "needs timesteps=, a number of steps"),
        ((torch.rand(1, 1, 8, 8), True), "timesteps is True"),
        (([1.0], 3), "input is a list; a network reads a tensor"),
    ],
)
def test_arguments_of_other_types_are_refused(given: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small_network()(*given)
    with pytest.raises(ValueError, match=r"chunk is 1.5; a layer takes at least 1 step"):
        small_network()(torch.rand(1, 1, 8, 8), 3, chunk=1.5)


@pytest.mark.parametrize("packed", [True, False])
def test_images_beyond_what_poisson_can_represent_are_warned_of(packed: bool) -> None:
    network, x = small_network(Poisson()).eval(), torch.rand(2, 1, 8, 8) - 0.5
    network.packed = packed
    network(x, 3)
    with pytest.warns(UserWarning, match=r"Poisson saturates beyond 1 but the images reach 3"):
        network(x / x.abs().max() * -3, 3)
