// Joseph's projector and its exact adjoint: what joseph_plain.py computes, in float32, both without atomics.
//
// A launch does the rays that run along one axis most (`i`, slice by slice) and cross the two others (`a`, `b`); the other
// rays of its views are left to other launches. Where a ray meets slice i is a quotient of polynomials in its column
// and row, the same for cone and parallel beams: (base(i, col) + row * step(i)) / along(col, row). Forward, a thread
// follows one ray. Backward, a thread gathers: the voxels' neighbours in the slice, projected, bound the rays that pass between
// them. Both reckon where a ray meets a slice by the same instructions, so their weights agree to the last bit or two.
//
// Ref: Joseph 1982, IEEE Trans. Med. Imaging 1, 192. The quotient follows from Pluecker's coordinates of a line: Hartley and
//      Zisserman 2004, Multiple View Geometry, section 3.2.2. Gathering instead of scattering: the adjoint's own sum,
//      reordered by voxels.

#include "stored.cuh"

#define VIEWS_PER_LAUNCH 64
#define HEIGHT 4
// A ray this far outside of what bounds it is looked at too, in pixels: more than rounding can move it.
#define SLACK 0.0078125f

// Polynomials 1, col, row; columns, rows and i are counted from the middle, a and b from the first voxel.
struct View {
    float along[3];           // component of the ray along the axis
    float a_along[3], a_at[3]; // a of the ray in slice i is (a_at + i * a_along) / along
    float b_along[3], b_at[3];
    float col[4], row[4], depth[4]; // of i, a, b and 1: the projection matrix; its shadows count from the first pixel
    int view;                 // whose projection this is
};

__constant__ View views[VIEWS_PER_LAUNCH];

static __device__ __forceinline__ float linear(const float *of, float col) { return fmaf(col, of[1], of[0]); }

static __device__ __forceinline__ float affine(const float *of, float col, float row)
{
    return fmaf(row, of[2], linear(of, col));
}

// Where a ray meets slice i: its shares of `at` and `along`, of its column and of its row.
static __device__ __forceinline__ float meets(float base, float step, float row, float inverse)
{
    return fmaf(row, step, base) * inverse;
}

// Whether the ray belongs to this axis: of equal components the one of the first axis counts as the larger.
static __device__ __forceinline__ bool is_mine(const View &of, float col, float row, int is_after_a, int is_after_b)
{
    const float along = fabsf(affine(of.along, col, row));
    const float a = fabsf(affine(of.a_along, col, row)), b = fabsf(affine(of.b_along, col, row));
    return (is_after_a ? along > a : along >= a) && (is_after_b ? along > b : along >= b);
}

static __device__ __forceinline__ float step_length(const View &of, float col, float row, float step_mm)
{
    const float inverse = reciprocal(affine(of.along, col, row));
    const float a = affine(of.a_along, col, row) * inverse, b = affine(of.b_along, col, row) * inverse;
    return step_mm * sqrtf(fmaf(a, a, fmaf(b, b, 1.0f)));
}

// Narrow first..last to the slices in which -1 <= foot + i * slope <= n, and to one more on either side.
static __device__ __forceinline__ void narrow(float foot, float slope, int n, float middle, int &first, int &last)
{
    const float inverse = 1.0f / slope;
    const float one = fmaf(-1.0f - foot, inverse, middle), other = fmaf(n - foot, inverse, middle);
    if (fabsf(slope) > 1e-6f) {
        first = max(first, (int)floorf(fmaxf(fminf(one, other), -1e6f)) - 1);
        last = min(last, (int)ceilf(fminf(fmaxf(one, other), 1e6f)) + 1);
    } else if (!(foot > -2.0f && foot < n + 1.0f))
        last = first - 1;
}

