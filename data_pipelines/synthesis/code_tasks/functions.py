"""Level 1, functions: collections, dictionaries, text handling, small transformations."""

import collections
import itertools

from data_pipelines.synthesis import words
from data_pipelines.synthesis.code_tasks.family import Family
from data_pipelines.synthesis.code_tasks.family import integers
from data_pipelines.synthesis.code_tasks.family import lists
from data_pipelines.synthesis.code_tasks.family import sentences


def _runs(d, **_):
    return [([],), *((integers(d, 0, 3, d.between(3, 12)),) for _ in range(5)), ([2, 2, 2],)]


def _evolved(x, n, k, m):
    return x if not n else _evolved(k * x + m if x & 1 else x >> 1, n - 1, k, m)


FAMILIES = (
    Family(
        "long_words",
        ("long_words", "words_of_length", "select_words", "wordy_parts"),
        "$s",
        (
            "Return the words of $s with at least $k letters, in order.",
            "List, in order, each word of $s that is not shorter than $k letters.",
        ),
        """
$out = []
for $x in $s.split():
    if len($x) >= $k:
        $out.append($x)
return $out
""",
        (">= $k", "> $k"),
        lambda s, k: list(filter(lambda word: len(word) >= k, s.split())),
        lambda d, k: [*sentences(d, 6), ("a" * k + " " + "b" * (k - 1),)],
        lambda d: {"k": d.between(4, 7)},
    ),
    Family(
        "group_by_remainder",
        ("group_by_remainder", "classify_by_modulus", "buckets_of", "split_by_rest"),
        "$xs",
        (
            "Return a dictionary from remainder modulo $k to the list of $xs that leave it.",
            "Group $xs by their remainder when divided by $k, keeping their order.",
        ),
        """
$d = {}
for $x in $xs:
    $d.setdefault($x % $k, []).append($x)
return $d
""",
        ("$x % $k", "$x // $k"),
        lambda xs, k: {r: [x for x in xs if x % k == r] for r in {x % k for x in xs}},
        lambda d, k: lists(d, 0, 99),
        lambda d: {"k": d.between(2, 9)},
    ),
    Family(
        "running_totals",
        ("running_totals", "cumulative", "prefix_sums", "sums_so_far"),
        "$xs",
        (
            "Return the running totals of $xs, starting from $k.",
            "Start at $k, add the entries of $xs one by one and list every total reached.",
        ),
        """
$t = $k
$out = []
for $x in $xs:
    $t += $x
    $out.append($t)
return $out
""",
        ("$t = $k", "$t = 0"),
        lambda xs, k: list(itertools.accumulate(xs, initial=k))[1:],
        lambda d, k: lists(d, -30, 60),
        lambda d: {"k": d.nonzero(-99, 99)},
    ),
    Family(
        "run_lengths",
        ("run_lengths", "compress_runs", "encode_runs", "count_repeats"),
        "$xs",
        (
            "Return pairs (entry, length) for each run of equal neighbours in $xs.",
            "Encode $xs as runs: a list of (entry, how often in a row).",
        ),
        """
$out = []
for $x in $xs:
    if $out and $out[-1][0] == $x:
        $out[-1] = ($x, $out[-1][1] + 1)
    else:
        $out.append(($x, 1))
return $out
""",
        ("[1] + 1", "[1] + 2"),
        lambda xs: [(key, len(list(group))) for key, group in itertools.groupby(xs)],
        _runs,
    ),
    Family(
        "top_words",
        ("most_frequent", "top_words", "leading_words", "popular_words"),
        "$s",
        (
            "Return the $k most frequent words of $s; ties go by the alphabet.",
            "List the $k words that $s uses most, the alphabet deciding between equals.",
        ),
        """
$d = {}
for $x in $s.split():
    $d[$x] = $d.get($x, 0) + 1
return sorted($d, key=lambda word: (-$d[word], word))[:$k]
""",
        ("-$d[word]", "$d[word]"),
        lambda s, k: [
            w
            for w, _ in sorted(collections.Counter(s.split()).items(), key=lambda p: (-p[1], p[0]))
        ][:k],
        lambda d, k: [
            ("",),
            *(
                (" ".join(d.pick(words.ADJECTIVES[:7]) for _ in range(d.between(6, 16))),)
                for _ in range(5)
            ),
        ],
        lambda d: {"k": d.between(2, 4)},
    ),
    Family(
        "apply_repeatedly",
        ("iterate", "apply_rule", "evolve", "repeat_step"),
        "$x, $n",
        (
            "Apply $n times to $x: halve an even number, else multiply by $k and add $m.",
            "Repeat $n times: if $x is even take its half, otherwise $k times it plus $m.",
        ),
        """
for _ in range($n):
    if $x % 2 == 0:
        $x //= 2
    else:
        $x = $k * $x + $m
return $x
""",
        ("% 2 == 0", "% 2 == 1"),
        _evolved,
        lambda d, k, m: [(7, 0), (6, 1), *((d.between(1, 60), d.between(1, 12)) for _ in range(5))],
        lambda d: {"k": d.pick((3, 5, 7)), "m": d.pick((1, 3, 5, 7))},
    ),
    Family(
        "window_sums",
        ("window_sums", "sliding_totals", "moving_sums", "block_totals"),
        "$xs",
        (
            "Return the sums of every $k neighbours in $xs; [] if there are fewer.",
            "Add up each window of $k consecutive entries of $xs, from left to right.",
        ),
        """
$out = []
for $i in range(len($xs) - $k + 1):
    $out.append(sum($xs[$i:$i + $k]))
return $out
""",
        ("- $k + 1", "- $k"),
        lambda xs, k: [sum(w) for w in zip(*(xs[j:] for j in range(k)))],
        lambda d, k: [*lists(d, -20, 50, longest=11), (integers(d, 1, 9, k),)],
        lambda d: {"k": d.between(2, 5)},
    ),
    Family(
        "caesar",
        ("shift_letters", "encode", "rotate_alphabet", "shifted"),
        "$s",
        (
            "Return $s with each lower-case letter moved $k places in the alphabet, round the end.",
            "Shift every letter from a to z in $s by $k; anything else stays.",
        ),
        """
$out = ""
for $c in $s:
    if "a" <= $c <= "z":
        $out += chr((ord($c) - 97 + $k) % 26 + 97)
    else:
        $out += $c
return $out
""",
        ("+ $k", "- $k"),
        lambda s, k: s.translate({97 + i: 97 + (i + k) % 26 for i in range(26)}),
        lambda d, k: [*sentences(d), ("az, Zy{`!",)],
        lambda d: {"k": d.pick([k for k in range(1, 26) if k != 13])},
    ),
)
