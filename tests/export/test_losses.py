from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from service.gatys.losses import (
    checkerboards,
    content_losses,
    gram_matrix,
    overshoot,
    style_losses,
    total_variation,
)
from service.gatys.vgg import CONVOLUTIONS, VGG, NetworkName
from tests.export.conftest import VGG_WEIGHTS


def test_gram_matrix_is_the_mean_product_of_channels() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])  # (1, 2, 1, 2)
    assert gram_matrix(features).tolist() == [[[2.5, 6.5], [6.5, 17.0]]]


def test_gram_matrix_has_the_gradient_of_the_plain_product() -> None:
    features, weights = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 3)
    (gram_matrix(features) * weights).sum().backward()  # type: ignore[no-untyped-call]
    found, features.grad = features.grad, None
    rows = features.flatten(2)
    (rows @ rows.transpose(1, 2) / 20 * weights).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, features.grad)


def test_style_loss_is_relative_to_the_target_and_one_for_each_picture() -> None:
    target = torch.randn(2, 4, 4)
    grams = {"a": torch.stack([target[0], target[1] * 3]), "b": target}
    losses = style_losses(grams, {"a": target, "b": target})
    torch.testing.assert_close(losses, torch.tensor([0.0, 2.0]))  # (3-1)^2 in one layer of two


def test_losses_do_not_depend_on_the_scale_of_the_features() -> None:
    features, target = torch.randn(1, 3, 5, 4), torch.randn(1, 3, 5, 4)
    torch.testing.assert_close(content_losses(features * 7, target * 7), content_losses(features, target))
    one = style_losses({"a": gram_matrix(features)}, {"a": gram_matrix(target)})
    torch.testing.assert_close(style_losses({"a": gram_matrix(features * 7)}, {"a": gram_matrix(target * 7)}), one)


def test_total_variation_and_overshoot_measure_pictures() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(3, 4, 2)[None]  # (1, 3, 4, 4), columns 0 1 0 1
    torch.testing.assert_close(total_variation(stripes), torch.tensor([1.0]))
    assert overshoot(stripes).item() == 0
    torch.testing.assert_close(overshoot(stripes * 2 - 0.5), torch.tensor([0.25]))


def test_checkerboards_are_what_lies_in_blocks_of_2_px_and_not_what_begins_anywhere() -> None:
    grey, noise = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    step, rows, cells = grey.clone(), grey.clone(), grey.clone()
    step[..., 31:] += 0.2
    rows[..., ::2, :] += 0.02  # of a mean square of 0.01^2
    cells[..., ::2, ::2] += 0.01
    cells[..., 1::2, 1::2] += 0.01
    found = checkerboards(torch.cat([grey, rows, cells, rows.flip(2), 0.04 * noise, step])).tolist()
    assert found[:4] == pytest.approx([0.0, 1e-4, 2.5e-5, 1e-4], rel=1e-3)
    assert max(found[4:]) < 2e-5


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_vgg_gives_the_features_of_a_plain_stack_of_layers(network: NetworkName) -> None:
    torch.manual_seed(0)
    vgg = VGG(network)
    picture = torch.rand(1, 3, 40, 36)
    x = (picture * 255)[:, [2, 1, 0]] - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    expected = {}
    for block, count in enumerate(CONVOLUTIONS[network], start=1):
        for index in range(1, count + 1):
            weight, bias = (
                vgg.get_parameter(f"convolutions.conv{block}_{index}.{kind}") for kind in ("weight", "bias")
            )
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            expected[f"relu{block}_{index}"] = x
        x = F.max_pool2d(x, 2, 2)
    found = vgg(picture, tuple(expected))
    assert list(found) == list(expected)
    for layer_name, features in expected.items():
        torch.testing.assert_close(found[layer_name], features, rtol=1e-4, atol=1e-4)


def test_shipped_weights_see_edges_and_unknown_layers_are_refused() -> None:
    vgg = VGG.load(VGG_WEIGHTS)
    flat, edge = torch.full((1, 3, 32, 32), 0.5), torch.zeros(1, 3, 32, 32)
    edge[..., 16:] = 1
    inside = (..., slice(8, 24), slice(8, 24))
    assert vgg(flat, ("relu1_1",))["relu1_1"][inside].std((2, 3)).max() < 1e-3
    assert vgg(edge, ("relu1_1",))["relu1_1"][inside].std((2, 3)).max() > 10
    with pytest.raises(ValueError, match="relu9_9"):
        vgg(flat, ("relu9_9",))


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(RuntimeError, match="conv3_4"):
        VGG.load(VGG_WEIGHTS, "vgg19")
