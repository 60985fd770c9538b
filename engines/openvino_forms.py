"""What OpenVINO's CPU kernels run fastest: three exact rewrites of a graph after it is read, before it is compiled.

The ONNX file stays as it is, for every engine. All three keep the maths, and change it by rounding alone.

1. `split_offsets`: y + (noise [r,r] + bias [C,1,1]) becomes (y + bias) + noise. Folded, the offset is one constant of
   all C r^2 values, in planar order, and OpenVINO re-orders the whole map before and after it; apart, the element-wise
   work stays in the order of the convolutions (channels last).
2. `phase_convolutions`: a 3x3 transposed convolution of stride 2 whose output a depthwise filter reads becomes four
   plain convolutions, one for each phase of an output pixel (2x2, 2x1, 1x2, 1x1 taps: the same products), interleaved.
3. `winograd_convolutions`: a wide 3x3 convolution becomes F(4x4, 3x3) of Winograd (Lavin and Gray 2016): a tile of 4x4
   pixels from 36 products in place of 144, each one entry of a 1x1 convolution over the tiles.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Taps = np.ndarray
TILE = 4
"""Pixels a side of a tile of F(4x4, 3x3)."""
WIDE, LARGE = 128, 64
"""Channels, in and out, and pixels a side from which fewer products pay for the transforms (measured on AVX2)."""

# Lavin and Gray 2016, F(4, 3) from the points 0, 1, -1, 2, -2: y = A^T [(G g) * (B^T d)] for 6 inputs d and 3 taps g.
B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ]
)  # fmt: skip
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24


def rewrite(model: Any, library: Any) -> None:
    """Rewrites `model`, an openvino.Model, in place; `library` is `openvino.library()`."""
    split_offsets(model, library)
    fold_constants(model, library)
    phase_convolutions(model, library)
    winograd_convolutions(model, library)


def fold_constants(model: Any, library: Any) -> None:
    """Weights that the file holds as float16 times a gain become constants, so that they can be read."""
    manager = library.passes.Manager()
    manager.register_pass(library.passes.ConstantFolding())
    manager.run_passes(model)


# (1) ------------------------------------------------------------------------------------------------------------------


def split_offsets(model: Any, library: Any) -> int:
    """y + gain * (noise + bias) -> (y + gain * bias) + gain * noise, where noise has one channel and bias one pixel."""
    ops, count = library.opset13, 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Add":
            continue
        for port in (0, 1):
            parts = offset_parts(node.input_value(port).get_node(), ops)
            if parts is None or node.input_value(1 - port).get_partial_shape().rank.get_length() != 4:
                continue
            result = node.input_value(1 - port)
            for part in parts:
                result = ops.add(result, part).output(0)
            node.output(0).replace(result)
            count += 1
            break
    return count


def offset_parts(node: Any, ops: Any) -> tuple[Any, Any] | None:
    """(bias [1,C,1,1], noise [1,1,r,r]) of constants noise + bias, in the file times a gain; None for anything else."""
    gain = None
    if node.get_type_name() == "Multiply":
        sides = [node.input_value(i).get_node() for i in (0, 1)]
        scalars = [side for side in sides if is_constant(side) and math.prod(shape_of(side)) == 1]
        if len(scalars) != 1:
            return None
        gain, node = scalars[0], next(side for side in sides if side is not scalars[0])
    if node.get_type_name() != "Add":
        return None
    parts = [node.input_value(i).get_node() for i in (0, 1)]
    if not all(is_constant(part) for part in parts):
        return None
    placed = {}
    for part in parts:
        shape = [1] * (4 - len(shape_of(part))) + shape_of(part)
        kind = "bias" if shape[2:] == [1, 1] else "noise" if shape[:2] == [1, 1] else ""
        moved = ops.reshape(part, ops.constant(np.array(shape, np.int64)), False)
        placed[kind] = moved if gain is None else ops.multiply(moved, gain)
    return (placed["bias"], placed["noise"]) if placed.keys() == {"bias", "noise"} else None


def is_constant(node: Any) -> bool:
    """A constant, or one behind conversions and products of constants, as files with float16 weights have them."""
    if node.get_type_name() == "Constant":
        return True
    kinds = ("Convert", "Multiply", "Reshape", "Unsqueeze")
    inputs = [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return node.get_type_name() in kinds and all(map(is_constant, inputs))


def shape_of(node: Any) -> list[int]:
    """The shape of a node's only output, which must be known."""
    return [int(size) for size in node.output(0).get_shape()]


