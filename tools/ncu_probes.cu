// Probes of memory traffic: each kernel has one pattern of addresses, for tools/compare_ncu.py to count in the emulator
// and under Nsight Compute.
//
//   loads      coalesced, strided_2, strided_8, strided_32, misaligned, broadcast, gather, few_lanes
//   widths     bytes, halves, half2_add, float2_copy, float4_copy, float4_strided, float4_repeated
//   stores     strided_store, misaligned_store
//   atomics    atomics_without_result, atomics_with_result, atomics_colliding
//   shared     shared_rows, shared_stride_2, shared_broadcast, shared_halves, shared_store_stride_4,
//              transpose_unpadded, transpose_padded
//   vectors    shared_float2, shared_float2_repeated, shared_float4, shared_float4_stride_2, shared_float4_repeated
//   matrices   ldmatrix_x1, ldmatrix_x2, ldmatrix_x4, ldmatrix_x4_padded, ldmatrix_x4_trans
//   copies     async_copy_4, async_copy_16
//
// Shape      blocks of 256 threads, all whole; x and out hold STRIDE floats for each thread of the grid, and 32 more.
//            x holds small whole numbers, so that every result is exact.
// Simple     the machine code makes the same requests as the PTX: no guards, no loops, every value that is read is
//            stored.
#include <cuda_fp16.h>

#define THREADS 256
#define STRIDE 32

#define PROBE(name) extern "C" __global__ void __launch_bounds__(THREADS) name(const float* x, float* out)
#define ELEMENT (blockIdx.x * THREADS + threadIdx.x)

// ---------------------------------------------------------------------------------------------------------------------
// Loads from global memory

PROBE(coalesced) { out[ELEMENT] = x[ELEMENT]; }
PROBE(strided_2) { out[ELEMENT] = x[2 * ELEMENT]; }
PROBE(strided_8) { out[ELEMENT] = x[8 * ELEMENT]; }
PROBE(strided_32) { out[ELEMENT] = x[32 * ELEMENT]; }
PROBE(misaligned) { out[ELEMENT] = x[ELEMENT + 1]; }
PROBE(broadcast) { out[ELEMENT] = x[threadIdx.x / 32]; }
PROBE(gather) { out[ELEMENT] = x[ELEMENT * 2654435761u >> 24]; }  // a hash scatters the lanes over 32 sectors

// Eight lanes of each warp take part.
PROBE(few_lanes) {
    if (threadIdx.x % 32 < 8) out[ELEMENT] = x[ELEMENT];
}

// ---------------------------------------------------------------------------------------------------------------------
// Other widths than four bytes

PROBE(bytes) { ((unsigned char*)out)[ELEMENT] = ((const unsigned char*)x)[ELEMENT]; }
PROBE(halves) { ((unsigned short*)out)[ELEMENT] = ((const unsigned short*)x)[ELEMENT]; }

PROBE(half2_add) {
    __half2 pair = ((const __half2*)x)[ELEMENT];
    ((__half2*)out)[ELEMENT] = __hadd2(pair, pair);
}

PROBE(float2_copy) { ((float2*)out)[ELEMENT] = ((const float2*)x)[ELEMENT]; }
PROBE(float4_copy) { ((float4*)out)[ELEMENT] = ((const float4*)x)[ELEMENT]; }
PROBE(float4_strided) { ((float4*)out)[ELEMENT] = ((const float4*)x)[2 * ELEMENT]; }
PROBE(float4_repeated) { ((float4*)out)[ELEMENT] = ((const float4*)x)[threadIdx.x % 8]; }  // in each quarter of a warp

// ---------------------------------------------------------------------------------------------------------------------
// Stores and atomics

PROBE(strided_store) { out[2 * ELEMENT] = x[ELEMENT]; }
PROBE(misaligned_store) { out[ELEMENT + 1] = x[ELEMENT]; }

PROBE(atomics_without_result) { atomicAdd(out + ELEMENT, x[ELEMENT]); }
PROBE(atomics_with_result) { out[ELEMENT + gridDim.x * THREADS] = atomicAdd(out + ELEMENT, x[ELEMENT]); }
PROBE(atomics_colliding) { atomicAdd(out + ELEMENT / 4, x[ELEMENT]); }  // four lanes to a place

// ---------------------------------------------------------------------------------------------------------------------
// Shared memory: the block's floats go in as they come, and are read in a pattern

#define FILL(name, type, count)                                                                        \
    __shared__ __align__(16) type name[count];                                                         \
    for (int i = 0; i < (int)(sizeof(name) / 4 / THREADS); ++i)                                        \
        ((float*)name)[i * THREADS + threadIdx.x] = x[(blockIdx.x * 16 + i) * THREADS + threadIdx.x];  \
    __syncthreads()

PROBE(shared_rows) {
    FILL(held, float, THREADS);
    out[ELEMENT] = held[threadIdx.x ^ 64];
}

PROBE(shared_stride_2) {
    FILL(held, float, 2 * THREADS);
    out[ELEMENT] = held[2 * threadIdx.x];
}

