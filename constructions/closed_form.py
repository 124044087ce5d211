r"""The formulas in sympy: f, S, o_t, G(t), the horizon t* and its logarithm, for every weave; and what sympy proves
of them.

Symbols: t >= 1 is the paper's 1-based position, V the value that W_V gives <bos> (M printed, M + 1 corrected), s the
slope, q = e^{-s}. o_t > H iff G(t) < V, so a horizon t* solves G(t*) = V; the first failing T is ceil(t*) - 1.

`proofs()` runs every step that sympy can check; where it cannot (an inequality for *every* weave), the step is
checked by enumeration and says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy as sp

from constructions.errors import require
from constructions.horizon import Crossing, is_subadditive
from constructions.multiprecision import mp
from constructions.weave import Clamp, Grouped, Leaky, Linear, Stair, Weave

t, n = sp.symbols("t n", integer=True, positive=True)
M, N, E, V, w, W, g = sp.symbols("M N E V w W g", integer=True, positive=True)
s, k = sp.symbols("s k", positive=True)
H = sp.symbols("H", real=True)
rho = sp.symbols("rho", integer=True, nonnegative=True)
q = sp.exp(-s)


def S(count: Any, rate: Any = s) -> Any:  # noqa: N802 - the paper's name
    """S(count) = sum_{j < count} e^{-rate j}."""
    return (1 - sp.exp(-rate * count)) / (1 - sp.exp(-rate))


f = sp.exp(-s * (t - 1)) / S(t)
"""What layer 1 of Theorem 3.2 gives <bos>: strictly decreasing in t."""


def o(growth: Any) -> Any:
    """o_t = V/G(t) - 1 + H."""
    return V / growth - 1 + H


def inverse(x: Any) -> Any:
    """The position at which f takes the value x."""
    return sp.log(1 + (sp.exp(s) - 1) / x) / s


@dataclass(frozen=True)
class ClosedForm:
    """G(t) under a weave from t = `start` on (exact recovery), and the t* at which it reaches V.

    `log_horizon` is the leading part of ln t*: what it takes to move the horizon. `how`: 'sympy' if proofs() derives
    G and t*, 'enumeration' if it is checked against the definition for parameters in a range.
    """

    weave: str
    G: Any
    start: Any
    horizon: Any
    log_horizon: Any
    how: str

    def latex(self) -> str:
        """G, t* and o_t in LaTeX, one formula a line."""
        return "\n".join(
            (
                rf"G(t) = {sp.latex(self.G)} \qquad (t \ge {sp.latex(self.start)})",
                rf"t^* = {sp.latex(self.horizon)}",
                rf"\ln t^* \approx {sp.latex(self.log_horizon)}",
                rf"o_t = {sp.latex(o(sp.Symbol('G')))}",
            )
        )


def _clamped(width: Any, rate: Any, name: str) -> ClosedForm:
    far = sp.exp(-rate * width)
    growth = 2 * S(width, rate) + (t - 2 * width) * far
    horizon = 2 * width + (V - 2 * S(width, rate)) / far
    return ClosedForm(name, growth, 2 * width, horizon, rate * width + sp.log(V - 2 * S(width, rate)), "sympy")


kappa = s * (1 - 1 / k)
"""Leaky ReRoPE is ReRoPE at this smaller rate: two legs past w save s(1 - 1/k) per position of w."""

stair_ceiling = sp.ceiling((N - rho) / E)
stair_rate = sp.exp(-s * N) * ((rho + 1) * sp.exp(s * stair_ceiling) + (E - 1 - rho) * sp.exp(s * (stair_ceiling - 1)))
"""Stair: what G gains from t to t + E, for rho = (2N + 1 - t) mod E."""

stair_drift = sp.log(1 + (E - 1) * sp.exp(-s * (N + 1))) / s
"""Stair with Theorem 3.2's weights: by how much a smooth inverse of f overshoots W(t-1) + 1, as t grows."""

stair_polygon_drift = (1 - sp.exp(-s * stair_drift)) / (1 - q)
"""The same for the MLP, which interpolates linearly between f(k) and f(k+1); while it stays below 1."""

_t0, _G0 = sp.symbols("t_0 G_0", positive=True)

