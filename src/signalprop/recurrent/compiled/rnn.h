// Plain recurrent net: h' = tanh or ReLU of pre + W_hh h
#pragma once

#include "share.h"

// outputs (T + 1, B, H) hold the first state and then W_ih x + b, which is overwritten.
template <class S>
bool rnn_forward(int threads, long T, long B, long H, int relu, const S* w_hh, const uint8_t* mask,
                 S* outputs) {
  using V = Vec<S>;
  constexpr long L = lanes<S>;
  const Packed<S> hh(w_hh, H, H, 1, H);
  if (!hh.ok()) return false;
  spread(threads, T, B, H * H, sizeof(S), [&](const Share& share) {
    for (long t = 0; t < T; ++t) {
      S *h = outputs + t * B * H, *next = h + B * H;
      blocks(share, t, hh.panels, [&](long p, long first, int rows) {
        V sums[ROWS * WIDE];
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hh.wide; ++v) {
            const long u = hh.first(p) + v * L;
            V& sum = sums[r * hh.wide + v];
            sum = u < H ? load(next + (first + r) * H + u, H - u < L ? H - u : L) : V{};
          }
        multiply<S>(hh.wide, rows, h + first * H, H, H, hh.panel(p), sums);
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hh.wide; ++v) {
            const long u = hh.first(p) + v * L, at = (first + r) * H + u;
            if (u >= H) break;
            const long n = H - u < L ? H - u : L;
            const V sum = sums[r * hh.wide + v];
            const V made = relu ? (sum <= V{} ? V{} : sum) : tanh_<S>(sum);  // NaN stays
            store(next + at, on(mask, t * B + first + r) ? made : load(h + at, n), n);
          }
      });
      share.wait();
    }
  });
  return true;
}

// dpre and found (T, B, H) are written. dh holds the gradient of the last state and gets that of
// the first.
template <class S>
bool rnn_backward(int threads, long T, long B, long H, int relu, Given given, const S* w_hh,
                  const uint8_t* mask, const S* outputs, S* dpre, S* found, S* dh) {
  using V = Vec<S>;
  constexpr long L = lanes<S>;
  const Packed<S> hh(w_hh, H, H, H, 1);
  if (!hh.ok()) return false;
  spread(threads, T, B, H * H, sizeof(S), [&](const Share& share) {
    for (long t = T - 1; t >= -1; --t) {
      blocks(share, t, hh.panels, [&](long p, long first, int rows) {
        V sums[ROWS * WIDE];
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hh.wide; ++v) {
            const long row = first + r, u = hh.first(p) + v * L, later = (t + 1) * B + row;
            V& sum = sums[r * hh.wide + v];
            sum = V{};
            if (u >= H) continue;
            const long n = H - u < L ? H - u : L;
            if (t == T - 1) sum = load(dh + row * H + u, n);
            else if (!on(mask, later)) sum = load(found + later * H + u, n);
            if (t >= 0) sum += load(given.operator()<S>(t, row) + u, n);
          }
        if (t < T - 1) {
          multiply<S>(hh.wide, rows, dpre + ((t + 1) * B + first) * H, H, H, hh.panel(p), sums);
        }
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hh.wide; ++v) {
            const long row = first + r, u = hh.first(p) + v * L, at = (t * B + row) * H + u;
            if (u >= H) break;
            const long n = H - u < L ? H - u : L;
            const V here = sums[r * hh.wide + v];
            store(t < 0 ? dh + row * H + u : found + at, here, n);
            if (t < 0) continue;
            const V after = load(outputs + B * H + at, n);
            const V through = relu ? (after > V{} ? here : V{}) : here * (1 - after * after);
            store(dpre + at, on(mask, t * B + row) ? through : V{}, n);
          }
      });
      share.wait();
    }
  });
  return true;
}
