// One call of the operator on plain memory, and the functions that each instruction set offers.
#pragma once

#include <cstdint>
#include <vector>

namespace deformable_attention {

// Where a level lies in memory, and its size as numbers to multiply with.
template <class T>
struct Level {
  T width, height;
  int32_t row;     // pixels from one row to the next
  int32_t origin;  // of pixel (0, 0)
  int32_t zeros;   // a pixel that is zero like its neighbours right, below and right below
};

// Pointers to contiguous tensors, shapes as in torch-ext/problem.h; T is float or double.
template <class T>
struct Call {
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

  // With a table, a head's pixels lie one after another with zeros around each level; else they
  // lie as in value. Tables hold some items (an item is b * M + m) at a time.
  bool has_table;
  int64_t table_pixels;  // of one head
  int64_t first, items;  // of the items that are worked on
  int64_t parts;         // of the queries in the backward pass, each with sums of its own
  T* table;              // (items, table_pixels, C)
  T* grad_table;         // (parts, items, table_pixels, C)
  std::vector<Level<T>> level;
};

// Each function works on [begin, end) of what it counts, parts of which may run at the same time.
template <class T>
struct Functions {
  void (*fill_table)(const Call<T>&, int64_t begin, int64_t end);       // items
  void (*forward)(const Call<T>&, int64_t begin, int64_t end);          // items * Q
  void (*backward)(const Call<T>&, int64_t begin, int64_t end);         // parts * items
  void (*read_grad_table)(const Call<T>&, int64_t begin, int64_t end);  // items
};

template <class T>
Functions<T> portable_functions();
template <class T>
Functions<T> avx2_functions();
template <class T>
Functions<T> avx512_functions();

}  // namespace deformable_attention
