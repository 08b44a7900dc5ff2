import timm
import torch
from torch.nn import functional as F

import repertory
from repertory.systems.reste import RectifiedSTE, advance, binarize, deploy, estimating_error, gradient_instability

model = binarize(timm.create_model("test_resnet", num_classes=10), estimator=RectifiedSTE(end=3.0))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
epochs = 2
for epoch in range(epochs):
    advance(model, epoch / epochs)  # the power of the surrogate gradient, from 1 towards 3
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    print(epoch, estimating_error(model), gradient_instability(model))

# For inference: one bit a weight, batch norms folded where only signs follow.
network = deploy(repertory.create_model("reste_cifar_resnet20"))
with torch.no_grad():
    logits = network(torch.randn(1, 3, 32, 32))  # (1, 10)
