// Probes of the device: small kernels that tools/compare_devices.py runs in the emulator and on a GPU.
//
//   integers    integer_arithmetic, integer_bits, shifts, wide_integers, packed_bytes
//   floats      float_arithmetic, float_rounding, double_arithmetic, float_functions, minimum_maximum, denormals
//   conversions float_to_int, float_to_wide, double_to_int, int_to_float, half_conversions, bfloat16_conversions
//   halves      half_arithmetic, half_comparisons, half2_arithmetic
//   warps       shuffles, shuffles_partial, votes, matches, active_mask, warp_reductions, warp_reduce_instructions
//   blocks      block_tree, block_votes, dynamic_shared, shared_transpose, bank_of_bytes
//   atomics     atomics_integer, atomics_shared, atomics_cas, atomics_float, atomics_wide
//   memory      vectors_float4, vectors_mixed, vectors_or_scalars, constant_table, generic_pointers
//   tensor      matrix_loads, tensor_products, fragments_of_mma, async_copies
//   control     local_array, switch_cases, collatz, calls_and_structs
//   approximate one kernel for each function whose last bits are the hardware's own: approximate_...
//
// Shape      where a probe computes several things, the result k of element i is out[k * n + i]: `row k` of a report.
// Exact      every probe but the approximate ones has one right answer, to the last bit (NaN payloads aside). What C++
//            leaves undefined (overflow, a shift by 32) is avoided, or asked of the PTX instruction, which defines it.
// Order      no result depends on the order of blocks or threads: atomics are read when all are done.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <mma.h>

#define FOR_EACH(i, n) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
#define EVERYONE 0xffffffffu

// ---------------------------------------------------------------------------------------------------------------------
// Integers

// Wrapping sums and products, quotients that truncate toward zero, high halves of products.
extern "C" __global__ void integer_arithmetic(const int* a, const int* b, int* out, int n) {
    FOR_EACH(i, n) {
        unsigned x = a[i], y = b[i];
        int divisor = b[i] == 0 || b[i] == -1 ? 7 : b[i];  // 0, and INT_MIN / -1, have no quotient
        out[0 * n + i] = x + y;
        out[1 * n + i] = x - y;
        out[2 * n + i] = x * y;
        out[3 * n + i] = a[i] / divisor;
        out[4 * n + i] = a[i] % divisor;
        out[5 * n + i] = x / (y | 1);
        out[6 * n + i] = x % (y | 1);
        out[7 * n + i] = __mulhi(a[i], b[i]);
        out[8 * n + i] = __umulhi(x, y);
        out[9 * n + i] = min(a[i], b[i]);
        out[10 * n + i] = max(x, y);
        out[11 * n + i] = __sad(a[i] >> 1, b[i] >> 1, 5u);
        out[12 * n + i] = __hadd(a[i], b[i]);
        out[13 * n + i] = __mul24(a[i], b[i]);
    }
}

// Logic on bits, counts of bits, bytes picked by a selector.
extern "C" __global__ void integer_bits(const unsigned* a, const unsigned* b, unsigned* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = (a[i] & b[i]) ^ (a[i] | ~b[i]);
        out[1 * n + i] = __popc(a[i]);
        out[2 * n + i] = __clz(a[i]);
        out[3 * n + i] = __ffs(a[i]);
        out[4 * n + i] = __brev(a[i]);
        out[5 * n + i] = __byte_perm(a[i], b[i], b[i] & 0x7777);
        asm("bfe.u32 %0, %1, %2, %3;" : "=r"(out[6 * n + i]) : "r"(a[i]), "r"(b[i] & 31), "r"(i & 31));
        asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(out[7 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(i & 31), "r"(i % 29));
        asm("bfe.s32 %0, %1, %2, %3;" : "=r"(out[8 * n + i]) : "r"(a[i]), "r"(b[i] & 31), "r"(i & 31));
    }
}

// Shifts by 0 to 31 in C++; by any amount in PTX, which clamps at the width; funnel shifts that wrap and that clamp.
extern "C" __global__ void shifts(const int* a, const int* b, int* out, int n) {
    FOR_EACH(i, n) {
        unsigned x = a[i], y = b[i], amount = y & 31;
        out[0 * n + i] = x << amount;
        out[1 * n + i] = x >> amount;
        out[2 * n + i] = a[i] >> amount;
        asm("shl.b32 %0, %1, %2;" : "=r"(out[3 * n + i]) : "r"(x), "r"(y));
        asm("shr.u32 %0, %1, %2;" : "=r"(out[4 * n + i]) : "r"(x), "r"(y));
        asm("shr.s32 %0, %1, %2;" : "=r"(out[5 * n + i]) : "r"(a[i]), "r"(y));
        out[6 * n + i] = __funnelshift_l(x, y, amount + i);
        out[7 * n + i] = __funnelshift_r(x, y, amount + i);
        out[8 * n + i] = __funnelshift_lc(x, y, i % 50);
        out[9 * n + i] = __funnelshift_rc(x, y, i % 50);
    }
}

