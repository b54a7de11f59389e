// Probes of approximate instructions: one each, held against float64 and what the PTX manual promises of it
// (tools/approximations.py has the promises and the inputs).
//
// bfloat16 has its instructions from sm_90 on; code for older architectures computes the same function in float32.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define INDEX blockIdx.x * blockDim.x + threadIdx.x

// `kind` is the constraint of inline assembly: f for float, d for double.
#define OF_X(instruction, kind) \
    if (int i = INDEX; i < n) asm(instruction " %0, %1;" : "=" kind(out[i]) : kind(x[i]))
#define BY_X(instruction) \
    if (int i = INDEX; i < n) asm(instruction " %0, %1, %2;" : "=f"(out[i]) : "f"(1.7f), "f"(x[i]))

extern "C" __global__ void rcp_float32(const float* x, float* out, int n) { OF_X("rcp.approx.f32", "f"); }
extern "C" __global__ void rcp_float32_ftz(const float* x, float* out, int n) { OF_X("rcp.approx.ftz.f32", "f"); }
extern "C" __global__ void sqrt_float32(const float* x, float* out, int n) { OF_X("sqrt.approx.f32", "f"); }
extern "C" __global__ void sqrt_float32_ftz(const float* x, float* out, int n) { OF_X("sqrt.approx.ftz.f32", "f"); }
extern "C" __global__ void rsqrt_float32(const float* x, float* out, int n) { OF_X("rsqrt.approx.f32", "f"); }
extern "C" __global__ void rsqrt_float32_ftz(const float* x, float* out, int n) { OF_X("rsqrt.approx.ftz.f32", "f"); }
extern "C" __global__ void ex2_float32(const float* x, float* out, int n) { OF_X("ex2.approx.f32", "f"); }
extern "C" __global__ void ex2_float32_ftz(const float* x, float* out, int n) { OF_X("ex2.approx.ftz.f32", "f"); }
extern "C" __global__ void lg2_float32(const float* x, float* out, int n) { OF_X("lg2.approx.f32", "f"); }
extern "C" __global__ void lg2_float32_ftz(const float* x, float* out, int n) { OF_X("lg2.approx.ftz.f32", "f"); }
extern "C" __global__ void sin_float32(const float* x, float* out, int n) { OF_X("sin.approx.f32", "f"); }
extern "C" __global__ void sin_float32_ftz(const float* x, float* out, int n) { OF_X("sin.approx.ftz.f32", "f"); }
extern "C" __global__ void sin_float32_wide(const float* x, float* out, int n) { OF_X("sin.approx.f32", "f"); }
extern "C" __global__ void cos_float32(const float* x, float* out, int n) { OF_X("cos.approx.f32", "f"); }
extern "C" __global__ void cos_float32_ftz(const float* x, float* out, int n) { OF_X("cos.approx.ftz.f32", "f"); }
extern "C" __global__ void cos_float32_wide(const float* x, float* out, int n) { OF_X("cos.approx.f32", "f"); }
extern "C" __global__ void tanh_float32(const float* x, float* out, int n) { OF_X("tanh.approx.f32", "f"); }
extern "C" __global__ void div_float32(const float* x, float* out, int n) { BY_X("div.approx.f32"); }
extern "C" __global__ void div_float32_ftz(const float* x, float* out, int n) { BY_X("div.approx.ftz.f32"); }
extern "C" __global__ void div_float32_full(const float* x, float* out, int n) { BY_X("div.full.f32"); }
extern "C" __global__ void rcp_float64(const double* x, double* out, int n) { OF_X("rcp.approx.ftz.f64", "d"); }
extern "C" __global__ void rsqrt_float64_ftz(const double* x, double* out, int n) { OF_X("rsqrt.approx.ftz.f64", "d"); }
extern "C" __global__ void rsqrt_float64(const double* x, double* out, int n) { OF_X("rsqrt.approx.f64", "d"); }

extern "C" __global__ void ex2_float16(const __half* x, __half* out, int n) {
    int i = INDEX;
    if (i >= n) return;
    unsigned short bits = __half_as_ushort(x[i]), result;
    asm("ex2.approx.f16 %0, %1;" : "=h"(result) : "h"(bits));
    out[i] = __ushort_as_half(result);
}

extern "C" __global__ void tanh_float16(const __half* x, __half* out, int n) {
    int i = INDEX;
    if (i >= n) return;
    unsigned short bits = __half_as_ushort(x[i]), result;
    asm("tanh.approx.f16 %0, %1;" : "=h"(result) : "h"(bits));
    out[i] = __ushort_as_half(result);
}

extern "C" __global__ void ex2_bfloat16(const __nv_bfloat16* x, __nv_bfloat16* out, int n) {
    int i = INDEX;
    if (i >= n) return;
#if __CUDA_ARCH__ >= 900
    unsigned short bits = __bfloat16_as_ushort(x[i]), result;
    asm("ex2.approx.ftz.bf16 %0, %1;" : "=h"(result) : "h"(bits));
    out[i] = __ushort_as_bfloat16(result);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(__bfloat162float(x[i])));
    out[i] = __float2bfloat16(result);
#endif
}

extern "C" __global__ void tanh_bfloat16(const __nv_bfloat16* x, __nv_bfloat16* out, int n) {
    int i = INDEX;
    if (i >= n) return;
#if __CUDA_ARCH__ >= 900
    unsigned short bits = __bfloat16_as_ushort(x[i]), result;
    asm("tanh.approx.bf16 %0, %1;" : "=h"(result) : "h"(bits));
    out[i] = __ushort_as_bfloat16(result);
#else
    float result;
    asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(__bfloat162float(x[i])));
    out[i] = __float2bfloat16(result);
#endif
}
