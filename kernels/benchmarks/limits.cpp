// What this processor can do at most: multiply-adds, and 128-byte rows gathered from a cache.
//
//   g++ -O3 -march=native limits.cpp -o limits && ./limits
//
// Prints, for one thread: 10^9 multiply-adds a second, then 10^9 bytes a second of random rows from
// 512 KiB (a level-2 cache) and from 2304 KiB (one head of value at 800 x 1066).
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes), may_alias));

constexpr int kRowBytes = 128, kVectors = kRowBytes / kBytes;
volatile float sink = 0;

template <class F>
double best_seconds(const F& function) {
  double best = 1e9;
  for (int i = 0; i < 7; ++i) {
    auto start = std::chrono::steady_clock::now();
    function();
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return best;
}

double multiply_adds_per_second() {
  constexpr int chains = 10;
  const int64_t rounds = 20'000'000;
  double seconds = best_seconds([&] {
    Vector sums[chains] = {}, x = {}, y = {};
    x += sink + 1.0f, y += sink + 0.5f;
    for (int64_t i = 0; i < rounds; ++i) {
      for (int k = 0; k < chains; ++k) sums[k] = sums[k] * y + x;
      asm volatile("" : "+x"(y));  // or the compiler would solve the recurrence
    }
    for (int k = 1; k < chains; ++k) sums[0] += sums[k];
    sink = sums[0][0] * 0;
  });
  return rounds * chains * (kBytes / 4) / seconds;
}

double gathered_bytes_per_second(int64_t kibibytes) {
  const int64_t rows = kibibytes * 1024 / kRowBytes, count = 1 << 22;
  char* table = static_cast<char*>(aligned_alloc(kRowBytes, kibibytes * 1024));
  std::fill_n(table, kibibytes * 1024, 0);
  std::mt19937 generator(0);
  std::vector<int32_t> offsets(count);
  for (int32_t& offset : offsets) offset = generator() % rows * kRowBytes;
  double seconds = best_seconds([&] {
    Vector sums[4][kVectors] = {};
    for (int64_t i = 0; i < count; i += 4)
      for (int k = 0; k < 4; ++k)
        for (int v = 0; v < kVectors; ++v)
          sums[k][v] += *reinterpret_cast<const Vector*>(table + offsets[i + k] + v * kBytes);
    float sum = 0;
    for (int k = 0; k < 4; ++k)
      for (int v = 0; v < kVectors; ++v) sum += sums[k][v][0];
    sink = sum;
  });
  free(table);
  return count * (double)kRowBytes / seconds;
}

int main() {
  std::printf("%.1f %.1f %.1f\n", multiply_adds_per_second() / 1e9,
              gathered_bytes_per_second(512) / 1e9, gathered_bytes_per_second(2304) / 1e9);
}
