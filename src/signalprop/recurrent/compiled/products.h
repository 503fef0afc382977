// x W for a W that stays the same over many small products: packed once, then multiplied block by
// block with every sum of a block held in registers.
#pragma once

#include <cstdlib>
#include <memory>

#include "vectors.h"

#if defined(__AVX512F__)
constexpr int ROWS = 6;  // 6 x 4 sums fill three quarters of 32 registers
#else
constexpr int ROWS = 3;  // 3 x 4 of 16
#endif
constexpr int WIDE = 4;

// sums[rows][wide] += x[rows, depth] panel[depth][wide]
template <class S, int M, int N>
void block(const S* x, long stride, long depth, const S* panel, Vec<S>* sums) {
  Vec<S> own[M * N];
  // unrolled before anything else is done, else the sums go through memory twice
#pragma GCC unroll 32
  for (int i = 0; i < M * N; ++i) own[i] = sums[i];
  const Vec<S>* weights = reinterpret_cast<const Vec<S>*>(panel);
  for (long k = 0; k < depth; ++k, weights += N) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const S one = x[m * stride + k];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) own[m * N + n] += weights[n] * one;
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < M * N; ++i) sums[i] = own[i];
}

template <class S, int N>
void rows_of(int rows, const S* x, long stride, long depth, const S* panel, Vec<S>* sums) {
  switch (rows) {
    case 1: return block<S, 1, N>(x, stride, depth, panel, sums);
    case 2: return block<S, 2, N>(x, stride, depth, panel, sums);
    case 3: return block<S, 3, N>(x, stride, depth, panel, sums);
#if defined(__AVX512F__)
    case 4: return block<S, 4, N>(x, stride, depth, panel, sums);
    case 5: return block<S, 5, N>(x, stride, depth, panel, sums);
    case 6: return block<S, 6, N>(x, stride, depth, panel, sums);
#endif
  }
}

template <class S>
void multiply(int wide, int rows, const S* x, long stride, long depth, const S* panel, Vec<S>* sums) {
  switch (wide) {
    case 1: return rows_of<S, 1>(rows, x, stride, depth, panel, sums);
    case 2: return rows_of<S, 2>(rows, x, stride, depth, panel, sums);
    case 3: return rows_of<S, 3>(rows, x, stride, depth, panel, sums);
    case 4: return rows_of<S, 4>(rows, x, stride, depth, panel, sums);
  }
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <class S> std::unique_ptr<S, Free> aligned(long count) {
  const size_t bytes = (count * sizeof(S) + 63) / 64 * 64 + 64;
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes)) p = nullptr;
  return std::unique_ptr<S, Free>(static_cast<S*>(p));
}

// Columns of a weight (depth, count) in panels of `wide` vectors; W[k, j] lies at w[k * down + j *
// right]. With groups = G the columns are G blocks of `count` (a gate each), of which a panel holds
// the same vector of each.
template <class S> class Packed {
 public:
  long depth, count, panels, step;
  int wide, groups;

  Packed(const S* w, long depth, long count, long down, long right, int groups = 1)
      : depth(depth), count(count), groups(groups) {
    const long L = lanes<S>, vectors = (count + L - 1) / L;
    wide = groups > 1 ? groups : int(vectors < 1 ? 1 : vectors < WIDE ? vectors : WIDE);
    const long each = groups > 1 ? 1 : wide;  // vectors of columns in a panel
    panels = (vectors + each - 1) / each;
    columns_ = each * L;
    step = depth * wide * L;
    own_ = aligned<S>(panels * step);
    if (!own_) return;
    S* to = own_.get();
    for (long p = 0; p < panels; ++p)
      for (long k = 0; k < depth; ++k)
        for (int n = 0; n < wide; ++n) {
          const long first = p * columns_ + (groups > 1 ? 0 : n * L);
          const S* from = w + k * down + (groups > 1 ? n * count * right : 0);
          for (long l = 0; l < L; ++l) {
            const long j = first + l;
            *to++ = j < count ? from[j * right] : S(0);
          }
        }
  }

  bool ok() const { return own_ != nullptr; }
  const S* panel(long p) const { return own_.get() + p * step; }
  long first(long p) const { return p * columns_; }  // its first column

 private:
  long columns_;
  std::unique_ptr<S, Free> own_;
};