// 64 bits: products and their high halves, quotients, shifts, counts.
extern "C" __global__ void wide_integers(const long long* a, const long long* b, long long* out, int n) {
    FOR_EACH(i, n) {
        unsigned long long x = a[i], y = b[i];
        long long divisor = b[i] == 0 || b[i] == -1 ? 7 : b[i];
        out[0 * n + i] = x + y * 3;
        out[1 * n + i] = __mul64hi(a[i], b[i]);
        out[2 * n + i] = __umul64hi(x, y);
        out[3 * n + i] = a[i] / divisor;
        out[4 * n + i] = a[i] % divisor;
        out[5 * n + i] = x / (y | 1);
        out[6 * n + i] = x << (y & 63);
        out[7 * n + i] = a[i] >> (y & 63);
        out[8 * n + i] = __popcll(x) * 10000 + __clzll(x) * 100 + __ffsll(a[i]);
        out[9 * n + i] = __brevll(x);
        out[10 * n + i] = (long long)(int)x * (int)y;  // the product of 32 bits by 32
        out[11 * n + i] = min(a[i], b[i]) ^ max(x, y);
    }
}

// Narrow types: sign and zero extension, wrapping stores, the dot product of four bytes.
extern "C" __global__ void packed_bytes(const int* a, const int* b, int* out, short* shorts, signed char* chars, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __dp4a(a[i], b[i], i);
        out[1 * n + i] = __dp4a((unsigned)a[i], (unsigned)b[i], (unsigned)i);
        out[2 * n + i] = (signed char)a[i] * (unsigned char)b[i];
        out[3 * n + i] = (short)a[i] - (unsigned short)b[i];
        shorts[i] = a[i] + b[i] % 1000;
        chars[i] = a[i] >> 3;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Floats: IEEE 754 fixes every bit

// The five operations, rounded to the nearest; and a * b + c, which the compiler fuses.
extern "C" __global__ void float_arithmetic(const float* a, const float* b, const float* c, float* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = a[i] + b[i];
        out[1 * n + i] = a[i] - b[i];
        out[2 * n + i] = a[i] * b[i];
        out[3 * n + i] = a[i] / b[i];
        out[4 * n + i] = fmaf(a[i], b[i], c[i]);
        out[5 * n + i] = sqrtf(a[i]);
        out[6 * n + i] = __frcp_rn(a[i]);
        out[7 * n + i] = a[i] * b[i] + c[i];
        out[8 * n + i] = __fmul_rn(a[i], b[i]) + c[i];  // not fused: two roundings
        out[9 * n + i] = __fsqrt_rn(fabsf(b[i]));
        out[10 * n + i] = 1.0f / sqrtf(fabsf(b[i]));
    }
}

// The other three directions of rounding: toward zero, up, down.
extern "C" __global__ void float_rounding(const float* a, const float* b, const float* c, float* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __fadd_rz(a[i], b[i]);
        out[1 * n + i] = __fadd_ru(a[i], b[i]);
        out[2 * n + i] = __fadd_rd(a[i], b[i]);
        out[3 * n + i] = __fmul_rz(a[i], b[i]);
        out[4 * n + i] = __fmul_ru(a[i], b[i]);
        out[5 * n + i] = __fmul_rd(a[i], b[i]);
        out[6 * n + i] = __fmaf_rz(a[i], b[i], c[i]);
        out[7 * n + i] = __fmaf_ru(a[i], b[i], c[i]);
        out[8 * n + i] = __fmaf_rd(a[i], b[i], c[i]);
        out[9 * n + i] = __fdiv_rz(a[i], b[i]);
        out[10 * n + i] = __fdiv_ru(a[i], b[i]);
        out[11 * n + i] = __fdiv_rd(a[i], b[i]);
        out[12 * n + i] = __fsqrt_rz(a[i]);
        out[13 * n + i] = __fsqrt_ru(a[i]);
        out[14 * n + i] = __fsqrt_rd(a[i]);
        out[15 * n + i] = __frcp_rz(a[i]);
        out[16 * n + i] = __frcp_ru(a[i]);
        out[17 * n + i] = __frcp_rd(a[i]);
    }
}

// Double precision, rounded to the nearest.
extern "C" __global__ void double_arithmetic(const double* a, const double* b, const double* c, double* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = a[i] + b[i];
        out[1 * n + i] = a[i] * b[i];
        out[2 * n + i] = fma(a[i], b[i], c[i]);
        out[3 * n + i] = a[i] / b[i];
        out[4 * n + i] = sqrt(a[i]);
        out[5 * n + i] = fmin(a[i], b[i]);
        out[6 * n + i] = fmax(a[i], c[i]);
    }
}

