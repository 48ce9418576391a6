"""Level 0: whole numbers, fractions, decimals, percentages, and short stories about them."""

import math
from decimal import Decimal
from fractions import Fraction

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.maths.problem import problem


def sums(draws: Draws) -> Task:
    """Add and subtract a few whole numbers."""
    first, *rest = (draws.between(11, 999) for _ in range(draws.between(3, 5)))
    signs = [draws.pick("+-") for _ in rest]
    total, text, steps = first, str(first), []
    for sign, number in zip(signs, rest):
        after = total + number if sign == "+" else total - number
        steps.append(f"{total} {sign} {number} = {after}.")
        total, text = after, f"{text} {sign} {number}"
    asked = draws.pick(("Compute {}.", "What is {}?", "Work out {}.", "Find the value of {}."))
    return problem(draws, "sums", asked.format(text), steps=steps, answer=str(total), expected=text)


def precedence(draws: Draws) -> Task:
    """Keep the order of operations."""
    a, b, c, d = (draws.between(3, 60) for _ in range(4))
    text = draws.pick(
        ("{a} + {b} * {c} - {d}", "({a} + {b}) * {c} - {d}", "{a} * ({b} + {c}) + {d}")
    )
    shown = text.format(a=a, b=b, c=c, d=d)
    if text.startswith("{a} + "):
        steps = [f"First the product: {b} * {c} = {b * c}.", f"Then {a} + {b * c} - {d}."]
        value = a + b * c - d
    elif text.startswith("("):
        steps = [f"First the bracket: {a} + {b} = {a + b}.", f"Times {c} is {(a + b) * c}."]
        value = (a + b) * c - d
    else:
        steps = [f"First the bracket: {b} + {c} = {b + c}.", f"Times {a} is {a * (b + c)}."]
        value = a * (b + c) + d
    asked = draws.pick(("Evaluate {}.", "What does {} come to?", "Mind the order: compute {}."))
    return problem(
        draws, "precedence", asked.format(shown), steps=steps, answer=str(value), expected=shown
    )