# (2) ------------------------------------------------------------------------------------------------------------------


def phase_convolutions(model: Any, library: Any) -> int:
    """Transposed 3x3 convolutions of stride 2, read by one depthwise filter with a border of 1, as four by phase."""
    ops, count = library.opset13, 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ConvolutionBackpropData" or node.get_input_size() != 2:
            continue
        weight, fir = constant_of(node.input_value(1)), sole_reader(node)
        about = node.get_attributes()
        plain = (about["strides"], about["pads_begin"], about["pads_end"], about["dilations"], about["output_padding"])
        if weight is None or weight.shape[2:] != (3, 3) or plain != ([2, 2], [0, 0], [0, 0], [1, 1], [0, 0]):
            continue
        if fir is None or fir.get_type_name() != "GroupConvolution":
            continue
        reads = fir.get_attributes()
        if any(reads[key] != [1, 1] for key in ("strides", "pads_begin", "pads_end", "dilations")):
            continue
        new = upsampling_3x3(node.input_value(0), weight.transpose(1, 0, 2, 3), fir.input_value(1), ops)
        fir.output(0).replace(new.output(0))
        count += 1
    return count


def upsampling_3x3(x: Any, weight: Taps, fir: Any, ops: Any) -> Any:
    """x [N,Ci,r,r], weight [Co,Ci,3,3], filter [Co,1,1,4,4] -> transposed convolution and filter, [N,Co,2r,2r].

    The doubled map has a row and a column more than the transposed convolution, both zero: the filter's border.
    """
    return ops.group_convolution(interleaved(x, weight, ops), fir, [1, 1], [1, 1], [0, 0], [1, 1])


def interleaved(x: Any, weight: Taps, ops: Any) -> Any:
    """x [N,Ci,r,r], weight [Co,Ci,3,3] -> the transposed convolution [N,Co,2r+2,2r+2], its last row and column 0.

    Even places read the taps 2 and 0 of two neighbours, odd places the tap 1 of one.
    """
    phases = []
    for rows in ([2, 0], [1]):
        for columns in ([2, 0], [1]):
            taps = np.ascontiguousarray(weight[:, :, rows][:, :, :, columns])
            before = [len(rows) - 1, len(columns) - 1]
            phases.append(ops.convolution(x, ops.constant(taps), [1, 1], before, [1, 1], [1, 1]))
    return ops.depth_to_space(ops.concat(phases, 1), "blocks_first", 2)


def sole_reader(node: Any) -> Any | None:
    """The one node that reads this one's output; None where there are more or none."""
    readers = node.output(0).get_target_inputs()
    return next(iter(readers)).get_node() if len(readers) == 1 else None


def constant_of(port: Any) -> Taps | None:
    """The values of a constant, None for anything else."""
    node = port.get_node()
    return node.data if node.get_type_name() == "Constant" else None


# (3) ------------------------------------------------------------------------------------------------------------------


def winograd_convolutions(model: Any, library: Any) -> int:
    """Plain 3x3 convolutions that are faster by tiles."""
    ops, count = library.opset13, 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        weight, about = constant_of(node.input_value(1)), node.get_attributes()
        plain = (about["strides"], about["pads_begin"], about["pads_end"], about["dilations"])
        if weight is None or weight.shape[2:] != (3, 3) or plain != ([1, 1], [1, 1], [1, 1], [1, 1]):
            continue
        if by_tiles(node.input_value(0), weight):
            node.output(0).replace(winograd(node.input_value(0), weight, ops).output(0))
            count += 1
    return count


