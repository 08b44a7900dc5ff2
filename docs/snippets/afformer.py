import torch

import repertory
from repertory.ops.frequency_filter import frequency_filter

segmentor = repertory.create_model("afformer_tiny_segmentor", num_classes=19).eval()
images = torch.randn(1, 3, 96, 130)  # any height and width
with torch.no_grad():
    logits = segmentor(images)  # (1, 19, 96, 130)

# The form that pre-trains the backbone, and its backbone in the segmentor.
classifier = repertory.create_model("afformer_tiny", num_classes=0)
segmentor.backbone.load_state_dict(classifier.state_dict())

# The operator alone: queries, keys and values side by side, and a bank of depth-wise kernels.
weights = [torch.randn(8, 1, 3, 3), torch.randn(12, 1, 5, 5), torch.randn(12, 1, 7, 7)]
biases = [torch.randn(8), torch.randn(12), torch.randn(12)]
out = frequency_filter(torch.randn(1, 96, 14, 20), weights, biases, num_heads=8)  # (1, 32, 14, 20)
