// The backward pass of instance norm: gradients of x, and of what was fused with the norm. cuda/instance_norm.cu is the
// forward pass.
//
//   g = dout where out > 0, or dout without a ReLU      h = (x - mean) * rstd, with rstd = 1 / deviation
//   dx = rstd * weight * (g - sum(g) / n - h * sum(g * h) / n)      the sums over a plane of n numbers
//   dresidual = g      dweight = sum(g * h), dbias = sum(g), summed over the images by the launcher
//
// Contents (every sum is float32)
//   Plane                               what the forward pass saved of a plane, and h of one number
//   each                                goes through a piece, with g of each number
//   instance_norm_backward_sums         NCHW: the two sums of each piece of a plane
//   instance_norm_backward_apply        ... then blocks over the same pieces: each adds up its plane's, and writes dx
//
// x, out, dout, dx     planes x size numbers, flat, NCHW. out is null without a ReLU.
// dresidual            like x, or null.      weight    `channels` numbers, or null for 1.
// saved                3 floats a plane, from the forward pass: mean, what its rounding lost, rstd.
// partial              2 * planes * pieces floats, written by the first kernel.
// sums                 2 floats a plane, for the launcher.
// alignment, sizes     any, as in the forward pass.
// compiled             for TYPE: float, __half or __nv_bfloat16.
// launch               one-dimensional: planes * pieces blocks of at most 1024 threads in whole warps.
// moves                5 tensors (x and dout twice, dx once), 2 more to read out twice, 1 more for dresidual.
// numbers              each thread adds what it meets in order, then the block by a tree: no atomics, the same launch
//                      gives the same bits. A NaN or infinity in a plane makes that plane's gradients NaN.
#include "common/exchange.cuh"
#include "common/normalize.cuh"

#ifndef TYPE
#define TYPE float
#endif

struct Plane {
    float mean, lost, rstd;

    __device__ Plane(const float* saved, long long plane)
        : mean(saved[3 * plane]), lost(saved[3 * plane + 1]), rstd(saved[3 * plane + 2]) {}

    __device__ float normalized(float x) const { return ((x - mean) - lost) * rstd; }
};

// f(i, x, g) for COUNT numbers, g being the gradient behind the ReLU. (Function objects, and not generic lambdas, which
// NVRTC 13.0 takes for functions of the host.)
template <int COUNT, typename T, typename Function>
__device__ void take(const T* x, const T* out, const T* dout, long long i, Function& f) {
    float value[COUNT], gradient[COUNT];
    load(x + i, value);
    load(dout + i, gradient);
    if (out) {
        float result[COUNT];
        load(out + i, result);
        for (int k = 0; k < COUNT; k++)
            if (result[k] <= 0.0f) gradient[k] = 0.0f;
    }
    f(i, value, gradient);
}

// Take the numbers of this thread, one or LANES<T> at a time; where `backwards`, from the last vector to the first,
// because the L2 cache holds what was read last.
template <typename T, typename Function>
__device__ void each(const T* x, const T* out, const T* dout, long long count, const Span& span, bool backwards,
                     Function& f) {
    for (long long i = threadIdx.x; i < span.head; i += blockDim.x) take<1>(x, out, dout, i, f);
#pragma unroll 2
    for (long long i = threadIdx.x; i < span.vectors; i += blockDim.x) {
        const long long vector = backwards ? span.vectors - 1 - i : i;
        take<LANES<T>>(x, out, dout, span.head + vector * LANES<T>, f);
    }
    for (long long i = span.tail + threadIdx.x; i < count; i += blockDim.x) take<1>(x, out, dout, i, f);
}

struct Sums {
    const Plane& plane;
    float sum[2];

    template <int COUNT>
    __device__ void operator()(long long, const float (&value)[COUNT], const float (&g)[COUNT]) {
        float part[2] = {};  // of one vector: a plane's sums meet fewer roundings
        for (int k = 0; k < COUNT; k++) {
            part[0] += g[k];
            part[1] = fmaf(g[k], plane.normalized(value[k]), part[1]);
        }
        sum[0] += part[0];
        sum[1] += part[1];
    }
};

template <typename T>
struct Gradients {
    const Plane& plane;
    float scale, mean, slope;
    T *dx, *dresidual;

    template <int COUNT>
    __device__ void operator()(long long i, float (&value)[COUNT], const float (&g)[COUNT]) {
        if (dresidual) store(dresidual + i, g);
        for (int k = 0; k < COUNT; k++) value[k] = scale * fmaf(-plane.normalized(value[k]), slope, g[k] - mean);
        store(dx + i, value);
    }
};

template <typename T>
__device__ void plane_sums(const T* x, const T* out, const T* dout, const float* saved, float* partial, long long size,
                           long long length, int pieces) {
    __shared__ float shared[2 * 32];
    const Piece piece(size, length, pieces);
    const Plane plane(saved, piece.plane);
    x += piece.start;
    dout += piece.start;
    if (out) out += piece.start;
    Sums sums{plane, {}};
    each(x, out, dout, piece.count, out ? Span(piece.count, x, dout, out) : Span(piece.count, x, dout), false, sums);
    sum_block(sums.sum, shared);
    if (threadIdx.x == 0)
        for (int k = 0; k < 2; k++) partial[2LL * blockIdx.x + k] = sums.sum[k];
}

template <typename T>
__device__ void plane_apply(const T* x, const T* out, const T* dout, const float* saved, const float* partial,
                            const T* weight, T* dx, T* dresidual, float* sums, int channels, long long size,
                            long long length, int pieces) {
    __shared__ float shared[2 * 32];
    const Piece piece(size, length, pieces);
    const Plane plane(saved, piece.plane);
    float sum[2] = {};
    for (int i = threadIdx.x; i < pieces; i += blockDim.x)
        for (int k = 0; k < 2; k++) sum[k] += partial[2LL * (piece.plane * pieces + i) + k];
    sum_block(sum, shared);
    if (blockIdx.x % pieces == 0 && threadIdx.x == 0)
        for (int k = 0; k < 2; k++) sums[2LL * piece.plane + k] = sum[k];

    const float scale = plane.rstd * (weight ? to_float(weight[piece.plane % channels]) : 1.0f);
    const float mean = sum[0] / size, slope = sum[1] / size;
    x += piece.start;
    dout += piece.start;
    dx += piece.start;
    if (out) out += piece.start;
    if (dresidual) dresidual += piece.start;
    Span span = out ? Span(piece.count, x, dout, dx, out) : Span(piece.count, x, dout, dx);
    if (dresidual)
        span = out ? Span(piece.count, x, dout, dx, out, dresidual) : Span(piece.count, x, dout, dx, dresidual);
    Gradients<T> gradients{plane, scale, mean, slope, dx, dresidual};
    each(x, out, dout, piece.count, span, true, gradients);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_backward_sums(const TYPE* __restrict__ x, const TYPE* __restrict__ out,
        const TYPE* __restrict__ dout, const float* saved, float* partial, long long size, long long length,
        int pieces) {
    plane_sums(x, out, dout, saved, partial, size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_backward_apply(const TYPE* __restrict__ x, const TYPE* __restrict__ out,
        const TYPE* __restrict__ dout, const float* saved, const float* partial, const TYPE* weight,
        TYPE* __restrict__ dx, TYPE* __restrict__ dresidual, float* sums, int channels, long long size,
        long long length, int pieces) {
    plane_apply(x, out, dout, saved, partial, weight, dx, dresidual, sums, channels, size, length, pieces);
}