// Functions that are exact by definition: signs, whole numbers, comparisons with NaN and with zeros of both signs.
extern "C" __global__ void float_functions(const float* a, const float* b, float* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = fabsf(a[i]);
        out[1 * n + i] = -a[i];
        out[2 * n + i] = copysignf(a[i], b[i]);
        out[3 * n + i] = floorf(a[i]);
        out[4 * n + i] = ceilf(a[i]);
        out[5 * n + i] = truncf(a[i]);
        out[6 * n + i] = rintf(a[i]);
        out[7 * n + i] = roundf(a[i]);
        out[8 * n + i] = (a[i] < b[i]) + 2 * (a[i] <= b[i]) + 4 * (a[i] == b[i]) + 8 * (a[i] != b[i]);
        out[9 * n + i] = !(a[i] < b[i]) + 2 * !(a[i] > b[i]) + 4 * !(a[i] >= b[i]) + 8 * isnan(a[i]);
        out[10 * n + i] = __saturatef(a[i]);
        out[11 * n + i] = ldexpf(a[i], i % 60 - 30);
    }
}

// Minimum and maximum: a number wins over NaN, -0 lies below 0. The forms of ReLU that the lessons compare.
extern "C" __global__ void minimum_maximum(const float* a, const float* b, float* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = fminf(a[i], b[i]);
        out[1 * n + i] = fmaxf(a[i], b[i]);
        out[2 * n + i] = fmaxf(a[i], 0.0f);
        out[3 * n + i] = a[i] < 0.0f ? 0.0f : a[i];
        out[4 * n + i] = a[i] > 0.0f ? a[i] : 0.0f;
        out[5 * n + i] = fminf(fmaxf(a[i], -1.0f), 1.0f);
    }
}

// Results below 2^-126 keep their bits; a is scaled down first, so that products, quotients and sums fall there.
extern "C" __global__ void denormals(const float* a, const float* b, float* out, int n) {
    FOR_EACH(i, n) {
        float small = __fmul_rn(a[i], 1.1754944e-38f);  // 2^-126
        out[0 * n + i] = small;
        out[1 * n + i] = small * 0.3f;
        out[2 * n + i] = small / 3.0f;
        out[3 * n + i] = small + 1.4e-45f;
        out[4 * n + i] = fmaf(small, b[i], 1e-40f);
        out[5 * n + i] = sqrtf(fabsf(small));
        out[6 * n + i] = b[i] / (small * 0.1f);
        out[7 * n + i] = small - 2.9e-39f;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Conversions: they round as they are told, and saturate at the ends of the range

extern "C" __global__ void float_to_int(const float* a, int* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __float2int_rn(a[i]);
        out[1 * n + i] = __float2int_rz(a[i]);
        out[2 * n + i] = __float2int_ru(a[i]);
        out[3 * n + i] = __float2int_rd(a[i]);
        out[4 * n + i] = __float2uint_rn(a[i]);
        out[5 * n + i] = __float2uint_rz(a[i]);
        out[6 * n + i] = __float2uint_ru(a[i]);
        out[7 * n + i] = __float2uint_rd(a[i]);
        out[8 * n + i] = __float_as_int(a[i] == a[i] ? a[i] : 0.0f);  // the bits, but not those of a NaN
    }
}

// To 64 bits: of a NaN PTX makes the lowest number, not 0.
extern "C" __global__ void float_to_wide(const float* a, long long* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __float2ll_rn(a[i]);
        out[1 * n + i] = __float2ll_rz(a[i]);
        out[2 * n + i] = __float2ll_ru(a[i]);
        out[3 * n + i] = __float2ll_rd(a[i]);
        out[4 * n + i] = __float2ull_rn(a[i]);
        out[5 * n + i] = __float2ull_rz(a[i]);
    }
}

extern "C" __global__ void double_to_int(const double* a, long long* out, float* narrow, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __double2int_rn(a[i]);
        out[1 * n + i] = __double2int_rz(a[i]);
        out[2 * n + i] = __double2uint_rn(a[i]);
        out[3 * n + i] = __double2ll_rn(a[i]);
        out[4 * n + i] = __double2ll_rd(a[i]);
        out[5 * n + i] = __double2ull_rz(a[i]);
        narrow[0 * n + i] = __double2float_rn(a[i]);
        narrow[1 * n + i] = __double2float_rz(a[i]);
        narrow[2 * n + i] = __double2float_ru(a[i]);
    }
}

extern "C" __global__ void int_to_float(const int* a, const long long* w, float* out, double* wide, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __int2float_rn(a[i]);
        out[1 * n + i] = __int2float_rz(a[i]);
        out[2 * n + i] = __int2float_ru(a[i]);
        out[3 * n + i] = __int2float_rd(a[i]);
        out[4 * n + i] = __uint2float_rn(a[i]);
        out[5 * n + i] = __uint2float_rz(a[i]);
        out[6 * n + i] = __ll2float_rn(w[i]);
        out[7 * n + i] = __ll2float_rd(w[i]);
        out[8 * n + i] = __ull2float_rn(w[i]);
        wide[0 * n + i] = __int2double_rn(a[i]);
        wide[1 * n + i] = __ll2double_rn(w[i]);
        wide[2 * n + i] = __ull2double_rz(w[i]);
    }
}

