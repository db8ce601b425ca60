"""The ray caster in the language of the graphics card, and the words its compiler is answered with.

One source serves GLSL 1.20 (OpenGL 2.1, macOS without a core profile) and 1.40 and later.

# Ref: emission and absorption: Max 1995, IEEE Trans. Vis. Comput. Graph. 1, 99; light: Blinn 1977, SIGGRAPH 11, 192.
# Ref: the noise of the start of a ray: Jimenez 2014, "Next generation post processing", SIGGRAPH course.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gui.volume.optics import CALM

AMBIENT, DIFFUSE, SPECULAR, SHININESS = 0.45, 0.6, 0.22, 24.0
"""Shares of the light on a surface."""
SOLID_FROM, SOLID_TO = 0.004, 0.04
"""A surface begins to be lit where a voxel hides the first of these, and is fully lit from the second on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is settled when the shader is compiled, because asking for each sample would cost."""

    is_second_texture: bool
    is_shaded: bool
    is_modern: bool


class ShaderRefused(Exception):
    """The driver does not take our shader; the message is the compiler's."""


_MODERN = """#version 140
#define texture1 texture
#define IN in
out vec4 o_colour;
"""
_LEGACY = """#version 120
#define texture1(s, p) texture3D(s, p)
#define IN varying
#define o_colour gl_FragColor
"""
_VERTEX_MODERN = "#version 140\n#define ATTRIBUTE in\n#define OUT out\n"
_VERTEX_LEGACY = "#version 120\n#define ATTRIBUTE attribute\n#define OUT varying\n"

_VERTEX = """
ATTRIBUTE vec2 a_position;
OUT vec2 v_position;
void main() {
    v_position = a_position;
    gl_Position = vec4(a_position, 0.0, 1.0);
}
"""

