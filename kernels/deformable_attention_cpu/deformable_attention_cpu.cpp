// The operators on CPU: checks, memory and threads; sampling.h contains the arithmetic.
#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../torch-ext/attention_sizes.h"
#include "arguments.h"

namespace deformable_attention {
namespace {

using Shapes = std::vector<int64_t>;

// The best instruction set of the processor, or a lower one that ATEN_CPU_CAPABILITY names.
template <class T, class S>
Functions<T, S> choose_functions() {
#ifdef __x86_64__
  const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
  std::string_view most = asked ? asked : "avx512";
  if (most == "default") return portable_functions<T, S>();
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && most != "avx2") return avx512_functions<T, S>();
  if (has_avx2) return avx2_functions<T, S>();
#endif
  return portable_functions<T, S>();
}

template <class T, class S = T>
const Functions<T, S>& best_functions() {
  static const Functions<T, S> functions = choose_functions<T, S>();
  return functions;
}

template <class T>
constexpr ScalarType kType = sizeof(T) == 8   ? ScalarType::Double
                             : sizeof(T) == 4 ? ScalarType::Float
                                              : ScalarType::BFloat16;

// Contiguous and of type T.
template <class T>
Tensor exact(const Tensor& tensor) {
  return torch::stable::contiguous(tensor.scalar_type() == kType<T>
                                       ? tensor
                                       : torch::stable::to(tensor, kType<T>));
}

Tensor cast_like(const Tensor& tensor, const Tensor& other) {
  bool same = tensor.scalar_type() == other.scalar_type();
  return same ? tensor : torch::stable::to(tensor, other.scalar_type());
}

template <class T>
Tensor empty(const Tensor& like, const Shapes& sizes) {
  return torch::stable::new_empty(like, sizes, kType<T>);
}

Shapes sizes_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Positions of levels in a head's table (with zeros to the left, above and below), or in value.
template <class T, class S>
void lay_out_levels(Arguments<T, S>& args, const Shapes& shapes) {
  int64_t next = 0;
  for (int64_t i = 0; i < args.levels; ++i) {
    int64_t height = shapes[2 * i], width = shapes[2 * i + 1];
    int64_t row = args.has_table ? width + 1 : width;
    int64_t origin = args.has_table ? next + 1 + row : next;
    next = args.has_table ? next + 1 + (height + 3) * row : next + height * width;
    STD_TORCH_CHECK(next < INT32_MAX, "an image has too many pixels; the limit is 2^31");
    args.level.push_back({(T)width, (T)height, (int32_t)row, (int32_t)origin,
                          args.has_table ? (int32_t)(origin + height * row) : 0});
  }
  args.table_pixels = next;
}

template <class T, class S = T>
Arguments<T, S> make_arguments(const AttentionSizes& sizes, const Shapes& shapes,
                               const Tensor& value, const Tensor* references,
                               const Tensor& points, const Tensor& weights) {
  Arguments<T, S> args{};
  args.batch = sizes.batch;
  args.queries = sizes.queries;
  args.tokens = sizes.tokens;
  args.heads = sizes.heads;
  args.width = sizes.width;
  args.levels = sizes.levels;
  args.points = sizes.points;
  args.coordinates = sizes.coordinates;
  args.value = data<S>(value);
  args.references = references ? data<T>(*references) : nullptr;
  args.points_xy = data<S>(points);
  args.weights = data<S>(weights);
  // A copy of value, head by head, is worth its cost if each pixel is read about eight times.
  args.has_table = sizes.queries * sizes.levels * sizes.points >= 2 * sizes.tokens &&
                   sizes.tokens < 1 << 27;  // margins multiply them by at most 8, in 32 bits
  lay_out_levels(args, shapes);
  return args;
}

bool is_empty(const AttentionSizes& sizes) {
  return sizes.batch * sizes.queries * sizes.heads * sizes.width * sizes.levels * sizes.points == 0;
}

template <class T, class S>
void run(const Arguments<T, S>& args, int64_t count, int64_t at_least, Function<T, S> function) {
  torch::stable::parallel_for(0, count, at_least, [&](int64_t begin, int64_t end) {
    function(args, begin, end);
  });
}

// Calls `work` for all items, with tables for as many at a time as there are threads: tables of
// all items would be as large as value, and would not stay in the cache until they are read.
template <class T, class S, class Work>
void for_tables(Arguments<T, S>& args, const Tensor& like, bool has_grad, const Work& work) {
  int64_t all = args.batch * args.heads, threads = torch::stable::get_num_threads();
  int64_t at_once = args.has_table ? std::min(all, threads) : all;
  args.parts = 1;
  std::optional<Tensor> table, grad_table;
  if (args.has_table) {
    // With more threads than heads, each thread sums a part of the queries.
    if (has_grad) args.parts = std::min<int64_t>({(threads + all - 1) / all, 8, args.queries});
    table = empty<T>(like, {at_once, args.table_pixels, args.width});
    args.table = mutable_data<T>(*table);
    if (has_grad) {
      grad_table = empty<T>(like, {args.parts, at_once, args.table_pixels, args.width});
      args.grad_table = mutable_data<T>(*grad_table);
    }
  }
  for (args.first = 0; args.first < all; args.first += args.items) {
    args.items = std::min(at_once, all - args.first);
    if (args.has_table) run(args, args.items, 1, best_functions<T, S>().fill_table);
    work();
  }
}

template <class T, class S = T>
Tensor forward(const AttentionSizes& sizes, const Shapes& shapes, const Tensor& given_value,
               const Tensor* given_references, const Tensor& given_points,
               const Tensor& given_weights) {
  Shapes output_sizes{sizes.batch, sizes.queries, sizes.heads * sizes.width};
  if (is_empty(sizes)) return torch::stable::new_zeros(given_value, output_sizes);
  Tensor value = exact<S>(given_value), points = exact<S>(given_points);
  Tensor weights = exact<S>(given_weights);
  std::optional<Tensor> references;
  if (given_references) references = exact<T>(*given_references);
  auto args = make_arguments<T, S>(sizes, shapes, value, references ? &*references : nullptr,
                                   points, weights);
  Tensor output = empty<S>(value, output_sizes);
  args.output = mutable_data<S>(output);
  for_tables(args, value, false, [&] {
    run(args, args.items * args.queries, 64, best_functions<T, S>().forward);
  });
  return cast_like(output, given_value);
}

struct Gradients {
  Tensor value, references, points, weights;
};

template <class T>
Gradients backward(const AttentionSizes& sizes, const Shapes& shapes, const Tensor& given_grad,
                   const Tensor& given_value, const Tensor* given_references,
                   const Tensor& given_points, const Tensor& given_weights, bool reference_grad) {
  const Tensor& any_references = given_references ? *given_references : given_value;
  Shapes no_references{0};
  if (is_empty(sizes)) {
    auto zeros = [](const Tensor& like) {
      return torch::stable::new_zeros(like, sizes_of(like));
    };
    return {zeros(given_value),
            reference_grad ? zeros(any_references)
                           : torch::stable::new_zeros(any_references, no_references),
            zeros(given_points), zeros(given_weights)};
  }
  Tensor value = exact<T>(given_value), points = exact<T>(given_points);
  Tensor weights = exact<T>(given_weights), grad = exact<T>(given_grad);
  std::optional<Tensor> references;
  if (given_references) references = exact<T>(*given_references);
  Arguments<T> args = make_arguments<T>(
      sizes, shapes, value, references ? &*references : nullptr, points, weights);
  Tensor grad_value = args.has_table
                          ? empty<T>(value, sizes_of(value))
                          : torch::stable::new_zeros(value, sizes_of(value), kType<T>);
  Tensor grad_points = empty<T>(points, sizes_of(points));
  Tensor grad_weights = empty<T>(weights, sizes_of(weights));
  Tensor grad_references = torch::stable::new_empty(any_references, no_references);
  if (reference_grad)
    grad_references = empty<T>(
        value, {args.batch, args.heads, args.queries, args.levels, args.coordinates});
  args.grad = data<T>(grad);
  args.grad_value = mutable_data<T>(grad_value);
  args.grad_points_xy = mutable_data<T>(grad_points);
  args.grad_weights = mutable_data<T>(grad_weights);
  args.grad_references = reference_grad ? mutable_data<T>(grad_references) : nullptr;
  // Heads are summed separately: no two threads write to one address, and the order is fixed.
  for_tables(args, value, true, [&] {
    run(args, args.parts * args.items, 1, best_functions<T>().backward);
    if (args.has_table) run(args, args.items, 1, best_functions<T>().read_grad_table);
  });
  if (reference_grad) grad_references = torch::stable::sum(grad_references, Shapes{1});
  return {cast_like(grad_value, given_value), grad_references, cast_like(grad_points, given_points),
          cast_like(grad_weights, given_weights)};
}

// bfloat16 is read without a copy; float16, or bfloat16 with float32 points, is converted first.
auto choose_forward(const Tensor& value, const Tensor& points) {
  if (value.scalar_type() == ScalarType::Double) return forward<double>;
  bool is_bfloat16 = value.scalar_type() == ScalarType::BFloat16 &&
                     points.scalar_type() == ScalarType::BFloat16;
  return is_bfloat16 ? forward<float, BFloat16> : forward<float>;
}

Tensor deformable_attention(const Tensor& value, const Tensor& locations, const Tensor& weights,
                            const Shapes& shapes) {
  AttentionSizes sizes = read_sizes(value, locations, weights, shapes);
  return choose_forward(value, locations)(sizes, shapes, value, nullptr, locations, weights);
}

std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward(
    const Tensor& grad, const Tensor& value, const Tensor& locations, const Tensor& weights,
    const Shapes& shapes, bool) {
  AttentionSizes sizes = read_sizes(value, locations, weights, shapes);
  check_gradient(grad, value, sizes);
  auto compute = value.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  Gradients gradients = compute(sizes, shapes, grad, value, nullptr, locations, weights, false);
  return {gradients.value, gradients.points, gradients.weights};
}

Tensor fused_deformable_attention(const Tensor& value, const Tensor& reference_points,
                                  const Tensor& offsets, const Tensor& logits,
                                  const Shapes& shapes) {
  AttentionSizes sizes = read_sizes(value, reference_points, offsets, logits, shapes);
  auto compute = choose_forward(value, offsets);
  return compute(sizes, shapes, value, &reference_points, offsets, logits);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_deformable_attention_backward(
    const Tensor& grad, const Tensor& value, const Tensor& reference_points, const Tensor& offsets,
    const Tensor& logits, const Shapes& shapes, bool reference_grad, bool) {
  AttentionSizes sizes = read_sizes(value, reference_points, offsets, logits, shapes);
  check_gradient(grad, value, sizes);
  auto compute = value.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  Gradients gradients =
      compute(sizes, shapes, grad, value, &reference_points, offsets, logits, reference_grad);
  return {gradients.value, gradients.references, gradients.points, gradients.weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(TORCH_EXTENSION_NAME, CPU, library) {
  library.impl("deformable_attention", TORCH_BOX(&deformable_attention));
  library.impl("deformable_attention_backward", TORCH_BOX(&deformable_attention_backward));
  library.impl("fused_deformable_attention", TORCH_BOX(&fused_deformable_attention));
  library.impl("fused_deformable_attention_backward",
               TORCH_BOX(&fused_deformable_attention_backward));
}

}  // namespace deformable_attention
