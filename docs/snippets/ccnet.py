import torch
from PIL import Image

import repertory
from repertory.ops.criss_cross import criss_cross_attention
from repertory.systems.ccnet import CrissCrossAttention, affinity_picture

# The head on any timm backbone that keeps stride 8; `ccnet_resnet101` is the authors' network.
model = repertory.create_model("ccnet", backbone="mobilenetv3_small_050", num_classes=4, recurrence=2).eval()
images = torch.randn(1, 3, 65, 97)  # any height and width
with torch.no_grad():
    logits = model(images)  # (1, 4, 65, 97)

# Whence the pixel in row 32, column 48 heard: a map for each application of attention, each of sum 1.
once, twice = model.affinity(images, row=32, column=48)  # (1, 9, 13) each
affinity_picture(twice[0], Image.new("RGB", (97, 65), "grey"), row=32, column=48).save("affinity.png")

# The layer alone: the identity until gamma is learned. Over three axes for video.
layer = CrissCrossAttention(64)
deeper = CrissCrossAttention(64, axes=3)
x = layer(layer(torch.randn(2, 64, 17, 25)))  # two applications reach every pixel

# And the operator: queries and keys may be narrower than values.
query, key = torch.randn(2, 1, 8, 17, 25)
out = criss_cross_attention(query, key, torch.randn(1, 64, 17, 25))  # (1, 64, 17, 25)
