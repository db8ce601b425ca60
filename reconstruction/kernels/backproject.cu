// Voxel-driven back-projection over general projection matrices: what backproject_cpu.py computes, in float32.
//
// A thread holds HEIGHT voxels above each other, with CHANNELS channels each, in registers while it walks the views, whose
// matrices stand in constant memory. Threads side by side in x read neighbouring detector columns. Where the detector's
// columns stand upright (a and c do not change along z), the column, the magnification and the weight are the same for
// all voxels of a thread. Zeros stand around every image (1 row and column before, 2 behind): no pixel is asked where it lies.
//
// Ref: Feldkamp, Davis and Kress 1984, J. Opt. Soc. Am. A 1, 612. Projection matrices: Hartley and Zisserman 2004,
//      Multiple View Geometry, chapter 6.

#include "stored.cuh"

#define VIEWS_PER_LAUNCH 64
#define MARGINS 3
#define HEIGHT (CHANNELS > 2 ? 4 : 8)

struct View {
    float a[4], b[4], c[4]; // of x, y, z and 1, in voxels: the shadow is on column a / c and row b / c
    float weight;
};

__constant__ View views[VIEWS_PER_LAUNCH];

// volume      : (n_channels, n_z, n_y, n_x), added to; n_channels is at most CHANNELS
// projections : (n_views, rows + MARGINS, cols + MARGINS, CHANNELS)
// scale       : what the stored values are to be multiplied by
template <bool IS_UPRIGHT>
static __device__ __forceinline__ void backproject(
    float *__restrict__ volume, const Pixel *__restrict__ projections, const float *__restrict__ scale,
    int n_views, int n_channels, int rows, int cols, int n_z, int n_y, int n_x)
{
    const int ix = blockIdx.x * blockDim.x + threadIdx.x;
    const int iy = blockIdx.y * blockDim.y + threadIdx.y;
    const int z_first = blockIdx.z * HEIGHT;
    if (ix >= n_x || iy >= n_y)
        return;
    const int pixels_per_row = cols + MARGINS;
    const long long pixels_per_view = (long long)(rows + MARGINS) * pixels_per_row;
    float sums[HEIGHT][CHANNELS] = {};
    for (int view = 0; view < n_views; ++view) {
        const View &to = views[view];
        const Pixel *image = projections + view * pixels_per_view + pixels_per_row + 1;
        const float x = ix, y = iy, z = z_first;
        const float a = fmaf(to.a[0], x, fmaf(to.a[1], y, fmaf(to.a[2], z, to.a[3])));
        const float b = fmaf(to.b[0], x, fmaf(to.b[1], y, fmaf(to.b[2], z, to.b[3])));
        const float c = fmaf(to.c[0], x, fmaf(to.c[1], y, fmaf(to.c[2], z, to.c[3])));
        float magnification = reciprocal(c);
#pragma unroll
        for (int k = 0; k < HEIGHT; ++k) {
            if (!IS_UPRIGHT)
                magnification = reciprocal(fmaf((float)k, to.c[2], c));
            const float col_there = (IS_UPRIGHT ? a : fmaf((float)k, to.a[2], a)) * magnification;
            const float row_there = fmaf((float)k, to.b[2], b) * magnification;
            const float weight = to.weight * magnification * magnification;
            const float col = fminf(fmaxf(col_there, -1.0f), (float)cols);
            const float row = fminf(fmaxf(row_there, -1.0f), (float)rows);
            const float left = floorf(col), low = floorf(row);
            const float right_share = col - left, high_share = row - low;
            const float low_weight = weight * (1.0f - high_share), high_weight = weight * high_share;
            const Pixel *at = image + (int)low * pixels_per_row + (int)left;
            const Pixel low_left = at[0], low_right = at[1];
            const Pixel high_left = at[pixels_per_row], high_right = at[pixels_per_row + 1];
#pragma unroll
            for (int channel = 0; channel < CHANNELS; ++channel) {
                const float low_value = widened(low_left.of[channel]), high_value = widened(high_left.of[channel]);
                const float low_blend = fmaf(right_share, widened(low_right.of[channel]) - low_value, low_value);
                const float high_blend = fmaf(right_share, widened(high_right.of[channel]) - high_value, high_value);
                sums[k][channel] = fmaf(low_weight, low_blend, fmaf(high_weight, high_blend, sums[k][channel]));
            }
        }
    }
#pragma unroll
    for (int k = 0; k < HEIGHT; ++k)
#pragma unroll
        for (int channel = 0; channel < CHANNELS; ++channel)
            if (z_first + k < n_z && channel < n_channels)
                volume[(((long long)channel * n_z + z_first + k) * n_y + iy) * n_x + ix] += *scale * sums[k][channel];
}

extern "C" __global__ void __launch_bounds__(256) upright(
    float *volume, const Pixel *projections, const float *scale, int n_views, int n_channels, int rows, int cols, int n_z,
    int n_y, int n_x)
{
    backproject<true>(volume, projections, scale, n_views, n_channels, rows, cols, n_z, n_y, n_x);
}

extern "C" __global__ void __launch_bounds__(256) general(
    float *volume, const Pixel *projections, const float *scale, int n_views, int n_channels, int rows, int cols, int n_z,
    int n_y, int n_x)
{
    backproject<false>(volume, projections, scale, n_views, n_channels, rows, cols, n_z, n_y, n_x);
}
