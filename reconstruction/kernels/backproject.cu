// Voxel-driven back-projection on the GPU: the arithmetic of backproject_plain in backproject_cpu.py, in float32.
//
// A thread holds Z_PER_THREAD voxels above each other in registers while it walks the views: u, the magnification and
// the weight are the same for all of them. Threads side by side in x read neighbouring detector columns.
//
// Ref: Feldkamp, Davis and Kress 1984, J. Opt. Soc. Am. A 1, 612.

#define Z_PER_THREAD 8

// Zeros surround the detector.
static __device__ float pixel(const float *image, int row, int col, int rows, int cols)
{
    return row >= 0 && row < rows && col >= 0 && col < cols ? image[(long long)row * cols + col] : 0.0f;
}

// volume      : (n_bins, n_z, n_y, n_x), added to
// projections : (n_views, n_bins, rows, cols), filtered
// poses       : (n_views, 3), cosine and sine of the angle, and the view's weight
// x_first, y_first, z_first, voxel and both distances are in units of the detector's pitch; centre_col and centre_row
// are the pixel that the ray through the axis meets.
extern "C" __global__ void backproject(
    float *volume, const float *projections, const float *poses,
    int n_views, int n_bins, int rows, int cols, int n_z, int n_y, int n_x,
    float x_first, float y_first, float z_first, float voxel,
    float source_to_object, float source_to_detector, float centre_col, float centre_row)
{
    const int ix = blockIdx.x * blockDim.x + threadIdx.x;
    const int iy = blockIdx.y * blockDim.y + threadIdx.y;
    const int z_blocks = (n_z + Z_PER_THREAD - 1) / Z_PER_THREAD;
    const int bin = blockIdx.z / z_blocks;
    const int z_start = (blockIdx.z % z_blocks) * Z_PER_THREAD;
    if (ix >= n_x || iy >= n_y || bin >= n_bins)
        return;

    const float x = x_first + ix * voxel;
    const float y = y_first + iy * voxel;
    float sums[Z_PER_THREAD] = {0.0f};
    for (int view = 0; view < n_views; ++view) {
        const float cosine = poses[3 * view], sine = poses[3 * view + 1];
        const float distance = source_to_object - x * sine + y * cosine;
        const float magnification = source_to_detector / distance;
        const float col = (x * cosine + y * sine) * magnification + centre_col;
        if (!(col > -1.0f && col < (float)cols))
            continue;
        const float closeness = source_to_object / distance;
        const float weight = poses[3 * view + 2] * closeness * closeness;
        const int left = (int)floorf(col);
        const float right_share = col - left;
        const float *image = projections + ((long long)view * n_bins + bin) * rows * cols;
        for (int k = 0; k < Z_PER_THREAD; ++k) {
            const float row = (z_first + (z_start + k) * voxel) * magnification + centre_row;
            if (!(row > -1.0f && row < (float)rows))
                continue;
            const int low = (int)floorf(row);
            const float high_share = row - low;
            const float low_value = (1.0f - right_share) * pixel(image, low, left, rows, cols)
                                  + right_share * pixel(image, low, left + 1, rows, cols);
            const float high_value = (1.0f - right_share) * pixel(image, low + 1, left, rows, cols)
                                   + right_share * pixel(image, low + 1, left + 1, rows, cols);
            sums[k] += weight * (low_value + high_share * (high_value - low_value));
        }
    }
    for (int k = 0; k < Z_PER_THREAD && z_start + k < n_z; ++k)
        volume[(((long long)bin * n_z + z_start + k) * n_y + iy) * n_x + ix] += sums[k];
}
