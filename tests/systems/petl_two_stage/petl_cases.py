"""Tiny transformers of timm's own making, and what the tests of this system do with them."""

import timm
import torch
from torch import nn

from repertory.systems.petl_two_stage import adapters
from repertory.systems.petl_two_stage.layer_norm import layer_norms


def vit(name="vit_tiny_patch16_224", **settings):
    """Three blocks of 48 channels for 32 x 32 pixels, five classes."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    return timm.create_model(name, num_classes=5, **shape, **settings)


def swin(img_size=56):
    """Two stages of two blocks, 16 and 32 channels, windows of 7; 56 pixels make maps of 14 and 7."""
    torch.manual_seed(0)
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=img_size,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        num_classes=5,
    )


def pictures(model, count=6):
    """Normal noise of the size that ``model`` takes, and labels."""
    side = model.patch_embed.img_size[0]
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, side, side, generator=draws), torch.arange(count) % 5


def stir(model):
    """Give norms and adapters values that training might have given them."""
    for norm in layer_norms(model).values():
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    for adapter in adapters(model).values():
        nn.init.normal_(adapter.weight, 0.0, 0.1)
        nn.init.normal_(adapter.bias, 0.0, 0.1)
    return model


def steps(model, optimizer, count=3):
    """Train ``model`` for some steps in a plain loop."""
    images, labels = pictures(model)
    model.train()
    for _ in range(count):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def values(model):
    """A copy of every parameter and buffer."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def trained(model):
    """Names of the parameters that take gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
