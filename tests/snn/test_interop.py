"""snnTorch and Norse in our slots: equal spikes where the semantics are equal, a clear refusal where not."""

from __future__ import annotations

import pytest
import torch

from spikeprop import CNN, IF, LIF, Direct, Poisson, convert
from spikeprop.convert import MaxActivation
from spikeprop.deploy import record
from spikeprop.errors import ConversionError, RecipeError
from spikeprop.recipe import check_component
from spikeprop.snn import Encoder, Neuron, SpikingNetwork, Surrogate

pytest.importorskip("snntorch", reason="the interop extra is not installed")
pytest.importorskip("norse", reason="the interop extra is not installed")
from spikeprop.snn.interop import rebuild


def converted(ann: CNN, neuron: Neuron, encoder: Encoder | None = None) -> SpikingNetwork:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return convert(ann, [images], neuron, MaxActivation(), encoder=encoder)


@pytest.mark.parametrize(
    ("library", "neuron"),
    [
        ("snntorch", IF()),
        ("snntorch", IF(reset="zero")),
        ("snntorch", LIF(leak=0.9, reset="zero")),
        ("norse", LIF(leak=0.9)),
        ("norse", LIF(leak=0.9, reset="zero")),
    ],
)
@pytest.mark.parametrize("encoder", [Direct(), Poisson()], ids=["direct", "poisson"])
def test_rebuilt_networks_spike_the_same(digits_cnn: CNN, library: str, neuron: Neuron, encoder: Encoder) -> None:
    network = converted(digits_cnn, neuron, encoder)
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    runs = []
    for candidate in (network, rebuild(network, library)):
        torch.manual_seed(9)
        runs.append(record(candidate, x, 25))
    (ours, output), (theirs, their_output) = runs
    assert sum(train.sum() for name, train in ours.items() if name != "input") > 1000
    for name, train in ours.items():
        assert (train == theirs[name]).all(), name
    torch.testing.assert_close(torch.from_numpy(output), torch.from_numpy(their_output))


@pytest.mark.parametrize(
    ("library", "neuron", "reason"),
    [
        ("snntorch", LIF(leak=0.9), "leaks and subtracts"),
        ("norse", IF(), "has no leak"),
        ("snntorch", IF(v_init=0.5), "starts at v_init"),
        ("brian", IF(), "no neurons of 'brian'"),
    ],
)
def test_other_semantics_are_refused(digits_cnn: CNN, library: str, neuron: Neuron, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        rebuild(converted(digits_cnn, neuron), library)


def test_snntorch_really_differs_where_we_refuse() -> None:
    """The refusal is not timid: a leaky, subtracting Leaky fires other spikes from the same current."""
    from spikeprop.snn.interop import SnnTorchLeaky

    current = torch.full((40, 1), 0.45)
    ours, theirs = LIF(leak=0.8), SnnTorchLeaky(beta=0.8)
    trains = [n.run(current, n.initial_state(current[0]))[0].flatten().tolist() for n in (ours, theirs)]
    assert trains[0] != trains[1]


@pytest.mark.parametrize(
    "settings",
    [{"use": "snntorch.Leaky", "beta": 0.95}, {"use": "norse.torch.LIFBoxCell", "tau_mem_inv": 50.0, "reset": "subtract"}],
    ids=lambda s: s["use"],
)
def test_their_neurons_fit_the_neuron_slot(digits_cnn: CNN, settings: dict) -> None:
    neuron = check_component(Neuron, settings, "convert.neuron").build()
    network = converted(digits_cnn, neuron).train()
    network(torch.rand(4, 1, 8, 8), 6).sum().backward()
    grads = [p.grad for p in network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert any(bool((g != 0).any()) for g in grads if g is not None)
    assert float(neuron.leak) == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("settings", "slope_at_half"),
    [
        ({"use": "snntorch.surrogate.fast_sigmoid", "slope": 4}, 1 / 9),
        ({"use": "norse.torch.functional.threshold.superspike_fn", "alpha": 4.0}, 1 / 2.25),  # its backward pass has no alpha
    ],
    ids=["snntorch", "norse"],
)
def test_their_surrogates_fit_the_surrogate_slot(settings: dict, slope_at_half: float) -> None:
    surrogate = check_component(Surrogate, settings, "surrogate").build()
    x = torch.tensor([0.5, 0.0])
    torch.testing.assert_close(surrogate(x, x), torch.tensor([slope_at_half, 1.0]))
    neuron = IF(surrogate=surrogate)
    current = torch.full((5, 3), 0.6, requires_grad=True)
    neuron.run(current, neuron.initial_state(current[0]))[0].sum().backward()
    assert current.grad is not None
    assert (current.grad > 0).all()


def test_an_unknown_key_of_theirs_is_named() -> None:
    with pytest.raises(RecipeError, match=r"convert\.neuron\.betta.*did you mean 'beta'"):
        check_component(Neuron, {"use": "snntorch.Leaky", "betta": 0.9}, "convert.neuron")


def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="not a Neuron"):
        check_component(Neuron, {"use": "torch.nn.Linear"}, "convert.neuron")
