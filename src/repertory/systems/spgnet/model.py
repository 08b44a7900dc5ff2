"""SPGNet: two encoder-decoder stages, the second fed with what a supervised prediction of the first lets through.

Cheng et al., "SPGNet: Semantic Prediction Guidance for Scene Parsing", ICCV 2019, arXiv 1908.09798. **A reading of the
paper**: there is no authors' code, and of the paper only the abstract and the captions could be read. Certain are the
stages of encoder and decoder without dilation, the guidance between them, bottlenecks and bilinear upsampling in the
decoder, pooled context at the end of an encoder, the cross-stage aggregation of MSPN (Li et al. 2019, arXiv 1901.00148)
and a loss on every stage. Layer sizes and everything marked "inferred" below may differ from the authors' networks.

Training-only are the losses on the stages before the last, and the heads for them where the gate predicts nothing
itself. The intermediate prediction of SPG is not: it makes the gate, at inference too. Maps are (B, C, H, W), levels
have strides 4, 8, 16 and 32; any height and width go, since upsampling is to the size of the finer map.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from repertory.data.preprocessing import Preprocessing
from repertory.nn.recompute import recompute
from repertory.systems.spgnet.gates import Reweighting, SemanticGate, build_gate

PREPROCESSING = Preprocessing(size=(769, 769), crop=1.0)
STRIDES = (4, 8, 16, 32)
ENTRIES = ("projection", "convolution")
SUPERVISIONS = ("input", "stride")
EXPANSION = Bottleneck.expansion


def _residual_layer(in_channels: int, width: int, depth: int, stride: int, project: bool) -> nn.Sequential:
    """``depth`` bottlenecks under torchvision's names; the first strides, and projects its shortcut where asked."""
    shortcut = None
    if project or stride != 1 or in_channels != width:
        shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    blocks = [Bottleneck(in_channels, width // EXPANSION, stride, shortcut)]
    blocks += [Bottleneck(width, width // EXPANSION) for _ in range(1, depth)]
    return nn.Sequential(*blocks)


class ResidualEncoder(nn.Module):
    """A ResNet of bottlenecks without dilation, under torchvision's names: maps at strides 4, 8, 16 and 32.

    Args:
        in_channels: channels of the images, or of the stride-4 features of the stage before.
        widths: channels of the four levels, multiples of 4.
        depths: bottlenecks of each.
        stem: begin with a 7x7 convolution and max pooling (images); False for a later stage, which has none.
        entry: of an encoder without stem (inferred, either is a choice of ours): ``projection`` lets the first
            bottleneck project its shortcut; ``convolution`` puts a 1x1 convolution with norm and ReLU before it.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        stem: bool = True,
        entry: str = "projection",
    ) -> None:
        super().__init__()
        _check_sizes(widths, depths, entry)
        channels = widths[0] // EXPANSION if stem else in_channels
        if stem:
            self.conv1: nn.Module = nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False)
            self.bn1: nn.Module = nn.BatchNorm2d(channels)
            self.pool: nn.Module = nn.MaxPool2d(3, 2, 1)
        elif entry == "convolution":
            self.conv1 = nn.Conv2d(in_channels, widths[0], 1, bias=False)
            self.bn1, self.pool, channels = nn.BatchNorm2d(widths[0]), nn.Identity(), widths[0]
        self.enters = stem or entry == "convolution"
        layers = []
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            project = level == 0 and (stem or entry == "projection")
            layers.append(_residual_layer(channels, width, depth, 2 if level else 1, project))
            channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.grad_checkpointing = False

    def forward(self, x: Tensor, added: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Four maps; ``added``, one tensor a level, joins each before the next level sees it, with a ReLU after."""
        if self.enters:
            x = self.pool(F.relu(self.bn1(self.conv1(x))))
        maps = []
        for level, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            x = _run(layer, self.grad_checkpointing, x)
            if added is not None:
                x = F.relu(x + added[level])
            maps.append(x)
        return maps


class TimmEncoder(nn.Module):
    """Any network of timm that gives maps at strides 4, 8, 16 and 32, as the encoder of the first stage.

    Args:
        name: as in ``timm.list_models()``.
        in_chans: channels of the images.
        settings: for ``timm.create_model``, such as ``pretrained`` or ``img_size``.
    """

    def __init__(self, name: str, in_chans: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name.split(".")[0]):
            raise ValueError(f"backbone is {name!r}; it must be a name that timm.list_models() gives")
        try:
            every: Any = timm.create_model(name, features_only=True, in_chans=in_chans, **settings)
        except RuntimeError as error:  # timm's word for a network without stages
            raise ValueError(f"backbone is {name!r}; timm takes no maps from it: {error}") from None
        strides = every.feature_info.reduction()
        absent = [stride for stride in STRIDES if stride not in strides]
        if absent:
            raise ValueError(f"backbone is {name!r}, with maps at strides {strides}; it must have 4, 8, 16 and 32")
        self.wanted = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
        self.widths = tuple(every.feature_info.channels()[index] for index in self.wanted)
        self.channels_last = str(getattr(every, "output_fmt", "NCHW")).upper().endswith("NHWC")
        self.body = every

    def forward(self, x: Tensor) -> list[Tensor]:
        """Four maps (B, C_l, H_l, W_l)."""
        maps = self.body(x)
        found = [maps[index] for index in self.wanted]
        return [m.permute(0, 3, 1, 2) for m in found] if self.channels_last else found


class UpsampleModule(nn.Module):
    """Bilinear upsampling to the finer map, a 1x1 lateral convolution of that map, their sum, one bottleneck."""

    def __init__(self, in_channels: int, dim: int, align_corners: bool) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(in_channels, dim, 1)
        self.bottleneck = Bottleneck(dim, dim // EXPANSION)
        self.align_corners = align_corners

    def forward(self, top: Tensor, finer: Tensor) -> Tensor:
        """(B, dim, h, w) and (B, in_channels, H, W) to (B, dim, H, W)."""
        return self.bottleneck(_resized(top, finer.shape[-2:], self.align_corners) + self.lateral(finer))


class Decoder(nn.Module):
    """From four encoder maps to four of ``dim`` channels, the finest first; pooled context joins at the top.

    Args:
        widths: channels of the encoder's maps, finest first.
        dim: channels of every decoder map, a multiple of 4.
        context: add a 1x1 convolution of the averaged last map to every pixel of the top, as in ParseNet.
        align_corners: of the bilinear upsampling.
    """

    def __init__(self, widths: Sequence[int], dim: int = 256, context: bool = True, align_corners: bool = True) -> None:
        super().__init__()
        self.top = nn.Conv2d(widths[-1], dim, 1)
        self.context = nn.Conv2d(widths[-1], dim, 1) if context else None
        self.upsample = nn.ModuleList(UpsampleModule(width, dim, align_corners) for width in widths[:-1])
        self.grad_checkpointing = False

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Decoder maps at the strides of ``maps``, in their order."""
        top = self.top(maps[-1])
        if self.context is not None:
            top = top + self.context(maps[-1].mean((2, 3), keepdim=True))
        found = [top]
        for module, finer in zip(reversed(self.upsample), reversed(maps[:-1]), strict=True):
            found.insert(0, _run(module, self.grad_checkpointing, found[0], finer))
        return found


class CrossStageAggregation(nn.Module):
    """MSPN's aggregation: what one level of the next encoder gets of the encoder and the decoder of this stage.

    Inferred: one 1x1 convolution with norm for each, no activation before the sum.
    """

    def __init__(self, encoder_channels: int, decoder_channels: int, out_channels: int) -> None:
        super().__init__()
        self.encoder = _projection(encoder_channels, out_channels)
        self.decoder = _projection(decoder_channels, out_channels)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Both projected to (B, out_channels, H, W) and added."""
        return self.encoder(encoded) + self.decoder(decoded)


class SPGNet(nn.Module):
    """Encoder-decoder stages in a row, with a gate between neighbours.

    In training mode with two stages or more it returns ``{"out", "aux", "features"}``: logits of the last stage at the
    size of the images, those of each supervised stage before it, and the last decoder's map. Otherwise logits alone.

    Args:
        num_classes: K.
        in_chans: channels of the images.
        stages: encoder-decoder stages; the paper uses two.
        backbone: name of a network of timm for the encoder of the first stage; None is a ResNet of ``widths`` and
            ``depths``. Encoders of later stages are always residual, as wide as the first one's levels.
        backbone_settings: for ``timm.create_model``.
        widths: channels of the four levels (of the ResNet; a timm backbone has its own).
        depths: bottlenecks of the four levels.
        decoder_width: channels D of every decoder (inferred: 256), a multiple of 4.
        gate: between stages: ``spg`` (the paper's), ``unsupervised`` (the same without its loss), ``se``, ``ge``
            or ``none``.
        gate_settings: for the gate, see :mod:`repertory.systems.spgnet.gates`.
        identity: add the features to what a gate lets through (inferred).
        aggregation: MSPN's cross-stage aggregation.
        intermediate: supervise a stage before the last by a head of its own, training-only, where the gate does not.
        supervision: resolution of the intermediate logits returned in training: ``input`` or ``stride`` (of the
            decoder, 4; for :class:`StageLoss`, the trainer wants ``input``).
        context: pooled context at the top of each decoder.
        align_corners: of every bilinear upsampling (inferred: True, the custom of its time).
        entry: first layer of a later encoder, see :class:`ResidualEncoder`.

    Raises:
        ValueError: for widths that bottlenecks cannot divide, an unknown choice, or a backbone without the four maps.
    """

    def __init__(
        self,
        num_classes: int = 19,
        in_chans: int = 3,
        stages: int = 2,
        backbone: str | None = None,
        backbone_settings: Mapping[str, Any] | None = None,
        widths: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        decoder_width: int = 256,
        gate: str = "spg",
        gate_settings: Mapping[str, Any] | None = None,
        identity: bool = True,
        aggregation: bool = True,
        intermediate: bool = True,
        supervision: str = "input",
        context: bool = True,
        align_corners: bool = True,
        entry: str = "projection",
    ) -> None:
        super().__init__()
        _check(num_classes, in_chans, stages, decoder_width, supervision)
        _check_sizes(widths, depths, entry)
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, decoder_width
        self.align_corners, self.supervision = align_corners, supervision
        self.gate_kind, self.gate_settings = gate, dict(gate_settings or {})
        self.preprocessing = PREPROCESSING
        self.class_names: tuple[str, ...] | None = None
        first: nn.Module = ResidualEncoder(in_chans, widths, depths)
        if backbone is not None:
            first = TimmEncoder(backbone, in_chans, backbone_settings or {})
            widths = first.widths
            _check_sizes(widths, depths, entry)
        later = [ResidualEncoder(decoder_width, widths, depths, False, entry) for _ in range(stages - 1)]
        self.encoders = nn.ModuleList([first, *later])
        self.decoders = nn.ModuleList(Decoder(widths, decoder_width, context, align_corners) for _ in range(stages))
        self.passages = nn.ModuleList(Reweighting(self._gate(), identity) for _ in range(stages - 1))
        self.aggregations = nn.ModuleList(
            nn.ModuleList(CrossStageAggregation(width, decoder_width, width) for width in widths)
            for _ in range(stages - 1 if aggregation else 0)
        )
        self.heads = nn.ModuleDict(  # training-only
            {str(i): self._head() for i, passage in enumerate(self.passages) if intermediate and not passage.supervised}
        )
        self.classifier = self._head()
        for module in (*later, self.decoders, self.passages, self.aggregations):
            module.apply(_initialise)
        if backbone is None:
            first.apply(_initialise)
        self._quieten()

    def _quieten(self) -> None:
        """Let every layer that makes logits begin near zero (inferred): large first logits would shut SPG's gates."""
        gates = [cast("Any", passage).gate for passage in self.passages]
        predicting = [gate.predict for gate in gates if isinstance(gate, SemanticGate)]
        for layer in (*predicting, *self.heads.values(), self.classifier):
            nn.init.normal_(cast("Any", layer).weight, std=0.01)
            nn.init.zeros_(cast("Any", layer).bias)

    def _gate(self) -> nn.Module | None:
        return build_gate(self.gate_kind, self.num_features, self.num_classes, **self.gate_settings)

    def _head(self) -> nn.Module:
        return nn.Conv2d(self.num_features, self.num_classes, 1)

    def forward_stages(self, images: Tensor) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
        """All that the stages compute.

        Returns:
            The last decoder's map (B, D, H / 4, W / 4), sizes rounded up; the logits of each stage before the last at
            that size, None where it has none to supervise; and the features that each gate received.
        """
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(f"images are {tuple(images.shape)}; they must be (B, C, H, W) with C = {self.in_chans}")
        predictions: list[Tensor | None] = []
        received = []
        encoded = self.encoders[0](images)
        decoded = self.decoders[0](encoded)
        for stage, passage in enumerate(self.passages):
            received.append(decoded[0])
            passed, logits = passage(decoded[0])
            predictions.append(self._supervised(stage, decoded[0], logits))
            added = None
            if len(self.aggregations):
                levels = cast("nn.ModuleList", self.aggregations[stage])
                added = [level(e, d) for level, e, d in zip(levels, encoded, decoded, strict=True)]
            encoded = self.encoders[stage + 1](passed, added)
            decoded = self.decoders[stage + 1](encoded)
        return decoded[0], predictions, received

    def _supervised(self, stage: int, features: Tensor, logits: Tensor | None) -> Tensor | None:
        """The logits of ``stage`` that want a loss: the gate's own, those of its head while it trains, or none."""
        if cast("Reweighting", self.passages[stage]).supervised:
            return logits
        return self.heads[str(stage)](features) if self.training and str(stage) in self.heads else None

    def forward(self, images: Tensor) -> Any:
        """Logits (B, K, H, W) of images (B, in_chans, H, W), or in training the dictionary described above."""
        features, predictions, _ = self.forward_stages(images)
        size = images.shape[-2:]
        out = _resized(self.classifier(features), size, self.align_corners)
        if not self.training or not len(self.passages):
            return out
        aux = [logits for logits in predictions if logits is not None]
        if self.supervision == "input":
            aux = [_resized(logits, size, self.align_corners) for logits in aux]
        return {"out": out, "aux": aux, "features": features}

    def forward_features(self, images: Tensor) -> Tensor:
        """The last decoder's map (B, D, H / 4, W / 4), sizes rounded up."""
        return self.forward_stages(images)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K, h, w) of a map of :meth:`forward_features`, or its mean (B, D) with ``pre_logits``."""
        return x.mean((2, 3)) if pre_logits else self.classifier(x)

    def guidance(self, images: Tensor) -> list[Tensor]:
        """The weights G of each gate, to look at: (B, D, H / 4, W / 4), or (B, D, 1, 1) of a gate that pools all."""
        gates = [cast("Reweighting", passage).gate for passage in self.passages]
        if not gates or gates[0] is None:
            raise ValueError(
                f"gate is {self.gate_kind!r} and stages are {len(gates) + 1}; there is no guidance to show"
            )
        received = self.forward_stages(images)[2]
        return [cast("nn.Module", gate)(features)[0] for gate, features in zip(gates, received, strict=True)]

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits; with the layers of gates and heads that depend on K where there are some."""
        return nn.ModuleList([*self._of_classes(), self.classifier]) if self._of_classes() else self.classifier

    def _of_classes(self) -> list[nn.Module]:
        gates = [cast("Any", passage).gate for passage in self.passages if self.gate_kind in ("spg", "unsupervised")]
        return [layer for gate in gates for layer in (gate.predict, gate.guide)] + list(self.heads.values())

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new classifier, heads and (SPG) gates for ``num_classes``; all else stays."""
        _check(num_classes, self.in_chans, len(self.encoders), self.num_features, self.supervision)
        like = cast("Any", self.classifier).weight
        self.num_classes = num_classes
        made: list[nn.Module] = []
        if self.gate_kind in ("spg", "unsupervised"):
            for passage in self.passages:
                gate = cast("nn.Module", self._gate())
                cast("Reweighting", passage).gate = gate
                made.append(gate)
        for stage in self.heads:
            self.heads[stage] = self._head()
            made.append(self.heads[stage])
        self.classifier = self._head()
        for module in (*made, self.classifier):
            module.apply(_initialise).to(device=like.device, dtype=like.dtype).train(self.training)
        self._quieten()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every level and every upsampling module in the backward pass instead of keeping activations.

        Batch norm of the residual stages updates its running statistics once a step all the same; a backbone of timm
        recomputes as timm does.
        """
        for module in (*self.encoders, *self.decoders):
            if isinstance(module, TimmEncoder):
                cast("Any", module.body).set_grad_checkpointing(enable)
            else:
                module.grad_checkpointing = enable  # type: ignore[assignment]

    def deploy(self) -> SPGNet:
        """A copy for inference in evaluation mode: without the heads that only make losses, all else as it is."""
        model = copy.deepcopy(self).eval()
        model.heads = nn.ModuleDict()
        model.set_grad_checkpointing(False)
        return model


def _check(num_classes: int, in_chans: int, stages: int, decoder_width: int, supervision: str) -> None:
    for name, value in (("num_classes", num_classes), ("in_chans", in_chans), ("stages", stages)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if decoder_width < EXPANSION or decoder_width % EXPANSION:
        raise ValueError(f"decoder_width is {decoder_width}; it must be a multiple of {EXPANSION}")
    if supervision not in SUPERVISIONS:
        raise ValueError(f"supervision is {supervision!r}; it must be one of {', '.join(SUPERVISIONS)}")


def _check_sizes(widths: Sequence[int], depths: Sequence[int], entry: str) -> None:
    for name, values in (("widths", widths), ("depths", depths)):
        if len(values) != len(STRIDES):
            raise ValueError(f"{name} are {tuple(values)}; there must be {len(STRIDES)}, one a level")
    if any(width < EXPANSION or width % EXPANSION for width in widths):
        raise ValueError(f"widths are {tuple(widths)}; each must be a multiple of {EXPANSION}")
    if min(depths) < 1:
        raise ValueError(f"depths are {tuple(depths)}; each must be at least 1")
    if entry not in ENTRIES:
        raise ValueError(f"entry is {entry!r}; it must be one of {', '.join(ENTRIES)}")


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


def _resized(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=align_corners)


def _run(module: nn.Module, again: bool, *inputs: Tensor) -> Tensor:
    """``module`` of ``inputs``; with ``again`` its activations are computed again in the backward pass."""
    return recompute(module, *inputs) if again and module.training and torch.is_grad_enabled() else module(*inputs)


def _initialise(module: nn.Module) -> None:
    """He's normals for convolutions; norms keep PyTorch's own."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialise_encoders(model: SPGNet, state: Mapping[str, Tensor]) -> list[str]:
    """Give every residual encoder the weights of an ImageNet ResNet, as torchvision and timm name them.

    The first stage takes all of them but the classifier, strictly; a later stage those whose shape is its own.

    Returns:
        The names of the encoders' parameters and running statistics that keep their own values.

    Raises:
        ValueError: where ``state`` is of another network than the first encoder, or that is not residual.
    """
    first = model.encoders[0]
    if not isinstance(first, ResidualEncoder):
        raise ValueError("the model was built with a backbone of timm; give pretrained in backbone_settings instead")
    wanted = first.state_dict()
    wrong = [
        k for k, v in wanted.items() if not k.endswith("tracked") and (k not in state or state[k].shape != v.shape)
    ]
    if wrong:
        raise ValueError(
            f"state is of another network than the first encoder: {wrong[0]} is absent or of another shape"
        )
    kept = []
    for index, encoder in enumerate(model.encoders):
        own = encoder.state_dict()
        fitting = {k: state[k] for k, v in own.items() if k in state and state[k].shape == v.shape}
        encoder.load_state_dict(fitting, strict=False)
        kept += [f"encoders.{index}.{k}" for k in own if k not in fitting and not k.endswith("tracked")]
    return kept


def spgnet_resnet50(num_classes: int = 19, in_chans: int = 3, **settings: Any) -> SPGNet:
    """Two stages of ResNet-50, the network of the test result. ``settings`` are those of :class:`SPGNet`."""
    return SPGNet(num_classes, in_chans, **settings)


def spgnet_small(num_classes: int = 19, in_chans: int = 3, **settings: Any) -> SPGNet:
    """Two narrow stages of one bottleneck a level, for small pictures and trials. Sizes are ours, not the paper's."""
    sizes: dict[str, Any] = {"widths": (32, 64, 96, 128), "depths": (1, 1, 1, 1), "decoder_width": 32}
    return SPGNet(num_classes, in_chans, **sizes | settings)
