"""CCNet: segmentation whose pixels gather the context of the image along their rows and columns, twice.

Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, extended in IEEE TPAMI 2020, arXiv
1811.11721. Non-local attention lets every pixel attend to all H x W others. Criss-cross attention lets it attend to its
row and its column, and the same layer is applied R times: after two, any pixel has heard from any other, over the pixel
where one's row meets the other's column. The layer is the middle of a head on a dilated backbone of stride 8.

Training-only: the auxiliary head on the last stage but one, and in the extended version the category-consistent loss on
the attended map. At inference: backbone and head. Any size from 8 x 8 pixels works; sizes 8 k + 1 align corners.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from repertory.data.preprocessing import Preprocessing
from repertory.nn.recompute import recompute
from repertory.ops.criss_cross import criss_cross_attention

PREPROCESSING = Preprocessing(
    size=(769, 769),
    crop=1.0,
    mean=(104.00698793 / 255, 116.66876762 / 255, 122.67891434 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    channels="BGR",
)
RESNET101 = (3, 4, 23, 3)
AUX_WIDTH = 512
STRIDE = 8


class CrissCrossAttention(nn.Module):
    """gamma * criss-cross attention + input, for maps (B, ``dim``, H, W) or, with ``axes`` 3, (B, ``dim``, T, H, W).

    gamma is learned and starts at 0: a new layer is the identity. Over three axes a position attends to T + H + W - 2,
    as in the paper; the authors' code does otherwise, see :mod:`repertory.systems.ccnet.released`.

    Args:
        dim: channels C.
        qk_dim: channels of queries and keys; C / 8, at least 1, when absent.
        axes: 2 or 3.
        backend: path of :func:`repertory.ops.criss_cross.criss_cross_attention`.
    """

    def __init__(self, dim: int, qk_dim: int | None = None, axes: int = 2, backend: str = "auto") -> None:
        super().__init__()
        if axes not in (2, 3):
            raise ValueError(f"axes is {axes}; it must be 2 or 3")
        width = max(dim // 8, 1) if qk_dim is None else qk_dim
        if dim < 1 or width < 1:
            raise ValueError(f"dim and qk_dim are {dim} and {width}; they must be at least 1")
        convolution: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        self.backend = backend
        self.query, self.key = convolution(dim, width, 1), convolution(dim, width, 1)
        self.value = convolution(dim, dim, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with what its lines gave added; its shape."""
        return self.gamma * self._attend(x, self.value(x)) + x

    def _attend(self, x: Tensor, value: Tensor) -> Tensor:
        return criss_cross_attention(self.query(x), self.key(x), value, backend=self.backend)

    def gathered(self, x: Tensor, weights: Tensor) -> Tensor:
        """From which positions of ``x`` the positions that ``weights`` (B, H, W) counts took: weights again, (B, H, W).

        The attention matrix transposed, times ``weights``: what sums to 1 goes on summing to 1.
        """
        with torch.enable_grad():
            value = torch.zeros_like(weights[:, None]).requires_grad_()  # attention is linear in the values
            out = self._attend(x.detach(), value)
        return torch.autograd.grad(out, value, weights[:, None])[0][:, 0]


