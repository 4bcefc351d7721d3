"""Protects the heads: depth, where the ReLU is, and the names on disk."""

import math

import torch

from hf_detr.losses.classification import SigmoidFocalClassification, SoftmaxClassification
from hf_detr.models.heads import MLP, make_box_head, make_class_head


def test_mlp_by_hand() -> None:
    """Protects ReLU between the layers and none after the last."""
    mlp = MLP(1, 2, 1, num_layers=2)
    with torch.no_grad():
        mlp.layers[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        mlp.layers[0].bias.copy_(torch.tensor([0.0, 1.0]))
        mlp.layers[1].weight.copy_(torch.tensor([[-1.0, 10.0]]))
        mlp.layers[1].bias.copy_(torch.tensor([0.5]))
    # x -> -relu(x) + 10 relu(1 - x) + 0.5
    got = mlp(torch.tensor([[-1.0], [0.5], [3.0]]))
    torch.testing.assert_close(got, torch.tensor([[20.5], [5.0], [-2.5]]), atol=1e-6, rtol=0)


def test_box_head() -> None:
    """Protects three layers down to four numbers, under the names that checkpoints use."""
    head = make_box_head(8)
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert shapes == {
        "layers.0.weight": (8, 8),
        "layers.0.bias": (8,),
        "layers.1.weight": (8, 8),
        "layers.1.bias": (8,),
        "layers.2.weight": (4, 8),
        "layers.2.bias": (4,),
    }
    assert head(torch.zeros(6, 2, 5, 8)).shape == (6, 2, 5, 4)
    assert (head(torch.randn(64, 8)) < 0).any()  # deltas take both signs


def test_one_layer_is_linear() -> None:
    """Protects the shortest MLP: a linear layer, without activation."""
    torch.manual_seed(0)
    mlp = MLP(3, 99, 2, num_layers=1)
    inputs = torch.randn(4, 3)
    torch.testing.assert_close(mlp(inputs) + mlp(-inputs), 2 * mlp.layers[0].bias.expand(4, 2))


def test_class_head_starts_at_the_prior() -> None:
    """Protects the focal loss's start: every class at 0.01, bias -log(99); softmax is unbiased."""
    focal = make_class_head(8, SigmoidFocalClassification(5, 0.25))
    torch.testing.assert_close(focal.bias, torch.full((5,), -math.log(99)), atol=1e-6, rtol=0)
    assert focal.weight.abs().max() > 0.1
    softmax = make_class_head(8, SoftmaxClassification(5, 0.1))
    assert softmax.out_features == 6 and softmax.bias.abs().max() < 1


def test_box_head_can_start_at_zero() -> None:
    """Protects boxes that start at their reference points: the last layer gives zero."""
    head = make_box_head(8, size_bias=0.0)
    assert head(torch.randn(64, 8)).abs().max() == 0
    assert head.layers[1].weight.abs().max() > 0
