#pragma once
#include "cuda_emulation.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 b) {
  const uint32_t wide = (uint32_t)b.bits << 16;
  float f;
  std::memcpy(&f, &wide, sizeof f);
  return f;
}