FORMS: dict[str, ClosedForm] = {
    "linear": ClosedForm("linear", t, sp.Integer(1), V, sp.log(V), "sympy"),
    "clamp": _clamped(N, s, "clamp"),
    "leaky": _clamped(w, kappa, "leaky"),
    "stair": ClosedForm(
        "stair",
        _G0 + (t - _t0) / E * stair_rate,
        2 * N + 2 * E,
        _t0 + E * (V - _G0) / stair_rate,
        s * (N - stair_ceiling) + sp.log(V),
        "enumeration",
    ),
    "grouped": ClosedForm(
        "grouped",
        _G0 + (t - _t0) * sp.exp(-s * (W - sp.floor(W / g))),
        2 * W + 2 * g,
        _t0 + (V - _G0) * sp.exp(s * (W - sp.floor(W / g))),
        s * (W - sp.floor(W / g)) + sp.log(V),
        "enumeration",
    ),
}
"""NoPE and PE are 'linear'. Stair, grouped: (t_0, G_0) is any point of G past `start`, in t's residue class."""


def middle_clamp() -> Any:
    """G between N + 1 and 2N under ReRoPE (slope s): 2 S(t - N) + (2N - t) e^{-s(t - 1 - N)}."""
    return 2 * S(t - N) + (2 * N - t) * sp.exp(-s * (t - 1 - N))


def growth_polynomial(weave: Weave, at: int) -> Any:
    """G(at) under exact recovery, exactly: a sum of powers of q = e^{-s}, as a sympy expression.

    Raises:
        ConstructionError: at < 1.
    """
    require(at >= 1, "t", "an integer >= 1", at)
    powers: Counter[Any] = Counter()
    for i in range(at):
        exponent = weave(i, 0) + weave(at - 1, i) - weave(at - 1, 0)
        powers[sp.nsimplify(exponent)] += 1
    return sp.Add(*(count * sp.exp(-s * power) for power, count in powers.items()))


def growth_at(weave: Weave, at: int, slope: float) -> Any:
    """G(at) under exact recovery, in mpmath."""
    powers: Counter[Any] = Counter(weave(i, 0) + weave(at - 1, i) - weave(at - 1, 0) for i in range(at))
    return mp.fsum(count * mp.exp(-mp.mpf(slope) * mp.mpf(power)) for power, count in powers.items())


def period(weave: Weave) -> tuple[int, int] | None:
    """(start, P): from t = start on, G(t + P) - G(t) is constant along each residue class modulo P. None if unknown."""
    if isinstance(weave, Linear):
        return 1, 1
    if isinstance(weave, Clamp):
        return 2 * weave.N, 1
    if isinstance(weave, Leaky):
        return 2 * weave.w + 1, 1
    if isinstance(weave, Stair):
        return 2 * weave.N + 2 * weave.E, weave.E
    if isinstance(weave, Grouped):
        return 2 * weave.W + 2 * weave.G, weave.G
    return None


LONGEST_REGIME = 5000
"""G(t) is summed one by one up to the start of the linear regime; a regime that starts past this is not looked for."""


def exact_crossing(weave: Weave, value: int, slope: float) -> Crossing | None:
    """Where o_t crosses H under exact recovery, in T, however far; None if the linear regime is unknown or too far.

    Both ends: G is evaluated one by one up to the start of the linear regime, and solved for in each residue class
    after it.
    """
    regime = period(weave)
    if regime is None:
        return None
    start, step = regime
    if start + 2 * step > LONGEST_REGIME:
        return None
    limit = mp.mpf(value) * (1 - mp.mpf("1e-30"))  # a tie (integer G) is o = H, a failure
    fails = [at for at in range(1, start + step) if growth_at(weave, at, slope) >= limit]
    holds = [at for at in range(1, start + step) if at not in set(fails)]
    for at in range(start, start + step):
        here = growth_at(weave, at, slope)
        rate = growth_at(weave, at + step, slope) - here
        periods = max(0, int(mp.ceil((limit - here) / rate)))
        fails.append(at + step * periods)
        if periods > 0:
            holds.append(at + step * (periods - 1))
    return Crossing(min(fails) - 1, max(holds))


def drifting_growth_clamp(at: Any, width: int, slope: float) -> Any:
    """G(at), at >= 2N + 1, for ReRoPE with a smooth inverse of f in place of exact recovery (mpmath).

    Key i > N is recovered at tau(i) with e^{-s tau(i)} = 1/(A + B(i - N)), A = 1 + e^s(e^{sN} - 1), B = e^s - 1. The
    far keys are then a harmonic sum: G grows like ln t where exact recovery has it grow like t. The MLP's polygon
    lies above the smooth inverse, so its G lies below.
    """
    e = mp.exp(mp.mpf(slope))
    A, B = 1 + e * (e**width - 1), e - 1
    near = (1 - e**-width) / (1 - 1 / e)
    count = mp.mpf(at) - 2 * width
    far = e / B * (mp.digamma(A / B + count + 1) - mp.digamma(A / B + 1))
    last = mp.fsum(e ** (width + 1 - d) / (A + B * (at - width - d)) for d in range(width))
    return near + far + last


