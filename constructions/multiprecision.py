"""The mpmath context in which weights and formulas are computed: 50 digits, apart from mpmath's global setting."""

import mpmath

DIGITS = 50
mp = mpmath.MPContext()
mp.dps = DIGITS
