"""Level 2, algorithms: searching, sorting, number theory, brackets, grids, dynamic programs."""

import bisect
import functools
import math

from data_pipelines.synthesis import words
from data_pipelines.synthesis.code_tasks.family import Family
from data_pipelines.synthesis.code_tasks.family import integers
from data_pipelines.synthesis.code_tasks.family import lists


def _sorted_cases(d, **_):
    drawn = [sorted(integers(d, 0, 60, d.between(3, 10))) for _ in range(5)]
    ends = [(drawn[0], drawn[0][0]), (drawn[1], drawn[1][-1] + 1), ([], 3), ([4], 4), ([4, 4], 4)]
    return [*ends, *((xs, d.between(0, 60)) for xs in drawn)]


def _balanced(s, pairs):
    while True:
        shorter = functools.reduce(lambda text, pair: text.replace(pair, ""), pairs, s)
        if shorter == s:
            return not s
        s = shorter


def _bracket_cases(d, pairs):
    made = ["", pairs[0], pairs[0][0], pairs[1][1], pairs[0][0] + pairs[1] + pairs[0][1]]
    made += [pairs[0][0] + pairs[1][0] + pairs[0][1] + pairs[1][1]]
    made += ["".join(d.pick(d.pick(pairs)) for _ in range(d.between(4, 8))) for _ in range(4)]
    return [(each,) for each in made]


def _distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return _distance(a[1:], b[1:])
    return 1 + min(_distance(a[1:], b), _distance(a, b[1:]), _distance(a[1:], b[1:]))


def _word_pairs(d, **_):
    short = [word for word in words.NOUNS if len(word) <= 5]
    drawn = [tuple(d.sample(short, 2)) for _ in range(4)]
    return [("", ""), ("", "ab"), ("abc", "abc"), ("cat", "cut"), *drawn]


def _steps(grid, wall):
    far, edge = {(0, 0): 0}, [(0, 0)]
    if grid[0][0] == wall:
        return -1
    for r, c in edge:
        for to in ((r + 1, c), (r, c + 1), (r - 1, c), (r, c - 1)):
            inside = 0 <= to[0] < len(grid) and 0 <= to[1] < len(grid[0])
            if inside and grid[to[0]][to[1]] != wall and to not in far:
                far[to] = far[r, c] + 1
                edge.append(to)
    return far.get((len(grid) - 1, len(grid[0]) - 1), -1)


def _grids(d, wall):
    made = []
    for _ in range(5):
        rows, columns = d.between(2, 4), d.between(2, 4)
        drawn = [
            "".join(d.pick((".", ".", ".", wall)) for _ in range(columns)) for _ in range(rows)
        ]
        made.append(["." + drawn[0][1:], *drawn[1:-1], drawn[-1][:-1] + "."])
    return [(grid,) for grid in [["."], [f".{wall}", f"{wall}."], *made]]