def fractions(draws: Draws) -> Task:
    """Add or subtract two fractions."""
    a, b = (Fraction(draws.between(1, 40), draws.between(2, 24)) for _ in range(2))
    sign = draws.pick("+-")
    common = math.lcm(a.denominator, b.denominator)
    left, right = (each.numerator * (common // each.denominator) for each in (a, b))
    value = a + b if sign == "+" else a - b
    steps = [
        f"The common denominator is {common}.",
        f"{left}/{common} {sign} {right}/{common} = {left + right if sign == '+' else left - right}"
        f"/{common}.",
        "Reduce it.",
    ]
    asked = draws.pick(
        ("Compute {} in lowest terms.", "Simplify {}.", "What is {} as one fraction?")
    )
    text = f"{a} {sign} {b}"
    return problem(
        draws, "fractions", asked.format(text), steps=steps, answer=str(value), expected=text
    )


def percentage(draws: Draws) -> Task:
    """Take a percentage off or on."""
    rate, price = draws.between(2, 19) * 5, draws.between(3, 120) * 20
    part = Fraction(rate * price, 100)
    goods, name = draws.pick(words.GOODS), draws.pick(words.PEOPLE)
    is_off = draws.chance(0.5)
    told = (
        f"{name} buys {goods} for {price} crowns and gets {rate} percent off."
        if is_off
        else f"{name} sells {goods} worth {price} crowns with {rate} percent added."
    )
    value = price - part if is_off else price + part
    steps = [
        f"{rate} percent of {price} is {price}*{rate}/100 = {part}.",
        f"{price} {'-' if is_off else '+'} {part} = {value}.",
    ]
    asked = draws.pick((" What is the final price?", " How many crowns is that in the end?"))
    return problem(
        draws,
        "percentage",
        told + asked,
        steps=steps,
        answer=str(value),
        expected=f"{price} * (100 {'-' if is_off else '+'} {rate}) / 100",
    )


def shopping(draws: Draws) -> Task:
    """Sum up two purchases and the change."""
    m, n = draws.sample(words.GOODS, 2)
    a, b = draws.between(2, 30), draws.between(2, 30)
    p, q = draws.between(2, 45), draws.between(2, 45)
    paid = (a * p + b * q) // 100 * 100 + draws.pick((100, 200, 500))
    name, place = draws.pick(words.PEOPLE), draws.pick(words.PLACES)
    told = draws.pick(
        (
            f"At a shop in {place}, {name} takes {a} {m} at {p} each and {b} {n} at {q} each, and "
            f"pays with {paid}. How much comes back?",
            f"{name} pays {paid} in {place} for {a} {m} ({p} apiece) and {b} {n} ({q} apiece). "
            "What is the change?",
            f"{a} {m} cost {p} each, {b} {n} cost {q} each. {name} hands over {paid}. "
            "Find the change.",
        )
    )
    steps = [
        f"The {m} cost {a}*{p} = {a * p}.",
        f"The {n} cost {b}*{q} = {b * q}.",
        f"Together {a * p + b * q}; {paid} - {a * p + b * q} remains.",
    ]
    return problem(
        draws,
        "shopping",
        told,
        steps=steps,
        answer=str(paid - a * p - b * q),
        expected=f"{paid} - {a} * {p} - {b} * {q}",
    )


def remainder(draws: Draws) -> Task:
    """Divide with a remainder."""
    size, boxes, left = draws.between(6, 48), draws.between(11, 300), 0
    left = draws.between(1, size - 1)
    total = size * boxes + left
    goods, name = draws.pick(words.GOODS), draws.pick(words.PEOPLE)
    told = draws.pick(
        (
            f"{name} packs {total} {goods} into boxes of {size}. How many {goods} are left over?",
            f"A crate of {total} {goods} is shared out in bundles of {size} by {name}. "
            "What remains?",
            f"What is the remainder when {total} is divided by {size}?",
        )
    )
    steps = [f"{size}*{boxes} = {size * boxes}.", f"{total} - {size * boxes} = {left}."]
    return problem(
        draws,
        "remainder",
        told,
        steps=steps,
        answer=str(left),
        expected=f"{total} - {size} * {boxes}",
    )


def common_measure(draws: Draws) -> Task:
    """Find a greatest common divisor or least common multiple."""
    shared = draws.between(2, 30)
    a, b = shared * draws.between(2, 40), shared * draws.between(2, 40)
    divisor = math.gcd(a, b)
    steps, x, y = [], max(a, b), min(a, b)
    while y:
        steps.append(f"{x} = {x // y}*{y} + {x % y}.")
        x, y = y, x % y
    if draws.chance(0.5):
        asked = draws.pick(("greatest common divisor", "largest number that divides both"))
        steps.append(f"The last remainder that is not 0 is {divisor}.")
        answer, expected = str(divisor), f"gcd({a}, {b})"
    else:
        asked = draws.pick(("least common multiple", "smallest common multiple"))
        steps.append(f"The common divisor is {divisor}, so divide {a}*{b} by it.")
        answer, expected = str(math.lcm(a, b)), f"lcm({a}, {b})"
    text = draws.pick((f"Find the {asked} of {a} and {b}.", f"What is the {asked}: {a}, {b}?"))
    return problem(draws, "common_measure", text, steps=steps, answer=answer, expected=expected)


def decimals(draws: Draws) -> Task:
    """Multiply decimals."""
    a, b = draws.between(11, 999), draws.between(11, 999)
    x, y = Decimal(a) / 10, Decimal(b) / 100
    value = x * y
    asked = draws.pick((f"Multiply {x} by {y}.", f"What is {x} times {y}?", f"Compute {x} * {y}."))
    steps = [f"{a}*{b} = {a * b}.", "There are three decimal places in all."]
    return problem(
        draws,
        "decimals",
        asked,
        steps=steps,
        answer=f"{value.normalize():f}",
        expected=f"{a} * {b} / 1000",
    )


def travel(draws: Draws) -> Task:
    """Relate speed, time and distance."""
    speed, hours = draws.between(4, 130), Fraction(draws.between(2, 40), 4)
    place, other = draws.sample(words.PLACES, 2)
    name = draws.pick(words.PEOPLE)
    distance = speed * hours
    told = draws.pick(
        (
            f"{name} goes from {place} towards {other} at {speed} km/h for {hours} hours. How many "
            "kilometres is that?",
            f"A train leaves {place} and keeps {speed} km/h. How far is it after {hours} hours?",
            f"At {speed} km/h, what distance does {name} cover in {hours} hours?",
        )
    )
    steps = [f"Distance is speed times time: {speed}*{hours} = {distance}."]
    return problem(
        draws, "travel", told, steps=steps, answer=str(distance), expected=f"{speed} * {hours}"
    )


MAKERS = (
    sums,
    precedence,
    fractions,
    percentage,
    shopping,
    remainder,
    common_measure,
    decimals,
    travel,
)
