import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from repertory.data import load
from repertory.systems.petl_two_stage import (
    insert_adapters,
    load_tuned,
    parameter_groups,
    save_tuned,
    select_channels,
    taylor_scores,
    tune_channels,
    tune_layer_norms,
)


def backbone():  # in earnest: timm.create_model("vit_base_patch16_224.augreg_in21k", pretrained=True, num_classes=10)
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10)


digits = load("digits", size=32, channels="RGB").train  # items are (image, label, index)
model = backbone()


def train(model, lr=1e-3, weight_decay=1e-4):
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr)
    model.train()
    for images, labels, _ in DataLoader(digits, batch_size=64, shuffle=True):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


tune_layer_norms(model)  # stage one: norms and head
train(model)

batches = ((images, labels) for images, labels, _ in DataLoader(digits, batch_size=64))
channels = select_channels(taylor_scores(model, batches))  # an eighth of each block's width
insert_adapters(model, channels)
tune_channels(model)  # stage two: adapters and head
train(model)

save_tuned(model, "tuned.safetensors")  # kilobytes
restored = load_tuned(backbone(), "tuned.safetensors")