extern "C" __global__ void half_conversions(const float* a, const __half* h, const int* k, __half* out, float* wide,
                                            int* whole, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __float2half_rn(a[i]);
        out[1 * n + i] = __float2half_rz(a[i]);
        out[2 * n + i] = __float2half_ru(a[i]);
        out[3 * n + i] = __float2half_rd(a[i]);
        out[4 * n + i] = __int2half_rn(k[i]);
        __half2 pair = __floats2half2_rn(a[i], a[(i + 1) % n]);  // one instruction makes both halves
        out[5 * n + i] = __low2half(pair);
        out[6 * n + i] = __high2half(pair);
        wide[0 * n + i] = __half2float(h[i]);
        whole[0 * n + i] = __half2int_rn(h[i]);
        whole[1 * n + i] = __half2int_rz(h[i]);
        whole[2 * n + i] = __half2uint_ru(h[i]);
        whole[3 * n + i] = __half2short_rd(h[i]);
    }
}

extern "C" __global__ void bfloat16_conversions(const float* a, const __nv_bfloat16* b, __nv_bfloat16* out, float* wide,
                                                int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __float2bfloat16_rn(a[i]);
        out[1 * n + i] = __float2bfloat16_rz(a[i]);
        wide[i] = __bfloat162float(b[i]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Halves

extern "C" __global__ void half_arithmetic(const __half* a, const __half* b, const __half* c, __half* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __hadd(a[i], b[i]);
        out[1 * n + i] = __hsub(a[i], b[i]);
        out[2 * n + i] = __hmul(a[i], b[i]);
        out[3 * n + i] = __hfma(a[i], b[i], c[i]);
        out[4 * n + i] = __hadd_rn(__hmul_rn(a[i], b[i]), c[i]);  // not fused: two roundings
        out[5 * n + i] = __hadd_sat(a[i], b[i]);
        out[6 * n + i] = __hneg(a[i]);
        out[7 * n + i] = __habs(a[i]);
    }
}

// Comparisons, minima and maxima with NaN; hmin_nan and hmax_nan let NaN through, from sm_80 on in hardware.
extern "C" __global__ void half_comparisons(const __half* a, const __half* b, __half* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __hmin(a[i], b[i]);
        out[1 * n + i] = __hmax(a[i], b[i]);
        out[2 * n + i] = __hmin_nan(a[i], b[i]);
        out[3 * n + i] = __hmax_nan(a[i], b[i]);
        out[4 * n + i] = __int2half_rn(__hlt(a[i], b[i]) + 2 * __heq(a[i], b[i]) + 4 * __hgeu(a[i], b[i]));
        out[5 * n + i] = a[i] < __half(0.0f) ? __half(0.0f) : a[i];
        out[6 * n + i] = hrint(a[i]);
        out[7 * n + i] = hfloor(a[i]);
    }
}

