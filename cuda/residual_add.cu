// Residual add: out = a + b, element by element: what a residual block does with its input at its end.
//
//   residual_add_float32(a, b, out, n)     float,  four at a time (float4)
//   residual_add_float16(a, b, out, n)     __half, eight at a time (four __half2)
//
// a, b, out  n numbers each, flat, all in the same order (NCHW, NHWC, ...), at any alignment. a and b are only read, and
//            may be the same array; `out` shares no memory with them.
// launch     any one-dimensional grid and block; one thread per 16 bytes needs a single pass.
// moves      3 * n * sizeof(T) bytes and adds n times: bound by memory on every card.
// numbers    each sum is rounded once, to the nearest: the same bits as PyTorch's.
#include "common/elementwise.cuh"

struct Add {
    __device__ float operator()(float a, float b) const { return a + b; }

    __device__ float4 operator()(float4 a, float4 b) const {
        return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
    }

    __device__ __half operator()(__half a, __half b) const { return __hadd(a, b); }

    __device__ Half8 operator()(Half8 a, Half8 b) const {
        for (int i = 0; i < 4; i++) a.pair[i] = __hadd2(a.pair[i], b.pair[i]);
        return a;
    }
};

extern "C" __global__ void residual_add_float32(const float* __restrict__ a, const float* __restrict__ b,
                                                float* __restrict__ out, long long n) {
    elementwise<float4>(out, n, Add{}, a, b);
}

extern "C" __global__ void residual_add_float16(const __half* __restrict__ a, const __half* __restrict__ b,
                                                __half* __restrict__ out, long long n) {
    elementwise<Half8>(out, n, Add{}, a, b);
}
