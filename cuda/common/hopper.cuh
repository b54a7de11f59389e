// Instructions of Hopper that CUDA C++ has no words for: barriers that count bytes, bulk copies, and the tensor cores of
// a warpgroup. Needs sm_90a.
//
//   shared_address(p)                       the 32-bit address of shared memory that these instructions take
//   barrier_init / expect / arrive / wait   an mbarrier: threads and bytes arrive, a phase completes, its parity flips
//   copy_async(to, from) / copies_commit / copies_wait<N>      16 bytes a thread, without registers (cp.async)
//   load_shared(from), store_shared(to, v)  16 bytes of shared memory
//   bulk_copy(to, from, bytes, barrier)     global to shared memory by the copy engine; the bytes arrive at the barrier
//   bulk_copy(..., policy)                  which lines of the L2 cache go first when it needs room: READ_ONCE, READ_AGAIN
//   fence_async()                           what this thread stored in shared memory may be read by the engines
//   Wgmma<T>::m64n128k16(d, a, b)           d[64 x 128] += A[64 x 16] B[16 x 128], both from shared memory
//   Wgmma<T>::m64n96k16(d, a0..a3, b)       d[64 x 96] += A B, A from registers: those of mma.m16n8k16, 16 rows a warp
//   wgmma_fence / commit / wait<N>          before the first product; a group of products; all but the last N groups
//   warpgroup_barrier(id)                   the 128 threads that name this number wait for each other; 0 is __syncthreads
//   registers_to<COUNT, MORE>()             a warpgroup's threads take registers that others of the block gave back
//   tile_address<ROW>(address, stride)      descriptor of a tile whose rows are ROW (128 or 64) bytes, swizzled; stride:
//                                           bytes from one group of eight rows to the next
//
// swizzle    The 16-byte group g of a 128-byte row lies at g ^ (bits 7 to 9 of the row's address), so that eight rows'
//            groups of equal number fall into eight different banks; in rows of 64 bytes at g ^ (bits 7 and 8). It is a function of the address alone: a tile may
//            start at any row of a larger one, and that is how one copy of the pixels serves nine taps of a convolution.
// source     PTX ISA, "Asynchronous warpgroup level matrix instructions" and "mbarrier".
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ inline void barrier_init(unsigned barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ inline void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void barrier_expect(unsigned barrier, unsigned bytes) {  // one arrival, and bytes that will come
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ inline void barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ inline void barrier_wait(unsigned barrier, unsigned parity) {
    unsigned done = 0;
    while (!done)
        asm volatile(
            "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
}

__device__ inline void bulk_copy(unsigned to, const void* from, unsigned bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// L2::evict_first and L2::evict_normal, of all lines. What createpolicy makes of them PTX calls opaque; these are the words
// that CUTLASS passes (cute/arch/copy_sm90_desc.hpp), and an H200 was measured to heed the first.
constexpr unsigned long long READ_ONCE = 0x12F0000000000000ull, READ_AGAIN = 0x1000000000000000ull;

__device__ inline void bulk_copy(unsigned to, const void* from, unsigned bytes, unsigned barrier, unsigned long long policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}

__device__ inline void copy_async(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ inline uint4 load_shared(unsigned from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}
__device__ inline void store_shared(unsigned to, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ inline void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void warpgroup_barrier(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }

template <int COUNT, bool MORE>
__device__ inline void registers_to() {
    if (MORE) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
    else asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int ROW>
__device__ unsigned long long tile_address(unsigned address, unsigned stride) {
    constexpr unsigned long long SWIZZLE = (ROW == 128 ? 1ull : 2ull) << 62, UNUSED = 1ull << 16;  // the leading offset
    static_assert(ROW == 128 || ROW == 64);
    return address >> 4 | UNUSED | static_cast<unsigned long long>(stride >> 4) << 32 | SWIZZLE;
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define EIGHT(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
                    "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_M64N128K16(type)                                                                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                       \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
                 "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "   \
                 "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "   \
                 "%59, %60, %61, %62, %63}, %64, %65, 1, 1, 1, 0, 0;"                                                \
                 : EIGHT(d, 0), EIGHT(d, 8), EIGHT(d, 16), EIGHT(d, 24), EIGHT(d, 32), EIGHT(d, 40), EIGHT(d, 48),   \
                   EIGHT(d, 56)                                                                                      \
                 : "l"(a), "l"(b))
#define WGMMA_M64N96K16(type)                                                                                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32." type "." type                                        \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
                 "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "   \
                 "%40, %41, %42, %43, %44, %45, %46, %47}, {%48, %49, %50, %51}, %52, 1, 1, 1, 0;"                   \
                 : EIGHT(d, 0), EIGHT(d, 8), EIGHT(d, 16), EIGHT(d, 24), EIGHT(d, 32), EIGHT(d, 40)                  \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b))

template <typename T>
struct Wgmma;

template <>
struct Wgmma<__half> {
    using Address = unsigned long long;
    __device__ static void m64n128k16(float (&d)[64], Address a, Address b) { WGMMA_M64N128K16("f16"); }
    __device__ static void m64n96k16(float (&d)[48], unsigned a0, unsigned a1, unsigned a2, unsigned a3, Address b) {
        WGMMA_M64N96K16("f16");
    }
};

template <>
struct Wgmma<__nv_bfloat16> {
    using Address = unsigned long long;
    __device__ static void m64n128k16(float (&d)[64], Address a, Address b) { WGMMA_M64N128K16("bf16"); }
    __device__ static void m64n96k16(float (&d)[48], unsigned a0, unsigned a1, unsigned a2, unsigned a3, Address b) {
        WGMMA_M64N96K16("bf16");
    }
};

#undef WGMMA_M64N128K16
#undef WGMMA_M64N96K16
#undef EIGHT