def drifting_horizon_clamp(width: int, value: int, slope: float) -> Any:
    """A lower bound, in t, for ReRoPE's horizon with the weights of Theorem 3.2; about e^{(1 - e^{-s}) V + sN}.

    Solves drifting_growth_clamp(t) = value by bisection on ln t, from where G has begun to grow.
    """
    low, high = mp.log(2 * width + 1), mp.log(2 * width + 2)
    while drifting_growth_clamp(mp.exp(high), width, slope) < value:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        below = drifting_growth_clamp(mp.exp(middle), width, slope) < value
        low, high = (middle, high) if below else (low, middle)
    return mp.exp(high)


def drifting_rate(slope: float, polygon: bool) -> Any:
    """dG / d ln t as t grows, for ReRoPE with a smooth inverse (polygon False) or the MLP's polygon (True).

    So ln t* grows by 1/rate with every unit of M.
    """
    x = mp.exp(-mp.mpf(slope))
    if not polygon:
        return 1 / (1 - x)
    # Between f(k) and f(k+1) the polygon is k + (1 - u)/(1 - q), u = x/f(k) from 1 to q, and u falls like 1/t.
    area = mp.quad(lambda u: mp.exp(-mp.mpf(slope) * (1 - u) / (1 - x)) / u**2, [x, 1])
    return area / (mp.mpf(slope) * (1 - x))


def drifting_factor_stair(width: int, step: int, slope: float) -> Any:
    """By how much Theorem 3.2's weights slow G's growth under Stair, against exact recovery, as t grows (mpmath).

    Valid while the polygon's drift is below 1; rounding restores exact recovery while it is below 1/2.
    """
    return mp.exp(mp.mpf(slope) * polygon_drift_stair(width, step, slope))


def polygon_drift_stair(width: int, step: int, slope: float) -> Any:
    """The MLP's drift under Stair as t grows, in positions: p(t) - W(t-1) - 1, for any size (mpmath)."""
    z = mp.mpf(slope)
    smooth = mp.log(1 + (step - 1) * mp.exp(-z * (width + 1))) / z
    whole = mp.floor(smooth)
    return whole + (1 - mp.exp(-z * (smooth - whole))) / (1 - mp.exp(-z))


@dataclass(frozen=True)
class Proof:
    """One step: what it says, how it was checked ('sympy' or 'enumeration'), and whether it held."""

    statement: str
    how: str
    ok: bool


def _zero(expression: Any) -> bool:
    return bool(sp.simplify(sp.expand(sp.simplify(expression).rewrite(sp.exp))) == 0)


def _threshold_proofs() -> Iterator[Proof]:
    yield Proof("Theorems 3.1, 3.2: o_t - H = (V - t)/t, so o_t > H iff t < V", "sympy", _zero(o(t) - H - (V - t) / t))
    at_end = o(t).subs(t, M)  # T = M - 1 is t = M
    yield Proof("printed, V = M: o = H at T = M - 1", "sympy", _zero(at_end.subs(V, M) - H))
    gain = at_end.subs(V, M + 1) - H - 1 / M
    yield Proof("corrected, V = M + 1: o = H + 1/M at T = M - 1", "sympy", _zero(gain))
    induction = _zero(S(n + 1) - S(n) - sp.exp(-s * n)) and _zero(S(sp.Integer(1)) - 1)
    yield Proof("S(n) is the geometric sum (induction)", "sympy", induction)
    step = 1 / f.subs(t, t + 1) - sp.exp(s) / f - 1
    yield Proof("1/f(t+1) = e^s/f(t) + 1, so f falls strictly", "sympy", _zero(step))
    back = inverse(f)
    yield Proof("ln(1 + (e^s - 1)/f(t))/s = t", "sympy", _zero(sp.exp(s * back) - sp.exp(s * t)))


