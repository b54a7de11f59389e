// Probes of what came with compute capability 9.0, for tools/compare_devices.py: compiled for sm_90a, whole warpgroups.
//
// Contents
//     wgmma           every swizzle, both orders of each operand, A in registers, all types of elements; the operands
//                     lie in shared memory full of small whole numbers, whose sums every order of adding gives exactly
//     mbarrier        states, parities and counts
//     bulk copies     pipelines into shared memory, stores and reductions out of it
//     boxes           of tensors, swizzled or not, and what is outside
//     clusters        the other block's shared memory, multicast

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned long long u64;

__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// ---------------------------------------------------------------------------------------------------------------------
// wgmma

#define FENCE asm volatile("wgmma.fence.sync.aligned;" ::: "memory")
#define COMMIT asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory")
#define WAIT(n) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory")
#define PROXY asm volatile("fence.proxy.async.shared::cta;" ::: "memory")

#define R4(c, d, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define R16(c, d, i) R4(c, d, i), R4(c, d, i + 4), R4(c, d, i + 8), R4(c, d, i + 12)
#define R32(c, d) R16(c, d, 0), R16(c, d, 16)
#define R64(c, d) R32(c, d), R16(c, d, 32), R16(c, d, 48)
#define F(x) "+f"(x)
#define U(x) "+r"(x)
#define D16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define D32 D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D64                                                                                                      \
    D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
        "%58,%59,%60,%61,%62,%63"

// 64 x 64 from shared memory; `how` is scale-d, the two scales, and the transpositions.
#define MULTIPLY(types, d, a, b, how)                                                                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64" types " {" D32 "}, %32, %33, " how ";" : R32(F, d) : "l"(a), "l"(b))

__device__ __forceinline__ u64 descriptor(unsigned start, u64 leading, u64 stride, u64 swizzle) {
    return (start & 0x3ffff) >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62;
}

__device__ __forceinline__ int number(const int* a, int n, int k) { return a[(k * 7 + k / 64 * 3 + blockIdx.x) % n]; }

template <class T>
__device__ __forceinline__ void fill(T* s, int count, const int* a, int n) {
    for (int k = threadIdx.x; k < count; k += blockDim.x) s[k] = T(float(number(a, n, k)));
    PROXY;
    __syncthreads();
}

// The offsets with which a swizzle's rows lie behind each other, and a little more.
__device__ __forceinline__ u64 rows(unsigned start, int swizzle, int turned) {
    int pitch = swizzle == 1 ? 128 : swizzle == 2 ? 64 : swizzle == 3 ? 32 : 16;
    if (!swizzle) return turned ? descriptor(start, 1280, 144, 0) : descriptor(start, 2064, 144, 0);
    return descriptor(start, turned ? 2304 : 16, 8 * pitch + 128, swizzle);
}

#define ALL_SWIZZLES(how, turned_a, turned_b)                                       \
    for (int swizzle = 0; swizzle < 4; swizzle++) {                                 \
        float d[32];                                                                \
        for (int k = 0; k < 32; k++) d[k] = k;                                      \
        FENCE;                                                                      \
        u64 x = rows(at(s) + 256, swizzle, turned_a);                               \
        u64 y = rows(at(s) + 12288 + 128, swizzle, turned_b);                       \
        MULTIPLY("k16.f32.f16.f16", d, x, y, how);                                  \
        MULTIPLY("k16.f32.f16.f16", d, x + 64, y + 8, how);                         \
        COMMIT;                                                                     \
        WAIT(0);                                                                    \
        for (int k = 0; k < 32; k++) out[(row++) * n + i] = d[k];                   \
    }

