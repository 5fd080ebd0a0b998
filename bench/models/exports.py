"""Exports of real implementations with random weights, where torch, timm and transformers are installed.

``python -m bench.models.exports FOLDER [NAME …]`` writes them. Nothing is downloaded: every model is built from its
configuration. Depths are those of the originals where that is small enough, widths and vocabularies are cut.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SEED = 0
# Opsets of the two exporters of torch.
TRACED_OPSET, DYNAMO_OPSET = 17, 18


def _image(name: str, size: int = 224) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
    def build() -> tuple[Any, tuple[Any, ...]]:
        import timm
        import torch

        return timm.create_model(name, pretrained=False), (torch.randn(1, 3, size, size),)

    return build


def _bert() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from transformers import BertConfig, BertModel

    configuration = BertConfig(
        num_hidden_layers=12,
        hidden_size=192,
        num_attention_heads=12,
        intermediate_size=768,
        vocab_size=1000,
        attn_implementation="eager",
    )
    return BertModel(configuration), (torch.randint(0, 1000, (1, 64)), torch.ones(1, 64, dtype=torch.long))


def _gpt2() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from transformers import GPT2Config, GPT2Model

    configuration = GPT2Config(n_layer=12, n_embd=192, vocab_size=1000, use_cache=False, attn_implementation="eager")
    return GPT2Model(configuration), (torch.randint(0, 1000, (1, 64)),)


def _t5_encoder() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from transformers import T5Config, T5EncoderModel

    configuration = T5Config(num_layers=6, d_model=256, d_ff=512, num_heads=4, d_kv=64, vocab_size=1000)
    return T5EncoderModel(configuration), (torch.randint(0, 1000, (1, 64)),)


def _unet() -> tuple[Any, tuple[Any, ...]]:
    import torch
    from torch import nn

    def block(source: int, target: int) -> Any:
        layers = []
        for channels in (source, target):
            layers += [nn.Conv2d(channels, target, 3, padding=1, bias=False), nn.BatchNorm2d(target), nn.ReLU()]
        return nn.Sequential(*layers)

    class UNet(nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([block(3, 16), block(16, 32), block(32, 64)])
            self.middle, self.pool = block(64, 128), nn.MaxPool2d(2)
            up = [nn.ConvTranspose2d(128, 64, 2, 2), nn.Upsample(scale_factor=2), nn.ConvTranspose2d(32, 16, 2, 2)]
            self.up = nn.ModuleList(up)
            self.merge = nn.ModuleList([block(128, 64), block(96, 32), block(32, 16)])
            self.last = nn.Conv2d(16, 2, 1)

        def forward(self, x: Any) -> Any:
            kept = []
            for layer in self.down:
                kept.append(layer(x))
                x = self.pool(kept[-1])
            x = self.middle(x)
            for up, merge in zip(self.up, self.merge, strict=True):
                x = merge(torch.cat([kept.pop(), up(x)], 1))
            return self.last(x)

    return UNet(), (torch.randn(1, 3, 128, 128),)


EXPORTS: Mapping[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "resnet50": _image("resnet50"),
    "mobilenetv3": _image("mobilenetv3_large_100"),
    "efficientnet_b0": _image("efficientnet_b0"),
    "convnext": _image("convnext_tiny"),
    "vit": _image("vit_small_patch16_224"),
    "swin": _image("swin_tiny_patch4_window7_224"),
    "unet": _unet,
    "bert": _bert,
    "gpt2": _gpt2,
    "t5_encoder": _t5_encoder,
}


def export(name: str, path: Path, *, dynamo: bool) -> None:
    """Write the model of a name, by the exporter that traces or by the one that captures graphs.

    Raises whatever torch raises where an exporter cannot do a model.
    """
    import torch

    class First(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        """Only the first result."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Any) -> Any:
            found = self.inner(*inputs)
            return found if torch.is_tensor(found) else found[0]

    torch.manual_seed(SEED)
    model, inputs = EXPORTS[name]()
    module = First(model).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                module, inputs, str(path), dynamo=True, opset_version=DYNAMO_OPSET, external_data=False, verbose=False
            )
        else:
            torch.onnx.export(module, inputs, str(path), dynamo=False, opset_version=TRACED_OPSET)


def main(arguments: list[str]) -> None:
    """Write the exports into a folder, each by both exporters."""
    folder, names = Path(arguments[0]), arguments[1:] or list(EXPORTS)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for dynamo in (False, True):
            path = folder / f"{name}-{'dynamo' if dynamo else 'traced'}.onnx"
            try:
                export(name, path, dynamo=dynamo)
            except Exception as error:  # exporters raise anything
                print(f"{path.name}: not exported: {str(error).splitlines()[0] if str(error) else error!r}", flush=True)
            else:
                print(path.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
