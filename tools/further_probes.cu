// Further probes of the device, for tools/compare_devices.py: what lessons seldom use and other kernels do.
//
//   conversions eight_bits, eight_bits_of_halves, bfloat16_rounding, bfloat16_of_integers
//   integers    packed_pairs, permutations, flushed_arithmetic
//   division    divisors_of_any_size
//   atomics     atomics_found, atomics_found_wide, atomics_narrow, atomics_halves, atomics_subnormal, atomics_vectors,
//               atomics_of_scopes
//   warps       group_masks
//   calls       recursion, recursive_sort, pointers_to_functions, virtual_functions, switch_of_many_cases
//   groups      tiles, coalesced, grid_sync
//
// Shape, exactness and order are those of device_probes.cu: the result k of element i is out[k * n + i], every answer is
// right to the last bit, and none depends on the order of threads. Instructions that are younger than an architecture
// have the same meaning there in other words: __CUDA_ARCH__ chooses.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

namespace cg = cooperative_groups;

#define FOR_EACH(i, n) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
#define EVERYONE 0xffffffffu

// ---------------------------------------------------------------------------------------------------------------------
// Conversions

// float32 to e4m3 and e5m2, saturated; and the float16 that the codes stand for.
extern "C" __global__ void eight_bits(const float* a, const float* b, int* out, int n) {
    FOR_EACH(i, n) {
        float2 pair = make_float2(a[i], b[i]);
        __nv_fp8x2_storage_t four = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
        __nv_fp8x2_storage_t five = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E5M2);
        out[0 * n + i] = four;
        out[1 * n + i] = five;
        __half2_raw wide = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)__float_as_int(a[i]), __NV_E4M3);
        out[2 * n + i] = wide.x | wide.y << 16;
        wide = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)__float_as_int(b[i]), __NV_E5M2);
        out[3 * n + i] = wide.x | wide.y << 16;
    }
}

// All float16 to both formats.
extern "C" __global__ void eight_bits_of_halves(int* out, int n) {
    FOR_EACH(i, n) {
        __half2_raw pair;
        pair.x = i;
        pair.y = ~i;
        out[0 * n + i] = __nv_cvt_halfraw2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
        out[1 * n + i] = __nv_cvt_halfraw2_to_fp8x2(pair, __NV_SATFINITE, __NV_E5M2);
    }
}

// Every direction of rounding to bfloat16, from float32 and float64 (NaN become the one of bfloat16).
extern "C" __global__ void bfloat16_rounding(const float* a, const double* d, __nv_bfloat16* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __float2bfloat16_rn(a[i]);
        out[1 * n + i] = __float2bfloat16_rz(a[i]);
        out[2 * n + i] = __float2bfloat16_ru(a[i]);
        out[3 * n + i] = __float2bfloat16_rd(a[i]);
        out[4 * n + i] = __double2bfloat16(d[i]);
    }
}

