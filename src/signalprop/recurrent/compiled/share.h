// How the threads part the work of all steps, and the loop over a step's blocks.
#pragma once

#include "products.h"

#ifdef _OPENMP
#include <omp.h>
#endif

// A weight up to this size stays in a core's own cache: then every thread has rows of its own and
// runs through all steps without waiting. Of a larger one every thread has columns of its own, and
// waits for the others at every step.
constexpr long STAYS = 1 << 20;

struct Share {
  long first, last;  // rows
  int part, parts;   // of the panels

  void wait() const {
#ifdef _OPENMP
    if (parts > 1) {
#pragma omp barrier
    }
#endif
  }
};

// f(share) on every thread, of no more threads than `weights` (of one row and step) keep busy
template <class F>
void spread(int threads, long steps, long rows, long weights, long size, F f) {
#ifdef _OPENMP
  const bool by_rows = weights * size <= STAYS && rows >= 4 * threads;
  const long work = rows * weights * (by_rows ? steps : 1) >> 16;
  if (work < threads) threads = int(work);
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int own = omp_get_thread_num(), of = omp_get_num_threads();
      f(by_rows ? Share{rows * own / of, rows * (own + 1) / of, 0, 1} : Share{0, rows, own, of});
    }
    return;
  }
#endif
  f(Share{0, rows, 0, 1});
}

// f(panel, first row, rows) for every block of this share at step t: all rows of a panel before the
// next, blocks as equal as they can be. Every other step runs through the panels from behind, where
// the cache still holds what the step before has read last.
template <class F> inline void blocks(const Share& share, long t, long panels, F f) {
  const long rows = share.last - share.first, pieces = (rows + ROWS - 1) / ROWS;
  const long low = panels * share.part / share.parts, high = panels * (share.part + 1) / share.parts;
  for (long k = low; k < high; ++k)
    for (long i = 0; i < pieces; ++i) {
      const long p = t & 1 ? low + high - 1 - k : k;
      const long first = rows * i / pieces;
      f(p, share.first + first, int(rows * (i + 1) / pieces - first));
    }
}

// Does this sequence still go on at this step?
inline bool on(const uint8_t* mask, long row) { return !mask || mask[row]; }

// Strides of the gradient that arrives, whose last dimension is dense.
struct Given {
  const void* at;
  long step, row;
  template <class S> const S* operator()(long t, long r) const {
    return static_cast<const S*>(at) + t * step + r * row;
  }
};