extern "C" __global__ void __launch_bounds__(128) wgmma_rows(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    ALL_SWIZZLES("1, 1, 1, 0, 0", 0, 0)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_columns_of_a(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    ALL_SWIZZLES("1, 1, 1, 1, 0", 1, 0)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_columns_of_b(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    ALL_SWIZZLES("1, 1, -1, 0, 1", 0, 1)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_columns(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    ALL_SWIZZLES("1, -1, -1, 1, 1", 1, 1)
}

// 128 columns: with a swizzle of 128 bytes, two rows of 64 lie side by side.
extern "C" __global__ void __launch_bounds__(128) wgmma_wide(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    for (int swizzle = 0; swizzle < 4; swizzle++) {
        float d[64];
        for (int k = 0; k < 64; k++) d[k] = -k;
        FENCE;
        u64 x = rows(at(s), swizzle, 0), y = rows(at(s) + 12288, swizzle, 1);
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" D64 "}, %64, %65, 1, 1, 1, 0, 1;"
                     : R64(F, d) : "l"(x), "l"(y));
        COMMIT;
        WAIT(0);
        for (int k = 0; k < 64; k++) out[(row++) * n + i] = d[k];
    }
}

// A in registers, with scale-d as a predicate.
extern "C" __global__ void __launch_bounds__(128) wgmma_registers(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    unsigned x[4];
    for (int k = 0; k < 4; k++) {
        __half2 both = __floats2half2_rn(a[(i + 31 * k) % n], a[(3 * i + k) % n]);
        x[k] = *(unsigned*)&both;
    }
    for (int adds = 0; adds < 2; adds++)
        for (int turned = 0; turned < 2; turned++) {
            float d[32];
            for (int k = 0; k < 32; k++) d[k] = k;
            u64 y = rows(at(s) + 512, 1 + turned, turned);
            FENCE;
            if (turned)
                asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
                             D32 "}, {%32,%33,%34,%35}, %36, p, -1, 1, 1;}"
                             : R32(F, d) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(y), "r"(adds));
            else
                asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
                             D32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
                             : R32(F, d) : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(y), "r"(adds));
            COMMIT;
            WAIT(0);
            for (int k = 0; k < 32; k++) out[(row++) * n + i] = d[k];
        }
}

extern "C" __global__ void __launch_bounds__(128) wgmma_bfloat16(const int* a, float* out, int n) {
    __shared__ __align__(1024) __nv_bfloat16 s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    for (int turned = 0; turned < 2; turned++) {
        float d[32];
        for (int k = 0; k < 32; k++) d[k] = k;
        u64 x = rows(at(s), 1, turned), y = rows(at(s) + 12288, 1, 0);
        FENCE;
        if (turned) MULTIPLY("k16.f32.bf16.bf16", d, x, y, "1, 1, 1, 1, 0");
        else MULTIPLY("k16.f32.bf16.bf16", d, x, y, "1, 1, 1, 0, 0");
        COMMIT;
        WAIT(0);
        for (int k = 0; k < 32; k++) out[(row++) * n + i] = d[k];
    }
}

extern "C" __global__ void __launch_bounds__(128) wgmma_tf32(const int* a, float* out, int n) {
    __shared__ __align__(1024) float s[8192];
    fill(s, 8192, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    for (int swizzle = 0; swizzle < 4; swizzle++) {
        float d[32];
        for (int k = 0; k < 32; k++) d[k] = k;
        u64 x = rows(at(s), swizzle, 0), y = rows(at(s) + 12288, swizzle, 0);
        FENCE;
        MULTIPLY("k8.f32.tf32.tf32", d, x, y, "1, 1, 1");
        COMMIT;
        WAIT(0);
        for (int k = 0; k < 32; k++) out[(row++) * n + i] = d[k];
    }
}

// Into float16: 64 x 64 in 16 registers.
extern "C" __global__ void __launch_bounds__(128) wgmma_into_halves(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 128 + threadIdx.x, row = 0;
    unsigned d[16];
    for (int k = 0; k < 16; k++) {
        __half2 both = __floats2half2_rn(k, -k);
        d[k] = *(unsigned*)&both;
    }
    FENCE;
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f16.f16.f16 {" D16 "}, %16, %17, 1, 1, 1, 0, 0;"
                 : R16(U, d, 0) : "l"(rows(at(s), 1, 0)), "l"(rows(at(s) + 12288, 2, 0)));
    COMMIT;
    WAIT(0);
    for (int k = 0; k < 16; k++) {
        __half2 both = *(__half2*)&d[k];
        out[(row++) * n + i] = __low2float(both), out[(row++) * n + i] = __high2float(both);
    }
}

