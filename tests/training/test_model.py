"""The network against the notebook's, its counts against a count by hand and torch's own."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vgg_search.space.arch import NOTEBOOK_ARCH
from vgg_search.training.model import VGG, build, vgg_block

SMALL = {"arch": ((1, 8), (2, 16)), "hidden_features": 32}


def notebook_vgg(arch, resolution, hidden_features):
    """The notebook's network, layer by layer, as plain torch."""
    layers, channels = [], 1
    for num_convs, out_channels in arch:
        for _ in range(num_convs):
            layers += [nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), nn.ReLU()]
            channels = out_channels
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    side = resolution // 2 ** len(arch)
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * side * side, hidden_features),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden_features, hidden_features),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden_features, 10),
    )


def weighted(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize(
    ("arch", "resolution"), [(((1, 8), (2, 16)), 28), (((2, 8), (1, 8), (1, 16)), 30)]
)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_those_of_the_notebook(arch, resolution, training):
    ours = VGG(arch, resolution=resolution, hidden_features=32).train(training)
    theirs = notebook_vgg(arch, resolution, 32).train(training)
    for a, b in zip(weighted(ours), weighted(theirs), strict=True):
        b.load_state_dict(a.state_dict())
    images = torch.randn(5, 1, resolution, resolution)
    outputs = []
    for network in (ours, theirs):
        torch.manual_seed(0)  # the same dropout
        outputs.append(network(images))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for a, b in zip(weighted(ours), weighted(theirs), strict=True):
        torch.testing.assert_close(a.weight.grad, b.weight.grad)
        torch.testing.assert_close(a.bias.grad, b.bias.grad)


def test_layer_summary_of_the_notebook():
    with torch.device("meta"):
        network = VGG(NOTEBOOK_ARCH, resolution=224)
    assert network.layer_summary((1, 1, 224, 224)) == [
        ("block1", (1, 64, 112, 112)),
        ("block2", (1, 128, 56, 56)),
        ("block3", (1, 256, 28, 28)),
        ("block4", (1, 512, 14, 14)),
        ("block5", (1, 512, 7, 7)),
        ("flatten", (1, 25088)),
        ("hidden1", (1, 4096)),
        ("hidden2", (1, 4096)),
        ("output", (1, 10)),
    ]
    with pytest.raises(ValueError, match=r"x_shape must be \(N, 1, 224, 224\), got \(1, 3, 224,"):
        network.layer_summary((1, 3, 224, 224))


def test_parameters_counted_by_hand():
    # Convolutions 80 and 1,168; at 7x7 its 16 channels are 784 features; 784*32+32, 32*10+10.
    network = VGG(((1, 8), (1, 16)), hidden_features=32, num_hidden=1)
    assert network.num_params == 80 + 1168 + 25120 + 330
    # Multiply-adds: 9*8 at 28x28, 9*8*16 at 14x14, the two matrices.
    assert network.flops_per_image == 2 * (72 * 784 + 1152 * 196 + 784 * 32 + 320)
    with torch.device("meta"):
        assert VGG(NOTEBOOK_ARCH, resolution=224).num_params == 128_806_154


@pytest.mark.parametrize(("batch_norm", "kernel_size"), [(False, 3), (True, 3), (True, 5)])
@pytest.mark.parametrize("num_hidden", [0, 1, 2])
@pytest.mark.parametrize(
    ("arch", "resolution"),
    [(((1, 6),) * blocks, 28) for blocks in (1, 2, 3, 4)] + [(((2, 4),) * 5, 32), (((3, 5),), 9)],
)
def test_every_network_counts_learns_and_has_its_shape(
    arch, resolution, num_hidden, batch_norm, kernel_size
):
    options = {"hidden_features": 12, "num_hidden": num_hidden, "batch_norm": batch_norm}
    options["kernel_size"] = kernel_size
    network = build({"arch": arch, "resolution": resolution, "dropout": 0.0, **options}, seed=0)
    images = torch.randn(8, 1, resolution, resolution)
    shapes = []
    for name, layer in network.layers.named_children():
        hook = lambda _, __, output, name=name: shapes.append((name, tuple(output.shape)))  # noqa: E731
        layer.register_forward_hook(hook)
    with FlopCounterMode(display=False) as counter:
        logits = network(images)
    assert network.layer_summary((8, 1, resolution, resolution)) == shapes
    assert logits.shape == (8, 10)
    assert counter.get_total_flops() == 8 * network.flops_per_image
    assert sum(p.numel() for p in network.parameters()) == network.num_params
    logits.logsumexp(1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_too_many_blocks_and_other_impossible_archs():
    cases = [
        (((1, 8),) * 5, 28, "num_blocks must be <= 4 at resolution 28, got 5"),
        (((1, 8),) * 6, 32, "num_blocks must be <= 5 at resolution 32, got 6"),
        (((0, 8),), 28, "num_convs must be >= 1, got 0"),
        (((1, 0),), 28, "out_channels must be >= 1, got 0"),
        ((), 28, "num_blocks must be >= 1, got 0"),
    ]
    for arch, resolution, text in cases:
        with pytest.raises(ValueError, match=text):
            VGG(arch, resolution=resolution)


def test_initial_weights_are_xavier_uniform_and_drawn_from_the_seed():
    state = torch.random.get_rng_state()
    first, again, other = (build(SMALL, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.output.weight"], other["layers.output.weight"])
    for module in weighted(build(SMALL, 0)):
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < module.weight.abs().max() <= bound


def test_options_survive_json_and_rebuild_the_network():
    options = {**SMALL, "resolution": 32, "num_hidden": 1, "dropout": 0.1, "batch_norm": True}
    network = build(options, 0)
    rebuilt = VGG(**json.loads(json.dumps(network.options())))
    rebuilt.load_state_dict(network.state_dict())
    assert rebuilt.arch == network.arch == SMALL["arch"]
    assert rebuilt.options() == network.options()
    images = torch.randn(3, 1, 32, 32)
    assert torch.equal(rebuilt.eval()(images), network.eval()(images))


def test_a_batch_norm_takes_the_place_of_the_bias():
    block = vgg_block(3, num_convs=2, out_channels=4, batch_norm=True)
    kinds = [type(layer).__name__ for layer in block]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]
    assert block[0].bias is None
    assert vgg_block(3, 1, 4, kernel_size=5)(torch.randn(2, 3, 10, 10)).shape == (2, 4, 5, 5)
