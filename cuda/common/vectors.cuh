// Numbers in memory and numbers to compute with: 16 bytes at a time of float, __half or __nv_bfloat16, as floats.
//
//   LANES<T>                      how many numbers of T are 16 bytes: 4 or 8
//   to_float(x), to<T>(x)         one number; to the nearest, ties to even
//   unpack<T>(v, value)           16 bytes that are at hand, as LANES<T> floats; pack<T>(value): the other way
//   load(p, value), store(p, v)   an array of floats from and to memory: LANES<T> at a multiple of 16 bytes, or one
//   relu(x), put_pair(p, a, b)    max(x, 0), where NaN stays NaN; two numbers that lie together
//   Span                          a stretch of memory at any address: scalars up to 16 bytes, vectors, scalars
//
// bfloat16 is only converted, never computed with: that needs no instruction that sm_75 lacks.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
constexpr int LANES = 16 / sizeof(T);

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ T to(float x);
template <> __device__ inline float to<float>(float x) { return x; }
template <> __device__ inline __half to<__half>(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 to<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// max(x, 0), where NaN stays NaN.
__device__ inline float relu(float x) {
#if __CUDA_ARCH__ >= 800
    asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(x));
    return x;
#else
    return x < 0.0f ? 0.0f : x;
#endif
}

// Two numbers that lie together.
__device__ inline void put_pair(__half* p, float a, float b) {
    *reinterpret_cast<__half2*>(p) = __floats2half2_rn(a, b);
}
__device__ inline void put_pair(__nv_bfloat16* p, float a, float b) {
    *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(a, b);
}
__device__ inline void put_pair(float* p, float a, float b) { *reinterpret_cast<float2*>(p) = make_float2(a, b); }

template <typename T>
__device__ void unpack(const uint4& whole, float (&value)[LANES<T>]) {
    for (int i = 0; i < LANES<T>; i++) value[i] = to_float(reinterpret_cast<const T*>(&whole)[i]);
}

template <>
__device__ inline void unpack<__nv_bfloat16>(const uint4& whole, float (&value)[8]) {  // the upper halves of floats
    const unsigned word[4] = {whole.x, whole.y, whole.z, whole.w};
    for (int i = 0; i < 8; i++) value[i] = __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
}

template <typename T>
__device__ uint4 pack(const float (&value)[LANES<T>]) {
    uint4 whole;
    for (int i = 0; i < LANES<T>; i += 2) put_pair(reinterpret_cast<T*>(&whole) + i, value[i], value[i + 1]);
    return whole;
}

template <typename T, int COUNT>
__device__ void load(const T* p, float (&value)[COUNT]) {
    static_assert(COUNT == 1 || COUNT == LANES<T>);
    if constexpr (COUNT == 1) {
        value[0] = to_float(*p);
    } else {
        const uint4 whole = *reinterpret_cast<const uint4*>(p);  // at once
        unpack<T>(whole, value);
    }
}

template <typename T, int COUNT>
__device__ void store(T* p, const float (&value)[COUNT]) {
    static_assert(COUNT == 1 || COUNT == LANES<T>);
    if constexpr (COUNT == 1) {
        *p = to<T>(value[0]);
    } else {
        const uint4 whole = pack<T>(value);
        __stwb(reinterpret_cast<uint4*>(p), whole);  // at once: a plain store may be taken apart
    }
}

// Elements [0, head) and [tail, count) are to be moved singly, and between them lie `vectors` vectors of 16 bytes.
// Arrays that do not stand at the same distance from a multiple of 16 bytes share no vectors: all elements are head.
struct Span {
    long long head, vectors, tail;

    template <typename T, typename... Others>
    __device__ Span(long long count, const T* first, const Others*... others) {
        const size_t phase = reinterpret_cast<size_t>(first) % 16;
        const bool together = ((reinterpret_cast<size_t>(others) % 16 == phase) && ... && true);
        head = together ? (16 - phase) % 16 / sizeof(T) : count;
        if (head > count) head = count;
        vectors = (count - head) / LANES<T>;
        tail = head + vectors * LANES<T>;
    }
};
