// Two 16-bit numbers in one word, and as two floats.
//
//   Packed<T>::floats(word)             T: __half or __nv_bfloat16; the lower half is .x
//   Packed<T>::word(low, high)          rounded to nearest even, both in one instruction
//   Packed<T>::relu_word(low, high)     the same, and what is negative becomes zero; a NaN stays one
//   Packed<T>::relu(word)               of what is packed; stays where it stands in the program
//   round_to<T>(d)                      an array of floats, each rounded to T
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
struct Packed;

template <>
struct Packed<__half> {
    __device__ static float2 floats(unsigned word) { return __half22float2(*reinterpret_cast<__half2*>(&word)); }
    __device__ static unsigned word(float low, float high) {
        unsigned word;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
    __device__ static unsigned relu_word(float low, float high) {
        unsigned word;
        asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
    __device__ static unsigned relu(unsigned word) {
        asm volatile("max.NaN.f16x2 %0, %1, %2;" : "=r"(word) : "r"(word), "r"(0));
        return word;
    }
};

template <>
struct Packed<__nv_bfloat16> {
    __device__ static float2 floats(unsigned word) {
        return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&word));
    }
    __device__ static unsigned word(float low, float high) {
        unsigned word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
    __device__ static unsigned relu_word(float low, float high) {
        unsigned word;
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
    }
    __device__ static unsigned relu(unsigned word) {
        asm volatile("max.NaN.bf16x2 %0, %1, %2;" : "=r"(word) : "r"(word), "r"(0));
        return word;
    }
};

template <typename T, int COUNT>
__device__ void round_to(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        const float2 pair = Packed<T>::floats(Packed<T>::word(d[i], d[i + 1]));
        d[i] = pair.x, d[i + 1] = pair.y;
    }
}
