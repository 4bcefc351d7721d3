// The operators' schemas; each device's library registers its implementations.
//
// spatial_shapes: h and w of the first level, then of the second, and so on. Locations are
// (x, y) in [0, 1] of each level; offsets count pixels from a reference point, and half sizes over
// K from a reference box; logits become weights by a softmax over levels and points.
#include <torch/csrc/stable/library.h>

#define DEFINE_OPERATORS(name, library) STABLE_TORCH_LIBRARY(name, library)

DEFINE_OPERATORS(TORCH_EXTENSION_NAME, library) {
  library.def(
      "deformable_attention(Tensor value, Tensor locations, Tensor weights, "
      "SymInt[] spatial_shapes) -> Tensor");
  library.def(
      "deformable_attention_backward(Tensor grad, Tensor value, Tensor locations, Tensor weights, "
      "SymInt[] spatial_shapes, bool deterministic) -> (Tensor, Tensor, Tensor)");
  library.def(
      "fused_deformable_attention(Tensor value, Tensor reference_points, Tensor offsets, "
      "Tensor logits, SymInt[] spatial_shapes) -> Tensor");
  // The gradient of reference_points is empty, (0,), unless reference_grad is true.
  library.def(
      "fused_deformable_attention_backward(Tensor grad, Tensor value, Tensor reference_points, "
      "Tensor offsets, Tensor logits, SymInt[] spatial_shapes, bool reference_grad, "
      "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
}

// kernel-builder writes this header, whose macro makes the library a Python module too. Without it
// the library is loaded by torch only.
#if __has_include("registration.h")
#include "registration.h"
REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
#endif
