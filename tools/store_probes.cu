// Probes of boxes that cp.async.bulk.tensor stores: what may lie outside of the tensor, and who has to wait for whom.
// tools/compare_devices.py runs each in the emulator and on a Hopper card, and compares every element:
//
//     python tools/compare_devices.py --from store_probes
//
// Shape      the tensor has 20 rows of 24 words, all sevens; a box has 8 rows of 16 words, 64 bytes each. Corners are
//            {column, row}; every column is a multiple of 4 words, that is of 16 bytes, since a card stops at others.
//            No two boxes of a launch overlap, so that no result depends on the order of blocks.
// Corners    box_stores_inside      wholly inside
//            box_stores_right, _below, box_stores   hanging over at the right, below, and both
//            box_stores_beyond      wholly outside, behind the end (the first box lies inside)
//            (hanging over at the front: CUDA's Programming Guide forbids it, and the emulator refuses it)
// Order      box_stores_read        shared memory is written again once wait_group.read has let it go
//            box_stores_fenced_late the thread that stores has the only fence, behind the barrier
//            box_stores_by_warps    a thread of each warp stores a box, commits and waits
// Layout     box_stores_swizzled, box_stores_of_three_axes

struct alignas(64) TensorMap {
    char bytes[128];
};

__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

__device__ __forceinline__ void store(const TensorMap* map, const int* s, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];"
                 ::"l"(map), "r"(at(s)), "r"(column), "r"(row) : "memory");
}

// As it is meant: all write, each makes its words seen by the engine, all meet, and one thread stores.
#define STORED(column, row)                     \
    {                                           \
        __shared__ __align__(1024) int s[128];  \
        int t = threadIdx.x;                    \
        s[t] = a[blockIdx.x * 128 + t];         \
        fence();                                \
        __syncthreads();                        \
        if (!t) {                               \
            store(&map, s, column, row);        \
            commit();                           \
            wait();                             \
        }                                       \
    }

extern "C" __global__ void __launch_bounds__(128)
    box_stores(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    int b = blockIdx.x;
    STORED(b % 2 * 16 + 4, b / 2 * 8 + 3)
}
extern "C" __global__ void __launch_bounds__(128)
    box_stores_swizzled(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    int b = blockIdx.x;
    STORED(b % 2 * 16 + 4, b / 2 * 8 + 3)
}
extern "C" __global__ void __launch_bounds__(128)
    box_stores_inside(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    int b = blockIdx.x;
    STORED(4, b * 8 + 2)
}
extern "C" __global__ void __launch_bounds__(128)
    box_stores_right(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    int b = blockIdx.x;
    STORED(16, b * 8)
}
extern "C" __global__ void __launch_bounds__(128)
    box_stores_below(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    int b = blockIdx.x;
    STORED(4, b + 14)
}
extern "C" __global__ void __launch_bounds__(128)
    box_stores_beyond(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    int b = blockIdx.x;
    STORED(b % 2 * 24, b / 2 * 20)
}

extern "C" __global__ void __launch_bounds__(128)
    box_stores_read(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    __shared__ __align__(128) int s[128];
    int b = blockIdx.x, t = threadIdx.x;
    s[t] = a[b * 128 + t];
    fence();
    __syncthreads();
    if (!t) {
        store(&map, s, 4, b * 8 + 2);
        commit();
        wait_read();
        s[0] = 77, s[127] = 78;
        wait();
    }
}

extern "C" __global__ void __launch_bounds__(128)
    box_stores_fenced_late(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    __shared__ __align__(128) int s[128];
    int b = blockIdx.x, t = threadIdx.x;
    s[t] = a[b * 128 + t];
    __syncthreads();
    if (!t) {
        fence();
        store(&map, s, 4, b * 8 + 2);
        commit();
        wait();
    }
}

// Boxes of 2 rows: each warp stores what it wrote itself.
extern "C" __global__ void __launch_bounds__(128)
    box_stores_by_warps(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    __shared__ __align__(128) int s[128];
    int b = blockIdx.x, t = threadIdx.x, warp = t / 32;
    s[t] = a[b * 128 + t];
    fence();
    __syncwarp();
    if (t % 32 == 0) {
        store(&map, s + 32 * warp, 4, b * 8 + 2 * warp + 2);
        commit();
        wait();
    }
}

// 3 by 10 by 16 words, in boxes of 2 by 4 by 8 that hang over at the end of both outer axes.
extern "C" __global__ void __launch_bounds__(128)
    box_stores_of_three_axes(const __grid_constant__ TensorMap map, const int* a, int* out, int n) {
    __shared__ __align__(128) int s[64];
    int b = blockIdx.x, t = threadIdx.x;
    if (t < 64) s[t] = a[b * 128 + t];
    fence();
    __syncthreads();
    if (!t) {
        asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];"
                     ::"l"(&map), "r"(at(s)), "r"(b % 2 * 8), "r"(b / 2 % 3 * 4), "r"(b / 6 * 2) : "memory");
        commit();
        wait();
    }
}
