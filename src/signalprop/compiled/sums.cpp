// Sums over float32 tensors in one pass through memory, added in double, for ctypes.
//
// What such a sum costs is the reading, so all that is asked of an element is asked while it is
// here. GCC's and Clang's vector extension is all that is used.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(64)));
constexpr long LANES = 8;
constexpr long PIECE = 1 << 15;  // elements that a thread takes at a time, and two such at least

template <class V, class S> static inline V load(const S* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class V, class S> static inline void store(S* to, V v) { std::memcpy(to, &v, sizeof(v)); }

static inline Doubles wide(Floats x) { return __builtin_convertvector(x, Doubles); }
static inline Doubles at(const float* from) { return wide(load<Floats>(from)); }

// A sum in several parts, so that one addition need not wait for the other
template <int N> struct Sum {
  Doubles parts[N] = {};
  double rest = 0;
  double total() const {
    Doubles all{};
    for (int i = 0; i < N; ++i) all += parts[i];
    double sum = rest;
    for (long i = 0; i < LANES; ++i) sum += all[i];
    return sum;
  }
};

static double squares(long size, const float* x) {
  Sum<4> sum;
  long i = 0;
  for (; i + 4 * LANES <= size; i += 4 * LANES)
    for (int k = 0; k < 4; ++k) {
      const Doubles v = at(x + i + k * LANES);
      sum.parts[k] += v * v;
    }
  for (; i < size; ++i) sum.rest += double(x[i]) * x[i];
  return sum.total();
}

// Adds to counts (size,) where x is outside; the sum of squares of x besides
static void row_of_units(long size, const float* x, float low, float high, int32_t* counts,
                         Sum<2>& sum) {
  long i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES)
    for (int k = 0; k < 2; ++k) {
      const Floats v = load<Floats>(x + i + k * LANES);
      int32_t* to = counts + i + k * LANES;
      store(to, load<Ints>(to) - ((v > high) | (v < low)));
      sum.parts[k] += wide(v) * wide(v);
    }
  for (; i < size; ++i) {
    counts[i] += (x[i] > high) | (x[i] < low);
    sum.rest += double(x[i]) * x[i];
  }
}

// How many values of one unit are outside; the sum of squares of x besides
static int32_t values_of_unit(long size, const float* x, float low, float high, Sum<2>& sum) {
  Ints found[2] = {};
  int32_t count = 0;
  long i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES)
    for (int k = 0; k < 2; ++k) {
      const Floats v = load<Floats>(x + i + k * LANES);
      found[k] -= (v > high) | (v < low);
      sum.parts[k] += wide(v) * wide(v);
    }
  for (; i < size; ++i) {
    count += (x[i] > high) | (x[i] < low);
    sum.rest += double(x[i]) * x[i];
  }
  for (long lane = 0; lane < LANES; ++lane) count += found[0][lane] + found[1][lane];
  return count;
}

// Where one parameter's tensors are
struct Before {
  const float *weight, *gradient, *earlier;
  float* copy;
};

template <bool COMPARED> static void before(long size, const Before& row, double* out) {
  Sum<2> w, g, e, ge;
  long i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES)
    for (int k = 0; k < 2; ++k) {
      const long j = i + k * LANES;
      const Floats weight = load<Floats>(row.weight + j);
      const Doubles x = wide(weight), y = at(row.gradient + j);
      store(row.copy + j, weight);
      w.parts[k] += x * x;
      g.parts[k] += y * y;
      if (COMPARED) {
        const Doubles z = at(row.earlier + j);
        e.parts[k] += z * z;
        ge.parts[k] += y * z;
      }
    }
  for (; i < size; ++i) {
    const double x = row.copy[i] = row.weight[i], y = row.gradient[i];
    w.rest += x * x;
    g.rest += y * y;
    if (COMPARED) {
      const double z = row.earlier[i];
      e.rest += z * z;
      ge.rest += y * z;
    }
  }
  out[0] = w.total(), out[1] = g.total(), out[2] = e.total(), out[3] = ge.total();
}

struct After {
  const float *copy, *weight, *gradient;
};

static void after(long size, const After& row, double* out) {
  Sum<2> change, decrease;
  long i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES)
    for (int k = 0; k < 2; ++k) {
      const long j = i + k * LANES;
      const Doubles d = at(row.copy + j) - at(row.weight + j);
      change.parts[k] += d * d;
      decrease.parts[k] += d * at(row.gradient + j);
    }
  for (; i < size; ++i) {
    const double d = double(row.copy[i]) - row.weight[i];
    change.rest += d * d;
    decrease.rest += d * row.gradient[i];
  }
  out[0] = change.total(), out[1] = decrease.total();
}

