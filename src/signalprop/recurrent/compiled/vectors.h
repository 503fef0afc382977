// Vectors as wide as the machine's registers, and exp, sigmoid and tanh on them.
//
// GCC's and Clang's vector extension is all that is used: no header of torch or Python is read, so
// that this builds in seconds and serves every version of both.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define SIGNALPROP_BYTES 64
#elif defined(__AVX__)
#define SIGNALPROP_BYTES 32
#else
#define SIGNALPROP_BYTES 16
#endif

template <class S> struct Of;

template <> struct Of<float> {
  typedef float V __attribute__((vector_size(SIGNALPROP_BYTES)));
  typedef int32_t I __attribute__((vector_size(SIGNALPROP_BYTES)));
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: the sum's low bits are an integer
  static constexpr int fraction = 23, terms = 6;
  static constexpr float most = 87.0f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};

template <> struct Of<double> {
  typedef double V __attribute__((vector_size(SIGNALPROP_BYTES)));
  typedef int64_t I __attribute__((vector_size(SIGNALPROP_BYTES)));
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int fraction = 52, terms = 13;
  static constexpr double most = 708.0;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
};

template <class S> constexpr long lanes = SIGNALPROP_BYTES / sizeof(S);
template <class S> using Vec = typename Of<S>::V;

constexpr double inverse_factorial(int k) { return k < 2 ? 1.0 : inverse_factorial(k - 1) / k; }

template <class S> inline Vec<S> all(S x) { return Vec<S>{} + x; }

template <class S> inline Vec<S> load(const S* from, long count = lanes<S>) {
  Vec<S> v{};
  if (count >= lanes<S>) {
    std::memcpy(&v, from, sizeof(v));
  } else {
    std::memcpy(&v, from, count * sizeof(S));
  }
  return v;
}

template <class S> inline void store(S* to, Vec<S> v, long count = lanes<S>) {
  if (count >= lanes<S>) {
    std::memcpy(to, &v, sizeof(v));
  } else {
    std::memcpy(to, &v, count * sizeof(S));
  }
}

// exp x = 2^n exp r with n the nearest integer to x / ln 2 and |r| <= ln 2 / 2, exp r by its series.
// What would overflow is cut off; NaN stays NaN.
template <class S> inline Vec<S> exponential(Vec<S> x) {
  using V = Vec<S>;
  using I = typename Of<S>::I;
  const V most = all<S>(Of<S>::most);
  x = x > most ? most : x;
  x = x < -most ? -most : x;
  const V shifted = x * S(1.44269504088896340736) + Of<S>::magic;
  const V n = shifted - Of<S>::magic;
  const V r = (x - n * Of<S>::ln2_high) - n * Of<S>::ln2_low;
  V sum = all<S>(S(inverse_factorial(Of<S>::terms)));
  for (int k = Of<S>::terms - 1; k >= 0; --k) sum = sum * r + S(inverse_factorial(k));
  const I bits = (I)shifted << Of<S>::fraction;
  return (V)((I)sum + bits);
}

template <class S> inline Vec<S> sigmoid(Vec<S> x) { return S(1) / (S(1) + exponential<S>(-x)); }

template <class S> inline Vec<S> tanh_(Vec<S> x) {
  return S(1) - S(2) / (S(1) + exponential<S>(x + x));
}