// volume      : CHANNELS side by side, voxel (i, a, b) at i * stride_i + a * stride_a + b * stride_b
// projections : (n_channels, n_views, rows, cols), of which the rays of this axis are filled
// scale       : what the stored values are to be multiplied by
extern "C" __global__ void __launch_bounds__(256, 3) forward(
    float *__restrict__ projections, const Pixel *__restrict__ volume, const float *__restrict__ scale,
    int n_channels, int n_views, int rows, int cols, int n_i, int n_a, int n_b, int stride_i, int stride_a, int stride_b,
    int is_after_a, int is_after_b, float step_mm)
{
    const int at_col = blockIdx.x * blockDim.x + threadIdx.x;
    const int at_row = blockIdx.y * blockDim.y + threadIdx.y;
    if (at_col >= cols || at_row >= rows)
        return;
    const View &of = views[blockIdx.z];
    const float col = at_col - 0.5f * (cols - 1), row = at_row - 0.5f * (rows - 1);
    if (!is_mine(of, col, row, is_after_a, is_after_b))
        return;
    const float inverse = reciprocal(affine(of.along, col, row));
    const float a_at = linear(of.a_at, col), a_along = linear(of.a_along, col);
    const float b_at = linear(of.b_at, col), b_along = linear(of.b_along, col);
    const float middle = 0.5f * (n_i - 1);
    int first = 0, last = n_i - 1;
    narrow(affine(of.a_at, col, row) * inverse, affine(of.a_along, col, row) * inverse, n_a, middle, first, last);
    narrow(affine(of.b_at, col, row) * inverse, affine(of.b_along, col, row) * inverse, n_b, middle, first, last);
    float sums[CHANNELS] = {};
    for (int slice = first; slice <= last; ++slice) {
        const float i = slice - middle;
        const float a = meets(fmaf(i, a_along, a_at), fmaf(i, of.a_along[2], of.a_at[2]), row, inverse);
        const float b = meets(fmaf(i, b_along, b_at), fmaf(i, of.b_along[2], of.b_at[2]), row, inverse);
        const float low_a = floorf(a), low_b = floorf(b);
        const float share_a = a - low_a, share_b = b - low_b;
        const int ia = (int)low_a, ib = (int)low_b;
        const Pixel *at = volume + (long long)slice * stride_i + (long long)ia * stride_a + ib * stride_b;
        const float weights[4] = {
            (1.0f - share_a) * (1.0f - share_b), (1.0f - share_a) * share_b, share_a * (1.0f - share_b), share_a * share_b};
        Pixel around[4] = {};
        if ((unsigned)ia < (unsigned)(n_a - 1) && (unsigned)ib < (unsigned)(n_b - 1)) {
            around[0] = at[0];
            around[1] = at[stride_b];
            around[2] = at[stride_a];
            around[3] = at[stride_a + stride_b];
        } else {
            const bool has_a = (unsigned)ia < (unsigned)n_a, has_next_a = (unsigned)(ia + 1) < (unsigned)n_a;
            const bool has_b = (unsigned)ib < (unsigned)n_b, has_next_b = (unsigned)(ib + 1) < (unsigned)n_b;
            if (has_a && has_b)
                around[0] = at[0];
            if (has_a && has_next_b)
                around[1] = at[stride_b];
            if (has_next_a && has_b)
                around[2] = at[stride_a];
            if (has_next_a && has_next_b)
                around[3] = at[stride_a + stride_b];
        }
#pragma unroll
        for (int channel = 0; channel < CHANNELS; ++channel)
#pragma unroll
            for (int corner = 0; corner < 4; ++corner)
                sums[channel] = fmaf(weights[corner], widened(around[corner].of[channel]), sums[channel]);
    }
    const float factor = *scale * step_length(of, col, row, step_mm);
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel)
        if (channel < n_channels)
            projections[(((long long)channel * n_views + of.view) * rows + at_row) * cols + at_col] = factor * sums[channel];
}

// Lay the projections of a launch out for `adjoint`: times the length of a step, and 0 for the rays of other axes.
// packed : (views of the launch, rows, cols, CHANNELS)
extern "C" __global__ void __launch_bounds__(256, 3) pack(
    Pixel *__restrict__ packed, const float *__restrict__ projections, const float *__restrict__ scale,
    int n_channels, int n_views, int rows, int cols, int is_after_a, int is_after_b)
{
    const int at_col = blockIdx.x * blockDim.x + threadIdx.x;
    const int at_row = blockIdx.y * blockDim.y + threadIdx.y;
    if (at_col >= cols || at_row >= rows)
        return;
    const View &of = views[blockIdx.z];
    const float col = at_col - 0.5f * (cols - 1), row = at_row - 0.5f * (rows - 1);
    const float factor = is_mine(of, col, row, is_after_a, is_after_b) ? step_length(of, col, row, 1.0f) / *scale : 0.0f;
    Pixel pixel = {};
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel)
        if (channel < n_channels)
            store(
                pixel.of[channel],
                factor * projections[(((long long)channel * n_views + of.view) * rows + at_row) * cols + at_col]);
    packed[((long long)blockIdx.z * rows + at_row) * cols + at_col] = pixel;
}

// The least and the largest of a view's columns, or rows, that can matter between two shadows, in low..high.
static __device__ __forceinline__ void between(float one, float other, int n, int &low, int &high)
{
    low = (int)ceilf(fmaxf(fminf(one, other) - SLACK, 0.0f));
    high = (int)floorf(fminf(fmaxf(one, other) + SLACK, n - 1.0f));
}

