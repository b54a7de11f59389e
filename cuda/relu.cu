// ReLU: out = max(x, 0), element by element.
//
//   relu_float32(x, out, n)     float,  four at a time (float4)
//   relu_float16(x, out, n)     __half, eight at a time (four __half2)
//
// x, out     n numbers each, flat, in any one order (NCHW, NHWC, ...), at any alignment; they share no memory.
// launch     any one-dimensional grid and block; one thread per 16 bytes needs a single pass.
// moves      2 * n * sizeof(T) bytes and compares n times: bound by memory on every card.
// numbers    NaN stays NaN, as in torch.relu. fmaxf(x, 0) would lose it: IEEE 754's maxNum prefers the number.
//            The sign of a zero is left open: -0 counts as 0.
#include "common/elementwise.cuh"

struct Relu {
    __device__ float operator()(float x) const { return x < 0.0f ? 0.0f : x; }  // NaN < 0 is false: NaN is returned

    __device__ float4 operator()(float4 x) const {
        return make_float4((*this)(x.x), (*this)(x.y), (*this)(x.z), (*this)(x.w));
    }

    __device__ __half operator()(__half x) const { return x < __half(0.0f) ? __half(0.0f) : x; }

    __device__ Half8 operator()(Half8 x) const {
        for (__half2& pair : x.pair) pair = __halves2half2((*this)(pair.x), (*this)(pair.y));
        return x;
    }
};

extern "C" __global__ void relu_float32(const float* __restrict__ x, float* __restrict__ out, long long n) {
    elementwise<float4>(out, n, Relu{}, x);
}

extern "C" __global__ void relu_float16(const __half* __restrict__ x, __half* __restrict__ out, long long n) {
    elementwise<Half8>(out, n, Relu{}, x);
}
