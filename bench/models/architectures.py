"""Current architectures as they look when exported: reduced ones, and in the sizes of the originals."""

from collections.abc import Callable, Mapping
from functools import partial

import onnx

from bench.models import architectures_language as language
from bench.models import architectures_vision as vision

# Every kind of block in its place, but few and narrow: for tests.
ARCHITECTURES: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "resnet50": vision.resnet50,
    "mobilenetv3": vision.mobilenetv3,
    "efficientnet_b0": vision.efficientnet_b0,
    "convnext": vision.convnext,
    "vit": vision.vit,
    "swin": vision.swin,
    "unet": vision.unet,
    "bert": language.bert,
    "gpt2": language.gpt2,
    "t5_encoder": language.t5_encoder,
}
_BASE = {"positions": 128, "width": 768, "heads": 12, "depth": 12}
# ResNet-50, MobileNetV3-Large, EfficientNet-B0, ConvNeXt-T, ViT-B/16, Swin-T, U-Net, and BERT, GPT-2 and T5 as "base".
FULL: Mapping[str, Callable[[int], onnx.ModelProto]] = {
    "resnet50": partial(vision.resnet50, size=224, width=64, blocks=(3, 4, 6, 3), classes=1000),
    "mobilenetv3": partial(
        vision.mobilenetv3, size=224, blocks=vision.MOBILE_BLOCKS, last=960, hidden=1280, classes=1000
    ),
    "efficientnet_b0": partial(
        vision.efficientnet_b0, size=224, blocks=vision.EFFICIENT_BLOCKS, last=1280, classes=1000
    ),
    "convnext": partial(vision.convnext, size=224, widths=(96, 192, 384, 768), depths=(3, 3, 9, 3), classes=1000),
    "vit": partial(vision.vit, size=224, patch=16, width=768, depth=12, heads=12, classes=1000),
    "swin": partial(
        vision.swin, size=224, patch=4, width=96, window=7, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), classes=1000
    ),
    "unet": partial(vision.unet, size=256, widths=(64, 128, 256, 512, 1024)),
    "bert": partial(language.bert, **_BASE, vocabulary=30522),
    "gpt2": partial(language.gpt2, **_BASE, vocabulary=50257),
    "t5_encoder": partial(language.t5_encoder, **_BASE, vocabulary=32128),
}