// Two halves in one register.
extern "C" __global__ void half2_arithmetic(const __half2* a, const __half2* b, const __half2* c, __half2* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __hadd2(a[i], b[i]);
        out[1 * n + i] = __hsub2(a[i], b[i]);
        out[2 * n + i] = __hmul2(a[i], b[i]);
        out[3 * n + i] = __hfma2(a[i], b[i], c[i]);
        out[4 * n + i] = __hmax2(a[i], b[i]);
        out[5 * n + i] = __hmin2(a[i], c[i]);
        out[6 * n + i] = __lowhigh2highlow(a[i]);
        out[7 * n + i] = __hgt2(a[i], b[i]);
        out[8 * n + i] = __halves2half2(__high2half(a[i]), __low2half(b[i]));
        out[9 * n + i] = __hneg2(__habs2(a[i]));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Warps: launched with whole warps, one element a thread

// The four kinds of shuffle, in segments of 32, 16, 8 and 2 lanes.
extern "C" __global__ void shuffles(const int* a, const int* b, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, v = a[i];
    unsigned lane = b[i] & 31, step = b[i - i % 32] & 31;  // a lane of one's own, and a step that the warp shares
    out[0 * n + i] = __shfl_sync(EVERYONE, v, lane);
    out[1 * n + i] = __shfl_sync(EVERYONE, v, lane, 8);
    out[2 * n + i] = __shfl_up_sync(EVERYONE, v, step);
    out[3 * n + i] = __shfl_up_sync(EVERYONE, v, step, 16);
    out[4 * n + i] = __shfl_down_sync(EVERYONE, v, step);
    out[5 * n + i] = __shfl_down_sync(EVERYONE, v, step, 2);
    out[6 * n + i] = __shfl_xor_sync(EVERYONE, v, step);
    out[7 * n + i] = __shfl_xor_sync(EVERYONE, v, step, 8);
    out[8 * n + i] = __shfl_down_sync(EVERYONE, v, lane);  // each lane its own step
    out[9 * n + i] = __float_as_int(__shfl_xor_sync(EVERYONE, __int_as_float(v & 0x3fffffff), 16));
}

// A shuffle among the first twenty lanes; each reads a lane that takes part.
extern "C" __global__ void shuffles_partial(const int* a, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, v = a[i];
    out[i] = -1;
    if (lane < 20) {
        out[i] = __shfl_sync(0xfffffu, v, (lane * 7) % 20);
        out[n + i] = __shfl_xor_sync(0xfffffu, v, 3);
    } else {
        out[n + i] = lane;
    }
}

extern "C" __global__ void votes(const int* a, unsigned* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, v = a[i];
    out[0 * n + i] = __ballot_sync(EVERYONE, v > 3);
    out[1 * n + i] = __any_sync(EVERYONE, v == 7);
    out[2 * n + i] = __all_sync(EVERYONE, v > -1000);
    out[3 * n + i] = 0;
    if (threadIdx.x % 32 < 11) out[3 * n + i] = __ballot_sync(0x7ffu, v & 1) + (__all_sync(0x7ffu, v > 0) << 20);
}

// Which lanes hold the same value; whether all do.
extern "C" __global__ void matches(const int* a, unsigned* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, v = a[i] & 7, all = 0;
    out[0 * n + i] = __match_any_sync(EVERYONE, v);
    out[1 * n + i] = __match_all_sync(EVERYONE, v, &all) + all;
    out[2 * n + i] = __match_all_sync(EVERYONE, i / 32, &all) - all;
    out[3 * n + i] = __match_any_sync(EVERYONE, (unsigned long long)v << 40);
}

// Who is here. CUDA does not promise that a warp stays together after a branch; in a kernel this simple it does.
extern "C" __global__ void active_mask(unsigned* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = __activemask();
    out[n + i] = 0;
    if (threadIdx.x % 32 < 13) out[n + i] = __activemask();
}

// Reductions by shuffles: the order of the additions is fixed, so a sum of floats has one answer as well.
extern "C" __global__ void warp_reductions(const int* a, const float* x, int* out, float* sums, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, total = a[i] >> 6, least = a[i];
    float sum = x[i], most = x[i], butterfly = __fmul_rn(x[i], x[i]);
    for (int step = 16; step; step /= 2) {
        total += __shfl_down_sync(EVERYONE, total, step);
        least = min(least, __shfl_xor_sync(EVERYONE, least, step));
        sum += __shfl_down_sync(EVERYONE, sum, step);
        most = fmaxf(most, __shfl_xor_sync(EVERYONE, most, step));
        butterfly += __shfl_xor_sync(EVERYONE, butterfly, step);
    }
    out[0 * n + i] = total;
    out[1 * n + i] = least;
    sums[0 * n + i] = sum;
    sums[1 * n + i] = most;
    sums[2 * n + i] = butterfly;
}

// The same in one instruction, which cards from sm_80 on have; before, by shuffles.
extern "C" __global__ void warp_reduce_instructions(const int* a, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned v = a[i];
#if __CUDA_ARCH__ >= 800
    unsigned sum = __reduce_add_sync(EVERYONE, v), bits = __reduce_xor_sync(EVERYONE, v);
    int most = __reduce_max_sync(EVERYONE, a[i]);
    unsigned least = __reduce_min_sync(EVERYONE, v);
#else
    unsigned sum = v, bits = v, least = v;
    int most = a[i];
    for (int step = 16; step; step /= 2) {
        sum += __shfl_xor_sync(EVERYONE, sum, step);
        bits ^= __shfl_xor_sync(EVERYONE, bits, step);
        most = max(most, __shfl_xor_sync(EVERYONE, most, step));
        least = min(least, __shfl_xor_sync(EVERYONE, least, step));
    }
#endif
    out[0 * n + i] = sum;
    out[1 * n + i] = bits;
    out[2 * n + i] = most;
    out[3 * n + i] = least;
}

// ---------------------------------------------------------------------------------------------------------------------
// Blocks: launched with 256 threads

// A tree in shared memory: again one order of additions.
extern "C" __global__ void block_tree(const float* x, float* out, int n) {
    __shared__ float part[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = part[0];
}

// Barriers that count and vote.
extern "C" __global__ void block_votes(const int* a, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[0 * n + i] = __syncthreads_count(a[i] > 5);
    out[1 * n + i] = __syncthreads_and(a[i] > -5) + 10 * __syncthreads_or(a[i] == 7);
}

// Dynamic shared memory: each block reverses its stretch.
extern "C" __global__ void dynamic_shared(const float* x, float* out, int n) {
    extern __shared__ float tile[];
    int first = blockIdx.x * blockDim.x, count = min((int)blockDim.x, n - first);
    if (threadIdx.x < count) tile[threadIdx.x] = x[first + threadIdx.x];
    __syncthreads();
    if (threadIdx.x < count) out[first + threadIdx.x] = tile[count - 1 - threadIdx.x];
}

// A tile written by rows and read by columns, with a padding column; blocks of 16 x 16 threads.
extern "C" __global__ void shared_transpose(const float* x, float* out, int n) {
    __shared__ float tile[16][17];
    int row = threadIdx.x / 16, column = threadIdx.x % 16, first = blockIdx.x * 256;
    tile[row][column] = x[first + threadIdx.x];
    __syncthreads();
    out[first + threadIdx.x] = tile[column][row];
}

// Bytes, shorts, doubles and vectors of shared memory, scattered by a permutation.
extern "C" __global__ void bank_of_bytes(const int* a, double* out, int n) {
    __shared__ unsigned char bytes[256];
    __shared__ short shorts[256];
    __shared__ double doubles[256];
    __shared__ int4 vectors[256];
    int i = threadIdx.x, there = (i * 77 + 5) % 256, v = a[blockIdx.x * 256 + i];
    bytes[there] = v;
    shorts[there] = v >> 8;
    doubles[there] = v * 0.25;
    vectors[there] = make_int4(v, i, v ^ i, there);
    __syncthreads();
    int4 q = vectors[i];
    out[blockIdx.x * 256 + i] = bytes[i] + 1000.0 * shorts[i] + doubles[i] + q.x + q.y + (q.z & 1023) + q.w;
}

// ---------------------------------------------------------------------------------------------------------------------
// Atomics: on 16 counters that start at zero; what is left when all are done

extern "C" __global__ void atomics_integer(const int* a, int* out, int n) {
    FOR_EACH(i, n) {
        atomicAdd(&out[a[i] & 3], a[i]);
        atomicMin(&out[4], a[i]);
        atomicMax(&out[5], a[i]);
        atomicMax((unsigned*)&out[6], (unsigned)a[i]);
        atomicAnd(&out[7], a[i]);
        atomicOr(&out[8], a[i] & 0x0f0f);
        atomicXor(&out[9], a[i]);
        atomicInc((unsigned*)&out[10], 1000);
        atomicDec((unsigned*)&out[11], 1000);
        atomicSub(&out[12], a[i]);
        atomicCAS(&out[13], 0, 9);
        atomicExch(&out[14], 7);
    }
}

// Counters of the block in shared memory, added to the grid's: a histogram.
extern "C" __global__ void atomics_shared(const int* a, int* out, int n) {
    __shared__ int count[16];
    if (threadIdx.x < 16) count[threadIdx.x] = 0;
    __syncthreads();
    FOR_EACH(i, n) atomicAdd(&count[a[i] & 15], 1 + (a[i] >> 28));
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&out[threadIdx.x], count[threadIdx.x]);
}

// Compare-and-swap in a loop: a maximum of floats (not NaN) through their bits.
extern "C" __global__ void atomics_cas(const float* x, float* out, int n) {
    FOR_EACH(i, n) {
        if (x[i] != x[i]) continue;
        int* cell = (int*)&out[i % 16];
        int seen = *(volatile int*)cell, before;
        do {
            before = seen;
            if (__int_as_float(before) >= x[i]) break;
            seen = atomicCAS(cell, before, __float_as_int(x[i]));
        } while (seen != before);
    }
}

// Sums of floats that are representable in every order: small whole numbers and quarters.
extern "C" __global__ void atomics_float(const int* a, float* out, double* wide, int n) {
    __shared__ float sum;
    if (threadIdx.x == 0) sum = 0.0f;
    __syncthreads();
    FOR_EACH(i, n) {
        float v = (a[i] & 255) * 0.25f - 16.0f;
        atomicAdd(&out[i % 8], v);
        atomicAdd(&wide[i % 8], (double)v);
        atomicAdd(&sum, v);
    }
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&out[8], sum);
}

