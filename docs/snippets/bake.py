import torch
from torch.nn import functional as F

from repertory.systems.bake import BAKELoss

features = torch.randn(8, 64)  # pooled, before the classifier
logits = torch.randn(8, 10, requires_grad=True)
labels = torch.randint(10, (8,))

bake = BAKELoss(temperature=4.0, omega=0.5)
loss = F.cross_entropy(logits, labels) + bake(features, logits)
loss.backward()
