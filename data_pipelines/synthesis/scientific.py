"""Questions of measurement: units, tables, uncertainty, fits, dimensions; all computed.

Levels: units, tables, formulas, uncertainty, modelling. Every answer is a number with a unit that
the check knows.
"""

import math
from fractions import Fraction

from data_pipelines.synthesis import base
from data_pipelines.synthesis import measures
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.measures import measured
from data_pipelines.synthesis.measures import shown

VERSION = 1


def convert(draws: Draws) -> Task:
    """Convert a reading to another unit."""
    quantity = draws.pick(tuple(measures.UNITS))
    (unit, size), (other, other_size) = draws.sample(measures.UNITS[quantity], 2)
    reading = Fraction(draws.between(11, 9999), draws.pick((1, 10, 100)))
    value = reading * size / other_size
    thing = draws.pick(measures.THINGS[quantity])
    asked = draws.pick(
        (
            f"The {quantity} of {thing} is {float(reading):g} {unit}. How much is that in {other}?",
            f"Convert {float(reading):g} {unit} to {other}.",
            f"A report gives {float(reading):g} {unit} for {thing}; what is it in {other}?",
        )
    )
    steps = [
        f"One {unit} is {shown(size / other_size)} {other}.",
        f"Multiply by {float(reading):g}.",
    ]
    return measured(draws, "convert", asked, steps=steps, value=value, unit=other)


def compound_unit(draws: Draws) -> Task:
    """Convert a rate, whose unit is a quotient."""
    top, bottom = draws.pick(
        (("mass", "volume"), ("length", "time"), ("energy", "mass"), ("volume", "time"))
    )
    (a, a_size), (b, b_size) = draws.sample(measures.UNITS[top], 2)
    (c, c_size), (d, d_size) = draws.sample(measures.UNITS[bottom], 2)
    reading = draws.between(12, 4000)
    value = reading * a_size / c_size * d_size / b_size
    asked = draws.pick(
        (
            f"Express {reading} {a} per {c} in {b} per {d}.",
            f"A data sheet says {reading} {a}/({c}). What is that in {b}/({d})?",
        )
    )
    steps = [
        f"1 {a} = {shown(a_size / b_size)} {b}.",
        f"1 {c} = {shown(c_size / d_size)} {d}.",
        "Multiply by the first and divide by the second.",
    ]
    return measured(draws, "compound_unit", asked, steps=steps, value=value, unit=f"{b}/({d})")


def read_table(draws: Draws) -> Task:
    """Read one cell, or compare a column."""
    text, names, columns, values = measures.table(draws, draws.between(3, 6))
    row, column = draws.below(len(names)), draws.below(3)
    name, unit = columns[column]
    if draws.chance(0.5):
        asked, value = f"What is the {name} of {names[row]}?", values[row][column]
        steps = [f"Row {names[row]}, column {name}."]
    else:
        low, high = sorted(each[column] for each in values)[:: len(names) - 1]
        asked, value = f"By how much does the {name} vary, from least to greatest?", high - low
        steps = [f"The greatest is {float(high):.1f}, the least {float(low):.1f}."]
    return measured(draws, "read_table", f"{asked}\n{text}\n", steps=steps, value=value, unit=unit)


def table_mean(draws: Draws) -> Task:
    """Average a column of a table."""
    text, names, columns, values = measures.table(draws, draws.pick((4, 5, 8)))
    column = draws.below(3)
    name, unit = columns[column]
    total = sum(each[column] for each in values)
    asked = draws.pick((f"What is the mean {name}?", f"Average the {name} over all rows."))
    steps = [f"The sum is {float(total):.1f}.", f"Divide by {len(names)}."]
    return measured(
        draws, "table_mean", f"{asked}\n{text}\n", steps=steps, value=total / len(names), unit=unit
    )


