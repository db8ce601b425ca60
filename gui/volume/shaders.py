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
SOLID_FROM, SOLID_TO = 0.032, 0.28
"""A surface begins to be lit where what is there would hide the first of these through `REACH_SHARE` of the volume, and
is fully lit from the second on; so a haze is never lit, at whatever resolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is settled when the shader is compiled, because asking for each sample would cost."""

    is_second_texture: bool
    is_shaded: bool
    is_bent: bool
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
uniform vec4 u_high0;
uniform mat4 u_glow0;
uniform vec4 u_low1;
uniform vec4 u_high1;
uniform mat4 u_glow1;
uniform float u_bend;
uniform float u_step_mm;
uniform vec2 u_solid_per_mm;
uniform float u_opaque;
uniform vec3 u_light;

// What stays the same along a ray; uniforms would be asked for at each sample by a processor that plays graphics card.
vec4 scale0, shift0, scale1, shift1;
mat4 glow0, glow1;
vec3 voxel;
vec2 solid_depth;

vec4 shares(vec4 value, vec4 scale, vec4 shift) {
    vec4 s = clamp(value * scale + shift, 0.0, 1.0);
#ifdef BENT
    s += u_bend * (s * s - s);
#endif
    return s;
}

// Red, green, blue and extinction, each times the step.
vec4 glow(vec3 p) {
    vec4 sum = glow0 * shares(texture1(u_volume0, p), scale0, shift0);
#ifdef SECOND
    sum += glow1 * shares(texture1(u_volume1, p), scale1, shift1);
#endif
    return sum;
}

// Four samples at the corners of a tetrahedron give the gradient; along x, y, z of the volume, per mm.
vec3 gradient(vec3 p) {
    float a = glow(p + voxel * vec3(1.0, -1.0, -1.0)).a;
    float b = glow(p + voxel * vec3(-1.0, -1.0, 1.0)).a;
    float c = glow(p + voxel * vec3(-1.0, 1.0, -1.0)).a;
    float d = glow(p + voxel * vec3(1.0, 1.0, 1.0)).a;
    return vec3(a - b - c + d, c + d - a - b, b + d - a - c) / (4.0 * u_voxel_mm);
}