def by_tiles(x: Any, weight: Taps) -> bool:
    """Whether a convolution is wide, float32, and reads a large map whose sides are known and a tile divides."""
    sides = list(x.get_partial_shape())[2:]
    fits = all(side.is_static and side.get_length() % TILE == 0 and side.get_length() >= LARGE for side in sides)
    return fits and weight.dtype == np.float32 and min(weight.shape[:2]) >= WIDE


def convolution_3x3(x: Any, weight: Taps, ops: Any) -> Any:
    """x [N,Ci,H,W], weight [Co,Ci,3,3] -> the convolution with a border of 1, in the faster form."""
    if by_tiles(x.output(0), weight):
        return winograd(x, weight, ops)
    return ops.convolution(x, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1])


def winograd(x: Any, weight: Taps, ops: Any) -> Any:
    """x [N,Ci,H,W], weight [Co,Ci,3,3] -> the convolution with a border of 1, [N,Co,H,W].

    B^T d B is a depthwise convolution by columns of a tile, then one by its rows, six each; G g G^T is computed here.
    """
    tiles_of_taps = np.kron(G, G).astype(np.float32) @ weight.reshape(-1, 9).T  # [36, Co*Ci]
    taps = tiles_of_taps.reshape(6, 6, *weight.shape[:2], 1, 1)
    products = []
    for u, row in enumerate(B_T):
        part = tile_sums(x, row, weight.shape[1], 0, ops)
        tiles = [tile_sums(part, column, weight.shape[1], 1, ops) for column in B_T]
        line = zip(tiles, (ops.constant(tap, shared_memory=True) for tap in taps[u]), strict=True)
        products.append([ops.convolution(tile, tap, [1, 1], [0, 0], [0, 0], [1, 1]) for tile, tap in line])
    columns = [untransformed(list(column), ops) for column in zip(*products, strict=True)]  # [v][a]
    pixels = [untransformed(list(row), ops) for row in zip(*columns, strict=True)]  # [a][b]
    return ops.depth_to_space(ops.concat([pixel for row in pixels for pixel in row], 1), "blocks_first", TILE)


def tile_sums(x: Any, row: Taps, channels: int, axis: int, ops: Any) -> Any:
    """One row of B^T along an axis (0: down, 1: across) of every tile: a depthwise convolution of stride `TILE`.

    The six inputs of a tile start one pixel before it; zeros at the ends of the row are not multiplied.
    """
    first, last = np.flatnonzero(row)[[0, -1]]
    kernel = row[first : last + 1].reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float32)
    strides, before, after = [1, 1], [0, 0], [0, 0]
    strides[axis], before[axis], after[axis] = TILE, int(first == 0), int(last == TILE + 1)
    weight = np.tile(kernel, (channels, 1, 1, 1, 1))
    return ops.group_convolution(x, ops.constant(weight), strides, before, after, [1, 1])


def untransformed(m: list[Any], ops: Any) -> list[Any]:
    """A^T m: four sums of six maps.

    A^T = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]].
    """

    def scaled(value: Any, factor: float) -> Any:
        return ops.multiply(value, ops.constant(np.float32(factor)))

    near, far = (ops.add(m[1], m[2]), ops.subtract(m[1], m[2])), (ops.add(m[3], m[4]), ops.subtract(m[3], m[4]))
    return [
        ops.add(m[0], ops.add(near[0], far[0])),
        ops.add(near[1], scaled(far[1], 2)),
        ops.add(near[0], scaled(far[0], 4)),
        ops.add(ops.add(near[1], scaled(far[1], 8)), m[5]),
    ]
