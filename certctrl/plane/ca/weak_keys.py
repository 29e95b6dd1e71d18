"""Detect RSA keys that others can compute: small or close factors, the ROCA pattern. Pure.

Lists of known keys, as those of Debian's broken OpenSSL, are files: ``denied_keys``.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, isqrt, prod

MIN_BITS, MAX_BITS = 2048, 4096
MIN_EXPONENT = 65_537
EXPONENT_BITS = 64
"""OpenSSL refuses larger exponents with large moduli, and signatures with them are slow to verify."""
_SMALL_PRIMES_BELOW = 5000
_FERMAT_ROUNDS = 100
_ROCA_GENERATOR = 65_537
_ROCA_PRIMES_BELOW = 168


def rsa_misfit(modulus: int, exponent: int) -> str:
    """Return why the size or exponent of an RSA key is not supported, as the end of "the key …"; empty if it is."""
    bits = modulus.bit_length()
    if not MIN_BITS <= bits <= MAX_BITS or bits % 8:
        return f"has {bits} bits, not {MIN_BITS} to {MAX_BITS} in steps of 8"
    if exponent % 2 == 0 or exponent < MIN_EXPONENT or exponent.bit_length() > EXPONENT_BITS:
        shown = str(exponent) if exponent.bit_length() <= EXPONENT_BITS else f"of {exponent.bit_length()} bits"
        return f"has the exponent {shown}, not an odd one of at least {MIN_EXPONENT} and at most {EXPONENT_BITS} bits"
    return ""


def rsa_weakness(modulus: int) -> str:
    """Return why others can compute an RSA key, as the end of "the key …"; empty if there is no known reason."""
    if gcd(modulus, _SMALL_PRIMES) != 1:
        return "has a small factor"
    if _has_close_factors(modulus):
        return "has two factors that are close to each other"
    if all(modulus % prime in group for prime, group in _ROCA_GROUPS):
        return "has the pattern of the ROCA weakness (CVE-2017-15361)"
    return ""


def _has_close_factors(modulus: int) -> bool:
    """Return whether Fermat's method finds the factors in a few steps, as it does if they are equal or close."""
    middle = isqrt(modulus - 1) + 1
    for candidate in range(middle, middle + _FERMAT_ROUNDS):
        rest = candidate * candidate - modulus
        if rest % 16 in _SQUARES_OF_16 and isqrt(rest) ** 2 == rest:
            return True
    return False


def _primes(below: int) -> Iterator[int]:
    """Yield the odd primes below a bound."""
    found: list[int] = []
    for number in range(3, below, 2):
        if all(number % prime for prime in found if prime * prime <= number):
            found.append(number)
            yield number


_SMALL_PRIMES = 2 * prod(_primes(_SMALL_PRIMES_BELOW))
_SQUARES_OF_16 = frozenset(number * number % 16 for number in range(16))
_ROCA_GROUPS = tuple(
    (prime, frozenset(pow(_ROCA_GENERATOR, power, prime) for power in range(prime)))
    for prime in _primes(_ROCA_PRIMES_BELOW)
)
"""ROCA's factors, and so their product, are powers of the generator modulo each prime; about 1 in 10⁸ others is, too."""
