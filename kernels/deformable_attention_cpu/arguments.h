// Arguments of the operators as pointers and numbers, and the functions of each instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace deformable_attention {

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;

  operator float() const {
    uint32_t all = (uint32_t)bits << 16;
    float number;
    std::memcpy(&number, &all, sizeof number);
    return number;
  }
};

// Position of a level in memory, and its size in the type of the arithmetic.
template <class T>
struct Level {
  T width, height;
  int32_t row;     // pixels from one row to the next
  int32_t origin;  // of pixel (0, 0)
  int32_t zeros;   // a pixel that is zero like its neighbours right, below and right below
};

// Pointers to contiguous tensors, shapes as in torch-ext/attention_sizes.h. T is the type of the
// arithmetic, float or double; S is that of the forward pass's tensors, T or BFloat16.
template <class T, class S = T>
struct Arguments {
  int64_t batch, queries, tokens, heads, width, levels, points;
  int64_t coordinates;  // of a reference; 0: `points_xy` are locations, `weights` are weights

  const S* value;
  const T* references;
  const S* points_xy;
  const S* weights;
  S* output;

  const T* grad;
  T* grad_value;
  T* grad_references;  // (B, M, Q, L, coordinates), or null
  T* grad_points_xy;
  T* grad_weights;

  // A table contains a head's pixels one after another, with zeros around each level. Without a
  // table, pixels are read from value. Tables hold some items (an item is b * M + m) at a time.
  bool has_table;
  int64_t table_pixels;  // of one head
  int64_t first, items;  // first of the current items, and their number
  int64_t parts;         // of the queries in the backward pass, each with its own sums
  T* table;              // (items, table_pixels, C)
  T* grad_table;         // (parts, items, table_pixels, C)
  std::vector<Level<T>> level;
};

// Each function processes [begin, end) of the range in its comment; ranges may run in parallel.
template <class T, class S = T>
using Function = void (*)(const Arguments<T, S>&, int64_t begin, int64_t end);

template <class T, class S = T>
struct Functions {
  Function<T, S> fill_table;    // items
  Function<T, S> forward;       // items * Q
  Function<T> backward;         // parts * items; this and the next are null if S isn't T
  Function<T> read_grad_table;  // items
};

template <class T, class S>
Functions<T, S> portable_functions();
template <class T, class S>
Functions<T, S> avx2_functions();
template <class T, class S>
Functions<T, S> avx512_functions();

}  // namespace deformable_attention
