from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from export.compiled import compile_losses
from service.gatys.transformer import Conv


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="NO C++ COMPILER: torch.compile was not tried")
def test_compiled_losses_have_the_gradients_of_eager_ones() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Conv(3, 5, 3), Conv(5, 4, 3, 2)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = torch.rand(2, 3, 17, 20).contiguous(memory_format=torch.channels_last)

    def losses(network: nn.Module, pictures: Tensor) -> Tensor:
        loss: Tensor = network(pictures).square().mean()
        return loss

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(network.parameters())))

    eager = gradients(losses(network, pictures))
    torch.testing.assert_close(gradients(compile_losses(losses)(network, pictures)), eager)
