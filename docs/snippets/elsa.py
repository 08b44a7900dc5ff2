import timm
import torch

import repertory
from repertory.ops.sliding_window import sliding_window_sum
from repertory.systems.elsa import HadamardAttention, elsa_in_swin

model = repertory.create_model("elsa_swin_tiny", num_classes=10, embed_dim=48, depths=(1, 1, 1, 2)).eval()
images = torch.randn(1, 3, 70, 96)  # any height and width
with torch.no_grad():
    logits = model(images)  # (1, 10)
    pyramid = model.forward_pyramid(images)  # maps at strides 4, 8, 16 and 32

# The layer alone, and in the local stages of a Swin of timm.
out = HadamardAttention(dim=48, num_heads=3)(torch.randn(1, 14, 10, 48))  # (1, 14, 10, 48)
swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, embed_dim=48, depths=(1, 1, 1, 1))
mixed = elsa_in_swin(swin, kernel_size=5)

# The operator alone: 3 x 3 filters of two heads for every pixel, and a static one added to each channel.
value, weights = torch.randn(1, 8, 14, 14), torch.randn(1, 2, 9, 14, 14).softmax(2)
summed = sliding_window_sum(value, weights, ghost_add=torch.randn(8, 3, 3))  # (1, 8, 14, 14)
