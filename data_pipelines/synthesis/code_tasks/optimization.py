"""Level 4, optimization: the fast way where the obvious one is too slow. The oracles are slow."""

import itertools

from data_pipelines.synthesis.code_tasks.family import Family
from data_pipelines.synthesis.code_tasks.family import integers
from data_pipelines.synthesis.code_tasks.family import lists


def _best_load(xs, k):
    loads = (chosen for size in range(len(xs) + 1) for chosen in itertools.combinations(xs, size))
    return max(sum(v for _, v in chosen) for chosen in loads if sum(w for w, _ in chosen) <= k)


def _loads(d, k):
    made = [[], [(k, 5)], [(k + 1, 9)], [(k, 7), (1, 1), (k - 1, 7)], [(k // 2, 4), (k // 2, 4)]]
    for _ in range(4):
        made.append([(d.between(1, k), d.between(1, 40)) for _ in range(d.between(3, 6))])
    return [(each,) for each in made]


def _ways(n, coins):
    if not coins:
        return int(n == 0)
    return sum(_ways(n - used, coins[1:]) for used in range(0, n + 1, coins[0]))


def _longest_chain(xs):
    best = 0
    for mask in range(1 << len(xs)):
        chosen = [x for at, x in enumerate(xs) if mask >> at & 1]
        if all(a < b for a, b in itertools.pairwise(chosen)):
            best = max(best, len(chosen))
    return best


def _queries(d, **_):
    made = []
    for _ in range(6):
        xs = integers(d, -20, 40, d.between(4, 9))
        pairs = []
        for _ in range(3):
            low = d.between(0, len(xs) - 1)
            pairs.append((low, d.between(low, len(xs))))
        made.append((xs, pairs))
    return [([], []), ([5], [(0, 1), (0, 0)]), *made]


def _paths(xs, wall):
    def count(row, column):
        if row == len(xs) or column == len(xs[0]) or xs[row][column] == wall:
            return 0
        if (row, column) == (len(xs) - 1, len(xs[0]) - 1):
            return 1
        return count(row + 1, column) + count(row, column + 1)

    return count(0, 0)


def _mazes(d, wall):
    made = [["."], ["..", ".."], [wall], [f".{wall}", f"{wall}."], ["...", "...", "..."]]
    for _ in range(4):
        columns = d.between(3, 5)
        rows = [
            "".join(d.pick((".", ".", ".", ".", wall)) for _ in range(columns)) for _ in range(3)
        ]
        made.append(["." + rows[0][1:], rows[1], rows[2][:-1] + "."])
    return [(each,) for each in made]


FAMILIES = (
    Family(
        "knapsack",
        ("best_load", "pack_value", "max_cargo", "knapsack"),
        "$xs",
        (
            "Return the largest value that fits into a capacity of $k, choosing from $xs, pairs "
            "(weight, value), each at most once. One row of memory.",
            "0/1 knapsack of capacity $k over (weight, value) pairs $xs: the best total value.",
        ),
        """
best = [0] * ($k + 1)
for weight, value in $xs:
    for room in range($k, weight - 1, -1):
        best[room] = max(best[room], best[room - weight] + value)
return best[$k]
""",
        ("range($k, weight - 1, -1)", "range($k, weight, -1)"),
        _best_load,
        _loads,
        lambda d: {"k": d.between(6, 30)},
    ),
    Family(
        "coin_ways",
        ("coin_ways", "count_changes", "ways_to_pay", "payment_options"),
        "$n",
        (
            "Return in how many ways the coins $coins can pay $n; their order does not matter.",
            "Count the multisets of $coins that sum to $n, in time proportional to $n.",
        ),
        """
ways = [1] + [0] * $n
for coin in $coins:
    for $t in range(coin, $n + 1):
        ways[$t] += ways[$t - coin]
return ways[$n]
""",
        ("range(coin, ", "range(coin + 1, "),
        lambda n, coins: _ways(n, sorted(coins)),
        lambda d, coins: [
            (0,),
            (min(coins),),
            (max(coins),),
            (sum(coins),),
            *((d.between(10, 40),) for _ in range(4)),
        ],
        lambda d: {"coins": sorted(d.sample(range(2, 16), 3))},
    ),
    Family(
        "longest_increasing",
        ("longest_increasing", "rising_subsequence", "best_chain", "increasing_length"),
        "$xs",
        (
            "Return the length of the longest strictly increasing subsequence of $xs, in "
            "n log n steps.",
            "How many entries of $xs can be kept, in order, so that they strictly rise? Use "
            "bisection.",
        ),
        """
tails = []
for $x in $xs:
    $a, $b = 0, len(tails)
    while $a < $b:
        middle = ($a + $b) // 2
        if tails[middle] < $x:
            $a = middle + 1
        else:
            $b = middle
    if $a == len(tails):
        tails.append($x)
    else:
        tails[$a] = $x
return len(tails)
""",
        ("tails[middle] < $x", "tails[middle] <= $x"),
        _longest_chain,
        lambda d, **_: [*lists(d, 0, 30, longest=8), ([5, 5, 5],), ([3, 1, 2, 2, 4],)],
    ),
    Family(
        "window_maxima",
        ("window_maxima", "sliding_peaks", "moving_maximum", "rolling_high"),
        "$xs",
        (
            "Return the maximum of every $k neighbours in $xs, in time linear in its length.",
            "List the largest entry of each window of $k in $xs; every entry enters and leaves a "
            "queue once.",
        ),
        """
queue = []
head = 0
$out = []
for $i, $x in enumerate($xs):
    while len(queue) > head and $xs[queue[-1]] <= $x:
        queue.pop()
    queue.append($i)
    if queue[head] <= $i - $k:
        head += 1
    if $i >= $k - 1:
        $out.append($xs[queue[head]])
return $out
""",
        ("<= $i - $k", "< $i - $k"),
        lambda xs, k: [max(xs[i : i + k]) for i in range(len(xs) - k + 1)],
        lambda d, k: [
            ([],),
            (list(range(k)),),
            (list(range(3 * k, 0, -1)),),
            ([9] * (k + 1),),
            *((integers(d, 0, 50, d.between(k, k + 9)),) for _ in range(4)),
        ],
        lambda d: {"k": d.between(2, 5)},
    ),
    Family(
        "range_sums",
        ("range_sums", "answer_queries", "interval_totals", "sum_queries"),
        "$xs, $ys",
        (
            "Return for each (low, high) in $ys the sum of $xs[low:high] plus $k, each in constant "
            "time after one pass.",
            "Answer the queries $ys, half-open ranges of $xs, by prefix sums; add $k to each.",
        ),
        """
prefix = [0]
for $x in $xs:
    prefix.append(prefix[-1] + $x)
return [prefix[high] - prefix[low] + $k for low, high in $ys]
""",
        ("prefix[high] - prefix[low]", "prefix[high] + prefix[low]"),
        lambda xs, ys, k: [sum(xs[low:high], k) for low, high in ys],
        _queries,
        lambda d: {"k": d.between(1, 99)},
    ),
    Family(
        "grid_paths",
        ("grid_paths", "count_routes", "ways_through", "monotone_paths"),
        "$xs",
        (
            "Return how many ways lead from the top left to the bottom right of the rows $xs, "
            "going only right or down, round $wall. One row of memory.",
            "Count the monotone paths through the grid $xs in which $wall blocks a cell.",
        ),
        """
ways = [0] * len($xs[0])
ways[0] = 1
for row in $xs:
    for column, cell in enumerate(row):
        if cell == $wall:
            ways[column] = 0
        elif column:
            ways[column] += ways[column - 1]
return ways[-1]
""",
        ("ways[column] = 0", "ways[column] = 1"),
        _paths,
        _mazes,
        lambda d: {"wall": d.pick("#X%@*w")},
    ),
)