class ConvNormAct(nn.Module):
    """3 x 3 convolution, batch norm, leaky ReLU of slope 0.01."""

    def __init__(self, channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out_channels, H, W)."""
        return F.leaky_relu(self.norm(self.conv(x)), 0.01)


class CrissCrossHead(nn.Module):
    """Reduce, attend ``recurrence`` times with one layer, refine, join with the input, classify.

    Args:
        channels: of the input map.
        num_classes: of the logits.
        out_channels: of the joined map.
        inner_channels: width in which is attended; ``channels`` / 4 when absent.
        qk_dim: as in :class:`CrissCrossAttention`.
        recurrence: applications R; 0 leaves attention out.
        drop: probability with which a channel of the joined map is dropped.
        backend: path of the operator.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        out_channels: int = 512,
        inner_channels: int | None = None,
        qk_dim: int | None = None,
        recurrence: int = 2,
        drop: float = 0.1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if recurrence < 0:
            raise ValueError(f"recurrence is {recurrence}; it must be at least 0")
        inner = max(channels // 4, 1) if inner_channels is None else inner_channels
        self.recurrence, self.grad_checkpointing = recurrence, False
        self.reduce = ConvNormAct(channels, inner)
        self.attention = CrissCrossAttention(inner, qk_dim, backend=backend)
        self.refine = ConvNormAct(inner, inner)
        self.fuse = ConvNormAct(channels + inner, out_channels)
        self.drop = nn.Dropout2d(drop)
        self.classifier = nn.Conv2d(out_channels, num_classes, 1)

    def attend(self, x: Tensor) -> Tensor:
        """The attended map (B, inner_channels, h, w) of a backbone's map (B, channels, h, w)."""
        x = self.reduce(x)
        for _ in range(self.recurrence):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = recompute(self.attention, x)
            else:
                x = self.attention(x)
        return x

    def classify(self, x: Tensor, attended: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w) of the backbone's map and the attended one."""
        return self.classifier(self.drop(self.fuse(torch.cat([x, self.refine(attended)], 1))))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w)."""
        return self.classify(x, self.attend(x))

    def affinity(self, x: Tensor, row: int, column: int) -> list[Tensor]:
        """What position (``row``, ``column``) of the attended map is made of, after 1, 2, … applications.

        Element r - 1 is (B, h, w), not negative, of sum 1: the share of every position of the map before the first
        application in what attention put at the position in the r-th, over all ways between.
        """
        x, maps, inputs = self.reduce(x), [], []
        height, width = x.shape[-2:]
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"the query is ({row}, {column}); it must lie in the map of {height} x {width} positions")
        start = x.new_zeros(x.shape[0], height, width)
        start[:, row, column] = 1
        for _ in range(self.recurrence):
            inputs.append(x)
            x = self.attention(x)
            share = start
            for earlier in reversed(inputs):
                share = self.attention.gathered(earlier, share)
            maps.append(share)
        return maps


class AuxiliaryHead(nn.Module):
    """The training-only classifier of the last stage but one: convolution with bias, norm, leaky ReLU, 1 x 1."""

    def __init__(self, channels: int, num_classes: int, width: int = AUX_WIDTH, drop: float = 0.1) -> None:
        super().__init__()
        self.fuse = ConvNormAct(channels, width, bias=True)
        self.drop = nn.Dropout2d(drop)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w)."""
        return self.classifier(self.drop(self.fuse(x)))