// Any scan: a thread has one voxel; the square of its neighbours in the slice, projected, lies in a rectangle of rays.
// AXIS is 0, 1 or 2 for rays along z, y or x.
template <int AXIS>
static __device__ __forceinline__ void adjoint_general(
    float *__restrict__ volume, const Pixel *__restrict__ packed, const float *__restrict__ scale,
    int n_launched, int n_channels, int rows, int cols, int n_z, int n_y, int n_x, float step_mm)
{
    const int ix = blockIdx.x * blockDim.x + threadIdx.x;
    const int iy = blockIdx.y * blockDim.y + threadIdx.y;
    const int iz = blockIdx.z;
    if (ix >= n_x || iy >= n_y)
        return;
    const float i = AXIS == 0 ? iz - 0.5f * (n_z - 1) : AXIS == 1 ? iy - 0.5f * (n_y - 1) : ix - 0.5f * (n_x - 1);
    const float a = AXIS == 0 ? iy : iz, b = AXIS == 2 ? iy : ix;
    float sums[CHANNELS] = {};
    for (int launched = 0; launched < n_launched; ++launched) {
        const View &of = views[launched];
        const Pixel *image = packed + (long long)launched * rows * cols;
        float least_col = 1e9f, most_col = -1e9f, least_row = 1e9f, most_row = -1e9f;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            const float at_a = a + (corner / 2 ? 1.0f : -1.0f), at_b = b + (corner % 2 ? 1.0f : -1.0f);
            const float inverse =
                reciprocal(fmaf(of.depth[0], i, fmaf(of.depth[1], at_a, fmaf(of.depth[2], at_b, of.depth[3]))));
            const float col = fmaf(of.col[0], i, fmaf(of.col[1], at_a, fmaf(of.col[2], at_b, of.col[3]))) * inverse;
            const float row = fmaf(of.row[0], i, fmaf(of.row[1], at_a, fmaf(of.row[2], at_b, of.row[3]))) * inverse;
            least_col = fminf(least_col, col), most_col = fmaxf(most_col, col);
            least_row = fminf(least_row, row), most_row = fmaxf(most_row, row);
        }
        int first_col, last_col, first_row, last_row;
        between(least_col, most_col, cols, first_col, last_col);
        between(least_row, most_row, rows, first_row, last_row);
        const float a_step = fmaf(i, of.a_along[2], of.a_at[2]), b_step = fmaf(i, of.b_along[2], of.b_at[2]);
        for (int at_col = first_col; at_col <= last_col; ++at_col) {
            const float col = at_col - 0.5f * (cols - 1);
            const float along = linear(of.along, col);
            const float a_base = fmaf(i, linear(of.a_along, col), linear(of.a_at, col));
            const float b_base = fmaf(i, linear(of.b_along, col), linear(of.b_at, col));
            for (int at_row = first_row; at_row <= last_row; ++at_row) {
                const float row = at_row - 0.5f * (rows - 1);
                const float inverse = reciprocal(fmaf(row, of.along[2], along));
                const float weight_a = 1.0f - fabsf(meets(a_base, a_step, row, inverse) - a);
                const float weight_b = 1.0f - fabsf(meets(b_base, b_step, row, inverse) - b);
                if (!(weight_a > 0.0f && weight_b > 0.0f))
                    continue;
                const Pixel pixel = image[(long long)at_row * cols + at_col];
#pragma unroll
                for (int channel = 0; channel < CHANNELS; ++channel)
                    sums[channel] = fmaf(weight_a * weight_b, widened(pixel.of[channel]), sums[channel]);
            }
        }
    }
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel)
        if (channel < n_channels)
            volume[(((long long)channel * n_z + iz) * n_y + iy) * n_x + ix] += step_mm * *scale * sums[channel];
}

