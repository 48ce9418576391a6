"""Units, quantities, dimensions, tables; and how a question whose answer is a number is put."""

from fractions import Fraction

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws

# quantity: [(unit, size in the base unit)], exact.
UNITS: dict[str, tuple[tuple[str, Fraction], ...]] = {
    "length": (
        ("mm", Fraction(1, 1000)),
        ("cm", Fraction(1, 100)),
        ("m", Fraction(1)),
        ("km", Fraction(1000)),
        ("in", Fraction(254, 10_000)),
        ("ft", Fraction(3048, 10_000)),
    ),
    "mass": (
        ("mg", Fraction(1, 1_000_000)),
        ("g", Fraction(1, 1000)),
        ("kg", Fraction(1)),
        ("t", Fraction(1000)),
    ),
    "time": (
        ("ms", Fraction(1, 1000)),
        ("s", Fraction(1)),
        ("min", Fraction(60)),
        ("h", Fraction(3600)),
        ("d", Fraction(86_400)),
    ),
    "volume": (("mL", Fraction(1, 1_000_000)), ("L", Fraction(1, 1000)), ("m^3", Fraction(1))),
    "pressure": (
        ("Pa", Fraction(1)),
        ("hPa", Fraction(100)),
        ("kPa", Fraction(1000)),
        ("bar", Fraction(100_000)),
    ),
    "energy": (
        ("J", Fraction(1)),
        ("kJ", Fraction(1000)),
        ("Wh", Fraction(3600)),
        ("kWh", Fraction(3_600_000)),
    ),
    "speed": (("m/s", Fraction(1)), ("km/h", Fraction(1000, 3600))),
}
THINGS = {
    "length": ("a cable", "the track", "a beam", "the fence", "a sediment core"),
    "mass": ("a sample", "the crate", "a rock", "the residue", "a rotor"),
    "time": ("a reaction", "the scan", "a cycle", "the exposure", "one orbit of a probe"),
    "volume": ("the tank", "a flask", "the syringe", "a reservoir", "the buffer"),
    "pressure": ("the chamber", "a tyre", "the vessel", "the inlet", "the sensor"),
    "energy": ("a battery", "the heater", "a pulse", "the motor", "one charge"),
    "speed": ("the wind", "a drone", "the current", "a particle", "the belt"),
}
MEASURED = (
    ("temperature", "degC"),
    ("rainfall", "mm"),
    ("wind speed", "m/s"),
    ("current", "mA"),
    ("voltage", "V"),
    ("mass", "g"),
    ("absorbance", "mAU"),
    ("growth", "cm"),
    ("dose", "mGy"),
    ("flow", "L/min"),
    ("intensity", "lx"),
    ("depth", "m"),
)
LABELS = ("site", "sample", "station", "plot", "run", "probe", "batch", "subject")
# dimension exponents of mass, length, time
DIMENSIONS = {
    "force": (1, 1, -2),
    "energy": (1, 2, -2),
    "power": (1, 2, -3),
    "pressure": (1, -1, -2),
    "momentum": (1, 1, -1),
    "velocity": (0, 1, -1),
    "acceleration": (0, 1, -2),
    "density": (1, -3, 0),
    "volume": (0, 3, 0),
    "area": (0, 2, 0),
    "frequency": (0, 0, -1),
    "mass": (1, 0, 0),
    "length": (0, 1, 0),
    "time": (0, 0, 1),
    "viscosity": (1, -1, -1),
    "flow rate": (0, 3, -1),
}
ENDINGS = (
    " Give the number and the unit {unit} after 'Answer:'.",
    " The last line is 'Answer:', the number, and {unit}.",
    " Finish with 'Answer:' followed by the value in {unit}.",
    " Put the result in {unit} after 'Answer:'.",
)


def shown(value: float | Fraction, digits: int = 6) -> str:
    """Return a number with so many significant digits, without an exponent where it is short."""
    return f"{float(value):.{digits}g}" if abs(value) < 1e6 or digits > 9 else f"{float(value):.9g}"


def measured(
    draws: Draws, topic: str, asked: str, *, steps: list[str], value: float | Fraction, unit: str
) -> Task:
    """Return the task of a question whose answer is a number with a unit."""
    text = shown(value)
    wrong = shown(float(value) * draws.pick((10, 0.1, 1.5, 2, -1)) + draws.pick((0, 1)))
    opening = draws.pick(
        (
            "",
            "",
            "{name} notes in {place}: ",
            "From the log of {place}: ",
            "{name} asks: ",
            "Lab {n}. ",
        )
    ).format(name=draws.pick(words.PEOPLE), place=draws.pick(words.PLACES), n=draws.between(1, 99))
    worked = draws.pick((" ", "\n")).join(steps)
    tail = f" {unit}" if unit else ""
    ending = draws.pick(ENDINGS).format(unit=unit or "no unit")
    check = {
        "kind": "number",
        "expected": float(value),
        "relative": 1e-4,
        "absolute": 1e-12,
        "after": "Answer:",
        **({"unit": unit} if unit else {}),
    }
    return Task(
        prompt=opening + asked + ending,
        completion=f"{worked}\nAnswer: {text}{tail}",
        check=check,
        topic=topic,
        wrong=f"{worked}\nAnswer: {wrong}{tail}",
        kind="math",
    )


def table(
    draws: Draws, rows: int
) -> tuple[str, list[str], list[tuple[str, str]], list[list[Fraction]]]:
    """Return a table as text, its row names, its columns and its values."""
    label = draws.pick(LABELS)
    names = [f"{label} {letter}" for letter in draws.sample("ABCDEFGHJKLMNPQRSTUVWXYZ", rows)]
    columns = draws.sample(MEASURED, 3)
    values = [[Fraction(draws.between(20, 990), 10) for _ in columns] for _ in names]
    head = " | ".join(["", *(f"{name} ({unit})" for name, unit in columns)])
    lines = [" | ".join([n, *(f"{float(v):.1f}" for v in row)]) for n, row in zip(names, values)]
    return "\n".join([f"{label}{head}", *lines]), names, columns, values