static Before moved(const Before& row, long by) {
  const float* earlier = row.earlier ? row.earlier + by : nullptr;
  return {row.weight + by, row.gradient + by, earlier, row.copy + by};
}

static After moved(const After& row, long by) {
  return {row.copy + by, row.weight + by, row.gradient + by};
}

static const float* moved(const float* row, long by) { return row + by; }

// f of every piece of every row, the pieces of a row added in their order
template <int N, class Row, class F>
static void of_all(int threads, long count, const long* sizes, const Row* rows, double* out, F f) {
  struct Piece {
    long row, first, size;
    double sums[N];
  };
  std::vector<Piece> pieces;
  for (long k = 0; k < count; ++k)
    for (long first = 0; first < sizes[k]; first += PIECE)
      pieces.push_back({k, first, sizes[k] - first < PIECE ? sizes[k] - first : PIECE, {}});
  const long all = long(pieces.size());
  if (all < 2 * threads) threads = 1;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
#endif
  for (long p = 0; p < all; ++p)
    f(pieces[p].size, moved(rows[pieces[p].row], pieces[p].first), pieces[p].sums);
  std::memset(out, 0, count * N * sizeof(double));
  for (const Piece& piece : pieces)
    for (int i = 0; i < N; ++i) out[piece.row * N + i] += piece.sums[i];
}

// Sum of squares of x.
extern "C" double square_sum(int threads, long size, const float* x) {
  double sum;
  of_all<1>(threads, 1, &size, &x, &sum,
            [](long count, const float* row, double* out) { *out = squares(count, row); });
  return sum;
}

// Sum of squares of x (outer, units, inner), and of every unit how many values are above one bound
// or below the other. Every thread has units of its own.
extern "C" double count_units(int threads, long outer, long units, long inner, const float* x,
                              double below, double above, int32_t* counts) {
  const float low = float(below), high = float(above);
  const long most = outer * units * inner / (2 * PIECE), parts = threads < most ? threads : most;
  std::vector<Sum<2>> sums(parts > 1 ? parts : 1);
  const long all = long(sums.size());
  std::memset(counts, 0, units * sizeof(int32_t));
#ifdef _OPENMP
#pragma omp parallel for num_threads(int(all)) if (all > 1)
#endif
  for (long p = 0; p < all; ++p) {
    const long first = units * p / all, last = units * (p + 1) / all;
    Sum<2> sum;
    for (long o = 0; o < outer; ++o) {
      const float* row = x + o * units * inner;
      if (inner == 1) row_of_units(last - first, row + first, low, high, counts + first, sum);
      else
        for (long u = first; u < last; ++u)
          counts[u] += values_of_unit(inner, row + u * inner, low, high, sum);
    }
    sums[p] = sum;
  }
  double sum = 0;
  for (const auto& part : sums) sum += part.total();
  return sum;
}

// Of every parameter the sums of w^2, g^2, e^2 and g e; its weights are copied. e may be missing.
extern "C" void before_update(int threads, long count, const long* sizes, const Before* rows,
                              double* out) {
  of_all<4>(threads, count, sizes, rows, out, [](long size, const Before& row, double* sums) {
    row.earlier ? before<true>(size, row, sums) : before<false>(size, row, sums);
  });
}

// Of every parameter the sums of d^2 and g d with d = copy - w.
extern "C" void after_update(int threads, long count, const long* sizes, const After* rows,
                             double* out) {
  of_all<2>(threads, count, sizes, rows, out, after);
}

// Of every tensor the root mean square of `runs` runs of `run` elements, spread evenly over it, or
// of all where they are no more; inf where it is not finite, NaN where there is no tensor.
extern "C" void glance(long count, const long* sizes, const float* const* rows, long runs, long run,
                       double* out) {
  constexpr long AHEAD = 4;  // tensors: every run is a line of the cache that has to come from afar
  constexpr long LINE = 16;
  const auto stride = [=](long k) {
    return sizes[k] > runs * run ? (sizes[k] - run) / (runs - 1) / LINE * LINE : run;
  };
  for (long k = -AHEAD; k < count; ++k) {
    const long next = k + AHEAD;
    if (next < count && rows[next])
      for (long i = 0; i < runs && i * stride(next) < sizes[next]; ++i)
        __builtin_prefetch(rows[next] + i * stride(next));
    if (k < 0) continue;
    const long size = sizes[k] < runs * run ? sizes[k] : runs * run;
    double sum = 0;
    if (!rows[k]) out[k] = NAN;
    else {
      if (size < runs * run) sum = squares(size, rows[k]);
      else
        for (long i = 0; i < runs; ++i) sum += squares(run, rows[k] + i * stride(k));
      const double found = std::sqrt(sum / size);
      out[k] = std::isfinite(found) ? found : INFINITY;
    }
  }
}
