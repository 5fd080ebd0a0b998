"""Every benchmark model by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import onnx

from bench.models.dense_prediction import csrnet, csrnet_backend, gcn
from bench.models.generative import dcgan, fsrcnn, infogan, srcnn
from bench.models.inception import inception_a, inception_c, inception_e
from bench.models.longformer import longformer, longformer_masked
from bench.models.residual import resnet18, resnext50
from bench.models.sequence import bert_layer, nasrnn


@dataclass(frozen=True)
class BenchmarkModel:
    """A model of the benchmark.

    With several batch sizes the model is listed once for each, as `name-b1`, `name-b16`; with one, as `name`.
    `memory` is the GiB that the original needs in onnxruntime, where that is so much that it has to be minded.
    """

    name: str
    build: Callable[[int], onnx.ModelProto]
    batches: tuple[int, ...]
    description: str
    memory: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The listed names, in the order of the batch sizes."""
        if len(self.batches) == 1:
            return (self.name,)
        return tuple(f"{self.name}-b{batch}" for batch in self.batches)


CATALOGUE = (
    BenchmarkModel("infogan", infogan, (1, 16), "InfoGAN generator, 5 ConvTranspose, 32x32"),
    BenchmarkModel("dcgan", dcgan, (1, 16), "DCGAN generator, 5 ConvTranspose, 64x64"),
    BenchmarkModel("fsrcnn", fsrcnn, (1, 16), "FSRCNN super-resolution, 32x32 to 128x128"),
    BenchmarkModel("srcnn", srcnn, (1,), "SRCNN super-resolution, 224x224"),
    BenchmarkModel("gcn", gcn, (1,), "global convolutional network, 224x224"),
    BenchmarkModel("resnet18", resnet18, (1, 16), "ResNet-18, 224x224"),
    BenchmarkModel("csrnet", csrnet, (1,), "CSRNet, 224x224"),
    BenchmarkModel("csrnet-backend", csrnet_backend, (1, 16), "dilated back end of CSRNet, 14x14"),
    BenchmarkModel("longformer", longformer, (1,), "Longformer layer, 10000 positions, gather form", memory=18.0),
    BenchmarkModel(
        "longformer-quarter",
        partial(longformer, positions=2500, window=250),
        (1,),
        "Longformer layer, 2500 positions, gather form",
    ),
    BenchmarkModel(
        "longformer-quarter-masked", longformer_masked, (1,), "Longformer layer, 2500 positions, dense with a mask"
    ),
    BenchmarkModel("nasrnn", nasrnn, (1,), "NasRNN, 5 steps, hidden 512"),
    BenchmarkModel("resnext50", resnext50, (1,), "ResNeXt-50 32x4d, 224x224"),
    BenchmarkModel("inception-a", inception_a, (1,), "Inception-v3 block A, 35x35"),
    BenchmarkModel("inception-c", inception_c, (1,), "Inception-v3 block C, 17x17"),
    BenchmarkModel("inception-e", inception_e, (1,), "Inception-v3 block E, 8x8"),
    BenchmarkModel("bert-layer", bert_layer, (1,), "BERT-base encoder layer, sequence 128"),
)


def names() -> tuple[str, ...]:
    """All names, in the order of the catalogue."""
    return tuple(name for model in CATALOGUE for name in model.names)


def find(name: str) -> tuple[BenchmarkModel, int]:
    """The entry of the catalogue and the batch size that a name stands for; KeyError for an unknown name."""
    for model in CATALOGUE:
        for listed, batch in zip(model.names, model.batches, strict=True):
            if listed == name:
                return model, batch
    raise KeyError(f"no benchmark model is called {name!r}; the names are: {', '.join(names())}")


def get(name: str) -> onnx.ModelProto:
    """Build the model of a name, such as "infogan-b16"; KeyError for an unknown name."""
    model, batch = find(name)
    return model.build(batch)
