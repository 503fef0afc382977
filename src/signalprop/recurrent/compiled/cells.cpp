// The time loops of recurrent layers with every delta written down, for ctypes.
//
// All tensors are dense and of one type, float (suffix 32) or double (64), but the gradient that
// arrives, whose steps and rows may lie anywhere. A mask is one byte for every step and row, 0 where
// a sequence has ended, or none. Every function returns 1, or 0 where there was no memory.
#include "gru.h"
#include "lstm.h"
#include "rnn.h"

#define SIGNALPROP_CELLS(S, BITS)                                                                  \
  extern "C" int lstm_forward_##BITS(int threads, long T, long B, long H, long P, S* gates,        \
                                     const S* bias, const S* w_hh, const S* w_hr,                  \
                                     const uint8_t* mask, S* cells, S* outputs) {                  \
    return lstm_forward<S>(threads, T, B, H, P, gates, bias, w_hh, w_hr, mask, cells, outputs);    \
  }                                                                                                \
  extern "C" int lstm_backward_##BITS(int threads, long T, long B, long H, long P, const S* given, \
                                      long step, long row, const S* w_hh, const S* w_hr,           \
                                      const uint8_t* mask, const S* gates, const S* cells,         \
                                      S* dgates, S* found_h, S* found_c, S* dh, S* dc) {           \
    return lstm_backward<S>(threads, T, B, H, P, Given{given, step, row}, w_hh, w_hr, mask, gates, \
                            cells, dgates, found_h, found_c, dh, dc);                              \
  }                                                                                                \
  extern "C" int gru_forward_##BITS(int threads, long T, long B, long H, S* gates, const S* w_hh,  \
                                    const S* b_hh, const uint8_t* mask, S* inner, S* outputs) {    \
    return gru_forward<S>(threads, T, B, H, gates, w_hh, b_hh, mask, inner, outputs);              \
  }                                                                                                \
  extern "C" int gru_backward_##BITS(int threads, long T, long B, long H, const S* given,          \
                                     long step, long row, const S* w_hh, const uint8_t* mask,      \
                                     const S* gates, const S* inner, const S* outputs, S* dpre,    \
                                     S* dn, S* found, S* dh) {                                     \
    return gru_backward<S>(threads, T, B, H, Given{given, step, row}, w_hh, mask, gates, inner,    \
                           outputs, dpre, dn, found, dh);                                          \
  }                                                                                                \
  extern "C" int rnn_forward_##BITS(int threads, long T, long B, long H, int relu, const S* w_hh,  \
                                    const uint8_t* mask, S* outputs) {                             \
    return rnn_forward<S>(threads, T, B, H, relu, w_hh, mask, outputs);                            \
  }                                                                                                \
  extern "C" int rnn_backward_##BITS(int threads, long T, long B, long H, int relu,                \
                                     const S* given, long step, long row, const S* w_hh,           \
                                     const uint8_t* mask, const S* outputs, S* dpre, S* found,     \
                                     S* dh) {                                                      \
    return rnn_backward<S>(threads, T, B, H, relu, Given{given, step, row}, w_hh, mask, outputs,   \
                           dpre, found, dh);                                                       \
  }

SIGNALPROP_CELLS(float, 32)
SIGNALPROP_CELLS(double, 64)