FORMULAS = (
    (
        "the kinetic energy of {0} kg moving at {1} m/s",
        "half the mass times the speed squared",
        "J",
        lambda m, v: Fraction(m * v * v, 2),
    ),
    ("the pressure of {0} N on {1} m^2", "force over area", "Pa", lambda f, a: Fraction(f, a)),
    (
        "the power when {0} V drive {1} A",
        "voltage times current",
        "W",
        lambda u, i: Fraction(u * i),
    ),
    (
        "the resistance when {0} V drive {1} A",
        "voltage over current",
        "ohm",
        lambda u, i: Fraction(u, i),
    ),
    ("the density of {0} kg in {1} m^3", "mass over volume", "kg/m^3", lambda m, v: Fraction(m, v)),
    (
        "the momentum of {0} kg at {1} m/s",
        "mass times speed",
        "kg*m/s",
        lambda m, v: Fraction(m * v),
    ),
    (
        "the wavelength of a wave of {0} m/s and {1} Hz",
        "speed over frequency",
        "m",
        lambda c, f: Fraction(c, f),
    ),
    (
        "the heat that warms {0} kg of water by {1} K at 4184 J/(kg*K)",
        "mass times heat capacity times rise",
        "J",
        lambda m, t: Fraction(4184 * m * t),
    ),
    (
        "the concentration of {0} mol in {1} L",
        "amount over volume",
        "mol/L",
        lambda n, v: Fraction(n, v),
    ),
    ("the work of {0} N over {1} m", "force times distance", "J", lambda f, s: Fraction(f * s)),
)


def formula(draws: Draws) -> Task:
    """Apply a law to two readings."""
    text, law, unit, compute = draws.pick(FORMULAS)
    a, b = draws.between(11, 990), draws.between(3, 96)
    asked = draws.pick(("Compute {}.", "What is {}?", "Find {}.", "Determine {}.")).format(
        text.format(a, b)
    )
    steps = [f"It is {law}.", f"Insert {a} and {b}."]
    return measured(draws, "formula", asked, steps=steps, value=compute(a, b), unit=unit)


def dilution(draws: Draws) -> Task:
    """Dilute a stock solution."""
    stock, final = draws.between(20, 500), draws.between(2, 19)
    volume = draws.between(3, 90) * 10
    value = Fraction(final * volume, stock)
    asked = draws.pick(
        (
            f"How many mL of a {stock} mmol/L stock make {volume} mL at {final} mmol/L?",
            f"{volume} mL of a {final} mmol/L buffer are needed from {stock} mmol/L stock. Which "
            "volume of stock does that take, in mL?",
        )
    )
    steps = ["Amount is conserved: c1*V1 = c2*V2.", f"V1 = {final}*{volume}/{stock}."]
    return measured(draws, "dilution", asked, steps=steps, value=value, unit="mL")


def mean_error(draws: Draws) -> Task:
    """Give the standard error of repeated readings."""
    name, unit = draws.pick(measures.MEASURED)
    readings = [Fraction(draws.between(150, 950), 10) for _ in range(draws.between(4, 7))]
    mean = sum(readings) / len(readings)
    spread = sum((each - mean) ** 2 for each in readings) / (len(readings) - 1)
    value = math.sqrt(spread / len(readings))
    listed = ", ".join(f"{float(each):.1f}" for each in readings)
    asked = draws.pick(
        (
            f"Repeated readings of the {name} in {unit}: {listed}. What is the standard "
            f"error of the mean?",
            f"{listed}: these are {name} values in {unit}. Give the standard error of their mean "
            "(sample standard deviation over the root of their number).",
        )
    )
    steps = [
        f"The mean is {shown(mean)}.",
        f"The sample variance is {shown(spread)}.",
        f"Divide by {len(readings)} and take the root.",
    ]
    return measured(draws, "mean_error", asked, steps=steps, value=value, unit=unit)


def propagated(draws: Draws) -> Task:
    """Propagate independent errors through a sum or a quotient."""
    a, b = draws.between(50, 900), draws.between(20, 400)
    da, db = draws.between(1, 9), draws.between(1, 9)
    things = draws.sample(("tube", "rod", "gap", "lens", "plate", "spacer", "shaft"), 2)
    if draws.chance(0.5):
        sign = draws.pick(("sum", "difference"))
        value = math.hypot(da, db)
        asked = (
            f"A {things[0]} measures {a} +- {da} mm, a {things[1]} {b} +- {db} mm. What is the "
            f"uncertainty of the {sign} of both, for independent errors?"
        )
        steps = ["Errors of sums and differences add as squares.", f"sqrt({da}^2 + {db}^2)."]
        return measured(draws, "propagated", asked, steps=steps, value=value, unit="mm")
    value = 100 * math.hypot(da / a, db / b)
    asked = (
        f"A distance of {a} +- {da} m takes {b} +- {db} s. What is the relative uncertainty of "
        "the speed in percent, for independent errors?"
    )
    steps = ["Relative errors add as squares.", f"sqrt(({da}/{a})^2 + ({db}/{b})^2), times 100."]
    return measured(draws, "propagated", asked, steps=steps, value=value, unit="%")


