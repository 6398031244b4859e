"""Training on real images: rows, resuming, recipes, augmentation and precision."""

import io
import math
from dataclasses import replace
from typing import Any

import pytest
import scipy.stats
import torch
from torch.nn import functional as F

from vgg_search.data.fashion_mnist import SOURCE
from vgg_search.data.splits import load_splits
from vgg_search.training import augment
from vgg_search.training.device import bf16_to_fp32, plan, prepare_process, to_device
from vgg_search.training.inference import VAL_METRICS, logits, prepare, validate
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

SMALL = {"arch": ((1, 8), (1, 16)), "hidden_features": 32, "num_hidden": 1, "dropout": 0.2}
PLAIN = Recipe(
    max_epochs=3,
    batch_size=128,
    lr=0.05,
    momentum=0,
    schedule="constant",
    flip=False,
    ema=False,
    precision="fp32",
)
FULL = Recipe(
    max_epochs=3,
    batch_size=128,
    lr=0.1,
    weight_decay=5e-4,
    label_smoothing=0.1,
    flip=True,
    crop=2,
    erase=8,
    ema=True,
    precision="fp32",
)
FP32 = plan("fp32", "cpu")
INFO = SOURCE.info
SEEDS = 12
TIMES = ("epoch_seconds", "images_per_second")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    prepare_process(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def splits():
    return load_splits("sample", val_images=500, train_images=1000)


@pytest.fixture(scope="module")
def data(splits):
    return Resident.load(splits, "cpu")


def altered(recipe: Recipe, **fields: Any) -> Recipe:
    return recipe.model_copy(update=fields)


def training(data, recipe, seed=1, **options):
    return Training(build({**SMALL, **options}, seed), data, recipe, seed)


def timeless(rows):
    return [{key: row[key] for key in row if key not in TIMES} for row in rows]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Augmentation


def test_the_table_names_every_image_once_and_keeps_its_ranges():
    table = augment.draw(5000, 28, crop=3, erase=8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(table[augment.ORDER].sort().values, torch.arange(5000))
    wanted = {augment.FLIP: 1, augment.SHIFT_Y: 6, augment.SHIFT_X: 6}
    wanted |= {augment.ERASE_Y: 20, augment.ERASE_X: 20}
    for row, most in wanted.items():
        assert table[row].unique().tolist() == list(range(most + 1))
        assert table[row].float().mean() == pytest.approx(most / 2, rel=0.05)


def test_flip_mirrors_the_chosen_images_only(data):
    images = data.train_images[:3]
    flipped = augment.flip(images, torch.tensor([1, 0, 1]))
    assert torch.equal(flipped[1], images[1])
    for i in (0, 2):
        assert flipped[i, 0, 5].tolist() == images[i, 0, 5].tolist()[::-1]


def test_shift_moves_each_image_within_a_black_frame(data):
    images = data.train_images[:25]
    top, left = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    shifted = augment.shift(images, top.flatten(), left.flatten(), crop=2)
    assert shifted.shape == images.shape
    for image, result, y, x in zip(images, shifted, top.flatten(), left.flatten(), strict=True):
        assert torch.equal(result, F.pad(image, (2,) * 4)[:, y : y + 28, x : x + 28])
    assert torch.equal(shifted[12], images[12])  # (2, 2) is no shift


def test_blank_blackens_one_square_and_nothing_else():
    images = torch.full((3, 3, 28, 28), 7, dtype=torch.uint8)
    top, left = torch.tensor([0, 20, 5]), torch.tensor([20, 0, 9])
    blanked = augment.blank(images, top, left, size=8)
    assert (images == 7).all()
    for i in range(3):
        square = blanked[i, :, top[i] : top[i] + 8, left[i] : left[i] + 8]
        assert square.shape == (3, 8, 8)
        assert not square.any()
        assert (blanked[i] == 0).sum() == 3 * 64


@pytest.mark.parametrize("resolution", [28, 32, 56])
def test_images_are_normalised_then_resized(data, resolution):
    images = data.train_images[:4]
    pixels = prepare(images, resolution, INFO)
    wanted = (images / 255 - INFO.mean[0]) / INFO.std[0]
    if resolution != 28:
        wanted = F.interpolate(wanted, (resolution, resolution), mode="bilinear")
    torch.testing.assert_close(pixels, wanted, atol=1e-5, rtol=0)
    assert abs(prepare(data.train_images, 28, INFO).mean()) < 0.02


# Data


def test_read_only_arrays_are_shared_not_copied(splits):
    array = splits.train_images.view()
    array.flags.writeable = False
    tensor = to_device(array, "cpu")
    assert tensor.data_ptr() == array.ctypes.data


def test_the_whole_set_has_no_validation(splits):
    whole = Resident.load(splits, "cpu", whole=True)
    assert whole.train_images.shape == (1500, 1, 28, 28)
    (row,) = training(whole, FULL).run(1)
    assert set(row) == {"epoch", "train_loss", "train_accuracy", "lr", *TIMES}


# Training


def test_rows_are_complete_and_the_loss_decreases(data):
    run = training(data, altered(FULL, max_epochs=4))
    rows = list(run.run(4))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows == run.rows
    keys = {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", *TIMES}
    for row in rows:
        assert set(row) == keys
        assert all(type(value) in (int, float) for value in row.values())
        assert 0 <= row["val_accuracy"] <= 1
        assert row["images_per_second"] > 0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert rows[-1]["val_accuracy"] > 0.6
    best = max(rows, key=lambda row: row["val_accuracy"])
    assert run.best_epoch == best["epoch"]
    assert list(run.run(9)) == []  # max_epochs is reached


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("recipe", [FULL, PLAIN], ids=["full", "plain"])
def test_a_resumed_training_gives_the_rows_and_weights_of_an_unbroken_one(data, recipe, batch_norm):
    unbroken = training(data, recipe, batch_norm=batch_norm)
    states = [through_a_file(unbroken.state_dict())]
    states += [through_a_file(unbroken.state_dict()) for _ in unbroken.run(3)]
    for epoch, state in enumerate(states):
        torch.manual_seed(epoch)  # what else the process drew must not matter
        resumed = training(data, recipe, batch_norm=batch_norm)
        resumed.load_state_dict(state)
        assert resumed.epoch == epoch
        list(resumed.run(3))
        assert timeless(resumed.rows) == timeless(unbroken.rows)
        assert resumed.best_epoch == unbroken.best_epoch
        for name, value in unbroken.weights().items():
            assert torch.equal(resumed.weights()[name], value), name


def test_one_object_stopped_and_gone_on_with_is_an_unbroken_training(data):
    halting, unbroken = training(data, FULL), training(data, FULL)
    list(halting.run(1))
    torch.rand(1)
    list(halting.run(3))
    list(unbroken.run(3))
    assert timeless(halting.rows) == timeless(unbroken.rows)


def test_seeds_differ_and_the_global_generator_is_left_alone(data):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    losses = {next(training(data, FULL, seed).run(1))["train_loss"] for seed in (0, 1, 2**32 - 1)}
    assert len(losses) == 3
    assert torch.equal(torch.random.get_rng_state(), before)


def first_batches(run, epochs):
    """Pixels of the first batch of each epoch."""
    batches = []
    handle = run.network.register_forward_pre_hook(lambda _, images: batches.append(images[0]))
    firsts = []
    for _ in run.run(epochs):
        firsts.append(batches[0].clone())
        batches.clear()
    handle.remove()
    return firsts


def test_every_epoch_has_its_own_order_and_its_own_changes(data):
    few = Resident(data.train_images[:100], data.train_labels[:100], data.info)
    first, second = first_batches(training(few, altered(PLAIN, batch_size=50)), 2)
    assert not torch.equal(first, second)
    # One batch holds the whole epoch: without changes the same images, in another order
    first, second = first_batches(training(few, altered(PLAIN, batch_size=100)), 2)
    sums = [images.sum((1, 2, 3)) for images in (first, second)]
    assert not torch.equal(*sums)
    torch.testing.assert_close(sums[0].sort().values, sums[1].sort().values)
    first, second = first_batches(training(few, altered(FULL, batch_size=100)), 2)
    sums = [images.sum((1, 2, 3)).sort().values for images in (first, second)]
    assert not torch.allclose(*sums)


def test_every_rank_has_dropout_of_its_own_and_nothing_else(data):
    few = Resident(data.train_images[:100], data.train_labels[:100], data.info)

    def losses(rank, dropout):
        network = build({**SMALL, "dropout": dropout}, 1)
        return [row["train_loss"] for row in Training(network, few, FULL, 1, rank).run(2)]

    assert losses(0, 0.0) == losses(1, 0.0)
    with_dropout = [losses(rank, 0.5) for rank in (0, 1, 2)]
    assert len({epochs[0] for epochs in with_dropout}) == 3
    assert losses(1, 0.5) == with_dropout[1]


def test_every_epoch_has_dropout_of_its_own(data):
    """Seen in a network that stands still: only its dropout tells one epoch from the next."""
    run = training(data, altered(PLAIN, lr=1e-30, batch_size=1000), dropout=0.5)
    first, second = (row["train_loss"] for row in run.run(2))
    assert abs(first - second) > 1e-6


def test_the_plain_recipe_is_the_notebooks_loop(data):
    """SGD at a constant rate without momentum, decay or augmentation, written out."""
    run = training(data, PLAIN, dropout=0.0)
    network = build({**SMALL, "dropout": 0.0}, 1)
    orders = []
    draw = augment.draw
    with pytest.MonkeyPatch.context() as patch:  # only listens
        patch.setattr(augment, "draw", lambda *args: orders.append(draw(*args)) or orders[-1])
        row = next(run.run(1))
    total = 0.0
    for order in orders[0][augment.ORDER].tensor_split(8):
        scores = network(prepare(data.train_images[order], 28, INFO))
        loss = F.cross_entropy(scores, data.train_labels[order])
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= PLAIN.lr * parameter.grad
        total += loss.item() * len(order)
    assert row["train_loss"] == pytest.approx(total / 1000, rel=1e-4)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(run.weights()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_torchs_sgd(data, momentum):
    recipe = altered(PLAIN, momentum=momentum, weight_decay=5e-3)
    run, twin = training(data, recipe, dropout=0.0), training(data, recipe, dropout=0.0)
    theirs = torch.optim.SGD(
        twin.parameters,
        recipe.lr,
        momentum,
        weight_decay=5e-3,
        nesterov=momentum > 0,
        foreach=False,
    )
    twin._descend = theirs.step
    assert next(run.run(1))["train_loss"] == pytest.approx(next(twin.run(1))["train_loss"])
    for name, value in twin.weights().items():
        torch.testing.assert_close(run.weights()[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 96, 999, 1000, 5000])
def test_an_epoch_sees_every_image_once_in_even_batches(data, batch_size):
    count = 40 if batch_size == 1 else 1000
    few = Resident(data.train_images[:count], data.train_labels[:count], data.info)
    run = training(few, altered(PLAIN, batch_size=batch_size, lr=0.001))
    sizes = []
    run.network.register_forward_hook(lambda _, images, __: sizes.append(len(images[0])))
    list(run.run(1))
    assert sum(sizes) == count
    assert len(sizes) == math.ceil(count / batch_size)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ema", [False, True])
def test_divergence_yields_its_row_and_ends(data, ema):
    run = training(data, altered(FULL, lr=1e6, warmup=0.0, ema=ema))
    rows = list(run.run(3))
    assert len(rows) == 1
    assert run.diverged
    assert not math.isfinite(rows[0]["train_loss"])
    assert math.isnan(rows[0]["val_accuracy"])
    assert run.best_epoch == 0
    resumed = training(data, FULL)
    resumed.load_state_dict(through_a_file(run.state_dict()))
    assert resumed.diverged
    assert list(resumed.run(3)) == []


def test_what_is_left_of_a_lost_epoch_is_not_trained_on_a_cpu(data):
    run = training(data, altered(PLAIN, lr=1e30))
    batches = []
    run.network.register_forward_pre_hook(lambda *_: batches.append(1))
    (row,) = run.run(3)
    assert not math.isfinite(row["train_loss"])
    assert len(batches) < 4, "of eight"


@pytest.mark.parametrize("count", [1, 125, 126, 499])
def test_validation_drops_no_image(data, count):
    network = build(SMALL, 0)
    images, labels = data.val_images[:count], data.val_labels[:count]
    row = validate(network, images, labels, INFO, FP32)
    assert network.training
    with torch.no_grad():
        scores = network.eval()(prepare(images, 28, INFO))
    assert row["val_loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-5)
    assert row["val_accuracy"] == (scores.argmax(1) == labels).sum().item() / count
    torch.testing.assert_close(logits(network, images, INFO, FP32), scores, rtol=1e-4, atol=1e-5)


def test_validation_sees_the_average_of_weights_and_statistics(data):
    run = training(data, FULL, batch_norm=True)
    row = next(run.run(1))
    averaged, raw = run.weights(), run.network.state_dict()
    for name in ("layers.output.weight", "layers.block1.1.running_mean"):
        assert not torch.equal(averaged[name], raw[name])
    network = build({**SMALL, "batch_norm": True}, 0)
    network.load_state_dict(averaged)
    again = validate(network, data.val_images, data.val_labels, INFO, FP32)
    assert again == pytest.approx({name: row[name] for name in VAL_METRICS})
    without = training(data, altered(FULL, ema=False))
    assert without.measured is without.network


@pytest.mark.parametrize("batch_size", [1000, 300, 50])
def test_the_average_is_near_the_weights_from_the_first_epoch_on(data, batch_size):
    run = training(data, altered(FULL, batch_size=batch_size))
    name = "layers.output.weight"
    start = run.weights()[name].clone()
    list(run.run(1))
    moved = (run.network.state_dict()[name] - start).norm()
    assert (run.network.state_dict()[name] - run.weights()[name]).norm() < 0.5 * moved


def test_label_smoothing_changes_what_is_trained_on_not_what_is_measured(data):
    still = altered(FULL, lr=1e-9, label_smoothing=0.0)
    sharp = next(training(data, still).run(1))
    smooth = next(training(data, altered(still, label_smoothing=0.2)).run(1))
    assert smooth["train_loss"] != sharp["train_loss"]
    assert smooth["val_loss"] == pytest.approx(sharp["val_loss"], rel=1e-4)


def curves(data, recipe, seeds, before_step=None):
    """(seeds, epochs, 2): training and validation loss of networks with batch norm."""
    losses = []
    for seed in range(seeds):
        run = training(data, recipe, seed, batch_norm=True)
        if before_step:
            run.network.register_forward_pre_hook(lambda network, _: before_step(network))
        rows = list(run.run(recipe.max_epochs))
        losses.append([(row["train_loss"], row["val_loss"]) for row in rows])
    return torch.tensor(losses, dtype=torch.float64)


def distance(curves, others):
    """How far two precisions may lie apart, in units of the spread of seeds: the worst of epochs.

    The upper end of the 90 % confidence interval of |mean difference| of runs paired by seed (t
    distribution). Below 1 is two one-sided tests at 5 % (Schuirmann 1987,
    doi:10.1007/BF01068419), each passed: equivalent within one standard deviation of the seeds.
    """
    count = len(curves)
    differences = others - curves
    t = scipy.stats.t.ppf(0.95, count - 1)
    reach = differences.mean(0).abs() + t * differences.std(0) / count**0.5
    return (reach / curves.std(0)).max().item()


@torch.no_grad()
def round_weights(network):
    for parameter in network.parameters():
        parameter.copy_(parameter.to(torch.float8_e4m3fn))


def test_loss_curves_of_bf16_and_fp32_agree_within_the_spread_of_seeds(data):
    """And the test can tell: weights of 8 bits, 3 of them the mantissa's, do not pass it."""
    recipe = altered(FULL, batch_size=32, max_epochs=4, erase=0)
    fp32 = curves(data, recipe, SEEDS)
    recipe = altered(recipe, precision="bf16")
    bf16 = curves(data, recipe, SEEDS)
    assert not torch.equal(bf16, fp32)
    assert distance(fp32, bf16) < 1
    assert distance(fp32, curves(data, recipe, SEEDS, round_weights)) > 1


# The device


def test_precision_is_what_was_asked_for_or_what_is_native():
    assert str(plan("fp32", "cpu")) == "float32 on cpu: precision is fp32"
    assert plan("bf16", "cpu").dtype == torch.bfloat16
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        assert str(plan("auto", "cpu")) == "bfloat16 on cpu: bf16 is native"


def test_without_a_flag_for_bf16_a_probe_decides_once_a_process(monkeypatch):
    for flag in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, flag, lambda: False)
    generator, gradients = torch.random.get_rng_state(), torch.is_grad_enabled()
    chosen = plan("auto", "cpu")
    ratio = bf16_to_fp32()
    assert ratio > 0
    assert chosen.reason == f"bf16 took {ratio:.2f} times as long as fp32 in a probe"
    assert (chosen.dtype == torch.bfloat16) == (ratio < 0.9)
    assert plan("auto", "cpu") == chosen
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.is_grad_enabled() == gradients


def test_validation_goes_in_batches_of_bounded_memory():
    sizes = {("cpu", 28): 125, ("cpu", 224): 8, ("cuda", 28): 2000, ("cuda", 224): 128}
    for (device, resolution), size in sizes.items():
        on_device = replace(FP32, device=torch.device(device))
        assert on_device.evaluation_batch(resolution) == size


def test_convolutions_run_channels_last(data):
    run = training(data, FULL)
    seen = []
    for block in (run.network.layers.block1, run.network.layers.block2):
        block[0].register_forward_hook(lambda _, __, output: seen.append(output))
    list(run.run(1))
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in seen)