// Two warpgroups with a group of products always on its way; the second subtracts.
extern "C" __global__ void __launch_bounds__(256) wgmma_groups(const int* a, float* out, int n) {
    __shared__ __align__(1024) __half s[16384];
    fill(s, 16384, a, n);
    int i = blockIdx.x * 256 + threadIdx.x, half = threadIdx.x / 128;
    float d[32], e[32];
    for (int k = 0; k < 32; k++) d[k] = k, e[k] = 0;
    u64 x = rows(at(s) + half * 1024, 1, 0), y = rows(at(s) + 12288, 1, 0);
    FENCE;
    for (int k = 0; k < 4; k++) {
        if (half) MULTIPLY("k16.f32.f16.f16", d, x + 2 * k, y + 2 * k, "1, -1, 1, 0, 0");
        else MULTIPLY("k16.f32.f16.f16", d, x + 2 * k, y + 2 * k, "1, 1, 1, 0, 0");
        COMMIT;
        WAIT(1);
    }
    MULTIPLY("k16.f32.f16.f16", e, x, y + 6, "0, 1, 1, 0, 0");
    COMMIT;
    WAIT(1);
    for (int k = 0; k < 32; k++) out[k * n + i] = d[k];
    WAIT(0);
    for (int k = 0; k < 32; k++) out[(32 + k) * n + i] = e[k];
}

// ---------------------------------------------------------------------------------------------------------------------
// mbarrier

__device__ __forceinline__ void init(u64* b, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at(b)), "r"(count) : "memory");
}
__device__ __forceinline__ u64 arrive(u64* b) {
    u64 state;
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(at(b)) : "memory");
    return state;
}
__device__ __forceinline__ void expect(u64* b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(u64* b, int parity) {
    asm volatile("{.reg .pred p;\nAGAIN:\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n @!p bra AGAIN;\n}"
                 ::"r"(at(b)), "r"(parity) : "memory");
}
__device__ __forceinline__ int has_parity(u64* b, int parity) {
    int found;
    asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
                 : "=r"(found) : "r"(at(b)), "r"(parity) : "memory");
    return found;
}

// Two warps hand values to the other two through shared memory, five phases long; parity says which one is over.
extern "C" __global__ void __launch_bounds__(128) mbarrier_phases(const int* a, int* out, int n) {
    __shared__ u64 full, empty;
    __shared__ int box[64];
    int i = blockIdx.x * 128 + threadIdx.x, t = threadIdx.x;
    if (!t) init(&full, 64), init(&empty, 64);
    __syncthreads();
    out[i] = has_parity(&full, 1);
    __syncthreads();
    for (int k = 0; k < 5; k++) {
        if (t < 64) {
            if (k) wait(&empty, (k - 1) & 1);
            box[t] = a[(i + k) % n] * (k + 1);
            arrive(&full);
            out[(k + 1) * n + i] = k;
        } else {
            wait(&full, k & 1);
            out[(k + 1) * n + i] = box[127 - t];
            arrive(&empty);
        }
    }
}

// Arrivals with counts, and what the state says: how many were missing. One thread arrives, so that it is determined.
extern "C" __global__ void __launch_bounds__(128) mbarrier_counts(const int* a, int* out, int n) {
    __shared__ u64 b[2];
    int i = blockIdx.x * 128 + threadIdx.x, t = threadIdx.x;
    if (!t) init(&b[0], 7), init(&b[1], 3);
    __syncthreads();
    if (!t) {
        u64 s;
        unsigned left;
        for (int k = 0; k < 4; k++) {
            asm volatile("mbarrier.arrive.noComplete.shared::cta.b64 %0, [%1], 1;" : "=l"(s) : "r"(at(&b[0])) : "memory");
            asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(left) : "l"(s));
            out[k * n + i] = left;
        }
        asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 3;" : "=l"(s) : "r"(at(&b[0])) : "memory");
        asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(left) : "l"(s));
        out[4 * n + i] = left;
        asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1];" : "=l"(s) : "r"(at(&b[1])) : "memory");
        arrive(&b[1]), arrive(&b[1]);
        s = arrive(&b[1]);
        asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(left) : "l"(s));
        out[5 * n + i] = left;
        arrive(&b[1]);
    }
    __syncthreads();
    out[6 * n + i] = has_parity(&b[0], 0) + 2 * has_parity(&b[0], 1);
    out[7 * n + i] = has_parity(&b[1], 0) + 2 * has_parity(&b[1], 1) + a[i] * 4;
}

