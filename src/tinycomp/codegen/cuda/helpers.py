"""Device functions with the language's semantics where those of CUDA C++ are undefined or differ.

A kernel's source holds those that it uses, in this order. No headers are included, so NVRTC needs
none and sources compile anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

HELPERS: dict[str, str] = {
    "Vec": """\
template <typename T, int N> struct __align__(sizeof(T) * N) Vec { T v[N]; };""",
    "half_to_float": """\
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}""",
    "float_to_half": """\
__device__ __forceinline__ unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}""",
    "bfloat16_to_float": """\
__device__ __forceinline__ float bfloat16_to_float(unsigned short bits) {
  return __int_as_float((int)((unsigned int)bits << 16));
}""",
    "float_to_bfloat16": """\
__device__ __forceinline__ unsigned short float_to_bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned short rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
  return rounded;
#endif
  unsigned int bits = (unsigned int)__float_as_int(x);
  if (x != x) return (unsigned short)((bits >> 16) | 0x40u);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}""",
    "bfloat16_bits": """\
// Of a float that is a bfloat16 already.
__device__ __forceinline__ unsigned short bfloat16_bits(float x) {
  return (unsigned short)((unsigned int)__float_as_int(x) >> 16);
}""",
    "round_bfloat16": """\
// As the upper half of a register: one F2FP, where cvt.rn.bf16.f32 and a shift are a slow F2F.
__device__ __forceinline__ float round_bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned int pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(x), "f"(0.0f));
  return __int_as_float((int)pair);
#endif
  return bfloat16_to_float(float_to_bfloat16(x));
}""",
    "nan_min": """\
// NaN if either operand is.
template <typename T> __device__ __forceinline__ T nan_min(T a, T b) {
  return (a < b || a != a) ? a : b;
}
template <> __device__ __forceinline__ float nan_min<float>(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#endif
  return (a < b || a != a) ? a : b;
}""",
    "nan_max": """\
// NaN if either operand is.
template <typename T> __device__ __forceinline__ T nan_max(T a, T b) {
  return (a > b || a != a) ? a : b;
}
template <> __device__ __forceinline__ float nan_max<float>(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#endif
  return (a > b || a != a) ? a : b;
}""",
    "trunc_div": """\
// Towards zero; by zero gives 0, and the quotient of the smallest number and -1 wraps.
template <typename T> __device__ __forceinline__ T trunc_div(T a, T b) {
  if (b == 0) return 0;
  if (b == (T)-1 && (T)-1 < (T)0) return (T)(0ULL - (unsigned long long)a);
  return a / b;
}""",
    "trunc_mod": """\
// Has the sign of the dividend; by zero gives 0.
template <typename T> __device__ __forceinline__ T trunc_mod(T a, T b) {
  if (b == 0 || (b == (T)-1 && (T)-1 < (T)0)) return 0;
  return a % b;
}""",
    "floor_div": """\
// Rounds down; by zero gives 0, and the quotient of the smallest number and -1 wraps.
template <typename T> __device__ __forceinline__ T floor_div(T a, T b) {
  if (b == 0) return 0;
  if (b == (T)-1 && (T)-1 < (T)0) return (T)(0ULL - (unsigned long long)a);
  T q = a / b, r = a % b;
  return (r != 0 && ((r < 0) != (b < 0))) ? q - 1 : q;
}""",
    "floor_mod": """\
// Has the sign of the divisor; by zero gives 0.
template <typename T> __device__ __forceinline__ T floor_mod(T a, T b) {
  if (b == 0 || (b == (T)-1 && (T)-1 < (T)0)) return 0;
  T r = a % b;
  return (r != 0 && ((r < 0) != (b < 0))) ? r + b : r;
}""",
    "float_mod": """\
// The remainder of floats with the sign of the divisor.
template <typename T> __device__ __forceinline__ T float_mod(T a, T b) {
  T r = fmod(a, b);
  return (r != 0 && ((r < 0) != (b < 0))) ? r + b : r;
}""",
    "shift_left": """\