// Upright scans, rays along y or x: all rays of a column lie in one upright plane, so a thread's HEIGHT voxels above each
// other have their columns in common, and along a column the rays climb by equal steps.
template <int AXIS>
static __device__ __forceinline__ void adjoint_upright(
    float *__restrict__ volume, const Pixel *__restrict__ packed, const float *__restrict__ scale,
    int n_launched, int n_channels, int rows, int cols, int n_z, int n_y, int n_x, float step_mm)
{
    const int ix = blockIdx.x * blockDim.x + threadIdx.x;
    const int iy = blockIdx.y * blockDim.y + threadIdx.y;
    const int z_first = blockIdx.z * HEIGHT;
    if (ix >= n_x || iy >= n_y)
        return;
    const float i = AXIS == 1 ? iy - 0.5f * (n_y - 1) : ix - 0.5f * (n_x - 1);
    const float b = AXIS == 1 ? ix : iy;
    const float middle_row = 0.5f * (rows - 1);
    float sums[HEIGHT][CHANNELS] = {};
    for (int launched = 0; launched < n_launched; ++launched) {
        const View &of = views[launched];
        const Pixel *image = packed + (long long)launched * rows * cols;
        const float col_there = fmaf(of.col[0], i, fmaf(of.col[2], b, of.col[3]));
        const float depth_there = fmaf(of.depth[0], i, fmaf(of.depth[2], b, of.depth[3]));
        int first_col, last_col;
        between((col_there - of.col[2]) * reciprocal(depth_there - of.depth[2]),
                (col_there + of.col[2]) * reciprocal(depth_there + of.depth[2]), cols, first_col, last_col);
        const float step = fmaf(i, of.a_along[2], of.a_at[2]);
        const float rows_per_step = reciprocal(step);
        for (int at_col = first_col; at_col <= last_col; ++at_col) {
            const float col = at_col - 0.5f * (cols - 1);
            const float along = linear(of.along, col), inverse = reciprocal(along);
            const float b_base = fmaf(i, linear(of.b_along, col), linear(of.b_at, col));
            const float weight_b = 1.0f - fabsf(b_base * inverse - b);
            if (!(weight_b > 0.0f))
                continue;
            const float base = fmaf(i, linear(of.a_along, col), linear(of.a_at, col));
            const float rows_per_voxel = along * rows_per_step;
            const float row_of_first = fmaf(z_first * along - base, rows_per_step, middle_row);
            const float reach = fabsf(rows_per_voxel);
#pragma unroll
            for (int k = 0; k < HEIGHT; ++k) {
                const float row_there = fmaf((float)k, rows_per_voxel, row_of_first);
                int first_row, last_row;
                between(row_there - reach, row_there + reach, rows, first_row, last_row);
                for (int at_row = first_row; at_row <= last_row; ++at_row) {
                    const float a = meets(base, step, at_row - middle_row, inverse);
                    const float weight = weight_b * fmaxf(1.0f - fabsf(a - (z_first + k)), 0.0f);
                    const Pixel pixel = image[(long long)at_row * cols + at_col];
#pragma unroll
                    for (int channel = 0; channel < CHANNELS; ++channel)
                        sums[k][channel] = fmaf(weight, widened(pixel.of[channel]), sums[k][channel]);
                }
            }
        }
    }
#pragma unroll
    for (int k = 0; k < HEIGHT; ++k)
#pragma unroll
        for (int channel = 0; channel < CHANNELS; ++channel)
            if (z_first + k < n_z && channel < n_channels)
                volume[(((long long)channel * n_z + z_first + k) * n_y + iy) * n_x + ix] +=
                    step_mm * *scale * sums[k][channel];
}

extern "C" __global__ void __launch_bounds__(256, 3) adjoint_z(
    float *volume, const Pixel *packed, const float *scale, int n_launched, int n_channels, int rows, int cols, int n_z,
    int n_y, int n_x, float step_mm)
{
    adjoint_general<0>(volume, packed, scale, n_launched, n_channels, rows, cols, n_z, n_y, n_x, step_mm);
}

extern "C" __global__ void __launch_bounds__(256, 3) adjoint_y(
    float *volume, const Pixel *packed, const float *scale, int n_launched, int n_channels, int rows, int cols, int n_z,
    int n_y, int n_x, float step_mm)
{
    adjoint_general<1>(volume, packed, scale, n_launched, n_channels, rows, cols, n_z, n_y, n_x, step_mm);
}

extern "C" __global__ void __launch_bounds__(256, 3) adjoint_x(
    float *volume, const Pixel *packed, const float *scale, int n_launched, int n_channels, int rows, int cols, int n_z,
    int n_y, int n_x, float step_mm)
{
    adjoint_general<2>(volume, packed, scale, n_launched, n_channels, rows, cols, n_z, n_y, n_x, step_mm);
}

extern "C" __global__ void __launch_bounds__(256, 3) adjoint_upright_y(
    float *volume, const Pixel *packed, const float *scale, int n_launched, int n_channels, int rows, int cols, int n_z,
    int n_y, int n_x, float step_mm)
{
    adjoint_upright<1>(volume, packed, scale, n_launched, n_channels, rows, cols, n_z, n_y, n_x, step_mm);
}

extern "C" __global__ void __launch_bounds__(256, 3) adjoint_upright_x(
    float *volume, const Pixel *packed, const float *scale, int n_launched, int n_channels, int rows, int cols, int n_z,
    int n_y, int n_x, float step_mm)
{
    adjoint_upright<2>(volume, packed, scale, n_launched, n_channels, rows, cols, n_z, n_y, n_x, step_mm);
}