vec3 lit(vec3 colour, float depth, vec3 p, vec3 back) {
    float solid = smoothstep(solid_depth.x, solid_depth.y, depth);
    vec3 g = gradient(p);
    float steep = length(g);
    vec3 normal = -g / max(steep, 1e-20);
    float least_mm = min(u_voxel_mm.x, min(u_voxel_mm.y, u_voxel_mm.z));
    float edge = solid * clamp(2.0 * steep * least_mm / depth, 0.0, 1.0);
    float diffuse = max(dot(normal, u_light), 0.0);
    float gloss = pow(max(dot(normal, normalize(u_light + back)), 0.0), float(SHININESS));
    return colour * mix(1.0, float(AMBIENT) + float(DIFFUSE) * diffuse, edge) + edge * float(SPECULAR) * gloss;
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

    // From here on lengths along the ray are in steps, from where it begins.
    scale0 = 1.0 / (u_high0 - u_low0);
    shift0 = -u_low0 * scale0;
    glow0 = u_glow0 * u_step_mm;
#ifdef SECOND
    scale1 = 1.0 / (u_high1 - u_low1);
    shift1 = -u_low1 * scale1;
    glow1 = u_glow1 * u_step_mm;
#endif
    voxel = u_voxel_mm / u_size_mm;
    solid_depth = u_solid_per_mm * u_step_mm;
    vec3 start = (from + t0 * way - u_corner_mm) / u_size_mm;
    vec3 onward = u_step_mm * way / u_size_mm;
    vec3 grid = u_size_mm / u_blocks_mm;
    vec3 block_start = start * grid;
    vec3 block_onward = onward * grid;
    vec3 per_block = inverse * u_blocks_mm / u_step_mm;
    vec3 ahead = step(0.0, way);
    vec3 mark_scale = 1.0 / u_blocks;
    float last = (t1 - t0) / u_step_mm;
    float faint = 1.0 - u_opaque;

    vec2 pixel = floor(gl_FragCoord.xy);
    float t = fract(52.9829189 * fract(dot(pixel, vec2(0.06711056, 0.00583715))));
    vec3 colour = vec3(0.0);
    float clear = 1.0;
    // Loops in loops, since a processor that plays graphics card walks through both sides of every "if"; each asks at
    // its end whether to go on, since such a processor walks to that end in any case.
    for (int l = 0; l < 4096; l++) {
        vec4 surface = vec4(0.0);
        vec3 place = start;
        for (int n = 0; n < 4096; n++) {
            float mark, end;
            for (int m = 0; m < 1024; m++) {
                vec3 b = block_start + t * block_onward;
                mark = floor(255.0 * texture1(u_marks, b * mark_scale).r + 0.5);
                float reach = mark < CALM ? max(mark - 1.0, 0.0) : 0.0;
                vec3 walls = (floor(b) + mix(vec3(-reach), vec3(reach + 1.0), ahead) - b) * per_block;
                end = t + max(min(walls.x, min(walls.y, walls.z)), 0.0);
                bool is_empty = mark > 0.0 && mark < CALM;
                t += is_empty ? max(ceil(end - t), 1.0) : 0.0;
                if (!is_empty || t >= last) break;
            }
            bool is_calm = mark >= CALM;
            end = min(end, last);
            float stride = is_calm ? floor(max(end - t, 0.0)) + 1.0 : 1.0;
            float solid = is_calm ? 1e30 : solid_depth.x;
            for (int k = 0; k < 64; k++) {
                if (t >= last) break;
                place = start + (t + 0.5 * (stride - 1.0)) * onward;
                vec4 light = glow(place);
                t += stride;
#ifdef SHADED
                if (light.a > solid) { surface = light; break; }
#endif
                float seen = clear * (1.0 - exp(-light.a * stride)) / max(light.a, 1e-20);
                colour += seen * light.rgb;
                clear -= seen * light.a;
                if (t >= end || clear < faint) break;
            }
            if (surface.a > 0.0 || t >= last || clear < faint) break;
        }
#ifdef SHADED
        if (surface.a > 0.0) {
            float alpha = 1.0 - exp(-surface.a);
            colour += clear * alpha * lit(surface.rgb / surface.a, surface.a, place, -way);
            clear *= 1.0 - alpha;
        }
#endif
        if (t >= last || clear < faint) break;
    }
    if (clear < faint) { colour /= 1.0 - clear; clear = 0.0; }
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


def place_sources(*, is_modern: bool) -> tuple[str, str]:
    """Return the two shaders that put a finished picture on the screen."""
    head = _MODERN + "#define MODERN" if is_modern else _LEGACY
    return (_VERTEX_MODERN if is_modern else _VERTEX_LEGACY) + _VERTEX, head + _PLACE


def sources(variant: Variant) -> tuple[str, str]:
    """Return the vertex shader and the ray caster."""
    lines = _constants()
    flags = {"SECOND": variant.is_second_texture, "SHADED": variant.is_shaded, "BENT": variant.is_bent}
    flags["MODERN"] = variant.is_modern
    lines += [f"#define {name}" for name, is_set in flags.items() if is_set]
    head = (_MODERN if variant.is_modern else _LEGACY) + "\n".join(lines)
    return (_VERTEX_MODERN if variant.is_modern else _VERTEX_LEGACY) + _VERTEX, head + _RAY


def _constants() -> list[str]:
    values = {
        "AMBIENT": AMBIENT, "DIFFUSE": DIFFUSE, "SPECULAR": SPECULAR, "SHININESS": SHININESS,
        "CALM": float(CALM),
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
