// The parts of CUDA that the kernels use, on the host, for tests without a GPU.
//
// The threads of a block are fibres that run one at a time and switch at a warp's collectives.
// Every collective checks that all lanes of its mask reach the same one; loads and atomic additions
// check their alignment. Blocks and threads can run in reverse order, to find code that depends on
// the order. It shows neither speed nor races between warps.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulated {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 << 10;

[[noreturn]] inline void fail(const char* reason) {
  std::fprintf(stderr, "emulated CUDA: %s\n", reason);
  std::abort();
}

template <typename T>
T* check_alignment(T* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(T)) fail("misaligned access");
  return pointer;
}

enum class Collective { kNone, kShuffle, kShuffleXor };

// Values that the lanes of a warp exchange. Two sets of slots alternate: a lane may reach the next
// collective while others still read the values of the last one.
struct Warp {
  unsigned arrived = 0;
  unsigned generation = 0;
  Collective collective = Collective::kNone;
  alignas(16) unsigned char slots[2][kWarp][16];
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool is_done;
};

struct Machine {
  dim3 grid, block, block_index;
  int thread;
  std::function<void()> body;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  bool is_reversed = false;  // the order of blocks and threads
};

inline Machine& machine() {
  static Machine machine;
  return machine;
}

inline void run_body() {
  machine().body();
  machine().fibres[machine().thread].is_done = true;
}

inline void prepare(Fibre& fibre) {
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.get();
  fibre.context.uc_stack.ss_size = kStackBytes;
  fibre.context.uc_link = &machine().scheduler;
  fibre.is_done = false;
  makecontext(&fibre.context, run_body, 0);
}

inline unsigned total_generation() {
  unsigned total = 0;
  for (const Warp& warp : machine().warps) total += warp.generation;
  return total;
}

// Lets each thread run until it waits; true if all have ended.
inline bool run_round(int threads) {
  Machine& m = machine();
  bool all_done = true;
  for (int i = 0; i < threads; ++i) {
    m.thread = m.is_reversed ? threads - 1 - i : i;
    Fibre& fibre = m.fibres[m.thread];
    if (fibre.is_done) continue;
    swapcontext(&m.scheduler, &fibre.context);
    all_done = all_done && fibre.is_done;
  }
  return all_done;
}

inline void run_block() {
  Machine& m = machine();
  int threads = m.block.x;
  if (threads % kWarp) fail("a block must be made of whole warps");
  while (static_cast<int>(m.fibres.size()) < threads) m.fibres.emplace_back();
  m.warps.assign(threads / kWarp, Warp());
  for (int i = 0; i < threads; ++i) prepare(m.fibres[i]);
  for (unsigned before = 0;; before = total_generation()) {
    if (run_round(threads)) break;
    if (before == total_generation()) fail("some lanes never came to a collective");
  }
  for (const Warp& warp : m.warps) {
    if (warp.arrived) fail("some lanes ended where others had a collective");
  }
}

inline void run_grid() {
  Machine& m = machine();
  int64_t blocks = int64_t(m.grid.x) * m.grid.y;
  for (int64_t i = 0; i < blocks; ++i) {
    int64_t block = m.is_reversed ? blocks - 1 - i : i;
    m.block_index = dim3(block % m.grid.x, block / m.grid.x);
    run_block();
  }
}

// Waits for all lanes with `number` and returns that of lane `source`, counted within `width`.
template <typename T>
T exchange(unsigned mask, T number, Collective collective, int source, int width) {
  static_assert(sizeof(T) <= 16);
  Machine& m = machine();
  Warp& warp = m.warps[m.thread / kWarp];
  int lane = m.thread % kWarp, self = m.thread;
  if (mask != 0xffffffffu) fail("a collective does not name the whole warp");
  if (source < 0 || source >= width) fail("a lane outside its group is asked for");
  if (warp.arrived && warp.collective != collective) fail("lanes came to different collectives");
  warp.collective = collective;
  unsigned generation = warp.generation;
  auto slots = warp.slots[generation % 2];
  std::memcpy(slots[lane], &number, sizeof(T));
  warp.arrived |= 1u << lane;
  if (warp.arrived == mask) {
    warp.arrived = 0;
    ++warp.generation;
  }
  while (warp.generation == generation) {
    swapcontext(&m.fibres[self].context, &m.scheduler);
  }
  std::memcpy(&number, slots[lane / width * width + source], sizeof(T));
  return number;
}

}  // namespace emulated

// Objects and not macros: a launch's configuration has members of the same names.
struct ThreadIndex {
  struct {
    operator unsigned() const { return emulated::machine().thread; }
  } x;
};
inline const ThreadIndex threadIdx{};
inline dim3& blockIdx = emulated::machine().block_index;
inline dim3& blockDim = emulated::machine().block;
inline dim3& gridDim = emulated::machine().grid;

template <typename T>
T __shfl_sync(unsigned mask, T number, int source, int width = 32) {
  return emulated::exchange(mask, number, emulated::Collective::kShuffle, source, width);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T number, int distance, int width = 32) {
  int source = (emulated::machine().thread % width) ^ distance;
  return emulated::exchange(mask, number, emulated::Collective::kShuffleXor, source, width);
}

template <typename T>
T __ldg(const T* source) {
  return *emulated::check_alignment(source);
}

template <typename T>
T atomicAdd(T* target, T number) {
  T before = *emulated::check_alignment(target);
  *target += number;
  return before;
}

inline float4 atomicAdd(float4* target, float4 number) {
  float4 before = *emulated::check_alignment(target);
  *target = {before.x + number.x, before.y + number.y, before.z + number.z, before.w + number.w};
  return before;
}

inline unsigned atomicMax(unsigned* target, unsigned number) {
  unsigned before = *emulated::check_alignment(target);
  if (number > before) *target = number;
  return before;
}

inline unsigned __float_as_uint(float number) {
  unsigned bits;
  std::memcpy(&bits, &number, 4);
  return bits;
}
inline int __double2hiint(double number) {
  int64_t bits;
  std::memcpy(&bits, &number, 8);
  return static_cast<int>(bits >> 32);
}
inline int __clzll(long long number) { return number ? __builtin_clzll(number) : 64; }
inline long long __float2ll_rn(float number) { return llrintf(number); }
inline long long __double2ll_rn(double number) { return llrint(number); }

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "emulated CUDA failed"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

template <typename... Parameters, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Given&&... given) {
  emulated::Machine& m = emulated::machine();
  m.grid = config->gridDim;
  m.block = config->blockDim;
  m.body = [&] { kernel(given...); };
  emulated::run_grid();
  return cudaSuccess;
}
