import timm
import torch
from torch.nn import functional as F

from repertory.systems.scalable_transformers import ScalableTransformer, ScalableViT, beam_search, sub_model_losses

# A plain vision transformer of timm becomes a supernet, with the same output.
vit = timm.create_model(
    "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4
)
supernet = ScalableViT.from_timm(vit, qkv_crop="per_projection")
space = supernet.crop_space()  # or name what may be drawn: crop_space(heads=(4, 2), depths=(3, 2))

optimizer, losses = torch.optim.AdamW(supernet.parameters(), lr=1e-3), []
images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
for step in range(10):
    logits = supernet(images)  # the whole network learns the labels, the others its distribution
    crops = [space.sample(seed=0, step=step), space.smallest]
    loss = F.cross_entropy(logits, labels) + sum(sub_model_losses(supernet, images, logits, crops))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

part = supernet.extract(width=24, depth=2)  # a network of its own, which holds nothing else
with torch.no_grad():
    print(part.eval()(images).shape)  # (16, 10)

# The translation model: sentences are rows of token numbers that end in 2, padded with 0.
model = ScalableTransformer(vocabulary=100, embed_dim=48, depth=2, num_heads=4).eval()
source = torch.tensor([[7, 8, 9, 2], [5, 2, 0, 0]])
translations = beam_search(model.extract(width=24), source, beam=4, extra=10)
