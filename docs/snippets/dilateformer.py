import torch

import repertory
from repertory.ops import dilated_attention

model = repertory.create_model("dilateformer_tiny", num_classes=10).eval()
images = torch.randn(1, 3, 64, 96)  # any height and width
with torch.no_grad():
    logits = model(images)  # (1, 10)
    pyramid = model.forward_pyramid(images)  # maps at strides 4, 8, 16 and 32

# The operator alone: three heads, each with a rate of its own.
query, key, value = torch.randn(3, 1, 72, 14, 14)
out = dilated_attention(query, key, value, kernel_size=3, dilation=(1, 2, 3), num_heads=3)  # (1, 14, 14, 72)