FAMILIES = (
    Family(
        "lower_bound",
        ("lower_bound", "insert_position", "first_not_less", "search_left"),
        "$xs, $x",
        (
            "Return the first position in the sorted $xs where $x could stand. Use bisection.",
            "Find by bisection how many entries of the sorted $xs are smaller than $x.",
        ),
        """
$a, $b = 0, len($xs)
while $a < $b:
    middle = ($a + $b) // 2
    if $xs[middle] < $x:
        $a = middle + 1
    else:
        $b = middle
return $a
""",
        ("< $x", "<= $x"),
        lambda xs, x: bisect.bisect_left(xs, x),
        _sorted_cases,
    ),
    Family(
        "pairs_with_sum",
        ("pairs_with_sum", "count_pairs", "matching_pairs", "complement_pairs"),
        "$xs",
        (
            "Return how many pairs of places in $xs hold numbers that add up to $k.",
            "Count the index pairs i < j of $xs whose entries sum to $k, in one pass.",
        ),
        """
$d = {}
$t = 0
for $x in $xs:
    $t += $d.get($k - $x, 0)
    $d[$x] = $d.get($x, 0) + 1
return $t
""",
        ("$k - $x", "$k + $x"),
        lambda xs, k: sum(
            xs[i] + xs[j] == k for i in range(len(xs)) for j in range(i + 1, len(xs))
        ),
        lambda d, k: [
            *lists(d, 0, k, longest=12),
            ([k, 0, 0, k],),
            ([k // 2, k - k // 2],),
            ([1, k - 1, 1, k - 1, 2],),
        ],
        lambda d: {"k": d.between(5, 24)},
    ),
    Family(
        "primes_below",
        ("primes_below", "sieve", "list_primes", "prime_numbers_under"),
        "$n",
        (
            "Return the primes below $n that leave the remainder $r when divided by $k.",
            "Sieve the primes smaller than $n and keep those that are $r modulo $k.",
        ),
        """
is_prime = [True] * max($n, 2)
is_prime[0] = is_prime[1] = False
for $x in range(2, int(len(is_prime) ** 0.5) + 1):
    if is_prime[$x]:
        for multiple in range($x * $x, len(is_prime), $x):
            is_prime[multiple] = False
return [$x for $x in range($n) if is_prime[$x] and $x % $k == $r]
""",
        ("range($n)", "range($n - 12)"),
        lambda n, r, k: [p for p in range(2, n) if all(p % q for q in range(2, p)) and p % k == r],
        lambda d, r, k: [
            (2,),
            (3,),
            (48,),
            (50,),
            (120,),
            *((d.between(60, 180),) for _ in range(3)),
        ],
        lambda d: {
            "k": (k := d.pick((3, 4, 5, 6, 8))),
            "r": d.pick([r for r in range(1, k) if math.gcd(r, k) == 1]),
        },
    ),
    Family(
        "balanced_brackets",
        ("is_balanced", "brackets_match", "well_formed", "check_nesting"),
        "$s",
        (
            "Return whether the brackets of $s, which holds only $pairs, are nested properly.",
            "Tell if each opening bracket of $s is closed in order; the kinds are $pairs.",
        ),
        """
closes = {pair[1]: pair[0] for pair in $pairs}
stack = []
for $c in $s:
    if $c in closes:
        if not stack or stack.pop() != closes[$c]:
            return False
    else:
        stack.append($c)
return not stack
""",
        ("return not stack", "return True"),
        _balanced,
        _bracket_cases,
        lambda d: {"pairs": d.sample(("()", "[]", "{}", "<>"), 2)},
    ),
    Family(
        "edit_distance",
        ("edit_distance", "changes_needed", "word_distance", "spelling_distance"),
        "$a, $b",
        (
            "Return the least number of insertions, deletions and replacements from $a to $b.",
            "Compute the Levenshtein distance of $a and $b with one row of memory.",
        ),
        """
row = list(range(len($b) + 1))
for $i, $c in enumerate($a, 1):
    before, row[0] = row[0], $i
    for column, other in enumerate($b, 1):
        best = min(row[column] + 1, row[column - 1] + 1, before + ($c != other))
        before, row[column] = row[column], best
return row[-1]
""",
        ("($c != other)", "($c == other)"),
        _distance,
        _word_pairs,
    ),
    Family(
        "shortest_steps",
        ("shortest_path", "fewest_steps", "grid_distance", "steps_to_corner"),
        "$xs",
        (
            "Return the fewest steps from the top left to the bottom right of $xs, a list of "
            "rows in which $wall blocks; -1 if there is no way.",
            "Breadth-first: how many moves (up, down, left, right) cross the grid $xs from corner "
            "to corner? $wall is a wall; -1 means none.",
        ),
        """
height, width = len($xs), len($xs[0])
distance = {(0, 0): 0}
queue = [(0, 0)]
for row, column in queue:
    if (row, column) == (height - 1, width - 1):
        return distance[row, column]
    for down, right in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        to = (row + down, column + right)
        if 0 <= to[0] < height and 0 <= to[1] < width:
            if $xs[to[0]][to[1]] != $wall and to not in distance:
                distance[to] = distance[row, column] + 1
                queue.append(to)
return -1
""",
        ("distance[row, column] + 1", "distance[row, column] + 2"),
        _steps,
        _grids,
        lambda d: {"wall": d.pick("#X%@*w")},
    ),
    Family(
        "longest_rise",
        ("longest_rise", "longest_climb", "rising_streak", "best_streak"),
        "$xs",
        (
            "Return the length of the longest run of $xs where each entry exceeds the one before "
            "by at least $k.",
            "How long is the longest stretch of $xs that rises by $k or more at every step?",
        ),
        """
best = length = 0
for $i, $x in enumerate($xs):
    if $i and $x - $xs[$i - 1] >= $k:
        length += 1
    else:
        length = 1
    best = max(best, length)
return best
""",
        ("length = 1", "length = 0"),
        lambda xs, k: max(
            (
                j - i
                for i in range(len(xs))
                for j in range(i + 1, len(xs) + 1)
                if all(xs[m + 1] - xs[m] >= k for m in range(i, j - 1))
            ),
            default=0,
        ),
        lambda d, k: [
            *lists(d, 0, 30, longest=10),
            ([0, k, 2 * k, 2 * k + 1, 9 * k],),
            ([0, k - 1, k],),
            ([5, 5 + k, 5, 5 + k, 5 + 2 * k, 5 + 3 * k],),
        ],
        lambda d: {"k": d.between(2, 9)},
    ),
)