// ---------------------------------------------------------------------------------------------------------------------
// Bulk copies

__device__ __forceinline__ void bring(void* to, const void* from, int bytes, u64* b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(at(to)), "l"(from), "r"(bytes), "r"(at(b)) : "memory");
}

// A ring of three stages that a warp of its own fills; the other three consume, and give each stage back.
extern "C" __global__ void __launch_bounds__(128) bulk_pipeline(const int* a, int* out, int n) {
    __shared__ __align__(128) int stage[3][128];
    __shared__ u64 full[3], empty[3];
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    if (!t)
        for (int k = 0; k < 3; k++) init(&full[k], 1), init(&empty[k], 3);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    int rounds = n / 128;
    if (t >= 96) {
        if (t == 96)
            for (int k = 0; k < rounds; k++) {
                int slot = k % 3;
                if (k >= 3) wait(&empty[slot], (k / 3 - 1) & 1);
                expect(&full[slot], 512);
                bring(stage[slot], a + (k + blockIdx.x) % rounds * 128, 256, &full[slot]);
                bring(stage[slot] + 64, a + (k + blockIdx.x) % rounds * 128 + 64, 256, &full[slot]);
            }
        out[i] = 0;
    } else {
        int sum = 0;
        for (int k = 0; k < rounds; k++) {
            int slot = k % 3;
            wait(&full[slot], k / 3 & 1);
            sum = sum * 5 + stage[slot][(t + 32) % 96] - stage[slot][t + 32];
            __syncwarp();
            if (t % 32 == 0) arrive(&empty[slot]);
        }
        out[i] = sum;
    }
}

#define FROM_SHARED(what, to) \
    asm volatile(what " [%0], [%1], 512;" ::"l"(to), "r"(at(s)) : "memory")

// Stores and reductions; each block has rows of its own.
extern "C" __global__ void __launch_bounds__(128) bulk_stores(const int* a, int* out, float* sums, int n) {
    __shared__ __align__(128) int s[128];
    __shared__ __align__(128) float f[128];
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    s[t] = a[i];
    f[t] = a[(i * 3) % n];
    out[n + i] = 5, out[2 * n + i] = -3, out[3 * n + i] = 9, sums[i] = 0.5f;
    asm volatile("fence.proxy.async;" ::: "memory");
    __syncthreads();
    if (!t) {
        FROM_SHARED("cp.async.bulk.global.shared::cta.bulk_group", out + i);
        FROM_SHARED("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s32", out + n + i);
        FROM_SHARED("cp.reduce.async.bulk.global.shared::cta.bulk_group.max.s32", out + 2 * n + i);
        FROM_SHARED("cp.reduce.async.bulk.global.shared::cta.bulk_group.xor.b32", out + 3 * n + i);
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], 512;"
                     ::"l"(sums + i), "r"(at(f)) : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        s[0] = 77;
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Boxes of tensors; `map` is of a matrix, or of an array of more axes, that compare_devices.py makes

struct alignas(64) TensorMap {
    char bytes[128];
};

#define LOAD_BOX(axes, to, map, b, corner, ...)                                                                    \
    asm volatile("cp.async.bulk.tensor." axes ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, " \
                 corner "], [%2];" ::"r"(at(to)), "l"(map), "r"(at(b)), __VA_ARGS__ : "memory")

// Boxes of 8 by 64 halves, of which most lie partly outside of the matrix of 60 by 200; as they lie in shared memory.
__device__ void show_boxes(const TensorMap* map, unsigned* out, int n) {
    __shared__ __align__(1024) unsigned s[256];
    __shared__ u64 b;
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    if (!t) init(&b, 1);
    __syncthreads();
    for (int k = 0; k < 4; k++) {
        if (!t) {
            expect(&b, 1024);
            LOAD_BOX("2d", s, map, &b, "{%3, %4}", "r"((int)blockIdx.x * 40 - 72 + 16 * k), "r"((int)blockIdx.x * 9 - 5));
        }
        wait(&b, k & 1);
        out[2 * k * n + i] = s[t], out[(2 * k + 1) * n + i] = s[128 + t];
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(128)
    box_plain(const __grid_constant__ TensorMap map, const __half* x, unsigned* out, int n) {
    show_boxes(&map, out, n);
}
extern "C" __global__ void __launch_bounds__(128)
    box_swizzled(const __grid_constant__ TensorMap map, const __half* x, unsigned* out, int n) {
    show_boxes(&map, out, n);
}
extern "C" __global__ void __launch_bounds__(128)
    box_filled(const __grid_constant__ TensorMap map, const __half* x, __half* out, int n) {
    show_boxes(&map, (unsigned*)out, n);
}

// Three axes, 3 by 10 by 16 words, in boxes of 2 by 4 by 8. (Boxes that are stored: store_probes.cu.)
extern "C" __global__ void __launch_bounds__(128)
    box_of_three_axes(const __grid_constant__ TensorMap map, const int* x, int* out, int n) {
    __shared__ __align__(128) int s[64];
    __shared__ u64 b;
    int t = threadIdx.x, i = blockIdx.x * 128 + t, block = blockIdx.x;
    if (!t) {
        init(&b, 1), expect(&b, 256);
        LOAD_BOX("3d", s, &map, &b, "{%3, %4, %5}", "r"(block % 3 * 8 - 4), "r"(block * 5 - 2), "r"(block % 4 - 1));
    }
    __syncthreads();
    wait(&b, 0);
    out[i] = s[t % 64];
}

// cp.async whose arrival an mbarrier counts: half the threads copy, the others wait.
extern "C" __global__ void __launch_bounds__(128) copies_counted(const int* a, int* out, int n) {
    __shared__ __align__(16) int s[64];
    __shared__ u64 b;
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    if (!t) init(&b, 64);
    __syncthreads();
    out[i] = 0;
    if (t < 64) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at(&s[t])), "l"(a + i) : "memory");
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(at(&b)) : "memory");
    } else {
        wait(&b, 0);
        out[i] = s[127 - t];
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Clusters of two

__device__ __forceinline__ unsigned rank() {
    unsigned r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
__device__ __forceinline__ unsigned there(const void* p, unsigned r) {
    unsigned found;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(at(p)), "r"(r));
    return found;
}
#define CLUSTER                                                      \
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); \
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");

