import torch

import repertory
from repertory.systems.spgnet import StageLoss

model = repertory.create_model("spgnet_small", num_classes=6, gate="spg")  # or unsupervised, se, ge, none
images, labels = torch.randn(2, 3, 65, 97), torch.randint(0, 6, (2, 65, 97))  # any height and width

outputs = model.train()(images)  # {"out", "aux", "features"}: the losses of both stages are training-only
StageLoss()(outputs, labels).backward()

deployed = model.deploy()
with torch.no_grad():
    logits = deployed(images)  # (2, 6, 65, 97), of the last stage alone
    (guide,) = deployed.guidance(images)  # (2, 32, 17, 25): what the gate lets through, pixel by pixel
