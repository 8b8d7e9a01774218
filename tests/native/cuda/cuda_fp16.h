#pragma once
#include "cuda_emulation.h"

struct __half {
  _Float16 value;
};
inline float __half2float(__half h) { return h.value; }
