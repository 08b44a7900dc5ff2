import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from repertory.data import load
from repertory.systems.patch_erasing import DataProportion, erase_patches, plot_periods

digits = load("digits", val_fraction=0.8)  # items are (image, label, index)
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=48, depth=2
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loader = DataLoader(digits.train, batch_size=60, shuffle=True)

epochs, history = 4, []
for _ in range(epochs):
    proportion = DataProportion()  # easy: p > 0.8, hard: p < 0.3
    for images, labels, _ in loader:
        logits = model(erase_patches(images, rate=0.3, patch_size=2))
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        proportion.update(logits, labels)
    history.append({name: float(share) for name, share in proportion.compute().items()})

plot_periods(history).savefig("periods.png")
