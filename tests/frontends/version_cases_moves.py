"""Cases of the operators that move elements; see :mod:`tests.frontends.version_cases`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.frontends.version_case import Case, case, floats, ints


def transpose_cases(version: int) -> Iterator[Case]:
    yield case((2, 3, 4))
    yield case((2, 3, 4), perm=[1, 2, 0])


def reshape_cases(version: int) -> Iterator[Case]:
    for shape in ((6, -1), (0, 4, 3), (24,)):
        if version < 5:
            yield case((2, 3, 4), shape=list(shape))
        else:
            yield case((2, 3, 4), ints(*shape))
    yield case((1,), shape=[1, 1]) if version < 5 else case((1,), ints(1, 1))
    if version >= 14:
        yield case((2, 3, 4), ints(4, 6), allowzero=1)


def flatten_cases(version: int) -> Iterator[Case]:
    yield case((2, 3, 4))
    for axis in (0, 2, 3, *((-1,) if version >= 11 else ())):
        yield case((2, 3, 4), axis=axis)


def squeeze_cases(version: int) -> Iterator[Case]:
    yield case((2, 1, 3, 1))
    for axes in ([1], [1, 3], *(([-1],) if version >= 11 else ())):
        if version >= 13:
            yield case((2, 1, 3, 1), ints(*axes))
        else:
            yield case((2, 1, 3, 1), axes=axes)


def unsqueeze_cases(version: int) -> Iterator[Case]:
    for axes in ([1], [0, 3], *(([-1],) if version >= 11 else ())):
        if version >= 13:
            yield case((2, 3), ints(*axes))
        else:
            yield case((2, 3), axes=axes)


def concat_cases(version: int) -> Iterator[Case]:
    yield case((2, 3, 4), (2, 1, 4), axis=1, oracle=lambda x, y: np.concatenate([x, y], axis=1))
    if version < 4:
        yield case((2, 3, 4), (2, 1, 4), oracle=lambda x, y: np.concatenate([x, y], axis=1))
    if version >= 11:
        yield case((2, 3, 4), (2, 3, 1), axis=-1)


def split_cases(version: int) -> Iterator[Case]:
    def parts(x: np.ndarray) -> list[np.ndarray]:
        return [x[:, :2], x[:, 2:6]]

    yield case((6, 4), outputs=3, oracle=lambda x: np.split(x, 3), **({"num_outputs": 3} if version >= 18 else {}))
    if version < 2:
        yield case((2, 6), floats(2, 4), outputs=2, axis=1, oracle=lambda x, _: parts(x))
    if version < 13:
        yield case((2, 6), outputs=2, axis=1, split=[2, 4], oracle=parts)
    else:
        yield case((2, 6), ints(2, 4), outputs=2, axis=-1)
    if version >= 18:
        yield case((7, 2), outputs=3, num_outputs=3)


def slice_cases(version: int) -> Iterator[Case]:
    if version < 10:
        yield case((5, 6), starts=[1, -4], ends=[4, 9], axes=[0, 1])
        yield case((5, 6), starts=[2], ends=[-1])
        return
    yield case((5, 6), ints(1, -4), ints(4, 9), ints(0, 1))
    yield case((5, 6), ints(4, 0), ints(-10, 6), ints(0, -1), ints(-2, 3))
    yield case((5, 6), ints(2), ints(-1))


def _padded(x: np.ndarray, width: Any, mode: str) -> np.ndarray:
    return np.pad(x, width, mode, **({"constant_values": 1.5} if mode == "constant" else {}))


def pad_cases(version: int) -> Iterator[Case]:
    modes = ["constant", "reflect", "edge", *(["wrap"] if version >= 19 else [])]
    for mode in modes:
        for pads in ((1, 2, 2, 3), (0, 1, 0, 0)):
            if version < 11:
                name = "paddings" if version < 2 else "pads"
                width = ((pads[0], pads[2]), (pads[1], pads[3]))
                oracle = partial(_padded, width=width, mode=mode)
                value = {"value": 1.5} if mode == "constant" else {}
                yield case((4, 5), mode=mode, oracle=oracle, **value, **{name: list(pads)})
            else:
                value_input = [np.float32(1.5)] if mode == "constant" else []
                yield case((4, 5), ints(*pads), *value_input, mode=mode)
    if version >= 2:
        negative = (-1, 2, 0, -2)
        yield case((4, 5), ints(*negative)) if version >= 11 else case((4, 5), pads=list(negative))
    if version >= 18:
        yield case((4, 5, 3), ints(1, 2), np.float32(-2), ints(-2))
        yield case((4, 5, 3), ints(1, 2, 0, 3), "", ints(-1, 0), mode="edge")
    if version >= 11:
        yield case((4, 5), ints(0, 5, 0, 0), mode="reflect", declined="longer than")
        yield case((4, 5), ints(0, 1, 0, 0), np.float32(np.nan), declined="NaN")


def tile_cases(version: int) -> Iterator[Case]:
    if version < 6:
        yield case((2, 3), floats(3)[0], floats(1)[0], oracle=lambda x, t, a: np.tile(x, (1, 3)))
        return
    yield case((2, 3), ints(3, 2))


def gather_cases(version: int) -> Iterator[Case]:
    yield case((4, 3), ints(2, 0, 1))
    yield case((4, 3), ints(0, 2, 1, 0), axis=1)
    yield case((4, 3), np.asarray(2), axis=1)
    if version >= 11:
        yield case((4, 3), np.asarray([[0, -1], [1, 2]]), axis=-2, declined="quasi-affine")
        yield case((4, 3), np.asarray([[-4, -3], [-2, -1]], dtype=np.int32))


def dropout_cases(version: int) -> Iterator[Case]:
    identity = lambda x, *_: x  # noqa: E731
    if version < 7:
        yield case((2, 3), is_test=1, ratio=0.3, oracle=identity)
        yield case((2, 3), declined="training")
    elif version < 12:
        yield case((2, 3), ratio=0.3)
    else:
        yield case((2, 3), np.float32(0.3), np.asarray(False), seed=4)
        yield case((2, 3), np.float32(0.3))
        yield case((2, 3), np.float32(0.3), np.asarray(True), declined="training")
    yield case((2, 3), outputs=2, declined="more than one", **({"is_test": 1} if version < 7 else {}))


def upsample_cases(version: int) -> Iterator[Case]:
    oracle = lambda x, *_: x.repeat(2, axis=2).repeat(3, axis=3)  # noqa: E731
    if version < 7:
        yield case((1, 2, 3, 4), height_scale=2.0, width_scale=3.0, oracle=oracle)
        yield case((1, 2, 3, 4), height_scale=2.0, width_scale=2.0, mode="bilinear", declined="mode")
    elif version < 9:
        yield case((1, 2, 3, 4), scales=[1.0, 1.0, 2.0, 3.0], mode="nearest")
        yield case((1, 2, 3, 4), scales=[1.0, 1.0, 2.0, 3.0], mode="linear", declined="mode")
    else:
        yield case((1, 2, 3, 4), floats(1, 1, 2, 3), mode="nearest", oracle=oracle)
        yield case((1, 2, 3, 4), floats(1, 1, 2, 3), mode="linear", declined="mode")


def resize_cases(version: int) -> Iterator[Case]:
    if version < 11:
        yield case((1, 2, 3, 4), floats(1, 1, 2, 3), mode="nearest")
        yield case((1, 2, 3, 4), floats(1, 1, 2, 3), mode="linear", declined="mode")
        return
    x, none = (1, 2, 6, 4), np.zeros(0, dtype=np.float32)
    transforms = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    transforms += ["tf_half_pixel_for_nn"] if version < 13 else ["half_pixel_symmetric"] if version >= 19 else []
    for transform in transforms:
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            given = {"coordinate_transformation_mode": transform, "nearest_mode": rounding}
            if transform in ("half_pixel", "asymmetric"):
                yield case(x, none, floats(1, 1, 2, 3), mode="nearest", **given)
            yield case(x, none, none, ints(1, 2, 3, 8), mode="nearest", **given)
    yield case(x, none, floats(1, 1, 2, 2), mode="linear", declined="mode")
    yield case(x, none, floats(1, 1, 2, 2), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1, declined="mode")
    roi = floats(0, 0, 0, 0, 1, 1, 1, 1)
    yield case(x, roi, floats(1, 1, 2, 2), coordinate_transformation_mode="tf_crop_and_resize",
               extrapolation_value=1.5, declined="region")  # fmt: skip
    if version >= 18:
        yield case(x, "", floats(2, 3), axes=[3, 2], coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        yield case(x, "", "", ints(12, 12), axes=[2, 3], keep_aspect_ratio_policy="not_larger", declined="policy")
        yield case(x, "", floats(1, 1, 0.5, 0.5), mode="linear", antialias=1, declined="antialias")


def depth_to_space_cases(version: int) -> Iterator[Case]:
    yield case((2, 12, 2, 3), blocksize=2, oracle=_to_space("DCR"))
    for mode in ("DCR", "CRD") if version >= 11 else ():
        yield case((2, 12, 2, 3), blocksize=2, mode=mode, oracle=_to_space(mode))


def _to_space(mode: str) -> Callable[..., Any]:
    def compute(x: np.ndarray) -> np.ndarray:
        n, c, h, w = x.shape
        split = (n, 2, 2, c // 4, h, w) if mode == "DCR" else (n, c // 4, 2, 2, h, w)
        order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
        return x.reshape(split).transpose(order).reshape(n, c // 4, h * 2, w * 2)

    return compute


def space_to_depth_cases(version: int) -> Iterator[Case]:
    def oracle(mode: str) -> Callable[..., Any]:
        def compute(x: np.ndarray) -> np.ndarray:
            n, c, h, w = x.shape
            split = x.reshape(n, c, h // 2, 2, w // 2, 2)
            order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
            return split.transpose(order).reshape(n, c * 4, h // 2, w // 2)

        return compute

    yield case((2, 3, 4, 6), blocksize=2, oracle=oracle("DCR"))
    for mode in ("DCR", "CRD") if version >= 28 else ():
        yield case((2, 3, 4, 6), blocksize=2, mode=mode, oracle=oracle(mode))


def trilu_cases(version: int) -> Iterator[Case]:
    for upper in (0, 1):
        for k in (None, -2, 0, 1, 9):
            yield case((2, 4, 5), *([] if k is None else [np.asarray(k)]), upper=upper)


def expand_cases(version: int) -> Iterator[Case]:
    yield case((3, 1), ints(2, 1, 4))
    yield case((3, 4), ints(1))
