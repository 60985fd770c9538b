"""Simplifies a traced graph: constants folded, batch norms into convolutions, shapes settled; every epsilon kept.

onnxscript's own optimiser (0.7) is not used as a whole: its rule "x + 0 is x" compares with an absolute tolerance of
1e-8 and so deletes the 1e-8 of StyleGAN2's demodulation and pixel norm, which turns a dead style into NaN. The rules
below are the exact ones.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common

RULES = rewriter.RewriteRuleSet(
    [
        common.fuse_batchnorm_into_conv_rule,
        common.fuse_batchnorm_into_conv_transpose_rule,
        common.fuse_batchnorm_into_gemm_rule,
        common.remove_optional_bias_from_conv_rule,
        common.remove_optional_bias_from_gemm_rule,
        common.materialize_reshape_shape_rule,
        common.reshape_reshape_rule,
        common.collapse_slice_rule,
        common.collapse_slice2_rule,
        common.slice_split_rule,
        common.no_op_cast_rule,
        common.no_op_expand_rule,
        common.no_op_transpose_rule,
        common.transpose_transpose_rule,
        common.unsqueeze_unsqueeze_rule,
        common.dropout_inference_rule,
    ]
)
ROUNDS = 2


def simplify(model: ir.Model) -> ir.Model:
    """Simplifies in place and returns the model."""
    passes.InlinePass()(model)
    for _ in range(ROUNDS):
        optimizer.fold_constants_ir(model)
        rewriter.RewritePass(RULES)(model)
        passes.RemoveUnusedNodesPass()(model)
    for step in (
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        step(model)
    return model