extern "C" __global__ void atomics_wide(const long long* a, unsigned long long* out, int n) {
    FOR_EACH(i, n) {
        atomicAdd(&out[a[i] & 3], (unsigned long long)a[i]);
        atomicMax(&out[4], (unsigned long long)a[i]);
        atomicMin((long long*)&out[5], a[i]);
        atomicXor(&out[6], (unsigned long long)a[i]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

// Sixteen bytes at once, and the elements that are left over.
extern "C" __global__ void vectors_float4(const float* x, float* out, int n) {
    FOR_EACH(v, n / 4) {
        float4 q = reinterpret_cast<const float4*>(x)[v];
        reinterpret_cast<float4*>(out)[v] = make_float4(q.w + 1.0f, q.z * 2.0f, -q.y, q.x);
    }
    FOR_EACH(i, n % 4) out[n / 4 * 4 + i] = x[n / 4 * 4 + i];
}

// Vectors of other types, eight bytes and sixteen.
extern "C" __global__ void vectors_mixed(const int2* a, const double2* b, const uchar4* c, double2* out, short4* s, int n) {
    FOR_EACH(i, n) {
        out[i] = make_double2(b[i].y + a[i].x, b[i].x - a[i].y);
        s[i] = make_short4(c[i].w, -c[i].z, c[i].y * 3, c[i].x + 300);
    }
}

// Vectors where the address allows it, else single elements: at any alignment the same answer.
extern "C" __global__ void vectors_or_scalars(const float* x, float* out, int n) {
    bool aligned = (reinterpret_cast<size_t>(x) | reinterpret_cast<size_t>(out)) % 16 == 0;
    int vectors = aligned ? n / 4 : 0;
    FOR_EACH(v, vectors) {
        float4 q = reinterpret_cast<const float4*>(x)[v];
        reinterpret_cast<float4*>(out)[v] = make_float4(q.x * 0.5f, q.y * 0.5f, q.z * 0.5f, q.w * 0.5f);
    }
    FOR_EACH(i, n - 4 * vectors) out[4 * vectors + i] = x[4 * vectors + i] * 0.5f;
}

__constant__ float TABLE[8] = {1.0f, 0.1f, -3.5f, 1e30f, 1e-40f, 7.0f, 0.333f, -0.0f};

extern "C" __global__ void constant_table(const int* a, const float* x, float* out, int n) {
    FOR_EACH(i, n) out[i] = TABLE[a[i] & 7] * x[i] + TABLE[5];
}

__device__ float CELLS[4] = {10.0f, 20.0f, 30.0f, 40.0f};

// One pointer that may lead into any kind of memory.
extern "C" __global__ void generic_pointers(const float* x, float* out, int n) {
    __shared__ float near[4];
    float own[4];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (threadIdx.x < 4) near[threadIdx.x] = 100.0f * (threadIdx.x + 1);
    for (int j = 0; j < 4; j++) own[j] = 1000.0f * (j + 1) + i;
    __syncthreads();
    if (i >= n) return;
    const float* from = i % 5 == 0 ? near : i % 5 == 1 ? own : i % 5 == 2 ? TABLE : i % 5 == 3 ? CELLS : x + i / 4 * 4;
    out[i] = from[i & 3];
}

// ---------------------------------------------------------------------------------------------------------------------
// Control

// An array of one's own, indexed by data, so that it lies in local memory.
extern "C" __global__ void local_array(const int* a, const float* x, float* out, int n) {
    FOR_EACH(i, n) {
        float own[16];
        for (int j = 0; j < 16; j++) own[(j * 5 + (a[i] & 15)) & 15] = x[(i + j) % n];
        float chosen = own[(a[i] >> 4) & 15];
        own[a[i] & 7] = chosen + 1.0f;
        out[i] = own[i & 15] - own[(a[i] >> 8) & 15];
    }
}

extern "C" __global__ void switch_cases(const int* a, const float* x, float* out, int n) {
    FOR_EACH(i, n) {
        float v = x[i];
        switch (a[i] & 15) {
            case 0: v += 1.0f; break;
            case 1: v *= 2.0f; break;
            case 2: v = -v; [[fallthrough]];
            case 3: v /= 3.0f; break;
            case 5: v = fmaxf(v, 0.5f); break;
            case 7: v = i; break;
            case 8: v = v * v; break;
            case 9: v = sqrtf(fabsf(v)); break;
            case 12: continue;
            default: v = -1.0f;
        }
        out[i] = v;
    }
}

// Loops of data-dependent length, with break and continue.
extern "C" __global__ void collatz(const int* a, int* out, int n) {
    FOR_EACH(i, n) {
        unsigned v = (a[i] & 0xffff) + 1, steps = 0, odd = 0;
        while (v != 1) {
            if (++steps > 150) break;
            v = v & 1 ? 3 * v + 1 : v / 2;
            if (!(v & 1)) continue;
            odd++;
        }
        out[i] = steps * 1000 + odd;
    }
}

struct Pair {
    float first;
    int second;
};

__device__ __noinline__ Pair turned(Pair p, int k, float* sum) {
    *sum = p.first + k;
    return Pair{p.first * k, p.second ^ k};
}

// Calls that are not inlined, structures by value, pointers to one's own variables.
extern "C" __global__ void calls_and_structs(const int* a, const float* x, float* out, int n) {
    FOR_EACH(i, n) {
        float sum;
        Pair p = turned(Pair{x[i], a[i]}, i & 31, &sum);
        if (a[i] & 1) p = turned(p, 3, &sum);
        out[0 * n + i] = p.first;
        out[1 * n + i] = p.second & 0xffff;
        out[2 * n + i] = sum;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensor cores, in whole warps; small whole numbers, whose sums every order of adding gives exactly

// ldmatrix: four matrices of 8 by 8 halves per warp, as they are and transposed.
extern "C" __global__ void matrix_loads(const unsigned* x, unsigned* out, int n) {
    __shared__ uint4 rows[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.x;
    rows[t] = make_uint4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    __syncwarp();
    unsigned at = (unsigned)__cvta_generic_to_shared(&rows[t]), a, b, c, d;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at) : "memory");
    out[0 * n + i] = a, out[1 * n + i] = b, out[2 * n + i] = c, out[3 * n + i] = d;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(at) : "memory");
    out[4 * n + i] = a, out[5 * n + i] = b, out[6 * n + i] = c, out[7 * n + i] = d;
}

__device__ unsigned two_halves(const int* a, int i, int n) {
    __half2 both = __halves2half2(__int2half_rn(a[i % n]), __int2half_rn(a[(i + 1) % n]));
    return *(unsigned*)&both;
}

// mma.sync.m16n8k8 into float32 and into float16.
extern "C" __global__ void tensor_products(const int* a, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned a0 = two_halves(a, i, n), a1 = two_halves(a, i + 7, n), b = two_halves(a, i + 31, n);
    float c0 = a[i], c1 = -a[i], c2 = 1, c3 = 0;
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3) : "r"(a0), "r"(a1), "r"(b));
    out[0 * n + i] = c0, out[1 * n + i] = c1, out[2 * n + i] = c2, out[3 * n + i] = c3;
    unsigned d0 = a1, d1 = b;
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0,%1},{%2,%3},{%4},{%0,%1};"
                 : "+r"(d0), "+r"(d1) : "r"(a0), "r"(a1), "r"(b));
    out[4 * n + i] = __low2float(*(__half2*)&d0), out[5 * n + i] = __high2float(*(__half2*)&d0);
    out[6 * n + i] = __low2float(*(__half2*)&d1), out[7 * n + i] = __high2float(*(__half2*)&d1);
}