def _clamp_proofs() -> Iterator[Proof]:
    a, b = sp.symbols("a b", integer=True, nonnegative=True)  # legs of a split, or how far they pass N

    def weave(d: Any) -> Any:
        return sp.Min(d, N)

    far_far = weave(2 * N + a + b) - weave(N + a) - weave(N + b)
    yield Proof("ReRoPE, both legs past N: the exponent is -N", "sympy", _zero(far_far + N))
    form = FORMS["clamp"]
    grows = form.G.subs(t, t + 1) - form.G - sp.exp(-s * N)
    yield Proof("ReRoPE: G(t+1) = G(t) + e^{-sN} from t = 2N on", "sympy", _zero(grows))
    meets = middle_clamp().subs(t, 2 * N) - form.G.subs(t, 2 * N)
    yield Proof("ReRoPE: the pieces of G meet at t = 2N", "sympy", _zero(meets))
    yield Proof("ReRoPE: G(N + 1) = N + 1", "sympy", _zero(middle_clamp().subs(t, N + 1) - N - 1))
    solved = sp.solve(form.G - V, t)
    yield Proof("ReRoPE: t* = 2N + e^{sN}(V - 2 S(N))", "sympy", len(solved) == 1 and _zero(solved[0] - form.horizon))
    woven = sp.exp(-s * N) / (S(N) + (t - N) * sp.exp(-s * N))
    A, B = 1 + sp.exp(s) * (sp.exp(s * N) - 1), sp.exp(s) - 1
    drift = sp.exp(s * inverse(woven)) - A - B * (t - N)
    yield Proof("ReRoPE: f_W(t) is recovered at ln(A + B(t - N))/s", "sympy", _zero(drift))


def _leaky_proofs() -> Iterator[Proof]:
    a, b = sp.symbols("a b", nonnegative=True)

    def far(d: Any) -> Any:
        return w + (d - w) / k

    both = far(2 * w + a + b) - far(w + a) - far(w + b) + w * (1 - 1 / k)
    yield Proof("Leaky, both legs past w: the exponent is -w(1 - 1/k)", "sympy", _zero(both))
    one = far(a + w + b) - a - far(w + b) + a * (1 - 1 / k)
    yield Proof("Leaky, one leg a past neither: the exponent is -a(1 - 1/k)", "sympy", _zero(one))
    limit = sp.limit(FORMS["leaky"].horizon.subs({w: 4, s: 1, V: 33}), k, sp.oo)
    rerope = FORMS["clamp"].horizon.subs({N: 4, s: 1, V: 33})
    yield Proof("Leaky's t* tends to ReRoPE's as k grows (w = N = 4)", "sympy", _zero(limit - rerope))


def _stair_proofs() -> Iterator[Proof]:
    pairs = [(width, step) for width in range(1, 9) for step in range(1, 9)]
    rates = all(_stair_rate_holds(width, step) for width, step in pairs)
    yield Proof("Stair: G(t+E) - G(t) is stair_rate (N, E <= 8, every residue)", "enumeration", rates)
    one_step = sp.simplify(stair_rate.subs({E: 1, rho: 0}) - 1)
    yield Proof("Stair with E = 1 is the plain PE: rate 1", "sympy", bool(one_step == 0))
    total = S(N + 1) + E * sp.exp(-s * (N + 1)) / (1 - q)  # sum of e^{-sW(d)} over all d
    drift = sp.exp(-s) * (sp.exp(s) - 1) * total - sp.exp(s * stair_drift)
    yield Proof("Stair: the drift tends to ln(1 + (E-1) e^{-s(N+1)})/s", "sympy", _zero(drift))


def _stair_rate_holds(width: int, step: int) -> bool:
    weave = Stair(width, step)
    for at in range(2 * width + 2 * step, 2 * width + 3 * step):
        gained = growth_at(weave, at + step, 1.0) - growth_at(weave, at, 1.0)
        if abs(gained - rate_of_stair(width, step, (2 * width + 1 - at) % step)) > 1e-30:
            return False
    return True


def rate_of_stair(width: int, step: int, residue: int, slope: float = 1.0) -> Any:
    """stair_rate at integers, in mpmath."""
    up = math.ceil((width - residue) / step)
    e = mp.exp(mp.mpf(slope))
    return e**-width * ((residue + 1) * e**up + (step - 1 - residue) * e ** (up - 1))


def _bound_proofs() -> Iterator[Proof]:
    kinds: list[Callable[[int], Weave]] = [
        Clamp,
        lambda x: Leaky(x, 3.5),
        lambda x: Stair(x, 3),
        lambda x: Stair(2, x),
    ]
    held = all(is_subadditive(kind(x), 80) for kind in kinds for x in range(1, 12))
    yield Proof(
        "ReRoPE, Leaky and Stair are subadditive, so every exponent of G is <= 0 and G(t) <= t", "enumeration", held
    )
    grouped = all(
        growth_at(Grouped(a, b), at, 1.0) <= at + 1e-30
        for a in (1, 3, 4, 8)
        for b in (1, 2, 3, 5)
        for at in (2, 9, 30, 41)
    )
    yield Proof("Self-Extend: G(t) <= t although W is no function of t - i", "enumeration", grouped)


def proofs() -> list[Proof]:
    """Every step, checked now. Takes some seconds."""
    parts = (_threshold_proofs, _clamp_proofs, _leaky_proofs, _stair_proofs, _bound_proofs)
    return [proof for part in parts for proof in part()]
