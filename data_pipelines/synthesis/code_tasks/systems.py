"""Level 3, systems: caches, queues, schedulers, parsers, records: state and formats."""

import collections

from data_pipelines.synthesis import words
from data_pipelines.synthesis.code_tasks.family import Family
from data_pipelines.synthesis.code_tasks.family import integers


def _cache_hits(xs, k):
    hits, kept = 0, collections.OrderedDict()
    for x in xs:
        if x in kept:
            hits += 1
            kept.move_to_end(x)
        else:
            kept[x] = None
            if len(kept) > k:
                kept.popitem(last=False)
    return hits


def _reuse_cases(d, k):
    drawn = [(integers(d, 1, k + 3, d.between(8, 20)),) for _ in range(6)]
    twice = list(range(k)) * 2
    return [([],), (twice,), ([*range(k + 1)] * 2,), ([0, *range(1, k), 0, k, 0, 1],), *drawn]


def _bucket(xs, k, m):
    passed, level, last = [], k, 0
    for x in xs:
        level, last = min(k, level + (x - last) // m), last + (x - last) // m * m
        passed.append(level > 0)
        level -= level > 0
    return passed


def _arrivals(d, k, m):
    made = [([],), ([0] * (k + 2),), ([0] * (k + 1) + [m, m, 2 * m - 1, 2 * m, 9 * m],)]
    for _ in range(5):
        made.append((sorted(integers(d, 0, 3 * m + 4, d.between(6, 14))),))
    return made


def _settings(s, sep, mark):
    pairs = [line.split(mark)[0].partition(sep) for line in s.split("\n")]
    return {key.strip(): value.strip() for key, found, value in pairs if found}


def _setting_texts(d, sep, mark):
    made = ["", f"{mark} nothing", "plain", f" a {sep} b {mark} c {sep} d", f"a{sep}b{sep}c"]
    for _ in range(4):
        lines = []
        for key in d.sample(words.NOUNS, d.between(2, 4)):
            note = f" {mark} {d.pick(words.VERBS)}" if d.chance(0.4) else ""
            lines.append(f"{key}{sep}{d.pick((' ', ''))}{d.between(1, 99)}{note}")
        made.append("\n".join(lines))
    return [(each,) for each in made]


def _merged(xs, k):
    covered = sorted({p for low, high in xs for p in range(2 * low, 2 * (high + k) + 1)})
    out = []
    for at, p in enumerate(covered):
        if not at or covered[at - 1] != p - 1:
            out.append([p, p])
        out[-1][1] = p
    return [(low // 2, high // 2 - k) for low, high in out]


def _bookings(d, k):
    made = [
        [],
        [(1, 2)],
        [(5, 9), (1, 2)],
        [(1, 4), (4 + k, 9)],
        [(1, 4), (5 + k, 9)],
        [(1, 9), (2, 3)],
    ]
    for _ in range(4):
        starts = integers(d, 0, 40, d.between(3, 6))
        made.append([(low, low + d.between(1, 8)) for low in starts])
    return [(each,) for each in made]


def _postfix(s):
    tokens = s.split()

    def value():
        last = tokens.pop()
        if last.lstrip("-").isdigit():
            return int(last)
        right, left = value(), value()
        return {"+": left + right, "-": left - right, "*": left * right}[last]

    return value()


def _formula(d, depth):
    if not depth or d.chance(0.2):
        return str(d.between(-9, 20))
    return f"{_formula(d, depth - 1)} {_formula(d, depth - 1)} {d.pick('+-*')}"


def _turns(xs, k):
    left, order = [[name, work] for name, work in xs], []
    while left:
        name, work = left.pop(0)
        order.append((name, min(work, k)))
        if work > k:
            left.append([name, work - k])
    return order


def _jobs(d, k):
    made = [[], [("a", k)], [("a", k + 1), ("b", 1)], [("a", 3 * k), ("b", k - 1), ("c", k)]]
    for _ in range(4):
        names = d.sample(words.NOUNS, d.between(2, 4))
        made.append([(name, d.between(1, 3 * k)) for name in names])
    return [(each,) for each in made]


FAMILIES = (
    Family(
        "least_recently_used",
        ("cache_hits", "simulate_cache", "count_hits", "lru_hits"),
        "$xs",
        (
            "Return how many of the requests $xs a cache of $k entries answers that drops the "
            "least recently used one.",
            "Simulate an LRU cache with $k slots on the keys $xs and count the hits.",
        ),
        """
cache = []
hits = 0
for $x in $xs:
    if $x in cache:
        hits += 1
        cache.remove($x)
    elif len(cache) == $k:
        cache.pop(0)
    cache.append($x)
return hits
""",
        ("cache.pop(0)", "cache.pop()"),
        _cache_hits,
        _reuse_cases,
        lambda d: {"k": d.between(2, 5)},
    ),
    Family(
        "token_bucket",
        ("admit_requests", "rate_limit", "token_bucket", "throttle"),
        "$xs",
        (
            "Return for each arrival time in the sorted $xs whether it passes a bucket of $k "
            "tokens, full at time 0, that gains one token every $m ticks.",
            "A limiter holds at most $k tokens, starts full, and refills one per $m ticks. List "
            "True or False for the sorted times $xs.",
        ),
        """
tokens, refilled = $k, 0
$out = []
for $x in $xs:
    gained = ($x - refilled) // $m
    tokens = min($k, tokens + gained)
    refilled += gained * $m
    if tokens > 0:
        tokens -= 1
        $out.append(True)
    else:
        $out.append(False)
return $out
""",
        ("tokens -= 1", "tokens -= 2"),
        _bucket,
        _arrivals,
        lambda d: {"k": d.between(2, 4), "m": d.between(3, 9)},
    ),
    Family(
        "parse_settings",
        ("parse_settings", "read_options", "load_pairs", "parse_lines"),
        "$s",
        (
            "Return the settings of $s as a dictionary: lines of key, $sep, value; what follows "
            "$mark is a comment; lines without $sep are skipped.",
            "Parse the lines of $s, each 'key $sep value', without comments (from $mark on) and "
            "without outer spaces.",
        ),
        """
$d = {}
for line in $s.split("\\n"):
    line = line.split($mark)[0]
    if $sep not in line:
        continue
    key, value = line.split($sep, 1)
    $d[key.strip()] = value.strip()
return $d
""",
        ("line.split($mark)[0]", "line.split($mark)[-1]"),
        _settings,
        _setting_texts,
        lambda d: {
            "sep": d.pick((":", "=", "->", ":=", "|")),
            "mark": d.pick(("#", ";", "//", "%", "!")),
        },
    ),
    Family(
        "merge_bookings",
        ("merge_bookings", "join_intervals", "occupied_spans", "combine_ranges"),
        "$xs",
        (
            "Merge the intervals $xs, pairs (start, end), that overlap or lie at most $k apart; "
            "return them sorted.",
            "Join bookings (start, end) of $xs whose gap is $k or less and list what results.",
        ),
        """
$out = []
for start, end in sorted($xs):
    if $out and start - $out[-1][1] <= $k:
        $out[-1] = ($out[-1][0], max($out[-1][1], end))
    else:
        $out.append((start, end))
return $out
""",
        ("max($out[-1][1], end)", "min($out[-1][1], end)"),
        _merged,
        _bookings,
        lambda d: {"k": d.between(0, 4)},
    ),
    Family(
        "postfix_machine",
        ("run_postfix", "evaluate_postfix", "stack_machine", "compute_rpn"),
        "$s",
        (
            "Return the value of $s, whole numbers and + - * in postfix order, split by spaces.",
            "Run the postfix expression $s on a stack and return what is left.",
        ),
        """
stack = []
for token in $s.split():
    if token in ("+", "-", "*"):
        $b = stack.pop()
        $a = stack.pop()
        if token == "+":
            stack.append($a + $b)
        elif token == "-":
            stack.append($a - $b)
        else:
            stack.append($a * $b)
    else:
        stack.append(int(token))
return stack.pop()
""",
        ("$a - $b", "$b - $a"),
        _postfix,
        lambda d: [
            ("7",),
            ("9 4 -",),
            ("3 5 *",),
            ("2 -6 +",),
            ("8 3 - 2 *",),
            *((_formula(d, 3),) for _ in range(4)),
        ],
    ),
    Family(
        "round_robin",
        ("round_robin", "schedule", "run_in_turns", "share_processor"),
        "$xs",
        (
            "Return the turns (name, time) of a round-robin scheduler with quantum $k for the jobs "
            "$xs, pairs (name, work).",
            "Jobs $xs of (name, work) share one machine in slices of $k. List every "
            "slice as (name, "
            "time used).",
        ),
        """
queue = list($xs)
$out = []
while queue:
    name, work = queue.pop(0)
    used = min(work, $k)
    $out.append((name, used))
    if work > used:
        queue.append((name, work - used))
return $out
""",
        ("queue.append(", "queue.insert(0, "),
        _turns,
        _jobs,
        lambda d: {"k": d.between(2, 9)},
    ),
)
