// Steps of total variation: what tv_plain.py computes, each array read and written once.
//
// A thread has one voxel with all channels. Differences run to the next voxel along z, y and x, and are 0 at the last.
//
// Ref: Chambolle 2004, J. Math. Imaging Vis. 20, 89.

#define ANYWHERE 0
#define PER_COMPONENT 1
#define PER_CHANNEL 2
#define FROBENIUS 3

struct Place {
    int at[3], n[3];
    long long stride[3], voxel, n_voxels;
};

// Which voxel the thread has; false where it has none.
static __device__ __forceinline__ bool find_place(Place &place, int n_z, int n_y, int n_x)
{
    place.at[0] = blockIdx.z, place.at[1] = blockIdx.y * blockDim.y + threadIdx.y;
    place.at[2] = blockIdx.x * blockDim.x + threadIdx.x;
    place.n[0] = n_z, place.n[1] = n_y, place.n[2] = n_x;
    place.stride[0] = (long long)n_y * n_x, place.stride[1] = n_x, place.stride[2] = 1;
    place.voxel = place.at[0] * place.stride[0] + place.at[1] * place.stride[1] + place.at[2];
    place.n_voxels = n_z * place.stride[0];
    return place.at[1] < n_y && place.at[2] < n_x;
}

// (I - t t^T) g
static __device__ __forceinline__ void across(float *g, const float *tangent, long long voxel, long long n_voxels)
{
    const float t[3] = {tangent[voxel], tangent[n_voxels + voxel], tangent[2 * n_voxels + voxel]};
    const float along = fmaf(g[0], t[0], fmaf(g[1], t[1], g[2] * t[2]));
    for (int d = 0; d < 3; ++d)
        g[d] = fmaf(-along, t[d], g[d]);
}

// shrink (q + step K u) of one channel and voxel.
static __device__ __forceinline__ void stepped(
    float *there, const Place &place, const float *q, const float *u, const float *tangent, float weight, float step,
    float shrink, int has_tangent)
{
    for (int d = 0; d < 3; ++d)
        there[d] = place.at[d] < place.n[d] - 1 ? weight * (u[place.voxel + place.stride[d]] - u[place.voxel]) : 0.0f;
    if (has_tangent)
        across(there, tangent, place.voxel, place.n_voxels);
    for (int d = 0; d < 3; ++d)
        there[d] = shrink * fmaf(step, there[d], q[d * place.n_voxels + place.voxel]);
}

static __device__ __forceinline__ float square(const float *v) { return fmaf(v[0], v[0], fmaf(v[1], v[1], v[2] * v[2])); }

// p, q : (n_channels, 3, z, y, x), which may be the same array; u : (n_channels, z, y, x)
extern "C" __global__ void __launch_bounds__(256) dual(
    float *p, float *q, const float *u, const float *weights, const float *tangent, int has_tangent, int n_channels, int n_z,
    int n_y, int n_x, float step, float shrink, float momentum, int ball, float radius)
{
    Place place;
    if (!find_place(place, n_z, n_y, n_x))
        return;
    float v[3], size = 0.0f;
    if (ball == FROBENIUS) {
        for (int c = 0; c < n_channels; ++c) {
            stepped(v, place, q + 3 * c * place.n_voxels, u + c * place.n_voxels, tangent, weights[c], step, shrink,
                    has_tangent);
            size += square(v);
        }
        size = sqrtf(size);
    }
    for (int c = 0; c < n_channels; ++c) {
        float *of_q = q + 3 * c * place.n_voxels, *of_p = p + 3 * c * place.n_voxels;
        stepped(v, place, of_q, u + c * place.n_voxels, tangent, weights[c], step, shrink, has_tangent);
        if (ball == PER_CHANNEL)
            size = sqrtf(square(v));
        const float share = ball == PER_CHANNEL || ball == FROBENIUS ? radius / fmaxf(size, radius) : 1.0f;
        for (int d = 0; d < 3; ++d) {
            const long long at = d * place.n_voxels + place.voxel;
            const float fresh = ball == PER_COMPONENT ? fminf(fmaxf(v[d], -radius), radius) : share * v[d];
            of_q[at] = fmaf(momentum, fresh - of_p[at], fresh);
            of_p[at] = fresh;
        }
    }
}

// out, base : (n_channels, z, y, x), which may be the same array; values below `floor` become it
extern "C" __global__ void __launch_bounds__(256) primal(
    float *out, const float *base, const float *p, const float *weights, const float *tangent, int has_tangent,
    int n_channels, int n_z, int n_y, int n_x, float step, float floor)
{
    Place place;
    if (!find_place(place, n_z, n_y, n_x))
        return;
    for (int c = 0; c < n_channels; ++c) {
        const float *of_p = p + 3 * c * place.n_voxels;
        float sum = 0.0f;
        for (int from = -1; from < 3; ++from) { // this voxel, then the ones before it
            if (from >= 0 && place.at[from] == 0)
                continue;
            const long long voxel = place.voxel - (from < 0 ? 0 : place.stride[from]);
            float g[3];
            for (int d = 0; d < 3; ++d)
                g[d] = from < 0 || has_tangent || d == from ? of_p[d * place.n_voxels + voxel] : 0.0f;
            if (has_tangent)
                across(g, tangent, voxel, place.n_voxels);
            for (int d = 0; d < 3; ++d)
                if (from < 0)
                    sum -= place.at[d] < place.n[d] - 1 ? g[d] : 0.0f;
                else
                    sum += d == from ? g[d] : 0.0f;
        }
        const long long at = c * place.n_voxels + place.voxel;
        out[at] = fmaxf(fmaf(-step * weights[c], sum, base[at]), floor);
    }
}