// wmma: 16 by 16 by 16, one matrix per warp, through shared memory; B is A by columns: A times its transpose.
extern "C" __global__ void fragments_of_mma(const int* a, float* out, int n) {
    using namespace nvcuda;
    __shared__ __align__(32) __half tiles[8][256];
    int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, first = i - lane;
    __half* tile = tiles[threadIdx.x / 32];
    for (int k = lane; k < 256; k += 32) tile[k] = __int2half_rn(a[(first + k) % n]);
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> right;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 1.0f);
    wmma::load_matrix_sync(left, tile, 16);
    wmma::load_matrix_sync(right, tile, 16);
    wmma::mma_sync(sum, left, right, sum);
    wmma::store_matrix_sync(out + 8 * first, sum, 16, wmma::mem_row_major);
}

// Copies in two stages; before sm_80 the header copies at once. The last one fills 12 of 16 bytes with zeros.
extern "C" __global__ void async_copies(const float* x, float* out, int n) {
    __shared__ __align__(16) float stage[2][256], filled[256][4];
    int i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.x;
    __pipeline_memcpy_async(&stage[0][t], x + i, 4);
    __pipeline_commit();
    __pipeline_memcpy_async(&stage[1][t], x + n + i, 4);
    __pipeline_memcpy_async(&filled[t], x + t / 4 * 4, 16, 12);
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    out[0 * n + i] = stage[0][t ^ 77];
    __pipeline_wait_prior(0);
    __syncthreads();
    out[1 * n + i] = stage[1][t ^ 77];
    out[2 * n + i] = filled[t ^ 1][0];
    out[3 * n + i] = filled[t ^ 1][3];
}

