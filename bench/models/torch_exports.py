"""Exports of real implementations with random weights, where torch, torchvision and transformers are installed.

``python -m bench.models.torch_exports FOLDER [NAME …]`` writes them by both exporters of torch, each once: what lies in
the folder already is left alone. Nothing is downloaded: every model is built from its configuration, its weights drawn
from a seed. ``--small`` and ``--base`` write only the small or only the base configurations.
"""

import argparse
import contextlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SEED = 0
# Opsets of the two exporters of torch.
TRACED_OPSET, DYNAMO_OPSET = 17, 18
PACKAGES = ("torch", "torchvision", "transformers", "onnxscript")

# A module and the inputs it is exported with.
Built = tuple[Any, tuple[Any, ...]]


def missing() -> tuple[str, ...]:
    """The packages that exporting needs and that are not installed."""
    return tuple(package for package in PACKAGES if importlib.util.find_spec(package) is None)


def _vision(name: str, size: int = 224, **options: Any) -> Built:
    import torch
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options), (torch.randn(1, 3, size, size),)


def _small_vit() -> Built:
    import torch
    from torchvision.models import VisionTransformer

    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192)
    return model, (torch.randn(1, 3, 32, 32),)


def _small_swin() -> Built:
    import torch
    from torchvision.models import SwinTransformer

    model = SwinTransformer(
        patch_size=[2, 2], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=10
    )
    return model, (torch.randn(1, 3, 32, 32),)


def _small_convnext() -> Built:
    import torch
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    model = ConvNeXt([CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)], num_classes=10)
    return model, (torch.randn(1, 3, 64, 64),)


def _bert(width: int, depth: int, heads: int, vocabulary: int, positions: int, attention: str = "eager") -> Built:
    import torch
    from transformers import BertConfig, BertModel

    configuration = BertConfig(
        num_hidden_layers=depth,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=vocabulary,
        attn_implementation=attention,
    )
    mask = torch.ones(1, positions, dtype=torch.long)
    return BertModel(configuration), (torch.randint(0, vocabulary, (1, positions)), mask)