PROBE(shared_broadcast) {
    FILL(held, float, THREADS);
    out[ELEMENT] = held[threadIdx.x / 32 ^ 3];
}

PROBE(shared_halves) {
    FILL(held, unsigned short, 2 * THREADS);
    ((unsigned short*)out)[ELEMENT] = held[threadIdx.x ^ 64];
}

PROBE(shared_store_stride_4) {
    __shared__ float held[4 * THREADS];
    held[4 * threadIdx.x] = x[ELEMENT];
    __syncthreads();
    out[ELEMENT] = held[4 * (threadIdx.x / 32 ^ 3)];
}

// A square of 32 by 32 through shared memory, four rows to a warp.
#define TRANSPOSE(pitch)                                                                                   \
    __shared__ float tile[32][pitch];                                                                      \
    int column = threadIdx.x % 32, row = threadIdx.x / 32;                                                 \
    _Pragma("unroll") for (int i = 0; i < 4; ++i) tile[row + 8 * i][column] =                              \
        x[blockIdx.x * 1024 + (row + 8 * i) * 32 + column];                                                \
    __syncthreads();                                                                                       \
    _Pragma("unroll") for (int i = 0; i < 4; ++i) out[blockIdx.x * 1024 + (row + 8 * i) * 32 + column] =   \
        tile[column][row + 8 * i]

PROBE(transpose_unpadded) { TRANSPOSE(32); }
PROBE(transpose_padded) { TRANSPOSE(33); }

PROBE(shared_float2) {
    FILL(held, float2, THREADS);
    ((float2*)out)[ELEMENT] = held[threadIdx.x ^ 64];
}

// Both halves of a warp read the same sixteen pairs.
PROBE(shared_float2_repeated) {
    FILL(held, float2, THREADS);
    ((float2*)out)[ELEMENT] = held[threadIdx.x % 16 + 64];
}

PROBE(shared_float4) {
    FILL(held, float4, THREADS);
    ((float4*)out)[ELEMENT] = held[threadIdx.x ^ 64];
}

PROBE(shared_float4_stride_2) {
    FILL(held, float4, 2 * THREADS);
    ((float4*)out)[ELEMENT] = held[2 * threadIdx.x];
}

// All quarters of a warp read the same eight float4.
PROBE(shared_float4_repeated) {
    FILL(held, float4, THREADS);
    ((float4*)out)[ELEMENT] = held[threadIdx.x % 8 + 64];
}

// ---------------------------------------------------------------------------------------------------------------------
// ldmatrix: each lane gives the address of one row of eight 16-bit elements

// Row `lane` of 32 rows, `pitch` elements apart; all warps read the same.
#define MATRICES(size, pitch, count)                       \
    FILL(held, unsigned short, size);                      \
    unsigned row = threadIdx.x % 32 % (8 * count) * pitch; \
    unsigned address = (unsigned)__cvta_generic_to_shared(held + row), *target = (unsigned*)out + count * ELEMENT

PROBE(ldmatrix_x1) {
    MATRICES(2048, 64, 1);
    unsigned a;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(a) : "r"(address));
    target[0] = a;
}

PROBE(ldmatrix_x2) {
    MATRICES(2048, 64, 2);
    unsigned a, b;
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "r"(address));
    *(uint2*)target = make_uint2(a, b);
}

#define FOUR_MATRICES(form, size, pitch)                                             \
    MATRICES(size, pitch, 4);                                                        \
    unsigned a, b, c, d;                                                             \
    asm volatile("ldmatrix.sync.aligned.m8n8." form ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d)                                \
                 : "r"(address));                                                    \
    *(uint4*)target = make_uint4(a, b, c, d)

PROBE(ldmatrix_x4) { FOUR_MATRICES("x4", 2048, 64); }  // rows of 128 bytes: eight rows begin in one bank
PROBE(ldmatrix_x4_padded) { FOUR_MATRICES("x4", 2560, 72); }
PROBE(ldmatrix_x4_trans) { FOUR_MATRICES("x4.trans", 2560, 72); }

// ---------------------------------------------------------------------------------------------------------------------
// cp.async: from global to shared memory without registers

#define COPY(kind, bytes)                                                                                         \
    asm volatile("cp.async." kind ".shared.global [%0], [%1], " #bytes ";\n\tcp.async.wait_all;" ::"r"(           \
                     (unsigned)__cvta_generic_to_shared((char*)held + bytes * threadIdx.x)),                      \
                 "l"((const char*)x + bytes * ELEMENT)                                                            \
                 : "memory");                                                                                     \
    __syncthreads()

PROBE(async_copy_4) {
    __shared__ float held[THREADS];
    COPY("ca", 4);
    out[ELEMENT] = held[threadIdx.x ^ 64];
}

PROBE(async_copy_16) {
    __shared__ float4 held[THREADS];
    COPY("cg", 16);
    ((float4*)out)[ELEMENT] = held[threadIdx.x ^ 64];
}