class DilatedResNet(nn.Module):
    """ResNet of bottlenecks with a stem of three convolutions, its last two stages dilated in place of strided.

    As the authors build it: the first block of a dilated stage uses the new rate already, and max-pooling rounds up.
    Input (B, ``in_chans``, H, W); output four maps of 4, 8, 16 and 32 times ``width`` channels at strides 4, 8, 8, 8.

    Args:
        layers: blocks of the four stages.
        in_chans: channels of the images.
        width: inner channels of the first stage.
    """

    def __init__(self, layers: Sequence[int] = RESNET101, in_chans: int = 3, width: int = 64) -> None:
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers is {tuple(layers)}; it must hold four numbers of blocks, each at least 1")
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        self.grad_checkpointing = False
        channels = 2 * width
        self.conv1, self.bn1 = nn.Conv2d(in_chans, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.feature_info = []
        for index, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
            inner = width * 2**index
            blocks = [_bottleneck(channels, inner, stride, dilation)]
            channels = 4 * inner
            blocks += [_bottleneck(channels, inner, 1, dilation) for _ in range(layers[index] - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            self.feature_info.append(
                {"num_chs": channels, "reduction": min(4 * 2**index, STRIDE), "module": f"layer{index + 1}"}
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> list[Tensor]:
        """The four stage maps."""
        for index in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(x)))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        maps = []
        for index in (1, 2, 3, 4):
            for block in self.get_submodule(f"layer{index}").children():
                if self.grad_checkpointing and torch.is_grad_enabled():
                    x = recompute(block, x)
                else:
                    x = block(x)
            maps.append(x)
        return maps


def _bottleneck(channels: int, width: int, stride: int, dilation: int) -> Bottleneck:
    downsample = None
    if stride != 1 or channels != 4 * width:
        downsample = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
    return Bottleneck(channels, width, stride, downsample, dilation=dilation)


class CCNet(nn.Module):
    """A backbone of stride 8, the criss-cross head on its last map, in training an auxiliary head on the one before.

    In training mode the output is a dictionary: ``out``, logits at the images' size; ``aux``, a list of the auxiliary
    logits at that size; ``features``, the attended map (B, D, h, w). In evaluation mode it is the logits alone.

    Args:
        num_classes: classes of the logits.
        backbone: a module that makes a list of maps of images and whose last two maps have one size. timm's
            ``features_only`` networks and :class:`DilatedResNet` are such.
        channels: of the last two maps; read from ``backbone.feature_info`` when absent.
        recurrence: applications R of the attention layer, 0 to leave it out.
        inner_channels, out_channels, qk_dim: widths of :class:`CrissCrossHead`.
        aux_channels: width of the auxiliary head; 0 leaves it out.
        projection: project the features of the category-consistent loss to so many channels, in training only. The
            paper uses 16, it is said; where, is inferred. None takes the attended map itself.
        drop: dropout of both heads.
        preprocessing: what the backbone wants; the authors' when absent.
        backend: path of the operator.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        channels: tuple[int, int] | None = None,
        recurrence: int = 2,
        inner_channels: int | None = None,
        out_channels: int = 512,
        qk_dim: int | None = None,
        aux_channels: int = AUX_WIDTH,
        projection: int | None = None,
        drop: float = 0.1,
        preprocessing: Preprocessing = PREPROCESSING,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
        before, last = _last_channels(backbone) if channels is None else channels
        self.num_classes, self.preprocessing = num_classes, preprocessing
        self.class_names: tuple[str, ...] | None = None
        self.backbone = backbone
        self.head = CrissCrossHead(
            last, num_classes, out_channels, inner_channels, qk_dim, recurrence, drop=drop, backend=backend
        )
        self.aux_head = AuxiliaryHead(before, num_classes, aux_channels, drop) if aux_channels else None
        inner = self.head.attention.value.in_channels
        self.projection = nn.Conv2d(inner, projection, 1) if projection else None

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks of the backbone, where it can, and applications of attention in the backward pass."""
        self.head.grad_checkpointing = enable
        if callable(switch := getattr(self.backbone, "set_grad_checkpointing", None)):
            switch(enable)

    def get_classifier(self) -> nn.ModuleList:
        """The layers that make logits: the head's, and the auxiliary head's where there is one."""
        return nn.ModuleList(head.classifier for head in (self.head, self.aux_head) if head is not None)

    def reset_classifier(self, num_classes: int) -> None:
        """Give both heads new classifiers for ``num_classes``."""
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
        self.num_classes, self.class_names = num_classes, None
        for head in (self.head, self.aux_head):
            if head is not None:
                like = head.classifier.weight
                head.classifier = nn.Conv2d(like.shape[1], num_classes, 1, device=like.device, dtype=like.dtype)

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's last two maps."""
        if images.ndim != 4 or min(images.shape[-2:]) < STRIDE:
            raise ValueError(
                f"images are {tuple(images.shape)}; they must be (B, C, H, W) with H and W at least {STRIDE}"
            )
        before, last = self.backbone(images)[-2:]
        return before, last

    def forward(self, images: Tensor) -> Tensor | dict[str, Any]:
        """Logits (B, num_classes, H, W) of images (B, in_chans, H, W); in training mode the dictionary above."""
        before, last = self.forward_features(images)
        size = images.shape[-2:]
        if not self.training:
            return _resized(self.head(last), size)
        attended = self.head.attend(last)
        aux = [] if self.aux_head is None else [_resized(self.aux_head(before), size)]
        features = attended if self.projection is None else self.projection(attended)
        return {"out": _resized(self.head.classify(last, attended), size), "aux": aux, "features": features}

    @torch.no_grad()
    def affinity(self, images: Tensor, row: int, column: int) -> list[Tensor]:
        """Whence the pixel at (``row``, ``column``) of the images heard, after 1, 2, … applications of attention.

        Returns:
            R maps (B, h, w) at the backbone's stride, each not negative and of sum 1; an image of
            :func:`repertory.systems.ccnet.pictures.affinity_picture` each. As in evaluation mode.
        """
        height, width = images.shape[-2:]
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"the query is ({row}, {column}); it must lie in the image of {height} x {width} pixels")
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            _, last = self.forward_features(images)
            places = [
                round(at * (small - 1) / max(full - 1, 1))  # corners lie on corners
                for at, small, full in zip((row, column), last.shape[-2:], (height, width), strict=True)
            ]
            return self.head.affinity(last, *places)
        finally:
            for module, training in modes:
                module.training = training

    def deploy(self) -> CCNet:
        """A copy for inference, in evaluation mode, without the auxiliary head and the projection."""
        model = copy.deepcopy(self).eval()
        model.aux_head = model.projection = None
        model.set_grad_checkpointing(False)
        return model


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


def _last_channels(backbone: nn.Module) -> tuple[int, int]:
    info: Any = getattr(backbone, "feature_info", None)
    if info is None:
        raise ValueError(f"channels are not given and {type(backbone).__name__} has no feature_info to read them from")
    listed = info.channels() if hasattr(info, "channels") else [entry["num_chs"] for entry in info]
    return listed[-2], listed[-1]


def ccnet_resnet101(
    num_classes: int = 19, in_chans: int = 3, layers: Sequence[int] = RESNET101, width: int = 64, **settings: Any
) -> CCNet:
    """The authors' network: 71.3 M parameters with 19 classes, 66.6 M at inference.

    ``layers`` and ``width`` are those of :class:`DilatedResNet`; other ``settings`` those of :class:`CCNet`.
    """
    return CCNet(num_classes, DilatedResNet(layers, in_chans, width), **settings)


def ccnet(
    num_classes: int = 19,
    in_chans: int = 3,
    backbone: str | nn.Module = "resnet50",
    pretrained_backbone: bool = False,
    **settings: Any,
) -> CCNet:
    """The head on another backbone: timm's, at output stride 8, or a module as :class:`CCNet` takes it.

    Args:
        num_classes: classes of the logits.
        in_chans: channels of the images.
        backbone: a name in timm whose network takes ``output_stride=8``, or a module.
        pretrained_backbone: load timm's weights of it, which may need the network.
        settings: those of :class:`CCNet`.

    Raises:
        ValueError: where timm does not know the name or cannot keep its last two stages at stride 8.
    """
    if isinstance(backbone, nn.Module):
        return CCNet(num_classes, backbone, **settings)
    import timm

    if not timm.is_model(backbone):
        raise ValueError(f"backbone is {backbone!r}; it must be a model of timm, such as 'resnet50', or a module")
    try:
        features: Any = timm.create_model(
            backbone,
            pretrained=pretrained_backbone,
            in_chans=in_chans,
            features_only=True,
            out_indices=(-2, -1),
            output_stride=STRIDE,
        )
        strides = features.feature_info.reduction()
    except (TypeError, AssertionError, NotImplementedError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"backbone is {backbone!r}, which timm cannot build as features at output stride {STRIDE} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from None
    if strides != [STRIDE, STRIDE]:
        raise ValueError(
            f"backbone is {backbone!r}, whose last two stages have strides {strides}; both must be {STRIDE}, as "
            "those of a convolutional network that takes output_stride"
        )
    return CCNet(num_classes, features, preprocessing=_timm_preprocessing(features, in_chans), **settings)


def _timm_preprocessing(features: Any, in_chans: int) -> Preprocessing:
    """Mean and deviation that the backbone was trained with; the size is free."""
    config = getattr(features, "pretrained_cfg", None) or {}
    standard = Preprocessing()
    mean, std = (tuple(config.get(name) or getattr(standard, name)) for name in ("mean", "std"))
    return Preprocessing(size=(513, 513), crop=1.0, mean=mean, std=std)