def linear_fit(draws: Draws) -> Task:
    """Fit a line by least squares."""
    (_, xu), (yn, yu) = draws.sample(measures.MEASURED, 2)
    xs = list(range(1, draws.between(5, 8)))
    slope, start = draws.between(-9, 12), draws.between(5, 60)
    ys = [slope * x + start + draws.between(-4, 4) for x in xs]
    n, sx, sy = len(xs), sum(xs), sum(ys)
    sxy, sxx = sum(x * y for x, y in zip(xs, ys)), sum(x * x for x in xs)
    value = Fraction(n * sxy - sx * sy, n * sxx - sx * sx)
    wanted = draws.pick(("slope", "intercept"))
    unit = f"{yu}/({xu})" if wanted == "slope" else yu
    listed = "\n".join(f"{x} | {y}" for x, y in zip(xs, ys))
    steps = [
        f"n = {n}, sum x = {sx}, sum y = {sy}, sum xy = {sxy}, sum x^2 = {sxx}.",
        f"The slope is {shown(value)}.",
    ]
    if wanted == "intercept":
        value = (sy - value * sx) / n
        steps.append("The intercept is the mean of y minus the slope times the mean of x.")
    asked = (
        f"Fit a line by least squares. What is the {wanted}?\nx ({xu}) | {yn} ({yu})\n{listed}\n"
    )
    return measured(draws, "linear_fit", asked, steps=steps, value=value, unit=unit)


def decay(draws: Draws) -> Task:
    """Follow an exponential decay."""
    half, elapsed, start = draws.between(2, 40), draws.between(3, 160), draws.between(20, 900)
    value = start * 0.5 ** (elapsed / half)
    thing = draws.pick(("activity (in Bq)", "count rate (in Bq)", "source strength (in Bq)"))
    asked = draws.pick(
        (
            f"The {thing} starts at {start} and halves every {half} days. What is left after "
            f"{elapsed} days?",
            f"Half-life {half} days, start {start} Bq: how many Bq after {elapsed} days?",
        )
    )
    steps = [f"{elapsed}/{half} half-lives pass.", f"Multiply {start} by 0.5 to that power."]
    return measured(draws, "decay", asked, steps=steps, value=value, unit="Bq")


def dimension(draws: Draws) -> Task:
    """Find an exponent by dimensional analysis."""
    while True:
        names = draws.sample(tuple(measures.DIMENSIONS), 3)
        powers = [draws.nonzero(-3, 3) for _ in names]
        which = draws.below(3)
        own = [measures.DIMENSIONS[name][which] for name in names]
        total = sum(power * each for power, each in zip(powers, own))
        if total:
            break
    symbol = ("mass", "length", "time")[which]
    text = " times ".join(f"({name})^{power}" for name, power in zip(names, powers))
    asked = draws.pick(
        (
            f"Which power of {symbol} does {text} have, in the base dimensions mass, length, time?",
            f"Dimensional analysis: find the exponent of {symbol} in {text}.",
        )
    )
    parts = [f"{n} has {symbol} to the {k}, times {p}." for n, k, p in zip(names, own, powers)]
    return measured(draws, "dimension", asked, steps=parts, value=total, unit="")


def half_life(draws: Draws) -> Task:
    """Recover a rate from two readings."""
    start, left, elapsed = draws.between(400, 990), draws.between(20, 390), draws.between(3, 99)
    value = elapsed * math.log(2) / math.log(start / left)
    asked = draws.pick(
        (
            f"A signal falls exponentially from {start} to {left} in {elapsed} s. What is "
            f"its half-life in s?",
            f"From {start} counts to {left} counts within {elapsed} s of exponential "
            f"decay: half-life?",
        )
    )
    steps = [
        f"The rate is log({start}/{left})/{elapsed}.",
        "The half-life is log(2) over the rate.",
    ]
    return measured(draws, "half_life", asked, steps=steps, value=value, unit="s")


LEVELS: base.ByLevel = (
    (convert, read_table),
    (table_mean, compound_unit),
    (formula, dilution, decay),
    (mean_error, propagated, dimension),
    (linear_fit, half_life),
)
make = base.of_level(LEVELS)