// Shifting by the width or more gives 0.
template <typename T, typename U, int W> __device__ __forceinline__ T shift_left(T a, T b) {
  return (U)b < (U)W ? (T)((U)a << (U)b) : (T)0;
}""",
    "shift_right": """\
// Shifting by the width or more gives 0.
template <typename T, typename U, int W> __device__ __forceinline__ T shift_right(T a, T b) {
  return (U)b < (U)W ? (T)(a >> (U)b) : (T)0;
}""",
    "float_to_int": """\
// Truncates; NaN and what does not fit give the most negative number.
template <typename T> __device__ __forceinline__ int float_to_int(T x) {
  T t = trunc(x);
  return (t >= (T)-2147483648.0 && t < (T)2147483648.0) ? (int)t : (-2147483647 - 1);
}""",
    "float_to_int64": """\
// Truncates; NaN and what does not fit give the most negative number.
template <typename T> __device__ __forceinline__ long long float_to_int64(T x) {
  T t = trunc(x);
  return (t >= (T)-9223372036854775808.0 && t < (T)9223372036854775808.0)
             ? (long long)t : (-9223372036854775807LL - 1);
}""",
    "float_to_uint64": """\
// Negative values wrap; what does not fit gives 2^63.
template <typename T> __device__ __forceinline__ unsigned long long float_to_uint64(T x) {
  const T half = (T)9223372036854775808.0;
  unsigned long long flip = (x >= half) ? 0x8000000000000000ULL : 0ULL;
  return (unsigned long long)float_to_int64(x >= half ? x - half : x) ^ flip;
}""",
    "integer_power": """\
// By repeated squaring, wrapping; a negative exponent gives the truncated quotient.
template <typename T> __device__ __forceinline__ T integer_power(T base, T exponent) {
  if (exponent < 0) {
    if (base == (T)-1) return (exponent % 2) ? (T)-1 : (T)1;
    return base == 1 ? 1 : 0;
  }
  unsigned long long result = 1, square = (unsigned long long)base;
  for (unsigned long long n = (unsigned long long)exponent; n; n >>= 1, square *= square)
    if (n & 1) result *= square;
  return (T)result;
}""",
    "integer_abs": """\
template <typename T> __device__ __forceinline__ T integer_abs(T x) {
  return x < 0 ? (T)(0ULL - (unsigned long long)x) : x;
}""",
    "sign": """\
// 1 with the sign of x, or x itself where it is 0 or NaN.
template <typename T> __device__ __forceinline__ T sign(T x) {
  return x > 0 ? (T)1 : (x < 0 ? (T)-1 : x);
}""",
    "round_tf32": """\
__device__ __forceinline__ float round_tf32(float x) {
  unsigned int bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __int_as_float((int)bits);
}""",
    "truncate_bf16": """\
__device__ __forceinline__ float truncate_bf16(float x) {
  return __int_as_float(__float_as_int(x) & (int)0xffff0000u);
}""",
    "exp2_approx": """\
// One instruction; exp2f scales what is below normal.
__device__ __forceinline__ float exp2_approx(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}""",
    "sigmoid": """\
__device__ __forceinline__ float sigmoid(float x) {
  float e = expf(-fabsf(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}
__device__ __forceinline__ double sigmoid(double x) {
  double e = exp(-fabs(x));
  return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}""",
    "checked_index": """\
// A negative index counts from the end; one that is still outside reports an error and reads 0.
__device__ __forceinline__ long long checked_index(long long i, long long n, int* error, int code) {
  if (i < 0) i += n;
  if ((unsigned long long)i < (unsigned long long)n) return i;
  *error = code;
  return 0;
}""",
}
_NEEDS = {"float_to_uint64": ("float_to_int64",)}


def helper_source(names: Iterable[str], more: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text of these device functions and of those that they call, of this table and `more`."""
    wanted = set(names)
    wanted.update(n for name in tuple(wanted) for n in _NEEDS.get(name, ()))
    return "\n".join(text for name, text in (HELPERS | dict(more)).items() if name in wanted)
