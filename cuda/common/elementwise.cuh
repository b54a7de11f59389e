// One function for each element of flat arrays: the loop that the elementwise kernels share.
//
//   elementwise<Vector>(out, n, f, in...)     out[i] = f(in[i]...)   for 0 <= i < n
//   Half8                                     eight float16 numbers that travel as one vector of 16 bytes
//
// Vector     the type that a thread loads and stores at once, 16 bytes: float4 for float, Half8 for __half.
// f          has two overloads of operator(): for one element, and for one Vector.
// n          64 bits, because 2^31 elements are 8 GB of float and fit on a card.
// launch     any one-dimensional grid and block: a grid-stride loop takes whatever one pass leaves.
// alignment  any. Where all the arrays start at a multiple of 16 bytes, whole vectors are moved and a scalar tail takes
//            the last n % LANES elements; where one does not (a view into the middle of an array), all are scalars.
// aliasing   none: `out` shares no byte with an input.
#pragma once
#include <cuda_fp16.h>

struct alignas(16) Half8 {
    __half2 pair[4];
};

template <typename Vector, typename T, typename Function, typename... In>
__device__ void elementwise(T* out, long long n, Function f, const In*... in) {
    constexpr int LANES = sizeof(Vector) / sizeof(T);
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const long long stride = gridDim.x * (long long)blockDim.x;

    long long vectors = 0;
    const size_t addresses = (reinterpret_cast<size_t>(out) | ... | reinterpret_cast<size_t>(in));
    if (addresses % sizeof(Vector) == 0) {  // the same for every thread, so nothing diverges
        vectors = n / LANES;
        for (long long i = thread; i < vectors; i += stride)
            reinterpret_cast<Vector*>(out)[i] = f(reinterpret_cast<const Vector*>(in)[i]...);
    }
    for (long long i = vectors * LANES + thread; i < n; i += stride) out[i] = f(in[i]...);
}
