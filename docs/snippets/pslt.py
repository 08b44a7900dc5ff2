import torch

import repertory
from repertory.systems.pslt import LadderBlock

model = repertory.create_model("pslt_tiny", num_classes=10).eval()
images = torch.randn(1, 3, 96, 128)  # any height and width
with torch.no_grad():
    logits = model(images)  # (1, 10)
    pyramid = model.forward_pyramid(images)  # maps at strides 4, 8, 16 and 32

# The block alone, on a map with channels last: three branches of 24 channels, four heads each.
block = LadderBlock(72, num_heads=4)
out = block(torch.randn(2, 14, 21, 72))  # (2, 14, 21, 72)