_RAY = """
IN vec2 v_position;
uniform sampler3D u_volume0;
uniform sampler3D u_volume1;
uniform sampler3D u_marks;
uniform sampler2D u_depth;
uniform mat4 u_to_mm;
uniform vec3 u_corner_mm;
uniform vec3 u_size_mm;
uniform vec3 u_voxel_mm;
uniform vec3 u_clip_low_mm;
uniform vec3 u_clip_high_mm;
uniform vec4 u_plane;
uniform vec3 u_blocks_mm;
uniform vec3 u_blocks;
uniform vec4 u_low0;
uniform vec4 u_scale0;
uniform mat4 u_glow0;
uniform vec4 u_low1;
uniform vec4 u_scale1;
uniform mat4 u_glow1;
uniform float u_bend;
uniform float u_step_mm;
uniform float u_solid_per_mm;
uniform float u_opaque;
uniform vec3 u_light;

vec4 glow(vec3 p) {
    vec4 s = clamp((texture1(u_volume0, p) - u_low0) * u_scale0, 0.0, 1.0);
    vec4 sum = u_glow0 * (s + u_bend * (s * s - s));
#ifdef SECOND
    s = clamp((texture1(u_volume1, p) - u_low1) * u_scale1, 0.0, 1.0);
    sum += u_glow1 * (s + u_bend * (s * s - s));
#endif
    return sum;
}

// Four samples at the corners of a tetrahedron give the gradient; along x, y, z of the volume, per mm.
vec3 gradient(vec3 p) {
    vec3 h = u_voxel_mm / u_size_mm;
    float a = glow(p + h * vec3(1.0, -1.0, -1.0)).a;
    float b = glow(p + h * vec3(-1.0, -1.0, 1.0)).a;
    float c = glow(p + h * vec3(-1.0, 1.0, -1.0)).a;
    float d = glow(p + h * vec3(1.0, 1.0, 1.0)).a;
    return vec3(a - b - c + d, c + d - a - b, b + d - a - c) / (4.0 * u_voxel_mm);
}

vec3 lit(vec3 colour, float extinction, vec3 p, vec3 back) {
    float voxel = min(u_voxel_mm.x, min(u_voxel_mm.y, u_voxel_mm.z));
    float solid = smoothstep(float(SOLID_FROM), float(SOLID_TO), 1.0 - exp(-extinction * voxel));
    if (solid <= 0.0) return colour;
    vec3 g = gradient(p);
    float steep = length(g);
    if (steep <= 0.0) return colour;
    vec3 normal = -g / steep;
    float edge = solid * clamp(2.0 * steep * voxel / extinction, 0.0, 1.0);
    float diffuse = max(dot(normal, u_light), 0.0);
    float gloss = pow(max(dot(normal, normalize(u_light + back)), 0.0), float(SHININESS));
    return colour * mix(1.0, float(AMBIENT) + float(DIFFUSE) * diffuse, edge) + edge * float(SPECULAR) * gloss;
}

float exit_mm(vec3 from, vec3 inverse, vec3 low, vec3 high) {
    vec3 far = max((low - from) * inverse, (high - from) * inverse);
    return min(far.x, min(far.y, far.z));
}

void main() {
    vec4 near4 = u_to_mm * vec4(v_position, -1.0, 1.0);
    vec4 far4 = u_to_mm * vec4(v_position, 1.0, 1.0);
    vec3 from = near4.xyz / near4.w;
    vec3 way = far4.xyz / far4.w - from;
    float length_mm = length(way);
    way /= length_mm;
    vec3 inverse = 1.0 / (way + vec3(equal(way, vec3(0.0))) * 1e-12);

    vec3 first = (u_clip_low_mm - from) * inverse;
    vec3 second = (u_clip_high_mm - from) * inverse;
    vec3 nearer = min(first, second);
    vec3 farther = max(first, second);
    float t0 = max(max(nearer.x, nearer.y), max(nearer.z, 0.0));
    float t1 = min(farther.x, min(farther.y, farther.z));
    float slope = dot(u_plane.xyz, way);
    float rest = u_plane.w - dot(u_plane.xyz, from);
    if (slope > 1e-9) t1 = min(t1, rest / slope);
    else if (slope < -1e-9) t0 = max(t0, rest / slope);
    else if (rest < 0.0) t1 = t0;

#ifdef MODERN
    float depth = texture(u_depth, 0.5 * v_position + 0.5).r;
#else
    float depth = texture2D(u_depth, 0.5 * v_position + 0.5).r;
#endif
    if (depth < 1.0) {
        vec4 stop4 = u_to_mm * vec4(v_position, 2.0 * depth - 1.0, 1.0);
        t1 = min(t1, dot(stop4.xyz / stop4.w - from, way));
    }
    if (t1 <= t0) { o_colour = vec4(0.0); return; }

    vec2 pixel = floor(gl_FragCoord.xy);
    float jitter = fract(52.9829189 * fract(dot(pixel, vec2(0.06711056, 0.00583715))));
    float t = t0 + jitter * u_step_mm;
    vec3 colour = vec3(0.0);
    float clear = 1.0;
    vec3 at = from - u_corner_mm;
    // Loops in loops, since a processor that plays graphics card walks through both sides of every "if".
    for (int n = 0; n < 4096 && t < t1; n++) {
        float end = t;
        bool is_calm = false;
        for (int m = 0; m < 1024 && t < t1; m++) {
            vec3 p = at + t * way;
            vec3 block = floor(p / u_blocks_mm);
            float mark = floor(255.0 * texture1(u_marks, p / (u_blocks_mm * u_blocks)).r + 0.5);
            bool is_empty = mark > 0.0 && mark < CALM;
            is_calm = mark >= CALM;
            float reach = is_empty ? mark - 1.0 : 0.0;
            end = t + exit_mm(p, inverse, (block - reach) * u_blocks_mm, (block + reach + 1.0) * u_blocks_mm);
            if (!is_empty) break;
            t += max(ceil((end - t) / u_step_mm), 1.0) * u_step_mm;
        }
        end = min(end, t1);
        float steps = is_calm ? max(floor((end - t) / u_step_mm) + 1.0, 1.0) : 1.0;
        float stride = steps * u_step_mm;
        vec3 place = (at + (t + 0.5 * (stride - u_step_mm)) * way) / u_size_mm;
        vec3 onward = stride * way / u_size_mm;
        float halt = is_calm ? min(t + 0.5 * stride, t1) : max(end, min(t + 0.01 * u_step_mm, t1));
#ifdef SHADED
        vec4 surface = vec4(0.0);
#endif
        for (int k = 0; k < 64 && t < halt; k++) {
            vec4 light = glow(place);
#ifdef SHADED
            if (!is_calm && light.a > u_solid_per_mm) { surface = light; break; }
#endif
            float seen = clear * (1.0 - exp(-light.a * stride)) / max(light.a, 1e-20);
            colour += seen * light.rgb;
            clear -= seen * light.a;
            place += onward;
            t += stride;
        }
#ifdef SHADED
        if (surface.a > 0.0) {
            float alpha = 1.0 - exp(-surface.a * u_step_mm);
            colour += clear * alpha * lit(surface.rgb / surface.a, surface.a, place, -way);
            clear *= 1.0 - alpha;
            t += u_step_mm;
        }
#endif
        if (clear < 1.0 - u_opaque) { colour /= 1.0 - clear; clear = 0.0; break; }
    }
    o_colour = vec4(min(colour, 1.0), 1.0 - clear);
}
"""

