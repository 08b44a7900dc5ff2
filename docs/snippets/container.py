import torch

import repertory
from repertory.systems.container import ContextAggregation, DynamicAffinity, LocalAffinity

model = repertory.create_model("container_light", num_classes=10).eval()
images = torch.randn(1, 3, 64, 96)  # any multiples of 32
with torch.no_grad():
    logits = model(images)  # (1, 10)
    pyramid = model.forward_pyramid(images)  # maps at strides 4, 8, 16 and 32

# The layer alone: attention and convolution of the same values, mixed by one learned scalar.
layer = ContextAggregation(64, [DynamicAffinity(64, num_heads=4), LocalAffinity(64, kernel_size=5)], mixing="convex")
maps = torch.randn(1, 64, 14, 14)
out = maps + layer(maps)  # (1, 64, 14, 14)
attention, convolution = layer.weights()  # a half each before training
