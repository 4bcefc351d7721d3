// The operators on CPU: checks, memory, threads; the work itself is in sampling.h.
#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../torch-ext/problem.h"
#include "call.h"

namespace deformable_attention {
namespace {

using Shapes = std::vector<int64_t>;

// What the processor can do, or less if the environment asks torch for less, too.
template <class T>
Functions<T> choose_functions() {
#ifdef __x86_64__
  const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
  std::string_view most = asked ? asked : "avx512";
  if (most == "default") return portable_functions<T>();
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && most != "avx2") return avx512_functions<T>();
  if (has_avx2) return avx2_functions<T>();
#endif
  return portable_functions<T>();
}

template <class T>
const Functions<T>& best_functions() {
  static const Functions<T> functions = choose_functions<T>();
  return functions;
}

template <class T>
constexpr ScalarType kType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

// Contiguous and of the type that is computed with.
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

// Where levels lie in a head's table (with zeros to the left, above and below), or in value.
template <class T>
void lay_out_levels(Call<T>& call, const Shapes& shapes) {
  int64_t next = 0;
  for (int64_t i = 0; i < call.levels; ++i) {
    int64_t height = shapes[2 * i], width = shapes[2 * i + 1];
    int64_t row = call.has_table ? width + 1 : width;
    int64_t origin = call.has_table ? next + 1 + row : next;
    next = call.has_table ? next + 1 + (height + 3) * row : next + height * width;
    STD_TORCH_CHECK(next < INT32_MAX, "an image has too many pixels: 2^31 fit in one");
    call.level.push_back({(T)width, (T)height, (int32_t)row, (int32_t)origin,
                          call.has_table ? (int32_t)(origin + height * row) : 0});
  }
  call.table_pixels = next;
}

template <class T>
Call<T> make_call(const Problem& problem, const Shapes& shapes, const Tensor& value,
                  const Tensor* references, const Tensor& points, const Tensor& weights) {
  Call<T> call{};
  call.batch = problem.batch;
  call.queries = problem.queries;
  call.tokens = problem.tokens;
  call.heads = problem.heads;
  call.width = problem.width;
  call.levels = problem.levels;
  call.points = problem.points;
  call.coordinates = problem.coordinates;
  call.value = data<T>(value);
  call.references = references ? data<T>(*references) : nullptr;
  call.points_xy = data<T>(points);
  call.weights = data<T>(weights);
  // A copy of value, head by head, costs what it saves once each pixel is read about eight times.
  call.has_table = problem.queries * problem.levels * problem.points >= 2 * problem.tokens &&
                   problem.tokens < 1 << 27;  // margins at most octuple what 32 bits must count
  lay_out_levels(call, shapes);
  return call;
}

bool is_empty(const Problem& problem) {
  return problem.batch * problem.queries * problem.heads * problem.width * problem.levels *
             problem.points ==
         0;
}

template <class T>
using Function = void (*)(const Call<T>&, int64_t, int64_t);

template <class T>
void run(const Call<T>& call, int64_t count, int64_t at_least, Function<T> function) {
  torch::stable::parallel_for(0, count, at_least, [&](int64_t begin, int64_t end) {
    function(call, begin, end);
  });
}

// Calls `work` for all items, with a table for as many at a time as there are threads: tables of
// all would be as large as value, and leave the cache before they are read.
template <class T, class Work>
void for_tables(Call<T>& call, const Tensor& like, bool has_grad, const Work& work) {
  int64_t all = call.batch * call.heads, threads = torch::stable::get_num_threads();
  int64_t at_once = call.has_table ? std::min(all, threads) : all;
  call.parts = 1;
  std::optional<Tensor> table, grad_table;
  if (call.has_table) {
    // With more threads than heads, each thread sums a part of the queries.
    if (has_grad) call.parts = std::min<int64_t>({(threads + all - 1) / all, 8, call.queries});
    table = empty<T>(like, {at_once, call.table_pixels, call.width});
    call.table = mutable_data<T>(*table);
    if (has_grad) {
      grad_table = empty<T>(like, {call.parts, at_once, call.table_pixels, call.width});
      call.grad_table = mutable_data<T>(*grad_table);
    }
  }
  for (call.first = 0; call.first < all; call.first += call.items) {
    call.items = std::min(at_once, all - call.first);
    if (call.has_table) run(call, call.items, 1, best_functions<T>().fill_table);
    work();
  }
}

template <class T>
Tensor forward(const Problem& problem, const Shapes& shapes, const Tensor& given_value,
               const Tensor* given_references, const Tensor& given_points,
               const Tensor& given_weights) {
  Shapes output_sizes{problem.batch, problem.queries, problem.heads * problem.width};
  if (is_empty(problem)) return torch::stable::new_zeros(given_value, output_sizes);
  Tensor value = exact<T>(given_value), points = exact<T>(given_points);
  Tensor weights = exact<T>(given_weights);
  std::optional<Tensor> references;
  if (given_references) references = exact<T>(*given_references);
  Call<T> call = make_call<T>(problem, shapes, value, references ? &*references : nullptr, points,
                              weights);
  Tensor output = empty<T>(value, output_sizes);
  call.output = mutable_data<T>(output);
  for_tables(call, value, false, [&] {
    run(call, call.items * call.queries, 64, best_functions<T>().forward);
  });
  return cast_like(output, given_value);
}

struct Gradients {
  Tensor value, references, points, weights;
};

template <class T>
Gradients backward(const Problem& problem, const Shapes& shapes, const Tensor& given_grad,
                   const Tensor& given_value, const Tensor* given_references,
                   const Tensor& given_points, const Tensor& given_weights, bool reference_grad) {
  const Tensor& any_references = given_references ? *given_references : given_value;
  Shapes no_references{0};
  if (is_empty(problem)) {
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
  Call<T> call = make_call<T>(problem, shapes, value, references ? &*references : nullptr, points,
                              weights);
  Tensor grad_value = call.has_table
                          ? empty<T>(value, sizes_of(value))
                          : torch::stable::new_zeros(value, sizes_of(value), kType<T>);
  Tensor grad_points = empty<T>(points, sizes_of(points));
  Tensor grad_weights = empty<T>(weights, sizes_of(weights));
  Tensor grad_references = torch::stable::new_empty(any_references, no_references);
  if (reference_grad)
    grad_references = empty<T>(
        value, {call.batch, call.heads, call.queries, call.levels, call.coordinates});
  call.grad = data<T>(grad);
  call.grad_value = mutable_data<T>(grad_value);
  call.grad_points_xy = mutable_data<T>(grad_points);
  call.grad_weights = mutable_data<T>(grad_weights);
  call.grad_references = reference_grad ? mutable_data<T>(grad_references) : nullptr;
  // Heads are summed apart, so no two threads write to one place, and sums have one order.
  for_tables(call, value, true, [&] {
    run(call, call.parts * call.items, 1, best_functions<T>().backward);
    if (call.has_table) run(call, call.items, 1, best_functions<T>().read_grad_table);
  });
  if (reference_grad) grad_references = torch::stable::sum(grad_references, Shapes{1});
  return {cast_like(grad_value, given_value), grad_references, cast_like(grad_points, given_points),
          cast_like(grad_weights, given_weights)};
}

Tensor deformable_attention(const Tensor& value, const Tensor& locations, const Tensor& weights,
                            const Shapes& shapes) {
  Problem problem = read_problem(value, locations, weights, shapes);
  auto compute = value.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return compute(problem, shapes, value, nullptr, locations, weights);
}

std::tuple<Tensor, Tensor, Tensor> deformable_attention_backward(
    const Tensor& grad, const Tensor& value, const Tensor& locations, const Tensor& weights,
    const Shapes& shapes, bool) {
  Problem problem = read_problem(value, locations, weights, shapes);
  check_gradient(grad, value, problem);
  auto compute = value.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  Gradients gradients = compute(problem, shapes, grad, value, nullptr, locations, weights, false);
  return {gradients.value, gradients.points, gradients.weights};
}

Tensor fused_deformable_attention(const Tensor& value, const Tensor& reference_points,
                                  const Tensor& offsets, const Tensor& logits,
                                  const Shapes& shapes) {
  Problem problem = read_problem(value, reference_points, offsets, logits, shapes);
  auto compute = value.scalar_type() == ScalarType::Double ? forward<double> : forward<float>;
  return compute(problem, shapes, value, &reference_points, offsets, logits);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_deformable_attention_backward(
    const Tensor& grad, const Tensor& value, const Tensor& reference_points, const Tensor& offsets,
    const Tensor& logits, const Shapes& shapes, bool reference_grad, bool) {
  Problem problem = read_problem(value, reference_points, offsets, logits, shapes);
  check_gradient(grad, value, problem);
  auto compute = value.scalar_type() == ScalarType::Double ? backward<double> : backward<float>;
  Gradients gradients =
      compute(problem, shapes, grad, value, &reference_points, offsets, logits, reference_grad);
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
