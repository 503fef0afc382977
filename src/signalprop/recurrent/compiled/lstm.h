// LSTM: i, f, o = sigmoid, g = tanh; c' = f c + i g; h' = o tanh c', or W_hr (o tanh c')
#pragma once

#include "share.h"

// gates (T, B, 4 H) hold W_ih x and are overwritten; bias (4 H), or none, is added here, where it takes
// no pass of its own; cells (T + 1, B, H) and outputs (T + 1, B, P) hold the first states. Returns false
// where there is no memory.
template <class S>
bool lstm_forward(int threads, long T, long B, long H, long P, S* gates, const S* bias,
                  const S* w_hh, const S* w_hr, const uint8_t* mask, S* cells, S* outputs) {
  using V = Vec<S>;
  constexpr long L = lanes<S>;
  const Packed<S> hh(w_hh, P, H, 1, P, 4);
  const Packed<S> hr(w_hr, w_hr ? H : 0, w_hr ? P : 0, 1, H);
  const auto made = aligned<S>(w_hr ? B * H : 0);
  if (!hh.ok() || !hr.ok() || !made) return false;
  spread(threads, T, B, 4 * H * P, sizeof(S), [&](const Share& share) {
    for (long t = 0; t < T; ++t) {
      S *z = gates + t * B * 4 * H, *c = cells + t * B * H, *h = outputs + t * B * P;
      const uint8_t* going = mask ? mask + t * B : nullptr;
      blocks(share, t, hh.panels, [&](long p, long first, int rows) {
        const long u = hh.first(p), n = H - u < L ? H - u : L;
        V sums[ROWS * 4];
        for (int k = 0; k < 4; ++k) {
          const V shift = bias ? load(bias + k * H + u, n) : V{};
          for (int r = 0; r < rows; ++r)
            sums[r * 4 + k] = load(z + (first + r) * 4 * H + k * H + u, n) + shift;
        }
        multiply<S>(4, rows, h + first * P, P, P, hh.panel(p), sums);
        for (int r = 0; r < rows; ++r) {
          const long row = first + r, at = row * H + u;
          const V i = sigmoid<S>(sums[r * 4]), f = sigmoid<S>(sums[r * 4 + 1]);
          const V g = tanh_<S>(sums[r * 4 + 2]), o = sigmoid<S>(sums[r * 4 + 3]);
          S* to = z + row * 4 * H + u;
          store(to, i, n), store(to + H, f, n), store(to + 2 * H, g, n), store(to + 3 * H, o, n);
          const V before = load(c + at, n);
          const V next = f * before + i * g, out = o * tanh_<S>(next);
          const bool ends = !on(going, row);
          store(c + B * H + at, ends ? before : next, n);
          if (w_hr) {
            store(made.get() + at, out, n);
          } else {
            store(h + B * H + at, ends ? load(h + at, n) : out, n);
          }
        }
      });
      share.wait();
      if (!w_hr) continue;
      blocks(share, t, hr.panels, [&](long p, long first, int rows) {
        V sums[ROWS * WIDE] = {};
        multiply<S>(hr.wide, rows, made.get() + first * H, H, H, hr.panel(p), sums);
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hr.wide; ++v) {
            const long u = hr.first(p) + v * L, at = (first + r) * P + u;
            if (u >= P) break;
            const long n = P - u < L ? P - u : L;
            store(h + B * P + at, on(going, first + r) ? sums[r * hr.wide + v] : load(h + at, n), n);
          }
      });
      share.wait();
    }
  });
  return true;
}

// dh and dc hold the gradients of the last states and get those of the first; dgates (T, B, 4 H),
// found_h (T, B, P) and found_c (T, B, H) are written.
template <class S>
bool lstm_backward(int threads, long T, long B, long H, long P, Given given, const S* w_hh,
                   const S* w_hr, const uint8_t* mask, const S* gates, const S* cells, S* dgates,
                   S* found_h, S* found_c, S* dh, S* dc) {
  using V = Vec<S>;
  constexpr long L = lanes<S>;
  const Packed<S> hh(w_hh, 4 * H, P, P, 1);
  const Packed<S> hr(w_hr, w_hr ? P : 0, w_hr ? H : 0, H, 1);
  if (!hh.ok() || !hr.ok()) return false;
  // what is left of a step once dL/dh of n units from u on is known before W_hr
  const auto local = [&](long t, long row, long u, long n, V inner) {
    const long at = row * H + u;
    S* to = dgates + (t * B + row) * 4 * H + u;
    const V passed = load(dc + at, n);
    if (!on(mask, t * B + row)) {
      store(found_c + t * B * H + at, passed, n);
      for (int k = 0; k < 4; ++k) store(to + k * H, V{}, n);
      return;
    }
    const S* from = gates + (t * B + row) * 4 * H + u;
    const V i = load(from, n), f = load(from + H, n), g = load(from + 2 * H, n);
    const V o = load(from + 3 * H, n), before = load(cells + t * B * H + at, n);
    const V squashed = tanh_<S>(load(cells + (t + 1) * B * H + at, n));
    const V into = passed + inner * (o * (1 - squashed * squashed));
    store(found_c + t * B * H + at, into, n);
    store(dc + at, into * f, n);
    store(to, into * ((i - i * i) * g), n);
    store(to + H, into * ((f - f * f) * before), n);
    store(to + 2 * H, into * ((1 - g * g) * i), n);
    store(to + 3 * H, inner * ((o - o * o) * squashed), n);
  };
  spread(threads, T, B, 4 * H * P, sizeof(S), [&](const Share& share) {
    for (long t = T - 1; t >= -1; --t) {
      blocks(share, t, hh.panels, [&](long p, long first, int rows) {
        V sums[ROWS * WIDE];
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hh.wide; ++v) {
            const long row = first + r, u = hh.first(p) + v * L;
            V& sum = sums[r * hh.wide + v];
            sum = V{};
            if (u >= P) continue;
            const long n = P - u < L ? P - u : L;
            if (t == T - 1) sum = load(dh + row * P + u, n);
            else if (!on(mask, (t + 1) * B + row)) sum = load(found_h + ((t + 1) * B + row) * P + u, n);
            if (t >= 0) sum += load(given.operator()<S>(t, row) + u, n);
          }
        if (t < T - 1) {
          multiply<S>(hh.wide, rows, dgates + ((t + 1) * B + first) * 4 * H, 4 * H, 4 * H,
                      hh.panel(p), sums);
        }
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hh.wide; ++v) {
            const long row = first + r, u = hh.first(p) + v * L;
            if (u >= P) break;
            const long n = P - u < L ? P - u : L;
            const V here = sums[r * hh.wide + v];
            store(t < 0 ? dh + row * P + u : found_h + (t * B + row) * P + u, here, n);
            if (t >= 0 && !w_hr) local(t, row, u, n, here);
          }
      });
      share.wait();
      if (t < 0 || !w_hr) continue;
      blocks(share, t, hr.panels, [&](long p, long first, int rows) {
        V sums[ROWS * WIDE] = {};
        multiply<S>(hr.wide, rows, found_h + (t * B + first) * P, P, P, hr.panel(p), sums);
        for (int r = 0; r < rows; ++r)
          for (int v = 0; v < hr.wide; ++v) {
            const long u = hr.first(p) + v * L;
            if (u >= H) break;
            local(t, first + r, u, H - u < L ? H - u : L, sums[r * hr.wide + v]);
          }
      });
      share.wait();
    }
  });
  return true;
}
