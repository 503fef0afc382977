// GRU: r, z = sigmoid, n = tanh(pre + r own); h' = (1 - z) n + z h, own = W_hn h + b_hn
#pragma once

#include "share.h"

// gates (T, B, 3 H) hold W_ih x + b_ih and are overwritten; inner (T, B, H) gets `own`; outputs
// (T + 1, B, H) hold the first state. b_hh (3 H) may be missing.
template <class S>
bool gru_forward(int threads, long T, long B, long H, S* gates, const S* w_hh, const S* b_hh,
                 const uint8_t* mask, S* inner, S* outputs) {
  using V = Vec<S>;
  constexpr long L = lanes<S>;
  const Packed<S> hh(w_hh, H, H, 1, H, 3);
  if (!hh.ok()) return false;
  spread(threads, T, B, 3 * H * H, sizeof(S), [&](const Share& share) {
    for (long t = 0; t < T; ++t) {
      S *a = gates + t * B * 3 * H, *h = outputs + t * B * H;
      blocks(share, t, hh.panels, [&](long p, long first, int rows) {
        const long u = hh.first(p), n = H - u < L ? H - u : L;
        V sums[ROWS * 3], bias[3] = {};
        for (int k = 0; b_hh && k < 3; ++k) bias[k] = load(b_hh + k * H + u, n);
        for (int r = 0; r < rows; ++r) {
          const S* from = a + (first + r) * 3 * H + u;
          sums[r * 3] = bias[0] + load(from, n);
          sums[r * 3 + 1] = bias[1] + load(from + H, n);
          sums[r * 3 + 2] = bias[2];
        }
        multiply<S>(3, rows, h + first * H, H, H, hh.panel(p), sums);
        for (int r = 0; r < rows; ++r) {
          const long row = first + r, at = row * H + u;
          S* to = a + row * 3 * H + u;
          const V own = sums[r * 3 + 2], reset = sigmoid<S>(sums[r * 3]);
          const V z = sigmoid<S>(sums[r * 3 + 1]), before = load(h + at, n);
          const V made = tanh_<S>(load(to + 2 * H, n) + reset * own);
          store(to, reset, n), store(to + H, z, n), store(to + 2 * H, made, n);
          store(inner + t * B * H + at, own, n);
          const V next = made + z * (before - made);
          store(h + B * H + at, on(mask, t * B + row) ? next : before, n);
        }
      });
      share.wait();
    }
  });
  return true;
}

// dpre (T, B, 3 H) and found (T, B, H) are written, and dn (T, B, H): what reaches `own`. dh holds
// the gradient of the last state and gets that of the first.
template <class S>
bool gru_backward(int threads, long T, long B, long H, Given given, const S* w_hh,
                  const uint8_t* mask, const S* gates, const S* inner, const S* outputs, S* dpre,
                  S* dn, S* found, S* dh) {
  using V = Vec<S>;
  constexpr long L = lanes<S>;
  const Packed<S> hh(w_hh, 3 * H, H, H, 1);
  if (!hh.ok()) return false;
  spread(threads, T, B, 3 * H * H, sizeof(S), [&](const Share& share) {
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
            if (t == T - 1) {
              sum = load(dh + row * H + u, n);
            } else {
              sum = load(found + later * H + u, n);
              if (on(mask, later)) sum *= load(gates + later * 3 * H + H + u, n);
            }
            if (t >= 0) sum += load(given.operator()<S>(t, row) + u, n);
          }
        if (t < T - 1) {
          const long later = (t + 1) * B + first;
          const S* panel = hh.panel(p);
          multiply<S>(hh.wide, rows, dpre + later * 3 * H, 3 * H, 2 * H, panel, sums);
          panel += 2 * H * hh.wide * L;
          multiply<S>(hh.wide, rows, dn + later * H, H, H, panel, sums);
        }
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hh.wide; ++v) {
            const long row = first + r, u = hh.first(p) + v * L;
            if (u >= H) break;
            const long n = H - u < L ? H - u : L, at = (t * B + row) * H + u;
            const V here = sums[r * hh.wide + v];
            store(t < 0 ? dh + row * H + u : found + at, here, n);
            if (t < 0) continue;
            S* to = dpre + (t * B + row) * 3 * H + u;
            if (!on(mask, t * B + row)) {
              store(to, V{}, n), store(to + H, V{}, n), store(to + 2 * H, V{}, n);
              store(dn + at, V{}, n);
              continue;
            }
            const S* from = gates + (t * B + row) * 3 * H + u;
            const V reset = load(from, n), z = load(from + H, n), made = load(from + 2 * H, n);
            const V down = here * (1 - z) * (1 - made * made);
            store(to, down * load(inner + at, n) * (reset - reset * reset), n);
            store(to + H, here * (load(outputs + at, n) - made) * (z - z * z), n);
            store(to + 2 * H, down, n);
            store(dn + at, down * reset, n);
          }
      });
      share.wait();
    }
  });
  return true;
}