// Reads, writes, atomics and arrivals in the other block's shared memory.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(128)
    cluster_exchange(const int* a, int* out, int n) {
    __shared__ int s[128], sums[128], box[128];
    __shared__ u64 b;
    int t = threadIdx.x, i = blockIdx.x * 128 + t, other = rank() ^ 1, v;
    s[t] = a[i], sums[t] = 0;
    if (!t) init(&b, 128);
    CLUSTER
    asm volatile("ld.shared::cluster.s32 %0, [%1];" : "=r"(v) : "r"(there(&s[127 - t], other)) : "memory");
    out[i] = v * 3 + rank();
    for (int r = 0; r < 2; r++)
        asm volatile("red.shared::cluster.add.s32 [%0], %1;" ::"r"(there(&sums[t], r)), "r"(a[i] + r) : "memory");
    asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(there(&box[t ^ 5], other)), "r"(a[i] * 7) : "memory");
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there(&b, other)) : "memory");
    asm volatile("{.reg .pred p;\nAGAIN:\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], 0;\n"
                 " @!p bra AGAIN;\n}" ::"r"(at(&b)) : "memory");
    out[n + i] = box[t];
    CLUSTER
    out[2 * n + i] = sums[t];
}

// Each block brings half of a row, to both.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(128)
    cluster_multicast(const int* a, int* out, int n) {
    __shared__ __align__(128) int s[256];
    __shared__ u64 b;
    int t = threadIdx.x, i = blockIdx.x * 128 + t;
    if (!t) init(&b, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    CLUSTER
    if (!t) {
        expect(&b, 1024);
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                     "[%0], [%1], 512, [%2], %3;"
                     ::"r"(at(s + 128 * rank())), "l"(a + 128 * blockIdx.x), "r"(at(&b)), "h"((short)3) : "memory");
    }
    wait(&b, 0);
    out[i] = s[t], out[n + i] = s[128 + t];
    CLUSTER
}
