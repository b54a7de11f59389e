// The numbers of a picture: float, __half, __nv_bfloat16, or unsigned char.
//
//   number_of(v)        as a float
//   picture_of<P>(v)    from a float; as unsigned char clamped to 0..255 and rounded to the nearest, ties to even
#pragma once
#include "vectors.cuh"

__device__ inline float number_of(unsigned char v) { return static_cast<float>(v); }
template <typename P>
__device__ float number_of(P v) {
    return to_float(v);
}

template <typename P>
__device__ P picture_of(float v) {
    return to<P>(v);
}
template <>
__device__ inline unsigned char picture_of<unsigned char>(float v) {
    return static_cast<unsigned char>(__float2int_rn(fminf(fmaxf(v, 0.0f), 255.0f)));  // fmaxf(NaN, 0) is 0
}