_PLACE = """
IN vec2 v_position;
uniform sampler2D u_picture;
void main() {
#ifdef MODERN
    o_colour = texture(u_picture, 0.5 * v_position + 0.5);
#else
    o_colour = texture2D(u_picture, 0.5 * v_position + 0.5);
#endif
}
"""


_MESH_VERTEX = """
ATTRIBUTE vec3 a_position;
ATTRIBUTE vec3 a_normal;
OUT vec3 v_mm;
OUT vec3 v_normal;
uniform mat4 u_to_clip;
void main() {
    v_mm = a_position;
    v_normal = a_normal;
    gl_Position = u_to_clip * vec4(a_position, 1.0);
}
"""

_MESH = """
IN vec3 v_mm;
IN vec3 v_normal;
uniform vec3 u_colour;
uniform vec3 u_light;
uniform vec3 u_back;
uniform vec3 u_clip_low_mm;
uniform vec3 u_clip_high_mm;
uniform vec4 u_plane;
void main() {
    if (any(lessThan(v_mm, u_clip_low_mm)) || any(greaterThan(v_mm, u_clip_high_mm))) discard;
    if (dot(u_plane.xyz, v_mm) > u_plane.w) discard;
    vec3 normal = normalize(v_normal);
    if (dot(normal, u_back) < 0.0) normal = -normal;
    float diffuse = max(dot(normal, u_light), 0.0);
    float gloss = pow(max(dot(normal, normalize(u_light + u_back)), 0.0), float(SHININESS));
    o_colour = vec4(u_colour * (float(AMBIENT) + float(DIFFUSE) * diffuse) + float(SPECULAR) * gloss, 1.0);
}
"""


def mesh_sources(*, is_modern: bool) -> tuple[str, str]:
    """Return the two shaders of a surface, which is lit like what rays see."""
    head = (_MODERN if is_modern else _LEGACY) + "\n".join(_constants())
    return (_VERTEX_MODERN if is_modern else _VERTEX_LEGACY) + _MESH_VERTEX, head + _MESH


def sources(variant: Variant) -> tuple[str, str, str]:
    """Return the vertex shader, the ray caster and what puts a finished picture on the screen."""
    lines = _constants()
    flags = {"SECOND": variant.is_second_texture, "SHADED": variant.is_shaded, "MODERN": variant.is_modern}
    lines += [f"#define {name}" for name, is_set in flags.items() if is_set]
    head = (_MODERN if variant.is_modern else _LEGACY) + "\n".join(lines)
    return (_VERTEX_MODERN if variant.is_modern else _VERTEX_LEGACY) + _VERTEX, head + _RAY, head + _PLACE


def _constants() -> list[str]:
    values = {
        "AMBIENT": AMBIENT, "DIFFUSE": DIFFUSE, "SPECULAR": SPECULAR, "SHININESS": SHININESS,
        "SOLID_FROM": SOLID_FROM, "SOLID_TO": SOLID_TO, "CALM": float(CALM),
    }  # fmt: skip
    return [f"#define {name} {value}" for name, value in values.items()]


def compiled(vertex: str, fragment: str) -> Any:
    """Compile and link for the current context; attribute 0 is the position, 1 a normal.

    Raises
    ------
    ShaderRefused
    """
    from OpenGL import GL

    program = GL.glCreateProgram()
    for kind, source in ((GL.GL_VERTEX_SHADER, vertex), (GL.GL_FRAGMENT_SHADER, fragment)):
        shader = GL.glCreateShader(kind)
        GL.glShaderSource(shader, source)
        GL.glCompileShader(shader)
        if not GL.glGetShaderiv(shader, GL.GL_COMPILE_STATUS):
            raise ShaderRefused(_words(GL.glGetShaderInfoLog(shader)))
        GL.glAttachShader(program, shader)
        GL.glDeleteShader(shader)
    GL.glBindAttribLocation(program, 0, "a_position")
    GL.glBindAttribLocation(program, 1, "a_normal")
    GL.glLinkProgram(program)
    if not GL.glGetProgramiv(program, GL.GL_LINK_STATUS):
        raise ShaderRefused(_words(GL.glGetProgramInfoLog(program)))
    return program


def _words(log: bytes | str) -> str:
    text = log.decode(errors="replace") if isinstance(log, bytes) else str(log)
    return " ".join(text.split())[:400]
