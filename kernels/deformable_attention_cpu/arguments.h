// Arguments of the operators as pointers and numbers, and the functions of each instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace deformable_attention {

// Position of a level in memory, and its size in the type of the arithmetic.
template <class T>
struct Level {
  T width, height;
  int32_t row;     // pixels from one row to the next
  int32_t origin;  // of pixel (0, 0)
  int32_t zeros;   // a pixel that is zero like its neighbours right, below and right below
};

// Pointers to contiguous tensors, shapes as in torch-ext/attention_sizes.h; T is float or double.
template <class T>
struct Arguments {
  int64_t batch, queries, tokens, heads, width, levels, points;
  int64_t coordinates;  // of a reference; 0: `points_xy` are locations, `weights` are weights

  const T* value;
  const T* references;
  const T* points_xy;
  const T* weights;
  T* output;

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
template <class T>
struct Functions {
  void (*fill_table)(const Arguments<T>&, int64_t begin, int64_t end);       // items
  void (*forward)(const Arguments<T>&, int64_t begin, int64_t end);          // items * Q
  void (*backward)(const Arguments<T>&, int64_t begin, int64_t end);         // parts * items
  void (*read_grad_table)(const Arguments<T>&, int64_t begin, int64_t end);  // items
};

template <class T>
Functions<T> portable_functions();
template <class T>
Functions<T> avx2_functions();
template <class T>
Functions<T> avx512_functions();

}  // namespace deformable_attention
