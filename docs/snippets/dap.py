import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from repertory.data import load
from repertory.systems.dap import Cycle, DropAndPick, DropAndPickBatches, LowestFraction

digits = load("digits", val_fraction=0.8)  # items are (image, label, index)
model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

epochs = 6
selection = DropAndPick(len(digits.train), Cycle(warmup=1, period=3, final=1), LowestFraction(0.4), epochs=epochs)
print(f"{selection.cost():.1%} of the full schedule")
sampler = DropAndPickBatches(selection, batch_size=32)
loader = DataLoader(digits.train, batch_sampler=sampler)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)  # by epochs, not by steps

for epoch in range(epochs):
    sampler.set_epoch(epoch)
    for images, labels, indices in loader:
        losses = F.cross_entropy(model(images), labels, reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        selection.record(indices, losses)
    schedule.step()

print(f"{selection.realised_cost:.1%} of it done")
