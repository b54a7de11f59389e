// Tensor cores by hand, for float16, bfloat16 and float32 rounded to TF32: what the convolutions are built from.
//
//   product(d, a, b0, b1)       D (16 x 8, float) += A (16 x 32 bytes) B (32 bytes x 8), by one warp
//   load_matrices(r, address)   ldmatrix.x4: four matrices of 8 rows of 16 bytes, as the fragments of `product`
//   copy_16(to, from), commit_copies(), await_copies<N>()       cp.async, its groups, and the wait for all but N of them
//   row_offset<GROUPS>(row, group)                              where a 16-byte group of a row lies in shared memory
//   Group<T>, rounded<T>        16 bytes of numbers; what the tensor core sees of one
//
// fragments  32 bytes of a row are 16 numbers of 16 bits or 8 of TF32, and for both ldmatrix hands each lane the
//            registers that mma.sync wants: row lane / 4, the 4 bytes at 4 * (lane % 4), of each 8 x 16-byte matrix. So
//            one code serves the three types; only the instruction differs (m16n8k16, m16n8k8 of TF32).
// sm_75      has m16n8k8 of float16 alone, of which `product` makes two, and no cp.async: a copy is then a load and a
//            store, done when it returns.
// banks      ldmatrix reads 8 rows at once, 16 bytes of each: without conflict if the 8 groups fall in 8 different
//            sixteens of the 128 bytes that the banks span. `row_offset` exchanges the groups of a row accordingly.
#pragma once
#include "vectors.cuh"

__device__ inline unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---------------------------------------------------------------------------------------------------------------------
// Products

#if __CUDA_ARCH__ >= 800
#define PRODUCT(SHAPE_AND_TYPES)                                                                          \
    asm volatile("mma.sync.aligned." SHAPE_AND_TYPES                                                       \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                        \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#endif

template <typename T>
__device__ void product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ inline void product<__half>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    PRODUCT("m16n8k16.row.col.f32.f16.f16.f32");
#else
    for (int half = 0; half < 2; half++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(half ? b1 : b0));
#endif
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ inline void product<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    PRODUCT("m16n8k16.row.col.f32.bf16.bf16.f32");
}

template <>
__device__ inline void product<float>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    PRODUCT("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#endif

// Lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory

__device__ inline void store_shared(unsigned address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

__device__ inline uint4 load_shared(unsigned address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

__device__ inline void copy_16(unsigned to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(from)) : "memory");
#else
    store_shared(to, *static_cast<const uint4*>(from));
#endif
}

__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int REMAINING>
__device__ void await_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(REMAINING) : "memory");
#endif
}

// Bytes from the start of an array of rows of GROUPS * 16 bytes. Rows whose length is no power of two up to 128 bytes,
// nor a multiple of 128, are left as they are: their own length spreads them.
template <int GROUPS>
__device__ int row_offset(int row, int group) {
    if constexpr (GROUPS % 8 == 0)
        group ^= row & 7;
    else if constexpr (GROUPS == 4)
        group ^= row >> 1 & 3;
    else if constexpr (GROUPS == 2)
        group ^= row >> 2 & 1;
    return (row * GROUPS + group) * 16;
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

template <typename T>
union alignas(16) Group {
    uint4 whole;
    T number[LANES<T>];
    __device__ Group() {}
};

// The value that the tensor core is to see: TF32 keeps 10 bits of the fraction, here to the nearest.
template <typename T>
__device__ T rounded(float x) {
    return to<T>(x);
}
template <>
__device__ inline float rounded<float>(float x) {
#if __CUDA_ARCH__ >= 800
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
#else
    return x;
#endif
}
