// The halo of a tile in shared memory: loaded once, normalised once, for all taps to read.
//
//   Halo::load()         v = relu(x * scale + shift) + residual, each step if Shape wants it, rounded once to T
//   Halo::place(y, x)    where a pixel lies, in rows of `row_offset`; a tap's distance from its pixel, too
//
// Pixels outside the picture are those that the border repeats. The block that owns a pixel also writes v to
// `materialised`: that is how the output of a residual block comes to be. With a stride, columns are stored by their
// remainder mod the stride, so that the pixels that one tap wants lie side by side, and ldmatrix meets no bank twice.
#pragma once
#include "layer.cuh"

struct Halo {
    using S = Shape;
    using T = Shape::type;
    static constexpr int HALO_H = (S::tile_h - 1) * S::stride + S::reach + 1;
    static constexpr int HALO_W = (S::tile_w - 1) * S::stride + S::reach + 1;
    static constexpr int SIDE = (HALO_W + S::stride - 1) / S::stride;  // columns of one remainder
    static constexpr int PITCH = SIDE * S::stride;                     // columns as stored
    static constexpr int GROUPS = S::c_in / LANES<T>;                  // of 16 bytes, in a pixel
    static constexpr int BYTES = HALO_H * PITCH * GROUPS * 16;

    static_assert(S::c_in % (2 * LANES<T>) == 0, "input channels: a multiple of 32 bytes");
    static_assert(GROUPS <= S::threads, "a thread for each group of a pixel");
    static_assert(!S::materialise || S::stride == 1, "what is written as well is the input, pixel by pixel");

    const Place at;
    const unsigned base;  // address in shared memory

    static __device__ int place(int y, int x) { return y * PITCH + x % S::stride * SIDE + x / S::stride; }

    __device__ void load() const {
        constexpr int AT_ONCE = S::threads / GROUPS;  // pixels
        constexpr int COUNT = HALO_H * HALO_W, FLIGHT = 4;  // 16-byte loads of a thread on their way
        const int row = at.thread / GROUPS, group = at.thread % GROUPS;
        const long long plane = (long long)at.image * at.layer.height * at.layer.width;
        const uint4* x = static_cast<const uint4*>(at.layer.x) + plane * GROUPS + group;
        const uint4* residual = static_cast<const uint4*>(at.layer.residual) + plane * GROUPS + group;
        uint4* materialised = static_cast<uint4*>(at.layer.materialised) + plane * GROUPS + group;
        if (S::threads % GROUPS != 0 && row == AT_ONCE) return;
        float2 affine[LANES<T>];
        if constexpr (S::affine)
#pragma unroll
            for (int i = 0; i < LANES<T>; i++)
                affine[i] = __ldg(at.layer.affine + at.image * S::c_in + group * LANES<T> + i);

#pragma unroll 1
        for (int first = row; first < COUNT; first += AT_ONCE * FLIGHT) {
            Group<T> value[FLIGHT], old[FLIGHT];
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                const int p = first + i * AT_ONCE;
                if (p >= COUNT) continue;
                const long long from = source(p / HALO_W, p % HALO_W) * GROUPS;
                value[i].whole = __ldg(x + from);
                if constexpr (S::residual) old[i].whole = __ldg(residual + from);
            }
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                const int p = first + i * AT_ONCE, py = p / HALO_W, px = p % HALO_W;
                if (p >= COUNT) continue;
                if constexpr (S::affine || S::residual || S::relu_in || sizeof(T) == 4) {
#pragma unroll
                    for (int k = 0; k < LANES<T>; k += 2) {
                        float pair[2];
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            float v = to_float(value[i].number[k + j]);
                            if constexpr (S::affine) v = fmaf(v, affine[k + j].x, affine[k + j].y);
                            if constexpr (S::relu_in) v = relu(v);
                            if constexpr (S::residual) v += to_float(old[i].number[k + j]);
                            pair[j] = v;
                        }
                        put_pair(&value[i].number[k], pair[0], pair[1]);
                    }
                }
                if constexpr (S::materialise) {
                    const int y = at.y0 + py - S::pad, c = at.x0 + px - S::pad;  // STRIDE is 1
                    if (py >= S::pad && py < S::pad + S::tile_h && px >= S::pad && px < S::pad + S::tile_w &&
                        y < at.layer.height && c < at.layer.width)
                        materialised[((long long)y * at.layer.width + c) * GROUPS] = value[i].whole;
                }
                if constexpr (sizeof(T) == 4)
#pragma unroll
                    for (int k = 0; k < LANES<T>; k++) value[i].number[k] = rounded<T>(to_float(value[i].number[k]));
                store_shared(base + row_offset<GROUPS>(place(py, px), group), value[i].whole);
            }
        }
    }

    __device__ long long source(int py, int px) const {  // the pixel of the picture that a pixel of the halo repeats
        const int y = S::border(at.y0 * S::stride + py - S::pad, at.layer.height);
        const int x = S::border(at.x0 * S::stride + px - S::pad, at.layer.width);
        return (long long)y * at.layer.width + x;
    }
};