extern "C" __global__ void bfloat16_of_integers(const long long* w, const int* a, __nv_bfloat16* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __ll2bfloat16_rn(w[i]);
        out[1 * n + i] = __ll2bfloat16_rz(w[i]);
        out[2 * n + i] = __ull2bfloat16_ru(w[i]);
        out[3 * n + i] = __ull2bfloat16_rd(w[i]);
        out[4 * n + i] = __int2bfloat16_rd(a[i]);
        out[5 * n + i] = __uint2bfloat16_rn(a[i]);
        out[6 * n + i] = __short2bfloat16_ru(a[i]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Integers

// Two half-words or four bytes in a word.
extern "C" __global__ void packed_pairs(const unsigned* a, const unsigned* b, unsigned* out, int n) {
    FOR_EACH(i, n) {
        out[0 * n + i] = __vadd2(a[i], b[i]);
        out[1 * n + i] = __vmaxs2(a[i], b[i]);
        out[2 * n + i] = __vminu2(a[i], b[i]);
        out[3 * n + i] = __vimax_s16x2_relu(a[i], b[i]);
        out[4 * n + i] = __vimin_s16x2_relu(a[i], b[i]);
        out[5 * n + i] = __vabsdiffu4(a[i], b[i]);
        out[6 * n + i] = __vsadu4(a[i], b[i]);
        out[7 * n + i] = __vabsdiffs4(a[i], b[i]);
        out[8 * n + i] = __vimax_s32_relu(a[i], b[i]);
        out[9 * n + i] = __dp2a_lo((int)a[i], (int)b[i], 3) + __dp2a_hi(a[i], b[i], 5u);
    }
}

// The modes of prmt, with selectors of any bits.
extern "C" __global__ void permutations(const unsigned* a, const unsigned* b, unsigned* out, int n) {
    FOR_EACH(i, n) {
        unsigned s = b[(i + 1) % n];
        asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out[0 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(s));
        asm("prmt.b32.f4e %0, %1, %2, %3;" : "=r"(out[1 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(s));
        asm("prmt.b32.b4e %0, %1, %2, %3;" : "=r"(out[2 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(s));
        asm("prmt.b32.rc8 %0, %1, %2, %3;" : "=r"(out[3 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(s));
        asm("prmt.b32.ecl %0, %1, %2, %3;" : "=r"(out[4 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(s));
        asm("prmt.b32.ecr %0, %1, %2, %3;" : "=r"(out[5 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(s));
        asm("prmt.b32.rc16 %0, %1, %2, %3;" : "=r"(out[6 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(s));
        asm("vabsdiff2.s32.s32.s32 %0, %1, %2, %3;" : "=r"(out[7 * n + i]) : "r"(a[i]), "r"(b[i]), "r"(0));
    }
}

// float32 with subnormal numbers flushed, and saturated, under the directions of rounding.
extern "C" __global__ void flushed_arithmetic(const float* a, const float* b, const float* c, float* out, int n) {
    FOR_EACH(i, n) {
        asm("add.ftz.f32 %0, %1, %2;" : "=f"(out[0 * n + i]) : "f"(a[i]), "f"(b[i]));
        asm("mul.ftz.f32 %0, %1, %2;" : "=f"(out[1 * n + i]) : "f"(a[i]), "f"(b[i]));
        asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(out[2 * n + i]) : "f"(a[i]), "f"(b[i]), "f"(c[i]));
        asm("add.rz.ftz.f32 %0, %1, %2;" : "=f"(out[3 * n + i]) : "f"(a[i]), "f"(b[i]));
        asm("mul.rp.ftz.f32 %0, %1, %2;" : "=f"(out[4 * n + i]) : "f"(a[i]), "f"(b[i]));
        asm("fma.rm.ftz.f32 %0, %1, %2, %3;" : "=f"(out[5 * n + i]) : "f"(a[i]), "f"(b[i]), "f"(c[i]));
        asm("add.sat.f32 %0, %1, %2;" : "=f"(out[6 * n + i]) : "f"(a[i]), "f"(b[i]));
        asm("fma.rn.ftz.sat.f32 %0, %1, %2, %3;" : "=f"(out[7 * n + i]) : "f"(a[i]), "f"(b[i]), "f"(c[i]));
        asm("div.rn.ftz.f32 %0, %1, %2;" : "=f"(out[8 * n + i]) : "f"(a[i]), "f"(b[i]));
        asm("sqrt.rn.ftz.f32 %0, %1;" : "=f"(out[9 * n + i]) : "f"(a[i]));
        asm("min.ftz.f32 %0, %1, %2;" : "=f"(out[10 * n + i]) : "f"(a[i]), "f"(b[i]));
        asm("cvt.rzi.ftz.f32.f32 %0, %1;" : "=f"(out[11 * n + i]) : "f"(a[i]));
        asm("cvt.sat.f32.f32 %0, %1;" : "=f"(out[12 * n + i]) : "f"(a[i]));
    }
}

// div.approx by what lies beyond 2^126: zero of a number, NaN of an infinity.
extern "C" __global__ void divisors_of_any_size(const float* a, float* out, int n) {
    FOR_EACH(i, n) {
        float divisor = copysignf(1e38f + fabsf(a[i] - truncf(a[i])) * 1e38f, a[i]);
        if (!(fabsf(a[i]) < 1e30f)) divisor = 1.5e38f;
        out[0 * n + i] = __fdividef(a[i], divisor);
        out[1 * n + i] = __fdividef(i % 2 ? 1.0f : __int_as_float(0x7f800000), divisor);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Atomics

// Each thread has a cell of its own, so what it finds is certain, and what it leaves.
extern "C" __global__ void atomics_found(const int* a, const int* b, int* out, int n) {
    __shared__ int near[256];
    FOR_EACH(i, n) {
        int* cell = &out[12 * n + i];
        out[0 * n + i] = atomicAdd(cell, a[i]);
        out[1 * n + i] = atomicMax(cell, b[i]);
        out[2 * n + i] = atomicMin((unsigned*)cell, (unsigned)a[i]);
        out[3 * n + i] = atomicInc((unsigned*)cell, b[i]);
        out[4 * n + i] = atomicDec((unsigned*)cell, a[i]);
        out[5 * n + i] = atomicXor(cell, b[i]);
        out[6 * n + i] = atomicAnd(cell, a[i] | 0xff00);
        out[7 * n + i] = atomicOr(cell, b[i] & 0xf0f);
        out[8 * n + i] = atomicCAS(cell, i % 2 ? *cell : 1, a[i]);
        out[9 * n + i] = atomicExch(cell, b[i]);
        near[threadIdx.x] = a[i];
        out[10 * n + i] = atomicInc((unsigned*)&near[threadIdx.x], b[i]) + atomicDec((unsigned*)&near[threadIdx.x], 9);
        out[11 * n + i] = atomicCAS(&near[threadIdx.x], 3, 4) + atomicMin(&near[threadIdx.x], b[i]);
    }
}

extern "C" __global__ void atomics_found_wide(const long long* a, const long long* b, long long* out, int n) {
    __shared__ unsigned long long near[256];
    FOR_EACH(i, n) {
        unsigned long long* cell = (unsigned long long*)&out[9 * n + i];
        out[0 * n + i] = atomicAdd(cell, (unsigned long long)a[i]);
        out[1 * n + i] = atomicMax((long long*)cell, b[i]);
        out[2 * n + i] = atomicMin(cell, (unsigned long long)a[i]);
        out[3 * n + i] = atomicXor(cell, (unsigned long long)b[i]);
        out[4 * n + i] = atomicAnd(cell, (unsigned long long)a[i] | 0xffff0000ull);
        out[5 * n + i] = atomicOr(cell, (unsigned long long)b[i] & 0xf0full);
        out[6 * n + i] = atomicCAS(cell, i % 2 ? *cell : 1ull, (unsigned long long)b[i]);
        out[7 * n + i] = atomicExch(cell, (unsigned long long)a[i]);
        near[threadIdx.x] = b[i];
        atomicAdd(&near[threadIdx.x], (unsigned long long)a[i]);
        out[8 * n + i] = atomicMax(&near[threadIdx.x], 7ull);
    }
}

// Sixteen bits.
extern "C" __global__ void atomics_narrow(const int* a, unsigned short* out, int n) {
    FOR_EACH(i, n) {
        unsigned short* cell = &out[2 * n + i];
        out[0 * n + i] = atomicCAS(cell, (unsigned short)7, (unsigned short)a[i]);
        out[1 * n + i] = atomicCAS(cell, (unsigned short)a[i], (unsigned short)(a[i] >> 16));
    }
}

// Sums of halves that are exact in every order: a few small whole numbers in each of 512 cells.
extern "C" __global__ void atomics_halves(const int* a, __half* h, __half2* pairs, __nv_bfloat16* b,
                                          __nv_bfloat162* brains, int n) {
    FOR_EACH(i, n) {
        float v = (a[i] & 7) - 3.0f, w = (a[i] >> 4 & 7) - 3.0f;
        atomicAdd(&h[i % 512], __half(v));
        atomicAdd(&pairs[i % 256], __half2(__half(v), __half(w)));
        atomicAdd(&b[i % 512], __nv_bfloat16(w));
        atomicAdd(&brains[i % 256], __nv_bfloat162(__nv_bfloat16(w), __nv_bfloat16(v)));
    }
}

// Adding to a subnormal number: float32 in global memory flushes it, in shared memory and as float64 it is kept.
extern "C" __global__ void atomics_subnormal(const float* a, float* out, double* wide, int n) {
    __shared__ float near[256];
    FOR_EACH(i, n) {
        float v = i % 3 ? __fmul_rn(a[i], 1e-38f) : a[i];
        atomicAdd(&out[i], v);
        atomicAdd(&wide[i], (double)v * 1e-300);
        near[threadIdx.x] = 2e-39f;
        atomicAdd(&near[threadIdx.x], v);
        out[n + i] = near[threadIdx.x];
    }
}

// Two and four float32 at once.
extern "C" __global__ void atomics_vectors(const int* a, float4* fours, float2* twos, int n) {
    FOR_EACH(i, n) {
        float v = (a[i] & 255) * 0.25f;
#if __CUDA_ARCH__ >= 900
        atomicAdd(&fours[i % 16], make_float4(v, 1.0f, -v, i));
        atomicAdd(&twos[i % 16], make_float2(v, -2.0f));
#else
        float *four = &fours[i % 16].x, *two = &twos[i % 16].x;
        atomicAdd(four, v), atomicAdd(four + 1, 1.0f), atomicAdd(four + 2, -v), atomicAdd(four + 3, (float)i);
        atomicAdd(two, v), atomicAdd(two + 1, -2.0f);
#endif
    }
}

// Scopes and orders, and reductions that return nothing.
extern "C" __global__ void atomics_of_scopes(const int* a, int* out, int n) {
    FOR_EACH(i, n) {
        int *cell = &out[i % 4], found;
        atomicAdd_block(&out[4 + blockIdx.x % 4], a[i] & 15);  // each block its own, or one after another
        atomicAdd_system(&out[8], a[i] & 255);
        asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(cell), "r"(a[i] & 7) : "memory");
        asm volatile("atom.acq_rel.sys.global.max.s32 %0, [%1], %2;" : "=r"(found) : "l"(&out[9]), "r"(a[i]) : "memory");
        asm volatile("fence.acq_rel.gpu;" ::: "memory");
        __threadfence();
        asm volatile("red.relaxed.cta.global.xor.b32 [%0], %1;" ::"l"(&out[10]), "r"(0) : "memory");
        asm volatile("atom.acquire.gpu.global.or.b32 %0, [%1], %2;" : "=r"(found) : "l"(&out[11]), "r"(a[i] & 0xff) : "memory");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Warps

// Three groups of a warp, each with the mask of its own lanes, in one instruction.
extern "C" __global__ void group_masks(const int* a, unsigned* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, all;
    unsigned mask = lane < 12 ? 0xfffu : lane < 20 ? 0xff000u : 0xfff00000u;
    out[0 * n + i] = __ballot_sync(mask, a[i] & 1);
    out[1 * n + i] = __any_sync(mask, a[i] == 5) + 2 * __all_sync(mask, a[i] > -9);
    out[2 * n + i] = __match_any_sync(mask, a[i] & 3);
    out[3 * n + i] = __match_all_sync(mask, a[i] & 0, &all) + all;
    out[4 * n + i] = __shfl_sync(mask, a[i], lane < 12 ? 7 : lane < 20 ? 15 : 30);
#if __CUDA_ARCH__ >= 800
    out[5 * n + i] = __reduce_add_sync(mask, (unsigned)a[i]);
#else
    unsigned sum = 0;
    for (int from = lane < 12 ? 0 : lane < 20 ? 12 : 20, k = 0; k < 12; k++) {
        int source = min(from + k, lane < 12 ? 11 : lane < 20 ? 19 : 31);
        unsigned v = __shfl_sync(mask, a[i], source);
        sum += from + k == source ? v : 0;
    }
    out[5 * n + i] = sum;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Calls

__device__ __noinline__ int ways(int n) { return n < 2 ? 1 : ways(n - 1) + ways(n - 2); }

extern "C" __global__ void recursion(const int* a, int* out, int n) {
    FOR_EACH(i, n) {
        int depth = a[i] & 7, before = a[i] >> 8;
        out[i] = (i % 3 ? ways(depth) : -ways(depth + 1)) + before;
    }
}

// A sort of eight numbers that calls itself, on an array of the thread's own.
__device__ __noinline__ void sort(int* x, int first, int last) {
    if (first >= last) return;
    int pivot = x[(first + last) / 2], i = first, j = last;
    while (i <= j) {
        while (x[i] < pivot) i++;
        while (x[j] > pivot) j--;
        if (i <= j) {
            int held = x[i];
            x[i++] = x[j];
            x[j--] = held;
        }
    }
    sort(x, first, j);
    sort(x, i, last);
}

extern "C" __global__ void recursive_sort(const int* a, int* out, int n) {
    FOR_EACH(i, n) {
        int own[8];
        for (int k = 0; k < 8; k++) own[k] = a[(i + 3 * k) % n];
        sort(own, 0, 7);
        for (int k = 0; k < 8; k++) out[k * n + i] = own[k];
    }
}

typedef float (*Function)(float, int);
__device__ __noinline__ float twice(float x, int k) { return 2 * x + k; }
__device__ __noinline__ float square(float x, int k) {  // ptxas may fuse a product and a difference that say no .rn
    return __fsub_rn(__fmul_rn(x, x), k);
}
__device__ __noinline__ float halved(float x, int k) { return 0.5f * x; }
__constant__ Function CHOICES[3] = {twice, square, halved};

extern "C" __global__ void pointers_to_functions(const int* a, const float* x, float* out, int n) {
    FOR_EACH(i, n) out[i] = CHOICES[(a[i] & 0xff) % 3](x[i], a[i] & 15);
}

struct Shape {
    float side;
    __device__ Shape(float v) : side(v) {}
    __device__ virtual float area() const { return side; }
};
struct Square : Shape {
    __device__ Square(float v) : Shape(v) {}
    __device__ float area() const override { return side * side; }
};

extern "C" __global__ void virtual_functions(const int* a, const float* x, float* out, int n) {
    FOR_EACH(i, n) {
        Shape plain(x[i]);
        Square square(x[i]);
        const Shape* shape = a[i] & 1 ? &plain : &square;
        out[i] = shape->area();
    }
}

extern "C" __global__ void switch_of_many_cases(const int* a, int* out, int n) {
    FOR_EACH(i, n) {
        int v = a[i] & 31;
        switch (v) {
            case 0: v = a[i] >> 4; break;
            case 1: v = a[i] * 3; break;
            case 2: v = a[i] ^ 77; break;
            case 3: v = ~a[i]; break;
            case 4: v = a[i] & 1000; break;
            case 5: v = __popc(a[i]); break;
            case 6: v = a[i] | 4096; break;
            case 7: v = a[i] % 7; break;
            case 8: v = a[i] / 9; break;
            case 9: v = min(a[i], 10); break;
            case 10: v = max(a[i], 12); break;
            case 11: v = -1; [[fallthrough]];
            case 12: v += 5; break;
            case 14: v = __clz(a[i]); break;
            case 15: v = a[i] << 3; break;
            case 16: v = __brev(a[i]); break;
            default: v = 1000 + v;
        }
        out[i] = v;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Cooperative groups

// Tiles of a block: launched with whole blocks, one element a thread.
extern "C" __global__ void tiles(const int* a, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, v = a[i] >> 8;
    cg::thread_block block = cg::this_thread_block();
    auto tile = cg::tiled_partition<16>(block);
    auto pair = cg::tiled_partition<2>(tile);
    out[0 * n + i] = tile.shfl_down(v, 3) + tile.shfl_xor(v, 8) + tile.shfl(v, 5);
    out[1 * n + i] = cg::reduce(tile, v, cg::plus<int>());
    out[2 * n + i] = cg::reduce(tile, v, cg::less<int>()) + pair.shfl_xor(v, 1);
    out[3 * n + i] = cg::inclusive_scan(tile, v);
    out[4 * n + i] = tile.ballot(v & 1) + tile.any(v == 5) * 100000;
    out[5 * n + i] = tile.thread_rank() + 100 * tile.meta_group_rank() + block.thread_rank() * 10000;
    auto parted = cg::tiled_partition<32>(block);
    out[6 * n + i] = cg::labeled_partition(parted, v & 3).size() + 100 * cg::binary_partition(parted, v > 0).size();
}

// The threads of a warp that take one branch. CUDA does not promise that they stay together; here nothing parts them.
extern "C" __global__ void coalesced(const int* a, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, v = a[i] >> 8;
    out[0 * n + i] = out[1 * n + i] = out[2 * n + i] = -1;
    if (v & 1) {
        auto odd = cg::coalesced_threads();
        out[0 * n + i] = odd.thread_rank() + 100 * odd.size();
        out[1 * n + i] = odd.shfl(v, 0);
        out[2 * n + i] = cg::reduce(odd, v, cg::plus<int>());
    }
}

// The whole grid waits twice: what other blocks have written is read. A cooperative launch.
extern "C" __global__ void grid_sync(const float* x, float* out, int n) {
    cg::grid_group grid = cg::this_grid();
    int first = grid.thread_rank(), step = grid.size();
    for (int i = first; i < n; i += step) out[i] = x[i] * 0.5f;
    grid.sync();
    for (int i = first; i < n; i += step) out[n + i] = out[n - 1 - i];
    grid.sync();
    for (int i = first; i < n; i += step) out[2 * n + i] = out[n + (i + 7) % n];
}
