// What every convolution kernel starts from: the macros that it is compiled with, its arguments, its tile.
//
//   Launch       the macros as constants; a kernel's file derives its Shape from it, and says what else it is
//   Layer        the arguments of a launch, the same for all; what a kernel does not use is null
//   Place        which tile of which image a block makes, and which part of it a warp
//   reflected, clamped       the pixel that stands for one outside the picture
//
// Shape        phases, stride, pad (pixels before the first that a tile needs), reach (pixels beyond the first that one
//              pixel needs), border(i, n). It stands before the headers that use it (halo, epilogue, implicit_gemm),
//              which are made for the one Shape of their file.
#pragma once
#include "plane_sums.cuh"
#include "tensor_cores.cuh"

#ifndef NUMBER
#define NUMBER __half
#endif
#ifndef C_IN  // the file alone, as a learner or a test compiles it: something small
#define C_IN 16
#define C_OUT 16
#define STRIDE 1
#define KERNEL 3
#define TILE_H 4
#define TILE_W 8
#define WARPS_M 2
#define WARPS_N 1
#define COLUMNS 16
#define RING 2
#define BLOCKS 1
#endif
#ifndef AFFINE
#define AFFINE 0
#define RELU_IN 0
#define RESIDUAL 0
#define MATERIALISE 0
#define STATISTICS 0
#define BIAS 0
#define RELU_OUT 0
#endif

struct Launch {
    using type = NUMBER;
    static constexpr int c_in = C_IN, c_out = C_OUT, tile_h = TILE_H, tile_w = TILE_W, warps_m = WARPS_M;
    static constexpr int warps_n = WARPS_N, columns = COLUMNS, ring = RING, threads = 32 * WARPS_M * WARPS_N;
    static constexpr bool affine = AFFINE, relu_in = RELU_IN, residual = RESIDUAL, materialise = MATERIALISE;
    static constexpr bool statistics = STATISTICS, bias = BIAS, relu_out = RELU_OUT;
};

struct Layer {
    const void* x;             // [images][height][width][C_IN]
    const float2* affine;      // [images][C_IN]: scale and shift
    const void* residual;      // like x
    void* materialised;        // like x
    const void* weight;        // packed
    const float* bias;         // [C_OUT]
    void* out;                 // [images][rows][columns][C_OUT]
    long long* sums;            // of the planes of out: see plane_sums.cuh
    int height, width;          // of x
    int out_height, out_width;  // of what tiles are cut from: the output, or before upsampling the input
};

// Held by value wherever it is used: a struct that others point into would lie in local memory, and so would the sums
// beside it.
struct Place {
    Layer layer;
    int thread, lane, warp, image, tile;
    int y0, x0;  // the tile's first pixel

    __device__ Place(const Layer& l, int tile_h, int tile_w, int number = blockIdx.x)
        : layer(l),
          thread(threadIdx.x),
          lane(threadIdx.x % 32),
          warp(threadIdx.x / 32),
          image(blockIdx.y),
          tile(number) {
        const int across = (l.out_width + tile_w - 1) / tile_w;
        y0 = tile / across * tile_h;
        x0 = tile % across * tile_w;
    }
};

// Reflection padding: the pixel before the first is the second.
__device__ inline int reflected(int i, int n) {
    i = i < 0 ? -i : i;
    i = i >= n ? 2 * n - 2 - i : i;
    return i < 0 ? 0 : i;  // only where a tile hangs over the edge, and nothing is made of it
}

// The nearest pixel that there is.
__device__ inline int clamped(int i, int n) { return i < 0 ? 0 : i < n ? i : n - 1; }