// ---------------------------------------------------------------------------------------------------------------------
// Approximate: the special function unit's tables are the hardware's own, and the emulator computes more exactly

#define APPROXIMATE(expression) FOR_EACH(i, n) out[i] = expression

extern "C" __global__ void approximate_expf(const float* x, float* out, int n) { APPROXIMATE(expf(x[i])); }
extern "C" __global__ void approximate_fast_expf(const float* x, float* out, int n) { APPROXIMATE(__expf(x[i])); }
extern "C" __global__ void approximate_exp2f(const float* x, float* out, int n) { APPROXIMATE(exp2f(x[i])); }
extern "C" __global__ void approximate_logf(const float* x, float* out, int n) { APPROXIMATE(logf(x[i])); }
extern "C" __global__ void approximate_log2f(const float* x, float* out, int n) { APPROXIMATE(log2f(x[i])); }
extern "C" __global__ void approximate_fast_log2f(const float* x, float* out, int n) { APPROXIMATE(__log2f(x[i])); }
extern "C" __global__ void approximate_rsqrtf(const float* x, float* out, int n) { APPROXIMATE(rsqrtf(x[i])); }
extern "C" __global__ void approximate_tanhf(const float* x, float* out, int n) { APPROXIMATE(tanhf(x[i])); }
extern "C" __global__ void approximate_erff(const float* x, float* out, int n) { APPROXIMATE(erff(x[i])); }
extern "C" __global__ void approximate_sinf(const float* x, float* out, int n) { APPROXIMATE(sinf(x[i])); }
extern "C" __global__ void approximate_cosf(const float* x, float* out, int n) { APPROXIMATE(cosf(x[i])); }
extern "C" __global__ void approximate_fast_sinf(const float* x, float* out, int n) { APPROXIMATE(__sinf(x[i])); }
extern "C" __global__ void approximate_fast_cosf(const float* x, float* out, int n) { APPROXIMATE(__cosf(x[i])); }
extern "C" __global__ void approximate_powf(const float* x, float* out, int n) { APPROXIMATE(powf(x[i], 1.7f)); }

extern "C" __global__ void approximate_division(const float* x, float* out, int n) {
    APPROXIMATE(__fdividef(1.7f, x[i]));
}

// The instruction behind the fast GELU: about eleven bits are right.
extern "C" __global__ void approximate_tanh(const float* x, float* out, int n) {
    FOR_EACH(i, n) asm("tanh.approx.f32 %0, %1;" : "=f"(out[i]) : "f"(x[i]));
}

extern "C" __global__ void approximate_hexp(const __half* x, __half* out, int n) { APPROXIMATE(hexp(x[i])); }
extern "C" __global__ void approximate_hdiv(const __half* x, __half* out, int n) {
    APPROXIMATE(__hdiv(x[i], x[(i + 1) % n]));
}