def _gpt2(width: int, depth: int, heads: int, vocabulary: int, positions: int) -> Built:
    import torch
    from transformers import GPT2Config, GPT2Model

    configuration = GPT2Config(
        n_layer=depth,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        use_cache=False,
        attn_implementation="eager",
    )
    model = GPT2Model(configuration)

    class Masked(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        """The mask by its name; without one the exporter that traces meets an operator that it does not know."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.inner(input_ids=ids, attention_mask=mask)

    return Masked(), (torch.randint(0, vocabulary, (1, positions)), torch.ones(1, positions, dtype=torch.long))


def _t5_encoder(width: int, depth: int, heads: int, vocabulary: int, positions: int) -> Built:
    import torch
    from transformers import T5Config, T5EncoderModel

    configuration = T5Config(
        num_layers=depth,
        d_model=width,
        d_ff=4 * width,
        num_heads=heads,
        d_kv=width // heads,
        vocab_size=vocabulary,
    )
    return T5EncoderModel(configuration), (torch.randint(0, vocabulary, (1, positions)),)


def _unet(widths: tuple[int, ...], size: int) -> Built:
    import torch
    from torch import nn

    def block(source: int, target: int) -> Any:
        layers: list[Any] = []
        for channels in (source, target):
            layers += [nn.Conv2d(channels, target, 3, padding=1, bias=False), nn.BatchNorm2d(target), nn.ReLU()]
        return nn.Sequential(*layers)

    def bigger(source: int, target: int, level: int) -> Any:
        if level % 2 == 0:
            return nn.ConvTranspose2d(source, target, 2, 2)
        mode = "nearest" if level == 1 else "bilinear"
        return nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(source, target, 1))

    class UNet(nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            sources = (3, *widths)
            self.down = nn.ModuleList([block(sources[i], widths[i]) for i in range(len(widths) - 1)])
            self.pool, self.middle = nn.MaxPool2d(2), block(widths[-2], widths[-1])
            levels = list(reversed(range(len(widths) - 1)))
            self.up = nn.ModuleList([bigger(widths[i + 1], widths[i], n) for n, i in enumerate(levels)])
            self.merge = nn.ModuleList([block(2 * widths[i], widths[i]) for i in levels])
            self.last = nn.Conv2d(widths[0], 2, 1)

        def forward(self, x: Any) -> Any:
            kept = []
            for layer in self.down:
                kept.append(layer(x))
                x = self.pool(kept[-1])
            x = self.middle(x)
            for up, merge in zip(self.up, self.merge, strict=True):
                x = merge(torch.cat([kept.pop(), up(x)], 1))
            return self.last(x)

    return UNet(), (torch.randn(1, 3, size, size),)


# As deep as the originals: what surrounds the layers would weigh too much otherwise.
_LITTLE = {"width": 48, "depth": 12, "heads": 3, "vocabulary": 100, "positions": 16}
_BASE = {"width": 768, "depth": 12, "heads": 12, "positions": 128}
# Small enough for tests: narrow or of small images.
SMALL: Mapping[str, Callable[[], Built]] = {
    "resnet18": partial(_vision, "resnet18", 64, num_classes=10),
    "mobilenetv3": partial(_vision, "mobilenet_v3_small", 64, num_classes=10),
    "convnext": _small_convnext,
    "vit": _small_vit,
    "swin": _small_swin,
    "unet": partial(_unet, (8, 16, 32, 64), 32),
    "bert": partial(_bert, **_LITTLE),
    "bert_sdpa": partial(_bert, **_LITTLE, attention="sdpa"),
    "gpt2": partial(_gpt2, **_LITTLE),
    "t5_encoder": partial(_t5_encoder, **_LITTLE),
}
BASE: Mapping[str, Callable[[], Built]] = {
    "resnet18": partial(_vision, "resnet18"),
    "resnet50": partial(_vision, "resnet50"),
    "mobilenetv3": partial(_vision, "mobilenet_v3_large"),
    "efficientnet_b0": partial(_vision, "efficientnet_b0"),
    "convnext": partial(_vision, "convnext_tiny"),
    "vit": partial(_vision, "vit_b_16"),
    "swin": partial(_vision, "swin_t"),
    "unet": partial(_unet, (64, 128, 256, 512, 1024), 256),
    "bert": partial(_bert, **_BASE, vocabulary=30522),
    "gpt2": partial(_gpt2, **_BASE, vocabulary=50257),
    "t5_encoder": partial(_t5_encoder, **_BASE, vocabulary=32128),
}
CONFIGURATIONS: Mapping[str, Mapping[str, Callable[[], Built]]] = {"small": SMALL, "base": BASE}


def _drawn(model: Any) -> Any:
    """The model with noise on all that begins as one value: heads of zeros, scales of 1e-6 would hide what is wrong."""
    import torch

    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            drawn = isinstance(tensor, torch.nn.Parameter) or name.endswith(("running_mean", "running_var"))
            if drawn and tensor.numel() > 1 and bool((tensor == tensor.reshape(-1)[0]).all()):
                tensor.add_(0.1 * torch.randn_like(tensor))
                if name.endswith("running_var"):
                    tensor.abs_()
    return model


def export(build: Callable[[], Built], path: Path, *, dynamo: bool) -> None:
    """Write a model by the exporter that traces or by the one that captures graphs.

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
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator that the exporter that traces does not know
    model, inputs = build()
    module = First(_drawn(model)).eval()
    partial_path = path.with_suffix(".partial")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                module,
                inputs,
                str(partial_path),
                dynamo=True,
                opset_version=DYNAMO_OPSET,
                external_data=False,
                verbose=False,
            )
        else:
            torch.onnx.export(module, inputs, str(partial_path), dynamo=False, opset_version=TRACED_OPSET)
    partial_path.replace(path)


def path_of(folder: Path, size: str, name: str, *, dynamo: bool) -> Path:
    """Where an export lies in a folder."""
    return folder / f"{name}-{size}-{'dynamo' if dynamo else 'traced'}.onnx"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when an export failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.models.torch_exports", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the exports are kept")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(dict.fromkeys([*SMALL, *BASE]))}")
    for size in CONFIGURATIONS:
        parser.add_argument(f"--{size}", action="append_const", const=size, dest="sizes", help=f"{size} models only")
    options = parser.parse_args(arguments)
    if missing():
        print(f"nothing is exported: {', '.join(missing())} not installed (pip install egraph-opt[exports])")
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    for size in options.sizes or CONFIGURATIONS:
        for name, build in CONFIGURATIONS[size].items():
            if options.names and name not in options.names:
                continue
            for dynamo in (False, True):
                path = path_of(options.folder, size, name, dynamo=dynamo)
                if path.exists():
                    print(f"{path.name}: there already", flush=True)
                    continue
                try:
                    with contextlib.redirect_stdout(io.StringIO()):  # the whole graph, where one fails
                        export(build, path, dynamo=dynamo)
                except Exception as error:  # exporters raise anything
                    failures += 1
                    what = str(error).splitlines()[0] if str(error) else repr(error)
                    print(f"{path.name}: not exported: {what}", flush=True)
                else:
                    print(path.name, flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
