import copy

import torch
from torch import nn

from repertory.systems.hwa import HierarchicalWeightAveraging

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
replicas = [model, copy.deepcopy(model)]
optimizers = [torch.optim.SGD(replica.parameters(), lr=0.1) for replica in replicas]
averaging = HierarchicalWeightAveraging(replicas, period=5, window=3)

for _ in range(20):
    for replica, optimizer in zip(replicas, optimizers):  # each on a batch of its own
        optimizer.zero_grad()
        nn.functional.cross_entropy(replica(torch.randn(16, 1, 8, 8)), torch.randint(10, (16,))).backward()
        optimizer.step()
    averaging.step()

network = averaging.deploy(torch.randn(16, 1, 8, 8) for _ in range(4))  # images for batch norm
