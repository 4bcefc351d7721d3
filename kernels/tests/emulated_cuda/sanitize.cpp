// Runs one type's kernels on memory of exactly the sizes that they may touch; compiled like
// emulated.cpp, and with sanitizers, which find every access outside.
#include "emulated.cpp"

#include <random>

namespace {

struct Case {
  int64_t batch, queries, heads, width, points;
  std::vector<int64_t> shapes;
};

const std::vector<Case> kCases = {
    {2, 11, 2, 32, 4, {6, 7, 3, 4, 2, 2, 1, 2}}, {1, 3, 1, 16, 4, {6, 7, 3, 4, 2, 2, 1, 2}},
    {1, 5, 1, 64, 4, {1, 1, 1, 1, 1, 1, 1, 1}},  {1, 9, 3, 32, 3, {5, 6, 3, 3}},
    {2, 3, 2, 48, 5, {5, 6}},                    {1, 4, 3, 7, 3, {2, 3, 1, 1}},
};

template <typename T>
std::unique_ptr<T[]> fill(int64_t count, double low, double high) {
  static std::mt19937 generator(0);
  std::uniform_real_distribution<double> uniform(low, high);
  std::unique_ptr<T[]> numbers(new T[count]);
  for (int64_t i = 0; i < count; ++i) {
    Accumulator<T> number = static_cast<Accumulator<T>>(uniform(generator));
    if (low < 0 && i % 7 == 0) number = i % 14 ? -1e9 : INFINITY;
    if (low < 0 && i % 11 == 0) number = i % 22 ? NAN : 0;
    narrow(number, numbers[i]);
  }
  return numbers;
}

template <typename T>
void run(const Case& c, int64_t coordinates, bool is_deterministic) {
  using A = Accumulator<T>;
  int64_t num_levels = c.shapes.size() / 2, tokens = 0;
  for (int64_t i = 0; i < num_levels; ++i) tokens += c.shapes[2 * i] * c.shapes[2 * i + 1];
  int64_t outputs = c.batch * c.queries * c.heads * c.width;
  int64_t values = c.batch * tokens * c.heads * c.width;
  int64_t samples = c.batch * c.queries * c.heads * num_levels * c.points;
  int64_t references = c.batch * c.queries * num_levels * coordinates;
  auto value = fill<T>(values, 0, 1), points = fill<T>(2 * samples, -2, 2);
  auto weights = fill<T>(samples, 0, 1), output = fill<T>(outputs, 0, 1);
  auto grad = fill<T>(outputs, 0, 1), converted = fill<T>(values, 0, 1);
  auto given = fill<A>(references, 0, 1), grad_given = fill<A>(references, 0, 1);
  auto grad_points = fill<T>(2 * samples, 0, 1), grad_weights = fill<T>(samples, 0, 1);
  auto grad_samples = fill<A>(samples, 0, 1), grad_pixels = fill<A>(2 * samples, 0, 1);
  std::unique_ptr<A[]> sums(new A[values]());
  std::unique_ptr<int64_t[]> fixed_sums(new int64_t[values]());
  FixedPoint fixed_point{};
  void* grad_value = is_deterministic ? static_cast<void*>(fixed_sums.get()) : sums.get();
  void* pointers[] = {value.get(), points.get(), weights.get(),
                      coordinates ? given.get() : nullptr, output.get(), grad.get(), grad_value,
                      grad_points.get(), grad_weights.get(), grad_samples.get(),
                      coordinates ? grad_pixels.get() : nullptr,
                      coordinates ? grad_given.get() : nullptr, converted.get(),
                      is_deterministic ? &fixed_point : nullptr};
  int64_t numbers[] = {c.batch, c.queries, tokens,      c.heads, c.width, num_levels,
                       c.points, coordinates, 0};
  for (const char* operation : {"forward", "backward"}) {
    if (emulate(operation, pointers, numbers, c.shapes.data(), 0)) emulated::fail("not started");
  }
}

}  // namespace

int main() {
  for (const Case& c : kCases) {
    for (int64_t coordinates : {0, 2, 4}) {
      run<TYPE>(c, coordinates, false);
      run<TYPE>(c, coordinates, true);
    }
  }
}
